"""SmolVLA on this computer: loaded in pinned precision, frozen but for the trainable set, and saved with own processors."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zk0desk.quiet import quiet_libraries
from zk0desk.settings import ChosenRecording
from zk0desk.training.layout import Layout
from zk0desk.training.loading import load_engine
from zk0desk.training.policy_files import (
    BACKBONE,
    PolicyError,
    PolicyFiles,
    is_trainable,
    read_config,
    read_policy,
    write_policy,
)

if TYPE_CHECKING:
    import torch
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    from zk0desk.training.frames import Frames

_log = logging.getLogger(__name__)


class TrainablePolicy:
    """LeRobot's `SmolVLAPolicy` in float32 of which only the trainable set requires gradients.

    `parameters` are the trainable set's, in the order of the layout. Not thread-safe.
    """

    def __init__(self, policy: SmolVLAPolicy, files: PolicyFiles) -> None:
        self.policy = policy
        self.files = files
        named = dict(policy.named_parameters())
        for name, parameter in named.items():
            parameter.requires_grad_(is_trainable(name))
        self.parameters: list[torch.nn.Parameter] = [named[name] for name in sorted(named) if is_trainable(name)]
        self.layout = module_layout(policy)
        self._frames: tuple[tuple[ChosenRecording, ...], Frames] | None = None

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> TrainablePolicy:
        """Load the policy in `folder`. `PolicyError` when it cannot be; `EngineMissingError` without torch or LeRobot."""
        quiet_libraries()
        files = read_policy(Path(folder))
        load_engine()
        import torch
        from lerobot.configs import PreTrainedConfig
        from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

        try:
            _hush_lerobot()
            config = PreTrainedConfig.from_pretrained(files.folder)
            config.device = "cpu"
            # The weights come from the policy's file; loading the backbone's own would make it bfloat16.
            config.load_vlm_weights = False
            if (files.folder / BACKBONE).is_dir():
                config.vlm_model_name = str(files.folder / BACKBONE)
            with torch.random.fork_rng(devices=[]):
                policy = SmolVLAPolicy.from_pretrained(files.folder, config=config)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise PolicyError(
                f"The policy in {files.folder} cannot be loaded.",
                f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}",
                "Its backbone's configuration and tokenizer must be in a folder of its own, or in the Hub's cache on this computer.",
            ) from error
        policy.float().to(device)
        loaded = cls(policy, files)
        if loaded.layout != files.layout:
            raise PolicyError(
                f"The policy in {files.folder} is not whole.", "Its file and its configuration name different tensors.", "Fetch it again."
            )
        _require_backbone(policy, files)
        return loaded

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.parameters[0].device

    def frames_of(self, recordings: Sequence[ChosenRecording]) -> Frames:
        """The frames of `recordings` for this policy; the last ones asked for are kept, with what was decoded of them."""
        from zk0desk.training.frames import Frames

        key = tuple(each.model_copy(deep=True) for each in recordings)
        if self._frames is None or self._frames[0] != key:
            self._frames = (key, Frames(self, recordings))
        return self._frames[1]

    def get_weights(self) -> np.ndarray:
        """The trainable set, float32, flat, in the order of the layout. A copy."""
        flat = np.empty(self.layout.size, np.float32)
        start = 0
        for parameter in self.parameters:
            flat[start : start + parameter.numel()] = parameter.detach().reshape(-1).cpu().numpy()
            start += parameter.numel()
        return flat

    def set_weights(self, weights: np.ndarray) -> None:
        """Replace the trainable set. ValueError unless `weights` is float32, finite and of the layout's size."""
        import torch

        if weights.dtype != np.float32 or weights.shape != (self.layout.size,):
            raise ValueError(f"weights are {weights.dtype} {weights.shape}, the layout is float32 ({self.layout.size},)")
        if not np.isfinite(weights).all():
            raise ValueError("weights are not finite")
        start = 0
        with torch.no_grad():
            for parameter in self.parameters:
                piece = np.ascontiguousarray(weights[start : start + parameter.numel()])
                parameter.copy_(torch.from_numpy(piece.copy()).view(parameter.shape))
                start += parameter.numel()


