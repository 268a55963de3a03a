"""Loads torch and LeRobot beside a window that has to stay answerable.

Two things hold Python's lock for hundreds of milliseconds meanwhile: full garbage collections, each walking the
hundred thousands of objects that the imports make, and the dynamic linker, which `import` calls with the lock held.
So collection rests, and the linker is called without the lock first; `import` then finds the libraries in place.
Measured by `benchmarks/window.py`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from zk0desk.engine.missing import missing
from zk0desk.quiet import quiet_libraries

LIBRARIES = {
    "torch": ("lib/libtorch_global_deps.so", "lib/libc10.so", "lib/libtorch_cpu.so", "lib/libtorch.so", "lib/libtorch_python.so"),
    "pyarrow": ("libarrow.so.*", "libarrow_compute.so.*", "libarrow_acero.so.*", "libparquet.so.*", "libarrow_dataset.so.*"),
}
"""The large libraries of a package, in the order in which they need each other."""
VISIBLE = "lib/libtorch_global_deps.so"
"""Linked with its symbols visible to all, as torch itself asks for it."""
ENGINE = (
    "torch",
    "lerobot.policies.smolvla.modeling_smolvla",
    "lerobot.policies.smolvla.processor_smolvla",
    "lerobot.datasets.lerobot_dataset",
    "zk0desk.training.trainer",
    "zk0desk.training.evaluation",
)
"""What training imports sooner or later."""

LINK_LIMIT_S = 10.0
"""How long the end of the process waits for a library that is being linked."""

_lock = threading.Lock()
_linking, _ending = threading.Lock(), threading.Event()
_loading = 0


def load_engine() -> None:
    """Import all that training needs. Takes some ten seconds of a core the first time. `EngineMissingError` where it cannot be."""
    if all(name in sys.modules for name in ENGINE):
        return
    quiet_libraries()
    try:
        with gentle_imports(*LIBRARIES):
            for name in ENGINE:
                importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise missing("The training engine cannot be loaded.", f"{error}.") from error


@contextlib.contextmanager
def gentle_imports(*packages: str) -> Iterator[None]:
    """Import much at once inside. `packages` are linked first; garbage collection rests, and never looks at what was imported again."""
    global _loading
    with _lock:
        _loading += 1
        gc.disable()
    try:
        for package in packages:
            link(package)
        yield
    finally:
        with _lock:
            _loading -= 1
            if not _loading:
                gc.freeze()
                gc.enable()


def link(package: str) -> None:
    """Link the libraries of `package` into this process without holding Python's lock. Does nothing where that is not known to be right."""
    if sys.platform != "linux" or package in sys.modules:
        return
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return
    try:
        dlopen = ctypes.CDLL(None).dlopen  # called as a foreign function, it runs without the lock
    except (OSError, AttributeError):
        return
    dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    for pattern in LIBRARIES[package]:
        for path in Path(spec.origin).parent.glob(pattern):
            with _linking:
                if _ending.is_set():
                    return
                # What cannot be linked here, the import meets again and says why.
                dlopen(os.fsencode(path), os.RTLD_NOW | (os.RTLD_GLOBAL if pattern == VISIBLE else os.RTLD_LOCAL))


@atexit.register
def _end() -> None:
    """Let a library that is being linked come to its end: its constructors must not run beside the destructors of a process that exits."""
    _ending.set()
    _linking.acquire(timeout=LINK_LIMIT_S)
