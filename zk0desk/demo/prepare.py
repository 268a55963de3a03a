"""Makes what the demo trains, as a process of its own, which says what is done: `prepare FOLDER SEED PART...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> None:
    """Make each part in turn under FOLDER: `policy`, `held-out`, or the recording of node number 1, 2, ..."""
    from zk0desk.training import demo_data

    place, seed = Path(arguments[0]), int(arguments[1])
    for part in arguments[2:]:
        if part == "policy":
            demo_data.make_demo_policy(place / "policy", seed=seed)
        elif part == "held-out":
            demo_data.make_demo_held_out(place / "recordings" / "held-out", seed=seed)
        else:
            demo_data.make_demo_recording(place / "recordings" / f"node-{part}", node=int(part) - 1, seed=seed)
        print(part, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
