"""What a node looks at before anything is sent: invitation, consent, policy, recordings, key."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zk0desk.control import NodeControl
from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.federation.consent import require_consent
from zk0desk.federation.credentials import NodeKey, load_or_make_key
from zk0desk.federation.interruptible import interruptible
from zk0desk.federation.invitation import Invitation
from zk0desk.settings import Settings
from zk0desk.training.loading import gentle_imports

if TYPE_CHECKING:
    from zk0desk.training.policy_files import PolicyFiles


class NotReady(OperatorError):
    """Something that joining needs is not chosen yet."""

    code = "not-ready"
    exit_status = ExitStatus.USAGE


class RecordingUnfit(OperatorError):
    """A chosen recording cannot be trained on."""

    code = "recording-unfit"
    exit_status = ExitStatus.UNUSABLE


@dataclass(frozen=True)
class Ready:
    """Everything that joining needs. `frames` are those of the chosen recordings, all episodes counted."""

    invitation: Invitation
    files: PolicyFiles
    frames: int
    key: NodeKey


def prepare(settings: Settings, control: NodeControl) -> Ready:
    """Check everything, without sending anything. Raises the `OperatorError` of what is missing or unfit, and `Stopped`."""
    if not settings.federation.invitation:
        raise NotReady(
            "There is no invitation yet.", "It says where the federation is.", "Paste it on the Federation page, or give --invitation FILE."
        )
    invitation = Invitation.parse(settings.federation.invitation)
    require_consent(invitation, settings.federation.consent)
    folder = settings.policy.folder
    if folder is None:
        raise NotReady("No base policy is chosen.", "Training starts from it.", "Choose the folder of the federation's base policy.")
    if not settings.recordings.chosen:
        raise NotReady("No recording is chosen.", "A node trains on at least one.", "Choose recordings on the Recordings page.")

    def read() -> PolicyFiles:
        from zk0desk.training.policy_files import read_policy

        return read_policy(folder)

    files = interruptible(control, read, name="read-policy")
    files.require(
        policy=invitation.policy_name or invitation.policy_id,
        backbone_sha256=invitation.backbone_sha256,
        layout_sha256=invitation.layout_sha256,
    )
    frames = interruptible(control, lambda: check_recordings(settings, files), name="check-recordings")
    key = interruptible(control, lambda: load_or_make_key(settings.federation), name="load-key")
    return Ready(invitation, files, frames, key)


def check_recordings(settings: Settings, files: PolicyFiles) -> int:
    """The number of frames of the chosen recordings; `RecordingUnfit` names the first that cannot be trained on, and why."""
    with contextlib.suppress(ImportError), gentle_imports("pyarrow"):
        import pyarrow.compute
        import pyarrow.parquet  # noqa: F401 - what the check would import in a moment
    from zk0desk.training.curation import require_current
    from zk0desk.training.recordings import fit_together, quick_check

    needs = files.needs
    recordings = []
    for chosen in settings.recordings.chosen:
        result = quick_check(chosen.path, needs)
        if result.status != "ok" or result.recording is None:
            finding = result.findings[0] if result.findings else None
            why = f"{finding.what} {finding.why}" if finding else "It cannot be read."
            raise RecordingUnfit(f"The recording {chosen.path} cannot be used.", why, finding.remedy if finding else "Choose another one.")
        require_current(chosen)
        recordings.append(result.recording)
    for finding in fit_together(recordings, needs):
        if finding.severity == "blocks":
            raise RecordingUnfit(finding.what, finding.why, finding.remedy)
    return sum(recording.frames for recording in recordings)
