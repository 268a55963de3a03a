"""Settings of a federation that runs: which of them can be changed between two rounds, changing one, and taking changes over.

`zk0desk server set` writes server.toml, as a person may by hand; the rounds look at it before each round. A change that they take is an
event (`settings-changed`) with what it was and what it is; one that a run cannot take is told once, and the run goes on as it began.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomlkit
from pydantic import BaseModel, ValidationError

from zk0desk import settings as settings_file
from zk0desk.errors import ExitStatus, OperatorError, SettingsError
from zk0desk.events import Notice, SettingsChanged
from zk0desk.federation.run_record import RunRecord, records
from zk0desk.federation.server_folder import ServerFolder
from zk0desk.settings import ServerSettings

if TYPE_CHECKING:
    from zk0desk.federation.run_state import RunState

LIVE = frozenset(
    {
        "rounds.min-nodes",
        "rounds.fraction",
        "rounds.wait-s",
        "rounds.deadline-s",
        "rounds.max-share",
        "rounds.keep-checkpoints",
        "rounds.keep-updates",
        "policy.evaluate-every",
        "schedule.window",
        "schedule.plateau",
        "schedule.lr-lowest",
        "schedule.lr-highest",
        "schedule.lr-boost",
        "schedule.longest-cycle",
        "schedule.mu-decay",
        "schedule.mu-lowest",
        "schedule.spike",
        "schedule.spike-division",
        "schedule.mu-step",
        "schedule.mu-falls",
        "aggregation.clip",
        "aggregation.quarantine-after",
    }
)
"""Taken over before the next round."""
AT_START = ("federation", "contact", "admission", "network.", "tracking.", "policy.evaluation-batch", "policy.evaluation-cache-gb")
"""Taken over when the server, or the rounds, start again; they change nothing that a run computes."""

When = Literal["next-round", "next-start", "next-run"]


class SettingFixed(OperatorError):
    """The run under way was begun with this setting and keeps it."""

    code = "setting-fixed"
    exit_status = ExitStatus.REFUSED


@dataclass(frozen=True)
class Change:
    """A setting that was changed: by its key in server.toml, and when it is taken over."""

    key: str
    before: Any
    after: Any
    when: When


def taken_over(key: str) -> When:
    """When a change of `key` (as `rounds.min-nodes`) is taken over."""
    if key in LIVE:
        return "next-round"
    return "next-start" if key.startswith(AT_START) else "next-run"


def differences(before: BaseModel, after: BaseModel) -> Iterator[tuple[str, Any, Any]]:
    """Keys in which two settings differ, with both values as in JSON."""
    one, other = by_key(before), by_key(after)
    for key in sorted({*one, *other}):
        if one.get(key) != other.get(key):
            yield key, one.get(key), other.get(key)


def by_key(settings: BaseModel) -> dict[str, Any]:
    """All settings by their key in the file, as `rounds.min-nodes`."""
    return _flat(settings.model_dump(mode="json", by_alias=True))


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def change_setting(server: ServerFolder, key: str, text: str) -> Change:
    """Set `key` to `text` (as TOML; a bare word is a string) in server.toml, where comments stay.

    Raises `SettingsError` for a key or value that cannot be, and `SettingFixed` while a run is under way that was begun with it.
    """
    before = server.settings()
    after = _changed(before, key, text)
    change = next(iter(differences(before, after)), None)
    if change is None:
        return Change(key, by_key(before)[key], by_key(before)[key], taken_over(key))
    if taken_over(key) == "next-run" and (run := _under_way(server)):
        raise SettingFixed(
            f"{key} cannot be changed in a run that is under way.",
            f"Run {run.uid} is at round {run.done} of {run.rounds} and was begun with {change[1]!r:.80}.",
            "Change it when the run is complete; `zk0desk server set --help` says what can be changed now.",
        )
    settings_file.save(after, server.settings_path)
    return Change(key, change[1], change[2], taken_over(key))


def _under_way(server: ServerFolder) -> RunRecord | None:
    known = records(server)
    return known[-1] if known and not known[-1].finished else None


def _changed(settings: ServerSettings, key: str, text: str) -> ServerSettings:
    known = by_key(settings)
    if key not in known or isinstance(known[key], list):
        near = [each for each in known if each.rpartition(".")[2] == key.rpartition(".")[2]]
        raise SettingsError(
            f"There is no setting {key[:60]!r} to set.",
            f"Perhaps {near[0]}." if near else "A key is named with its section, as rounds.min-nodes.",
            "Lists of recordings, and everything else, are in server.toml with a comment each.",
        )
    data = settings.model_dump(mode="json", by_alias=True)
    *sections, name = key.split(".")
    place = data
    for section in sections:
        place = place[section]
    place[name] = _value(text, place[name])
    try:
        return ServerSettings.model_validate(data)
    except ValidationError as error:
        raise SettingsError(
            f"{key} was not changed.", f"{error.errors()[0]['msg']} (given {text[:80]!r}).", "Give another value."
        ) from error


def _value(text: str, before: Any) -> Any:
    if isinstance(before, str):
        return text
    try:
        return tomlkit.parse(f"value = {text}").unwrap()["value"]
    except (ValueError, tomlkit.exceptions.TOMLKitError):
        return text  # the settings say what they want instead


class LiveSettings:
    """Takes changes of server.toml over between the rounds of a run."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._path: Path = state.folder.settings_path
        self._seen = self._stamp()
        self._told: set[str] = set()

    def _stamp(self) -> tuple[int, int, int]:
        try:
            state = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return (state.st_mtime_ns, state.st_size, state.st_ino)

    def take(self, round_: int) -> None:
        """Take over what was changed since, for round `round_` and later; a file that cannot be used changes nothing and is told."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        state = self._state
        try:
            wanted = state.folder.settings()
        except OperatorError as error:
            what = f"{error.what} The run goes on with the settings that it has."
            state.emit(Notice(severity="error", code=error.code, what=what, why=error.why, remedy=error.remedy))
            return
        changes = {key: [before, after] for key, before, after in differences(state.settings, wanted)}
        live = {key: pair for key, pair in changes.items() if key in LIVE}
        if live:
            data = state.settings.model_dump(mode="json", by_alias=True)
            for key, (_, after) in live.items():
                section, _, name = key.partition(".")
                data[section][name] = after
            try:
                state.settings = ServerSettings.model_validate(data)
            except ValidationError as error:
                why = f"{error.errors()[0]['msg']}."
                state.emit(Notice(severity="error", code="settings-invalid", what="The changed settings do not fit this run.", why=why))
                return
            state.rules = state.settings.rounds
            state.emit(SettingsChanged(run=state.record.uid, round=round_, changes=live))
        for key in sorted(changes.keys() - live.keys() - self._told):
            self._told.add(key)
            fixed = taken_over(key) == "next-run"
            state.emit(
                Notice(
                    severity="warning" if fixed else "note",
                    code="setting-waits",
                    what=f"{key} was changed in server.toml, and this run goes on with {changes[key][0]!r:.80}.",
                    why="A run keeps what it computes with." if fixed else "It is taken over at the next start.",
                )
            )
