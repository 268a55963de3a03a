"""The training step over a precomputed prefix: LeRobot's loss and gradients, without computing again what is frozen.

Four levels. `off` is LeRobot's own forward. `N` computes the frozen part without keeping anything for a gradient, `V`
starts from stored vision embeddings, `P` from the stored keys and values of the whole prefix. What the stored form
costs in precision is measured by the tests and, at the start of a run, by `FrozenPrefix.self_check`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from zk0desk.training.policy_files import WEIGHTS, PolicyError, read_policy
from zk0desk.training.prefix_rules import (
    BACKBONE_MODULES,
    Level,
    bytes_of,
    frozen_parameters,
    frozen_sha256,
    key_parts,
    picture_tokens,
    refusal,
)
from zk0desk.training.prefix_values import StorageRangeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from zk0desk.training.forward import Reduction
    from zk0desk.training.frames import Batch, Frames
    from zk0desk.training.policy import TrainablePolicy
    from zk0desk.training.prefix_forward import Prefix

EXACT = 1e-4
"""Relative difference to LeRobot's loss and gradients, computed in the policy's own precision, that is not yet a fault.

Sound is a hundredth of it; the smallest of the faults that the tests try makes sixteen times of it."""
STORED = {"float64": EXACT, "float32": EXACT, "float16": 5e-3, "bfloat16": 4e-2}
"""The same with entries that were rounded for storage. At full size 3e-5 and 3e-4 are usual, with a tiny policy up to 8e-4 and 8e-3."""
AUTOCAST = 2e-1
"""The same where all is computed in bfloat16: LeRobot's own forward then differs from float32 by 1e-2, of a tiny policy by 4e-2."""
CHECKED_FRAMES = 2


