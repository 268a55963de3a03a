"""The thread that decodes the pictures of episodes. Only the newest request is worked on; what was overtaken is dropped."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, Signal, SignalInstance
from PySide6.QtGui import QImage

from zk0desk.errors import OperatorError

if TYPE_CHECKING:
    import numpy as np

    from zk0desk.training.episode_frames import EpisodeFrames

log = logging.getLogger(__name__)

STOP_S = 2.0
"""How long its end is waited for: a disk in a network that is gone may never answer."""
WIDTH = 960
"""Pictures are made no wider than this: more cannot be seen beside each other."""


@dataclass(frozen=True)
class Shot:
    """What all cameras saw at a frame of the episode at `place` in the list; words where a picture cannot be had."""

    sequence: int
    place: int
    frame: int
    pictures: dict[str, QImage | str]


class Player(QObject):
    """Lists the episodes of `recording`, then decodes what is asked for. Its signals carry what `training.episode_frames` gives.

    Its thread keeps neither the window nor the process where a disk does not answer.
    """

    listed = Signal(object)
    rows = Signal(int, object)
    shot = Signal(object)
    failed = Signal(object)

    def __init__(self, recording: Path) -> None:
        super().__init__()
        self._thread = threading.Thread(target=self.run, name="player", daemon=True)
        self._recording = recording
        self._changed = threading.Condition()
        self._wanted: tuple[int, int, int] | None = None
        self._sequence = 0
        self._stopping = False

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether its thread lives."""
        return self._thread.is_alive()

    def ask(self, place: int, frame: int) -> int:
        """Ask for a frame of the episode at `place`; what was asked before and is not begun is dropped. Gives the request's number."""
        with self._changed:
            self._sequence += 1
            self._wanted = (self._sequence, place, frame)
            self._changed.notify()
            return self._sequence

    def stop(self) -> None:
        """End the thread, which decodes at most one picture to its end; it is waited for no longer than `STOP_S`."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def run(self) -> None:
        """Called in the new thread."""
        try:
            self._work()
        except OperatorError as error:
            self._tell(self.failed, error)
        except Exception as error:  # whatever goes wrong there must be told
            log.exception("the player failed")
            why = f"{type(error).__name__}: {error}"[:500]
            self._tell(self.failed, OperatorError("The episodes cannot be shown.", why, "The log has more."))

    def _tell(self, signal: SignalInstance, *values: object) -> None:
        if not self._stopping:
            signal.emit(*values)

    def _work(self) -> None:
        from zk0desk.training.episode_frames import EpisodeFrames, list_episodes

        listed = list_episodes(self._recording)
        self._tell(self.listed, listed)
        frames: EpisodeFrames | None = None
        shown = -1
        while (wanted := self._next()) is not None:
            sequence, place, frame = wanted
            if frames is None or place != shown:
                if frames is not None:
                    frames.close()
                frames, shown = EpisodeFrames(self._recording, listed.episodes[place], listed.info), place
                self._look(frames, sequence, place, frame)
                self._tell_rows(frames, place)  # the picture comes first
            else:
                self._look(frames, sequence, place, frame)
        if frames is not None:
            frames.close()

    def _next(self) -> tuple[int, int, int] | None:
        with self._changed:
            while self._wanted is None and not self._stopping:
                self._changed.wait()
            wanted, self._wanted = self._wanted, None
            return None if self._stopping else wanted

    def _look(self, frames: EpisodeFrames, sequence: int, place: int, frame: int) -> None:
        pictures: dict[str, QImage | str] = {}
        for camera in frames.cameras:
            if self._stopping:
                return
            try:
                pictures[camera] = _image(frames.picture(camera, frame, WIDTH))
            except (OperatorError, IndexError) as error:
                pictures[camera] = str(error)
        self._tell(self.shot, Shot(sequence, place, frame, pictures))

    def _tell_rows(self, frames: EpisodeFrames, place: int) -> None:
        try:
            self._tell(self.rows, place, frames.rows())
        except OperatorError as error:
            self._tell(self.rows, place, error)


def _image(picture: np.ndarray) -> QImage:
    height, width, _ = picture.shape
    return QImage(picture.tobytes(), width, height, 3 * width, QImage.Format.Format_RGB888).copy()
