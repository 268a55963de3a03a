"""The three files of an open shelf: its description, its entries, its index. Raises OSError; the shelf turns that into misses."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from zk0desk import folders
from zk0desk.training.prefix_files import open_for_both, open_to_read, read_at, say_in_use, still_at, write_at
from zk0desk.training.prefix_index import HEADER_BYTES, WORD, Layout, describe, parse_layout, word_at

ABOUT, ENTRIES, INDEX = "shelf.json", "entries.bin", "index.bin"


class ShelfFiles:
    """A shelf's files, opened. `trouble` is why they cannot be written, where they can only be read, else None.

    What is missing or belongs to another layout is made anew. `touch` False: this opening is no use that the order of removal goes by.
    OSError where even reading is not possible.
    """

    def __init__(self, folder: Path, layout: Layout, about: Mapping[str, Any], *, touch: bool = True) -> None:
        self.folder, self.layout = folder, layout
        self._lock = threading.Lock()
        self._users, self._closed = 0, False
        self.trouble: OSError | None = None
        try:
            self.entries, self.index = self._opened(about, touch)
        except OSError as error:
            self.trouble = error
            self._open_to_read()

    @property
    def writable(self) -> bool:
        """Whether entries can be added."""
        return self.trouble is None

    def _open_to_read(self) -> None:
        assert self.trouble is not None
        try:
            self.entries, self.index = _both(open_to_read, self.folder)
        except OSError:
            raise self.trouble from None
        if not self._header_is_ours():
            self._shut()
            raise self.trouble
        say_in_use(self.entries)

    def _opened(self, about: Mapping[str, Any], touch: bool) -> tuple[int, int]:
        for _ in range(5):  # somebody may be about to remove the folder
            folders.private_folder(self.folder.parent)
            if folders.private_folder(self.folder).stat().st_mode & 0o077:
                self.folder.chmod(0o700)
            descriptors = _both(open_for_both, self.folder)
            say_in_use(descriptors[0])
            if still_at(descriptors[0], self.folder / ENTRIES):
                break
            for each in descriptors:
                os.close(each)
        else:
            raise FileNotFoundError(f"{self.folder} is removed again and again")
        self.entries, self.index = descriptors
        try:
            if not self._header_is_ours():
                os.ftruncate(self.index, 0)
                write_at(self.index, self.layout.header(), 0)
            self._describe(about, touch)
        except OSError:
            self._shut()
            raise
        return descriptors

    def _header_is_ours(self) -> bool:
        there = bytearray(HEADER_BYTES)
        return read_at(self.index, there, 0) == HEADER_BYTES and there == self.layout.header()

    def _describe(self, about: Mapping[str, Any], touch: bool) -> None:
        path, text = self.folder / ABOUT, describe(self.layout, about)
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.read_text(encoding="utf-8") == text:
                if touch:
                    os.utime(path)  # when it was last used
                return
        write_whole(path, text)

    @contextmanager
    def used(self) -> Iterator[bool]:
        """While this lasts the files stay open; False when they are closed already."""
        with self._lock:
            if self._closed:
                usable = False
            else:
                usable, self._users = True, self._users + 1
        try:
            yield usable
        finally:
            if usable:
                with self._lock:
                    self._users -= 1
                    if self._closed and not self._users:
                        self._shut()

    def close(self) -> None:
        """Close the files, as soon as nobody reads or writes any more."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if not self._users:
                self._shut()

    def _shut(self) -> None:
        for each in (self.entries, self.index):
            with contextlib.suppress(OSError):  # a network's disk tells of a full disk here; checksums find what is missing
                os.close(each)

    @property
    def in_place(self) -> bool:
        """Whether the folder still holds these files."""
        return still_at(self.entries, self.folder / ENTRIES) and still_at(self.index, self.folder / INDEX)

    def word(self, row: int) -> int:
        """The checksum of entry `row`, 0 where none is kept."""
        word = bytearray(WORD)
        return int.from_bytes(word, "little") if read_at(self.index, word, word_at(row)) == WORD else 0

    def set_word(self, row: int, word: int) -> None:
        """Write the checksum of entry `row`."""
        write_at(self.index, word.to_bytes(WORD, "little"), word_at(row))

    def words(self) -> np.ndarray:
        """All checksums, (entries,) uint64."""
        words = np.zeros(self.layout.entries, "<u8")
        whole = read_at(self.index, words.view(np.uint8), HEADER_BYTES) // WORD
        words[whole:] = 0
        return words


def read_description(folder: Path) -> tuple[Layout, dict[str, Any]] | None:
    """Layout and `about` of the shelf in `folder`; None where its description is missing, damaged or another's."""
    try:
        parsed = parse_layout((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return parsed if parsed and parsed[0].name == folder.name else None


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path`, all of it or nothing, mode 0600."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _both(how: Any, folder: Path) -> tuple[int, int]:
    entries = how(folder / ENTRIES)
    try:
        return entries, how(folder / INDEX)
    except OSError:
        os.close(entries)
        raise
