"""Held-out evaluation in a process of its own: the process that aggregates holds no torch.

Lines of JSON over its standard input and output. First the held-out recordings and the policy; the answer is
`{"ready": true}`. Then `{"weights": PATH.npy}` for each evaluation; the answer is `{"loss", "frames", "recordings", ...}`, the fields
of `HeldOut`. Either answer may be `{"error": {...}}`, the JSON of an `OperatorError`. Nothing is drawn at random in either process:
each frame's noise and time follow from its content.
"""

from __future__ import annotations

import json
import math
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from zk0desk.control import NodeControl
from zk0desk.errors import OperatorError
from zk0desk.events import Event
from zk0desk.federation import child
from zk0desk.settings import Cache, ChosenRecording

if TYPE_CHECKING:
    from zk0desk.training.evaluation import Evaluation

ROUNDS = 20
"""About so often a held-out frame is looked at in a run."""
NOT_FINITE = 1e30
"""Stands for a loss that is not finite."""


class EvaluationFailed(OperatorError):
    """The held-out recordings could not be evaluated."""

    code = "evaluation-failed"


class EvaluatorEnded(EvaluationFailed):
    """The process that evaluates ended; another one may do it."""

    code = "evaluator-ended"


@dataclass(frozen=True)
class HeldOut:
    """Held-out loss over all frames, and per recording; `retention`: of recordings whose tasks the base policy knew.

    `standard_errors` has that of each recording's loss by its name, `standard_error` that of `loss` (frames taken as drawn alike;
    missing or 0 where there are too few to tell).
    """

    loss: float
    frames: int
    recordings: dict[str, float]
    standard_error: float = 0.0
    standard_errors: dict[str, float] = field(default_factory=dict)
    retention: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Evaluation, held_out: int) -> HeldOut:
        """From an evaluation over `held_out` recordings and then those of retention. A loss that is not finite becomes 1e30."""
        names = found.seen.names
        loss, error = found.seen.mean(range(held_out))
        each = [found.seen.mean([number]) for number in range(len(names))]
        losses = [_finite(mean, NOT_FINITE) for mean, _ in each]
        frames = int((found.seen.recordings < held_out).sum())
        return cls(
            _finite(loss, NOT_FINITE),
            frames,
            dict(zip(names[:held_out], losses[:held_out], strict=True)),
            _finite(error, 0.0),
            {name: error for name, (_, error) in zip(names, each, strict=True) if math.isfinite(error)},
            dict(zip(names[held_out:], losses[held_out:], strict=True)),
        )


