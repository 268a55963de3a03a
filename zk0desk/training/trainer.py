"""One local round of FedProx over LeRobot's own forward: epochs or a step budget, until a deadline; pause, stop, partial work.

The optimiser is that of LeRobot's SmolVLA preset (AdamW, clipping), made anew each round, without LeRobot's scheduler:
the rate is the server's. What is drawn at random comes from (seed, node, round) alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from zk0desk.control import NodeControl
from zk0desk.events import Notice, RoundKept, RoundStarted, RoundTrained, Sink, StepDone
from zk0desk.settings import ChosenRecording
from zk0desk.training.batch_gradients import BatchGradients, Groups
from zk0desk.training.checkpoint import RoundCheckpoint
from zk0desk.training.container_limits import usable_cores
from zk0desk.training.devices import choose_device, out_of_memory, wants_bf16
from zk0desk.training.fedprox import add_proximal_gradient, client_mu, loss_spread, raised_mu
from zk0desk.training.forward import WholeForward
from zk0desk.training.frames import ahead
from zk0desk.training.memory_reserve import frames_at_once
from zk0desk.training.noise import draw_noise
from zk0desk.training.policy_size import LARGE_AT_ONCE, LARGE_POLICY
from zk0desk.training.progress import Keeper, Progress
from zk0desk.training.round_steps import PlannedStep, planned_steps, steps_of
from zk0desk.training.rounds import RoundFailedError, RoundPlan, RoundResult

if TYPE_CHECKING:
    import torch

    from zk0desk.training.policy import TrainablePolicy

BETAS, EPS, WEIGHT_DECAY, CLIP_NORM = (0.9, 0.95), 1e-8, 1e-10, 10.0
"""LeRobot's preset for SmolVLA."""
MIN_FRAMES = 32
"""A loss that is sent averages at least this many frames, where the round visited as many."""
SKIPS = 3
"""Steps in a row without a finite loss that end the round."""


class _DeadlinePassed(Exception):
    """The deadline came within a step."""


