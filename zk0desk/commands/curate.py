"""`zk0desk recordings curate`: episodes in or out, in the settings that the window and the node use."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0desk.errors import ExitStatus

if TYPE_CHECKING:
    from zk0desk.settings import Settings
    from zk0desk.training.curation import Proposal
    from zk0desk.training.recordings import CheckResult


@dataclass(frozen=True)
class Wishes:
    """What a person asked for. Nothing of it: only say how it is."""

    filters: tuple[str, ...] = ()
    shorter_than: float = 0.0
    leave_out: tuple[int, ...] = ()
    reason: str = ""
    take_back: tuple[int, ...] = ()
    all_back: bool = False
    keep: bool = False

    @property
    def any(self) -> bool:
        """Whether something is to be changed."""
        return bool(self.filters or self.shorter_than or self.leave_out or self.take_back or self.all_back or self.keep)


def curate_recording(path: Path, wishes: Wishes, settings_file: Path | None, check: Callable[[], CheckResult], *, as_json: bool) -> int:
    """Do what is wished and print how it is then. `check` gives the deep check's answer. `RecordingError` where nothing can be done."""
    from zk0desk import settings
    from zk0desk.training import curation
    from zk0desk.training.recordings import RecordingError

    path = path.expanduser()
    result = check()
    if result.recording is None:
        finding = result.findings[0]
        raise RecordingError(finding.what, finding.why, finding.remedy, code=finding.code)
    content = curation.content_of(path)
    if not content:
        raise RecordingError(f"{path.name} cannot be curated.", "Its rows cannot be read.", "Check it: zk0desk recordings check FOLDER.")
    chosen: Settings = settings.load(settings_file)
    recordings, count = chosen.recordings, result.recording.episodes
    before = curation.reasons_of(recordings, path, content)
    held = next((each for each in recordings.chosen if each.path.expanduser().absolute() == path.absolute()), None)
    stale = held is not None and curation.is_stale(held, content)
    if stale and held is not None and wishes.any and not (wishes.keep or wishes.all_back):
        raise curation.stale_error(held)
    out = {} if wishes.all_back else {number: why for number, why in before.items() if number < count}
    if wishes.shorter_than:
        why = curation.SHORT_OF.format(seconds=wishes.shorter_than)
        out = dict.fromkeys(curation.shorter_than(path, wishes.shorter_than), why) | out
    for proposal in curation.proposals(result.findings, out):
        if proposal.filter in wishes.filters:
            out = dict.fromkeys(proposal.episodes, proposal.reason) | out
    unknown = [number for number in (*wishes.leave_out, *wishes.take_back) if not 0 <= number < count]
    if unknown:
        raise RecordingError(f"{path.name} has no episode {unknown[0]}.", f"Its episodes are 0 to {count - 1}.", "Name others.")
    out |= dict.fromkeys(wishes.leave_out, wishes.reason)
    out = {number: why for number, why in sorted(out.items()) if number not in wishes.take_back}
    if len(out) >= count:
        raise RecordingError(f"All {count} episodes of {path.name} would be left out.", "One has to stay.", "Leave fewer out.")
    if wishes.any:
        recordings = curation.curate(recordings, path, content, out)
        settings.save(chosen.model_copy(update={"recordings": recordings}), settings_file)
        stale = False
    shown = out if wishes.any else before
    offered = curation.proposals(result.findings, shown)
    if as_json:
        print(json.dumps(_json(path, shown, offered, content, count, stale=stale, chosen=held is not None), indent=2))
    else:
        _say(path, shown, offered, count, stale=stale, chosen=held is not None)
    return int(ExitStatus.REPAIRABLE if stale else ExitStatus.OK)


def _json(
    path: Path, out: dict[int, str], offered: tuple[Proposal, ...], content: str, count: int, *, stale: bool, chosen: bool
) -> dict[str, Any]:
    return {
        "path": str(path),
        "content": content,
        "episodes": count,
        "chosen": chosen,
        "stale": stale,
        "left-out": [{"episode": number, "reason": reason} for number, reason in out.items()],
        "proposals": [{"filter": each.filter, "reason": each.reason, "episodes": list(each.episodes)} for each in offered],
    }


def _say(path: Path, out: dict[int, str], offered: tuple[Proposal, ...], count: int, *, stale: bool, chosen: bool) -> None:
    print(f"{path.name}: {count - len(out)} of {count} episodes are trained on{'' if chosen else ', once it is chosen'}.")
    for number, reason in out.items():
        print(f"  left out  {number:>4}  {reason or 'no reason given'}")
    for each in offered:
        print(f"  --{each.filter} would leave out {', '.join(map(str, each.episodes))}: {each.reason}.")
    if stale:
        print("  The recording has changed since: say --keep if the numbers are still right, or --take-back all.")
