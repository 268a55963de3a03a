"""What tests of the Hub share: the stand-in with a policy and a recording on it, a keyring in memory, and a fetch in a hurry."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keyring
import keyring.errors
import pytest

from tests.federation.hub_stand_in import HubStandIn, Repository
from tests.federation.test_credentials import MemoryKeyring
from zk0desk.control import NodeControl
from zk0desk.federation import hub
from zk0desk.federation.hub import Patience, fetch
from zk0desk.quiet import quiet_libraries
from zk0desk.training.policy_files import TRAINABLE_MODULES

BASE, BACKBONE, CUBES = "lab/base", "lab/backbone", "lab/cubes"
TOKEN = "hf_aVerySecretToken0123456789"
QUICK = Patience(connect=2, silence=2, tries=3, first_wait=0.01)


class ForgetfulKeyring(MemoryKeyring):
    """The tests' backend of keyring's, from which a password can be taken out again."""

    def delete_password(self, service: str, username: str) -> None:
        if self.kept.pop((service, username), None) is None:
            raise keyring.errors.PasswordDeleteError("not there")


@pytest.fixture
def memory_keyring(monkeypatch: pytest.MonkeyPatch) -> ForgetfulKeyring:
    backend = ForgetfulKeyring()
    monkeypatch.setattr(keyring.core, "_keyring_backend", backend)
    return backend


@pytest.fixture
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests are run offline by their environment; the person in them chose nothing."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "ZK0DESK_QUIET"):
        monkeypatch.delenv(name, raising=False)
    quiet_libraries()


@pytest.fixture
def the_hub(nothing_chosen: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with HubStandIn() as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.endpoint)
        stand_in.repositories = {BASE: Repository(policy_files()), BACKBONE: Repository(BACKBONE_FILES, commit="b" * 40)}
        stand_in.repositories[CUBES] = Repository(recording_files(), kind="datasets", commit="c" * 40)
        yield stand_in


def weights(numbers: int = 60_000) -> bytes:
    """A safetensors file with a tensor of each trainable module and one of a backbone."""
    header: dict[str, Any] = {}
    data = b""
    for name in [*(f"{module}.weight" for module in TRAINABLE_MODULES), "model.vlm_with_expert.vlm.weight"]:
        tensor = struct.pack("<f", len(data)) * (numbers // (len(TRAINABLE_MODULES) + 1))
        header[name] = {"dtype": "F32", "shape": [len(tensor) // 4], "data_offsets": [len(data), len(data) + len(tensor)]}
        data += tensor
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


WEIGHTS = weights()
BACKBONE_FILES = {"config.json": b"{}", "tokenizer.json": b'{"a": 1}', "merges.txt": b"a b", "model.safetensors": b"x" * 50, "run.py": b"1"}


def policy_files(**config: Any) -> dict[str, bytes]:
    return {
        "config.json": json.dumps({"type": "smolvla", "vlm_model_name": BACKBONE, **config}).encode(),
        "model.safetensors": WEIGHTS,
        "policy_preprocessor.json": b'{"steps": []}',
        "README.md": b"# card",
        "modeling.py": b"import os",
        "pytorch_model.bin": b"pickle",
        "old.pkl": b"pickle",
        ".gitattributes": b"*",
        "checkpoints/1/model.safetensors": b"y" * 10,
    }


def recording_files() -> dict[str, bytes]:
    return {
        "meta/info.json": b"{}",
        "meta/tasks.parquet": b"PAR1",
        "data/chunk-000/file-000.parquet": b"PAR1 data",
        "videos/observation.images.top/chunk-000/file-000.mp4": bytes(range(256)) * 1000,
        "videos/observation.images.wrist/chunk-000/file-000.mp4": bytes(range(256)) * 1000,
        "load.py": b"import os",
    }


def get(kind: hub.Kind = "policy", name: str = BASE, revision: str = "main", **options: Any) -> Path:
    return fetch(kind, name, revision, **({"control": NodeControl(), "patience": QUICK} | options))


def incomplete(base: Path, of: bytes | None = None) -> list[Path]:
    return list(base.rglob(f"{hashlib.sha256(of).hexdigest() if of else '*'}.incomplete"))
