"""One validated settings model for the window and the headless node, kept in one TOML file.

tomlkit keeps the person's comments and order when the file is written again. Secrets are never in it. The
coordinator's own settings are `ServerSettings`, in `server.toml` of the server's folder.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from zk0desk import folders
from zk0desk.errors import SettingsError

POLICY_CAMERAS = ("top", "wrist", "side")
"""Names of the policy's camera slots, in SmolVLA's order: observation.images.camera1, camera2, camera3."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, alias_generator=lambda n: n.replace("_", "-"))


class ChosenRecording(_Section):
    """A recording that this node trains on."""

    path: Path = Field(description="Folder of the recording.")
    cameras: dict[str, str] = Field(
        default_factory=dict,
        description="Which camera of the recording fills which slot of the policy, slot = camera. Empty: by name.",
    )
    leave_out: tuple[Annotated[int, Field(ge=0)], ...] = Field((), description="Episodes that are not trained on.")
    reasons: dict[str, str] = Field(default_factory=dict, description="Why an episode is left out, number = words.")
    content: str = Field(
        "",
        max_length=64,
        description="A digest of what the recording held when these were left out; it must hold the same to be trained on.",
    )


class Curation(_Section):
    """What is left out of a recording that is not chosen now, kept by its content."""

    name: str = Field("", description="The recording's folder then, for the reader.")
    content: str = Field(max_length=64, description="A digest of what the recording held.")
    leave_out: tuple[Annotated[int, Field(ge=0)], ...] = Field((), description="Episodes that are not trained on.")
    reasons: dict[str, str] = Field(default_factory=dict, description="Why an episode is left out, number = words.")


class Recordings(_Section):
    """Where recordings are looked for, and which are chosen."""

    folders: tuple[Path, ...] = Field((), description="Folders to look in, besides LeRobot's own.")
    chosen: tuple[ChosenRecording, ...] = Field((), description="The recordings that this node trains on.")
    curated: tuple[Curation, ...] = Field((), description="What is left out of recordings that are not chosen now.")


class Policy(_Section):
    """The base policy."""

    folder: Path | None = Field(None, description="Folder of the SmolVLA base policy (config.json and model.safetensors).")


class Federation(_Section):
    """The federation to join."""

    invitation: str = Field("", max_length=16384, description="The coordinator's invitation, the line that begins with zk0desk:join?")
    consent: str = Field(
        "",
        description="What was agreed to, written by the window or `zk0desk node --agree`: a SHA-256 of its text and the invitation.",
    )
    key_storage: Literal["keyring", "file"] = Field(
        "keyring", description="Where the node's private key is kept: the system's keyring, or a file with mode 0600."
    )
    key_file: Path | None = Field(None, description="The key's file when key-storage is file.")
    join_at_start: bool = Field(
        False, description="Join again when zk0desk starts with the computer, in the background, under what was agreed to before."
    )
    allow_evaluation: bool = Field(False, description="Let the coordinator ask for a loss on this node's frames. It probes private data.")


