"""How a federation stands, on a terminal: a plain snapshot, or a view that follows it."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from zk0desk.errors import OperatorError

if TYPE_CHECKING:
    from zk0desk.federation.server_folder import ServerFolder

EVERY_S = 0.5
"""Seconds between two looks at the folder."""
ASK_EVERY_S = 3.0
"""Seconds between two questions to the SuperLink."""
_ORDER = ("quarantined", "refused", "late", "training", "accepted")
_COLOURS = {"accepted": "green", "training": "cyan", "late": "yellow", "refused": "red", "quarantined": "red"}


def watch(server: ServerFolder, *, seconds: float | None = None, console: Console | None = None) -> None:
    """Follow the federation until Ctrl-C, or for `seconds`; without a terminal a snapshot is printed once and again when it changed."""
    from rich.live import Live

    from zk0desk.federation.server_status import StatusReader

    console = console or Console()
    reader, asked = StatusReader(server), _Asked()
    ends = None if seconds is None else time.monotonic() + seconds
    try:
        if not console.is_terminal:
            said = ""
            while ends is None or time.monotonic() < ends:
                facts = reader.read(asked.online(server)).to_json()
                if (text := _text(facts, console)) != said:
                    console.print(text, highlight=False)
                    said = text
                time.sleep(EVERY_S)
            return
        with Live(console=console, auto_refresh=False) as live:
            while ends is None or time.monotonic() < ends:
                live.update(snapshot(reader.read(asked.online(server)).to_json(), console.width), refresh=True)
                time.sleep(EVERY_S)
    finally:
        asked.close()


class _Asked:
    """Asks the SuperLink who is online, in a thread: loading flwr and a SuperLink that is away must not hold up the view."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "zk0desk-online")
        self._question: Future[frozenset[bytes]] | None = None
        self._asked = -ASK_EVERY_S
        self._known: frozenset[bytes] | None = None

    def online(self, server: ServerFolder) -> frozenset[bytes] | None:
        """The last answer; None before there is one, or when the SuperLink does not answer."""
        from zk0desk.federation.server_status import online_keys

        if self._question is not None and self._question.done():
            try:
                self._known = self._question.result()
            except OperatorError:
                self._known = None
            self._question = None
        if self._question is None and time.monotonic() - self._asked >= ASK_EVERY_S:
            self._asked = time.monotonic()
            try:
                running = server.running()
            except OperatorError:
                self._known = None
            else:
                self._question = self._pool.submit(online_keys, running)
        return self._known

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _text(facts: dict[str, Any], console: Console) -> str:
    with console.capture() as captured:
        console.print(snapshot(facts, console.width))
    return captured.get().rstrip("\n")


def snapshot(facts: dict[str, Any], width: int = 80) -> RenderableType:
    """The facts of `ServerStatus.to_json` as text and tables for a terminal of `width` columns."""
    parts: list[RenderableType] = [_head(facts)]
    run = facts["run"]
    if run:
        parts += [*_run(run)]
    if facts["nodes"]:
        parts.append(_nodes(facts["nodes"], width))
    for notice in facts["notices"][-2:]:
        parts.append(Text(f"{clock(notice['time'])}  {notice['what']} {notice.get('why', '')}".rstrip(), "yellow"))
    return Group(*parts)


def _head(facts: dict[str, Any]) -> Text:
    head = Text()
    head.append(facts["federation"], "bold")
    head.append(f" at {facts['address']}")
    head.append(f" (process {facts['pid']})\n" if facts["running"] else ", not running\n", "" if facts["running"] else "red")
    if facts["what"]:
        head.append(f"{facts['state'].replace('-', ' ')}: {facts['what']}\n")
    count = {name: sum(node["status"] == name for node in facts["nodes"]) for name in ("online", "admitted", "waiting")}
    if facts["online-known"]:
        head.append(f"{count['online']} nodes online, {count['admitted']} admitted and away, {count['waiting']} waiting to be admitted")
    else:
        head.append(f"{count['admitted']} nodes admitted, {count['waiting']} waiting to be admitted; who is online is not known")
    return head


def _run(run: dict[str, Any]) -> list[RenderableType]:
    state = run["reason"] if run["reason"] else ("complete" if run["finished"] else "under way")
    first = Text(f"Run {run['run']}: round {run['round']} of {run['rounds']}, {state}")
    if run["seconds-left"] is not None:
        first.append(f"; about {duration(run['seconds-left'])} left")
    lines = [first]
    if run["lr"] is not None:
        schedule = f"Schedule: learning rate {run['lr']:.3g}, mu {run['mu']:.3g}"
        if run["signal"]:
            schedule += f"; {run['signal']}: {run['signal-why']}" if run["signal-why"] else f"; {run['signal']}"
        lines.append(Text(schedule))
    if run["last-loss"] is not None:
        error = f" ± {run['standard-error']:.4f}" if run["standard-error"] else ""
        losses = f"Held-out loss: {run['last-loss']:.4f}{error}"
        if run["best-loss"] is not None:
            losses += f", best {run['best-loss']:.4f} in round {run['best-round']}"
        if run["base-loss"] is not None:
            losses += f", base policy {run['base-loss']:.4f}"
        lines.append(Text(losses))
    if spent := run["epsilon"]:
        lines.append(Text(f"Privacy: epsilon {spent['spent']:.3g} of {spent['budget']:g} spent, at delta {spent['delta']:g}"))
    if run["forgetting"]:
        forgot = ", ".join(f"{name} {rise:+.4f}" for name, rise in run["forgetting"].items())
        lines.append(Text(f"Forgetting since round 0: {forgot}"))
    if run["bytes-up"] or run["bytes-down"]:
        lines.append(Text(f"Sent to nodes {size(run['bytes-down'])}, received from them {size(run['bytes-up'])}"))
    return list(lines)


def _nodes(nodes: list[dict[str, Any]], width: int) -> Table:
    table = Table(box=None, pad_edge=False, expand=False, width=min(width, 140))
    table.add_column("node", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("this round", no_wrap=True)
    table.add_column("loss", justify="right", no_wrap=True)
    table.add_column("why", overflow="ellipsis", no_wrap=True, ratio=1)
    # A terminal may be too low for all of them: those that want to be looked at come first.
    for node in sorted(nodes, key=lambda node: _ORDER.index(node["round"]) if node["round"] in _ORDER else len(_ORDER)):
        loss = "" if node["loss"] is None else f"{node['loss']:.4f}"
        table.add_row(node["fingerprint"], node["status"], Text(node["round"], _COLOURS.get(node["round"], "")), loss, Text(node["why"]))
    return table


def duration(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 12 min, 3 h 20 min, 2 days 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def size(count: float) -> str:
    """Bytes as a person says them."""
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{count / of:.1f} {unit}"
    return f"{count:.0f} bytes"


def clock(moment: float) -> str:
    """A Unix time as hours and minutes here."""
    return time.strftime("%H:%M", time.localtime(moment))
