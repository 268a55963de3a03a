"""A batch's loss over entries of the prefix cache: read where they are kept, computed and kept where they are not.

Which of the two it was never shows in a number: what is computed is rounded as it is stored before it is used.
"""

from __future__ import annotations

import time as clock
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from zk0desk.events import Notice, Sink
from zk0desk.training.forward import Reduction
from zk0desk.training.frames import Batch, Frames, to_device
from zk0desk.training.frozen_prefix import FrozenPrefix, as_array, as_entry
from zk0desk.training.noise import action_size
from zk0desk.training.prefix_cache import PrefixCache
from zk0desk.training.prefix_shelf import Shelf
from zk0desk.training.prefix_values import StorageRangeError

if TYPE_CHECKING:
    import torch

    from zk0desk.training.policy import TrainablePolicy

ENTRIES, LENGTHS, THERE = "prefix.entries", "prefix.lengths", "prefix.there"
"""In a batch: entries (b, ...), shorter ones filled up with zeros; their valid tokens (b,), level P; whether a frame has one (b,)."""


class CachedForward:
    """A `Forward` at level N, V or P. `cache` holds its shelves; at level N there are none.

    `digests` are those of the recordings' pictures, in the order of the tables of `frames` (`recording_content.pictures_digest`).
    """

    def __init__(
        self,
        policy: TrainablePolicy,
        frames: Frames,
        prefix: FrozenPrefix,
        cache: PrefixCache | None,
        digests: Sequence[str],
        *,
        bf16: bool = False,
        emit: Sink,
    ) -> None:
        self._policy, self._frames, self._prefix, self._cache = policy, frames, prefix, cache
        self.level: str = prefix.level
        self._decoders = [table.pictures.decoder for table in frames.tables]
        self._plain = FrozenPrefix(policy, "N", bf16=bf16)
        """For a frame whose entry does not fit the storage type."""
        self._emit, self._told = emit, False
        self.seconds = 0.0
        """Spent on computing and keeping entries."""
        self.hits = self.asked = 0
        """Entries that were found, and that were asked for."""
        self._shelves: dict[tuple[int, str], Shelf] = {}
        if cache is not None and prefix.level in ("V", "P"):
            for number, (table, digest) in enumerate(zip(frames.tables, digests, strict=True)):
                for task in sorted(set(table.tasks)) if prefix.level == "P" else [""]:
                    self._shelves[number, task] = self._shelf(cache, number, task, digest)

    # --- a Forward

    def batch(self, indices: list[int], decoders: ThreadPoolExecutor | None = None) -> Batch:
        """The data of frames on the CPU: entries where they are kept, and pictures of those frames that have none."""
        import torch

        data = self._frames.columns(indices)
        there = np.zeros(len(indices), bool)
        if self._shelves:
            entries, lengths, there = self._read(indices)
            if there.any():
                data |= {ENTRIES: entries, LENGTHS: lengths}
        data[THERE] = torch.from_numpy(there)
        missing = np.flatnonzero(~there).tolist()
        if missing:
            seen = self._frames.pictures([indices[place] for place in missing], decoders)
            for slot, pictures in seen.items():
                if len(missing) < len(indices):  # so that all of a batch can be cut alike
                    whole = pictures.new_zeros((len(indices), *pictures.shape[1:]))
                    whole[missing] = pictures
                    pictures = whole
                data[slot] = pictures
        return data

    def loss(self, data: Batch, indices: list[int], noise: torch.Tensor, time: torch.Tensor, reduction: Reduction = "mean") -> torch.Tensor:
        """As `Forward.loss`."""
        began = clock.perf_counter()
        device = self._policy.device
        prefix, moved, entries = self._prefix, to_device(data, device), None
        try:
            entries = self._entries(moved, indices) if self._shelves else None
        except StorageRangeError as error:
            self._tell(error)
            prefix, moved = self._plain, to_device(self._frames.batch(indices), device)
        batch = {key: value for key, value in moved.items() if key not in (ENTRIES, LENGTHS, THERE)}
        for slot in self._frames.locate(indices[0])[0].pictures.slots:  # the cameras are told by their names, also without pictures
            batch.setdefault(slot, batch["observation.state"].new_empty((len(indices), 0)))
        self.seconds += clock.perf_counter() - began
        with action_size(self._policy, self._frames.action_size(indices[0])):
            return prefix.loss(batch, noise.to(device), time.to(device), entries=entries, reduction=reduction)

    def _tell(self, error: StorageRangeError) -> None:
        if self._told:
            return
        self._told = True
        self._emit(
            Notice(
                severity="note",
                code="prefix-range",
                what="Some frames cannot be prepared; they are computed at each visit.",
                why=f"{str(error).capitalize()}.",
                remedy="The result is the same, training is slower.",
            )
        )

    # --- entries

    @property
    def filled(self) -> int:
        """Frames of these recordings whose entries are kept. Entries of episodes that are left out are not counted."""
        return len(self._frames) - len(self.missing())

    def missing(self, indices: Sequence[int] | None = None) -> list[int]:
        """Of frames `indices` (default: all) those that have no entry, by the index on the disk."""
        if indices is None:
            indices = range(len(self._frames))
        if not self._shelves:
            return list(indices)
        kept = {id(shelf): shelf.kept() for shelf in self._shelves.values()}
        places = ((index, *self._place(index)) for index in indices)
        return [index for index, shelf, row in places if not kept[id(shelf)][row]]

    @property
    def entry_bytes(self) -> int:
        """Bytes of a frame's entry, in the mean; 0 at level N."""
        if not self._shelves:
            return 0
        sizes = [self._place(index)[0].layout.entry_bytes for index in range(len(self._frames))]
        return sum(sizes) // len(sizes)

    def prepare(self, data: Batch, indices: list[int]) -> None:
        """Compute and keep the entries that `data`, the batch of frames `indices`, has not, as a first visit would.

        StorageRangeError as in `FrozenPrefix`.
        """
        if self._shelves and not bool(data[THERE].all()):
            self._entries(to_device(data, self._policy.device), indices)

    def close(self) -> None:
        """Let go of the cache's files."""
        if self._cache is not None:
            self._cache.close()

    def _entries(self, moved: Batch, indices: list[int]) -> torch.Tensor | list[torch.Tensor]:
        """Each frame's entry on the policy's device; what was missing is computed and kept."""
        import torch

        missing = torch.nonzero(~moved[THERE].cpu()).flatten().tolist()
        kept: dict[int, torch.Tensor] = {}
        if missing:
            # The batch was read while an earlier step computed: what that step kept is taken, so that no timing shows in a number.
            late, lengths, there = self._read([indices[place] for place in missing])
            for at, place in enumerate(missing):
                if there[at]:
                    kept[place] = self._cut(late[at], lengths[at]).to(self._policy.device)
            missing = [place for place in missing if place not in kept]
        self.asked += len(indices)
        self.hits += len(indices) - len(missing)
        if missing:
            few = {key: value[missing] for key, value in moved.items() if key not in (ENTRIES, LENGTHS, THERE)}
            made = self._prefix.vision(few) if self.level == "V" else self._prefix.prefix(few)
            for place, entry in zip(missing, made, strict=True):
                kept[place] = entry
            self._keep([indices[place] for place in missing], [kept[place] for place in missing])
        if not kept and bool((moved[LENGTHS] == moved[LENGTHS][0]).all()):
            return self._cut(moved[ENTRIES], moved[LENGTHS][0])
        found = [kept[place] if place in kept else self._cut(moved[ENTRIES][place], moved[LENGTHS][place]) for place in range(len(indices))]
        return torch.stack(found) if self.level == "V" else found

    def _cut(self, entries: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Entries without what they were filled up with."""
        return entries if self.level == "V" else entries[..., : int(length), :]

    def _read(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Entries as stored, filled up to the longest; the tokens of each (level P; else 0); and which are there."""
        import torch

        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for shelf, places, rows in self._by_shelf(indices):
            array, hits = shelf.read(rows)
            if len(places) == len(indices):
                lengths = torch.full((len(indices),), array.shape[3] if self.level == "P" else 0)
                return as_entry(array), lengths, hits
            found.append((places, array, hits))
        shape = list(found[0][1].shape[1:])
        if self.level == "P":
            shape[2] = max(array.shape[3] for _, array, _ in found)
        whole, there = np.zeros((len(indices), *shape), found[0][1].dtype), np.zeros(len(indices), bool)
        lengths = torch.zeros(len(indices), dtype=torch.long)
        for places, array, hits in found:
            there[places] = hits
            if self.level == "P":
                lengths[places] = array.shape[3]
                whole[places, :, :, : array.shape[3]] = array
            else:
                whole[places] = array
        return as_entry(whole), lengths, there

    def _keep(self, indices: Sequence[int], entries: Sequence[torch.Tensor]) -> None:
        import torch

        for shelf, places, rows in self._by_shelf(indices):
            number = self._number(indices[int(places[0])])
            # A decoder that gave up meanwhile was replaced by another, whose pictures differ a little: those are not kept.
            if self._frames.tables[number].pictures.decoder == self._decoders[number]:
                shelf.write(rows, as_array(torch.stack([entries[int(place)] for place in places])))

    # --- shelves

    def _shelf(self, cache: PrefixCache, number: int, task: str, digest: str) -> Shelf:
        table = self._frames.tables[number]
        pictures, instruction = table.pictures, self._frames.instruction(task) if task else []
        key = self._prefix.key_parts(pictures.slots, instruction)
        key |= {"recording": digest, "decoder": f"{pictures.decoder} {version('av' if pictures.decoder == 'pyav' else 'torchcodec')}"}
        shape = self._prefix.entry_shape(len(pictures.slots), len(instruction), size=pictures.size)
        about = {
            "recording": table.name,
            "path": str(pictures.root),
            "content-sha256": digest,
            "level": self.level,
            "policy": self._policy.files.policy_id,
            "task": task,
        }
        return cache.shelf(key, pictures.total, shape, self._prefix.storage, about)

    def _number(self, index: int) -> int:
        return int(np.searchsorted(self._frames.starts, index, side="right")) - 1

    def _place(self, index: int) -> tuple[Shelf, int]:
        """Where a frame's entry is: the shelf and the row in it."""
        table, row = self._frames.locate(index)
        shelf = self._shelves[self._number(index), table.tasks[row] if self.level == "P" else ""]
        return shelf, table.pictures.row_of(row)

    def _by_shelf(self, indices: Sequence[int]) -> list[tuple[Shelf, np.ndarray, np.ndarray]]:
        """(shelf, places in `indices`, rows in it) for each shelf that is needed."""
        groups: dict[int, tuple[Shelf, list[int], list[int]]] = {}
        for at, index in enumerate(indices):
            shelf, row = self._place(index)
            _, places, rows = groups.setdefault(id(shelf), (shelf, [], []))
            places.append(at)
            rows.append(row)
        return [(shelf, np.array(places), np.array(rows)) for shelf, places, rows in groups.values()]
