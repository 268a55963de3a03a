"""Fetches wheels over several connections. What has arrived stays in the file, and a later fetch goes on where it ended.

A wheel has its name only together with the beginning of its hash, and counts when its whole hash is right.
"""

from __future__ import annotations

import hashlib
import queue
import random
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zk0desk.control import NodeControl, Stopped
from zk0desk.engine import certificates
from zk0desk.engine.connection import Connections, Interrupted
from zk0desk.engine.errors import EngineUnreachable, EngineWrongContent, WheelError
from zk0desk.engine.lists import Wheel
from zk0desk.engine.unpack import no_room, write_all
from zk0desk.engine.wheel import PIECE, opened

CONNECTIONS = 4
_GOODBYE_S = 2.0


@dataclass(frozen=True)
class Patience:
    """How often in a row a transfer may fail without a byte; seconds of the first and the longest wait between, and of silence."""

    attempts: int = 7
    first_s: float = 1.0
    longest_s: float = 30.0
    stall_s: float = 30.0

    def wait(self, failures: int) -> float:
        """Seconds before the next attempt after so many failures: doubled each time, in part random, so that not all come at once."""
        return min(self.longest_s, self.first_s * 2 ** (failures - 1)) * random.uniform(0.75, 1.25)


class Source(Protocol):
    """Where wheels come from."""

    def provide(self, wheel: Wheel, control: NodeControl, meter: Meter) -> Path:
        """The file of `wheel`, whole and with the right hash. Runs in a thread of its own beside others."""

    def cut(self) -> None:
        """End what is under way."""


class Meter:
    """Bytes that are there, of all wheels together, and what is in the way at the moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.done = 0
        self.received = 0
        self._troubles: dict[str, str] = {}

    def add(self, count: int, *, received: bool = False) -> None:
        """Count bytes; those that came over the network as `received`."""
        with self._lock:
            self.done += count
            self.received += count if received else 0

    def trouble(self, wheel: str, words: str) -> None:
        """Say what is in the way of a wheel; "" when it goes on."""
        with self._lock:
            self._troubles.pop(wheel, None)
            if words:
                self._troubles[wheel] = words

    @property
    def words(self) -> str:
        """What is in the way, while nothing else comes."""
        with self._lock:
            return next(iter(self._troubles.values()), "")


class Network:
    """Wheels from their addresses, kept in `folder` until they are used."""

    def __init__(self, folder: Path, patience: Patience) -> None:
        self.folder, self._patience = folder, patience
        self._connections = Connections(certificates.context(), patience.stall_s)

    def cut(self) -> None:
        """End what is under way."""
        self._connections.cut()

    def provide(self, wheel: Wheel, control: NodeControl, meter: Meter) -> Path:
        """Fetch `wheel` from where its file ends. Raises what `Connections.read` does, `EngineDiskFull`, and `Stopped`."""
        if not wheel.url:
            raise EngineWrongContent(f"{wheel.file} is missing.", "It comes with zk0desk and is not fetched.", "Install zk0desk again.")
        path = self.folder / kept_name(wheel)
        for last in (False, True):
            digest, there = hash_there(path, wheel.size, control, meter)
            there = self._fetched(wheel, path, digest, there, control, meter)
            if digest.hexdigest() == wheel.sha256:
                return path
            # What a broken line or a full disk left behind is fetched anew, once.
            path.unlink(missing_ok=True)
            meter.add(-there)
            if last:
                raise wrong_hash(wheel, digest.hexdigest())
        raise AssertionError

    def _fetched(self, wheel: Wheel, path: Path, digest: hashlib._Hash, there: int, control: NodeControl, meter: Meter) -> int:
        failures = 0
        while there < wheel.size:
            control.hold()
            before = there
            try:
                with open(path, "ab", buffering=0) as file, closing(self._connections.read(wheel.url, there, wheel.size)) as pieces:
                    for piece in pieces:
                        write_all(file.fileno(), piece)
                        digest.update(piece)
                        there += len(piece)
                        meter.add(len(piece), received=True)
                        if there - before == len(piece):
                            meter.trouble(wheel.file, "")
                        control.check()
                        if control.paused:
                            break
            except Interrupted as error:
                control.check()
                failures = 1 if there > before else failures + 1
                if failures >= self._patience.attempts:
                    remedy = "Look at the network and try again: it goes on where it ended. Or use a folder with the engine."
                    raise EngineUnreachable(f"{wheel.file} cannot be fetched.", f"{error}.", remedy) from error
                wait = max(error.wait, self._patience.wait(failures))
                meter.trouble(wheel.file, f"Waiting {wait:.0f} s to try again: {error}")
                control.sleep(wait)
            except OSError as error:
                raise no_room(error, path.parent) from error
        return there


class Folder:
    """Wheels that lie in folders already; each is read whole and compared with its hash."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = tuple(folders)

    def cut(self) -> None:
        """Nothing is under way but reading."""

    def find(self, wheel: Wheel) -> Path | None:
        """The file of that name and size, if there is one."""
        return next((path for folder in self._folders if (path := folder / wheel.file).is_file()), None)

    def provide(self, wheel: Wheel, control: NodeControl, meter: Meter) -> Path:
        """The wheel's file. `EngineWrongContent` when it is missing, or another."""
        path = self.find(wheel)
        if path is None:
            raise EngineWrongContent(
                f"{wheel.file} is not in the folder.", "It is a part of the engine.", "Choose a folder that holds all parts."
            )
        digest, there = hash_there(path, path.stat().st_size, control, meter)
        meter.add(wheel.size - there)
        if digest.hexdigest() != wheel.sha256 and not written_anew(path, wheel):
            raise wrong_hash(wheel, digest.hexdigest())
        return path


