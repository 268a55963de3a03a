"""Local rounds of many nodes for `benchmarks/ablation.py`: one after the other by `LocalTrainer`, or side by side in one computation.

A step of a tiny policy takes some 10 ms. Nearly all of it is PyTorch's calls and nearly nothing arithmetic, so that the gradients of many
nodes are computed together in a fifth of the time. All else is the product's own, node by node: the frames of a step, its noise, the loss
over the frozen prefix (level P), the proximal term, clipping, AdamW, the node's mu rule, the metrics. `python benchmarks/ablation.py
--check` shows how far the two are apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zk0desk.control import NodeControl
from zk0desk.settings import Cache, ChosenRecording
from zk0desk.training import prefix_forward
from zk0desk.training.cached_forward import ENTRIES
from zk0desk.training.evaluation import evaluate
from zk0desk.training.fedprox import add_proximal_gradient
from zk0desk.training.forward_choice import ForwardChoice
from zk0desk.training.noise import action_size, draw_noise
from zk0desk.training.optimiser import LocalOptimiser, clip
from zk0desk.training.policy import TrainablePolicy
from zk0desk.training.prefix_forward import ACTION, PADDED, STATE, Prefix
from zk0desk.training.progress import Progress
from zk0desk.training.round_metrics import round_metrics
from zk0desk.training.round_steps import PlannedStep, planned_steps, steps_of
from zk0desk.training.rounds import RoundPlan, RoundResult
from zk0desk.training.run_history import RunHistory
from zk0desk.training.trainer import LocalTrainer

AT_ONCE = 96
"""Nodes whose gradients are computed together."""
EVALUATED = ("held-out", "retention")


@dataclass
class Job:
    """A node of a run that is to train a round from `weights`. `parts`: the shares of the data that it holds. `history` is its own."""

    node: str
    parts: tuple[str, ...]
    plan: RoundPlan
    weights: np.ndarray
    history: RunHistory


class OneByOne:
    """Each job by `LocalTrainer`, each evaluation by `evaluate`: for a policy of any size."""

    def __init__(self, policy: TrainablePolicy, places: Mapping[str, Path], cache: Cache) -> None:
        self._policy, self._places, self._cache = policy, places, cache
        self._trainers: dict[tuple[str, tuple[str, ...]], LocalTrainer] = {}
        held = [ChosenRecording(path=places[name]) for name in EVALUATED]
        self._choice = ForwardChoice(policy, policy.frames_of(held), cache, emit=lambda _: None)
        self._held = held

    def train(self, jobs: Sequence[Job]) -> list[RoundResult]:
        """What each job gives."""
        results = []
        for job in jobs:
            key = job.node, job.parts
            if key not in self._trainers:
                recordings = [ChosenRecording(path=self._places[part]) for part in job.parts]
                self._trainers[key] = LocalTrainer(
                    self._policy, recordings, node=job.node, device="cpu", precision="fp32", threads=1, cache=self._cache,
                    emit=lambda _: None, control=NodeControl(),
                )  # fmt: skip
            trainer = self._trainers[key]
            trainer._history = job.history  # a trainer takes turns in several runs here
            results.append(trainer.train(job.plan, job.weights))
            trainer.close()
        return results

    def losses(self, every: Sequence[np.ndarray]) -> list[tuple[float, float]]:
        """Held-out loss and that of retention, for each of these weights."""
        found = []
        for weights in every:
            self._policy.set_weights(weights)
            seen = evaluate(self._policy, self._held, batch=64, forward=self._choice.begin("evaluation", visits=100)).seen
            found.append((seen.mean([0])[0], seen.mean([1])[0]))
        self._choice.close()
        return found


@dataclass
class _Pool:
    """All frames of one task, with their entries: what a step reads. Tensors, frame first."""

    state: torch.Tensor
    action: torch.Tensor
    padded: torch.Tensor
    entries: torch.Tensor
    actions: int
    places: dict[str, np.ndarray] = field(default_factory=dict)
    """Of each share of the data, its frames in the pool."""


class SideBySide:
    """Many jobs in one computation: for small policies. Jobs of a call have plans of one batch size and one number of steps."""

    def __init__(self, policy: TrainablePolicy, places: Mapping[str, Path], task_of: Mapping[str, str], cache: Cache) -> None:
        self._policy = policy
        layers = prefix_forward.layers_of(policy.policy.model.vlm_with_expert)
        self._step = _Step(policy.policy, layers, prefix_forward.heads_of(policy.policy.model.vlm_with_expert))
        names = {id(parameter): name for name, parameter in self._step.named_parameters()}
        self._layout = [(names[id(parameter)], parameter.shape, parameter.numel()) for parameter in policy.parameters]
        self._task_of = {**task_of, "held-out": "banana", "retention": "cube"}
        parts: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        self._held: dict[str, tuple[np.ndarray, torch.Tensor, torch.Tensor]] = {}
        for name, task in self._task_of.items():
            parts.setdefault(task, []).append((name, self._read(name, places[name], cache)))
        self._pools: dict[str, _Pool] = {}
        for task, found in parts.items():
            columns = [torch.cat([data[key] for _, data in found]) for key in (STATE, ACTION, PADDED, ENTRIES)]
            pool = self._pools[task] = _Pool(*columns, actions=found[0][1]["actions"])
            start = 0
            for name, data in found:
                pool.places[name] = np.arange(start, start := start + len(data[STATE]))
        self._gradients = torch.func.vmap(torch.func.grad_and_value(self._loss), in_dims=0)
        self._each = torch.func.vmap(lambda *given: self._loss(*given, reduction="none"), in_dims=(0, *(None,) * 7))

    def frames(self, parts: Sequence[str]) -> np.ndarray:
        """A node's frames, by their place in the pool of its task."""
        return np.concatenate([self._pools[self._task_of[parts[0]]].places[part] for part in parts])

    def train(self, jobs: Sequence[Job]) -> list[RoundResult]:
        """What each job gives."""
        results: list[RoundResult | None] = [None] * len(jobs)
        for task in dict.fromkeys(self._task_of[job.parts[0]] for job in jobs):
            chosen = [place for place, job in enumerate(jobs) if self._task_of[job.parts[0]] == task]
            for start in range(0, len(chosen), AT_ONCE):
                part = chosen[start : start + AT_ONCE]
                for place, result in zip(part, self._together(self._pools[task], [jobs[n] for n in part]), strict=True):
                    results[place] = result
        return [result for result in results if result is not None]

    def losses(self, every: Sequence[np.ndarray]) -> list[tuple[float, float]]:
        """Held-out loss and that of retention, for each of these weights: as `evaluate` gives them."""
        found = []
        for name in EVALUATED:
            pool, (entries, noise, time) = self._pools[self._task_of[name]], self._held[name]
            sums = np.zeros(len(every))
            for start in range(0, len(entries), 64):
                part = slice(start, start + 64)
                frames = pool.places[name][part]
                for first in range(0, len(every), AT_ONCE):
                    rows = torch.from_numpy(np.stack(every[first : first + AT_ONCE]))
                    with torch.no_grad(), action_size(self._policy, pool.actions):
                        losses = self._each(rows, *self._of(pool, frames), noise[part], time[part])
                    sums[first : first + AT_ONCE] += losses.double().numpy() @ entries[part]
            found.append(sums / entries.sum())
        return [(float(a), float(b)) for a, b in zip(*found, strict=True)]

    # --- parts

    def _read(self, name: str, path: Path, cache: Cache) -> dict[str, Any]:
        """Columns and entries of all frames of a recording."""
        frames = self._policy.frames_of([ChosenRecording(path=path)])
        choice = ForwardChoice(self._policy, frames, cache, emit=lambda _: None)
        forward = choice.begin("read", visits=100)
        if forward.level != "P":
            raise SystemExit(f"{name}: level P was not used: {choice.choice.reason}")
        read = []
        with ThreadPoolExecutor(2) as decoders:
            for start in range(0, len(frames), 64):
                indices = list(range(start, min(start + 64, len(frames))))
                forward.prepare(forward.batch(indices, decoders), indices)  # type: ignore[attr-defined]
                data = forward.batch(indices)
                read.append({key: data[key] for key in (STATE, ACTION, PADDED, ENTRIES)})
        choice.close()
        if name in EVALUATED:
            drawn = [draw_noise(self._policy, 1, frames.tables[0].content, row) for row in range(len(frames))]
            noise, time = (torch.cat(each) for each in zip(*drawn, strict=True))
            self._held[name] = frames.valid_entries(range(len(frames))).astype(float), noise, time
        columns: dict[str, Any] = {key: torch.cat([each[key] for each in read]) for key in read[0]}
        return {**columns, "actions": frames.action_size(0)}

    def _of(self, pool: _Pool, frames: np.ndarray) -> tuple[torch.Tensor, ...]:
        """State, action, padding, keys and values of frames (any shape); keys and values with the layers after the frames."""
        place = torch.from_numpy(frames)
        entries = pool.entries[place].float()
        return pool.state[place], pool.action[place], pool.padded[place], entries[..., 0, :, :], entries[..., 1, :, :]

    def _loss(
        self, flat: torch.Tensor, state: torch.Tensor, action: torch.Tensor, padded: torch.Tensor, keys: torch.Tensor,
        values: torch.Tensor, noise: torch.Tensor, time: torch.Tensor, reduction: str = "mean",
    ) -> torch.Tensor:  # fmt: skip
        named, start = {}, 0
        for name, shape, count in self._layout:
            named[name] = flat[start : start + count].view(shape)
            start += count
        prefix = Prefix(keys.unbind(1), values.unbind(1), torch.full((len(state),), keys.shape[2]), False)
        batch = {STATE: state, ACTION: action, PADDED: padded}
        return torch.func.functional_call(self._step, named, (prefix, batch, noise, time, reduction))  # type: ignore[no-any-return]

    def _together(self, pool: _Pool, jobs: Sequence[Job]) -> list[RoundResult]:
        rows = torch.from_numpy(np.stack([job.weights for job in jobs]))
        anchors, gradients = rows.clone(), torch.empty_like(rows)
        weights = [torch.nn.Parameter(row) for row in rows]  # each shares its row's memory
        optimisers, progresses, steps, own = [], [], [], []
        for job, weight, gradient in zip(jobs, weights, gradients, strict=True):
            job.history.begin(job.plan)
            weight.grad = gradient
            optimisers.append(LocalOptimiser([weight], keep=False, identity={}))
            optimisers[-1].begin(job.plan, None)
            progresses.append(job.history.first(job.plan))
            own.append(self.frames(job.parts))
            steps.append(steps_of(job.plan, job.node, len(own[-1]), planned_steps(job.plan, len(own[-1]))))
        for now in zip(*steps, strict=True):
            self._one_step(pool, jobs, now, own, rows, gradients, progresses, optimisers, weights, anchors)
        results = []
        for job, progress, row, mine in zip(jobs, progresses, rows, own, strict=True):
            job.history.finish(job.plan, progress)
            delta = row.numpy() - job.weights
            metrics = round_metrics(job.plan, progress, delta, frames=len(mine), epoch_losses=job.history.losses, seconds=0.0)
            results.append(RoundResult(delta=delta, metrics=metrics, losses=list(progress.losses)))
        return results

    def _one_step(
        self, pool: _Pool, jobs: Sequence[Job], now: Sequence[PlannedStep], own: Sequence[np.ndarray], rows: torch.Tensor,
        gradients: torch.Tensor, progresses: Sequence[Progress], optimisers: Sequence[LocalOptimiser],
        weights: Sequence[torch.nn.Parameter], anchors: torch.Tensor,
    ) -> None:  # fmt: skip
        size = max(len(step.frames) for step in now)
        frames, filled = np.zeros((len(now), size), int), torch.zeros(len(now), size, dtype=torch.bool)
        drawn: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        noise, time = [], []
        for place, (job, step) in enumerate(zip(jobs, now, strict=True)):
            count = len(step.frames)
            frames[place, :count] = own[place][step.frames]
            frames[place, count:] = frames[place, 0]  # a pass's last batch is shorter: what is filled up counts as padding
            filled[place, count:] = True
            key = count, job.plan.seed, job.node, job.plan.round, step.number
            if key not in drawn:
                made = draw_noise(self._policy, count, job.plan.seed, job.node, job.plan.round, "noise", step.number)
                drawn[key] = tuple(torch.cat([each, each[:1].expand(size - count, *each.shape[1:])]) for each in made)  # type: ignore[assignment]
            noise.append(drawn[key][0])
            time.append(drawn[key][1])
        state, action, padded, keys, values = self._of(pool, frames)
        with action_size(self._policy, pool.actions):
            given = state, action, padded | filled[..., None], keys, values
            found, losses = self._gradients(rows, *given[:4], given[4], torch.stack(noise), torch.stack(time))
        gradients.copy_(found)
        norms = torch.linalg.vector_norm(gradients, dim=1).tolist()
        for place, (job, step, loss) in enumerate(zip(jobs, now, losses.tolist(), strict=True)):
            if not np.isfinite(loss):
                raise SystemExit(f"{job.plan.run}, {job.node}, round {job.plan.round}: the loss is not finite")
            progress = progresses[place]
            progress.step = step.number
            proximal = add_proximal_gradient([weights[place]], [anchors[place]], progress.mu)
            clip([weights[place]])
            optimisers[place].step()
            progress.count(step, loss, norms[place], proximal)
            if step.ends_epoch:
                job.history.end_epoch(job.plan, progress)


class _Step(torch.nn.Module):
    """The loss over a prefix as a module, so that its parameters can be given."""

    def __init__(self, policy: torch.nn.Module, layers: Sequence[Any], heads: Any) -> None:
        super().__init__()
        self.policy = policy
        self._layers, self._heads = layers, heads

    def forward(
        self, prefix: Prefix, batch: dict[str, torch.Tensor], noise: torch.Tensor, time: torch.Tensor, reduction: str
    ) -> torch.Tensor:
        """As `prefix_forward.action_losses`."""
        return prefix_forward.action_losses(self.policy, self._layers, self._heads, prefix, batch, noise, time, reduction)
