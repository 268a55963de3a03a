"""The middle of a round on disk, so that a power cut costs minutes and not hours.

FOLDER/step-N/ holds `facts.json` and the tensors in parts of some 64 MB (safetensors). A folder is complete when it has
its name: it is written as `step-N.partial`. The newest complete one counts; older ones go when it stands.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0desk import folders

if TYPE_CHECKING:
    import torch

EVERY_S = 60.0
SHARE = 20
"""Writing takes at most one part in so many of the time."""
PART_BYTES = 64 * 2**20
SPARE_BYTES = 2**30
"""Disk that a checkpoint leaves free."""
FACTS = "facts.json"


class RoundCheckpoint:
    """Keeps a round's state in `folder`, every `every_s` seconds or seldomer (`share`); `due` says when. One thread uses it."""

    def __init__(self, folder: Path, every_s: float = EVERY_S, share: float = SHARE) -> None:
        self.folder = folder
        self._every, self._share = every_s, share
        self._last = time.monotonic()
        self._cost = 0.0

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._last >= max(self._every, self._share * self._cost)

    def save(self, step: int, facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], check: Callable[[], None]) -> bool:
        """Save the state after `step`; False when the disk has no room. `check` may raise between two parts, which leaves nothing."""
        began = self._last = time.monotonic()
        folders.private_folder(self.folder)
        needed = sum(tensor.nbytes for tensor in tensors.values())
        if shutil.disk_usage(self.folder).free < needed + SPARE_BYTES:
            return False
        name = self.folder / f"step-{step:09d}"
        partial = name.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            for number, part in enumerate(_parts(tensors)):
                check()
                _write_part(partial / f"{number:04d}.safetensors", part)
            _durable(partial / FACTS, json.dumps({"step": step, **facts}).encode())
            partial.replace(name)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            return False
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for other in self._kept():
            if other != name:
                shutil.rmtree(other, ignore_errors=True)
        self._last = time.monotonic()
        self._cost = self._last - began
        return True

    def load(self, identity: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """The newest state whose facts have `identity`'s values, and its tensors on the CPU. None when there is none that can be read."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        for kept in reversed(self._kept()):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, SafetensorError):
                facts = json.loads((kept / FACTS).read_text(encoding="utf-8"))
                if any(facts[key] != value for key, value in identity.items()):
                    continue
                tensors: dict[str, torch.Tensor] = {}
                for part in sorted(kept.glob("*.safetensors")):
                    tensors |= load_file(part)
                return facts, tensors
        return None

    def clear(self) -> None:
        """Remove what is kept."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kept(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != ".partial")


def _parts(tensors: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    part: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if part and size + tensor.nbytes > PART_BYTES:
            yield part
            part, size = {}, 0
        part[name] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
    if part:
        yield part


def _write_part(path: Path, part: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save

    _durable(path, save(part))


def _durable(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
