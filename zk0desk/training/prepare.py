"""Fill the prefix cache before training, so that the first round is as fast as the later ones.

Frames that have no entry are gone over in the order of the recordings. What is done stays, whenever it ends; a node that trains
meanwhile in another process shares the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zk0desk.amounts import gigabytes
from zk0desk.control import NodeControl
from zk0desk.errors import OperatorError, SettingsError
from zk0desk.events import Notice, PrefixChosen, Prepared, Sink
from zk0desk.settings import Cache, Settings
from zk0desk.training.cached_forward import THERE, CachedForward
from zk0desk.training.container_limits import usable_cores
from zk0desk.training.devices import choose_device, out_of_memory, release_unused, wants_bf16
from zk0desk.training.forward_choice import ForwardChoice
from zk0desk.training.frames import Batch, Frames, ahead
from zk0desk.training.memory_reserve import frames_at_once
from zk0desk.training.policy_size import LARGE_AT_ONCE, LARGE_POLICY
from zk0desk.training.prefix_cache import KEEP_FREE, PrefixCache
from zk0desk.training.prefix_level import LevelChoice, choose_level
from zk0desk.training.prefix_values import StorageRangeError

if TYPE_CHECKING:
    from zk0desk.training.policy import TrainablePolicy

AT_ONCE = 8
"""Frames that are computed at once where neither the operator nor memory says less."""
VISITS = 20.0
"""How often a frame is reckoned to be visited in a run: the epochs of one of the paper's rounds."""
TELL_S = 0.5
"""Seconds between two events that say how far it is."""
TRIES = 3
"""Batches in a row of which nothing could be kept that end it."""


class PrepareError(OperatorError):
    """Frames cannot be prepared."""

    code = "prepare-failed"


@dataclass(frozen=True)
class Preparation:
    """What came of it: `filled` of `frames` have an entry at `level`, `computed` of them came now, in `seconds` without pauses.

    `why` says in words why not all of them have one; it is empty when they have. `bytes` are those of the entries that are there.
    """

    level: str
    frames: int
    filled: int
    computed: int
    bytes: int
    seconds: float
    why: str = ""


def prepare_chosen(settings: Settings, *, emit: Sink, control: NodeControl) -> Preparation:
    """Load the base policy of `settings` and prepare the frames of the chosen recordings, on the device that would train.

    Emits PrefixChosen, then Prepared now and then. Raises `Stopped` when asked to stop, and what loading raises: `PolicyError`,
    `RecordingError`, `EngineMissingError`, `RoundFailedError`; SettingsError when nothing is chosen.
    """
    policy, frames, bf16 = _loaded(settings, control)
    training, device = settings.training, policy.device
    large = policy.files.parameters >= LARGE_POLICY and device.type == "cpu"
    at_once = training.micro_batch or (LARGE_AT_ONCE if large else AT_ONCE)
    fits = frames_at_once(policy.files, device, at_once, training.memory_free, bf16=bf16, emit=emit)
    policy.policy.train()
    return prepare(
        policy, frames, settings.cache, bf16=bf16, at_once=fits or at_once, threads=training.threads, emit=emit, control=control
    )  # fmt: skip


def look(settings: Settings, *, control: NodeControl) -> PrefixChosen:
    """What `prepare_chosen` would choose, with its reason: nothing is computed or kept. Raises what that raises."""
    policy, frames, bf16 = _loaded(settings, control)
    policy.policy.train()
    choice = ForwardChoice(policy, frames, settings.cache, bf16=bf16, emit=lambda _event: None, check=control.check)
    return _chosen(choose_level(choice.case(VISITS)))


def prepare(
    policy: TrainablePolicy,
    frames: Frames,
    settings: Cache,
    *,
    bf16: bool = False,
    at_once: int = AT_ONCE,
    threads: int = 0,
    visits: float = VISITS,
    emit: Sink,
    control: NodeControl,
) -> Preparation:
    """Give every frame its entry, as far as they fit. `policy` is in train mode, on its device. Raises as `prepare_chosen`.

    The level is chosen and checked as for a round in which a frame is visited about `visits` times.
    """
    import torch

    choice = ForwardChoice(policy, frames, settings, bf16=bf16, emit=emit, check=control.check)
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads or max(1, usable_cores() - 1))
        stack.callback(lambda: choice.close(restore=False))
        stack.enter_context(_checked_between_layers(policy, control.check))
        forward = choice.begin("", visits)
        if not isinstance(forward, CachedForward) or forward.level == "N":
            why = choice.choice.reason.partition(": ")[2]
            return Preparation(forward.level, len(frames), 0, 0, 0, 0.0, why[:1].upper() + why[1:])
        filling = _Filling(policy, frames, forward, settings, choice.choice, at_once, emit, control)
        filling.run()
        filled = forward.filled
        why = "" if filled == len(frames) else filling.why
        return Preparation(
            forward.level, len(frames), filled, filling.computed, filled * forward.entry_bytes, filling.seconds, why
        )  # fmt: skip


