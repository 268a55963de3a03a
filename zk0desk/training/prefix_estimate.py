"""What the prefix cache would take and gain here, estimated from files and without loading the policy: for the window, before joining."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from zk0desk import folders
from zk0desk.errors import OperatorError
from zk0desk.gpus import find_gpus
from zk0desk.settings import Settings
from zk0desk.training.container_limits import usable_cores, usable_memory
from zk0desk.training.forward_choice import TRAINING_SHARE
from zk0desk.training.policy_files import WEIGHTS, read_config
from zk0desk.training.prefix_cache import KEEP_FREE, PrefixCache
from zk0desk.training.prefix_level import CacheCase, LevelChoice, choose_level
from zk0desk.training.recordings import map_cameras, policy_needs, read_recording

LETTERS_A_TOKEN = 4
"""Of an instruction: its tokens are not counted here."""
BYTES = 2
"""Of a stored value."""
_MODEL = "model.vlm_with_expert.vlm.model."


def estimated_choice(settings: Settings) -> LevelChoice | None:
    """The level that a run would probably have, or None where the policy or the recordings cannot be read or are not chosen.

    Reads descriptions only, not pictures. Takes a moment. Whether the policy may be prepared at all is seen only when it is loaded.
    """
    if settings.policy.folder is None or not settings.recordings.chosen:
        return None
    try:
        sizes = _EntrySizes(settings.policy.folder.expanduser())
        needs = policy_needs(settings.policy.folder)
        frames = v_bytes = p_bytes = 0
        for chosen in settings.recordings.chosen:
            recording = read_recording(chosen.path)
            cameras = len(map_cameras(recording, needs, chosen.cameras).slots)
            count = round(recording.frames * (1 - len(chosen.leave_out) / max(1, recording.episodes)))
            letters = max((len(task) for task in recording.tasks), default=0)
            frames += count
            v_bytes += count * sizes.vision(cameras)
            p_bytes += count * sizes.prefix(cameras, 1 + letters // LETTERS_A_TOKEN)
    except (OperatorError, OSError, ValueError, KeyError, TypeError, ImportError):
        return None
    if not frames:
        return None
    cache = settings.cache
    folder = (cache.folder or folders.prefix_cache_folder()).expanduser()
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    kept = _kept(folder, {each.path.expanduser().resolve() for each in settings.recordings.chosen})
    return choose_level(
        CacheCase(
            frames=frames,
            v_bytes=v_bytes // frames,
            p_bytes=p_bytes // frames,
            memory_free=int(TRAINING_SHARE * usable_memory()[1]),
            disk_free=max(0, shutil.disk_usage(place).free - KEEP_FREE),
            budget=int(cache.budget_gb * 1e9),
            gpu=settings.training.device != "cpu" and bool(find_gpus(0, 0)),
            cores=usable_cores(),
            kept_v=min(frames, kept["V"]),
            kept_p=min(frames, kept["P"]),
            setting=cache.level,
        )
    )


class _EntrySizes:
    """Bytes of an entry, from the policy's configuration and the shapes in its file."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        config: dict[str, Any] = read_config(folder)
        with safe_open(folder / WEIGHTS, framework="np") as file:
            names = set(file.keys())

            def shape(name: str) -> list[int]:
                found: list[int] = file.get_slice(f"{_MODEL}{name}.weight").get_shape()
                return found

            width, _, _, patch = shape("vision_model.embeddings.patch_embedding")
            self._hidden, gathered = shape("connector.modality_projection.proj")
            self._values = shape("text_model.layers.0.self_attn.k_proj")[0]
        height, across = config["resize_imgs_with_padding"]
        self._tokens = (height // patch) * (across // patch) * width // gathered
        there = sum(f"{_MODEL}text_model.layers.{n}.self_attn.k_proj.weight" in names for n in range(len(names)))
        wanted = int(config.get("num_vlm_layers") or 0)
        self._layers = min(there, wanted) if wanted > 0 else there

    def vision(self, cameras: int) -> int:
        return cameras * self._tokens * self._hidden * BYTES

    def prefix(self, cameras: int, instruction: int) -> int:
        return self._layers * 2 * (cameras * self._tokens + instruction) * self._values * BYTES


def _kept(folder: Path, paths: set[Path]) -> dict[str, int]:
    found = {"V": 0, "P": 0}
    with PrefixCache(folder) as cache:
        for shelf in cache.shelves():
            path, level = shelf.about.get("path"), shelf.about.get("level")
            if isinstance(path, str) and Path(path).expanduser().resolve() in paths and level in found:
                found[level] += shelf.filled
    return found
