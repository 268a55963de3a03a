"""How changes travel: bytes, speed and errors of fp32, fp16 and int8: `python benchmarks/codec.py [--quick] [--learn]`.

Without `--learn`: a change as AdamW makes it, of the full trainable set (99,880,992 values; `--quick`: 8 million), is encoded and decoded
piece by piece, and goes through a round's whole path on both sides: the node's error feedback with its file, the coordinator's step to the
next weights with its files, the node's adding of the difference. Times are processor time of this process, which other programs change
little; megabytes a second are of float32. Bytes are those of a Flower message with all that is around the arrays. An error is the norm of
what is lost by the norm of what was to be sent: of one round's change, and of the sum over four rounds.

With `--learn`: two nodes train the tiny SmolVLA for 20 rounds with `LocalTrainer`, through the same parts, once for each encoding and seed;
the held-out losses at the end are compared, and the errors are those of what was trained. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from statistics import mean, median, stdev
from types import SimpleNamespace
from typing import Any

import numpy as np

from zk0desk.federation import strategy, updates
from zk0desk.federation.error_feedback import ErrorFeedback
from zk0desk.federation.local_round import piece_name
from zk0desk.federation.messages import TrainRequest
from zk0desk.federation.weights_chain import WeightsChain
from zk0desk.quiet import quiet_libraries

FULL, QUICK = 99_880_992, 8_000_000
LIMIT = 101e6
"""Bytes each way a round that the full trainable set may take."""
DESIGNED = {"fp16": (2e-4, None), "int8": (4e-3, 1e-3)}
"""Relative errors that the design names: once, and after four rounds."""
HEX = "0" * 64


def request(run: str, number: int, encoding: str, accepted: int, **more: Any) -> TrainRequest:
    """What a round asks for, as far as the codec is concerned."""
    values = {"lr": 1e-4, "proximal_mu": 0.01, "batch_size": 8, "seed": 0, **more}
    return TrainRequest(
        run_uid=run, server_round=number, num_rounds=1000, policy_id="p", backbone_sha256=HEX, layout_sha256=HEX, weights_sha256=HEX,
        base_sha256=HEX, encoding=encoding, accepted_round=accepted, **values,
    )  # fmt: skip


def coordinator(weights: np.ndarray, encoding: str, folder: Path) -> Any:
    """What `WeightsChain` needs of a run."""
    return SimpleNamespace(
        rules=SimpleNamespace(encoding=encoding), record=SimpleNamespace(done=0, folder=lambda _: folder), folder=None, kept={},
        kept_arrays={}, weights=weights, sha256=HEX, disk=SimpleNamespace(insist=lambda act: act()),
    )  # fmt: skip


def adam_change(size: int, seed: int, steps: int = 40) -> Iterator[np.ndarray]:
    """Changes of rounds that follow each other, as so many steps of AdamW (1e-4) make them.

    Gradients have a mean that stays, another scale for each value, and three times as much noise as mean. One piece is made and repeated.
    """
    draw, piece = np.random.default_rng(seed), min(size, updates.PIECE)
    scale = np.exp(draw.standard_normal(piece, np.float32))
    trend = draw.standard_normal(piece, np.float32) * scale
    while True:
        first, second, change = (np.zeros(piece, np.float32) for _ in range(3))
        for step in range(1, steps + 1):
            gradient = trend + 3 * scale * draw.standard_normal(piece, np.float32)
            first += np.float32(0.1) * (gradient - first)
            second += np.float32(0.05) * (gradient * gradient - second)
            corrected = np.sqrt(second / np.float32(1 - 0.95**step)) + np.float32(1e-8)
            change -= np.float32(1e-4 / (1 - 0.9**step)) * first / corrected
        yield np.tile(change, -(-size // piece))[:size]


def message_bytes(arrays: list[np.ndarray]) -> int:
    """Bytes of a Flower message that carries `arrays`: all its objects as they are pushed, one by one."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute

    told = request("r" * 32, 1, "int8", 0).to_config()
    total = len(RecordDict({"config": ConfigRecord(told)})["config"].deflate())
    for number, array in enumerate(arrays):  # each alone, so that the message is never in memory
        with no_object_id_recompute():
            record = ArrayRecord({piece_name(number): Array(array)})
            total += sum(len(each.deflate()) for each in get_all_nested_objects(record).values())
    return total


def speed(act: Callable[[], object], count: int, times: int) -> float:
    """Median MB of float32 that `act` works on in a second of processor time."""
    taken = []
    for _ in range(times):
        began = time.process_time()
        act()
        taken.append(time.process_time() - began)
    return 4 * count / median(taken) / 1e6


def errors(encoding: str, changes: Iterable[np.ndarray]) -> tuple[float, float]:
    """Relative error of the first of four rounds' changes, and of the sum of all with error feedback."""
    sent, true, owed, found = 0.0, 0.0, None, []
    for change in changes:
        pieces = [(piece.decoded.copy(), piece.left.copy()) for piece in updates.encode_owed(change, owed, encoding)]
        decoded, owed = (np.concatenate(each) for each in zip(*pieces, strict=True))
        sent, true = sent + decoded.astype(np.float64), true + change.astype(np.float64)
        found.append(float(np.linalg.norm(sent - true) / np.linalg.norm(true)))
    return found[0], found[3]


