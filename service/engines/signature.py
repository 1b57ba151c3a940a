"""Whether a graph is what the contract of `service.bundle` says, whichever library read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from service.bundle import Bundle, BundleError

Shape = tuple[int | None, ...]


class Node(NamedTuple):
    """An input or output of a graph: None in its shape is any size."""

    name: str
    dtype: str
    shape: Shape


def check_signature(
    bundle: Bundle, inputs: Sequence[Node], outputs: Sequence[Node], where: str | None = None
) -> None:
    """Compare names, types and shapes with the contract.

    Args:
        bundle: Whose contract it is.
        inputs: Of the graph.
        outputs: Of the graph.
        where: What the message calls the graph, where it is not the bundle's file.

    Raises:
        BundleError: They differ.
    """
    manifest = bundle.manifest
    where = where or str(bundle.graph)
    contract: dict[str, Shape] = {
        "embedding": (None, manifest.dim),
        "patches": (None, None, None, manifest.dim),
        "attention": (None, manifest.heads, None, None),
    }
    if len(inputs) != 1 or not _is(inputs[0], Node("images", "uint8", (None, None, None, 3))):
        raise BundleError(
            f"{where} must have one input, images, uint8 [batch, height, width, 3], "
            f"with any batch; it has {_describe(inputs)}"
        )
    for name in manifest.outputs:
        if name not in contract:
            raise BundleError(f"{bundle.path} names an unknown output, {name!r}")
        if not any(_is(node, Node(name, "float32", contract[name])) for node in outputs):
            raise BundleError(
                f"{where} must have an output {name}, float32 {list(contract[name])}, "
                f"with any batch; it has {_describe(outputs)}"
            )


def _is(node: Node, wanted: Node) -> bool:
    return (
        (node.name, node.dtype, len(node.shape)) == (wanted.name, wanted.dtype, len(wanted.shape))
        and node.shape[0] is None
        and all(
            size is None or want is None or size == want
            for size, want in zip(node.shape, wanted.shape, strict=True)
        )
    )


def _describe(nodes: Sequence[Node]) -> str:
    return ", ".join(f"{node.name} {node.dtype} {list(node.shape)}" for node in nodes)
