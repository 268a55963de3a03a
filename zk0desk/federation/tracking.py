"""Weights & Biases, when the coordinator asks for it: losses and shares of each round. Off by default; offline sends nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zk0desk.errors import EngineMissingError
from zk0desk.events import Evaluated, Event, RoundAggregated, RoundOpened, RunStarted, ScheduleDecided, Sink
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
    base: dict[str, float] = {}
    mode: Any = wanted.wandb

    def sink(event: Event) -> None:
        nonlocal run
        emit(event)
        if isinstance(event, Evaluated) and event.round == 0:
            base.update(event.retention)
        if isinstance(event, RunStarted):
            run = wandb.init(
                project=wanted.wandb_project, id=event.run, resume="allow", mode=mode, dir=str(server.state), config=event.settings,
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True),
            )  # fmt: skip
            run.define_metric("*", step_metric="round")
        elif run is not None and (values := logged_values(event, base)):
            run.log(values)

    try:
        yield sink
    finally:
        if run is not None:
            run.finish()
        wandb.teardown()


def logged_values(event: Event, base: Mapping[str, float]) -> dict[str, Any]:
    """What is logged of an event, by its name in W&B (docs/coordinators.md); empty for most. `base`: the retention losses of round 0."""
    match event:
        case RoundOpened():
            return {"round": event.round, "lr": event.lr, "proximal-mu": event.mu, "nodes": len(event.nodes)}
        case ScheduleDecided():
            return {"round": event.round, "schedule-signal": event.signal}
        case RoundAggregated():
            largest = max(event.shares.values(), default=0.0)
            mean = {} if event.train_loss is None else {"train-loss": event.train_loss}
            return {"round": event.round, **mean, "update-norm": event.update_norm, "largest-share": largest}
        case Evaluated():
            each = {f"eval-loss/{name}": loss for name, loss in event.recordings.items()}
            known = {f"retention-loss/{name}": loss for name, loss in event.retention.items()}
            risen = {f"forgetting/{name}": loss - base[name] for name, loss in event.retention.items() if name in base}
            whole = {"eval-loss": event.loss, "eval-loss-standard-error": event.standard_error}
            return {"round": event.round, **whole, **each, **known, **risen}
    return {}
