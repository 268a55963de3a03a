"""Recordings that are damaged at random, and what the checks say of them.

    python tests/training/mutations.py [--count 1000] [--seed 0] [--base FOLDER]

Each mutant is a copy of a small recording (or of FOLDER) with one to three changes of its metadata, parquet or video
bytes. Its deep check has to end within `LIMIT_S` in findings or `ok`, never in an exception; one that is `ok` has to give
every episode's first, middle and last frame through LeRobot as training reads them. The last line holds all figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zk0desk.training.recordings import CheckResult, PolicyNeeds, deep_check

LIMIT_S = 30
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    "",
    "\x00",
    "../../etc",
    "v3.0",
    [],
    [[]],
    {},
    {"a": {"b": []}},
    [1, "x"],
    3.5,
    "nan",
)


class Died(Exception):
    """A check, or the training after it, ended in a way that it must not. `stage` says which."""

    def __init__(self, stage: str, error: BaseException) -> None:
        super().__init__(f"{stage}: {type(error).__name__}: {error}")
        self.stage = stage


# --- changes


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside of `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def change_json(file: Path, draw: random.Random) -> str:
    """Replace or remove a value somewhere inside."""
    data = json.loads(file.read_text())
    places = list(_places(data))
    *path, last = draw.choice(places)
    inside = data
    for key in path:
        inside = inside[key]
    if draw.random() < 0.3:
        del inside[last]
        what = "removed"
    else:
        inside[last] = draw.choice(ODD)
        what = f"= {inside[last]!r:.20}"
    file.write_text(json.dumps(data))
    return f"{file.name}: {'.'.join(map(str, [*path, last]))} {what}"


def change_bytes(file: Path, draw: random.Random) -> str:
    """Flip, cut, blank, double or empty."""
    raw = bytearray(file.read_bytes())
    if not raw:
        return f"{file.name}: was empty"
    how = draw.choice(["flip", "flip", "cut", "blank", "insert", "empty", "swap"])
    at, size = draw.randrange(len(raw)), draw.choice([1, 16, 512, 8192])
    if how == "flip":
        for _ in range(draw.choice([1, 4, 32])):
            raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del raw[at:]
    elif how == "blank":
        raw[at : at + size] = bytes(len(raw[at : at + size]))
    elif how == "insert":
        raw[at:at] = draw.randbytes(size)
    elif how == "empty":
        raw.clear()
    else:
        other = draw.randrange(len(raw))
        raw[at : at + size], raw[other : other + size] = raw[other : other + size], raw[at : at + size]
    file.write_bytes(raw)
    return f"{file.name}: {how} at {at}"


def change_table(file: Path, draw: random.Random) -> str:
    """Another value, type, name or number of rows in a whole parquet file."""
    table = pq.read_table(file)
    name = draw.choice(table.column_names)
    column = table.column(name)
    at = table.column_names.index(name)
    how = draw.choice(["drop", "rename", "value", "value", "type", "rows", "twice", "null", "shuffle"])
    if how == "drop":
        table = table.remove_column(at)
    elif how == "rename":
        table = table.rename_columns([f"{each}_" if each == name else each for each in table.column_names])
    elif how == "rows":
        table = table.slice(draw.randrange(max(1, table.num_rows)), draw.randrange(1, max(2, table.num_rows)))
    elif how == "twice":
        table = pa.concat_tables([table, table])
    elif how == "null":
        table = table.set_column(at, name, pa.nulls(table.num_rows, column.type))
    elif how == "shuffle":
        order = list(range(table.num_rows))
        draw.shuffle(order)
        table = table.take(order)
    elif how == "type":
        table = table.set_column(at, name, pa.array([str(value) for value in column.to_pylist()]))
    else:
        values = column.to_pylist()
        row = draw.randrange(max(1, len(values)))
        if values and isinstance(values[row], list):
            inner = draw.randrange(max(1, len(values[row])))
            values[row] = [*values[row][:inner], draw.choice([float("nan"), 1e30, -5.0]), *values[row][inner + 1 :]]
        elif values and isinstance(values[row], float):
            values[row] = draw.choice([float("nan"), float("inf"), -1.0, 1e9])
        elif values and isinstance(values[row], int):
            values[row] = draw.choice([-1, 0, 1, 99, 2**31, 2**40])
        try:
            table = table.set_column(at, name, pa.array(values, column.type))
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return f"{file.name}: nothing"
    pq.write_table(table, file)
    return f"{file.name}: {name} {how}"


def change_tree(folder: Path, draw: random.Random) -> str:
    """Remove, rename, or double a file, or put a folder in its place."""
    file = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    how = draw.choice(["remove", "rename", "double", "folder", "exchange"])
    if how == "remove":
        file.unlink()
    elif how == "rename":
        file.rename(file.with_name("other" + file.suffix))
    elif how == "double":
        shutil.copy2(file, file.with_name("file-001" + file.suffix))
    elif how == "folder":
        file.unlink()
        file.mkdir()
    else:
        other = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        first, second = file.read_bytes(), other.read_bytes()
        file.write_bytes(second)
        other.write_bytes(first)
    return f"{file.relative_to(folder)}: {how}"


def mutate(folder: Path, draw: random.Random) -> list[str]:
    """Change the recording in `folder` in one to three places; what was done."""
    done = []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not files:
            break
        kinds: list[tuple[Callable[[Path, random.Random], str], list[Path]]] = [
            (change_json, [file for file in files if file.suffix == ".json"]),
            (change_table, [file for file in files if file.suffix == ".parquet"]),
            (change_bytes, [file for file in files if file.suffix == ".mp4"]),
            (change_bytes, [file for file in files if file.suffix in (".parquet", ".json")]),
            (change_tree, [folder]),
        ]
        act, places = draw.choice([kind for kind in kinds if kind[1]])
        place = draw.choice(places)
        try:
            done.append(act(place, draw))
        except (ValueError, KeyError, IndexError, TypeError, OSError, pa.ArrowException):
            done.append(f"{place.name}: could not be changed any more")
    return done


# --- what is asked of each mutant


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` in this thread when the block takes longer."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def judge(folder: Path, *, train: bool) -> CheckResult:
    """The deep check's answer; with `train` an `ok` is put to the proof. `Died` when either goes wrong."""
    try:
        with within(LIMIT_S):
            result = deep_check(folder, PolicyNeeds(), again=True)
            json.dumps(result.to_json())
    except Exception as error:
        raise Died("check", error) from error
    if result.status == "unusable" and not result.findings:
        raise Died("check", ValueError("unusable without a finding"))
    if train and result.status == "ok":
        import lerobot.datasets.lerobot_dataset  # noqa: F401  # its seconds are no mutant's

        try:
            with within(LIMIT_S):
                read_as_training_does(folder)
        except Exception as error:
            raise Died("training", error) from error
    return result


