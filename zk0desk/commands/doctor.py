"""`zk0desk doctor`: does the policy train on this computer, with these recordings?"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from zk0desk.events import Event
    from zk0desk.federation.network import NetworkLook
    from zk0desk.gpus import Gpu
    from zk0desk.settings import ChosenRecording, Settings
    from zk0desk.training.disk_look import DiskLook
    from zk0desk.training.hardware_types import Computer
    from zk0desk.training.preflight import Preflight


def doctor(
    policy: Annotated[
        Path | None,
        typer.Option(help="The policy's folder; default: the settings' one, else SmolVLA in full size.", show_default=False),
    ] = None,
    recordings: Annotated[
        list[Path] | None,
        typer.Option(help="A recording's folder; may be given several times. Default: those in the settings.", show_default=False),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time real steps of training, which takes a minute or two.")] = False,
    network: Annotated[
        bool, typer.Option("--network", help="Call the invitation's federation, without a key, and measure the disk; takes seconds.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Do not try to load torch.")] = False,
    steered: Annotated[bool, typer.Option("--steered", help="Take `stop` as a line; the end of lines stops, too.")] = False,
    settings_file: Annotated[Path | None, typer.Option("--settings", help="Settings file; default: the operator's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> int:
    """Say whether this computer can train the policy on the recordings, and if not, why and what to do.

    Works where torch, a display or a keyring are missing, and says so. A round's time is judged against what the settings' invitation
    asks and allows. Nothing is sent, and nothing is written but what was measured; frames that are prepared to measure it are removed. Exit
    status: 0 it can, 3 with limits, such as a round that does not fit into the time or a federation that --network does not reach, 4 it
    cannot, 130 Ctrl-C.

    \b
    Example: zk0desk doctor --policy ~/policies/smolvla --recordings ~/recordings/cubes --measure
    """
    from zk0desk.commands.steering import steered_by_lines, stopped_by_signals
    from zk0desk.control import NodeControl, Stopped
    from zk0desk.errors import ExitStatus
    from zk0desk.federation.asked_round import asked_round
    from zk0desk.training.preflight import measured, preflight

    settings, trouble = _settings(settings_file)
    folder = policy or settings.policy.folder
    chosen = _chosen(settings, recordings)
    seen = preflight(folder, chosen, settings.training, settings.cache, asked=asked_round(settings), quick=quick)
    if measure:
        control = NodeControl()
        with stopped_by_signals(control):
            if steered:
                steered_by_lines(control)
            try:
                emit = _progress if not as_json else lambda _: None
                seen = measured(seen, chosen, settings.training, settings.cache, control=control, emit=emit)
            except Stopped:
                print("Stopped: nothing was measured.", file=sys.stderr)
                return int(ExitStatus.INTERRUPTED)
    line, disk = None, None
    if network:
        seen, line, disk = _outside(seen, settings)
    if as_json:
        looks = {"network": line.to_json() if line else None, "disk": disk.to_json() if disk else None}
        print(json.dumps({**seen.to_json(), **looks, "settings-error": trouble or None}, indent=2))
        return int(seen.exit_status)
    print(seen.sentence)
    rows = [*_computer(seen.computer), *_training(seen)]
    rows += [("Network", line.sentences[0]), ("", line.sentences[1])] if line else []
    rows += [("Storage", disk.sentence)] if disk else []
    for name, value in [*rows, *([("Settings", trouble)] if trouble else [])]:
        print(f"  {name:<10}{value}")
    for finding in (*seen.verdict.findings, *seen.limits):
        print(f"  {finding.severity:<10}  {finding.what} {finding.why} {finding.remedy}".rstrip())
    return int(seen.exit_status)


def _outside(seen: Preflight, settings: Settings) -> tuple[Preflight, NetworkLook | None, DiskLook]:
    """The way to the federation and the disk; what is in the way joins what limits."""
    from dataclasses import replace

    from zk0desk.errors import OperatorError
    from zk0desk.federation.asked_round import invitation_in
    from zk0desk.federation.network import look_at_network
    from zk0desk.training.disk_look import look_at_disk
    from zk0desk.training.recording_types import Finding, Severity

    disk, invitation = look_at_disk(), invitation_in(settings)
    if invitation is None:
        why = Finding("no-invitation", Severity.NOTE, "No federation was called.", "The settings hold no invitation.", "Open one first.")
        return replace(seen, around=(why,)), None, disk
    try:
        return seen, look_at_network(invitation), disk
    except OperatorError as error:
        finding = Finding(error.code, Severity.REPAIRABLE, error.what, error.why, error.remedy)
        return replace(seen, around=(finding,)), None, disk


def _settings(path: Path | None) -> tuple[Settings, str]:
    """The settings, or the defaults and why they cannot be read."""
    from zk0desk.errors import OperatorError
    from zk0desk.settings import Settings, load

    try:
        return load(path), ""
    except OperatorError as error:
        return Settings(), str(error)


def _chosen(settings: Settings, paths: list[Path] | None) -> list[ChosenRecording]:
    from zk0desk.settings import ChosenRecording

    if not paths:
        return list(settings.recordings.chosen)
    known = {chosen.path.expanduser().absolute(): chosen for chosen in settings.recordings.chosen}
    return [known.get(path.expanduser().absolute(), ChosenRecording(path=path)) for path in paths]


def _progress(event: Event) -> None:
    from zk0desk.events import Notice, StepDone

    if isinstance(event, StepDone):
        print(f"measuring: {event.frames} frames in {event.seconds:.2f} s", file=sys.stderr, flush=True)
    elif isinstance(event, Notice):
        print(f"{event.what} {event.why}", file=sys.stderr, flush=True)


def _computer(computer: Computer) -> Iterator[tuple[str, str]]:
    """What was seen of the computer, as names and values."""
    from zk0desk.amounts import gigabytes

    inside = [word for word, is_so in (("WSL", computer.wsl), ("a container", computer.container)) if is_so]
    limits = [f"{gigabytes(computer.memory_limit)} of memory"] if computer.memory_limit else []
    limits += [f"{computer.cpu_limit:g} cores"] if computer.cpu_limit else []
    yield (
        "System",
        computer.system + "".join(f", in {word}" for word in inside) + (f", limited to {' and '.join(limits)}" if limits else ""),
    )
    yield "Processor", f"{computer.cpu}, {computer.cores} cores, {' '.join(computer.instructions)}"
    for gpu in computer.gpus:
        yield "GPU", _gpu(gpu)
    if not computer.gpus:
        yield "GPU", "none that can train"
    yield "Memory", f"{gigabytes(computer.memory_free)} of {gigabytes(computer.memory)} free"
    yield "Disk", f"{gigabytes(computer.disk_free)} free for {computer.disk_place}"
    yield "Keyring", computer.keyring or "not looked at"
    yield "Screen", "yes" if computer.display else "no: the window cannot open, headless commands work"
    sees = f"; it sees {computer.torch_sees}" if computer.torch_sees else ""
    yield "torch", f"built for {computer.torch_build}{sees}" if computer.torch_build else "not known"
    yield "Versions", ", ".join(f"{name} {version or 'not installed'}" for name, version in computer.versions.items())


def _gpu(gpu: Gpu) -> str:
    from zk0desk.amounts import gigabytes

    facts = [gpu.name, f"{gigabytes(gpu.memory_free)} of {gigabytes(gpu.memory)} free"]
    facts += [f"others hold {gigabytes(gpu.memory_others)}"] if gpu.memory_others else []
    facts += [f"{gpu.utilisation}% busy"] if gpu.utilisation is not None else []
    facts += [f"{gpu.temperature} degrees Celsius"] if gpu.temperature is not None else []
    return ", ".join([*facts, f"driver {gpu.driver or '-'}"])


def _keeping(seen: Preflight, every_s: float) -> tuple[str, str]:
    """What keeping the middle of a round on disk takes."""
    from zk0desk.amounts import gigabytes
    from zk0desk.training.checkpoint import bytes_a_day, checkpoint_bytes
    from zk0desk.training.policy_size import TRAINABLE

    size = checkpoint_bytes(seen.files.trainable_parameters if seen.files else TRAINABLE)
    a_day = gigabytes(bytes_a_day(size, every_s))
    return "Keeping", f"{gigabytes(size)} every {every_s:g} s of training, at most {a_day} written in a day; as much memory meanwhile"


def _training(seen: Preflight) -> Iterator[tuple[str, str]]:
    """Policy, recordings, decoder, device and estimate, as names and values."""
    from zk0desk.amounts import gigabytes

    if seen.files is not None:
        files = seen.files
        yield "Policy", f"{files.policy_id}, {files.parameters:,} parameters, {files.trainable_parameters:,} of them train; {files.folder}"
    else:
        yield "Policy", str(seen.trouble) if seen.trouble else "none named; SmolVLA in full size is assumed"
    for check in seen.recordings:
        facts = f", {check.recording.episodes} episodes, {check.recording.frames} frames" if check.recording else ""
        first = f". {check.findings[0].what} {check.findings[0].remedy}".rstrip() if check.findings else ""
        yield "Recording", f"{check.path.name}: {check.status}{facts}{first}"
    for decoder in dict.fromkeys(seen.decoders):
        yield "Decoder", f"{decoder.name}. {decoder.why}"
    answer = seen.verdict
    at_once = f"{answer.micro_batch} frames at once" if answer.micro_batch else "not even one frame fits"
    memory = f"{gigabytes(answer.memory_needed)} needed, {gigabytes(answer.memory_left)} left"
    yield "Trains on", f"{answer.device}, {answer.precision}, {at_once}, {memory}"
    if seen.estimate is not None:
        each = seen.estimate
        date = time.strftime("%Y-%m-%d", time.localtime(each.date))
        speed = f"{each.step_seconds:.2f} s a step of {each.batch} frames, {100 * each.waiting:.0f}% of it waiting for data"
        first = f"; a frame's first visit adds {each.prepare_s * each.factor:.2f} s" if each.keeps else ""
        speed += f"; {each.frames_per_second:.1f} frames a second{first}"
        yield "Estimate", f"level {each.level}; {speed}; at most {gigabytes(each.peak_memory)}; measured {date}"
        yield "", seen.round_sentence
    elif seen.not_measured:
        yield "Estimate", f"not measured. {seen.not_measured}"
    else:
        yield "Estimate", "not measured yet: zk0desk doctor --measure"
