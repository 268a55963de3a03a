"""The middle of a round on disk, so that a power cut costs a minute and not hours.

FOLDER/step-N/ holds `facts.json` and the tensors in parts of some 64 MB (safetensors). A folder is complete when it has
its name: it is written as `step-N.partial`. The newest complete one counts; older ones go when it stands.

Writing goes on behind training, from copies in main memory: those of a policy in full size are 1.2 GB, held while they
are written. Where memory has no room for them, training waits while they are written.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0desk import folders
from zk0desk.training.container_limits import usable_memory

if TYPE_CHECKING:
    import torch

EVERY_S = 60.0
"""Seconds of training that an unclean end may cost, where that is more than `SHARE` of the round so far."""
SHARE = 0.02
PART_BYTES = 64 * 2**20
SPARE_BYTES = 2**30
"""Disk, and main memory, that a checkpoint leaves free."""
VALUES = 3
"""Numbers that are kept of each trained parameter: its value, and AdamW's two moments."""
FACTS = "facts.json"
OPTIMISER = "optimiser"
"""Beside a round's folder: the optimiser's moments, when they are kept from round to round."""
DAY_S = 86_400


def checkpoint_bytes(trainable: int) -> int:
    """Bytes of a checkpoint of `trainable` parameters: 4 for each number."""
    return 4 * VALUES * trainable


def bytes_a_day(size: int, every_s: float) -> int:
    """Bytes that checkpoints of `size` bytes write in a day of training, one each `every_s` seconds."""
    return round(size * DAY_S / every_s)


class _Abandoned(Exception):
    """What is being written is no longer wanted."""


class RoundCheckpoint:
    """Keeps a round's state in `folder`, so often that an unclean end costs at most `every_s` seconds or 2% of the round's time.

    `due` says when. One thread uses it. The newest `newest` states stay; copies leave `spare` bytes of main memory free.
    """

    def __init__(self, folder: Path, every_s: float = EVERY_S, *, newest: int = 1, spare: int = SPARE_BYTES) -> None:
        self.folder = folder
        self.every_s = every_s
        self._newest, self._spare = newest, spare
        self._began = self._last = time.monotonic()
        self._before = 0.0
        self._cost = 0.0
        self._writer: threading.Thread | None = None
        self._abandon = threading.Event()
        self._trouble = ""

    def goes_on(self, seconds: float) -> None:
        """The round went on for `seconds` before it was cut off."""
        self._before = seconds

    @property
    def interval_s(self) -> float:
        """Seconds of training that an unclean end may cost now."""
        return max(self.every_s, SHARE * (self._before + time.monotonic() - self._began))

    @property
    def due(self) -> bool:
        """Whether it is time to save: when it stands, as much time has passed as may be lost. Not while the one before is written."""
        return not self.writing and time.monotonic() - self._last + self._cost >= self.interval_s

    @property
    def writing(self) -> bool:
        """Whether a state is being written behind training."""
        return self._writer is not None and self._writer.is_alive()

    def trouble(self) -> str:
        """Why the last state could not be written, once; or nothing."""
        said, self._trouble = self._trouble, ""
        return said

    def save_behind(self, step: int, facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], check: Callable[[], None]) -> None:
        """Copy the state after `step` to main memory and write it on a thread of its own; it may change as soon as this returns.

        `check` may raise while the one before is waited for. Where there is no room for the copy, it is written before this returns.
        """
        while self.writing:
            check()
            self._wait(0.05)
        needed = sum(tensor.nbytes for tensor in tensors.values())
        if usable_memory()[1] < needed + self._spare:
            self.save(step, facts, tensors, check)
            return
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        self._abandon.clear()
        self._last = time.monotonic()

        def write() -> None:
            with contextlib.suppress(_Abandoned):
                self.save(step, facts, copies, self._go_on)

        self._writer = threading.Thread(target=write, name="zk0desk-checkpoint", daemon=True)
        self._writer.start()

    def _go_on(self) -> None:
        if self._abandon.is_set():
            raise _Abandoned

    def _wait(self, seconds: float | None = None) -> None:
        if self._writer is not None:
            self._writer.join(seconds)

    def close(self, *, finish: bool) -> None:
        """Wait until nothing is written any more; without `finish` what is being written is left, and nothing remains of it."""
        if not finish:
            self._abandon.set()
        self._wait()

    def save(self, step: int, facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], check: Callable[[], None]) -> bool:
        """Save the state after `step`; False when the disk has no room. `check` may raise between two parts, which leaves nothing."""
        began = time.monotonic()
        name = self.folder / f"step-{step:09d}"
        partial = name.with_suffix(".partial")
        try:
            folders.private_folder(self.folder)
            needed = sum(tensor.nbytes for tensor in tensors.values())
            if (free := shutil.disk_usage(self.folder).free) < needed + SPARE_BYTES:
                raise OSError(f"{needed / 1e9:.1f} GB are needed and 1 GB is left free, {free / 1e9:.1f} GB are there")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            for number, part in enumerate(_parts(tensors)):
                check()
                _write_part(partial / f"{number:04d}.safetensors", part)
            check()
            _durable(partial / FACTS, json.dumps({"step": step, **facts}).encode())
            _durable_entries(partial)
            shutil.rmtree(name, ignore_errors=True)
            partial.replace(name)
            _durable_entries(self.folder)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            self._trouble = f"{error.strerror or error}: {self.folder}"
            return False
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            self._last = max(self._last, began)
        for other in self._kept()[: -self._newest]:
            shutil.rmtree(other, ignore_errors=True)
        self._cost = time.monotonic() - began
        return True

    def load(self, identity: Mapping[str, Any], before: int | None = None) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """The newest state (after a step below `before`) whose facts have `identity`'s values, and its tensors on the CPU.

        None when there is none that can be read.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        for kept in reversed(self._kept()):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, SafetensorError):
                facts = json.loads((kept / FACTS).read_text(encoding="utf-8"))
                if any(facts[key] != value for key, value in identity.items()) or (before is not None and facts["step"] >= before):
                    continue
                tensors: dict[str, torch.Tensor] = {}
                for part in sorted(kept.glob("*.safetensors")):
                    tensors |= load_file(part)
                return facts, tensors
        return None

    def clear(self) -> None:
        """Remove what is kept."""
        self.close(finish=False)
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


def _durable_entries(folder: Path) -> None:
    """The names in `folder` are on disk too, where the system can be asked for that."""
    if os.name == "nt":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
