"""What both sides of `benchmarks/local_round.py` train: SmolVLA with random weights, and the first frames of a real recording."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

RECORDINGS = Path(__file__).resolve().parents[2] / "shared" / "recordings"
NAMES = ("top", "second")
"""Cameras of the recording that is made."""
SLOTS = {f"observation.images.camera{n}": f"observation.images.{name}" for n, name in enumerate(NAMES, 1)}


def prepare(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make policy and recording in `folder`, unless they are there; what the recording is."""
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    source = RECORDINGS / "cr5-cube"
    real = source.is_dir()
    if not (folder / "recording").exists():
        make_recording(folder / "recording", source if real else None, given.frames, given.cameras)
    meta = LeRobotDatasetMetadata("local/recording", root=folder / "recording")
    height, width, _ = meta.features["observation.images.top"]["shape"]
    if not (folder / "policy").exists():
        state, action = (meta.features[key]["shape"][0] for key in ("observation.state", "action"))
        make_policy(folder / "policy", given.size, state, action, (3, height, width))
    return {"recording": "cr5-cube" if real else "generated", "picture": [height, width]}


def make_policy(folder: Path, size: str, state: int, action: int, picture: tuple[int, ...]) -> None:
    """SmolVLA with random weights for this robot: 450,046,176 parameters, or the demo's 4 layers."""
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    from zk0desk.training.demo_data import CAMERA_SLOTS, CHUNK, write_backbone

    backbone = folder / "vlm"
    small: dict[str, Any] = {}
    if size == "full":
        text = {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15}
        text |= {"num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280, "initializer_range": 0.02}
        vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 512}
        write_backbone(backbone, text=text, vision={**vision, "initializer_range": 0.02}, scale_factor=4)
    else:
        write_backbone(backbone)
        small = {"num_vlm_layers": 4, "resize_imgs_with_padding": (64, 64), "chunk_size": CHUNK, "n_action_steps": CHUNK}
    features = {slot: PolicyFeature(FeatureType.VISUAL, picture) for slot in CAMERA_SLOTS}
    config = SmolVLAConfig(
        input_features={**features, "observation.state": PolicyFeature(FeatureType.STATE, (state,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (action,))},
        vlm_model_name=str(backbone),
        load_vlm_weights=False,
        device="cpu",
        push_to_hub=False,
        **small,
    )
    torch.manual_seed(0)
    SmolVLAPolicy(config).save_pretrained(folder)


def make_recording(folder: Path, source: Path | None, frames: int, cameras: int) -> None:
    """The first frames of `source`, encoded again by LeRobot with its own settings; a second camera repeats the first a frame later."""
    import numpy as np
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from zk0desk.training.demo_data import make_demo_recording

    if source is None:
        source = make_demo_recording(folder.with_name("made"), 0, episodes=-(-frames // 36))
    given = LeRobotDataset(f"local/{source.name}", root=source, video_backend="pyav")
    seen = given.meta.camera_keys[0]
    keys = ("observation.state", "action")
    features = {key: {name: given.features[key][name] for name in ("dtype", "shape", "names")} for key in keys}
    picture = {name: given.features[seen][name] for name in ("dtype", "shape", "names")}
    cut = LeRobotDataset.create(
        "local/cut",
        fps=given.fps,
        features=features | {f"observation.images.{name}": picture for name in NAMES[:cameras]},
        root=folder,
        video_backend="pyav",
        streaming_encoding=True,
        encoder_queue_maxsize=frames + 1,
    )

    def image(item: dict[str, Any]) -> np.ndarray:
        return (item[seen].permute(1, 2, 0) * 255).round().byte().numpy()

    try:
        following = given[0]
        for number in range(frames):
            item, following = following, given[(number + 1) % len(given)]
            ends = number + 1 == frames or int(following["episode_index"]) != int(item["episode_index"])
            pictures = (image(item), image(item if ends else following))
            shown = {f"observation.images.{name}": each for name, each in zip(NAMES[:cameras], pictures, strict=False)}
            cut.add_frame({key: item[key].numpy() for key in keys} | {"task": item["task"]} | shown)
            if ends:
                cut.save_episode()
    finally:
        cut.finalize()
