"""The most memory that training took while it was watched."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class PeakMemory:
    """The most memory of `device` that was in use meanwhile: PyTorch's on a GPU, this process's on a processor."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._done = threading.Event()
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        import torch

        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._thread = threading.Thread(target=self._watch, name="zk0desk-memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        self._done.set()
        self._thread.join()
        if self._device.type == "cuda":
            self.bytes = int(torch.cuda.max_memory_reserved(self._device))

    def _watch(self) -> None:
        import psutil
        import torch

        own = psutil.Process()
        while True:
            used = torch.mps.driver_allocated_memory() if self._device.type == "mps" else own.memory_info().rss
            self.bytes = max(self.bytes, int(used))
            if self._done.wait(0.05):
                return