class LocalTrainer:
    """Trains a node's policy on its recordings, a round at a time. One thread uses it."""

    def __init__(
        self,
        policy: TrainablePolicy,
        recordings: Sequence[ChosenRecording],
        *,
        node: str,
        device: str = "auto",
        precision: str = "auto",
        micro_batch: int = 0,
        memory_free: float = 0.0,
        threads: int = 0,
        emit: Sink,
        control: NodeControl,
    ) -> None:
        self._policy = policy
        self._node = node
        self._threads = threads or max(1, usable_cores() - 1)
        self._emit = emit
        self._control = control
        self._device = choose_device(device)
        self._autocast = wants_bf16(precision, self._device)
        policy.policy.to(self._device)
        self._frames = policy.frames_of(recordings)
        large = policy.files.parameters >= LARGE_POLICY and self._device.type == "cpu"
        wanted = micro_batch or (LARGE_AT_ONCE if large else 0)
        self._gradients = BatchGradients(
            policy,
            self._frames,
            WholeForward(policy, self._frames, bf16=self._autocast),
            micro=frames_at_once(policy.files, self._device, wanted, memory_free, bf16=self._autocast, emit=emit),
            emit=emit,
        )
        # The mu rule looks back over the epochs of a run, earlier rounds included.
        self._run = ""
        self._epochs: list[tuple[int, float]] = []
        """(round, mean loss) of each epoch of the run."""
        self._raised: dict[int, bool] = {}
        """Whether mu stood raised at a round's end."""

    @property
    def frames(self) -> int:
        """Number of frames of this node's data."""
        return len(self._frames)

    @property
    def device(self) -> str:
        """Where it trains: cpu, cuda or mps."""
        return self._device.type

    @property
    def precision(self) -> str:
        """In what it computes: fp32, or bf16 (autocast)."""
        return "bf16" if self._autocast else "fp32"

    @property
    def micro_batch(self) -> int:
        """Frames that are computed at once, as far as memory taught so far; 0: the whole batch."""
        return self._gradients.micro

    def train(self, plan: RoundPlan, global_weights: np.ndarray, kept: RoundCheckpoint | None = None) -> RoundResult:
        """Train one round from `global_weights` (w_t, float32, flat). Emits RoundStarted, StepDone and RoundTrained.

        With `kept` the round's middle is kept on disk now and then, and a round that it holds goes on from there: to the
        bit what it had been without the interruption. Raises `Stopped` when asked to stop, and `RoundFailedError` when
        there is no update: three losses in a row that are not finite, no step before the deadline, or too little memory
        for a single frame.
        """
        import torch

        began = time.monotonic()
        if plan.run != self._run:
            self._run, self._epochs, self._raised = plan.run, [], {}
        # A round that is asked for again starts from where it started before.
        self._epochs = [entry for entry in self._epochs if entry[0] < plan.round]
        self._raised = {number: raised for number, raised in self._raised.items() if number < plan.round}
        self._policy.set_weights(global_weights)
        anchors = [parameter.detach().clone() for parameter in self._policy.parameters]
        optimiser = self._optimiser(plan.lr)
        steps = planned_steps(plan, self.frames)
        keeper = None if kept is None else self._keeper(kept, plan, global_weights, optimiser)
        progress = (keeper and self._restore(keeper)) or Progress(mu=self._first_mu(plan))
        self._emit(
            RoundStarted(
                run=plan.run,
                round=plan.round,
                rounds=plan.rounds,
                lr=plan.lr,
                mu=plan.mu,
                steps=steps,
                epochs=steps / max(1, -(-self.frames // plan.batch_size)),
                batch_size=plan.batch_size,
                frames=self.frames,
                deadline=plan.deadline,
                done=progress.step,
            )
        )
        partial = ""
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        self._policy.policy.train()
        with ExitStack() as stack:
            stack.callback(torch.set_num_threads, threads)
            stack.callback(lambda: optimiser.zero_grad(set_to_none=True))
            decoders = stack.enter_context(ThreadPoolExecutor(min(4, usable_cores()), "zk0desk-decode"))
            following = stack.enter_context(ThreadPoolExecutor(1, "zk0desk-batch"))
            stack.enter_context(self._checking(plan.deadline))
            to_come = (step for step in steps_of(plan, self._node, self.frames, steps) if step.number > progress.step)
            try:
                for step, groups in ahead(lambda step: self._groups(step.frames, decoders), to_come, following):
                    if keeper is not None and self._control.paused:
                        self._keep(plan, progress, keeper)  # a pause may end with the computer switched off
                    self._control.hold(plan.deadline)
                    self._check(plan.deadline)
                    self._step(plan, step, steps, groups, optimiser, anchors, progress)
                    if keeper is not None and keeper.due:
                        self._keep(plan, progress, keeper)
            except _DeadlinePassed:
                partial = "deadline"
        if not progress.losses:
            raise RoundFailedError(
                f"Round {plan.round} gave no update.",
                "No step was finished before the deadline." if partial else "No step had a finite loss.",
                "Ask the coordinator for a longer deadline or a smaller batch, or train on a faster computer.",
            )
        self._epochs += [(plan.round, loss) for loss in progress.epochs]
        self._raised[plan.round] = progress.mu > plan.mu
        delta = self._policy.get_weights()
        delta -= global_weights
        metrics = self._metrics(plan, progress, delta, progress.seconds + time.monotonic() - began)
        self._emit(RoundTrained(run=plan.run, round=plan.round, metrics=metrics, partial=partial))
        return RoundResult(delta=delta, metrics=metrics, partial=partial, losses=list(progress.losses))

    def _keeper(self, kept: RoundCheckpoint, plan: RoundPlan, start: np.ndarray, optimiser: torch.optim.Optimizer) -> Keeper:
        # The deadline is left out: it is another one when the message came again.
        settled = {key: value for key, value in asdict(plan).items() if key not in ("deadline", "rounds")}
        start_sha256 = hashlib.sha256(start.data).hexdigest()
        identity = {"plan": settled, "start": start_sha256, "layout": self._policy.layout.sha256, "node": self._node, "frames": self.frames}
        return Keeper(kept, identity, self._policy.parameters, optimiser)

    def _memory(self) -> dict[str, Any]:
        """What the trainer knows of earlier rounds and of this computer."""
        return {"epochs": self._epochs, "raised": list(self._raised.items()), "micro": self._gradients.micro}

    def _keep(self, plan: RoundPlan, progress: Progress, keeper: Keeper) -> None:
        self._emit(RoundKept(run=plan.run, round=plan.round, step=progress.step))
        keeper.keep(progress, self._memory(), self._control.check)

    def _restore(self, keeper: Keeper) -> Progress | None:
        found = keeper.restore()
        if found is None:
            return None
        progress, memory = found
        self._epochs = [(int(number), float(loss)) for number, loss in memory["epochs"]]
        self._raised = {int(number): bool(raised) for number, raised in memory["raised"]}
        self._gradients.micro = int(memory["micro"])
        return progress

    def _first_mu(self, plan: RoundPlan) -> float:
        """mu until the first epoch's end: raised when it stood raised at the end of the round before."""
        raised = bool(self._raised) and self._raised[max(self._raised)]
        return raised_mu(plan.mu, mu_max=plan.mu_max, alpha=plan.mu_alpha) if raised else plan.mu

    def _step(
        self, plan: RoundPlan, step: PlannedStep, steps: int, groups: Groups, optimiser: torch.optim.Optimizer,
        anchors: list[torch.Tensor], progress: Progress,
    ) -> None:  # fmt: skip
        """One optimiser step, or a skipped one."""
        import torch

        started, mu = time.monotonic(), progress.mu
        optimiser.zero_grad(set_to_none=True)
        noise, moment = draw_noise(self._policy, len(step.frames), plan.seed, self._node, plan.round, "noise", step.number)
        loss, norm = self._gradients.of(step.frames, groups, noise, moment)
        progress.step = step.number
        if not (np.isfinite(loss) and np.isfinite(norm)):
            progress.skipped += 1
            self._say_skipped(plan, step, progress.skipped)
            return
        progress.skipped = 0
        proximal = add_proximal_gradient(self._policy.parameters, anchors, mu)
        # Clipping acts on the sum of both gradients.
        torch.nn.utils.clip_grad_norm_(self._policy.parameters, CLIP_NORM)
        self._update(optimiser)
        progress.count(step, loss, norm, proximal)
        self._emit(
            StepDone(
                run=plan.run,
                round=plan.round,
                step=step.number,
                steps=steps,
                epoch=step.epoch,
                loss=loss,
                proximal=proximal,
                grad_norm=norm,
                lr=plan.lr,
                mu=mu,
                frames=len(step.frames),
                seconds=time.monotonic() - started,
            )
        )
        if step.ends_epoch:
            self._end_epoch(plan, progress)

    def _groups(self, indices: list[int], decoders: ThreadPoolExecutor) -> Groups:
        self._control.check()
        forward = self._gradients.forward
        return [(places, forward.batch([indices[place] for place in places], decoders)) for places in self._frames.alike(indices)]

    def _update(self, optimiser: torch.optim.Optimizer) -> None:
        try:
            optimiser.step()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise RoundFailedError(
                "There is not enough memory for the optimiser.",
                "It keeps two numbers for each trained parameter.",
                "Close other programs, or train on a computer with more memory.",
            ) from error

    def _optimiser(self, lr: float) -> torch.optim.Optimizer:
        import torch

        # Fused is three times as fast on a CPU; on a GPU PyTorch's default (foreach) is.
        fused = True if self._device.type == "cpu" else None
        return torch.optim.AdamW(self._policy.parameters, lr=lr, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=fused)

    def _say_skipped(self, plan: RoundPlan, step: PlannedStep, skipped: int) -> None:
        if skipped >= SKIPS:
            raise RoundFailedError(
                f"Round {plan.round} was ended: the loss is not a finite number.",
                f"{SKIPS} steps in a row, the last was step {step.number}. No update is sent.",
                "Check the recordings for broken values; if they are sound, tell the coordinator that the learning rate may be too high.",
            )
        self._emit(
            Notice(
                severity="warning",
                code="step-skipped",
                what=f"Step {step.number} of round {plan.round} was skipped.",
                why="Its loss or gradient is not a finite number.",
                remedy=f"{SKIPS} in a row would end the round.",
            )
        )

    def _end_epoch(self, plan: RoundPlan, progress: Progress) -> None:
        """Settle mu until the next epoch's end."""
        part = slice(progress.epoch_began, len(progress.losses))
        progress.epoch_began = len(progress.losses)
        if not progress.losses[part]:
            return
        progress.epochs.append(float(np.average(progress.losses[part], weights=progress.sizes[part])))
        progress.mu = client_mu(
            plan.mu,
            self._history(progress),
            float(np.mean(progress.norms[part])),
            mu_max=plan.mu_max,
            alpha=plan.mu_alpha,
            loss_std=plan.mu_loss_std,
            norm_limit=plan.mu_grad_norm,
        )

    def _history(self, progress: Progress) -> list[float]:
        """Mean losses of the run's epochs, earlier rounds' first."""
        return [loss for _, loss in self._epochs] + progress.epochs

    def _metrics(self, plan: RoundPlan, progress: Progress, delta: np.ndarray, seconds: float) -> dict[str, float]:
        seen = sum(progress.sizes)
        return {
            "num-examples": float(len(progress.visited)),
            "frames-seen": float(seen),
            "epochs-done": seen / self.frames,
            "steps-done": float(len(progress.losses)),
            "loss-first": _mean_of_first(progress.losses, progress.sizes),
            "loss-last": _mean_of_first(progress.losses[::-1], progress.sizes[::-1]),
            "loss-mean": float(np.average(progress.losses, weights=progress.sizes)),
            "loss-std": loss_spread([loss for _, loss in self._epochs]),
            "proximal-last": progress.proximal,
            "grad-norm": float(np.mean(progress.norms)),
            "update-norm": float(np.linalg.norm(delta)),
            "mu-used": float(np.mean(progress.mus)),
            "lr-used": plan.lr,
            "seconds": seconds,
        }

    def _check(self, deadline: float) -> None:
        self._control.check()
        if deadline and time.time() >= deadline:
            raise _DeadlinePassed

    @contextmanager
    def _checking(self, deadline: float) -> Iterator[None]:
        """Look for stop and deadline between the layers of a step: in the forward before each module, in the backward after each gradient.

        A full backward hook would forbid LeRobot's additions in place; gradients of the trainable set arrive in every layer.
        """
        handles = []
        check: Callable[..., None] = lambda *_: self._check(deadline)  # noqa: E731 - one callable for both kinds of hooks
        try:
            for module in self._policy.policy.modules():
                if not any(True for _ in module.children()):
                    handles.append(module.register_forward_pre_hook(check))
            for parameter in self._policy.parameters:
                handles.append(parameter.register_post_accumulate_grad_hook(check))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _mean_of_first(losses: Sequence[float], sizes: Sequence[int]) -> float:
    """Mean over as many steps as hold `MIN_FRAMES` frames, weighted by frames."""
    steps = int(np.searchsorted(np.cumsum(sizes), MIN_FRAMES)) + 1
    return float(np.average(losses[:steps], weights=sizes[:steps]))