def transport(size: int, times: int, folder: Path) -> dict[str, Any]:
    """Bytes, speeds, errors and memory of each encoding; prints a line each."""
    change = next(adam_change(size, 1))
    weights = np.random.default_rng(0).standard_normal(size, np.float32)
    target = np.empty(min(size, updates.PIECE), np.float32)
    found: dict[str, Any] = {"values": size}
    print(f"{size:,} values ({4 * size / 1e6:.1f} MB as fp32), medians of {times}\n")
    print("encoding   up MB  down MB   ratio   encode MB/s  decode MB/s   node s  coordinator s   add s   memory MB   error   after four")
    for encoding in ("fp32", "fp16", "int8"):
        arrays = updates.encode(change, encoding)

        def read(arrays: list[np.ndarray] = arrays, encoding: str = encoding) -> None:
            for number, array in enumerate(arrays):
                updates.decode_piece(array, encoding, target[: min(updates.PIECE, size - number * updates.PIECE)])

        def write(encoding: str = encoding) -> None:
            for _ in updates.encode_pieces(change, encoding):
                pass

        up = message_bytes(arrays)
        encode, decode = speed(write, size, times), speed(read, size, times)
        del arrays
        own = folder / encoding
        own.mkdir()
        state = coordinator(weights.copy(), encoding, own)  # rounds are added in place
        chain, feedback = WeightsChain(state), ErrorFeedback(own)
        node, server, add, down = [], [], [], message_bytes(updates.encode(weights, "fp32"))
        for number in range(1, times + 2):  # the second round is the first that has a residual
            began = time.process_time()
            feedback.encode(change, request("r", number, encoding, number - 1))
            node.append(time.process_time() - began)
            began = time.process_time()
            state.weights = chain.advance(state.weights, change)
            server.append(time.process_time() - began)
            state.record.done = number
            if count := chain.behind(number - 1, encoding):
                pieces = list(chain.pieces(count, encoding))
                down, began = message_bytes(pieces), time.process_time()
                for index, piece in enumerate(pieces):
                    part = weights[index * updates.PIECE : (index + 1) * updates.PIECE]
                    updates.decode_piece(piece, encoding, target[: part.size])
                    np.add(part, target[: part.size], out=np.empty_like(part))
                add.append(time.process_time() - began)
        tracemalloc.start()
        for _ in updates.encode_owed(change, None, encoding):
            pass
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        once, four = errors(encoding, islice(adam_change(min(size, 2 * updates.PIECE), 1), 4))
        seconds = [median(each[1:] or each) if each else 0.0 for each in (node, server, add)]
        print(
            f"{encoding:8} {up / 1e6:7.1f} {down / 1e6:8.1f} {4 * size / up:7.2f} {encode:13.0f} {decode:12.0f} {seconds[0]:8.2f} "
            f"{seconds[1]:14.2f} {seconds[2]:7.2f} {memory / 1e6:11.0f} {once:7.1e} {four:12.1e}"
        )
        found[encoding] = {
            "up-mb": up / 1e6, "down-mb": down / 1e6, "encode-mb-s": encode, "decode-mb-s": decode, "node-s": seconds[0],
            "coordinator-s": seconds[1], "add-s": seconds[2], "memory-mb": memory / 1e6, "error": once, "error-after-four": four,
        }  # fmt: skip
    full = updates.encoded_bytes(FULL, "int8")
    print(f"\nThe full trainable set in int8: {full:,} bytes each way without the message around them, limit {LIMIT / 1e6:.0f} MB.")
    for encoding, (once, four) in DESIGNED.items():
        told = f"{found[encoding]['error']:.1e} (design {once:.0e})"
        print(f"{encoding}: error {told}" + (f", after four rounds {found[encoding]['error-after-four']:.1e} ({four:.0e})" if four else ""))
    return {**found, "full-int8-mb": full / 1e6, "within-limit": full <= LIMIT}


# --- does it learn the same?


