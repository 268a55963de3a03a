"""`packaging/recipe.toml` as objects, and where things are in the checkout."""

from __future__ import annotations

import platform
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from zk0build.trouble import BuildError

PACKAGING = Path(__file__).resolve().parent.parent
CHECKOUT = PACKAGING.parent
LOCK = CHECKOUT / "requirements.lock"


@dataclass(frozen=True)
class Identity:
    """How desktops know the application. `opt`: the folder of the Debian package's tree."""

    id: str
    name: str
    scheme: str
    extension: str
    mime: str
    maintainer: str
    opt: str


@dataclass(frozen=True)
class EngineList:
    """One list of wheels to make: for `system` ("linux", "windows", "macos"), `arch` and `backend`.

    `torch_index`: the package index alone has no such torch; the address of PyTorch's is given at the build.
    """

    system: str
    arch: str
    backend: str
    torch_index: bool = False

    @property
    def name(self) -> str:
        return f"{self.system}-{self.arch}-{self.backend}"


@dataclass(frozen=True)
class Recipe:
    """What goes into the packages; patterns are globs, relative to the standard library, Qt's plugins, or site-packages."""

    identity: Identity
    python: str
    python_leave_out: tuple[str, ...]
    bindings: tuple[str, ...]
    plugins: tuple[str, ...]
    leave_out: tuple[str, ...]
    keep: tuple[str, ...]
    leave_out_bindings: tuple[str, ...]
    trimmed: tuple[str, ...]
    stripped: tuple[str, ...]
    without: tuple[str, ...]
    feed: str
    feed_key: str
    engine_extra: str
    engine_leave_out: tuple[str, ...]
    engine_lists: tuple[EngineList, ...]


@dataclass(frozen=True)
class Target:
    """The computers that an artefact is for. `platform` in uv's words; `floor`: glibc or macOS that the wheels may need."""

    system: str
    arch: str
    platform: str
    floor: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        return f"{self.system}-{self.arch}"

    @property
    def environment(self) -> dict[str, str]:
        """What uv has to be told besides `platform`: it takes an older macOS for granted."""
        return {"MACOSX_DEPLOYMENT_TARGET": ".".join(map(str, self.floor))} if self.system == "macos" else {}


TARGETS = {
    target.name: target
    for target in (
        Target("linux", "x86_64", "x86_64-manylinux_2_34", (2, 34)),
        Target("linux", "aarch64", "aarch64-manylinux_2_39", (2, 39)),
        Target("windows", "x86_64", "x86_64-pc-windows-msvc"),
        Target("macos", "arm64", "aarch64-apple-darwin", (14, 0)),
    )
}
"""Every computer that there are packages for: what PySide6 has wheels for."""

_HERE = {"linux": "linux", "win32": "windows", "darwin": "macos"}


def here() -> Target | None:
    """The target that this computer is; None when there are no packages for it."""
    machine = platform.machine().lower()
    arch = {"amd64": "x86_64", "aarch64": "aarch64" if sys.platform == "linux" else "arm64"}.get(machine, machine)
    return TARGETS.get(f"{_HERE.get(sys.platform, sys.platform)}-{arch}")


def target_of(system: str) -> Target:
    """The target to build for `system`: this computer's own where the system is the same, else the usual one."""
    own = here()
    if own is not None and own.system == system:
        return own
    return TARGETS[{"linux": "linux-x86_64", "windows": "windows-x86_64", "macos": "macos-arm64"}[system]]


def read(path: Path = PACKAGING / "recipe.toml") -> Recipe:
    """Read the recipe; BuildError names the key that is missing or unknown."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        python, qt, packages, engine = table["python"], table["qt"], table["packages"], table["engine"]
        return Recipe(
            identity=Identity(**table["identity"]),
            python=python["version"],
            python_leave_out=tuple(python["leave_out"]),
            bindings=tuple(qt["bindings"]),
            plugins=tuple(qt["plugins"]),
            leave_out=tuple(packages["leave_out"]),
            keep=tuple(packages["keep"]),
            leave_out_bindings=tuple(packages["leave_out_bindings"]),
            trimmed=tuple(packages["trimmed"]),
            stripped=tuple(packages["stripped"]),
            without=tuple(packages["without"]),
            feed=table["updates"]["feed"],
            feed_key=table["updates"]["key"],
            engine_extra=engine["extra"],
            engine_leave_out=tuple(engine["leave_out"]),
            engine_lists=tuple(EngineList(**each) for each in engine["list"]),
        )
    except (KeyError, TypeError, tomllib.TOMLDecodeError) as error:
        raise BuildError(f"{path} cannot be used.", f"{type(error).__name__}: {error}", "Compare it with the last commit.") from error
