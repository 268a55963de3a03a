"""Starts zk0desk from a Linux package; a window that could not open is explained before Qt would abort.

`zk0desk_start.json` beside this file names the system's libraries that the package needs, each with its Debian package.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from zk0desk import cli

NEEDED = Path(__file__).with_suffix(".json")


def main() -> int:
    given = sys.argv[1:]
    if not given or given[0] == "--background" or cli.is_invitation(given[0]):
        trouble = what_is_missing()
        if trouble:
            tell(trouble)
            return 1
    return cli.main()


def what_is_missing() -> str:
    """A sentence about what keeps the window from opening; "" when nothing does."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or os.environ.get("QT_QPA_PLATFORM")):
        return (
            "zk0desk cannot open its window: there is no screen here (DISPLAY and WAYLAND_DISPLAY are not set).\n"
            "Without a window: zk0desk --help"
        )
    needed: dict[str, str] = json.loads(NEEDED.read_text(encoding="utf-8"))
    missing = [name for name in not_in_cache(needed) if not loads(name)]
    if missing:
        packages = " ".join(sorted({needed[name] for name in missing}))
        install = f"sudo apt-get install {packages}" if shutil.which("apt-get") else f"your distribution's packages for: {packages}"
        return (
            f"zk0desk cannot open its window: this computer lacks {', '.join(missing)}.\n"
            f"Qt, which draws the window, needs {'them' if len(missing) > 1 else 'it'}.\nInstall: {install}"
        )
    try:
        import PySide6.QtWidgets  # noqa: F401 - only whether it loads
    except ImportError as error:
        return f"zk0desk cannot open its window: Qt does not load on this computer.\n{error}\nDebian 12 and later are known to work."
    return ""


def not_in_cache(names: dict[str, str]) -> list[str]:
    """Which of `names` the dynamic linker's cache does not hold: one read instead of twenty loads."""
    try:
        cache = Path("/etc/ld.so.cache").read_bytes()
    except OSError:
        return list(names)
    return [name for name in names if b"\0" + name.encode() + b"\0" not in cache]


def loads(name: str) -> bool:
    """Whether the dynamic linker finds `name` all the same."""
    import ctypes

    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def tell(text: str) -> None:
    """On the terminal, and where there is none, in whatever dialog this desktop has."""
    print(text, file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        return
    for command in (["zenity", "--error", "--no-markup", "--text"], ["kdialog", "--error"], ["xmessage", "-center"]):
        if shutil.which(command[0]) and subprocess.run([*command, text], check=False, stderr=subprocess.DEVNULL).returncode in (0, 1):
            return


if __name__ == "__main__":
    sys.exit(main())
