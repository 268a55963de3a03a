"""A file behind an address, read in parts: what is in a wheel is told by its end, without the gigabytes before it."""

from __future__ import annotations

import io
import urllib.request

from zk0build.trouble import BuildError

_PART = 256 * 1024


class NoPartsError(Exception):
    """The server gives whole files only."""


class FileAfar(io.RawIOBase):
    """The file of `size` bytes at `url`, read by HTTP Range. NoPartsError when the server has no such thing, BuildError when it fails."""

    def __init__(self, url: str, size: int) -> None:
        super().__init__()
        self._url, self._size, self._at = url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        last = min(self._at + len(buffer), self._size) - 1
        if last < self._at:
            return 0
        request = urllib.request.Request(self._url, headers={"Range": f"bytes={self._at}-{last}", "Accept-Encoding": "identity"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                if answer.status != 206:
                    raise NoPartsError
                data = answer.read()
        except OSError as error:
            raise BuildError(f"{self._url} could not be read.", str(error), "Build again when the index answers.") from error
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def file_afar(url: str, size: int) -> io.BufferedReader:
    """The file at `url`, to be read like one that is here."""
    return io.BufferedReader(FileAfar(url, size), _PART)
