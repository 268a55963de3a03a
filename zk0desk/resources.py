"""Files that are shipped with zk0desk: icons, the desktop entry, the demo's recipe."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource(name: str) -> Path:
    """The path of `resources/<name>`, in an installed wheel or in a checkout; FileNotFoundError when there is none.

    `name` is relative, with forward slashes, e.g. `icons/zk0desk.svg`.
    """
    for folder in (_PACKAGE / "_resources", _PACKAGE.parent / "resources"):
        path = folder / name
        if path.exists():
            return path
    raise FileNotFoundError(f"zk0desk has no resource {name!r}")