class Training(_Section):
    """How this computer trains."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where the policy trains; auto takes the best that works.")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 autocast where the device has it, else fp32.")
    micro_batch: int = Field(0, ge=0, le=4096, description="Frames that are computed at once; 0: the batch, halved when memory runs out.")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads; 0: all cores but one.")
    memory_free: float = Field(
        0.0,
        ge=0,
        le=1024,
        description="GB of the training device's memory that stay free; fewer frames are then computed at once.",
    )
    keep_optimiser: bool = Field(
        False, description="Keep the optimiser's moments from round to round. FedProx starts each round with a new one."
    )
    checkpoint_s: float = Field(
        60.0,
        ge=10,
        le=3600,
        description="Seconds of training that a power cut may cost, or 2% of the round's time where that is more. Less writes more.",
    )
    pause_frees_memory: bool = Field(
        False, description="Give the GPU's memory back while training is paused; Resume then takes a few seconds."
    )


class Cache(_Section):
    """What the frozen part of the policy computed for frames, kept on this computer so that it is not computed again."""

    level: Literal["auto", "off", "N", "V", "P"] = Field(
        "auto",
        description="V keeps the embeddings of pictures, P all that follows from them: larger, faster. N keeps nothing, off neither.",
    )
    budget_gb: float = Field(20.0, ge=0, le=100_000, description="GB of the disk that it may take, for all recordings together.")
    folder: Path | None = Field(None, description="Where it is kept, best on a fast disk. Not chosen: this user's folder for caches.")
    keep_after_removal: bool = Field(False, description="Keep what was computed of a recording that is taken out of the list.")


class Privacy(_Section):
    """Differential privacy of what this node sends, whatever the coordinator does. It costs accuracy."""

    noise_multiplier: float = Field(
        0.0, ge=0, le=1000, description="Noise in every value of an update, as a multiple of clip; 0: none. About 1 gives a useful epsilon."
    )
    clip: float = Field(1.0, gt=0, le=1e6, description="An update is scaled down to this length before noise is added.")
    epsilon: float = Field(
        8.0, gt=0, le=1e6, description="Budget: this node trains no round that would spend more, over all federations together."
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="The chance with which epsilon may not hold.")


class Appearance(_Section):
    """How the window looks."""

    theme: Literal["system", "light", "dark"] = Field("system", description="system follows the desktop.")


class Updates(_Section):
    """Newer versions of zk0desk and of its training engine."""

    look_daily: bool = Field(
        False,
        description="Ask zk0desk's own signed list once a day whether there is a newer version or a mended engine, and never while a node "
        "runs. Nothing about you or this computer is sent, and nothing is fetched before you say so. A federation updates nothing.",
    )


class Settings(_Section):
    """Everything that an operator can set."""

    recordings: Recordings = Recordings()
    policy: Policy = Policy()
    federation: Federation = Federation()
    training: Training = Training()
    cache: Cache = Cache()
    privacy: Privacy = Privacy()
    appearance: Appearance = Appearance()
    updates: Updates = Updates()


class ServerNetwork(_Section):
    """Where nodes reach the federation."""

    host: str = Field("0.0.0.0", description="Address that the gateway listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port that the gateway listens on; 0 takes a free one.")
    name: str = Field("localhost", max_length=253, description="Name or address under which operators reach it; the certificate has it.")
    superlink_state: Literal["memory", "disk"] = Field(
        "memory", description="Where the SuperLink keeps messages: memory is faster, disk survives a crash. Keys of nodes are on disk."
    )


class ServerPolicy(_Section):
    """What is trained and measured."""

    folder: Path = Field(Path("policy"), description="The base policy, relative to the server's folder.")
    held_out: tuple[ChosenRecording, ...] = Field((), description="Held-out recordings, evaluated after each round.")
    retention: tuple[ChosenRecording, ...] = Field(
        (), description="Recordings of tasks that the base policy knew: evaluated beside the held-out ones, to see what is forgotten."
    )
    evaluate_every: int = Field(
        1, ge=1, le=100_000, description="Rounds from one evaluation to the next; the base policy and the last round always are."
    )

    evaluation_batch: int = Field(8, ge=1, le=4096, description="Frames that are evaluated at once. It does not change the result.")
    evaluation_cache_gb: float = Field(
        20.0, ge=0, le=100_000, description="GB of disk for what is computed once for held-out frames; 0: nothing is kept."
    )

    @model_validator(mode="after")
    def _retention_beside_held_out(self) -> ServerPolicy:
        if self.retention and not self.held_out:
            raise ValueError("retention is evaluated beside held-out recordings, and held-out names none")
        return self


class ServerRounds(_Section):
    """Rounds and what nodes are asked to do. Defaults are the paper's."""

    rounds: int = Field(30, ge=1, le=100_000, description="Rounds of a run.")
    min_nodes: int = Field(2, ge=1, le=10_000, description="A round waits for this many nodes.")
    fraction: float = Field(
        1.0, gt=0, le=1, description="Share of the nodes online that a round asks, drawn by the seed; at least min-nodes are."
    )
    wait_s: float = Field(0.0, ge=0, le=86_400, description="How long a round waits for further nodes once there are enough.")
    deadline_s: float = Field(2700.0, gt=0, le=39_600, description="Seconds that a node has from receiving a round to having sent it back.")
    local_epochs: float = Field(20.0, gt=0, le=10_000, description="Passes over a node's frames in a round.")
    local_steps: int = Field(0, ge=0, le=1_000_000, description="Optimiser steps in a round; 0: local-epochs decides.")
    batch_size: int = Field(64, ge=1, le=4096, description="Frames of one optimiser step.")
    lr: float = Field(1e-4, ge=0, le=1e-1, description="Learning rate.")
    proximal_mu: float = Field(0.01, ge=0, le=100, description="FedProx's mu.")
    max_share: float = Field(0.5, gt=0, le=1, description="No node weighs more than this in the mean; below 1/n it acts as 1/n.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of the run.")
    encoding: Literal["fp32", "fp16", "int8"] = Field(
        "int8",
        description="How changes travel, both ways: int8 (a quarter of fp32; what is left out goes into the next round), fp16, fp32.",
    )
    keep_checkpoints: int = Field(10, ge=0, le=100_000, description="Policies kept of a run: the last ones, and the best. 0 keeps all.")
    keep_updates: bool = Field(
        False, description="Keep every update as it came, so that `zk0desk server audit` can do each aggregation again. It takes much disk."
    )


