"""All that decides whether training works, looked at before joining: computer, policy, recordings, decoder, and how long a round takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zk0desk.control import NodeControl
from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.events import Sink
from zk0desk.settings import Cache, ChosenRecording, Training
from zk0desk.training.asked_round import AskedRound, usual_round
from zk0desk.training.chosen_frames import chosen_frames
from zk0desk.training.decoder import Decoder, decoder_of
from zk0desk.training.estimate import Estimate
from zk0desk.training.hardware import PARAMETERS, TRAINABLE, Computer, Verdict, inspect_computer, verdict
from zk0desk.training.hardware_types import Answer
from zk0desk.training.kept_estimates import any_kept, camera_sizes, expected_choice, kept, with_what_is_prepared
from zk0desk.training.measure import measure
from zk0desk.training.policy_files import PolicyFiles, read_policy
from zk0desk.training.recording_types import Finding, Severity
from zk0desk.training.recordings import CheckResult, PolicyNeeds, quick_check


@dataclass(frozen=True)
class Preflight:
    """What was seen, and the answer to it. `files` is None without a policy, or with `trouble`; `decoders` are the recordings'.

    `estimate` is None where none is kept and none was measured; `not_measured` says why it could not be. It is judged against `asked`.
    `around` are limits of what is around this computer, such as the way to the federation.
    """

    computer: Computer
    verdict: Verdict
    files: PolicyFiles | None = None
    trouble: OperatorError | None = None
    recordings: tuple[CheckResult, ...] = ()
    decoders: tuple[Decoder, ...] = ()
    estimate: Estimate | None = None
    not_measured: str = ""
    asked: AskedRound = field(default_factory=usual_round)
    around: tuple[Finding, ...] = ()

    @property
    def limits(self) -> tuple[Finding, ...]:
        """What limits training besides the computer, the policy and the recordings: a round that takes too long, and what is around."""
        too_long = self.asked.finding(self.estimate) if self.estimate is not None else None
        return (*((too_long,) if too_long else ()), *self.around)

    @property
    def answer(self) -> Answer:
        """The worst of the computer's, the policy's, the recordings' and of what limits them."""
        statuses = {result.status for result in self.recordings}
        if self.verdict.answer == "no" or self.trouble or "unusable" in statuses:
            return "no"
        limited = any(finding.severity != Severity.NOTE for finding in self.limits)
        return "limits" if self.verdict.answer == "limits" or "repairable" in statuses or limited else "ok"

    @property
    def sentence(self) -> str:
        """What stands in the way first; else the computer's verdict."""
        if self.verdict.answer == "no":
            return self.verdict.sentence
        if self.trouble:
            return str(self.trouble)
        worst = [result for status in ("unusable", "repairable") for result in self.recordings if result.status == status]
        if worst and (worst[0].status == "unusable" or self.verdict.answer == "ok"):
            finding = worst[0].findings[0]
            how = "cannot be trained on" if worst[0].status == "unusable" else "can be trained on after a repair"
            return f"{worst[0].path.name} {how}. {finding.what} {finding.remedy}".rstrip()
        if self.answer == "limits" and self.verdict.answer == "ok":
            first = self.limits[0]
            return f"{self.verdict.sentence.rstrip('.')}, with limits. {first.what} {first.why} {first.remedy}"
        return self.verdict.sentence

    @property
    def exit_status(self) -> ExitStatus:
        """0 it works, 3 with limits, 4 not."""
        return {"ok": ExitStatus.OK, "limits": ExitStatus.REPAIRABLE, "no": ExitStatus.UNUSABLE}[self.answer]

    @property
    def round_sentence(self) -> str:
        """How long a round takes as it is asked for, or ""."""
        return self.asked.sentence(self.estimate) if self.estimate is not None else ""

    def to_json(self) -> dict[str, Any]:
        """The preflight as a JSON object, keys in kebab-case."""
        decoders = {decoder.name: decoder for decoder in self.decoders}
        chosen = decoders.get("pyav") or decoders.get("torchcodec")
        return {
            **self.verdict.to_json(),
            "findings": [finding.to_json() for finding in (*self.verdict.findings, *self.limits)],
            "status": self.answer,
            "sentence": self.sentence,
            "computer": self.computer.to_json(),
            "policy": {"error": self.trouble.to_json()} if self.trouble else self.files.to_json() if self.files else None,
            "recordings": [result.to_json() for result in self.recordings],
            "decoder": chosen.to_json() if chosen else None,
            "estimate": {**self.estimate.to_json(), **self._rounds(self.estimate), "sentence": self.round_sentence}
            if self.estimate
            else None,
            "asked": {**self.asked.to_json(), "fits": self.asked.fits(self.estimate) if self.estimate else None},
            "not-measured": self.not_measured or None,
        }

    def _rounds(self, estimate: Estimate) -> dict[str, float]:
        """Seconds of the first round and, in the mean, of a later one, with sending the update."""
        return {"first-round-seconds": self.asked.seconds(estimate), "later-round-seconds": self.asked.later_seconds(estimate)}


