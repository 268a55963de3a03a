"""A disk that is full, a folder that is read-only, a port that is taken: a sentence, and nothing is lost."""

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.federation.coordinator_parts import make_server
from tests.federation.offline_parts import OfflineRun, conduct
from zk0desk.control import Stopped
from zk0desk.federation import chain
from zk0desk.federation.audit import audit
from zk0desk.federation.chain import ChainedJournal
from zk0desk.federation.run_record import records
from zk0desk.federation.server_folder import Running, ServerNotRunningError, write_atomically
from zk0desk.settings import save

pytestmark = pytest.mark.timeout(120)


class SmallDisk:
    """A disk that can be filled: a small tmpfs where mounting is permitted, else a limit of what a file may hold."""

    def __init__(self, path: Path, size: str) -> None:
        self.path = path
        path.mkdir()
        self.mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], capture_output=True).returncode == 0

    def fill(self) -> None:
        """No byte is left."""
        if not self.mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return
        with contextlib.suppress(OSError), (self.path / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    def free(self) -> None:
        """There is room again."""
        if not self.mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (self.path / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        """Take it away."""
        self.free()
        if self.mounted:
            subprocess.run(["umount", "-l", self.path], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    made = SmallDisk(tmp_path / "disk", "4m")
    yield made
    made.close()


@contextlib.contextmanager
def in_thread(run: OfflineRun) -> Iterator[threading.Thread]:
    """A round that is conducted meanwhile; when the block ends it has to end too."""

    def act() -> None:
        with contextlib.suppress(Stopped):
            run.round()

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield thread
    finally:
        run.control.stop_now()
        thread.join(20)


def test_a_full_disk_is_said_once_and_waited_for_and_the_round_is_the_same(tmp_path, disk):
    undisturbed = conduct(make_server(tmp_path / "one"), 3)
    folder = make_server(disk.path)

    def watch(event) -> None:
        if event.name == "round-aggregated" and event.round == 2:
            disk.fill()

    conduct(folder, 3, until=1)
    run = OfflineRun(folder, 3, watch)
    with in_thread(run) as thread:
        told = run.events.wait_for(lambda event: getattr(event, "code", "") == "disk-trouble")
        assert "full" in told.why and "room" in told.remedy
        run.events.wait_for(lambda event: getattr(event, "state", "") == "waiting-for-disk")
        assert thread.is_alive()
        assert [path.name for path in records(folder)[0].folder(folder).glob("round-*")] == ["round-0001"]
        disk.free()
        thread.join(20)
        assert not thread.is_alive()
    assert run.events.wait_for(lambda event: getattr(event, "code", "") == "disk-again")
    assert len([event for event in run.events if getattr(event, "code", "") == "disk-trouble"]) == 1
    assert run.state.sha256 == undisturbed[1]
    run.close()
    assert conduct(folder, 3) == undisturbed[2:]
    assert audit(folder, records(folder)[0]).findings == []


def test_an_entry_that_the_full_disk_does_not_take_is_not_half_in_the_journal(disk):
    journal = ChainedJournal(disk.path / "journal.jsonl")
    disk.fill()
    with pytest.raises(OSError, match="No space left|File too large"):
        for _ in range(1000):
            journal.append({"event": "reply-accepted", "why": "x" * 100})
    length = journal.length
    disk.free()
    journal.append({"event": "run-started"})
    assert chain.breaks(disk.path / "journal.jsonl", {"run.json": (length + 1, journal.head)}) == []
    journal.close()


def test_a_run_that_waits_for_the_disk_can_be_stopped_and_goes_on_later(tmp_path, disk):
    undisturbed = conduct(make_server(tmp_path / "one"), 3)
    folder = make_server(disk.path)
    run = OfflineRun(folder, 3, lambda event: disk.fill() if event.name == "round-aggregated" else None)
    with in_thread(run):
        run.events.wait_for(lambda event: getattr(event, "code", "") == "disk-trouble")
    run.close()
    disk.free()
    assert conduct(folder, 3) == undisturbed
    assert audit(folder, records(folder)[0]).findings == []


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be made in `folder`. root may write whatever its mode says, so then it is made immutable."""
    if os.geteuid() != 0:
        mode = folder.stat().st_mode
        folder.chmod(0o500)
        try:
            yield
        finally:
            folder.chmod(mode)
        return
    if not shutil.which("chattr") or subprocess.run(["chattr", "+i", folder], capture_output=True).returncode:
        pytest.skip("root, and this file system has no immutable folders")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)


def test_a_folder_that_becomes_read_only_is_said_and_waited_for(tmp_path):
    undisturbed = conduct(make_server(tmp_path / "one"), 2)
    folder = make_server(tmp_path / "other")
    with read_only(tmp_path / "one"):
        pass  # or the test is skipped
    with contextlib.ExitStack() as closed:

        def watch(event) -> None:
            if event.name == "round-aggregated":
                closed.enter_context(read_only(run.state.record.folder(folder)))

        run = OfflineRun(folder, 2, watch)
        with in_thread(run) as thread:
            told = run.events.wait_for(lambda event: getattr(event, "code", "") == "disk-trouble")
            assert "writable" in told.remedy
            closed.close()
            thread.join(20)
    run.close()
    assert run.state.sha256 == undisturbed[0]
    assert conduct(folder, 2) == undisturbed[1:]


def zk0desk(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "zk0desk", "server", *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_a_server_in_a_folder_that_is_read_only_says_so_and_does_not_start(tmp_path):
    folder = make_server(tmp_path)
    with read_only(folder.state):
        done = zk0desk("start", folder.path)
    assert done.returncode == 1
    assert f"{folder.path} cannot be written to." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_named_and_nothing_is_left_running(tmp_path):
    folder = make_server(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = folder.settings()
        port = taken.getsockname()[1]
        save(settings.model_copy(update={"network": settings.network.model_copy(update={"port": port})}), folder.settings_path)
        done = zk0desk("start", folder.path)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "network.port" in done.stderr
    with pytest.raises(ServerNotRunningError):
        folder.running()


def test_whether_a_server_runs_depends_on_no_clock_and_no_process_id(tmp_path):
    from zk0desk import process_lock
    from zk0desk.federation.server_folder import ServerFolderError

    folder = make_server(tmp_path)
    for started in (0.0, 4e9):
        write_atomically(folder.running_path, json.dumps(vars(Running(os.getpid(), "127.0.0.1", 1, 2, "secret", started))))
        with pytest.raises(ServerNotRunningError):
            folder.running()
        with process_lock.held(folder.lock_path, ServerFolderError("held")):
            assert folder.running().started == started
            with pytest.raises(ServerFolderError), process_lock.held(folder.lock_path, ServerFolderError("held"), wait_s=0.1):
                pass
