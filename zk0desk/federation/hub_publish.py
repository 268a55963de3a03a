"""A federation's policy to the Hugging Face Hub, with a card: what goes out is a list of files that is shown before, and nothing else.

huggingface_hub sends it, over plain HTTP and without Xet, whose transfer cannot be stopped. This process is offline for all else.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0desk.errors import ExitStatus, causes
from zk0desk.federation import hub, hub_errors
from zk0desk.federation.credentials import KeyringUnavailable
from zk0desk.federation.event_log import run_events
from zk0desk.federation.hub_errors import Asked, HubError
from zk0desk.federation.hub_line import is_loopback
from zk0desk.federation.hub_places import origin
from zk0desk.federation.hub_token import read_token
from zk0desk.federation.model_card import Facts, Lineage, model_card
from zk0desk.federation.run_curves import Curves, chosen_run
from zk0desk.federation.server_folder import ServerFolder
from zk0desk.training import policy_files
from zk0desk.training.policy_files import BACKBONE, CONFIG, PROCESSORS, WEIGHTS

if TYPE_CHECKING:
    from zk0desk.federation.run_record import RunRecord

CARD, CURVES = "README.md", "curves.png"
LICENSES = re.compile(r"[a-z0-9][a-z0-9.-]{1,60}")
_PROCESSOR = re.compile(rf"({'|'.join(PROCESSORS)})[A-Za-z0-9_.-]*\.(json|safetensors)")
_BACKBONE_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\.(json|txt|model|jinja)")
_TOLD_SETTINGS = ("local-epochs", "local-steps", "batch-size", "lr", "proximal-mu", "max-share", "encoding", "seed")


class PublishRefused(HubError):
    """What was to be published holds something that must not leave, or cannot be named."""

    code = "publish-refused"
    exit_status = ExitStatus.UNUSABLE


class PublishTokenMissing(HubError):
    """Publishing needs a token that may write."""

    code = "hub-token-missing"
    exit_status = ExitStatus.REFUSED


@dataclass(frozen=True)
class Publication:
    """What would go to the Hub: each file by its path there, and where it is on this disk."""

    repo_id: str
    private: bool
    run: str
    round: int
    files: dict[str, Path]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: path.stat().st_size for name, path in self.files.items()}


def prepare(
    server: ServerFolder, repo_id: str, draft: Path, *, which: str = "best", run: str = "", license_: str = "other", private: bool = True
) -> Publication:
    """Gather what goes to `repo_id`: round `which` (`best`, `last` or a number) of `run`; what is made for it is written to `draft`.

    Raises `NothingToDraw` where there is no such run, `PublishRefused` and `HubNameInvalid` for what cannot be published. Nothing is sent.
    """
    hub.checked("policy", repo_id)
    if not LICENSES.fullmatch(license_):
        raise PublishRefused(
            f"{license_[:60]!r} is no licence's name.", "The Hub names licences as apache-2.0 or cc-by-4.0.", "Correct it."
        )
    record = chosen_run(server, run)
    number = _round(record, which)
    folder, base = record.checkpoint(server, number), server.policy(server.settings())
    if not (folder / CONFIG).is_file():
        raise PublishRefused(
            f"Round {number} of run {record.uid} is not kept.",
            "Of earlier rounds only the last ones and the best are.",
            "Take --round best or --round last, or keep more with rounds.keep-checkpoints.",
        )
    files = {name: folder / name for name in _weights_and_processors(folder)}
    for name in [name for name in files if name.endswith(".json")]:
        files[name] = _without_places(folder, files[name], draft / name, base)
    for path in sorted((folder / BACKBONE).glob("*")):
        if _BACKBONE_FILE.fullmatch(path.name):
            files[f"{BACKBONE}/{path.name}"] = path
    curves = Curves(run_events(server, record.uid))
    picture = _picture(server, record, curves, draft)
    if picture:
        files[CURVES] = picture
    (draft / CARD).write_text(
        model_card(_facts(server, record, number, curves, license_, bool(picture)), _lineage(base, folder)), encoding="utf-8"
    )
    files[CARD] = draft / CARD
    return Publication(repo_id, private, record.uid, number, dict(sorted(files.items())))


def _round(record: RunRecord, which: str) -> int:
    number = {"best": record.best or record.done, "last": record.done}.get(which)
    if number is None:
        number = int(which) if which.isdigit() else 0
    if not 1 <= number <= record.done:
        raise PublishRefused(
            f"There is no round {which[:20]!r} to publish.", f"Run {record.uid} has {record.done} rounds.", "Take best, last or a number."
        )
    return number


def _weights_and_processors(folder: Path) -> list[str]:
    names = [path.name for path in sorted(folder.iterdir()) if path.is_file()]
    return [name for name in names if name in (CONFIG, WEIGHTS) or _PROCESSOR.fullmatch(name)]


def _without_places(folder: Path, source: Path, target: Path, base: Path) -> Path:
    """A copy of a JSON file that names the backbone as others find it, and no folder of this computer."""
    known = origin(base)
    backbone = known.backbone.partition("@")[0] if known is not None and known.backbone else BACKBONE
    data = _mapped(json.loads(source.read_text(encoding="utf-8")), str(folder.absolute() / BACKBONE), backbone)
    if place := _a_place(data):
        raise PublishRefused(
            f"{source.name} names a folder of this computer.", f"It holds {place[:100]!r}.", "Take that out of the policy's file first."
        )
    target.write_text(json.dumps(data, indent=4), encoding="utf-8")
    return target


def _mapped(data: Any, before: str, after: str) -> Any:
    if isinstance(data, dict):
        return {key: _mapped(value, before, after) for key, value in data.items()}
    if isinstance(data, list):
        return [_mapped(value, before, after) for value in data]
    return after if data == before else data


def _a_place(data: Any) -> str:
    if isinstance(data, dict):
        return next((found for value in data.values() if (found := _a_place(value))), "")
    if isinstance(data, list):
        return next((found for value in data if (found := _a_place(value))), "")
    return data if isinstance(data, str) and (data.startswith(("/", "~", "\\\\", "file:")) or re.match(r"[A-Za-z]:[\\/]", data)) else ""


def _picture(server: ServerFolder, record: RunRecord, curves: Curves, draft: Path) -> Path | None:
    from zk0desk import charts

    panels = curves.panels(names=False)
    return charts.draw(draft / CURVES, f"{server.settings().federation}: run {record.uid}", panels, height=260) if panels else None


def _facts(server: ServerFolder, record: RunRecord, number: int, curves: Curves, license_: str, picture: bool) -> Facts:
    settings = server.settings()
    files = policy_files.read_policy(server.policy(settings), remembered=True)
    rules = settings.rounds.model_dump(mode="json", by_alias=True)
    forgetting = {name: losses[number] - losses[0] for name, losses in curves.retention.items() if {0, number} <= losses.keys()}
    private = settings.privacy
    # Under differential privacy the number of nodes that took part is not for others.
    nodes = record.nodes if private.mechanism == "none" else private.expected_nodes or settings.rounds.min_nodes
    spent = f"epsilon {curves.epsilon[number]:.3g} at delta {private.delta:g}" if number in curves.epsilon else ""
    return Facts(
        federation=settings.federation, run=record.uid, round=number, rounds=record.rounds, nodes=nodes, parameters=files.parameters,
        trainable_parameters=files.trainable_parameters, base_loss=record.eval_losses.get("0"), loss=record.eval_losses.get(str(number)),
        standard_error=curves.error.get(number), forgetting=forgetting,
        settings={name: str(rules[name]) for name in _TOLD_SETTINGS}, license=license_, picture=picture, privacy=spent,
    )  # fmt: skip


def _lineage(base: Path, folder: Path) -> Lineage:
    from zk0desk.federation.updates import weights_sha256

    files, known = policy_files.read_policy(base, remembered=True), origin(base)
    return Lineage(
        base_name=base.name,
        base_repo=known.repo_id if known is not None and known.kind == "policy" else "",
        policy_id=files.policy_id,
        backbone_sha256=files.backbone_sha256,
        layout_sha256=files.layout.sha256,
        base_weights_sha256=weights_sha256(policy_files.trainable_weights(base)),
        weights_sha256=weights_sha256(policy_files.trainable_weights(folder)),
    )


def token_for(asked: Asked) -> str:
    """The token to write with: `HF_TOKEN` of the environment, else the keyring's. `PublishTokenMissing` when there is none.

    None goes over a line that others may read.
    """
    if not asked.endpoint.startswith("https://") and not is_loopback(asked.endpoint):
        raise PublishTokenMissing(
            f"Nothing is published to {asked.host}.",
            "Others could read the token on the way: the address is not https.",
            "Check HF_ENDPOINT.",
        )
    try:
        token = os.environ.get("HF_TOKEN", "").strip() or read_token()
        silent = ""
    except KeyringUnavailable as error:
        token, silent = None, f" {error.what}"
    if not token:
        raise PublishTokenMissing(
            "Publishing needs a token of the Hub.",
            f"There is none in the keyring, and HF_TOKEN is not set.{silent}",
            f"Make one that may write at {hub_errors.TOKENS_PAGE}, then: zk0desk hub login",
        )
    return token


def send(publication: Publication, *, endpoint: str | None = None) -> str:
    """Make the repository if it is not there, and put the files into it as one commit; the commit. Raises a `HubError`."""
    asked = hub.checked("policy", publication.repo_id, endpoint=endpoint)
    hub.require_online()
    token = token_for(asked)
    asked = replace(asked, with_token=True)
    with _reaching_out():
        from httpx import HTTPError
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api = HfApi(endpoint=asked.endpoint, token=token)
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in publication.files.items()]
        try:
            api.create_repo(publication.repo_id, private=publication.private, exist_ok=True)
            if publication.private and not api.model_info(publication.repo_id).private:
                raise PublishRefused(
                    f"Nothing was sent: {publication.repo_id} is there already, and everybody can read it.",
                    "A policy is published privately unless you say otherwise.",
                    "Name another repository, make that one private, or add --public.",
                )
            done = api.create_commit(
                publication.repo_id,
                operations,
                commit_message=f"Round {publication.round} of run {publication.run}",
                num_threads=1,
            )
        except HfHubHTTPError as error:
            raise _of_answer(error.response, asked) from None
        except (HTTPError, OSError) as error:
            raise hub_errors.of_line(error, asked, in_the_middle=False) from None
        except (ValueError, RuntimeError, KeyError) as error:
            cause = next((each for each in causes(error) if isinstance(each, HfHubHTTPError)), None)
            if cause is not None:
                raise _of_answer(cause.response, asked) from None
            raise hub_errors.unknown_answer(asked, f"It does not take the files ({type(error).__name__}).") from None
    return str(done.oid)


def _of_answer(response: Any, asked: Asked) -> HubError:
    if response is not None and response.status_code in (401, 403):
        return hub_errors.HubTokenRefused(
            f"The Hub does not let you write to {asked.repo_id}.",
            "The token is wrong or has expired, may only read, or may not write there.",
            f"Make one that may write at {hub_errors.TOKENS_PAGE}, then: zk0desk hub login",
        )
    if response is None:
        return hub_errors.unknown_answer(asked, "It does not answer.")
    return hub_errors.of_answer(response, asked)


@contextmanager
def _reaching_out() -> Iterator[None]:
    """Within it huggingface_hub may ask the Hub, sends over plain HTTP, and shows no progress bar and no telemetry."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, close_session, disable_progress_bars, enable_progress_bars

    names = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY")
    before, bars = {name: getattr(constants, name) for name in names}, not are_progress_bars_disabled()
    constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET, constants.HF_HUB_DISABLE_TELEMETRY = False, True, True
    disable_progress_bars()
    try:
        yield
    finally:
        close_session()
        for name, value in before.items():
            setattr(constants, name, value)
        if bars:
            enable_progress_bars()
