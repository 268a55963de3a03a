"""What every test stands on: a home of its own, no network but loopback, and nothing left behind."""

from __future__ import annotations

import errno
import gc
import ipaddress
import os
import shutil
import socket
import sys
import tempfile
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_SESSION = Path(tempfile.mkdtemp(prefix="zt-"))
os.environ.update({
    "QT_QPA_PLATFORM": "offscreen",
    "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring",
    "ZK0DESK_HOME": str(_SESSION / "home"),
    "HF_HOME": str(_SESSION / "hf"),
    "HF_LEROBOT_HOME": str(_SESSION / "hf" / "lerobot"),
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
})  # fmt: skip
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from zk0desk.quiet import quiet_libraries  # noqa: E402 - the environment comes first

quiet_libraries()

import hypothesis  # noqa: E402
import psutil  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile(
    "zk0desk", deadline=None, database=None, max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)  # fmt: skip
hypothesis.settings.load_profile("zk0desk")

CHECKOUT = Path(__file__).resolve().parent.parent
_PATIENCE = float(os.environ.get("ZK0DESK_TEST_PATIENCE", "5"))
"""Seconds that what a test started has to end after the test."""


def pytest_sessionfinish(session: pytest.Session) -> None:
    shutil.rmtree(_SESSION, ignore_errors=True)


# --- the network ends at loopback ---------------------------------------------------------------------------------

_DOCUMENTATION = [ipaddress.ip_network(net) for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")]
_left_loopback: list[str] = []


def _allowed(address: Any) -> bool:
    if not isinstance(address, tuple):
        return True
    try:
        return ipaddress.ip_address(address[0]).is_loopback
    except ValueError:
        return address[0] in ("localhost", "")


def _guard(method: Callable[..., Any]) -> Callable[..., Any]:
    def connect(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _allowed(address):
            try:
                expected = any(ipaddress.ip_address(address[0]) in net for net in _DOCUMENTATION)
            except ValueError:
                expected = False
            if not expected:
                _left_loopback.append(str(address))
            raise OSError(errno.ENETUNREACH, "the tests reach loopback only")
        return method(self, address)

    return connect


socket.socket.connect = _guard(socket.socket.connect)  # type: ignore[method-assign]
socket.socket.connect_ex = _guard(socket.socket.connect_ex)  # type: ignore[method-assign]


# --- nothing is left behind ---------------------------------------------------------------------------------------


def _processes(mark: str) -> list[psutil.Process]:
    """Processes that carry the test's mark in their environment: children, and orphans of children."""
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.pid != os.getpid()
                and process.environ().get("ZK0DESK_TEST") == mark
                and "resource_tracker" not in " ".join(process.cmdline())
            ):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _listening() -> set[int]:
    return {c.laddr.port for c in psutil.Process().net_connections(kind="inet") if c.status == psutil.CONN_LISTEN and c.laddr}


def _threads() -> set[threading.Thread]:
    # A dummy stands for a thread that Qt or a library made; Python never forgets it, so it says nothing.
    return {t for t in threading.enumerate() if not isinstance(t, threading._DummyThread) and t.name not in ("tqdm_monitor", "MainThread")}


class _QtObjects:
    """Timers and threads of Qt that the test started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._started: list[weakref.ref[Any]] = []
        core = sys.modules.get("PySide6.QtCore")
        if core is not None:
            for kind in (core.QTimer, core.QThread):
                self._watch(monkeypatch, kind, kind.start)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, kind: Any, start: Any) -> None:
        def watched(this: Any, *args: Any) -> Any:
            self._started.append(weakref.ref(this))
            return start(this, *args)

        monkeypatch.setattr(kind, "start", watched)

    def running(self) -> list[str]:
        """What is still running, after deleted objects are gone and threads had time to end."""
        if not self._started or not self._alive():
            return []
        gc.collect()
        return self._alive()

    def _alive(self) -> list[str]:
        import shiboken6
        from PySide6.QtCore import QCoreApplication, QEvent, QThread

        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)
        names = []
        for reference in self._started:
            each = reference()
            if each is None or not shiboken6.isValid(each):
                continue
            if isinstance(each, QThread):
                if not each.wait(int(_PATIENCE * 1000)):
                    names.append(f"QThread {each.objectName()}")
            elif each.isActive():
                names.append(f"{type(each).__name__} of {each.parent()!r}, {each.interval()} ms")
        return names


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home and a temp folder for the test; fails it when a thread, timer, process, socket or temp file stays."""
    tmp_path_factory.getbasetemp()  # made at its first use, which has to be before the temp folder is another one
    own = Path(tempfile.mkdtemp(prefix="zt-", dir=tempfile.gettempdir()))
    temp, mark = own / "tmp", uuid.uuid4().hex
    temp.mkdir()
    monkeypatch.setenv("ZK0DESK_HOME", str(own / "home"))
    monkeypatch.setenv("HF_LEROBOT_HOME", str(own / "lerobot"))
    monkeypatch.setenv("TMPDIR", str(temp))
    monkeypatch.setenv("ZK0DESK_TEST", mark)
    monkeypatch.setattr(tempfile, "tempdir", str(temp))
    threads, ports, qt = _threads(), _listening(), _QtObjects(monkeypatch)
    _left_loopback.clear()
    try:
        yield
        left = qt.running()
        for thread in _threads() - threads:
            thread.join(_PATIENCE)
            if thread.is_alive():
                left.append(f"thread {thread.name}")
        _, alive = psutil.wait_procs(_processes(mark), timeout=_PATIENCE)
        for process in alive:
            try:
                left.append(f"process {process.pid} {' '.join(process.cmdline())[:200]}")
                process.kill()
            except psutil.NoSuchProcess:
                continue
        if _listening() - ports:
            gc.collect()
            left += [f"listening port {port}" for port in _listening() - ports]
        left += [f"temp file {path.name}" for path in temp.iterdir() if "zk0" in path.name]
        left += [f"connection to {address}" for address in _left_loopback]
        if left:
            pytest.fail("The test left behind: " + "; ".join(left), pytrace=False)
    finally:
        shutil.rmtree(own, ignore_errors=True)


# --- material -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The checkout's root."""
    return CHECKOUT


@pytest.fixture(scope="session")
def shared_recordings() -> Path:
    """The folder of real recordings beside the checkout; the test is skipped where there is none."""
    folder = CHECKOUT.parent / "shared" / "recordings"
    if not folder.is_dir():
        pytest.skip("no shared recordings beside the checkout")
    return folder


@pytest.fixture(scope="session")
def demo_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny, real SmolVLA base policy, shared by all tests: read it, never write into it."""
    from zk0desk.training.demo_data import make_demo_policy

    folder = tmp_path_factory.mktemp("policy") / "base"
    make_demo_policy(folder)
    return folder


@pytest.fixture(scope="session")
def demo_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated recording (LeRobotDataset v3.0 with video), shared by all tests: never write into it."""
    from zk0desk.training.demo_data import make_demo_recording

    folder = tmp_path_factory.mktemp("recording") / "node-0"
    make_demo_recording(folder, node=0, seed=0, episodes=2, frames=40)
    return folder
