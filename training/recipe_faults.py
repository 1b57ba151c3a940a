"""What is wrong with a recipe, in words."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel, ValidationError


def faults(error: ValidationError, model: type[BaseModel]) -> str:
    """Each wrong key and why, with the key that may have been meant where there is none such.

    Args:
        error: What pydantic found.
        model: What was validated.
    """
    told = []
    for fault in error.errors():
        unknown = fault["type"] == "extra_forbidden"
        *parents, leaf = fault["loc"] or ("",)
        # pydantic adds the number type or the kind of objective that it tried.
        kind = str(parents.pop(1)) if parents[:1] == ["objective"] and len(parents) > 1 else None
        parts = [
            str(part) for part in (*parents, leaf) if _is_key(part) or (unknown and part == leaf)
        ]
        key = ".".join(parts)
        message = fault["msg"].removeprefix("Value error, ")
        if unknown:
            message = f"{kind or 'a recipe'} has no such key; {_suggestion(key, model)}"
        told.append(f"{key}: {message}" if key else message)
    return "; ".join(told)


def _is_key(part: int | str) -> bool:
    return str(part).isidentifier() and part not in ("int", "float")


def _suggestion(key: str, model: type[BaseModel]) -> str:
    """The key of this name in another section, or one of nearly this name in the same."""
    section, _, leaf = key.rpartition(".")
    known = [other.rpartition(".") for other in dict.fromkeys(_keys(model)) if other != key]
    near = ["".join(other) for other in known if other[2] == leaf]
    siblings = {name: place + dot + name for place, dot, name in known if place == section}
    near += [siblings[name] for name in difflib.get_close_matches(leaf, siblings, n=1)]
    return f"did you mean {near[0]}?" if near else "`foveal-train explain` lists all keys"


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key and section that a recipe may have, whichever its objective is."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{prefix}{name}.")
