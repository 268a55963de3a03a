"""A packaged zk0desk for tests: a copy of the product with an artefact's description, and stand-ins for gigabytes of libraries."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from zk0desk.engine.lists import EngineList

TORCH = """
import os
if os.environ.get("STANDIN") == "broken":
    raise ImportError("libcudart.so.13: cannot open shared object file")
__version__ = "2.11.0"
class version:
    cuda = hip = None
class _No:
    @staticmethod
    def is_available():
        return False
class backends:
    mps = _No
cuda = _No
class Tensor(float):
    def double(self): return self
    cpu = double
    def to(self, device): return self
    def __matmul__(self, other): return Tensor(1)
    def __sub__(self, other): return Tensor(os.environ.get("STANDIN") == "wrong")
    def norm(self): return float(self)
def manual_seed(seed): pass
def randn(*shape): return Tensor(1)
"""
"""What the self-test asks of torch; `STANDIN` makes it fail."""


def package(folder: Path, checkout: Path) -> Path:
    """A folder for PYTHONPATH that holds zk0desk as an artefact has it; its `zk0desk/_resources` is what the artefact ships."""
    shutil.copytree(checkout / "zk0desk", folder / "zk0desk", ignore=shutil.ignore_patterns("__pycache__"))
    shipped = folder / "zk0desk" / "_resources"
    shutil.copytree(checkout / "resources", shipped)
    (shipped / "artefact.json").write_text(json.dumps({"version": "0.1.0", "format": "appimage", "release": True}))
    (folder / "torch.py").write_text(TORCH)
    for name, version in (("flwr", "1.41.0"), ("lerobot", "0.6.1"), ("lerobot/policies", ""), ("lerobot/policies/smolvla", "")):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"__version__ = {version!r}\n")
    (folder / "lerobot/policies/smolvla/modeling_smolvla.py").touch()
    return folder


def ship(package: Path, *wanted: EngineList) -> None:
    """Let the artefact bring these lists, and no others."""
    folder = package / "zk0desk" / "_resources" / "engines"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for each in wanted:
        (folder / f"{each.system}-{each.arch}-{each.backend}.json").write_text(each.to_text())
    os.environ["ZK0DESK_ENGINE_LISTS"] = str(folder)
