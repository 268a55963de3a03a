"""Where zk0desk keeps its files. Light: the command line and the first paint import it.

`ZK0DESK_HOME` puts everything under one folder (a portable installation, tests, several nodes on one computer). `ZK0DESK_ENGINES` names the
folder of the training engines, which several homes can share.
"""

from __future__ import annotations

import os
from pathlib import Path


def _base(kind: str) -> Path:
    home = os.environ.get("ZK0DESK_HOME")
    if home:
        return Path(home).expanduser() / kind
    import platformdirs

    folders = {
        "config": platformdirs.user_config_path,
        "data": platformdirs.user_data_path,
        "cache": platformdirs.user_cache_path,
        "state": platformdirs.user_state_path,
    }
    return folders[kind]("zk0desk", appauthor=False)


def private_folder(path: Path) -> Path:
    """Make `path` (mode 0700) if it is missing, and return it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    """Write `text` to `path` through a temporary file beside it."""
    import tempfile

    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def settings_file() -> Path:
    """The operator's settings, a TOML file with comments."""
    return _base("config") / "settings.toml"


def journal_file() -> Path:
    """The SQLite journal: runs, rounds, metrics, and the ledger of what left this computer."""
    return _base("data") / "journal.sqlite"


def runs_folder() -> Path:
    """Per run: the current global weights and the checkpoint of a round in progress."""
    return _base("data") / "runs"


def policies_folder() -> Path:
    """Policies that were saved or fetched."""
    return _base("data") / "policies"


def engines_folder() -> Path:
    """Training engines that a packaged zk0desk fetched."""
    given = os.environ.get("ZK0DESK_ENGINES")
    return Path(given).expanduser() if given else _base("data") / "engines"


def cache_folder() -> Path:
    """Thumbnails and what else can be made again."""
    return _base("cache")


def prefix_cache_folder() -> Path:
    """What the frozen part of the policy computed for frames. Derived from pictures: mode 0700, and it never travels."""
    return cache_folder() / "frames"


def state_folder() -> Path:
    """Logs, the crash file of faulthandler, window geometry."""
    return _base("state")
