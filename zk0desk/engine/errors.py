"""What can go wrong with the training engine, each with its own code and exit status."""

from __future__ import annotations

from zk0desk.errors import ExitStatus, OperatorError


class EngineError(OperatorError):
    """The engine could not be fetched, checked, changed or used."""

    code = "engine"


class EngineListError(EngineError):
    """A list of wheels cannot be read, or names what cannot be."""

    code = "engine-list"


class EngineUnsupported(EngineError):
    """There is no engine for this computer, or not the one that was asked for."""

    code = "engine-unsupported"
    exit_status = ExitStatus.UNUSABLE


class EngineIsEnvironment(EngineError):
    """zk0desk runs in a Python environment, which is its own engine."""

    code = "engine-environment"
    exit_status = ExitStatus.USAGE


class EngineBusy(EngineError):
    """Another zk0desk works on the engine, or uses it."""

    code = "engine-busy"


class EngineUnreachable(EngineError):
    """The server of the wheels could not be reached, or went silent."""

    code = "engine-unreachable"
    exit_status = ExitStatus.UNREACHABLE


class EngineRefused(EngineError):
    """The server does not hand a wheel out, or sends the way where it must not lead."""

    code = "engine-refused"
    exit_status = ExitStatus.REFUSED


class EngineWrongContent(EngineError):
    """What came is not what the list names."""

    code = "engine-wrong-content"


class EngineDiskFull(EngineError):
    """The disk has no room."""

    code = "engine-disk-full"


class WheelError(EngineError):
    """A wheel is broken, or holds what must not be unpacked."""

    code = "engine-wheel"
    exit_status = ExitStatus.UNUSABLE


class EngineDamaged(EngineError):
    """Files of the engine are missing or are not what they were."""

    code = "engine-damaged"
    exit_status = ExitStatus.REPAIRABLE
