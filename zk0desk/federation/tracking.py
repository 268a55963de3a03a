"""Weights & Biases, when the coordinator asks for it: losses and shares of each round. Off by default; offline sends nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zk0desk.errors import EngineMissingError
from zk0desk.events import Evaluated, Event, RoundAggregated, RunStarted, Sink
from zk0desk.federation.server_folder import ServerFolder


@contextmanager
def tracked(folder: Path | str, emit: Sink) -> Iterator[Sink]:
    """A sink that passes events on to `emit` and, when the settings ask for it, logs rounds to Weights & Biases.

    Raises `EngineMissingError` when wandb is asked for and not installed.
    """
    server = ServerFolder(folder)
    wanted = server.settings().tracking
    if wanted.wandb == "off":
        yield emit
        return
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise EngineMissingError(
            "Weights & Biases is not installed.", "`tracking.wandb` asks for it.", "Install zk0desk[wandb], or set tracking.wandb to off."
        ) from error
    run: Any = None
    mode: Any = wanted.wandb

    def sink(event: Event) -> None:
        nonlocal run
        emit(event)
        if isinstance(event, RunStarted):
            run = wandb.init(
                project=wanted.wandb_project, id=event.run, resume="allow", mode=mode, dir=str(server.state), config=event.settings,
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True),
            )  # fmt: skip
        elif run is not None and isinstance(event, RoundAggregated):
            largest = max(event.shares.values(), default=0.0)
            run.log({"round": event.round, "train-loss": event.train_loss, "update-norm": event.update_norm, "largest-share": largest})
        elif run is not None and isinstance(event, Evaluated):
            run.log({"round": event.round, "eval-loss": event.loss})

    try:
        yield sink
    finally:
        if run is not None:
            run.finish()
        wandb.teardown()
