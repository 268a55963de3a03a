"""What stands in the way of a federation's first round, looked at before it: files, port, certificate, clock, disk, memory, recordings.

Nothing is written but the answers of deep checks, and nothing is sent.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zk0desk.amounts import gigabytes
from zk0desk.engine.missing import remedy as engine_remedy
from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.federation import robust
from zk0desk.federation.server_folder import ServerFolder, ServerNotRunningError
from zk0desk.settings import ChosenRecording, ServerSettings
from zk0desk.training import policy_files
from zk0desk.training.container_limits import usable_memory
from zk0desk.training.policy_files import PolicyFiles
from zk0desk.training.policy_size import LIBRARIES
from zk0desk.training.privacy import noise_ratio, noise_words, rounds_within
from zk0desk.training.recording_types import CheckResult, Finding, PolicyNeeds, RecordingError, Severity

RESERVE = 2 * 10**9
"""Bytes of the disk that should stay free."""
AGGREGATING = 300 * 10**6
"""Bytes that the process which aggregates takes besides weights: Python, numpy, flwr."""
VALUE_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.01}
"""Bytes of a trainable value on the way, by `rounds.encoding`."""
CLOCK_OFF_S = 300.0
"""So far the computer's own clock may be from the system's time."""
RTC = Path("/sys/class/rtc/rtc0/since_epoch")
_MADE = datetime(2025, 6, 1, tzinfo=UTC)
"""The clock cannot be before this."""

BLOCKS, LIMITS, NOTE = Severity.BLOCKS, Severity.REPAIRABLE, Severity.NOTE


@dataclass(frozen=True)
class Diagnosis:
    """What was looked at, in words by name, and what was found; `answer` is `ok`, `limits` or `no`."""

    looked_at: dict[str, str]
    findings: tuple[Finding, ...]

    @property
    def answer(self) -> str:
        """`no` when a round cannot be begun, `limits` when something should be mended first."""
        severities = {finding.severity for finding in self.findings}
        return "no" if BLOCKS in severities else "limits" if LIMITS in severities else "ok"

    @property
    def exit_status(self) -> ExitStatus:
        """0 it can begin, 3 with limits, 4 it cannot."""
        return {"ok": ExitStatus.OK, "limits": ExitStatus.REPAIRABLE, "no": ExitStatus.UNUSABLE}[self.answer]

    @property
    def sentence(self) -> str:
        """The answer in words."""
        first = next((finding for finding in self.findings if finding.severity is not NOTE), None)
        if first is None:
            return "The federation can begin."
        begins = "The federation cannot begin yet." if self.answer == "no" else "The federation can begin, with limits."
        return f"{begins} {first.what} {first.remedy}".rstrip()

    def to_json(self) -> dict[str, Any]:
        """What `zk0desk server doctor --json` prints."""
        found = [finding.to_json() for finding in self.findings]
        return {"answer": self.answer, "sentence": self.sentence, "looked-at": self.looked_at, "findings": found}


def examine(server: ServerFolder, *, quick: bool = False, told: Callable[[str], None] = lambda what: None) -> Diagnosis:
    """Look at everything; `quick` does not read the recordings through. `told` hears what is looked at. `ServerFolderError` for none."""
    if not server.settings_path.is_file():
        server.settings()  # raises
    looked: dict[str, str] = {}
    try:
        settings = server.settings()
    except OperatorError as error:
        return Diagnosis(looked, (_of(error),))
    found = [*_libraries(settings), *_port(server, settings, looked), *_certificate(server, settings, looked), *_clock(looked)]
    found += [*_secrets(server), *_nodes(server, settings, looked)]
    files: PolicyFiles | None = None
    try:
        files = policy_files.read_policy(server.policy(settings))
        looked["policy"] = f"{files.policy_id}, {files.parameters:,} parameters, {files.trainable_parameters:,} of them train"
    except OperatorError as error:
        found.append(_of(error))
    if files is not None:
        found += [
            *(_spent(server, settings) if settings.privacy.mechanism != "none" else ()),
            *_disk(server, settings, files, looked),
            *_memory(server, settings, files, looked),
        ]
    found += _conflicts(settings, files.trainable_parameters if files is not None else 0)
    needs = _needs(server, settings)
    for kind, every in (("held-out", settings.policy.held_out), ("retention", settings.policy.retention)):
        for recording in every:
            told(f"{kind}: {recording.path.name}")
            found += _recording(server, kind, recording, needs, looked, quick)
    return Diagnosis(looked, tuple(sorted(found, key=lambda finding: tuple(Severity).index(finding.severity))))


def _of(error: OperatorError, severity: Severity = BLOCKS) -> Finding:
    return Finding(error.code, severity, error.what, error.why, error.remedy)


def _privacy(settings: ServerSettings, parameters: int) -> Iterator[Finding]:
    """How much noise there will be, and for how many rounds the budget is."""
    chosen, rounds = settings.privacy, settings.rounds
    nodes = chosen.expected_nodes or rounds.min_nodes
    if parameters:
        severity = LIMITS if noise_ratio(chosen.noise_multiplier, parameters, nodes) > 1 else NOTE
        remedy = "More nodes, a smaller noise multiplier or a smaller trainable set lower it." if severity is LIMITS else ""
        yield Finding(
            "privacy-noise", severity, noise_words(chosen.noise_multiplier, parameters, nodes), "It is what privacy costs.", remedy
        )
    allowed = rounds_within(chosen.epsilon, chosen.delta, chosen.noise_multiplier, [], rounds.rounds)
    if allowed < rounds.rounds:
        yield Finding(
            "privacy-rounds", LIMITS, f"The privacy budget allows {allowed} of the {rounds.rounds} rounds.",
            f"epsilon {chosen.epsilon:g} at delta {chosen.delta:g} with noise {chosen.noise_multiplier:g}.",
            "Ask for fewer rounds (rounds.rounds), or more noise (privacy.noise-multiplier).",
        )  # fmt: skip


def _conflicts(settings: ServerSettings, parameters: int = 0) -> Iterator[Finding]:
    """Settings that refuse each other, or do nothing together; `parameters` is the number of those that train, 0 when not known."""
    rounds, aggregation, policy = settings.rounds, settings.aggregation, settings.policy
    try:
        robust.check_method(aggregation.method, aggregation.hostile_nodes, rounds.min_nodes)
    except OperatorError as error:
        yield _of(error)
    follows = settings.schedule.strategy in ("adaptive", "dynamic")
    if follows and not policy.held_out:
        yield Finding(
            "schedule-blind", LIMITS, f"The {settings.schedule.strategy} schedule has no held-out loss to follow.",
            "policy.held-out is empty: learning rate and mu will stay as they are.", "Name a held-out recording, or choose fedprox.",
        )  # fmt: skip
    elif follows and policy.evaluate_every > 1:
        yield Finding(
            "schedule-seldom", NOTE, f"The {settings.schedule.strategy} schedule sees a loss every {policy.evaluate_every} rounds.",
            "Its window counts evaluations.", "Set policy.evaluate-every to 1 if evaluating is cheap.",
        )  # fmt: skip
    both = {each.path for each in policy.held_out} & {each.path for each in policy.retention}
    if both:
        yield Finding(
            "recording-twice",
            LIMITS,
            f"{min(both).name} is held out and of retention.",
            "One of the two says nothing new.",
            "Take one away.",
        )
    if settings.privacy.mechanism != "none":
        yield from _privacy(settings, parameters)
    if rounds.lr == 0:
        yield Finding("rate-zero", LIMITS, "The learning rate is 0.", "No node would learn anything.", "Set rounds.lr.")


def _libraries(settings: ServerSettings) -> Iterator[Finding]:
    wanted = {"flwr": "carries all messages"}
    if settings.policy.held_out:
        wanted |= {"torch": "evaluates on held-out recordings", "lerobot": "evaluates on held-out recordings"}
    for name, does in wanted.items():
        if find_spec(name) is None:
            yield Finding("engine-missing", BLOCKS, f"{name} is not installed on this computer.", f"It {does}.", engine_remedy())
    if settings.tracking.wandb != "off" and find_spec("wandb") is None:
        why, instead = "tracking.wandb asks for it.", "pip install 'zk0desk[wandb]', or set tracking.wandb to off."
        yield Finding("wandb-missing", BLOCKS, "Weights & Biases is not installed.", why, instead)


def _port(server: ServerFolder, settings: ServerSettings, looked: dict[str, str]) -> Iterator[Finding]:
    network = settings.network
    try:
        running = server.running()
        looked["port"] = f"{running.port}, this folder's server runs (process {running.pid})"
        return
    except ServerNotRunningError:
        pass
    looked["port"] = f"{network.host}:{network.port}" if network.port else f"{network.host}, a free one at the start"
    family = socket.AF_INET6 if ":" in network.host else socket.AF_INET
    try:
        socket.create_server((network.host, network.port), family=family).close()
    except OSError as error:
        why = {
            errno.EADDRINUSE: "Another program listens on it.",
            errno.EACCES: "Ports below 1024 are not given to every user.",
            errno.EADDRNOTAVAIL: "This computer has no such address.",
        }.get(error.errno or 0, f"{error.strerror}.")
        what = f"The gateway cannot listen on {network.host}:{network.port}."
        yield Finding("address-taken", BLOCKS, what, why, "End that program, or choose another network.port or network.host.")
    if network.host in ("127.0.0.1", "::1", "localhost"):
        why, remedy = "network.host is an address of this computer alone.", "Set network.host to 0.0.0.0."
        yield Finding("loopback-only", NOTE, "Only this computer will reach the federation.", why, remedy)
    elif network.name in ("localhost", "127.0.0.1", "::1"):
        why = f"network.name is {network.name}, which means another computer on each of them."
        yield Finding("name-local", LIMITS, "Operators would call their own computer.", why, "Make the folder with --name NAME.")


def _certificate(server: ServerFolder, settings: ServerSettings, looked: dict[str, str]) -> Iterator[Finding]:
    from cryptography import x509

    certificate = server.certificate()
    try:
        certificate.check()
        ends = certificate.ends()
    except OperatorError as error:
        yield _of(error)
        return
    pem = x509.load_pem_x509_certificate(server.certificate_path.read_bytes())
    looked["certificate"] = f"for {settings.network.name}, until {ends:%Y-%m-%d}"
    now = datetime.now(UTC)
    if now < pem.not_valid_before_utc:
        why = f"It begins on {pem.not_valid_before_utc:%Y-%m-%d}, and this computer's clock says {now:%Y-%m-%d}."
        yield Finding("clock-before-certificate", BLOCKS, "The server's certificate is not valid yet.", why, "Set the clock.")
    elif remark := certificate.remark(now):
        why = "It is renewed with its key when the server runs; invitations stay valid."
        yield Finding("certificate-ends", NOTE, remark, why, "")
    names = pem.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    known = {*names.get_values_for_type(x509.DNSName), *(str(each) for each in names.get_values_for_type(x509.IPAddress))}
    if settings.network.name not in known:
        why = f"It is for {', '.join(sorted(known))}."
        remedy = "Set network.name to one of these, or make a new folder with `zk0desk server init` and invite again."
        yield Finding("certificate-name", BLOCKS, f"The server's certificate is not for {settings.network.name}.", why, remedy)


def _clock(looked: dict[str, str], rtc: Path = RTC) -> Iterator[Finding]:
    now = time.time()
    looked["clock"] = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC"
    if now < _MADE.timestamp():
        why = f"It says {datetime.fromtimestamp(now, UTC):%Y-%m-%d}."
        yield Finding("clock-wrong", BLOCKS, "This computer's clock is wrong.", why, "Set the clock, best by the network (NTP).")
        return
    try:
        off = now - float(rtc.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return
    # Some computers keep local time in it: whole and half hours are a time zone.
    zone = round(off / 1800) * 1800 if abs(off) < 14.5 * 3600 else 0
    if abs(off - zone) > CLOCK_OFF_S:
        why = "After a restart the time may jump, and certificates and deadlines with it."
        yield Finding(
            "clock-apart", NOTE, f"The system's time and the computer's own clock are {abs(off):.0f} s apart.", why, "hwclock --systohc"
        )


def _secrets(server: ServerFolder) -> Iterator[Finding]:
    try:
        server.code()
    except OperatorError as error:
        yield _of(error)
    secret = (server.key_path, server.code_path, server.nodes_path, server.running_path)
    if os.name == "posix" and (open_ := [path.name for path in secret if path.is_file() and path.stat().st_mode & 0o077]):
        why = "They hold what lets nodes in."
        yield Finding("secrets-open", LIMITS, f"Others on this computer can read {', '.join(open_)}.", why, f"chmod -R go= {server.path}")
    if not os.access(server.path, os.W_OK) or not os.access(server.state, os.W_OK):
        why, remedy = "Rounds are kept there.", "Make the folder writable for the user who runs the server."
        yield Finding("folder-closed", BLOCKS, f"{server.path} cannot be written to.", why, remedy)


def _nodes(server: ServerFolder, settings: ServerSettings, looked: dict[str, str]) -> Iterator[Finding]:
    try:
        nodes = server.nodes().nodes()
    except OperatorError as error:
        yield _of(error)
        return
    count = {status: sum(node.status == status for node in nodes) for status in ("admitted", "waiting", "revoked")}
    looked["nodes"] = f"{count['admitted']} admitted, {count['waiting']} waiting, {count['revoked']} revoked"
    needed = max(settings.rounds.min_nodes, robust.least_nodes(settings.aggregation.method, settings.aggregation.hostile_nodes))
    if count["admitted"] < needed:
        severity = NOTE if settings.admission == "open" else LIMITS
        why = f"{count['admitted']} are admitted, {count['waiting']} wait."
        remedy = f"Invite operators with `zk0desk server invite {server.path}`, and admit their nodes."
        yield Finding("nodes-few", severity, f"A round waits for {needed} nodes.", why, remedy)


def _spent(server: ServerFolder, settings: ServerSettings) -> Iterator[Finding]:
    """Whether earlier runs have left anything of the privacy budget."""
    from zk0desk.training.privacy_account import PrivacyAccount

    chosen = settings.privacy
    try:
        left = PrivacyAccount(server.state / "privacy.json").left(chosen.noise_multiplier, chosen.epsilon, chosen.delta)
    except OperatorError as error:
        yield _of(error)
        return
    if not left:
        why = f"It is epsilon {chosen.epsilon:g} at delta {chosen.delta:g}, over all runs of this folder."
        remedy = "More noise (privacy.noise-multiplier) allows more rounds; a larger budget (privacy.epsilon) protects less."
        yield Finding("privacy-spent", BLOCKS, "The privacy budget allows no further round.", why, remedy)


def _disk(server: ServerFolder, settings: ServerSettings, files: PolicyFiles, looked: dict[str, str]) -> Iterator[Finding]:
    needed = disk_needed(settings, files, nodes=_many(server, settings))
    free = shutil.disk_usage(server.path).free
    total = sum(needed.values())
    looked["disk"] = f"{gigabytes(free)} free, {gigabytes(total)} needed: " + ", ".join(
        f"{gigabytes(size)} {name}" for name, size in needed.items() if size
    )
    kept = sum(path.stat().st_size for path in server.runs.rglob("*") if path.is_file())
    if free + kept < total + RESERVE:
        why = f"{gigabytes(free)} are free; a run may take {gigabytes(total)}, and {gigabytes(RESERVE)} should stay free."
        remedy = "Free some space, or lower rounds.keep-checkpoints or policy.evaluation-cache-gb."
        severity = BLOCKS if free < needed["for a checkpoint"] * 2 else LIMITS
        yield Finding("disk-small", severity, "The disk may become full in the run.", why, remedy)


def disk_needed(settings: ServerSettings, files: PolicyFiles, *, nodes: int) -> dict[str, int]:
    """Bytes of disk that a run takes at most, by what takes them, with `nodes` nodes in a round."""
    rounds, trainable = settings.rounds, files.trainable_parameters
    weights = (files.folder / policy_files.WEIGHTS).stat().st_size
    # Beside the policy: what the encoding left out, and up to three differences for nodes that missed rounds.
    one = int(weights + 4 * trainable + 3 * VALUE_BYTES[rounds.encoding] * trainable)
    kept = min(rounds.keep_checkpoints or rounds.rounds, rounds.rounds) + 1
    update = int(VALUE_BYTES[rounds.encoding] * trainable)
    cached = int(settings.policy.evaluation_cache_gb * 1e9) if settings.policy.held_out else 0
    return {
        "for a checkpoint": one,
        f"for {kept} kept checkpoints": one * kept,
        "for replies on their way": nodes * update + 8 * trainable,
        "for kept updates": rounds.rounds * nodes * update if rounds.keep_updates else 0,
        "for held-out frames": cached,
    }


def _many(server: ServerFolder, settings: ServerSettings) -> int:
    try:
        admitted = sum(node.status == "admitted" for node in server.nodes().nodes())
    except OperatorError:
        admitted = 0
    return max(admitted, settings.rounds.min_nodes)


def _memory(server: ServerFolder, settings: ServerSettings, files: PolicyFiles, looked: dict[str, str]) -> Iterator[Finding]:
    trainable = files.trainable_parameters
    aggregating = AGGREGATING + 4 * 4 * trainable
    evaluating = int(LIBRARIES + 4 * files.parameters) if settings.policy.held_out else 0
    held = AGGREGATING
    if settings.network.superlink_state == "memory":
        held += int((4 + VALUE_BYTES[settings.rounds.encoding]) * trainable * _many(server, settings))
    needed, (_, free) = aggregating + evaluating + held, usable_memory()
    looked["memory"] = f"{gigabytes(free)} free, about {gigabytes(needed)} needed"
    if needed > free:
        why = f"Aggregating takes {gigabytes(aggregating)}, evaluating {gigabytes(evaluating)}, messages {gigabytes(held)}."
        remedy = 'End other programs, or set network.superlink-state to "disk".'
        yield Finding("memory-small", LIMITS, f"{gigabytes(free)} of memory are free, {gigabytes(needed)} may be needed.", why, remedy)


def _needs(server: ServerFolder, settings: ServerSettings) -> PolicyNeeds:
    from zk0desk.training.recordings import policy_needs

    try:
        return policy_needs(server.policy(settings))
    except RecordingError:
        return PolicyNeeds()


def _recording(
    server: ServerFolder, kind: str, chosen: ChosenRecording, needs: PolicyNeeds, looked: dict[str, str], quick: bool
) -> Iterator[Finding]:
    from zk0desk.training.recordings import deep_check, map_cameras, quick_check

    path = (server.path / chosen.path.expanduser()).resolve()
    check: CheckResult = quick_check(path, needs) if quick else deep_check(path, needs)
    looked[f"{kind} {path.name}"] = check.status
    for finding in check.findings:
        # A recording that has to be repaired cannot be evaluated on.
        severity = finding.severity if finding.severity is NOTE else BLOCKS
        what = f"{path.name} ({kind}): {finding.what}"
        yield Finding(finding.code, severity, what, finding.why, finding.remedy or f"zk0desk recordings check {path} --deep")
    if check.recording is None:
        return
    try:
        mapping = map_cameras(check.recording, needs, chosen.cameras)
    except RecordingError as error:
        yield error.finding()
        return
    views = ", ".join(f"{camera.rpartition('.')[2]} as {slot.rpartition('.')[2]}" for slot, camera in mapping.slots.items())
    facts = f"{check.recording.episodes} episodes, {check.recording.frames} frames; {views or 'no camera'}"
    looked[f"{kind} {path.name}"] = f"{check.status}, {facts}"
