"""What a run was made with: enough to do it again. It is in the run's journal at each start."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0desk import __version__
from zk0desk.training.recording_files import files_below

if TYPE_CHECKING:
    from zk0desk.federation.run_state import RunState


def provenance(state: RunState) -> dict[str, Any]:
    """Versions, all settings, seed, fingerprints of policy and held-out recordings, and of the weights that the run goes on from."""
    policy = state.settings.policy
    return {
        "event": "provenance",
        "run": state.record.uid,
        "round": state.record.done,
        "weights-sha256": state.sha256,
        "versions": {"zk0desk": __version__, "python": platform.python_version(), "flwr": _version("flwr"), "numpy": _version("numpy")},
        "platform": platform.platform(),
        "seed": state.record.seed,
        "policy": {
            "policy-id": state.files.policy_id,
            "backbone-sha256": state.files.backbone_sha256,
            "layout-sha256": state.files.layout.sha256,
        },
        "held-out": {each.path.name: _fingerprint(state.folder.path / each.path) for each in policy.held_out},
        "settings": state.settings.model_dump(mode="json", by_alias=True),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _fingerprint(recording: Path) -> str:
    """SHA-256 over the names and sizes of a recording's files and the content of its `meta` folder's JSON."""
    digest = hashlib.sha256()
    for path in sorted(files_below(recording)):
        digest.update(f"{path.relative_to(recording).as_posix()} {path.stat().st_size}\n".encode())
        if path.suffix == ".json" and path.parent.name == "meta":
            digest.update(path.read_bytes())
    return digest.hexdigest()