def preflight(
    policy: Path | None,
    recordings: Sequence[ChosenRecording],
    training: Training,
    cache: Cache,
    *,
    asked: AskedRound | None = None,
    quick: bool = False,
) -> Preflight:
    """Look at all of it. Unless `quick`, torch and the decoder are tried, in processes of their own, which takes seconds.

    `asked` is the round against which an estimate is judged (default: the paper's).
    """
    asked = asked or usual_round()
    computer = inspect_computer(probe_engine=not quick)
    files, trouble, needs = None, None, PolicyNeeds()
    if policy is not None:
        try:
            files = read_policy(policy, remembered=True)
            needs = files.needs
        except OperatorError as error:
            trouble = error
    parameters, trainable = (files.parameters, files.trainable_parameters) if files else (PARAMETERS, TRAINABLE)
    answer = verdict(
        computer, parameters, trainable, batch=asked.plan.batch_size, device=training.device, precision=training.precision,
        micro_batch=training.micro_batch, memory_free=training.memory_free,
    )  # fmt: skip
    checks = tuple(quick_check(chosen.path, needs) for chosen in recordings)
    decoders = tuple(_decoder(check, again=not quick) for check in checks if check.status == "ok")
    found = Preflight(computer, answer, files, trouble, checks, decoders, asked=asked)
    return replace(found, estimate=_kept(found, recordings, training, cache))


def measured(
    seen: Preflight, recordings: Sequence[ChosenRecording], training: Training, cache: Cache, *, control: NodeControl, emit: Sink
) -> Preflight:
    """`seen` with an estimate that is measured now, or with why that cannot be. Raises `Stopped` when asked to stop."""
    why, estimate = "", seen.estimate
    if seen.files is None:
        why = "A policy is needed: name its folder with --policy."
    elif not recordings:
        why = "A recording is needed: name its folder with --recordings."
    elif seen.answer == "no" or any(check.status != "ok" for check in seen.recordings):
        why = seen.sentence
    else:
        try:
            made = measure(seen.files.folder, recordings, training, cache, seen.asked.plan, control=control, emit=emit)
            estimate = _kept(seen, recordings, training, cache) or made
        except OperatorError as error:
            why = str(error)
    return replace(seen, estimate=estimate, not_measured=why)


def _decoder(check: CheckResult, *, again: bool) -> Decoder:
    try:
        return decoder_of(check.path, again=again, only_kept=not again)
    except OperatorError as error:
        return Decoder("pyav", str(error))


def _kept(seen: Preflight, recordings: Sequence[ChosenRecording], training: Training, cache: Cache) -> Estimate | None:
    """What was measured for all of this, if anything, with what is prepared of the recordings now."""
    if seen.files is None or not seen.recordings or any(check.recording is None or check.status != "ok" for check in seen.recordings):
        return None
    if not any_kept(seen.files.policy_id):
        return None
    try:
        cameras, frames = camera_sizes(seen.files.folder, recordings), sum(map(chosen_frames, recordings))
        expected = expected_choice(seen.files.folder, recordings, training, cache)
        if expected is None:
            return None
        found = kept(seen.files.policy_id, cameras, frames, seen.computer, seen.verdict, expected.level)
        return with_what_is_prepared(found, recordings, cache, expected) if found else None
    except OperatorError:
        return None