class _Filling:
    """Goes over the frames that are missing, once."""

    def __init__(
        self,
        policy: TrainablePolicy,
        frames: Frames,
        forward: CachedForward,
        settings: Cache,
        chosen: LevelChoice,
        at_once: int,
        emit: Sink,
        control: NodeControl,
    ) -> None:
        self._policy, self._frames, self._forward, self._settings = policy, frames, forward, settings
        self._emit, self._control = emit, control
        self._at_once = at_once
        self._wanted = min(len(frames), round(chosen.share * len(frames)))
        self._began, self._paused, self._told = time.monotonic(), 0.0, 0.0
        self._done = 0
        self.computed = 0
        self.why = ""

    @property
    def seconds(self) -> float:
        """Since it began, pauses left out."""
        return time.monotonic() - self._began - self._paused

    def run(self) -> None:
        """Until all is done, nothing more fits, or `Stopped`."""
        missing = self._forward.missing()
        self._done = len(self._frames) - len(missing)
        self._tell()
        vain = 0
        with ThreadPoolExecutor(min(4, usable_cores()), "zk0desk-decode") as decoders, ThreadPoolExecutor(1, "zk0desk-batch") as following:
            for indices, data in ahead(lambda each: self._read(each, decoders), self._batches(missing), following):
                if self._control.paused:
                    self._paused += self._control.hold()
                self._control.check()
                there = int(data[THERE].sum())  # another process prepares them too
                beyond = self._fill(data, indices)
                kept = len(indices) - len(self._forward.missing(indices))
                self._done += kept
                self.computed += max(0, kept - there)
                vain = 0 if kept or beyond else vain + 1
                if vain and (self._full() or vain == TRIES):
                    self.why = self.why or "Entries cannot be written into the cache's folder."
                    break
                if time.monotonic() - self._told >= TELL_S:
                    self._tell()
        self._tell()

    def _batches(self, missing: list[int]) -> Iterator[list[int]]:
        """`missing`, in its order, in parts of frames that are alike."""
        start = 0
        while start < len(missing):
            part = missing[start : start + self._at_once]
            places = next(group for group in self._frames.alike(part) if 0 in group)
            count = next((n for n, place in enumerate(places) if n != place), len(places))
            yield part[:count]
            start += count

    def _read(self, indices: list[int], decoders: ThreadPoolExecutor) -> Batch:
        self._control.check()
        return self._forward.batch(indices, decoders)

    def _fill(self, data: Batch, indices: list[int]) -> int:
        """Compute a batch in parts that fit the memory; how many frames have values beyond the storage type."""
        start = beyond = 0
        while start < len(indices):
            size = min(self._at_once, len(indices) - start)
            part = {key: value[start : start + size] for key, value in data.items()}
            try:
                self._forward.prepare(part, indices[start : start + size])
                start += size
                continue
            except StorageRangeError:
                beyond += self._one_by_one(part, indices[start : start + size])
                start += size
                continue
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if size == 1:
                    raise PrepareError(
                        "There is not enough memory to prepare a single frame.",
                        f"{self._policy.device.type}: {str(error).splitlines()[0] if str(error) else 'out of memory'}",
                        "Close other programs, and prepare again: what is done stays.",
                    ) from error
                self._at_once = size // 2
            # Outside of the handler: the traceback holds what filled the memory.
            release_unused(self._policy.device)
            self._emit(
                Notice(
                    severity="note",
                    code="micro-batch-halved",
                    what=f"Memory ran out; {self._at_once} frames are prepared at once from here on.",
                    why=f"{size} did not fit.",
                    remedy="Nothing is lost.",
                )
            )
        return beyond

    def _one_by_one(self, data: Batch, indices: list[int]) -> int:
        """A frame with values beyond the storage type is left out, not the others of its batch."""
        beyond = 0
        for place, index in enumerate(indices):
            try:
                self._forward.prepare({key: value[place : place + 1] for key, value in data.items()}, [index])
            except StorageRangeError as error:
                beyond += 1
                self.why = f"Some frames are computed at each visit: {error}."
        return beyond

    def _full(self) -> bool:
        """Whether budget or disk have no room for another entry."""
        folder = self._settings.folder.expanduser() if self._settings.folder else None
        with PrefixCache(folder, int(self._settings.budget_gb * 1e9)) as cache:
            usage = cache.usage()
        if usage.budget - usage.bytes < self._forward.entry_bytes:
            self.why = f"The budget of {gigabytes(usage.budget)} is used up."
        elif usage.disk_free - KEEP_FREE < self._forward.entry_bytes:
            self.why = f"The disk has only {gigabytes(usage.disk_free)} left, of which {gigabytes(KEEP_FREE)} stay free."
        else:
            return False
        return True

    def _tell(self) -> None:
        self._told = time.monotonic()
        self._emit(Prepared(done=self._done, frames=max(self._done, self._wanted), seconds=self.seconds))


def _loaded(settings: Settings, control: NodeControl) -> tuple[TrainablePolicy, Frames, bool]:
    """The base policy on the device that would train, the chosen frames, and whether bf16 is computed in."""
    from zk0desk.training.loading import load_engine

    if settings.policy.folder is None or not settings.recordings.chosen:
        raise SettingsError(
            "There is nothing to prepare.",
            "No base policy is chosen." if settings.policy.folder is None else "No recordings are chosen.",
            "Choose recordings and the base policy in the window, or in the settings' file.",
        )
    load_engine()
    control.check()
    from zk0desk.training.policy import TrainablePolicy

    policy = TrainablePolicy.load(settings.policy.folder)
    control.check()
    device = choose_device(settings.training.device)
    policy.policy.to(device)
    return policy, policy.frames_of(settings.recordings.chosen), wants_bf16(settings.training.precision, device)


def _chosen(choice: LevelChoice) -> PrefixChosen:
    return PrefixChosen(
        run="",
        level=choice.level,
        reason=choice.reason,
        bytes=choice.bytes,
        share=choice.share,
        gain=choice.gain,
        larger=choice.larger,
    )


@contextmanager
def _checked_between_layers(policy: TrainablePolicy, check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before each layer: a batch at full size takes seconds, and Cancel should not."""
    leaves = [module for module in policy.policy.modules() if not any(True for _ in module.children())]
    handles = [module.register_forward_pre_hook(lambda *_: check()) for module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