def read_as_training_does(folder: Path) -> None:
    """Every episode's first, middle and last frame, as LeRobot gives them, have to be there and finite."""
    from zk0desk.quiet import quiet_libraries

    quiet_libraries()
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = LeRobotDataset("local/mutant", root=folder, video_backend="pyav")
    for episode in data.meta.episodes:
        first, length = episode["dataset_from_index"], episode["dataset_to_index"] - episode["dataset_from_index"]
        for row in sorted({first, first + length // 2, first + length - 1}):
            item = data[row]
            for key in ("observation.state", "action"):
                if not np.isfinite(item[key].numpy()).all():
                    raise ValueError(f"{key} of row {row} is not finite")


def mutants(base: Path, count: int, seed: int) -> Iterator[tuple[int, Path, list[str]]]:
    """`count` mutants of `base`, each in a folder that goes when the next comes."""
    for number in range(seed, seed + count):
        with tempfile.TemporaryDirectory(prefix="mutant-") as place:
            folder = Path(place) / "recording"
            shutil.copytree(base, folder)
            yield number, folder, mutate(folder, random.Random(number))


def main() -> int:
    """Make, judge, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", type=Path, help="a whole recording; default: a small one that is made")
    parser.add_argument("--no-training", action="store_true", help="believe an ok")
    chosen = parser.parse_args()
    counts: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    slowest, began = 0.0, time.perf_counter()
    with tempfile.TemporaryDirectory() as home:
        base = chosen.base
        if base is None:
            from recording_parts import make_recording  # beside this program

            base = make_recording(Path(home) / "base")
        for number, folder, done in mutants(base, chosen.count, chosen.seed):
            start = time.perf_counter()
            try:
                result = judge(folder, train=not chosen.no_training)
            except Died as died:
                counts[f"died in {died.stage}"] += 1
                print(f"{number}: {'; '.join(done)}\n    {died}", flush=True)
                if died.stage == "check":
                    traceback.print_exception(died.__cause__, limit=-4)
            else:
                counts[result.status] += 1
                codes.update({finding.code for finding in result.findings})
            slowest = max(slowest, time.perf_counter() - start)
    print(json.dumps({"mutants": chosen.count, **counts, "slowest-s": round(slowest, 2), "seconds": round(time.perf_counter() - began, 1),
                      "codes": dict(codes.most_common())}))  # fmt: skip
    return 1 if any(name.startswith("died") for name in counts) else 0


if __name__ == "__main__":
    sys.exit(main())
