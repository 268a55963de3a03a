"""Makes what the demo trains: the policy first, then the recordings. Runs as a process of its own, which says what is done."""

from __future__ import annotations

import sys
from pathlib import Path


def main(folder: str, recordings: str, seed: str) -> None:
    """Make `folder`/policy, `folder`/held-out and one recording for each of `recordings` nodes."""
    from zk0desk.training import demo_data

    place = Path(folder)
    demo_data.make_demo_policy(place / "policy", seed=int(seed))
    print("policy", flush=True)
    for number in range(int(recordings)):
        demo_data.make_demo_recording(place / "recordings" / f"node-{number + 1}", node=number, seed=int(seed))
        print(f"recording {number + 1}", flush=True)
    demo_data.make_demo_held_out(place / "recordings" / "held-out", seed=int(seed))
    print("held-out", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4])
