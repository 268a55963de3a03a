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


class Appearance(_Section):
    """How the window looks."""

    theme: Literal["system", "light", "dark"] = Field("system", description="system follows the desktop.")


class Settings(_Section):
    """Everything that an operator can set."""

    recordings: Recordings = Recordings()
    policy: Policy = Policy()
    federation: Federation = Federation()
    training: Training = Training()
    cache: Cache = Cache()
    appearance: Appearance = Appearance()


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
    evaluation_batch: int = Field(8, ge=1, le=4096, description="Frames that are evaluated at once. It does not change the result.")
    evaluation_cache_gb: float = Field(
        20.0, ge=0, le=100_000, description="GB of disk for what is computed once for held-out frames; 0: nothing is kept."
    )


class ServerRounds(_Section):
    """Rounds and what nodes are asked to do. Defaults are the paper's."""

    rounds: int = Field(30, ge=1, le=100_000, description="Rounds of a run.")
    min_nodes: int = Field(2, ge=1, le=10_000, description="A round waits for this many nodes.")
    wait_s: float = Field(0.0, ge=0, le=86_400, description="How long a round waits for further nodes once there are enough.")
    deadline_s: float = Field(2700.0, gt=0, le=39_600, description="Seconds that a node has from receiving a round to having sent it back.")
    local_epochs: float = Field(20.0, gt=0, le=10_000, description="Passes over a node's frames in a round.")
    local_steps: int = Field(0, ge=0, le=1_000_000, description="Optimiser steps in a round; 0: local-epochs decides.")
    batch_size: int = Field(64, ge=1, le=4096, description="Frames of one optimiser step.")
    lr: float = Field(1e-4, ge=0, le=1e-1, description="Learning rate.")
    proximal_mu: float = Field(0.01, ge=0, le=100, description="FedProx's mu.")
    max_share: float = Field(0.5, gt=0, le=1, description="No node weighs more than this in the mean; below 1/n it acts as 1/n.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of the run.")
    encoding: Literal["fp32", "fp16"] = Field("fp16", description="How updates travel: fp32, or fp16 of the change times 1024.")
    keep_checkpoints: int = Field(10, ge=0, le=100_000, description="Policies kept of a run: the last ones, and the best. 0 keeps all.")


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
    tracking: ServerTracking = ServerTracking()

    @model_validator(mode="after")
    def _names_are_lines(self) -> ServerSettings:
        for value in (self.federation, self.contact):
            if not value.isprintable():
                raise ValueError("a name must be one line of printable characters")
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
    for name, info in type(section).model_fields.items():
        key = info.alias or name
        value = getattr(section, name)
        if isinstance(value, _Section):
            if key not in table:
                table[key] = tomlkit.table()
                _merge(table[key], value, fresh=True)
            else:
                _merge(table[key], value, fresh)
            continue
        plain = section.model_dump(mode="json", by_alias=True, include={name})[key]
        if plain is None:
            table.pop(key, None)
        elif key not in table or table[key] != plain:
            if isinstance(plain, list) and plain and isinstance(plain[0], dict):
                tables = tomlkit.aot()
                for item in plain:
                    tables.append(tomlkit.item(_without_none(item)))
                table[key] = tables
                continue
            if fresh and info.description and hasattr(table, "add"):
                table.add(tomlkit.comment(info.description))
            table[key] = plain


def _without_none(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if value is not None}
