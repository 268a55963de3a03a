"""The lists of wheels that the training engine is fetched from: one for each back end of the artefact's computers.

Made of requirements.lock and of what the package index says at the time of the build; they go into the artefact and are never
committed. zk0desk/engine reads them.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from zk0build import lock, product
from zk0build.afar import NoPartsError, file_afar
from zk0build.recipe import CHECKOUT, LOCK, EngineList, Recipe, Target
from zk0build.tree import Tree
from zk0build.trouble import BuildError, call, say
from zk0desk.engine import lists
from zk0desk.engine.wheel import contents, describe


def make(tree: Tree, recipe: Recipe, *, index: str, torch_indexes: dict[str, str], work: Path) -> list[Path]:
    """Write the lists of `tree`'s system into its resources, with the wheels that no index has; their paths.

    `torch_indexes`: the address of an index with torch, by back end.
    """
    folder = tree.site / "zk0desk" / "_resources" / "engines"
    made = write(
        folder,
        tree.target,
        recipe,
        {wheel.name for wheel in tree.wheels} | {"zk0desk"},
        index=index,
        torch_indexes=torch_indexes,
        work=work,
    )
    if not made:
        raise BuildError(f"There is no list of engines for {tree.target.name}.", "No entry of recipe.toml's [[engine.list]] could be made.")
    return made


def write(
    folder: Path,
    target: Target,
    recipe: Recipe,
    shipped: set[str],
    *,
    index: str,
    torch_indexes: dict[str, str],
    work: Path,
    project: Path = CHECKOUT,
    locked: Path = LOCK,
) -> list[Path]:
    """Write the lists for `target` into `folder`, without the packages named in `shipped`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for wanted in recipe.engine_lists:
        if (wanted.system, wanted.arch) != (target.system, target.arch):
            continue
        if wanted.torch_index and wanted.backend not in torch_indexes:
            say(f"  engine {wanted.name}: left out, for its torch no index was given (--torch-index {wanted.backend}=URL)")
            continue
        chosen = lock.resolve(
            target, extra=recipe.engine_extra, index=index, torch_index=torch_indexes.get(wanted.backend, ""), project=project, lock=locked
        )
        wheels = [wheel for wheel in chosen if wheel.name not in shipped | set(recipe.engine_leave_out)]
        with ThreadPoolExecutor(4) as pool:
            entries = list(pool.map(lambda wheel: _built(wheel, folder / "wheels", index, work) if wheel.source else _entry(wheel), wheels))
        text = canonical(wanted, entries)
        check(json.loads(text), lock.read(locked), folder)
        lists.parse(text, wanted.name)  # what reads it on an owner's computer
        path = folder / f"{wanted.name}.json"
        path.write_text(text, encoding="utf-8")
        made.append(path)
        say(f"  engine {wanted.name}: {len(entries)} wheels, {sum(each['size'] for each in entries) / 1e6:.0f} MB")
    return made


def canonical(wanted: EngineList, entries: Iterable[dict[str, Any]]) -> str:
    """The list as JSON text, the same for the same entries."""
    described = {"schema": 1, "system": wanted.system, "arch": wanted.arch, "backend": wanted.backend, "python": "cp312"}
    return json.dumps(described | {"wheels": sorted(entries, key=lambda entry: entry["name"])}, indent=1, sort_keys=True) + "\n"


def check(listed: dict[str, Any], locked: dict[str, lock.Locked], folder: Path) -> None:
    """BuildError unless every entry of a list is one wheel of the locked version that can be had: from its address, or from `folder`."""
    names = [entry["name"] for entry in listed["wheels"]]
    if len(names) != len(set(names)) or not names:
        raise BuildError("A list of an engine names a package twice, or none.")
    for entry in listed["wheels"]:
        said, known = f"{entry['name']} {entry['version']}", locked.get(entry["name"])
        if not entry["file"].endswith(".whl"):
            raise BuildError(f"{said} is no wheel: {entry['file']}.", "An owner's computer compiles nothing.")
        if known is None and not entry["name"].startswith("nvidia-") or known and known.version != entry["version"].partition("+")[0]:
            raise BuildError(f"{said} is not what requirements.lock has.")
        if entry["url"]:
            if entry["size"] <= 0 or not entry["url"].startswith(("https://", "http://")):
                raise BuildError(
                    f"{said} cannot be fetched by an owner.",
                    f"Its size is {entry['size']}, its address {entry['url']}.",
                    "Use an index that tells both.",
                )
        elif not (folder / "wheels" / entry["file"]).is_file():
            raise BuildError(f"{said} has no address and is not shipped.")


def _entry(wheel: lock.Wheel) -> dict[str, Any]:
    entry = {"name": wheel.name, "version": wheel.version, "file": wheel.file, "size": wheel.size, "sha256": wheel.sha256, "url": wheel.url}
    if wheel.size and wheel.url.startswith(("https://", "http://")):
        try:
            with file_afar(wheel.url, wheel.size) as file:
                entry |= contents(file, wheel.file)
        except NoPartsError:  # the size on the disk is then estimated, and an engine that was saved to a folder is checked less
            say(f"  {wheel.file}: the index gives no part of a file, so its contents are not listed")
    return entry


def _built(wheel: lock.Wheel, folder: Path, index: str, work: Path) -> dict[str, Any]:
    """Build the wheel of a package that has only a source archive, with the locked setuptools; it is shipped in `folder`."""
    built = work / "wheels" / wheel.name
    shutil.rmtree(built, ignore_errors=True)
    built.mkdir(parents=True)
    wanted = built / "requirements.txt"
    wanted.write_text(wheel.requirement + "\n", encoding="utf-8")
    host = Path(sys.base_prefix) / ("python.exe" if sys.platform == "win32" else "bin/python3")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--require-hashes", "--no-binary", wheel.name]
    source = ["--index-url", index] if index else []
    call([host, "-m", "pip", "--python", sys.executable, "wheel", *options, *source, "--wheel-dir", built, "--requirement", wanted],
         env={"SOURCE_DATE_EPOCH": str(product.epoch())})  # fmt: skip
    files = list(built.glob("*.whl"))
    if len(files) != 1 or not files[0].name.endswith("-none-any.whl"):
        raise BuildError(f"The wheel of {wheel.name} that was built does not fit every computer.", ", ".join(file.name for file in files))
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(files[0], folder / files[0].name)
    return describe(files[0]) | {"name": wheel.name, "url": ""}
