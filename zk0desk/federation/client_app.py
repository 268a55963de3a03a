"""The node's round as a flwr `ClientApp`, for operators who run a stock `flower-supernode`.

    flower-supernode --node-config 'settings="/home/me/.config/zk0desk/settings.toml"' ...

It trains what the settings choose, after the same consent and the same checks as zk0desk's own node; without
`settings` in the node's configuration it reads the operator's file. Nothing of the server's app bundle is used.
"""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from zk0desk.quiet import quiet_libraries

quiet_libraries()

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict  # noqa: E402 - quiet first
from flwr.clientapp import ClientApp  # noqa: E402

from zk0desk.control import NodeControl  # noqa: E402
from zk0desk.errors import OperatorError  # noqa: E402
from zk0desk.federation import local_round  # noqa: E402
from zk0desk.federation.invitation import Invitation  # noqa: E402
from zk0desk.federation.messages import MessageRefused  # noqa: E402
from zk0desk.federation.node_privacy import NodePrivacy  # noqa: E402
from zk0desk.federation.run_store import RunStore  # noqa: E402

if TYPE_CHECKING:
    from zk0desk.federation.node_engine import Engine
    from zk0desk.settings import Settings
    from zk0desk.training.policy_files import PolicyFiles

REFUSED = 2
"""flwr's error code CLIENT_APP_RAISED_EXCEPTION: an error reply of the node's own."""

app = ClientApp()


def load_settings(context: Context) -> Settings:
    """The operator's settings, after the checks that come before a first message. Raises `OperatorError`."""
    from zk0desk import settings as settings_file
    from zk0desk.federation.consent import require_consent

    named = context.node_config.get("settings")
    settings: Settings = settings_file.load(Path(str(named)) if named else None)
    require_consent(Invitation.parse(settings.federation.invitation), settings.federation.consent)
    return settings


def policy_files(settings: Settings) -> PolicyFiles:
    """The base policy that the settings name."""
    from zk0desk.training.policy_files import PolicyError, read_policy

    if settings.policy.folder is None:
        raise PolicyError("No base policy is chosen.", "Training starts from it.", "Choose the folder of the federation's base policy.")
    return read_policy(settings.policy.folder)


@lru_cache(maxsize=1)
def _engine(text: str) -> Engine:
    """The loaded policy and its trainer; kept while the settings (`text`, JSON) stay the same."""
    from zk0desk.federation.node_engine import Engine
    from zk0desk.settings import Settings

    settings = Settings.model_validate_json(text)
    return Engine(settings, policy_files(settings), emit=lambda _event: None, control=NodeControl())


def _refusal(message: Message, error: OperatorError) -> Message:
    reason = error.reason if isinstance(error, MessageRefused) else f"{error.code}: {error}"
    return Message(Error(REFUSED, reason[:500]), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round; a refusal is an error reply that says which key and why."""
    received = time.time()
    try:
        settings = load_settings(context)
        files = policy_files(settings)
        request = local_round.read_request(message.content, files)
        trainer = _engine(settings.model_dump_json()).trainer
        # The supernode sends the reply; a tenth of the time is left to it.
        deadline = received + 0.9 * request.deadline_s if request.deadline_s else 0.0
        invitation = Invitation.parse(settings.federation.invitation)
        privacy = NodePrivacy(settings.privacy, lambda _event: None)
        answer = local_round.answer_train(message.content, files, trainer, invitation, deadline=deadline, privacy=privacy)
    except OperatorError as error:
        return _refusal(message, error)
    return Message(local_round.to_records(answer), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Versions and the number of frames; nothing else about the recordings."""
    try:
        settings = load_settings(context)
        files = policy_files(settings)
        if carried := local_round.read_query(message.content, files):
            final, weights = carried
            RunStore(final.run_uid).keep_weights(final, weights, Invitation.parse(settings.federation.invitation), files)
        private = NodePrivacy(settings.privacy, lambda _event: None).on
        told = local_round.capability(files, 0 if private else _engine(settings.model_dump_json()).trainer.frames)
    except OperatorError as error:
        return _refusal(message, error)
    return Message(RecordDict({"config": ConfigRecord(told)}), reply_to=message)
