"""The states of a node, the one table of transitions, and the sentence that each state says."""

from __future__ import annotations

from enum import StrEnum


class NodeState(StrEnum):
    """What a node is doing."""

    IDLE = "idle"
    CHECKING = "checking"
    CONNECTING = "connecting"
    WAITING_FOR_APPROVAL = "waiting-for-approval"
    WAITING_FOR_ROUND = "waiting-for-round"
    DOWNLOADING = "downloading"
    TRAINING = "training"
    UPLOADING = "uploading"
    PAUSED = "paused"
    RECONNECTING = "reconnecting"
    FINISHING = "finishing"
    STOPPED = "stopped"
    FAILED = "failed"


_S = NodeState
_ENDS = {_S.FINISHING, _S.STOPPED, _S.FAILED}

TRANSITIONS: dict[NodeState, frozenset[NodeState]] = {
    _S.IDLE: frozenset({_S.CHECKING, _S.STOPPED}),
    _S.CHECKING: frozenset({_S.CONNECTING} | _ENDS),
    _S.CONNECTING: frozenset({_S.WAITING_FOR_APPROVAL, _S.WAITING_FOR_ROUND, _S.RECONNECTING} | _ENDS),
    _S.WAITING_FOR_APPROVAL: frozenset({_S.CONNECTING, _S.WAITING_FOR_ROUND, _S.RECONNECTING} | _ENDS),
    _S.WAITING_FOR_ROUND: frozenset(
        {_S.DOWNLOADING, _S.TRAINING, _S.UPLOADING, _S.PAUSED, _S.RECONNECTING, _S.WAITING_FOR_APPROVAL} | _ENDS
    ),
    _S.DOWNLOADING: frozenset({_S.TRAINING, _S.UPLOADING, _S.WAITING_FOR_ROUND, _S.PAUSED, _S.RECONNECTING} | _ENDS),
    _S.TRAINING: frozenset({_S.UPLOADING, _S.WAITING_FOR_ROUND, _S.PAUSED, _S.RECONNECTING} | _ENDS),
    _S.UPLOADING: frozenset({_S.WAITING_FOR_ROUND, _S.RECONNECTING} | _ENDS),
    _S.PAUSED: frozenset({_S.TRAINING, _S.WAITING_FOR_ROUND, _S.DOWNLOADING, _S.UPLOADING, _S.RECONNECTING} | _ENDS),
    _S.RECONNECTING: frozenset(
        {_S.CONNECTING, _S.WAITING_FOR_APPROVAL, _S.WAITING_FOR_ROUND, _S.DOWNLOADING, _S.TRAINING, _S.UPLOADING, _S.PAUSED} | _ENDS
    ),
    _S.FINISHING: frozenset({_S.STOPPED, _S.FAILED}),
    _S.STOPPED: frozenset({_S.CHECKING}),
    _S.FAILED: frozenset({_S.CHECKING, _S.STOPPED}),
}
"""Which state may follow which. Anything else is a defect and raises `ValueError` in `check_transition`."""

RUNNING = frozenset(NodeState) - {_S.IDLE, _S.STOPPED, _S.FAILED}
"""States in which the node's thread lives."""

SENTENCES: dict[NodeState, tuple[str, str, str]] = {
    _S.IDLE: ("Not joined yet", "Nothing has been sent.", "Choose recordings, look at this computer, open an invitation."),
    _S.CHECKING: (
        "Checking",
        "Recordings, policy and this computer are looked at before anything is sent.",
        "Then the SuperLink is called.",
    ),
    _S.CONNECTING: ("Connecting", "The SuperLink is being called.", "Then this node waits for a round."),
    _S.WAITING_FOR_APPROVAL: (
        "Waiting to be admitted",
        "The coordinator has not admitted this node's key yet.",
        "Send them the fingerprint; this node tries again by itself.",
    ),
    _S.WAITING_FOR_ROUND: ("Waiting for the next round", "The coordinator has not sent one.", "Training starts by itself when it comes."),
    _S.DOWNLOADING: ("Receiving the global weights", "A round has begun.", "Then this node trains."),
    _S.TRAINING: ("Training", "The policy learns from your recordings, on this computer.", "Then the update is sent."),
    _S.UPLOADING: ("Sending the update", "Training of this round is done.", "Then this node waits for the next round."),
    _S.PAUSED: ("Paused", "You asked for it.", "Resume goes on at the same step."),
    _S.RECONNECTING: ("Reconnecting", "The SuperLink does not answer.", "Tried again by itself; training done so far is kept."),
    _S.FINISHING: ("Stopping", "You asked for it.", "Nothing more is sent."),
    _S.STOPPED: ("Stopped", "The node left the federation.", "Join again whenever you like."),
    _S.FAILED: ("Stopped by an error", "The reason is in the message above.", "Mend it and join again."),
}
"""For each state: what happens, why, and what comes next. A node may say it with more detail."""


def check_transition(before: NodeState, after: NodeState) -> None:
    """Raise `ValueError` when `after` may not follow `before`."""
    if after is not before and after not in TRANSITIONS[before]:
        raise ValueError(f"a node cannot go from {before} to {after}")
