"""Errors of the build, and the programs that it calls."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class BuildError(Exception):
    """What happened, why, and what whoever builds can do."""

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__(" ".join(part for part in (what, why, remedy) if part))
        self.what, self.why, self.remedy = what, why, remedy


def say(text: str) -> None:
    """One line about the build's progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def program(name: str, package: str) -> str:
    """Where the program `name` is; BuildError with the Debian `package` that has it."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        raise BuildError(
            f"{name} is not on this computer.", "The build calls it.", f"Install it, on Debian with: apt-get install {package}"
        )
    return path


def call(command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run `command` to its end; what it printed on stdout. `env` comes on top of this process's environment."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BuildError(
            f"{Path(str(command[0])).name} failed with status {done.returncode}.", (done.stderr or done.stdout).strip()[-3000:]
        )
    return done.stdout
