"""Desktop entries: commands quoted for `Exec`, and keys read back (freedesktop.org, Desktop Entry Specification 1.5)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_RESERVED = re.compile(r'(["`$\\])')
_ARGUMENT = re.compile(r'"((?:\\.|[^"\\])*)"|(\S+)')
_THROUGH_SHELL = ["sh", "-c", 'exec "$0" "$@"']
"""Starts what follows. GLib looks for the program before it makes one % of two, so a program's own path must not hold one."""
_SPACES = {"s": " ", "n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def escaped(value: str) -> str:
    """`value` as a key of type string."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def exec_value(command: Sequence[str]) -> str:
    """`command` (a program and its arguments) as the value of `Exec`: quoted where it is more than a plain word."""
    through = _THROUGH_SHELL if "%" in command[0] else []
    return escaped(" ".join(_quoted(each) for each in (*through, *command)))


def _quoted(argument: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_-]+", argument):
        return argument
    return '"' + _RESERVED.sub(r"\\\1", argument).replace("%", "%%") + '"'


def command_in(value: str) -> list[str]:
    """The command that the value of an `Exec` starts, without its field codes (%u and others)."""
    plain = re.sub(r"\\(.)", lambda found: _SPACES.get(found[1], found[0]), value)
    command = []
    for quoted, bare in _ARGUMENT.findall(plain):
        if re.fullmatch(r"%[A-Za-z]", bare):
            continue
        command.append((re.sub(r"\\(.)", r"\1", quoted) if quoted else bare).replace("%%", "%"))
    return command[len(_THROUGH_SHELL) :] if command[: len(_THROUGH_SHELL)] == _THROUGH_SHELL else command


def keys_of(path: Path) -> dict[str, str]:
    """The keys of the group `[Desktop Entry]` in the file `path`, as they are written; empty where there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return {}
    keys: dict[str, str] = {}
    group = ""
    for line in lines:
        if line.startswith("["):
            group = line.strip()
        elif group == "[Desktop Entry]" and "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            keys.setdefault(name.strip(), value.strip())
    return keys
