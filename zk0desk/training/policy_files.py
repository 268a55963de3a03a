"""A policy as files: its fingerprints, its trainable set as one flat array, and writing it again. numpy only, no torch.

A policy folder holds LeRobot's `config.json` and `model.safetensors`, and usually its processors. Where the backbone's
configuration and tokenizer are a folder inside it (`vlm/`), LeRobot keeps that folder's absolute path in three JSON
files; `settle_policy` makes those paths right again after the folder was moved or copied.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zk0desk import folders
from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.training.layout import Layout

if TYPE_CHECKING:
    from zk0desk.training.recordings import PolicyNeeds

CONFIG, WEIGHTS, BACKBONE = "config.json", "model.safetensors", "vlm"
PROCESSORS = ("policy_preprocessor", "policy_postprocessor")
TRAINABLE_MODULES = (
    "model.vlm_with_expert.lm_expert.",
    "model.state_proj.",
    "model.action_in_proj.",
    "model.action_out_proj.",
    "model.action_time_mlp_in.",
    "model.action_time_mlp_out.",
)
"""What a node trains and what travels: the action expert and five projections. All else is frozen."""

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32", "BOOL": "bool"}
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_PIECE = 16 * 2**20
REMEMBERED = 20
"""Files whose fingerprints are kept."""


class PolicyError(OperatorError):
    """A policy's folder cannot be used."""

    code = "policy-unusable"
    exit_status = ExitStatus.UNUSABLE


class PolicyMismatch(OperatorError):
    """This computer's policy is another one than the federation's."""

    code = "policy-mismatch"
    exit_status = ExitStatus.REFUSED


@dataclass(frozen=True)
class _Tensor:
    """A tensor in a safetensors file: its type, shape and the place of its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class PolicyFiles:
    """A policy that was read. `policy_id` is short and derives from both fingerprints."""

    folder: Path
    layout: Layout
    backbone_sha256: str
    parameters: int
    trainable_parameters: int

    @property
    def policy_id(self) -> str:
        """Sixteen hex digits from the backbone's and the layout's SHA-256."""
        return policy_id(self.backbone_sha256, self.layout.sha256)

    @property
    def needs(self) -> PolicyNeeds:
        """What the policy asks of a recording."""
        from zk0desk.training.recordings import policy_needs

        return policy_needs(self.folder)

    def require(self, *, policy: str, backbone_sha256: str, layout_sha256: str) -> None:
        """Raise `PolicyMismatch` with both fingerprints unless this is the federation's policy."""
        if self.backbone_sha256 == backbone_sha256 and self.layout.sha256 == layout_sha256:
            return
        theirs, ours = (backbone_sha256[:16], layout_sha256[:16]), (self.backbone_sha256[:16], self.layout.sha256[:16])
        raise PolicyMismatch(
            "This computer's policy is not the federation's.",
            f"The federation trains {policy} (backbone {theirs[0]}, layout {theirs[1]}); "
            f"the folder {self.folder} holds {self.policy_id} (backbone {ours[0]}, layout {ours[1]}).",
            "Choose the base policy that the coordinator names in the invitation.",
        )

    def to_json(self) -> dict[str, Any]:
        """What `zk0desk policy show --json` prints."""
        return {
            "folder": str(self.folder),
            "policy-id": self.policy_id,
            "backbone-sha256": self.backbone_sha256,
            "layout-sha256": self.layout.sha256,
            "parameters": self.parameters,
            "trainable-parameters": self.trainable_parameters,
        }


def policy_id(backbone_sha256: str, layout_sha256: str) -> str:
    """A short id of a policy: sixteen hex digits."""
    return hashlib.sha256(f"{backbone_sha256} {layout_sha256}".encode()).hexdigest()[:16]


def is_trainable(name: str) -> bool:
    """Whether the parameter `name` belongs to the trainable set."""
    return name.startswith(TRAINABLE_MODULES)