class Evaluator:
    """Starts the process at once; loading torch and the policy overlaps with waiting for nodes.

    `cache_gb` is what the prefix cache beside `scratch` may take. `processors` is where it writes the policy's processors with
    the held-out recordings' statistics, `scratch` a file through which the weights go; one that a killed run left is overwritten.
    """

    def __init__(
        self,
        policy: Path,
        recordings: tuple[ChosenRecording, ...],
        retention: tuple[ChosenRecording, ...],
        *,
        batch: int,
        cache_gb: float,
        processors: Path,
        scratch: Path,
        control: NodeControl,
        log: IO[Any],
    ) -> None:
        self._control = control
        self._scratch = scratch
        self._process: subprocess.Popen[str] = child.spawn(["server", "_evaluator"], stderr=log)
        self._answers: queue.Queue[str] = queue.Queue()
        self._pending = 0
        threading.Thread(target=self._read, name="evaluator", daemon=True).start()
        chosen = [[each.model_dump(mode="json", by_alias=True) for each in every] for every in (recordings, retention)]
        first = {"policy": str(policy), "recordings": chosen[0], "retention": chosen[1], "batch": batch, "processors": str(processors)}
        self._say({**first, "cache": str(scratch.with_name("held-out-frames")), "cache-gb": cache_gb})
        self._ready = False

    def begin(self, weights: np.ndarray) -> None:
        """Have `weights` evaluated; `result` waits for it."""
        with self._scratch.open("wb") as file:
            np.save(file, weights)
        self._say({"weights": str(self._scratch)})

    def result(self) -> HeldOut:
        """The evaluation that was begun. Raises `EvaluationFailed`, `EvaluatorEnded`, and `Stopped` when asked to stop meanwhile."""
        if not self._ready:
            self._answer()
            self._ready = True
        return HeldOut(**self._answer())

    def _say(self, line: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise self._ended() from error

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self._answers.put(line)
        self._answers.put("")

    def _answer(self) -> dict[str, Any]:
        while True:
            self._control.check()
            try:
                line = self._answers.get(timeout=0.2)
                break
            except queue.Empty:
                continue
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            error = answer["error"]
            raise EvaluationFailed(error["what"], error["why"], error["remedy"])
        return answer

    def _ended(self) -> EvaluatorEnded:
        status = self._process.poll()
        return EvaluatorEnded(
            "The evaluation's process ended.",
            f"Its exit status is {status}; when memory runs out the system ends it.",
            "See state/evaluator.log.",
        )

    def close(self) -> None:
        """End the process."""
        child.end(self._process, 0.2)
        self._scratch.unlink(missing_ok=True)


def serve_evaluator() -> None:
    """The process's side: reads requests from standard input until it ends."""
    import os
    import signal

    from zk0desk.quiet import quiet_libraries

    quiet_libraries()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests: queue.Queue[bytes] = queue.Queue()

    def read() -> None:
        # Unbuffered: a thread that waits inside sys.stdin's buffer makes the interpreter's exit fail.
        with open(0, "rb", buffering=0, closefd=False) as lines:
            for line in lines:
                requests.put(line)
        os._exit(0)  # the parent is gone, or done with this process; a computation in torch would not notice

    threading.Thread(target=read, name="requests", daemon=True).start()
    say = sys.stdout
    sys.stdout = sys.stderr  # libraries print; standard output is for answers
    _serve(requests, say)


def _serve(requests: queue.Queue[bytes], say: IO[str]) -> None:
    def answer(data: dict[str, Any]) -> None:
        say.write(json.dumps(data) + "\n")
        say.flush()

    try:
        first = json.loads(requests.get())
        recordings, retention = ([ChosenRecording.model_validate(each) for each in first[part]] for part in ("recordings", "retention"))

        from zk0desk.training.evaluation import evaluate
        from zk0desk.training.forward_choice import ForwardChoice
        from zk0desk.training.policy import TrainablePolicy, save_processors

        policy = TrainablePolicy.load(Path(first["policy"]))
        _keep_processors(Path(first["processors"]), lambda target: save_processors(target, Path(first["policy"]), recordings))
        every = [*recordings, *retention]
        choice = ForwardChoice(policy, policy.frames_of(every), _cache(first), emit=_log)
        answer({"ready": True})
        while True:
            policy.set_weights(np.load(json.loads(requests.get())["weights"], allow_pickle=False))
            # Each of the coming rounds visits all frames: the cache pays from the second on.
            found = evaluate(policy, every, batch=first["batch"], forward=choice.begin("evaluation", visits=ROUNDS))
            answer(asdict(HeldOut.of(found, len(recordings))))
    except OperatorError as error:
        answer({"error": error.to_json()})
    except Exception as error:  # noqa: BLE001 - the parent shows it as a sentence
        import traceback

        traceback.print_exc(file=sys.stderr)
        answer(
            {"error": {"what": "The held-out recordings could not be evaluated.", "why": f"{type(error).__name__}: {error}", "remedy": ""}}
        )


def _finite(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise


def _log(event: Event) -> None:
    print(event, file=sys.stderr, flush=True)


def _cache(first: dict[str, Any]) -> Cache:
    return Cache(level="auto" if first["cache-gb"] else "off", budget_gb=first["cache-gb"], folder=Path(first["cache"]))


def _keep_processors(target: Path, save: Callable[[Path], Any]) -> None:
    """Once for a run, and whole or not at all: the rounds copy from there while this process starts again."""
    if target.is_dir():
        return
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix="processors", suffix=".partial"))
    try:
        save(partial)
        partial.replace(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
