"""The self-test's own process: imports what trains and multiplies two matrices on the device. The last line of its output is JSON.

Called as `python -m zk0desk.engine.selftest_child [FOLDER]`, with the folder of the engine to test.
"""

from __future__ import annotations

import json
import sys

from zk0desk.engine import activation
from zk0desk.quiet import quiet_libraries

SIZE = 512


def main() -> None:
    """Say what could be imported, on which device was computed, and whether it was right."""
    if len(sys.argv) > 1:
        activation.use(sys.argv[1])
    quiet_libraries()
    import torch

    told = {"versions": {"torch": torch.__version__}, "cuda": torch.version.cuda, "hip": torch.version.hip, "device": "cpu", "error": ""}
    import flwr
    import lerobot
    import lerobot.policies.smolvla.modeling_smolvla

    told["versions"] |= {"lerobot": lerobot.__version__, "flwr": flwr.__version__, "python": sys.version.split()[0]}
    seen = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    told["sees"] = seen
    try:
        told["wrong"] = _multiplied(torch, seen)
        told["device"] = seen
        told["name"] = torch.cuda.get_device_name() if seen == "cuda" else ""
    except Exception as error:  # noqa: BLE001 - whatever a driver says is what the person is told
        told["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    print(json.dumps(told), flush=True)


def _multiplied(torch, device: str) -> float:  # type: ignore[no-untyped-def]
    """How far a product of two matrices on `device` is from the one in float64 on the processor, relative."""
    torch.manual_seed(0)
    left, right = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    right_answer = left.double() @ right.double()
    found = (left.to(device) @ right.to(device)).cpu().double()
    return float((found - right_answer).norm() / right_answer.norm())


if __name__ == "__main__":
    main()