@dataclass(frozen=True)
class Difference:
    """How far a step is from LeRobot's on the same frames: the larger of the relative differences of loss and gradient.

    `exact` is without rounding for storage, `stored` as it is trained; `limit` is that of `stored`.
    """

    exact: float
    stored: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether both are within what rounding explains. A number that is not one is not."""
        return self.exact <= EXACT and self.stored <= self.limit


class FrozenPrefix:
    """A policy's step at one level. One thread uses it. It holds no frames: entries are made, handed out and taken back in.

    `bf16`: compute under bfloat16 autocast. `storage` ("float16", "bfloat16", "float32" or "float64") is by default
    bfloat16 where that is what is computed, else float16.
    """

    def __init__(self, policy: TrainablePolicy, level: Level, *, bf16: bool = False, storage: str = "") -> None:
        import torch

        from zk0desk.training import prefix_forward

        self.level: Level = level
        self._policy = policy
        self._bf16 = bf16
        self._dtype = prefix_forward.backbone_dtype(policy.policy)
        self.storage = storage or ("bfloat16" if bf16 or self._dtype is torch.bfloat16 else "float16")
        self._storage: torch.dtype = getattr(torch, self.storage)
        self._released: dict[str, tuple[torch.nn.Parameter, torch.Size]] = {}

    def refusal(self, frames: Frames | None = None) -> str:
        """Why this level may not be used with the policy (on `frames`); "" when it may. Asked before anything else is."""
        return "" if self.level == "off" else refusal(self._policy, frames)

    # --- entries -------------------------------------------------------------------------------------------------

    def vision(self, batch: Batch) -> Tensor:
        """V entries of a batch with pictures in [0, 1]: the connector's output (b, cameras, tokens, hidden), contiguous, as stored.

        Cameras are those that the batch has, in the policy's order; one that a frame masks is there too. StorageRangeError
        when a number does not fit the storage type.
        """
        return self._kept(self._see(batch))

    def prefix(self, batch: Batch, vision: Tensor | None = None) -> list[Tensor]:
        """P entries of a batch: for each frame (layers, 2, valid tokens, kv heads * head size), keys after rotation and values.

        With `vision`, the frames' V entries, the batch needs no pictures; what these lost by rounding is then lost to the
        result too. StorageRangeError when a number does not fit the storage type.
        """
        return self._entries(self._compute(batch, self._see(batch) if vision is None else vision))

    def entry_shape(self, cameras: int, instruction: int = 0, *, masked: int = 0, size: tuple[int, int] | None = None) -> tuple[int, ...]:
        """Shape of an entry of this level (V or P) for a frame with so many cameras, `masked` of them masked, and instruction tokens.

        `size` (height, width) of the pictures is needed only for a policy that does not resize them.
        """
        both = self._policy.policy.model.vlm_with_expert
        tokens = picture_tokens(self._policy, size)
        if self.level == "V":
            return cameras, tokens, both.config.text_config.hidden_size
        if self.level != "P":
            raise ValueError(f"level {self.level} keeps no entries")
        from zk0desk.training.prefix_forward import special_tokens

        count = (cameras - masked) * tokens + special_tokens(self._policy.policy, cameras) + instruction
        return len(self._layers), 2, count, self._heads.kv * self._heads.size

    def key_parts(self, slots: Mapping[str, str], instruction: Sequence[int] = ()) -> dict[str, Any]:
        """What a cache's key needs beside the recording's content and its decoder: JSON values, all that an entry depends on.

        `slots` says which of the recording's cameras fills which of the policy's; `instruction` is the valid token ids (level P).
        """
        return key_parts(
            self._policy,
            self.level,
            storage=self.storage,
            compute="bfloat16 autocast" if self._bf16 else str(self._dtype).removeprefix("torch."),
            frozen=self._frozen_sha256,
            layers=len(self._layers),
            slots=slots,
            instruction=instruction,
        )

    # --- the step ------------------------------------------------------------------------------------------------

    def loss(
        self, batch: Batch, noise: Tensor, time: Tensor, *, entries: Tensor | Sequence[Tensor] | None = None, reduction: Reduction = "mean"
    ) -> Tensor:
        """What `SmolVLAPolicy.forward` returns first for the batch on the policy's device: its loss, or with "none" each frame's.

        `entries` are the frames' entries of this level, on any device: one tensor, frame first, or one for each frame. Without
        them they are computed, and rounded as stored, so that a hit and a miss agree. Level P with entries needs of the batch
        state, action and action_is_pad only; level V needs the tokens too.
        """
        if self.level == "off":
            self.restore()
            with self._precision():
                return self._policy.policy.forward(dict(batch), noise=noise, time=time, reduction=reduction)[0]
        return self._loss_over(self._prefix_of(batch, entries), batch, noise, time, reduction)

    def self_check(self, batch: Batch, noise: Tensor, time: Tensor, entries: Tensor | Sequence[Tensor] | None = None) -> Difference:
        """Compare with LeRobot's forward on the first two frames of a batch with pictures, in loss and gradients; `.grad` is left alone.

        The mathematics is compared in the policy's own precision, then the step as it is trained; with `entries` (read from
        a store) over these.
        """
        few: Batch = {key: value[:CHECKED_FRAMES].clone() for key, value in batch.items()}
        drawn = noise[:CHECKED_FRAMES], time[:CHECKED_FRAMES]
        self.restore()
        with self._autocast(False):
            theirs = self._gradients(self._policy.policy.forward({key: value.clone() for key, value in few.items()}, *drawn)[0])
        seen = self._see(few, False)
        prefix = self._compute(few, seen, False)
        exact = difference(self._gradients(self._loss_over(prefix, few, *drawn, "mean", False)), theirs)
        if self.level in ("off", "N") and not self._bf16:
            return Difference(exact, exact, EXACT)
        taken = None if entries is None else entries[:CHECKED_FRAMES]
        if taken is None and not self._bf16:  # the tower is the dear part of a check: it is asked once
            taken = self._kept(seen) if self.level == "V" else self._entries(prefix)
        stored = difference(self._gradients(self.loss(few, *drawn, entries=taken)), theirs)
        return Difference(exact, stored, AUTOCAST if self._bf16 else STORED[self.storage])

    # --- memory --------------------------------------------------------------------------------------------------

    @property
    def released(self) -> bool:
        """Whether parts of the backbone are out of memory."""
        return bool(self._released)

    def release(self) -> int:
        """Free the parts of the backbone that a step over stored entries does not use; returns the bytes. Nothing at off and N."""
        import torch

        if self.level in ("off", "N") or self._released:
            return 0
        self._frozen_sha256  # noqa: B018 - while the tensors are there
        live = {id(parameter) for _, parameter in frozen_parameters(self._policy, self.level, self._layers, live=True)}
        backbone = self._policy.policy.model.vlm_with_expert.vlm
        self._released = {
            BACKBONE_MODULES + name: (parameter, parameter.shape)
            for name, parameter in backbone.named_parameters(remove_duplicate=False)
            if id(parameter) not in live
        }
        gone = list({id(parameter): parameter for parameter, _ in self._released.values()}.values())
        freed = bytes_of(gone)
        for parameter in gone:
            # Not on "meta": so the policy can still be moved, and a use of them fails and is never silently wrong.
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
        return freed

    def restore(self) -> None:
        """Read back from the policy's file what `release` freed. `PolicyError` when the file is not the same any more."""
        if not self._released:
            return
        from safetensors import safe_open

        files = self._policy.files
        if read_policy(files.folder).backbone_sha256 != files.backbone_sha256:
            raise PolicyError(
                f"The policy in {files.folder} changed while it was used.",
                "Its backbone is another one.",
                "Restart with the policy it has now.",
            )
        with safe_open(files.folder / WEIGHTS, framework="pt") as file:
            there = set(file.keys())
            for name, (parameter, shape) in self._released.items():
                if name in there:  # a tensor that two modules share is in the file once
                    tensor = file.get_tensor(name)
                    parameter.data = tensor.to(device=self._policy.device, dtype=parameter.dtype)
                if parameter.shape != shape and not self._shared(name, there):
                    raise PolicyError(f"The policy in {files.folder} is not whole.", f"{name} is not in its file.", "Fetch it again.")
        self._released = {}

    def _shared(self, name: str, there: set[str]) -> bool:
        parameter = self._released[name][0]
        return any(other in there and each is parameter for other, (each, _) in self._released.items())

    # --- parts ---------------------------------------------------------------------------------------------------

    @cached_property
    def _layers(self) -> Any:
        from zk0desk.training import prefix_forward

        return prefix_forward.layers_of(self._policy.policy.model.vlm_with_expert)

    @cached_property
    def _heads(self) -> Any:
        from zk0desk.training import prefix_forward

        return prefix_forward.heads_of(self._policy.policy.model.vlm_with_expert)

    @cached_property
    def _frozen_sha256(self) -> str:
        self.restore()
        return frozen_sha256(self._policy, self.level, self._layers)

    def _autocast(self, wanted: bool) -> AbstractContextManager[object]:
        import torch

        return torch.autocast(self._policy.device.type, torch.bfloat16, enabled=wanted)

    def _precision(self) -> AbstractContextManager[object]:
        return self._autocast(self._bf16)

    def _see(self, batch: Batch, bf16: bool | None = None) -> Tensor:
        """The vision embeddings of a batch, not rounded."""
        import torch

        from zk0desk.training import prefix_forward

        self.restore()
        with torch.no_grad(), self._autocast(self._bf16 if bf16 is None else bf16):
            return prefix_forward.see(self._policy.policy, batch)

    def _kept(self, values: Tensor) -> Tensor:
        """`values` rounded to the storage type."""
        import torch

        kept = values.to(self._storage).contiguous()
        if not bool(torch.isfinite(kept).all()):
            raise StorageRangeError(f"a value between {values.min()} and {values.max()} does not fit into {self.storage}")
        return kept

    def _entries(self, prefix: Prefix) -> list[Tensor]:
        """The P entries of a prefix, a frame each."""
        import torch

        entries = []
        for frame, length in enumerate(prefix.lengths.tolist()):
            pairs = [torch.stack([each[frame, :length] for each in pair]) for pair in zip(prefix.keys, prefix.values, strict=True)]
            entries.append(self._kept(torch.stack(pairs)))
        return entries

    def _compute(self, batch: Batch, vision: Tensor, bf16: bool | None = None) -> Prefix:
        """The prefix of a batch from its vision embeddings, not rounded."""
        import torch

        from zk0desk.training import prefix_forward

        if self.level == "P":  # the embeddings of the instruction's tokens are among what it releases
            self.restore()
        bf16 = self._bf16 if bf16 is None else bf16
        with torch.no_grad(), self._autocast(bf16):
            # Under autocast the connector's output is bfloat16, as LeRobot goes on with it; else it is of the backbone's type.
            seen = vision.to(device=self._policy.device, dtype=torch.bfloat16 if bf16 else self._dtype)
            hidden, lengths = prefix_forward.embed(self._policy.policy, batch, seen)
            return prefix_forward.frozen_prefix(self._layers, self._heads, hidden, lengths)

    def _prefix_of(self, batch: Batch, entries: Tensor | Sequence[Tensor] | None) -> Prefix:
        """The prefix of a batch as this level trains on it."""
        import torch

        from zk0desk.training import prefix_forward

        if self.level == "P":
            taken = self.prefix(batch) if entries is None else entries
            return prefix_forward.unpacked(taken, torch.bfloat16 if self._bf16 else self._dtype, self._policy.device)
        if self.level == "V":
            taken = self.vision(batch) if entries is None else entries
            return self._compute(batch, taken if isinstance(taken, torch.Tensor) else torch.stack(list(taken)))
        return self._compute(batch, self._see(batch))

    def _loss_over(
        self, prefix: Prefix, batch: Batch, noise: Tensor, time: Tensor, reduction: Reduction, bf16: bool | None = None
    ) -> Tensor:
        from zk0desk.training import prefix_forward

        with self._autocast(self._bf16 if bf16 is None else bf16):
            return prefix_forward.action_losses(self._policy.policy, self._layers, self._heads, prefix, batch, noise, time, reduction)

    def _gradients(self, loss: Tensor) -> tuple[float, list[Tensor | None]]:
        import torch

        return float(loss.detach()), list(torch.autograd.grad(loss, self._policy.parameters, allow_unused=True))


def difference(ours: tuple[float, list[Tensor | None]], theirs: tuple[float, list[Tensor | None]]) -> float:
    """The larger of the relative differences of loss and gradient, of the gradient in its norm over the whole trainable set."""
    off = whole = 0.0
    for a, b in zip(ours[1], theirs[1], strict=True):
        if b is not None:
            whole += float(b.double().square().sum())
        if a is not None or b is not None:
            apart = a - b if a is not None and b is not None else a if a is not None else b
            off += float(apart.double().square().sum())  # type: ignore[union-attr]
    return float(np.max([abs(ours[0] - theirs[0]) / max(abs(theirs[0]), 1e-30), np.sqrt(off / max(whole, 1e-300))]))


def as_array(entry: Tensor) -> np.ndarray:
    """An entry, or several, as the store keeps them: numpy has no bfloat16, its bits are uint16."""
    import torch

    entry = entry.cpu()
    return entry.view(torch.uint16).numpy() if entry.dtype is torch.bfloat16 else entry.numpy()


def as_entry(array: np.ndarray) -> Tensor:
    """What `as_array` made an array of. The memory is shared."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if tensor.dtype is torch.uint16 else tensor
