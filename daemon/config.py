"""From TOML file, environment and flags to frozen settings, or to every problem at once.

Precedence: flag, environment (`REVECTOR_<SECTION>_<KEY>`), file, default; each value's origin is kept for
`config show --origin`. Variables and flags of `generation` set the last one, the candidate. A problem names file and
line, the key, the constraint and, for unknown keys, the nearest known one; the refused value is never printed (it may
be a secret pasted into the wrong place), so pydantic's own messages are not used.

The only module that reads `os.environ`. Secrets are references until `Loaded.reveal` is asked for one.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from daemon import conninfo, toml_places
from daemon.config_problems import (
    ELSEWHERE,
    LISTS,
    Key,
    Places,
    header,
    nearest,
    problems_of,
    section_at,
    sections,
    show_key,
)
from daemon.errors import ConfigError, Problem
from daemon.settings import Settings
from daemon.settings_checks import SECRET_PROPERTIES, Frozen, Secret

DEFAULT_PATH = "revector.toml"
CONFIG_VARIABLE = "REVECTOR_CONFIG"  # which file to read; not a setting
_PREFIX = "REVECTOR_"
_PROPERTIES = ("kafka", "properties")
_CANDIDATE = "generation"  # the list of which variables and flags set the last element


def environment() -> Mapping[str, str]:
    """The process environment as it is."""
    return dict(os.environ)


@dataclass(frozen=True)
class Loaded:
    """Settings with where they came from. origins: key as `show_key` prints it -> "file:line", "environment …",
    "flag" or "default"."""

    settings: Settings
    origins: Mapping[str, str]
    path: Path
    warnings: tuple[Problem, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    def reveal(self, secret: Secret, key: str) -> str:
        """Read a secret; `key` is the setting that refers to it. Read again on each call, so a rotated one is found.

        Raises ConfigError `secret-missing`.
        """
        value = self.environ.get(secret.env) if secret.env else _read(self._secret_path(secret))
        if not value:
            hint = "set it, or change the reference"
            where = self.origins.get(key, str(self.path))
            raise ConfigError([Problem("secret-missing", f"{where} {key}", f"nothing to read at {secret}", hint)])
        return value

    def _secret_path(self, secret: Secret) -> Path | None:
        if secret.file:
            return self.path.parent / secret.file
        folder = self.environ.get("CREDENTIALS_DIRECTORY")
        return Path(folder, secret.credential) if folder and secret.credential else None


def load(path: Path, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Loaded:
    """Read, merge and check a configuration. overrides: dotted key -> value, from flags; text is taken as TOML.

    Raises ConfigError with all problems, in the order of the file's lines.
    """
    return parse(_text(path), path, environ, overrides)


def parse(text: str, path: Path, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Loaded:
    """`load` for a text at hand; `path` is what messages call it and where relative secrets start."""
    data, lines = _document(text, path)
    origins: dict[Key, str] = {key: f"{path}:{line}" for key, line in lines.items()}
    warnings = _overlay_environment(data, origins, environ)
    _overlay_flags(data, origins, overrides)
    try:
        settings = Settings.model_validate(data, context={"environ": environ})
    except ValidationError as error:
        raise ConfigError([*problems_of(error, data, Places(origins, path)), *warnings]) from None
    warnings += _undecided(settings, origins, environ)
    shown = {show_key(key): origins.get(key, "default") for key, _ in leaves(settings)}
    return Loaded(settings, shown, path, tuple(warnings), environ)


def locate(given: Path | None, name: str | None, environ: Mapping[str, str]) -> Path:
    """The file to read: the flag, else $REVECTOR_CONFIG, else `<name>.toml` for a named migration where it exists,
    else `revector.toml`."""
    if given is not None:
        return given
    if chosen := environ.get(CONFIG_VARIABLE):
        return Path(chosen)
    if name is not None and (named := Path(f"{name}.toml")).exists():
        return named
    return Path(DEFAULT_PATH)


def leaves(settings: Frozen, at: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every single setting in the order of the classes: path and value."""
    for name, value in settings:
        key = (*at, name)
        if isinstance(value, Frozen) and not isinstance(value, Secret):
            yield from leaves(value, key)
        elif isinstance(value, Mapping):
            yield from (((*key, k), v) for k, v in value.items())
        elif isinstance(value, tuple) and value and isinstance(value[0], Frozen):
            for index, item in enumerate(value):
                yield from leaves(item, (*key, index))
        else:
            yield key, value


def variable(key: Key) -> str:
    """The environment variable of a setting outside of [[table]] and [[quiet_hours]]."""
    return _PREFIX + "_".join(re.sub(r"[.\-]", "_", part) for part in key if isinstance(part, str)).upper()


def is_variable(key: Key) -> bool:
    """Whether an environment variable sets it: what a list holds has none, but for the candidate."""
    return (key[0],) not in LISTS or key[0] == _CANDIDATE


# --- the file


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = "name one with --config, or write one: revector init"
        problem = Problem("config-missing", str(path), "no such file", hint)
    except OSError as error:
        reason = (error.strerror or "").lower()
        problem = Problem("config-unreadable", str(path), f"cannot be read: {reason}", "see its owner and mode")
    except UnicodeDecodeError:
        problem = Problem("config-unreadable", str(path), "is not UTF-8 text", "save it as UTF-8")
    raise ConfigError([problem])