def read_policy(folder: Path, *, remembered: bool = False) -> PolicyFiles:
    """Read the fingerprints of the policy in `folder`; `PolicyError` when it is not a SmolVLA policy. Seconds at full size.

    With `remembered` the fingerprint of a file that has not changed since is the one found then: for a look, not for training.
    """
    folder = Path(folder).expanduser().absolute()
    read_config(folder)
    tensors = _tensors(folder)
    trainable = {name: tensor for name, tensor in tensors.items() if is_trainable(name)}
    absent = [module for module in TRAINABLE_MODULES if not any(name.startswith(module) for name in trainable)]
    if absent or len(trainable) == len(tensors):
        raise PolicyError(
            f"{folder} holds no SmolVLA policy.",
            f"{WEIGHTS} has no tensors of {absent[0] if absent else 'a backbone'}.",
            "Choose the folder of a SmolVLA base policy.",
        )
    layout = Layout(tuple((name, trainable[name].shape, "float32") for name in sorted(trainable)))
    state = (folder / WEIGHTS).stat()
    return PolicyFiles(
        folder=folder,
        layout=layout,
        backbone_sha256=(_remembered_sha256 if remembered else _backbone_sha256)(folder / WEIGHTS, state.st_size, state.st_mtime_ns),
        parameters=sum(prod(tensor.shape) for tensor in tensors.values()),
        trainable_parameters=layout.size,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """LeRobot's `config.json` of the policy in `folder`; `PolicyError` when it is missing or not SmolVLA's."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PolicyError(f"{folder} holds no policy.", f"There is no {CONFIG}.", "Choose the folder of a SmolVLA base policy.") from error
    except (OSError, ValueError) as error:
        raise PolicyError(f"{folder / CONFIG} cannot be read.", f"{error}.", "Fetch the policy again.") from error
    if not isinstance(config, dict) or config.get("type") != "smolvla":
        kind = config.get("type") if isinstance(config, dict) else None
        raise PolicyError(
            f"{folder} holds no SmolVLA policy.", f"{CONFIG} says type {kind!r}.", "Choose the folder of a SmolVLA base policy."
        )
    return config


def trainable_weights(folder: Path) -> np.ndarray:
    """The trainable set of the policy in `folder`, float32, flat, in the order of its layout."""
    folder = Path(folder)
    tensors = _tensors(folder)
    names = sorted(name for name in tensors if is_trainable(name))
    flat = np.empty(sum(prod(tensors[name].shape) for name in names), np.float32)
    start = 0
    with (folder / WEIGHTS).open("rb") as file:
        for name in names:
            values = _values(file, tensors[name])
            flat[start : start + values.size] = values
            start += values.size
    return flat


def write_policy(
    target: Path,
    base_folder: Path,
    weights: np.ndarray,
    *,
    processors_from: Path | None = None,
    more: Callable[[Path], None] | None = None,
) -> Path:
    """Write the policy of `base_folder` with the trainable set `weights` to `target`, atomically.

    `weights` is float32, flat, in the order of the layout. Processors, and `config.json` if it is there (it says the
    robot's dimensions), come from the folder `processors_from`, or from the base. The result loads with
    `SmolVLAPolicy.from_pretrained(target)`. A policy that is at `target` is replaced. `more` may add files: it is given the folder
    as it will be, before it takes its place.
    """
    target, base = Path(target).expanduser().absolute(), Path(base_folder).expanduser().absolute()
    tensors = _tensors(base)
    size = sum(prod(tensor.shape) for name, tensor in tensors.items() if is_trainable(name))
    if weights.dtype != np.float32 or weights.shape != (size,):
        raise ValueError(f"weights are {weights.dtype} {weights.shape}, the policy's trainable set is float32 ({size},)")
    with _replacing(target) as partial:
        _write_weights(partial / WEIGHTS, base / WEIGHTS, tensors, weights)
        _copy_description(base, partial)
        for name in _processor_files(processors_from or base):
            shutil.copyfile((processors_from or base) / name, partial / name)
        if processors_from and (processors_from / CONFIG).exists():
            shutil.copyfile(processors_from / CONFIG, partial / CONFIG)
        settle_policy(partial, at=target)
        if more is not None:
            more(partial)
    return target


def copy_policy(target: Path, folder: Path) -> Path:
    """Copy the policy in `folder` to `target`, atomically, and settle it there."""
    target, folder = Path(target).expanduser().absolute(), Path(folder).expanduser().absolute()
    with _replacing(target) as partial:
        shutil.copyfile(folder / WEIGHTS, partial / WEIGHTS)
        _copy_description(folder, partial)
        for name in _processor_files(folder):
            shutil.copyfile(folder / name, partial / name)
        settle_policy(partial, at=target)
    return target


def settle_policy(folder: Path, *, at: Path | None = None) -> None:
    """Make the policy in `folder` name its own backbone folder by the absolute path that it has at `at` (default: there).

    Nothing changes for a policy that names its backbone by a name on the Hub.
    """
    if not (folder / BACKBONE).is_dir():
        return
    path = str((at or folder).absolute() / BACKBONE)
    _edit_json(folder / CONFIG, lambda config: config.update(vlm_model_name=path))
    for name in PROCESSORS:
        _edit_json(folder / f"{name}.json", lambda pipeline: _point_tokenizer(pipeline, path))


def _point_tokenizer(pipeline: dict[str, Any], path: str) -> None:
    for step in pipeline.get("steps", []):
        if step.get("registry_name") == "tokenizer_processor":
            step["config"]["tokenizer_name"] = path


def _edit_json(path: Path, change: Any) -> None:
    if not path.exists():
        return
    before = path.read_text(encoding="utf-8")
    data = json.loads(before)
    change(data)
    after = json.dumps(data, indent=4)
    if json.loads(before) != data:
        _write_text(path, after)


def _write_text(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(name, 0o644)
    Path(name).replace(path)


def _copy_description(base: Path, partial: Path) -> None:
    shutil.copyfile(base / CONFIG, partial / CONFIG)
    backbone = base / BACKBONE
    if not backbone.is_dir():
        named = Path(str(read_config(base).get("vlm_model_name", "")))
        if not (named.is_absolute() and named.is_dir()):
            return
        backbone = named
    (partial / BACKBONE).mkdir()
    for file in sorted(backbone.iterdir()):
        # The backbone's own weights, if any, are in the policy's file already.
        if file.is_file() and file.suffix in {".json", ".txt", ".model", ".jinja"}:
            shutil.copyfile(file, partial / BACKBONE / file.name)


def _processor_files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.is_file() and file.name.startswith(PROCESSORS))


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A fresh folder beside `target` that takes its place when all went well, and is gone when not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial"))
    old = partial.with_suffix(".old")
    try:
        yield partial
        if target.exists() and not (target / CONFIG).exists() and any(target.iterdir()):
            raise PolicyError(f"{target} is in use.", "It is a folder with other files.", "Name an empty or a new folder.")
        for file in partial.rglob("*"):
            if file.is_file():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
        partial.chmod(0o755)
        if target.exists():
            target.replace(old)
        partial.replace(target)
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut, where the system lets a folder be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _tensors(folder: Path) -> dict[str, _Tensor]:
    """The header of the policy's safetensors file, checked against the file's size."""
    path = folder / WEIGHTS
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > 100 * 2**20:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
        size = path.stat().st_size
        result = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            tensor = _Tensor(entry["dtype"], tuple(int(n) for n in entry["shape"]), 8 + length + begin, 8 + length + end)
            if tensor.end > size or tensor.end - tensor.begin != prod(tensor.shape) * _BYTES[tensor.dtype]:
                raise ValueError(f"it is cut short: {name} is not whole")
            result[name] = tensor
        return result
    except FileNotFoundError as error:
        raise PolicyError(f"{folder} holds no policy.", f"There is no {WEIGHTS}.", "Choose the folder of a SmolVLA base policy.") from error
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise PolicyError(f"{path} cannot be read.", f"{error}.", "Fetch the policy again.") from error


def _values(file: Any, tensor: _Tensor) -> np.ndarray:
    """The tensor's values as flat float32."""
    file.seek(tensor.begin)
    raw = file.read(tensor.end - tensor.begin)
    if tensor.dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, np.dtype(_DTYPES[tensor.dtype]).newbyteorder("<")).astype(np.float32)


@lru_cache(maxsize=8)
def _backbone_sha256(path: Path, size: int, modified: int) -> str:
    """Hex SHA-256 over name, type, shape and bytes of the frozen tensors, in the order of their names."""
    tensors = _tensors(path.parent)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for name in sorted(name for name in tensors if not is_trainable(name)):
            tensor = tensors[name]
            digest.update(json.dumps([name, tensor.dtype, list(tensor.shape)]).encode())
            for piece in _pieces(file, tensor):
                digest.update(piece)
    return digest.hexdigest()


def _remembered_sha256(path: Path, size: int, modified: int) -> str:
    """The backbone's SHA-256 as it was found for this very file, in this process or an earlier one."""
    state = path.stat()
    file = f"{path} {size} {modified} {state.st_ctime_ns} {state.st_ino}"
    memory = folders.state_folder() / "fingerprints.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        found = known.get(file)
    except (OSError, ValueError, AttributeError):
        known, found = {}, None
    if isinstance(found, str) and len(found) == 64:
        return found
    found = _backbone_sha256(path, size, modified)
    with contextlib.suppress(OSError):
        folders.private_folder(memory.parent)
        _write_text(memory, json.dumps(dict([*known.items(), (file, found)][-REMEMBERED:]), indent=1))
    return found


def _pieces(file: Any, tensor: _Tensor) -> Iterator[bytes]:
    file.seek(tensor.begin)
    left = tensor.end - tensor.begin
    while left:
        piece = file.read(min(left, _PIECE))
        left -= len(piece)
        yield piece


def _write_weights(path: Path, base: Path, tensors: dict[str, _Tensor], weights: np.ndarray) -> None:
    """A safetensors file with the base's frozen tensors byte by byte and the trainable set as float32."""
    slices, start = {}, 0
    for name in sorted(name for name in tensors if is_trainable(name)):
        slices[name] = slice(start, start + prod(tensors[name].shape))
        start = slices[name].stop
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        length = 4 * prod(tensor.shape) if name in slices else tensor.end - tensor.begin
        header[name] = {
            "dtype": "F32" if name in slices else tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + length],
        }
        offset += length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with base.open("rb") as source, path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name in sorted(tensors):
            if name in slices:
                file.write(np.ascontiguousarray(weights[slices[name]], "<f4").data)
            else:
                for piece in _pieces(source, tensors[name]):
                    file.write(piece)
