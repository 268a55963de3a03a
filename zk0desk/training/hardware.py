"""This computer: devices, memory, disk, versions, and whether the policy can be trained here. The public names are here.

`inspect_computer` looks, `verdict` decides: a pure function over what was seen, so that a computer can be described in a test.
Nothing here imports torch.
"""

from __future__ import annotations

from zk0desk.gpus import Gpu
from zk0desk.training.hardware_look import inspect_computer
from zk0desk.training.hardware_types import Computer, Verdict
from zk0desk.training.hardware_verdict import verdict
from zk0desk.training.policy_size import BATCH, LIBRARIES, PARAMETERS, TRAINABLE, memory_needed

__all__ = [
    "BATCH", "LIBRARIES", "PARAMETERS", "TRAINABLE", "Computer", "Gpu", "Verdict", "inspect_computer", "memory_needed",
    "verdict",
]  # fmt: skip