class ServerSchedule(_Section):
    """How learning rate and mu follow the held-out loss. They begin as rounds.lr and rounds.proximal-mu; defaults are the paper's."""

    strategy: Literal["fedavg", "fedprox", "adaptive", "dynamic"] = Field(
        "dynamic",
        description="fedavg: mu is 0. fedprox: mu stays. adaptive: FedProx's own rule for mu. dynamic: the paper's rules for rate and mu. "
        "The last two need held-out recordings, and are fedprox without.",
    )
    window: int = Field(5, ge=1, le=1000, description="Evaluations that are looked at (W).")
    plateau: float = Field(0.01, ge=0, le=1e6, description="A held-out loss that falls by less than this in a window no longer falls.")
    lr_lowest: float = Field(2.5e-6, ge=0, le=1e-1, description="Where the cosine of the learning rate ends.")
    lr_highest: float = Field(2e-4, ge=0, le=1e-1, description="Plateaus raise the learning rate to this at most.")
    lr_boost: float = Field(1.15, ge=1, le=10, description="A plateau multiplies the cycle's highest learning rate by this.")
    cycle: int = Field(15, ge=1, le=100_000, description="Rounds of the cosine's first cycle; each further one has twice as many.")
    longest_cycle: int = Field(120, ge=1, le=100_000, description="No further cycle has more rounds than this.")
    mu_decay: float = Field(0.8, ge=0, le=1, description="A plateau multiplies mu by this.")
    mu_lowest: float = Field(0.001, ge=0, le=100, description="Plateaus lower mu to this at most.")
    spike: float = Field(2.0, ge=1, le=1e6, description="A held-out loss above this many times the mean of the window before is a spike.")
    spike_division: float = Field(
        2.0, ge=1, le=1e6, description="A spike divides the learning rate by this until a window has passed without one."
    )
    mu_step: float = Field(0.1, ge=0, le=100, description="adaptive: mu grows by this when the loss rises, and shrinks by it.")
    mu_falls: int = Field(5, ge=1, le=1000, description="adaptive: mu shrinks when the loss fell so many times in a row.")
    server_optimiser: Literal["none", "momentum", "adam"] = Field(
        "none", description="What the coordinator does with the mean update: adds it, FedAvgM, or FedAdam."
    )
    server_lr: float = Field(1.0, gt=0, le=1000, description="momentum and adam: the coordinator's own rate; adam wants less, 0.001.")
    server_momentum: float = Field(0.9, ge=0, lt=1, description="momentum, and adam's beta 1.")
    server_beta_2: float = Field(0.99, ge=0, lt=1, description="adam's beta 2.")
    server_tau: float = Field(1e-3, gt=0, le=1, description="adam: added to the root of the second moment.")


class ServerAggregation(_Section):
    """How updates become one, and what is done against hostile nodes. Every update is first clipped to what is usual."""

    method: Literal["mean", "trimmed-mean", "median", "geometric-median", "multi-krum"] = Field(
        "mean",
        description="mean weighs by frames. The others withstand hostile-nodes of them, and every node counts the same in them.",
    )
    hostile_nodes: int = Field(1, ge=0, le=1000, description="How many hostile nodes of a round the other methods shall withstand.")
    clip: float = Field(2.0, gt=0, le=1e6, description="An update may be this many times longer than the median of the last rounds'.")
    clip_rounds: int = Field(5, ge=0, le=1000, description="How many earlier rounds that median looks back.")
    quarantine_after: int = Field(
        3, ge=0, le=1000, description="A node whose replies are refused this often in a row is not asked any more; 0: it always is."
    )


class ServerPrivacy(_Section):
    """Differential privacy of what leaves the coordinator: the unit is a node's whole update. It costs accuracy."""

    mechanism: Literal["none", "central"] = Field(
        "none", description="central: the coordinator clips updates and adds noise to their sum; nodes send no metrics."
    )
    noise_multiplier: float = Field(
        1.0, gt=0, le=1000, description="Noise in every value of the sum, as a multiple of clip. About 1 gives a useful epsilon."
    )
    clip: float = Field(1.0, gt=0, le=1e6, description="An update is scaled down to this length, whatever the others are like.")
    expected_nodes: int = Field(
        0, ge=0, le=10_000, description="What the sum is divided by, however many answer; 0: rounds.min-nodes. All count the same."
    )
    epsilon: float = Field(8.0, gt=0, le=1e6, description="Budget: the run ends before a round that would spend more.")
    delta: float = Field(1e-5, gt=0, lt=1, description="The chance with which epsilon may not hold.")