def _hush_lerobot() -> None:
    """LeRobot prints while it loads; standard output belongs to the events that headless commands print."""
    from lerobot.policies import pretrained
    from lerobot.policies.smolvla import smolvlm_with_expert

    for module in (pretrained, smolvlm_with_expert):
        module.__dict__["print"] = lambda *words, **_: _log.debug("%s", " ".join(map(str, words)))


def module_layout(policy: torch.nn.Module) -> Layout:
    """The layout of the trainable set of a `SmolVLAPolicy`."""
    named = dict(policy.named_parameters())
    return Layout(tuple((name, tuple(named[name].shape), "float32") for name in sorted(named) if is_trainable(name)))


def _require_backbone(policy: SmolVLAPolicy, files: PolicyFiles) -> None:
    """LeRobot fills what a file lacks with random numbers; refuse that."""
    counted = sum(parameter.numel() for parameter in policy.parameters())
    if counted != files.parameters:
        raise PolicyError(
            f"The policy in {files.folder} is not whole.",
            f"SmolVLA with this configuration has {counted:,} parameters, the file holds {files.parameters:,}.",
            "Fetch the policy again.",
        )


def save_processors(target: Path, policy_folder: Path, recordings: Sequence[ChosenRecording]) -> Path:
    """Write to `target` the `config.json` and processors of the policy with these recordings' statistics and camera names.

    `write_policy(..., processors_from=target)` takes them from there. The processors are for the robot of the first recording;
    recordings of that robot are pooled, others are left out of the statistics. Returns `target`.
    """
    quiet_libraries()
    from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
    from lerobot.datasets.compute_stats import aggregate_stats
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors

    from zk0desk.training.frames import camera_slots, require_readable

    if not recordings:
        raise PolicyError(
            "The policy cannot be saved.", "No recordings are chosen whose statistics it would carry.", "Choose recordings first."
        )
    policy_folder, target = Path(policy_folder).expanduser().absolute(), Path(target)
    read_config(policy_folder)
    target.mkdir(parents=True, exist_ok=True)
    metas = []
    rename: dict[str, str] = {}
    for chosen in recordings:
        require_readable(chosen.path)
        metas.append(LeRobotDatasetMetadata(f"local/{chosen.path.name}", root=chosen.path))
        rename |= {camera: slot for slot, camera in camera_slots(policy_folder, chosen).items() if camera != slot}
    keys = ("observation.state", "action")
    shapes = {key: tuple(metas[0].features[key]["shape"]) for key in keys}
    alike = [meta for meta in metas if all(tuple(meta.features[key]["shape"]) == shapes[key] for key in keys)]
    stats = aggregate_stats([{key: meta.stats[key] for key in keys} for meta in alike])
    config = PreTrainedConfig.from_pretrained(policy_folder)
    config.device = "cpu"
    if (policy_folder / BACKBONE).is_dir():
        config.vlm_model_name = str(policy_folder / BACKBONE)
    config.input_features["observation.state"] = PolicyFeature(FeatureType.STATE, shapes["observation.state"])
    config.output_features["action"] = PolicyFeature(FeatureType.ACTION, shapes["action"])
    config._save_pretrained(target)
    preprocessor, postprocessor = make_smolvla_pre_post_processors(config, stats)
    preprocessor.steps[0].rename_map = rename
    preprocessor.save_pretrained(target)
    postprocessor.save_pretrained(target)
    return target


def save_shared_policy(target: Path, base_folder: Path, weights: np.ndarray, recordings: Sequence[ChosenRecording]) -> Path:
    """Write the federation's weights with this operator's processors and statistics; LeRobot loads the folder `target`."""
    with tempfile.TemporaryDirectory(prefix="zk0desk-processors-") as temporary:
        return write_policy(target, base_folder, weights, processors_from=save_processors(Path(temporary), base_folder, recordings))
