"""After zk0desk was moved: the entries that still name its old place get the new one."""

from __future__ import annotations

from zk0desk.desktop import menu
from zk0desk.desktop.autostart import BACKGROUND, Autostart, autostart, switch_on
from zk0desk.desktop.launcher import Launcher, launcher, moved_from


def follow_the_move(now: Launcher | None = None, start: Autostart | None = None) -> list[str]:
    """Rewrite the menu entry and the start with the computer where they name a place that is gone; what was rewritten, in words.

    An entry that was never made, or that starts another zk0desk which is still there, stays as it is. `OperatorError` when it cannot
    be written.
    """
    now, start = now or launcher(), start or autostart()
    rewritten = []
    if moved_from(start.command(), [*now.command, BACKGROUND]):
        switch_on(start, now.command)
        rewritten.append("the start with the computer")
    if now.adds_to_menu and moved_from(menu.started(), now.command):
        menu.install(now.command)
        rewritten.append("the menu entry")
    return rewritten
