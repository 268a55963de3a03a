"""What `benchmarks/ablation.py` trains on: real recordings, shared out to nodes by task and by time within an episode, and the base policy.

cr5-cube     episodes 0, 1   the base policy, trained centrally          episodes 2, 3   the node "cube"      episode 4   retention
cr5-banana   episodes 0-2    the nodes "early", "middle", "late": a third of each episode                     episode 3   held out
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from local_round_data import RECORDINGS

CUBE, BANANA = "cr5-cube", "cr5-banana"
THIRDS = ("early", "middle", "late")
TASK_OF = {**dict.fromkeys(THIRDS, "banana"), "cube": "cube"}
"""The nodes' shares of the data, and whose task each is."""
BASE_LR, BASE_BATCH = 2e-3, 16


def cut(source: Path, target: Path, parts: list[tuple[int, int, int]]) -> None:
    """A recording (format v3.0) of frames `start` to `stop` (exclusive) of `episode`, for each of `parts`, in rising order of episodes.

    Each becomes an episode. Video and statistics are the source's: the parts of a robot's recording are normalised alike.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=shutil.copyfile)
    info = json.loads((source / "meta" / "info.json").read_text())
    (data_file,) = (partial / "data").rglob("*.parquet")
    (table_file,) = (partial / "meta" / "episodes").rglob("*.parquet")
    data, table = pq.read_table(data_file), pq.read_table(table_file)
    numbers = {name: np.asarray(data[name]) for name in ("episode_index", "frame_index", "timestamp")}
    rows, of, start_of = [], [], []
    for number, (episode, start, stop) in enumerate(parts):
        inside = (numbers["episode_index"] == episode) & (numbers["frame_index"] >= start) & (numbers["frame_index"] < stop)
        found = np.flatnonzero(inside)
        rows.append(found)
        of.append(np.full(len(found), number))
        start_of.append(np.full(len(found), found[0]))
    chosen, number_of, first = (np.concatenate(each) for each in (rows, of, start_of))
    new = {
        "episode_index": number_of,
        "frame_index": numbers["frame_index"][chosen] - numbers["frame_index"][first],
        "timestamp": numbers["timestamp"][chosen] - numbers["timestamp"][first],
        "index": np.arange(len(chosen)),
    }
    pq.write_table(_with(data.take(pa.array(chosen)), new), data_file)
    lengths = np.array([len(found) for found in rows])
    ends = np.cumsum(lengths)
    about = {"episode_index": np.arange(len(parts)), "length": lengths, "dataset_from_index": ends - lengths, "dataset_to_index": ends}
    taken = table.take(pa.array([episode for episode, _, _ in parts]))
    for name in (name for name in table.column_names if name.endswith("/from_timestamp")):
        begins = np.asarray(taken[name]) + np.array([start for _, start, _ in parts]) / info["fps"]
        about |= {name: begins, name.replace("/from_", "/to_"): begins + lengths / info["fps"]}
    pq.write_table(_with(taken, about), table_file)
    info |= {"total_episodes": len(parts), "total_frames": len(chosen), "splits": {"train": f"0:{len(parts)}"}}
    (partial / "meta" / "info.json").write_text(json.dumps(info))
    partial.replace(target)


def _with(table: object, columns: dict[str, np.ndarray]) -> object:
    import pyarrow as pa

    for name, values in columns.items():
        place = table.schema.get_field_index(name)  # type: ignore[attr-defined]
        field = table.schema.field(place)  # type: ignore[attr-defined]
        table = table.set_column(place, field, pa.array(values).cast(field.type))  # type: ignore[attr-defined]
    return table


def lengths(source: Path) -> list[int]:
    """Frames of each episode."""
    import pyarrow.parquet as pq

    (table_file,) = (source / "meta" / "episodes").rglob("*.parquet")
    return [int(each) for each in pq.read_table(table_file, columns=["length"])["length"].to_pylist()]


def share_out(folder: Path, recordings: Path = RECORDINGS) -> dict[str, Path]:
    """Make what is missing in `folder`: the nodes' shares and `base`, `held-out`, `retention`. Where each is."""
    plan: dict[str, tuple[str, list[tuple[int, int, int]]]] = {}
    of = {name: lengths(recordings / name) for name in (CUBE, BANANA)}
    for third, name in enumerate(THIRDS):
        plan[name] = BANANA, [(n, third * of[BANANA][n] // 3, (third + 1) * of[BANANA][n] // 3) for n in (0, 1, 2)]
    for name, source, episodes in (
        ("cube", CUBE, (2, 3)), ("base", CUBE, (0, 1)), ("held-out", BANANA, (3,)), ("retention", CUBE, (4,)),
    ):  # fmt: skip
        plan[name] = source, [(n, 0, of[source][n]) for n in episodes]
    for name, (source, parts) in plan.items():
        if not (folder / name).exists():
            folder.mkdir(parents=True, exist_ok=True)
            cut(recordings / source, folder / name, parts)
    return {name: folder / name for name in plan}


def tiny_policy(folder: Path) -> Path:
    """SmolVLA with random weights for this robot, made in `folder` unless it is there: two layers, one of each kind."""
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    from zk0desk.training.demo_data import CAMERA_SLOTS, CHUNK, write_backbone

    if folder.exists():
        return folder
    write_backbone(folder / "vlm")
    features = {slot: PolicyFeature(FeatureType.VISUAL, (3, 480, 640)) for slot in CAMERA_SLOTS}
    config = SmolVLAConfig(
        input_features={**features, "observation.state": PolicyFeature(FeatureType.STATE, (6,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
        vlm_model_name=str(folder / "vlm"), load_vlm_weights=False, num_vlm_layers=2, resize_imgs_with_padding=(64, 64),
        chunk_size=CHUNK, n_action_steps=CHUNK, device="cpu", push_to_hub=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        SmolVLAPolicy(config).save_pretrained(folder)
    return folder


def base_weights(policy: object, recording: Path, cache: object, kept: Path, steps: int) -> np.ndarray:
    """The trainable set after central training on `recording`, flat float32; kept in the file `kept`.

    A kept one is taken whatever `steps` says."""
    from zk0desk.control import NodeControl
    from zk0desk.settings import ChosenRecording
    from zk0desk.training.rounds import RoundPlan
    from zk0desk.training.trainer import LocalTrainer

    if kept.exists():
        return np.load(kept)
    trainer = LocalTrainer(
        policy, [ChosenRecording(path=recording)], node="base", device="cpu", precision="fp32", threads=1, cache=cache,
        emit=lambda _: None, control=NodeControl(),
    )  # fmt: skip
    plan = RoundPlan(run="base", round=1, rounds=1, seed=0, lr=BASE_LR, mu=0.0, batch_size=BASE_BATCH, local_steps=steps)
    weights = policy.get_weights()  # type: ignore[attr-defined]
    weights = weights + trainer.train(plan, weights).delta
    trainer.close()
    np.save(kept, weights)
    return weights