class Federation:
    """Two nodes and held-out frames, of generated recordings, with the demo's tiny SmolVLA."""

    def __init__(self, folder: Path, steps: int) -> None:
        from zk0desk.control import NodeControl
        from zk0desk.settings import Cache, ChosenRecording
        from zk0desk.training.demo_data import make_demo_held_out, make_demo_policy, make_demo_recording
        from zk0desk.training.policy import TrainablePolicy
        from zk0desk.training.trainer import LocalTrainer

        self._folder, self._steps = folder, steps
        make_demo_policy(folder / "policy")
        self.changes: dict[int, list[np.ndarray]] = {}
        """What the first node's training changed in the first four rounds, by seed."""
        # One that trains lets go of the parts that prepared frames do without; each has its own.
        self._judged, *trained = (TrainablePolicy.load(folder / "policy") for _ in range(3))
        self.base = self._judged.get_weights()
        self._held_out = [ChosenRecording(path=make_demo_held_out(folder / "held-out", frames=12))]
        self._nodes = [
            LocalTrainer(
                policy, [ChosenRecording(path=make_demo_recording(folder / f"node-{n}", n, episodes=3))], node=f"node-{n}",
                device="cpu", threads=1, cache=Cache(level="P", folder=folder / "cache", budget_gb=1), emit=lambda _: None,
                control=NodeControl(),
            )
            for n, policy in enumerate(trained)
        ]  # fmt: skip

    def loss(self, weights: np.ndarray) -> float:
        """The held-out loss."""
        from zk0desk.training.evaluation import evaluate

        self._judged.set_weights(weights)
        return evaluate(self._judged, self._held_out, batch=16).loss

    def run(self, encoding: str, seed: int, rounds: int) -> float:
        """The held-out loss after so many rounds."""
        uid = f"{encoding}-{seed}"
        own = self._folder / uid
        state = coordinator(self.base.copy(), encoding, own)
        chain, weights = WeightsChain(state), state.weights
        feedback = [ErrorFeedback(own / f"node-{n}") for n in range(len(self._nodes))]
        for n in range(len(self._nodes)):
            (own / f"node-{n}").mkdir(parents=True)
        for number in range(1, rounds + 1):
            asked = request(uid, number, encoding, number - 1, seed=seed, lr=5e-4, local_steps=self._steps)
            deltas, examples = [], {}
            for n, trainer in enumerate(self._nodes):
                result = trainer.train(asked.plan(), weights)
                if not n and encoding == "fp32" and number <= 4:
                    self.changes.setdefault(seed, []).append(result.delta)
                deltas.append(updates.decode(feedback[n].encode(result.delta, asked), encoding, weights.size))
                examples[f"{n}"] = result.metrics["num-examples"]
            shares = strategy.shares(examples, 0.5)
            step = np.zeros_like(weights)
            for n, delta in enumerate(deltas):
                step += np.float32(shares[f"{n}"]) * delta
            weights = state.weights = chain.advance(weights, step)
            state.record.done = number
        return self.loss(weights)

    def close(self) -> None:
        """Let go of the caches."""
        for trainer in self._nodes:
            trainer.close(restore=False)


def learn(seeds: int, rounds: int, steps: int, folder: Path) -> dict[str, Any]:
    """The table of held-out losses by seed and encoding."""
    federation = Federation(folder, steps)
    print(f"\nTiny SmolVLA ({federation.base.size:,} trainable values), 2 nodes, {rounds} rounds of {steps} steps of 8 frames, lr 5e-4.")
    before = federation.loss(federation.base)
    print(f"Held-out loss before: {before:.4f}\n\nseed     fp32      fp16      int8   int8 - fp32")
    losses: dict[str, list[float]] = {"fp32": [], "fp16": [], "int8": []}
    try:
        for seed in range(seeds):
            for encoding, of in losses.items():
                of.append(federation.run(encoding, seed, rounds))
            told = "  ".join(f"{of[-1]:.6f}" for of in losses.values())
            print(f"{seed:4}  {told}  {losses['int8'][-1] - losses['fp32'][-1]:+.6f}", flush=True)
    finally:
        federation.close()
    real = {each: [errors(each, changes) for changes in federation.changes.values()] for each in ("fp16", "int8")}
    once, four = ({each: mean(one[place] for one in of) for each, of in real.items()} for place in (0, 1))
    for each in real:
        print(f"\nErrors of what was trained, {each}: {once[each]:.1e}, after four rounds {four[each]:.1e}.", end="")
    spread = stdev(losses["fp32"])
    apart = {each: max(abs(a - b) for a, b in zip(losses[each], losses["fp32"], strict=True)) for each in ("fp16", "int8")}
    print(f"\n\nBetween seeds (fp32): standard deviation {spread:.6f}. Largest difference to fp32: {apart['int8']:.6f} in int8.")
    return {
        "learn-before": before, "learn-fp32": mean(losses["fp32"]), "learn-int8": mean(losses["int8"]), "learn-seeds-deviation": spread,
        "learn-int8-apart": apart["int8"], "learn-fp16-apart": apart["fp16"], "learn-less-than-seeds": apart["int8"] < spread,
        **{f"learn-{each}-error": once[each] for each in once}, **{f"learn-{each}-error-after-four": four[each] for each in four},
    }  # fmt: skip


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="8 million values instead of the full trainable set")
    parser.add_argument("--times", type=int, default=3, help="how often each is measured")
    parser.add_argument("--learn", action="store_true", help="train the tiny policy in each encoding instead")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5, help="local steps of a round")
    given = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="zk0desk-codec-") as folder:
        if given.learn:
            found = learn(given.seeds, given.rounds, given.steps, Path(folder))
        else:
            found = transport(QUICK if given.quick else FULL, given.times, Path(folder))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