class ServerTracking(_Section):
    """Weights & Biases."""

    wandb: Literal["off", "offline", "online"] = Field("off", description="offline writes to the server's folder and sends nothing.")
    wandb_project: str = Field("zk0desk", max_length=128, description="W&B project.")


class ServerSettings(_Section):
    """Everything that a coordinator can set."""

    federation: str = Field("zk0desk federation", min_length=1, max_length=128, description="Name of the federation.")
    contact: str = Field("", max_length=256, description="How operators reach the coordinator.")
    admission: Literal["approved", "open"] = Field(
        "approved", description="approved: each node's key is admitted by hand. open: whoever has the invitation's code is admitted."
    )
    network: ServerNetwork = ServerNetwork()
    policy: ServerPolicy = ServerPolicy()
    rounds: ServerRounds = ServerRounds()
    schedule: ServerSchedule = ServerSchedule()
    aggregation: ServerAggregation = ServerAggregation()
    privacy: ServerPrivacy = ServerPrivacy()
    tracking: ServerTracking = ServerTracking()

    @model_validator(mode="after")
    def _names_are_lines(self) -> ServerSettings:
        for value in (self.federation, self.contact):
            if not value.isprintable():
                raise ValueError("a name must be one line of printable characters")
        return self

    @model_validator(mode="after")
    def _privacy_holds(self) -> ServerSettings:
        if self.privacy.mechanism == "none":
            return self
        if self.aggregation.method != "mean":
            raise ValueError('`aggregation.method` must be "mean" under `privacy.mechanism`: a robust method depends on single updates')
        if self.rounds.keep_updates:
            raise ValueError("`rounds.keep-updates` must be false under `privacy.mechanism`: it keeps updates without noise")
        return self


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    return f"`{where}`: {first['msg']} (found {first['input']!r:.80})."


def parse[Model: _Section](model: type[Model], text: str, source: str = "the settings") -> Model:
    """Read `text` (TOML) as `model`; `SettingsError` names the key, what it holds and what is allowed."""
    try:
        return model.model_validate(tomlkit.parse(text).unwrap())
    except ValidationError as error:
        raise SettingsError(f"{source} cannot be used.", _explain(error), "Correct that key, or delete its line.") from error
    except (ValueError, tomlkit.exceptions.TOMLKitError) as error:
        raise SettingsError(f"{source} is not valid TOML.", f"{error}.", "Correct that line.") from error


def load[Model: _Section](path: Path | None = None, model: type[Model] = Settings) -> Model:  # type: ignore[assignment]
    """Read settings from `path` (default: the operator's file). A missing file gives the defaults."""
    path = path or folders.settings_file()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return model()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read.", f"{error}.", "Check the file's permissions and encoding (UTF-8).") from error
    return parse(model, text, str(path))


def save(settings: _Section, path: Path | None = None) -> None:
    """Write `settings` to `path` atomically, mode 0600, keeping comments and order of what is there.

    A new file gets each key's description as a comment.
    """
    path = path or folders.settings_file()
    folders.private_folder(path.parent)
    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8"))
        fresh = False
    except FileNotFoundError:
        document, fresh = tomlkit.document(), True
    _merge(document, settings, fresh)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(tomlkit.dumps(document))
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _merge(table: Any, section: _Section, fresh: bool) -> None:
    plain = section.model_dump(mode="json", by_alias=True)
    # What is after a table in a file belongs to that table: plain keys come first, with their comments.
    for name in sorted(type(section).model_fields, key=lambda name: _place(getattr(section, name), plain[_key(section, name)])):
        key, description = _key(section, name), type(section).model_fields[name].description
        value = getattr(section, name)
        if isinstance(value, _Section):
            if key not in table:
                table[key] = tomlkit.table()
                _merge(table[key], value, fresh=True)
            else:
                _merge(table[key], value, fresh)
        elif plain[key] is None:
            table.pop(key, None)
        elif key not in table or table[key] != plain[key]:
            if fresh and description and hasattr(table, "add"):
                table.add(tomlkit.comment(description))
            table[key] = _tables(plain[key]) if _place(value, plain[key]) else plain[key]


def _key(section: _Section, name: str) -> str:
    return type(section).model_fields[name].alias or name


def _place(value: Any, plain: Any) -> int:
    """0 for a plain key, 1 for a list of tables, 2 for a section."""
    return 2 if isinstance(value, _Section) else int(isinstance(plain, list) and bool(plain) and isinstance(plain[0], dict))


def _tables(items: list[dict[str, Any]]) -> Any:
    tables = tomlkit.aot()
    for item in items:
        tables.append(tomlkit.item(_without_none(item)))
    return tables


def _without_none(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if value is not None}
