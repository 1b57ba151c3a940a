"""Settings as a person gives them: read with clear errors, shown with where each comes from."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsError

from service.settings import Settings

PREFIX = "FOVEAL_"
FILE = f"{PREFIX}CONFIG"
# Said of a default that is worked out of other settings, while one of those is wrong.
UNASKED = "default_factory_not_called"
NO_SETTINGS = {FILE, f"{PREFIX}API_KEY"}  # of the same environment, and read elsewhere

Origin = Literal["flag", "environment", "file", "default"]


class SettingsUnusable(Exception):
    """A setting is unknown or wrong; the message names it and where it stands."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings, and where each comes from."""

    settings: Settings
    origins: Mapping[str, Origin]

    def toml(self) -> str:
        """Write every setting as a line of TOML, secrets hidden."""
        lines = []
        for name, origin in self.origins.items():
            value = getattr(self.settings, name)
            line = f"# {name} is not set" if value is None else f"{name} = {_toml(value)}"
            lines.append((line, origin))
        width = max(len(line) for line, _ in lines)
        return "\n".join(f"{line:{width}}  # {origin}" for line, origin in lines)


def read(flags: Mapping[str, Any]) -> Configuration:
    """Read the settings: a flag, else the environment, else the file, else the default.

    Raises:
        SettingsUnusable: A setting is unknown or wrong, or the file cannot be read.
    """
    path = os.environ.get(FILE)
    file = _read_file(Path(path).expanduser()) if path else {}
    environment = {
        name.upper().removeprefix(PREFIX).lower()
        for name in os.environ
        if name.upper().startswith(PREFIX) and name.upper() not in NO_SETTINGS
    }
    _require_known(environment, "the environment has {}", lambda name: PREFIX + name.upper())
    _require_known(file, f"{path} has {{}}", str)
    try:
        settings = Settings(**flags)
    except ValidationError as error:
        wrong = [one for one in error.errors() if one["type"] != UNASKED]
        raise SettingsUnusable("; ".join(map(_explain, wrong))) from None
    except SettingsError as error:
        raise SettingsUnusable(str(error)) from None

    def origin(name: str) -> Origin:
        if name in flags:
            return "flag"
        if name in environment:
            return "environment"
        return "file" if name in file else "default"

    return Configuration(settings, {name: origin(name) for name in Settings.model_fields})


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise SettingsUnusable(f"{FILE}: there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise SettingsUnusable(f"{FILE}: {path} cannot be read: {error}") from None


def _require_known(names: Iterable[str], where: str, written: Any) -> None:
    for name in names:
        if name not in Settings.model_fields:
            near = difflib.get_close_matches(name, Settings.model_fields, 1)
            hint = f"; did you mean {written(near[0])}?" if near else ""
            said = where.format(f"an unknown setting {written(name)}")
            raise SettingsUnusable(f"{said}{hint} `foveal serve --show-config` lists all")


def _explain(error: Any) -> str:
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return str(message)
    name = error["loc"][0]
    return f"{name}: {message}" + ("" if _is_secret(name) else f" (it is {error['input']!r})")


def _is_secret(name: str) -> bool:
    annotation = Settings.model_fields[name].annotation
    return SecretStr in (annotation, *get_args(annotation))


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    # Strings, numbers and booleans are written in TOML as in JSON.
    return json.dumps(value if isinstance(value, int | float) else str(value), ensure_ascii=False)
