"""`zk0desk demo`: a whole federation on this computer."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zk0desk.errors import ExitStatus

if TYPE_CHECKING:
    from zk0desk.demo.federation import DemoPlan
    from zk0desk.events import Event


def demo(
    headless: Annotated[bool, typer.Option("--headless", help="No window: print events as lines of JSON.")] = False,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rounds of the run.")] = 8,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="The same seed gives the same curve.")] = 0,
    nodes: Annotated[int, typer.Option(min=1, max=16, help="Nodes, the operator's own among them.")] = 3,
    recordings: Annotated[
        list[Path] | None,
        typer.Option(
            help="Train on this recording instead; repeat it. The last of several is held out; a single one is trained on and held out.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep everything that the demo makes in this folder, which is new or empty.", show_default=False)
    ] = None,
    lr: Annotated[float, typer.Option(min=0, max=0.1, help="Learning rate; with 0 nothing is learned.")] = 3e-3,
) -> int:
    """Run a whole federation on this computer and watch it learn.

    Starts a SuperLink with TLS and node authentication, a coordinator with held-out recordings, and the nodes, on
    loopback; nothing leaves this computer. The policy is a tiny but real SmolVLA. With --headless each event is a line of
    JSON, and the last line names the policy's folder. Closing the window or Ctrl-C ends all of it.

    \b
    Example: zk0desk demo --headless --rounds 3 --seed 7
    """
    from zk0desk.demo.federation import DemoPlan

    if keep is not None and (keep.is_file() or (keep.is_dir() and any(keep.iterdir()))):
        raise typer.BadParameter(f"{keep} is not empty. Name a folder that is new or empty.", param_hint="--keep")
    plan = DemoPlan(rounds=rounds, nodes=nodes, seed=seed, recordings=tuple(recordings or ()), keep=keep and keep.absolute(), lr=lr)
    if not headless and not _has_screen():
        print("There is no screen here, so the demo runs without the window.", file=sys.stderr, flush=True)
        headless = True
    if not headless:
        from zk0desk.ui.demo_window import run_demo

        return run_demo(plan)
    return _headless(plan)


def _has_screen() -> bool:
    return sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"))


def _headless(plan: DemoPlan) -> int:
    from zk0desk.demo.federation import DemoFailed, DemoFederation
    from zk0desk.events import DemoFinished

    writing = threading.Lock()

    def show(source: str, event: Event) -> None:
        data = event.to_json()
        if not isinstance(event, DemoFinished):
            data = {"source": source, **data}
            try:
                with writing:
                    print(json.dumps(data), flush=True)
            except BrokenPipeError:
                unread.set()
                federation.interrupt()

    interrupted, unread = threading.Event(), threading.Event()
    federation = DemoFederation(plan, show, own_node=True)

    def on_signal(_number: int, _frame: object) -> None:
        interrupted.set()
        federation.interrupt()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        federation.start()
        done = federation.wait()
    except DemoFailed:
        if interrupted.is_set():
            return int(ExitStatus.INTERRUPTED)
        if unread.is_set():
            # Whoever read the events went away (`zk0desk demo --headless | head`).
            raise BrokenPipeError from None
        raise
    finally:
        federation.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    last = done.to_json()
    del last["time"]
    print(json.dumps(last), flush=True)
    return int(ExitStatus.OK)
