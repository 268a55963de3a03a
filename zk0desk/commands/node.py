"""`zk0desk node`: the window's node without a window, events as JSON lines."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zk0desk.errors import ExitStatus

if TYPE_CHECKING:
    from types import FrameType

    from zk0desk.control import NodeControl
    from zk0desk.events import Event
    from zk0desk.settings import Settings


def node(
    settings: Annotated[Path | None, typer.Option(help="Settings file; default: the one that the window uses.")] = None,
    invitation: Annotated[Path | None, typer.Option(help="Invitation file (.zk0invite); replaces the settings' invitation.")] = None,
    agree: Annotated[bool, typer.Option("--agree", help="Print what leaves this computer, and agree to it for good.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Leave after one delivered update, or if the server is not reached.")] = False,
    human: Annotated[bool, typer.Option("--human", help="Sentences instead of JSON lines.")] = False,
) -> int:
    """Take part in a federation without a window.

    Trains on the recordings that the settings choose whenever the coordinator sends a round. Each event is a JSON
    object on a line of its own. SIGTERM finishes the round that is under way and leaves; a second SIGTERM, or Ctrl-C,
    stops at once. Exit status: 0 left as asked, 2 something is not chosen or agreed to, 4 unusable recording or policy,
    5 refused by the coordinator's side, 6 not reached (with --once; without, it is called again and again), 7 engine
    missing, 130 Ctrl-C.

    Example: zk0desk node --invitation lab.zk0invite --agree --human
    """
    from zk0desk import settings as settings_file
    from zk0desk.control import NodeControl
    from zk0desk.federation.invitation import Invitation
    from zk0desk.federation.node import Node
    from zk0desk.journal import Journal
    from zk0desk.training.repairs import clean_left_copies

    chosen: Settings = settings_file.load(settings)
    if invitation is not None:
        line = Invitation.read(invitation).to_line()
        chosen = chosen.model_copy(update={"federation": chosen.federation.model_copy(update={"invitation": line})})
    if agree:
        chosen = _agree(chosen, settings)
    control = NodeControl()
    show = _in_words if human else _as_json
    with Journal() as journal:

        def emit(event: Event) -> None:
            journal.record(event)
            show(event)

        clean_left_copies(chosen.recordings)
        runner = Node(chosen, emit=emit, control=control, journal=journal, once=once)
        interrupted = _listen(control)
        runner.run()
    return int(ExitStatus.INTERRUPTED) if interrupted.is_set() else int(ExitStatus.OK)


def _agree(chosen: Settings, path: Path | None) -> Settings:
    """Print the consent's text, and keep in the settings' file that it was agreed to."""
    from zk0desk import settings as settings_file
    from zk0desk.federation.consent import consent_digest, consent_text
    from zk0desk.federation.invitation import Invitation

    invitation = Invitation.parse(chosen.federation.invitation)
    print(consent_text(invitation), file=sys.stderr, flush=True)
    federation = chosen.federation.model_copy(update={"consent": consent_digest(invitation)})
    chosen = chosen.model_copy(update={"federation": federation})
    settings_file.save(chosen, path)
    return chosen


def _listen(control: NodeControl) -> threading.Event:
    """SIGTERM finishes the round, a second one and SIGINT stop now; the event is set by SIGINT."""
    interrupted, asked = threading.Event(), threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            interrupted.set()
        act = control.stop_now if number == signal.SIGINT or asked.is_set() else control.finish_round
        asked.set()
        # The interrupted thread may hold the control's lock.
        threading.Thread(target=act, name="node-signal", daemon=True).start()

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, on_signal)
    return interrupted


def _as_json(event: Event) -> None:
    print(json.dumps(event.to_json()), flush=True)


def _in_words(event: Event) -> None:
    from zk0desk import events

    match event:
        case events.NodeStateChanged():
            text = f"{event.what}. {event.why} {event.then}"
        case events.Notice():
            text = f"{event.severity}: {event.what} {event.why} {event.remedy}"
        case events.Connected():
            text = f"Connected to {event.address}; this node's fingerprint is {event.fingerprint}."
        case events.RoundStarted():
            text = f"Round {event.round} of {event.rounds}: {event.steps} steps on {event.frames} frames."
        case events.StepDone():
            text = f"  step {event.step}/{event.steps}  loss {event.loss:.4f}  {event.seconds:.2f} s"
        case events.MuChanged():
            text = f"{event.what} {event.why}"
        case events.ScheduleDecided():
            text = f"Round {event.round} has learning rate {event.lr:.3g} and mu {event.mu:.3g}. {event.why}"
        case events.UpdateSent():
            text = f"Update of round {event.round} sent: {event.bytes:,} bytes in {event.seconds:.1f} s."
        case events.PrivacySpent():
            whose = "This computer" if event.of == "node" else "The federation"
            text = f"{whose} has spent epsilon {event.epsilon:.3g} of {event.budget:g}, at delta {event.delta:g}."
        case events.FederationMetrics():
            held_out = "" if event.eval_loss is None else f", held-out loss {event.eval_loss:.4f}"
            text = f"Round {event.round} of the federation: {event.nodes} nodes{held_out}."
        case _:
            return
    print(text.strip(), flush=True)
