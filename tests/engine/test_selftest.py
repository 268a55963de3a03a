"""The self-test runs in a process of its own and tells in words what it found."""

from __future__ import annotations

import threading

import pytest

from tests.engine.wheel_parts import list_of, write_wheel
from zk0desk.control import NodeControl, Stopped
from zk0desk.engine import bytecode, selftest
from zk0desk.engine.progress import Progress

TORCH = """
import time
__version__ = "9"
class version: cuda, hip = "13.0", None
class Matrix:
    def __init__(self, value): self.value = value
    def double(self): return self
    def cpu(self): return self
    def to(self, device): {device}
    def __matmul__(self, other): return Matrix(self.value * other.value)
    def __sub__(self, other): return Matrix(self.value - other.value)
    def __truediv__(self, other): return self.value / other.value
    def norm(self): return Matrix(abs(self.value))
def manual_seed(number): {seed}
def randn(*size): return Matrix(3.0)
class cuda:
    is_available = staticmethod(lambda: True)
    get_device_name = staticmethod(lambda: "RTX 4090")
"""
PARTS = {
    "lerobot/__init__.py": "__version__ = '8'", "lerobot/policies/__init__.py": "", "lerobot/policies/smolvla/__init__.py": "",
    "lerobot/policies/smolvla/modeling_smolvla.py": "print('a warning of its own')", "flwr.py": "__version__ = '7'",
}  # fmt: skip


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Libraries of these names that behave like those on a computer that is not here."""

    def put(device: str = "return self", seed: str = "pass", **more: str) -> None:
        for name, text in {**PARTS, "torch.py": TORCH.format(device=device, seed=seed), **more}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return put


def test_a_gpu_that_computes_right(stand_in):
    stand_in()
    found = selftest.run(None)
    assert (found.ok, found.usable, found.device, found.build) == (True, True, "cuda", "cuda 13.0")
    assert found.sentence == "The engine works: torch 9, LeRobot 8 and flwr 7, computing on the GPU RTX 4090."


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("raise RuntimeError('CUDA error: no kernel image is available')", "RuntimeError: CUDA error: no kernel image is available"),
        ("return Matrix(self.value * 1.2)", "came out wrong by 44 %"),
    ],
)
def test_a_gpu_that_does_not_compute_is_told_with_the_way_to_the_processor(stand_in, device, words):
    stand_in(device)
    found = selftest.run(None)
    assert (found.ok, found.usable) == (False, True)
    assert words in found.sentence and "--backend cpu" in found.remedy


def test_a_library_that_cannot_be_loaded_is_told_in_its_own_words(stand_in, monkeypatch):
    stand_in(**{"flwr.py": "raise OSError('libssl.so.3: cannot open shared object file')"})
    found = selftest.run(None)
    assert (found.ok, found.usable) == (False, False)
    assert "OSError: libssl.so.3" in found.sentence and found.remedy


def test_one_that_hangs_is_ended_after_its_time(stand_in):
    stand_in(seed="time.sleep(600)")
    found = selftest.run(None, limit_s=1)
    assert not found.usable and "was not done within 1 s" in found.sentence


def test_a_person_may_stop_it(stand_in):
    stand_in(seed="time.sleep(600)")
    control = NodeControl()
    threading.Timer(0.3, control.stop_now).start()
    with pytest.raises(Stopped):
        selftest.run(None, control)


@pytest.mark.long
def test_the_engine_of_this_environment_works():
    found = selftest.run(None)
    assert found.ok, found.sentence
    assert found.versions["torch"] and found.seconds < 120


# --- bytecode


def test_bytecode_is_made_where_python_looks_for_it(wanted, get, tmp_path, monkeypatch):
    engine = get(wanted).engine
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path / "cache"))
    told: list[Progress] = []
    assert bytecode.compile_modules(engine, control=NodeControl(), told=told.append) == 3
    assert {path.name for path in (tmp_path / "cache").rglob("*.pyc")} == {"small.cpython-312.pyc", "__init__.cpython-312.pyc"}
    assert not list(engine.site.rglob("*.pyc")) and told[-1].done == told[-1].total == 3


def test_a_module_that_cannot_be_compiled_and_one_that_is_compiled_are_left(shelf, get, monkeypatch):
    engine = get(list_of([write_wheel(shelf, "one", {"one/a.py": b"x = 1", "one/template.py": b"{{ no python }}"})]), source=shelf).engine
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    stamps = set()
    for _ in range(2):
        bytecode.compile_modules(engine, control=NodeControl())
        (compiled,) = engine.site.rglob("*.pyc")
        stamps.add(compiled.stat().st_mtime_ns)
    assert compiled.name == "a.cpython-312.pyc" and len(stamps) == 1
