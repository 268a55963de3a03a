"""What requirements.lock vouches for, and which wheels of it a target gets.

The package index is asked through uv alone, and uv as it is configured on the computer that builds (UV_DEFAULT_INDEX, uv.toml) or
with `--index`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import canonicalize_name, parse_wheel_filename

from zk0build.recipe import CHECKOUT, LOCK, Target
from zk0build.trouble import BuildError, call

UV = CHECKOUT / ".venv" / ("Scripts/uv.exe" if sys.platform == "win32" else "bin/uv")
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Locked:
    """`version` of a package, and the SHA-256 of every file of it that may be used."""

    version: str
    hashes: frozenset[str]


@dataclass(frozen=True)
class Wheel:
    """One file to install. `file` is its name, `size` in bytes; `url` is where the index has it. A source archive has `source` True."""

    name: str
    version: str
    file: str
    size: int
    sha256: str
    url: str
    source: bool = False

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


def read(path: Path = LOCK) -> dict[str, Locked]:
    """requirements.lock by canonical name. A package that is locked twice (for different systems) keeps the hashes of both."""
    found: dict[str, Locked] = {}
    name, version, hashes = "", "", set[str]()
    for line in [*path.read_text(encoding="utf-8").splitlines(), "end==0"]:
        pin = _PIN.match(line)
        if pin:
            if name:
                earlier = found.get(name)
                if earlier is not None and earlier.version != version:
                    raise BuildError(f"{path.name} has two versions of {name}.", "An artefact and its engine share one set of packages.")
                found[name] = Locked(version, frozenset(hashes | (earlier.hashes if earlier else set())))
            name, version, hashes = str(canonicalize_name(pin[1])), pin[2], set()
        hashes.update(_HASH.findall(line))
    return found


_OLD_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
"""What platforms were called before their glibc's minor version was in the name (PEP 600)."""


def tags(target: Target) -> dict[Tag, int]:
    """The wheel tags that CPython 3.12 on `target` can load, with their rank: the lower, the better."""
    low, high = target.floor
    if target.system == "linux":
        platforms = []
        for minor in range(high, 4, -1):
            platforms.append(f"manylinux_{low}_{minor}_{target.arch}")
            if minor in _OLD_NAMES:
                platforms.append(f"{_OLD_NAMES[minor]}_{target.arch}")
        platforms.append(f"linux_{target.arch}")
    elif target.system == "macos":
        platforms = list(mac_platforms(target.floor, target.arch))
    else:
        platforms = ["win_amd64"]
    ordered = [*cpython_tags((3, 12), platforms=platforms), *compatible_tags((3, 12), "cp312", platforms)]
    return {tag: rank for rank, tag in reversed(list(enumerate(ordered)))}


def resolve(
    target: Target, *, extra: str = "", index: str = "", torch_index: str = "", project: Path = CHECKOUT, lock: Path = LOCK
) -> list[Wheel]:
    """The wheels that `project` (with `extra`) needs on `target`, by name: the locked versions, the best file of each.

    Every file is one that the lock vouches for, except torch's own from `torch_index`, whose public version is the locked one. A package
    that has no wheel comes as its source archive. BuildError says what does not fit.
    """  # fmt: skip
    locked = read(lock)
    with TemporaryDirectory(prefix="zk0desk-lock-") as folder:
        out = Path(folder) / "pylock.toml"
        command = [UV, "pip", "compile", "--quiet", "--format", "pylock.toml", "--output-file", out, "--constraint", lock,
                   "--python-platform", target.platform, "--python-version", "3.12"]  # fmt: skip
        if extra:
            command += ["--extra", extra]
        if index:
            command += ["--default-index", index]
        if torch_index:
            command += ["--index", torch_index, "--index-strategy", "unsafe-best-match"]
        call([*command, project / "pyproject.toml"], cwd=Path(folder), env=target.environment)
        packages = tomllib.loads(out.read_text(encoding="utf-8"))["packages"]
    ranks = tags(target)
    return sorted((_chosen(package, ranks, locked, bool(torch_index), target) for package in packages), key=lambda wheel: wheel.name)


def _chosen(package: dict, ranks: dict[Tag, int], locked: dict[str, Locked], elsewhere: bool, target: Target) -> Wheel:
    name, version = str(canonicalize_name(package["name"])), package["version"]
    entry = locked.get(name)
    if entry is None or entry.version != version.partition("+")[0]:
        raise BuildError(
            f"{name} {version} is not what requirements.lock has.", "", "Run make lock, look at what changed, and build again."
        )
    files = []
    for item in package.get("wheels", []):
        file = _file_name(item)
        rank = min((ranks[tag] for tag in parse_wheel_filename(file)[3] if tag in ranks), default=None)
        if rank is not None:
            files.append((rank, file, item, False))
    if not files and "sdist" in package:
        files.append((0, _file_name(package["sdist"]), package["sdist"], True))
    if not files:
        raise BuildError(f"{name} {version} has no file for {target.name}.", "", "Pin a version that has one.")
    _, file, item, source = min(files, key=lambda each: each[:2])
    digest = item["hashes"]["sha256"]
    if digest not in entry.hashes and not (elsewhere and "+" in version):
        raise BuildError(
            f"{file} is not a file that requirements.lock vouches for.",
            f"Its SHA-256 is {digest}.",
            "Check the index before anything else.",
        )
    return Wheel(name, version, file, int(item.get("size", 0)), digest, item.get("url", item.get("path", "")), source)


def _file_name(item: dict) -> str:
    return unquote(item.get("name") or urlsplit(item.get("url") or item["path"]).path.rsplit("/", 1)[-1])
