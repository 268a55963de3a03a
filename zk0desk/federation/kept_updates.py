"""A round's updates as they came, kept on request (`rounds.keep-updates`): with them its aggregation can be done again.

runs/RUN/updates/round-0003/round.json    what was asked, by which settings, and what each update is
runs/RUN/updates/round-0003/0000          an update's pieces, in the order of the nodes' public keys
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zk0desk.federation.collecting import Accepted, Answers
from zk0desk.federation.messages import TrainRequest
from zk0desk.federation.spool import Spooled
from zk0desk.settings import ServerSettings

FOLDER, DESCRIPTION = "updates", "round.json"
_ROUND = re.compile(r"round-(\d{4,})")


@dataclass(frozen=True)
class KeptRound:
    """What a round was aggregated from: the accepted answers, by the nodes' public keys."""

    request: TrainRequest
    settings: ServerSettings
    answers: dict[bytes, Accepted]


def keep(run: Path, request: TrainRequest, settings: ServerSettings, answers: Answers) -> None:
    """Keep the accepted updates of a round, which are still in the spool, in the run's folder. OSError when the disk refuses."""
    target = _folder(run, request.server_round)
    partial = target.with_name(f".{target.name}.partial")
    for path in (partial, target):  # of a round that was not finished
        shutil.rmtree(path, ignore_errors=True)
    partial.mkdir(mode=0o700, parents=True)
    updates: list[dict[str, Any]] = []
    accepted = [(key, answer) for key, answer in sorted(answers.items()) if isinstance(answer, Accepted)]
    for number, (key, answer) in enumerate(accepted):
        _link(answer.update.path, partial / f"{number:04d}")
        updates.append({"key": key.decode(), "metrics": answer.metrics, **asdict(answer.update), "path": f"{number:04d}"})
    description = {"request": asdict(request), "settings": settings.model_dump(mode="json", by_alias=True), "updates": updates}
    (partial / DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")
    partial.replace(target)


def rounds(run: Path) -> list[int]:
    """The rounds of which updates are kept, in order."""
    return sorted(int(match[1]) for path in (run / FOLDER).glob("round-*") if (match := _ROUND.fullmatch(path.name)))


def read(run: Path, number: int) -> KeptRound:
    """What was kept of round `number`. OSError, ValueError, KeyError or TypeError when it cannot be read."""
    folder = _folder(run, number)
    data = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    answers: dict[bytes, Accepted] = {}
    for each in data["updates"]:
        key, metrics = each.pop("key"), each.pop("metrics")
        pieces = tuple((int(offset), str(dtype), int(count)) for offset, dtype, count in each.pop("pieces"))
        answers[key.encode()] = Accepted(Spooled(**{**each, "path": folder / each["path"]}, pieces=pieces), metrics)
    return KeptRound(TrainRequest(**data["request"]), ServerSettings.model_validate(data["settings"]), answers)


def _link(source: Path, target: Path) -> None:
    """Another name of the file, where the disk has such; else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _folder(run: Path, number: int) -> Path:
    return run / FOLDER / f"round-{number:04d}"
