"""The demo's data: a tiny but real SmolVLA with its own tokenizer, and recordings of a simulated arm with real video.

Everything is made on this computer, from a seed, and the Hub is never asked. The arm moves in a plane: shoulder, elbow
and gripper, in degrees. It reaches for a cube, closes the gripper and carries the cube to where the task says. Nodes
differ in robot, task, camera, lighting and colours, as the robots of a real federation do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zk0desk.quiet import quiet_libraries
from zk0desk.training.policy_files import BACKBONE, copy_policy

FPS = 10
PIXELS = 96
"""Width and height of the demo's videos."""
JOINTS = ("shoulder.pos", "elbow.pos", "gripper.pos")
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>")
CAMERA_SLOTS = tuple(f"observation.images.camera{n}" for n in (1, 2, 3))
CHUNK = 16
"""Actions that the demo's policy predicts at once."""


@dataclass(frozen=True)
class Scene:
    """What one node's recording looks like. Lengths are fractions of the picture, angles degrees, colours RGB."""

    robot: str
    task: str
    cameras: tuple[str, ...]
    links: tuple[float, float]
    place: tuple[float, float]
    """Where the cube is carried, in the arm's frame, in link lengths of 1 altogether."""
    turn: float
    background: tuple[int, int, int]
    arm: tuple[int, int, int]
    cube: tuple[int, int, int]
    light: float


SCENES = (
    Scene(
        "desk-arm",
        "Put the red cube on the left.",
        ("top",),
        (0.24, 0.2),
        (-0.55, 0.5),
        0,
        (226, 222, 212),
        (58, 70, 86),
        (206, 60, 52),
        1.0,
    ),
    Scene(
        "bench-arm",
        "Put the green cube on the right.",
        ("top", "wrist"),
        (0.2, 0.24),
        (0.62, 0.4),
        12,
        (120, 132, 140),
        (222, 190, 96),
        (70, 168, 92),
        0.8,
    ),
    Scene(
        "lab-arm",
        "Stack the blue cube in the middle.",
        ("side",),
        (0.26, 0.18),
        (0.05, 0.72),
        -10,
        (66, 62, 74),
        (214, 214, 222),
        (78, 128, 226),
        0.6,
    ),
    Scene(
        "field-arm",
        "Put the yellow cube on the left.",
        ("top",),
        (0.22, 0.22),
        (-0.5, 0.6),
        6,
        (164, 176, 158),
        (84, 58, 52),
        (232, 200, 70),
        0.9,
    ),
)


