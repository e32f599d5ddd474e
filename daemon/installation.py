"""Whether the package that was loaded is the one that was installed.

python-daemon on PyPI installs a top-level package of the same name and silently overwrites files of ours, or wins on
the import path. The check compares what was loaded with our own distribution's file list, so that the mix is named
instead of failing somewhere else.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from daemon.errors import ConfigError, Problem

DISTRIBUTION = "revector"


def require_own_package(loaded: Path) -> None:
    """loaded: the `__init__.py` of the imported package. Raises ConfigError `package-overwritten`."""
    try:
        installed = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        return  # run from a source tree
    if reason := mismatch(loaded, installed):
        hint = f"install {DISTRIBUTION} by itself: uv tool install {DISTRIBUTION}, pipx, or a container"
        raise ConfigError([Problem("package-overwritten", str(loaded), reason, hint)])


def mismatch(loaded: Path, installed: Distribution) -> str | None:
    """Why the loaded package is not the installed one; None where it is, or where the list does not tell (an editable
    installation lists no modules)."""
    name = f"{loaded.parent.name}/{loaded.name}"
    recorded = next((file for file in installed.files or () if file.as_posix() == name), None)
    if recorded is None:
        return None
    if Path(str(recorded.locate())).resolve() != loaded.resolve():
        return f"another package named `{loaded.parent.name}` comes first on the import path"
    if recorded.hash is not None and recorded.hash.mode == "sha256":
        found = base64.urlsafe_b64encode(hashlib.sha256(loaded.read_bytes()).digest()).rstrip(b"=").decode()
        if found != recorded.hash.value:
            return f"another distribution (python-daemon?) overwrote the package `{loaded.parent.name}`"
    return None
