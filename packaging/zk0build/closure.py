"""Which files of a package of libraries are needed: those that are kept by name, and all that these load.

Works the same for Linux, Windows and macOS: a library is looked for by its file name among the package's own files; what is not
there is the system's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from zk0build.binaries import needed


def libraries(folders: Iterable[Path]) -> dict[Path, list[str]]:
    """Every executable and library under `folders`, with the file names of what it loads."""
    found: dict[Path, list[str]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and (loads := needed(path)) is not None:
                found[path] = loads
    return found


def reached(roots: Iterable[Path], among: dict[Path, list[str]]) -> set[Path]:
    """`roots` and all of `among` that they load, directly or through others. Names compare without case, as on Windows."""
    by_name: dict[str, list[Path]] = {}  # Windows' wheels bring the same C runtime in several folders
    for path in among:
        by_name.setdefault(path.name.lower(), []).append(path)
    open_, seen = [path for path in roots if path in among], set[Path]()
    while open_:
        path = open_.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in among[path]:
            open_ += by_name.get(name.lower(), [])
    return seen


def qt_roots(site: Path, bindings: Iterable[str], plugins: Iterable[str], among: Iterable[Path]) -> Iterator[Path]:
    """Of `among` (all libraries in site-packages `site`), the Qt bindings and plugins that are kept by name."""
    bindings, plugins = set(bindings), list(plugins)
    for path in among:
        inside = path.relative_to(site)
        if inside.parts[0] not in ("PySide6", "shiboken6"):
            continue
        is_binding = len(inside.parts) == 2 and path.suffix in (".so", ".pyd")
        if is_binding and (inside.parts[0] == "shiboken6" or path.name.split(".")[0] in bindings):
            yield path
        place = "plugins/" in inside.as_posix() and Path(inside.as_posix().partition("plugins/")[2])
        if place and any(place.match(pattern) for pattern in plugins):
            yield path


def trim(site: Path, bindings: Iterable[str], plugins: Iterable[str], packages: Iterable[str], without: Iterable[str]) -> dict[str, int]:
    """Remove from site-packages `site` what of `packages` is not needed; the bytes that went, by package.

    Of Qt (PySide6, shiboken6) the `bindings` and `plugins` stay with what they load. Of the others the extension modules stay, but for
    the patterns in `without`, again with what they load. Files that are no libraries stay.
    """
    packages, without = list(packages), list(without)
    among = libraries(site / name for name in packages)
    # Windows' wheels keep some packages' libraries beside them.
    kept = set(qt_roots(site, bindings, plugins, among))
    for path in among:
        inside = path.relative_to(site)
        is_module = path.suffix == ".pyd" or ".cpython-" in path.name or ".abi3." in path.name
        if inside.parts[0] not in ("PySide6", "shiboken6") and is_module and not any(inside.match(pattern) for pattern in without):
            kept.add(path)
    stay = reached(kept, among)
    gone = dict.fromkeys(packages, 0)
    for path in set(among) - stay:
        gone[path.relative_to(site).parts[0]] += path.stat().st_size
        path.unlink()
    return gone
