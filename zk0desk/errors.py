"""Errors that a person meets: what happened, why, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum


class ExitStatus(IntEnum):
    """What the command line returns to the shell. Documented in docs/developers.md."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REPAIRABLE = 3
    """It works with limits, or after a repair that zk0desk offers."""
    UNUSABLE = 4
    """It cannot be used as it is: a recording, a computer, a policy."""
    REFUSED = 5
    """The other side refused: not admitted, revoked, versions or policies that differ."""
    UNREACHABLE = 6
    """The other side could not be reached."""
    ENGINE_MISSING = 7
    """torch, LeRobot or flwr are not installed."""
    INTERRUPTED = 130
    """Ended by Ctrl-C."""


class OperatorError(Exception):
    """An error with a sentence for a person.

    `what` happened, `why` it happened, and `remedy`: what the person can do. Subclasses set `exit_status`
    and `code`, a stable kebab-case word for machines.
    """

    code = "failed"
    exit_status = ExitStatus.FAILED

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.remedy = remedy

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.why, self.remedy) if part)

    def to_json(self) -> dict[str, str]:
        """The error as a JSON object with keys `code`, `what`, `why`, `remedy`."""
        return {"code": self.code, "what": self.what, "why": self.why, "remedy": self.remedy}


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what it was raised because of, the nearest first, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


class EngineMissingError(OperatorError):
    """torch, LeRobot or flwr cannot be imported on this computer."""

    code = "engine-missing"
    exit_status = ExitStatus.ENGINE_MISSING


class SettingsError(OperatorError):
    """The settings file cannot be read or holds something that is not allowed."""

    code = "settings-invalid"
    exit_status = ExitStatus.USAGE