def written_anew(path: Path, wheel: Wheel) -> bool:
    """Whether the file is a wheel that an engine was saved as: its own hash is another, its RECORD is the one that the list names."""
    if not wheel.record:
        return False
    try:
        with opened(path, wheel.file) as content:
            return hashlib.sha256(content.record).hexdigest() == wheel.record
    except WheelError:
        return False


def kept_name(wheel: Wheel) -> str:
    """The name of the file in which what came of a wheel is kept."""
    return f"{wheel.sha256[:16]}-{wheel.file}"


def hash_there(path: Path, most: int, control: NodeControl, meter: Meter) -> tuple[hashlib._Hash, int]:
    """The hash over what is there of a file, and how many bytes that is. A file longer than `most` bytes begins anew."""
    digest, there = hashlib.sha256(), 0
    try:
        if path.stat().st_size > most:
            path.unlink()
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(PIECE):
                control.check()
                digest.update(piece)
                there += len(piece)
                meter.add(len(piece))
    except FileNotFoundError:
        pass
    return digest, there


def wrong_hash(wheel: Wheel, found: str) -> EngineWrongContent:
    """The error of a wheel that is another than the list names."""
    why = f"Its SHA-256 begins with {found[:16]}, not {wheel.sha256[:16]}: it is damaged, or someone changed it."
    return EngineWrongContent(
        f"{wheel.file} is not what the list names.", why, "It was thrown away. Try again, from another network if it stays so."
    )


class Fetching:
    """Wheels as they arrive, in any order. Within it threads fetch; at its end they have ended, whatever happens."""

    def __init__(self, wheels: Iterable[tuple[Wheel, Source]], control: NodeControl, meter: Meter) -> None:
        self._control, self._meter = control, meter
        self._wanted: queue.SimpleQueue[tuple[Wheel, Source]] = queue.SimpleQueue()
        self._arrived: queue.SimpleQueue[tuple[Wheel, Path] | BaseException] = queue.SimpleQueue()
        # The largest first: no single one is then waited for at the end.
        ordered = sorted(wheels, key=lambda each: -each[0].size)
        for each in ordered:
            self._wanted.put(each)
        self._left = len(ordered)
        self._sources = {id(source): source for _, source in ordered}
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"zk0desk-fetch-{n}", daemon=True) for n in range(min(CONNECTIONS, len(ordered)))
        ]

    def __enter__(self) -> Fetching:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for source in self._sources.values():
            source.cut()
        for thread in self._threads:
            # One that still waits for a name or a connection ends by itself, and then fetches nothing.
            thread.join(_GOODBYE_S)

    def arrived(self, wait_s: float) -> tuple[Wheel, Path] | None:
        """The next wheel that is there, or None after `wait_s` seconds. Raises what went wrong with any of them, and `Stopped`."""
        self._control.check()
        try:
            found = self._arrived.get(timeout=wait_s)
        except queue.Empty:
            return None
        if isinstance(found, BaseException):
            raise found
        self._left -= 1
        return found

    @property
    def left(self) -> int:
        """How many wheels have not been handed out yet."""
        return self._left

    def __iter__(self) -> Iterator[tuple[Wheel, Path] | None]:
        while self._left:
            yield self.arrived(0.1)

    def _work(self) -> None:
        while not self._ending.is_set():
            try:
                wheel, source = self._wanted.get_nowait()
            except queue.Empty:
                return
            try:
                self._arrived.put((wheel, source.provide(wheel, _Asked(self._control, self._ending), self._meter)))
            except Stopped:
                return
            except BaseException as error:  # noqa: BLE001 - it is raised where the wheels are waited for
                self._arrived.put(error)
                return


class _Asked(NodeControl):
    """What a thread of a fetch obeys: the control of the whole, and the fetch's own end."""

    def __init__(self, whole: NodeControl, ending: threading.Event) -> None:
        super().__init__()
        self._whole, self._ending = whole, ending

    @property
    def paused(self) -> bool:
        return self._whole.paused

    def check(self) -> None:
        if self._ending.is_set():
            raise Stopped
        self._whole.check()

    def hold(self, until: float = 0.0) -> float:
        began = time.monotonic()
        while self.paused and not self._ending.wait(0.1):
            self.check()
        self.check()
        return time.monotonic() - began

    def sleep(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            self._ending.wait(min(0.1, left))
            self.check()
