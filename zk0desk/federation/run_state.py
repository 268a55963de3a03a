"""What the parts of a run share on the coordinator's side: settings, record, the global weights, the connection, and how to wait."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from zk0desk.control import NodeControl
from zk0desk.events import Event, Notice, Sink
from zk0desk.federation import chain, updates
from zk0desk.federation.chain import ChainedJournal
from zk0desk.federation.deliveries import Deliveries
from zk0desk.federation.disk import PatientDisk
from zk0desk.federation.live_settings import LiveSettings
from zk0desk.federation.private_sum import PrivateSum
from zk0desk.federation.run_record import open_record
from zk0desk.federation.server_folder import ServerFolder, fingerprint_of
from zk0desk.federation.weights_chain import WeightsChain
from zk0desk.training import policy_files

if TYPE_CHECKING:
    from zk0desk.federation.grid import Grid, OnlineNode


class RunState:
    """A run of the server in `folder`: the last one where it stopped, or a new one.

    `weights` are those of round `record.done`, flat float32; set them with `take`, which keeps `sha256` true. `grid` is set while the
    SuperLink is connected.
    """

    def __init__(self, folder: ServerFolder, emit: Sink, control: NodeControl, rounds: int | None, fresh: bool) -> None:
        self.folder, self._pass_on, self.control = folder, emit, control
        self.settings = folder.settings()
        self.rules = self.settings.rounds
        self.base = folder.policy(self.settings)
        self.files = policy_files.read_policy(self.base)
        self.record = open_record(
            folder, federation=self.settings.federation, seed=self.rules.seed, rounds=rounds or self.rules.rounds,
            policy_id=self.files.policy_id, fresh=fresh,
        )  # fmt: skip
        self.first = self.record.done + 1
        """The first round that this process conducts."""
        self.weights = np.empty(0, np.float32)
        self.sha256 = ""
        self.kept: dict[str, Any] = {}
        """What a part needs to go on after a restart, as JSON by the part's name. It is saved with each round and there again before the
        first one; a part that finds nothing under its name begins."""
        self.kept_arrays: dict[str, np.ndarray] = {}
        """The same for arrays, by lower-case words with hyphens. They are read back memory-mapped: writing into one changes a copy."""
        self.live = LiveSettings(self)
        """Takes changes of server.toml over into `settings` and `rules`: look those up when they are needed."""
        self.codec = WeightsChain(self)
        """Takes the weights from round to round, in place: `weights = codec.advance(weights, step)`."""
        self.deliveries = Deliveries(self)
        """Which node holds which weights: `deliveries.used(number, fingerprints)` with every round that is aggregated."""
        chosen = self.settings.privacy
        self.private = (
            PrivateSum(chosen, self.rules.min_nodes, folder.state / "privacy.json", self.emit) if chosen.mechanism == "central" else None
        )
        """Differential privacy, where the settings ask for it."""
        self.grid: Grid | None = None
        self.disk = PatientDisk(folder.path, emit, self.wait)
        """For what is written: it waits for a disk that is full."""
        self.journal = ChainedJournal(self.record.folder(folder) / chain.NAME)

    def emit(self, event: Event) -> None:
        """Write what concerns the run into its journal, and pass it on."""
        try:
            if hasattr(event, "run") or (isinstance(event, Notice) and event.severity != "note"):
                self.disk.insist(lambda: self.journal.append(event.to_json()))
        finally:
            self._pass_on(event)

    def take(self, weights: np.ndarray) -> None:
        """Make `weights` (flat float32) the global ones."""
        self.weights, self.sha256 = weights, updates.weights_sha256(weights)

    @property
    def connected(self) -> Grid:
        """The connection; an error in the program when there is none."""
        if self.grid is None:
            raise RuntimeError("not connected")
        return self.grid

    def online(self) -> list[OnlineNode]:
        """Nodes that are online, in the order of their public keys."""
        return [node for node in self.connected.nodes() if node.online]

    def wait(self, seconds: float) -> None:
        """Sleep, at most until the run is asked to stop, which raises `Stopped`."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            self.control.check()
            time.sleep(min(left, 0.1))


def names(keys: Iterable[bytes]) -> list[str]:
    """Fingerprints of public keys, in their order."""
    return [fingerprint_of(key) for key in keys]
