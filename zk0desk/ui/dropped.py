"""What is dropped on the window: an invitation's file or text, as it is handed to the joining page."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QMimeData

from zk0desk.desktop.opening import LONGEST, SCHEME, SUFFIX, is_link


def invitation_in(data: QMimeData, *, any_file: bool = False) -> str:
    """The path of a dropped file or the dropped text, where it is an invitation by its name or beginning; else "".

    `any_file`: a file of any name is taken, but no folder. Only what is dropped is looked at, no file is read.
    """
    for url in data.urls():
        if url.isLocalFile() and (url.path().lower().endswith(SUFFIX) or any_file and not Path(url.toLocalFile()).is_dir()):
            return url.toLocalFile()
        if is_link(url.toString()):
            return url.toString()
    text = data.text() if data.hasText() and not data.hasUrls() else ""
    begin = text[:LONGEST].lower().find(SCHEME)
    return text[begin : begin + LONGEST] if begin >= 0 else ""
