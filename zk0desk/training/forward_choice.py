"""Which `Forward` a run trains with: the level of the prefix cache that pays, checked against LeRobot before it is trusted."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0desk import folders
from zk0desk.events import Notice, PrefixChosen, Sink
from zk0desk.settings import Cache
from zk0desk.training.cached_forward import CachedForward
from zk0desk.training.container_limits import usable_cores, usable_memory
from zk0desk.training.disk_speed import disk_speed
from zk0desk.training.forward import Forward, WholeForward
from zk0desk.training.frames import Frames, to_device
from zk0desk.training.frozen_prefix import CHECKED_FRAMES, FrozenPrefix
from zk0desk.training.noise import action_size, draw_noise
from zk0desk.training.prefix_cache import KEEP_FREE, PrefixCache
from zk0desk.training.prefix_level import CacheCase, LevelChoice, choose_level
from zk0desk.training.prefix_rules import Level, refusal
from zk0desk.training.prefix_values import StorageRangeError
from zk0desk.training.recording_content import pictures_digest

if TYPE_CHECKING:
    from zk0desk.training.policy import TrainablePolicy

TRAINING_SHARE = 0.5
"""Of the memory that is free now, what the cache is reckoned with: the rest is the training's."""


class ForwardChoice:
    """The forwards of one policy on its frames. Use it after `policy.train()`; `close` lets go of the cache. One thread uses it."""

    def __init__(
        self,
        policy: TrainablePolicy,
        frames: Frames,
        settings: Cache,
        *,
        bf16: bool = False,
        emit: Sink,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._policy, self._frames, self._settings, self._bf16 = policy, frames, settings, bf16
        self._emit, self._check = emit, check
        self._run: str | None = None
        self._forward: Forward = WholeForward(policy, frames, bf16=bf16)
        self._prefix: FrozenPrefix | None = None
        self._digests: list[str] | None = None
        self._speed: float | None = None
        self.choice = LevelChoice("off", "")

    @property
    def forward(self) -> Forward:
        """The one that was chosen last; LeRobot's own before `begin`."""
        return self._forward

    def begin(self, run: str, visits: float, level: str = "") -> Forward:
        """The forward for a round of `run`, in which a frame is visited about `visits` times. Chosen and checked once for a run.

        `level`: the one that an interrupted round began with; it is taken whatever would pay now. Frees the backbone when all is cached.
        """
        if run != self._run or (level and level != self._forward.level):
            self._choose(run, visits, level)
            self._run = run
        self._free()
        return self._forward

    def case(self, visits: float) -> CacheCase:
        """What the level is chosen from, as it is now."""
        sizes = {level: self._entry_bytes(level) for level in ("V", "P")}
        place = self._folder()
        while not place.exists() and place != place.parent:
            place = place.parent
        memory = int(TRAINING_SHARE * usable_memory()[1])
        if self._speed is None and max(sizes.values()) * len(self._frames) > memory:
            self._speed = disk_speed(place)
        kept = self._kept()
        return CacheCase(
            frames=len(self._frames),
            v_bytes=sizes["V"],
            p_bytes=sizes["P"],
            memory_free=memory,
            disk_free=max(0, shutil.disk_usage(place).free - KEEP_FREE),
            budget=int(self._settings.budget_gb * 1e9),
            gpu=self._policy.device.type != "cpu",
            disk_speed=self._speed or 0.0,
            cores=usable_cores(),
            visits=visits,
            kept_v=kept["V"],
            kept_p=kept["P"],
            setting=self._settings.level,
            refused=refusal(self._policy, self._frames),
        )

    def open(self, level: Level) -> Forward:
        """A forward of this level, not checked. OSError where a recording cannot be read."""
        if level == "off":
            return WholeForward(self._policy, self._frames, bf16=self._bf16)
        self._prefix = FrozenPrefix(self._policy, level, bf16=self._bf16)
        if level == "N":
            return CachedForward(self._policy, self._frames, self._prefix, None, [], bf16=self._bf16, emit=self._emit)
        cache = PrefixCache(self._folder(), int(self._settings.budget_gb * 1e9), emit=self._emit)
        return CachedForward(self._policy, self._frames, self._prefix, cache, self._contents(), bf16=self._bf16, emit=self._emit)

    def close(self, *, restore: bool = True) -> None:
        """Let go of the cache, and bring back what was freed of the backbone unless the policy is not used any more."""
        if isinstance(self._forward, CachedForward):
            self._forward.close()
        if self._prefix is not None and restore:
            self._prefix.restore()
        self._prefix, self._run = None, None
        self._forward = WholeForward(self._policy, self._frames, bf16=self._bf16)

    # --- parts

    def _choose(self, run: str, visits: float, level: str) -> None:
        self.close()
        try:
            self.choice = choose_level(self.case(visits))
            if level and level != self.choice.level and not refusal(self._policy, self._frames):
                self.choice = LevelChoice(level, f"{level}: the interrupted round began with it.")  # type: ignore[arg-type]
            self._forward = self.open(self.choice.level)
            trouble = self._difference()
        except (OSError, StorageRangeError) as error:
            trouble = f"{error}."
        if trouble:
            self.close()
            self.choice = LevelChoice("off", f"off: {trouble}")
            self._emit(
                Notice(
                    severity="warning",
                    code="prefix-differs",
                    what="Frames are not prepared in this run; LeRobot's own step is used.",
                    why=trouble,
                    remedy="The result is the same, training is slower. If this stays after an update of zk0desk, please report it.",
                )
            )
        chosen = self.choice
        self._emit(
            PrefixChosen(
                run=run,
                level=chosen.level,
                reason=chosen.reason,
                bytes=chosen.bytes,
                share=chosen.share,
                gain=chosen.gain,
                larger=chosen.larger,
            )
        )

    def _difference(self) -> str:
        """Two frames against LeRobot's forward, in loss and gradients; "" or what is wrong."""
        if self._prefix is None:
            return ""
        places = self._checked_frames()
        batch = to_device(self._frames.batch(places), self._policy.device)
        noise, time = (drawn.to(self._policy.device) for drawn in draw_noise(self._policy, len(places), "self-check"))
        self._check()
        with action_size(self._policy, self._frames.action_size(places[0])):
            found = self._prefix.self_check(batch, noise, time)
        if found.ok:
            return ""
        off = max(found.exact, found.stored)
        return f"Its step differs from LeRobot's on two frames ({off:.1g}, at most {found.limit:.1g}) at level {self._prefix.level}."

    def _checked_frames(self) -> list[int]:
        """Two frames that are alike, with different tasks if there are such: only then is one padded."""
        group = self._frames.alike(range(len(self._frames)))[0]

        def task(index: int) -> str:
            table, row = self._frames.locate(index)
            return table.tasks[row]

        other = next((index for index in group if task(index) != task(group[0])), None)
        return group[:CHECKED_FRAMES] if other is None else [group[0], other]

    def _free(self) -> None:
        """When every frame has its entry, neither pictures nor the parts of the backbone that see them are needed."""
        if self._prefix is None or not isinstance(self._forward, CachedForward) or self._prefix.released or self._prefix.level == "N":
            return
        if not self._forward.missing():
            self._prefix.release()
            for table in self._frames.tables:
                table.pictures.forget()

    def _folder(self) -> Path:
        return (self._settings.folder or folders.prefix_cache_folder()).expanduser()

    def _contents(self) -> list[str]:
        if self._digests is None:
            self._digests = [
                pictures_digest(table.pictures.root, table.pictures.slots.values(), self._check) for table in self._frames.tables
            ]
        return self._digests

    def _entry_bytes(self, level: Any) -> int:
        """Bytes of an entry, the mean over the frames of all recordings."""
        prefix, total = FrozenPrefix(self._policy, level, bf16=self._bf16), 0
        for table in self._frames.tables:
            size = table.pictures.size
            for task in set(table.tasks):
                shape = prefix.entry_shape(len(table.pictures.slots), len(self._frames.instruction(task)), size=size)
                total += table.tasks.count(task) * math.prod(shape) * 2
        return total // max(1, len(self._frames))

    def _kept(self) -> dict[str, int]:
        """Entries of these recordings that are on the disk, by level."""
        found = {"V": 0, "P": 0}
        with PrefixCache(self._folder()) as cache:
            shelves = cache.shelves()
        if shelves:
            digests = set(self._contents())
            for shelf in shelves:
                if shelf.about.get("content-sha256") in digests and shelf.about.get("policy") == self._policy.files.policy_id:
                    found[str(shelf.about.get("level"))] += shelf.filled
        return found