def make_demo_policy(folder: Path, *, seed: int = 0) -> Path:
    """Make the demo's base policy in `folder`: LeRobot's `SmolVLAPolicy`, 4 layers, 64 px, random weights. Returns `folder`."""
    quiet_libraries()
    import tempfile

    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors

    with tempfile.TemporaryDirectory(prefix="zk0desk-policy-") as temporary:
        draft = Path(temporary) / "policy"
        backbone = draft / BACKBONE
        write_backbone(backbone)
        features = {slot: PolicyFeature(FeatureType.VISUAL, (3, PIXELS, PIXELS)) for slot in CAMERA_SLOTS}
        features["observation.state"] = PolicyFeature(FeatureType.STATE, (len(JOINTS),))
        config = SmolVLAConfig(
            input_features=features,
            output_features={"action": PolicyFeature(FeatureType.ACTION, (len(JOINTS),))},
            vlm_model_name=str(backbone),
            load_vlm_weights=False,
            num_vlm_layers=4,
            resize_imgs_with_padding=(64, 64),
            chunk_size=CHUNK,
            n_action_steps=CHUNK,
            tokenizer_max_length=24,
            device="cpu",
            push_to_hub=False,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            policy = SmolVLAPolicy(config)
        policy.save_pretrained(draft)
        for processor in make_smolvla_pre_post_processors(config):
            processor.save_pretrained(draft)
        return copy_policy(folder, draft)


def write_backbone(
    folder: Path, *, text: Mapping[str, Any] | None = None, vision: Mapping[str, Any] | None = None, scale_factor: int = 2
) -> None:
    """Write configuration and tokenizer of a tiny SmolVLM, as the four files that transformers reads.

    `text`, `vision` and `scale_factor` change its configuration; SmolVLM2-500M's numbers give the full architecture.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    colours, places = ("red", "green", "blue", "yellow"), ("on the left", "on the right", "in the middle", "into the box")
    verbs = ("Put", "Stack", "Pick up", "Grasp", "Place", "Push")
    tokenizer.train_from_iterator([f"{v} the {c} cube {p}.\n" for v in verbs for c in colours for p in places], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = 384
    text = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        # A random frozen backbone passes on what it sees only if its weights are not close to zero.
        "initializer_range": 0.12,
        **(text or {}),
    }
    vision = {
        "model_type": "smolvlm_vision",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 16,
        "initializer_range": 0.12,
        **(vision or {}),
    }
    files: dict[str, dict[str, Any]] = {
        "config.json": {
            "architectures": ["SmolVLMForConditionalGeneration"],
            "model_type": "smolvlm",
            "image_token_id": SPECIAL_TOKENS.index("<image>"),
            "pad_token_id": 0,
            "scale_factor": scale_factor,
            "tie_word_embeddings": False,
            "text_config": text,
            "vision_config": vision,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<pad>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "model_max_length": 512,
            "extra_special_tokens": {
                "fake_image_token": "<fake_token_around_image>",
                "global_image_token": "<global-img>",
                "image_token": "<image>",
                "end_of_utterance_token": "<end_of_utterance>",
                "video_token": "<video>",
            },
        },
        "processor_config.json": {
            "processor_class": "SmolVLMProcessor",
            "image_seq_len": 4,
            "image_processor": {
                "image_processor_type": "SmolVLMImageProcessor",
                "size": {"longest_edge": 64},
                "max_image_size": {"longest_edge": 64},
                "do_image_splitting": False,
            },
            "video_processor": {
                "video_processor_type": "SmolVLMVideoProcessor",
                "size": {"longest_edge": 64},
                "max_image_size": {"longest_edge": 64},
                "num_frames": 4,
                "fps": 1,
                "video_sampling": {"video_size": {"longest_edge": 64}, "max_frames": 4, "fps": 1},
            },
        },
    }
    for name, data in files.items():
        (folder / name).write_text(json.dumps(data, indent=2), encoding="utf-8")


def make_demo_recording(folder: Path, node: int, seed: int = 0, episodes: int = 5, frames: int = 36) -> Path:
    """Make the recording of node number `node` (0, 1, ...) in `folder`: LeRobotDataset v3.0 with video. Returns `folder`.

    From the fifth node on scenes come again with another robot name and other draws.
    """
    scene = SCENES[node % len(SCENES)]
    if node >= len(SCENES):
        scene = replace(scene, robot=f"{scene.robot}-{node // len(SCENES) + 1}", turn=scene.turn + 5 * (node // len(SCENES)))
    return _record(folder, [scene] * episodes, frames, np.random.default_rng([seed, 1, node]))


def make_demo_held_out(folder: Path, seed: int = 0, episodes: int = 4, frames: int = 24) -> Path:
    """Make the held-out recording in `folder`: another robot that meets the nodes' tasks in turn. Returns `folder`."""
    scenes = [
        replace(
            SCENES[n % len(SCENES)],
            robot="held-out-arm",
            cameras=("top",),
            links=(0.23, 0.21),
            turn=3,
            background=(190, 188, 184),
            light=0.9,
        )
        for n in range(episodes)
    ]
    return _record(folder, scenes, frames, np.random.default_rng([seed, 2]))


def _record(folder: Path, scenes: Sequence[Scene], frames: int, draw: np.random.Generator) -> Path:
    quiet_libraries()
    import av.logging
    import datasets
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    datasets.disable_progress_bars()
    # LeRobot puts FFmpeg's own log on standard error back each time it encodes.
    av.logging.set_libav_level(av.logging.ERROR)
    folder = Path(folder)
    vector = {"dtype": "float32", "shape": (len(JOINTS),), "names": list(JOINTS)}
    picture = {"dtype": "video", "shape": (PIXELS, PIXELS, 3), "names": ["height", "width", "channels"]}
    cameras = {f"observation.images.{name}": picture for name in scenes[0].cameras}
    dataset = LeRobotDataset.create(
        f"demo/{folder.name}",
        fps=FPS,
        features={"action": vector, "observation.state": vector, **cameras},
        root=folder,
        robot_type=scenes[0].robot,
        video_backend="pyav",
        # Slower presets than this use x264's macroblock tree, which reads memory that nobody wrote (as MALLOC_PERTURB_ shows): now
        # and then a picture was another one.
        rgb_encoder=RGBEncoderConfig(vcodec="h264", preset="superfast", crf=20),
        streaming_encoding=True,
        encoder_threads=1,
        # A full queue drops frames; the whole episode fits.
        encoder_queue_maxsize=frames + 1,
    )
    try:
        for scene in scenes:
            states, actions, cubes = _episode(scene, frames, draw)
            for state, action, cube in zip(states, actions, cubes, strict=True):
                pictures = {f"observation.images.{name}": _picture(scene, name, state, cube) for name in scene.cameras}
                dataset.add_frame({"observation.state": state, "action": action, "task": scene.task, **pictures})
            dataset.save_episode()
    finally:
        dataset.finalize()
    return folder


def _reach(scene: Scene, point: np.ndarray) -> np.ndarray:
    """Shoulder and elbow in degrees that bring the hand to `point` (inverse kinematics of two links)."""
    a, b = scene.links
    x, y = point * (a + b)
    distance = min(math.hypot(x, y), 0.999 * (a + b))
    elbow = math.acos(max(-1.0, min(1.0, (distance**2 - a**2 - b**2) / (2 * a * b))))
    shoulder = math.atan2(y, x) - math.atan2(b * math.sin(elbow), a + b * math.cos(elbow))
    return np.degrees(np.array([shoulder, elbow]))


def _hand(scene: Scene, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Elbow's and hand's place in fractions of the picture, from the shoulder."""
    first, second = math.radians(state[0]), math.radians(state[0] + state[1])
    elbow = scene.links[0] * np.array([math.cos(first), math.sin(first)])
    return elbow, elbow + scene.links[1] * np.array([math.cos(second), math.sin(second)])


def _episode(scene: Scene, frames: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States and actions (frames, 3) in degrees, and the cube's place in each frame: reach, grasp, carry."""
    angle, radius = draw.uniform(0.25, 0.75) * math.pi, draw.uniform(0.55, 0.9)
    cube = radius * np.array([math.cos(angle), math.sin(angle)])
    place = np.array(scene.place) + draw.normal(0, 0.03, 2)
    home = np.array([draw.uniform(60, 120), draw.uniform(30, 90), 60.0])
    at_cube, at_place = _reach(scene, cube), _reach(scene, place)
    keys = [home, np.array([*at_cube, 60.0]), np.array([*at_cube, 8.0]), np.array([*at_place, 8.0]), np.array([*at_place, 60.0])]
    times = np.array([0.0, 0.38, 0.5, 0.88, 1.0])
    path = np.empty((frames + 1, 3))
    for index, moment in enumerate(np.linspace(0, 1, frames + 1)):
        leg = min(int(np.searchsorted(times, moment, side="right")) - 1, len(keys) - 2)
        part = (moment - times[leg]) / (times[leg + 1] - times[leg])
        path[index] = keys[leg] + (keys[leg + 1] - keys[leg]) * part**3 * (10 - 15 * part + 6 * part**2)
    states = path[:-1] + draw.normal(0, 0.4, (frames, 3))
    total = sum(scene.links)
    grasped, released = int(0.5 * frames), int(0.94 * frames)
    cubes = np.empty((frames, 2))
    for index in range(frames):
        held = grasped <= index < released
        cubes[index] = _hand(scene, states[index])[1] if held else cube * total if index < grasped else cubes[index - 1]
    return states.astype(np.float32), path[1:].astype(np.float32), cubes


def _picture(scene: Scene, camera: str, state: np.ndarray, cube: np.ndarray) -> np.ndarray:
    """What `camera` sees: (PIXELS, PIXELS, 3) uint8. Drawn at twice the size and reduced, for smooth edges."""
    from PIL import Image, ImageDraw

    size = 2 * PIXELS
    elbow, hand = _hand(scene, state)
    turn = math.radians(scene.turn)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    centre, zoom = np.zeros(2), 1.0
    base = np.array([0.5, 0.82])
    if camera == "wrist":
        centre, zoom, base = hand, 2.2, np.array([0.5, 0.6])
    elif camera == "side":
        rotation = rotation @ np.array([[1.0, 0.35], [0.0, 0.8]])

    def spot(point: np.ndarray) -> tuple[float, float]:
        x, y = rotation @ (point - centre) * zoom
        return (base[0] + x) * size, (base[1] - y) * size

    def lit(colour: tuple[int, int, int]) -> tuple[int, int, int]:
        red, green, blue = (min(255, round(value * scene.light)) for value in colour)
        return red, green, blue

    image = Image.new("RGB", (size, size), lit(scene.background))
    pen = ImageDraw.Draw(image)
    shade = lit(tuple(round(0.85 * value) for value in scene.background))  # type: ignore[arg-type]
    pen.rectangle((0, 0.86 * size, size, size), fill=shade)
    total = sum(scene.links)
    x, y = spot(np.array(scene.place) * total)
    half = 0.07 * size * zoom
    pen.ellipse((x - half, y - half, x + half, y + half), outline=lit(scene.cube), width=3)
    x, y = spot(cube)
    half = 0.045 * size * zoom
    pen.rectangle((x - half, y - half, x + half, y + half), fill=lit(scene.cube))
    width = round(0.055 * size * zoom)
    pen.line([spot(np.zeros(2)), spot(elbow), spot(hand)], fill=lit(scene.arm), width=width, joint="curve")
    opening = 0.012 + 0.05 * float(state[2]) / 60
    along = hand - elbow
    along /= max(float(np.hypot(*along)), 1e-6)
    across = np.array([-along[1], along[0]]) * opening
    for side in (across, -across):
        pen.line([spot(hand), spot(hand + side), spot(hand + side + 0.05 * along)], fill=lit(scene.arm), width=max(3, width // 3))
    return np.asarray(image.reduce(2))
