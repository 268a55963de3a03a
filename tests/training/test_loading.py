"""Loading the engine: the collector rests meanwhile, and what is missing is said."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from zk0desk.errors import EngineMissingError
from zk0desk.training import loading


def test_the_collector_rests_while_anyone_imports_and_comes_back():
    with loading.gentle_imports():
        with loading.gentle_imports():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_import_that_fails_brings_the_collector_back_and_says_what_to_do(monkeypatch):
    monkeypatch.setattr(loading, "ENGINE", ("zk0desk.no_such_module",))
    with pytest.raises(EngineMissingError) as raised:
        loading.load_engine()
    assert "no_such_module" in raised.value.why
    assert "pip install" in raised.value.remedy
    assert gc.isenabled()


@pytest.mark.skipif(sys.platform != "linux", reason="the libraries are linked beforehand on Linux only")
def test_libraries_that_were_linked_beforehand_are_those_that_the_import_uses():
    code = """
import sys
from pathlib import Path
from zk0desk.training.loading import LIBRARIES, link
link("pyarrow")
def mapped(): return {line.split()[-1] for line in open("/proc/self/maps") if "/pyarrow/lib" in line}
before = mapped()
import pyarrow.parquet, pyarrow.compute
assert not {m for m in sys.modules if m.split(".")[0] == "torch"}
print(len(before), sorted(mapped() - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    number, others = done.stdout.strip().split(" ", 1)
    assert int(number) >= 2
    assert "libparquet" not in others and "libarrow.so" not in others


@pytest.mark.parametrize("seconds", [0.0, 0.03, 0.1, 0.2, 0.4, 0.8])
def test_a_process_that_ends_while_a_library_is_linked_ends_well(seconds: float):
    code = f"""
import threading, time
from zk0desk.training.loading import link
threading.Thread(target=link, args=("torch",), daemon=True).start()
time.sleep({seconds})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
