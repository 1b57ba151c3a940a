"""Recipes as files: found by name or path, laid over their `base`, changed by key=value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

RECIPES = Path(__file__).parent / "recipes"

# What a recipe is about. Half of another network's keys or another loss's would mean nothing.
WHOLE = frozenset({"model", "objective"})


class RecipeError(Exception):
    """The recipe cannot be run; the message names each wrong key and why."""


def read_recipe(source: str, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a recipe, not yet checked.

    A recipe's `base` is another one, whose values it takes over but for those that it names itself:
    section by section and key by key, `model` and `objective` as a whole. A section that is null
    is the default again.

    Args:
        source: Name of a recipe in the box, or the path of a .yaml file.
        overrides: `key=value`, with dots between a section and its key; laid over what there is
            as a recipe is over its base.

    Raises:
        RecipeError: There is no such recipe, it is no YAML, or it is its own base.
    """
    path = _find(source, Path())
    values = _values(path, heirs=())
    values.setdefault("name", path.stem)
    for override in overrides:
        values = _set(values, override)
    return values


def _find(source: str, folder: Path) -> Path:
    path = folder / source if source.endswith(".yaml") else RECIPES / f"{source}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise RecipeError(f"no recipe {source!r}; known: {known}, or the path of a .yaml file")
    return path


def _values(path: Path, heirs: tuple[Path, ...]) -> dict[str, Any]:
    if path in heirs:
        chain = " -> ".join(p.stem for p in (*heirs, path))
        raise RecipeError(f"{path.stem} is its own base ({chain}); leave one of them out")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is no YAML: {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path} holds no keys and values")
    base = values.pop("base", None)
    if base is None:
        return _over({}, values)
    if not isinstance(base, str):
        raise RecipeError(f"{path}: base = {base!r} is no recipe's name")
    try:
        below = _values(_find(base, path.parent), (*heirs, path))
    except RecipeError as error:
        raise error if heirs else RecipeError(f"{path}: base: {error}") from None
    below.pop("name", None)
    return _over(below, values)


def _over(below: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in values.items():
        known = merged.pop(key, None)
        if isinstance(known, dict) and isinstance(value, dict) and key not in WHOLE:
            merged[key] = known | value
        elif value is not None:
            merged[key] = value
    return merged


def _set(values: dict[str, Any], override: str) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    if not separator:
        raise RecipeError(f"{override!r} is not of the form key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{key}: {text!r} is no YAML value: {error}") from None
    *parents, leaf = key.split(".")
    if not parents:
        return _over(values, {leaf: value})
    group = values
    for parent in parents:
        group = group.setdefault(parent, {})
        if not isinstance(group, dict):
            raise RecipeError(f"{key}: {parent} is a value, not a group of values")
    group[leaf] = value
    return values