def _document(text: str, path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    try:
        return tomllib.loads(text), toml_places.lines(text)
    except tomllib.TOMLDecodeError as error:
        reason, _, place = str(error).rpartition(" (at ")
        numbers = re.findall(r"\d+", place) or [str(text.count("\n") + 1)]
        hint = f"column {numbers[1]}" if len(numbers) > 1 else "the file ends too early"
        problem = Problem("config-syntax", f"{path}:{numbers[0]}", f"not TOML: {reason.lower()}", hint)
    raise ConfigError([problem])


def _read(path: Path | None) -> str | None:
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n") if path else None
    except (OSError, UnicodeDecodeError):
        return None


# --- environment and flags


def _scalars() -> Iterator[tuple[Key, Any]]:
    """(path without indices, annotation) of every setting that a variable can set."""
    tables: list[tuple[tuple[str, ...], type[Frozen]]] = [((), Settings), *sections()]
    for at, section in tables:
        for name, info in section.model_fields.items():
            key = (*at, name)
            if section_at(key) in {None, Secret} and key != _PROPERTIES and is_variable(key):
                yield key, info.annotation


def _overlay_environment(data: dict[str, Any], origins: dict[Key, str], environ: Mapping[str, str]) -> list[Problem]:
    """Put variables into the document; an empty one counts as not set. Warnings for variables that look like ours."""
    known = {variable(key): (key, annotation) for key, annotation in _scalars()}
    elsewhere = {variable(key): variable(there) for key, there in ELSEWHERE.items()}
    prefixes = tuple(_PREFIX + name.upper() + "_" for name in Settings.model_fields)
    warnings: list[Problem] = []
    for name, text in sorted(environ.items()):
        if not name.startswith(_PREFIX) or not text:
            continue
        if name in known:
            key, annotation = known[name]
            origins[_put(data, key, _typed(text, annotation, name))] = f"environment {name}"
        elif name.startswith(prefix := variable(_PROPERTIES) + "_"):
            key = (*_PROPERTIES, name.removeprefix(prefix).lower().replace("_", "."))
            origins[_put(data, key, {"env": name} if key[-1] in SECRET_PROPERTIES else text)] = f"environment {name}"
        elif name.startswith(prefixes):
            hint = f"write {elsewhere[name]}" if name in elsewhere else nearest(name, list(known)) or "remove it"
            warnings.append(Problem("variable-unknown", name, "sets nothing: no such setting", hint, "warning"))
    return warnings


def _typed(text: str, annotation: Any, name: str) -> Any:
    """A variable's text as the setting's type; text that does not fit is left for the check to refuse."""
    kinds = (annotation, *get_args(annotation))  # of `int | None`: the two
    if Secret in kinds:
        return {"env": name}
    if int in kinds and re.fullmatch(r"-?\d+", text):
        return int(text)
    if float in kinds and re.fullmatch(r"-?\d+(\.\d+)?", text):
        return float(text)
    if bool in kinds and text.lower() in {"true", "false"}:
        return text.lower() == "true"
    return text


def _overlay_flags(data: dict[str, Any], origins: dict[Key, str], overrides: Mapping[str, Any]) -> None:
    for dotted, value in overrides.items():
        prefix = ".".join(_PROPERTIES) + "."
        is_property = dotted.startswith(prefix)
        key: Key = (*_PROPERTIES, dotted.removeprefix(prefix).strip('"')) if is_property else tuple(dotted.split("."))
        if len(key) > 1 and not is_variable(key):
            message = f"{header(key[:1])} is a list of tables"
            raise ConfigError([Problem("unknown-key", f"flag {dotted}", message, "set it in the file")])
        origins[_put(data, key, _toml(value) if isinstance(value, str) else value)] = "flag"


def _toml(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(data: dict[str, Any], key: Key, value: Any) -> Key:
    """Set a value in the document; its path there, with the index of the generation that it belongs to."""
    path: Key = ()
    for part in key[:-1]:
        path = (*path, part)
        below = data.setdefault(str(part), [{}] if path == (_CANDIDATE,) else {})
        if path == (_CANDIDATE,) and isinstance(below, list) and below:
            path = (*path, len(below) - 1)
            below = below[-1]
        if not isinstance(below, dict):
            break  # the check refuses what stands there
        data = below
    else:
        data[str(key[-1])] = value
    return (*path, key[-1])


def _undecided(settings: Settings, origins: Mapping[Key, str], environ: Mapping[str, str]) -> list[Problem]:
    """Warnings for connections of which a service decides about TLS."""
    message = "the service decides whether the connection is encrypted and verified"
    hint = "set sslmode=verify-full in the service or in the dsn"
    return [
        Problem("tls-by-service", f"{origins.get(key, 'default')} {show_key(key)}", message, hint, "warning")
        for key, dsn in ((("source", "dsn"), settings.source.dsn), (("target", "dsn"), settings.target.dsn))
        if conninfo.is_undecided(dsn, environ)
    ]
