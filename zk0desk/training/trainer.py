"""One local round of FedProx: epochs or a step budget, until a deadline; pause, stop, partial work, going on after an unclean end.

What is drawn at random comes from (seed, node, round) alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from zk0desk.control import NodeControl, Stopped
from zk0desk.events import MuChanged, Notice, RoundKept, RoundStarted, RoundTrained, Sink, StepDone
from zk0desk.settings import Cache, ChosenRecording
from zk0desk.training.batch_gradients import BatchGradients, Groups
from zk0desk.training.checkpoint import OPTIMISER, RoundCheckpoint, bytes_a_day
from zk0desk.training.container_limits import usable_cores
from zk0desk.training.devices import choose_device, has_own_memory, out_of_memory, set_aside, wants_bf16
from zk0desk.training.fedprox import add_proximal_gradient
from zk0desk.training.forward import Forward, WholeForward
from zk0desk.training.forward_choice import ForwardChoice
from zk0desk.training.frames import ahead
from zk0desk.training.memory_reserve import fits_on, frames_at_once
from zk0desk.training.noise import draw_noise
from zk0desk.training.optimiser import LocalOptimiser, clip
from zk0desk.training.policy_size import LARGE_AT_ONCE, LARGE_POLICY, PREPARED_AT_ONCE
from zk0desk.training.progress import Keeper, Progress
from zk0desk.training.round_clock import RoundClock
from zk0desk.training.round_metrics import round_metrics
from zk0desk.training.round_steps import PlannedStep, planned_steps, steps_of
from zk0desk.training.rounds import RoundFailedError, RoundPlan, RoundResult
from zk0desk.training.run_history import RunHistory

if TYPE_CHECKING:
    import torch

    from zk0desk.training.policy import TrainablePolicy

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
        keep_optimiser: bool = False,
        pause_frees_memory: bool = False,
        cache: Cache | None = None,
        emit: Sink,
        control: NodeControl,
    ) -> None:
        self._policy = policy
        self._node = node
        self._threads = threads or max(1, usable_cores() - 1)
        self._asked = {"micro-batch": micro_batch, "threads": threads}
        self._pause_frees_memory = pause_frees_memory
        self._emit = emit
        self._control = control
        self._device = choose_device(
            device, lambda gpu: fits_on(gpu, policy.files, memory_free, bf16=wants_bf16(precision, gpu), emit=emit)
        )
        self._autocast = wants_bf16(precision, self._device)
        policy.policy.to(self._device)
        self._frames = policy.frames_of(recordings)
        large = policy.files.parameters >= LARGE_POLICY and self._device.type == "cpu"
        wanted = micro_batch or (LARGE_AT_ONCE if large else 0)
        self._may_take_more = large and not micro_batch and not memory_free
        self._gradients = BatchGradients(
            policy,
            self._frames,
            WholeForward(policy, self._frames, bf16=self._autocast),
            micro=frames_at_once(policy.files, self._device, wanted, memory_free, bf16=self._autocast, emit=emit),
            emit=emit,
        )
        self._history = RunHistory()
        identity = {"policy": policy.files.policy_id, "layout": policy.layout.sha256, "node": node}
        self._identity = {**identity, "backbone": policy.files.backbone_sha256, "frames": len(self._frames)}
        self._optimiser = LocalOptimiser(policy.parameters, keep=keep_optimiser, identity=identity)
        self._anchors: list[torch.Tensor] = []
        self._clock = RoundClock(self._gradients)
        self._choice: ForwardChoice | None = None
        if cache is not None:
            self._choice = ForwardChoice(policy, self._frames, cache, bf16=self._autocast, emit=emit, check=control.check)
        self._level = ""
        """The level that an interrupted round began with."""

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

    @property
    def forward(self) -> Forward:
        """What computes losses now."""
        return self._gradients.forward

    def train(self, plan: RoundPlan, global_weights: np.ndarray, kept: RoundCheckpoint | None = None) -> RoundResult:
        """Train one round from `global_weights` (w_t, float32, flat). Emits RoundStarted, StepDone and RoundTrained.

        With `kept` the round's middle is kept on disk now and then, and a round that it holds goes on from there: to the
        bit what it had been without the interruption. Raises `Stopped` when asked to stop, and `RoundFailedError` when
        there is no update: three losses in a row that are not finite, no step before the deadline, or too little memory
        for a single frame.
        """
        import torch

        began = time.monotonic()
        self._history.begin(plan)
        self._policy.policy.to(self._device)
        self._policy.set_weights(global_weights)
        # w_t, which the proximal term pulls to: a copy, never a view of the live weights.
        self._anchors = [parameter.detach().clone() for parameter in self._policy.parameters]
        shelf = None if kept is None else RoundCheckpoint(kept.folder.with_name(OPTIMISER), newest=2)
        self._begin_optimiser(plan, shelf)
        steps = planned_steps(plan, self.frames)
        keeper = None if kept is None else self._keeper(kept, plan, global_weights)
        progress, threads = (keeper and self._restore(keeper)) or (self._history.first(plan), self._threads)
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
        self._policy.policy.train()
        with ExitStack() as stack:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
            stack.callback(lambda: self._policy.policy.zero_grad(set_to_none=True))
            stack.callback(self._anchors.clear)
            if keeper is not None:
                stack.push(_close(keeper))
            decoders = stack.enter_context(ThreadPoolExecutor(min(4, usable_cores()), "zk0desk-decode"))
            following = stack.enter_context(ThreadPoolExecutor(1, "zk0desk-batch"))
            stack.enter_context(self._checking(plan.deadline))
            to_come = (step for step in steps_of(plan, self._node, self.frames, steps) if step.number > progress.step)
            try:
                self._choose_forward(plan, steps)
                self._clock = RoundClock(self._gradients)
                for step, groups in self._clock.waiting(ahead(lambda step: self._groups(step.frames, decoders), to_come, following)):
                    if self._control.paused:
                        self._pause(plan, progress, threads, keeper)
                    self._check(plan.deadline)
                    self._step(plan, step, steps, groups, progress)
                    if keeper is not None and progress.step < steps and keeper.due:  # after the last step comes the update
                        self._keep(plan, progress, threads, keeper)
            except _DeadlinePassed:
                partial = "deadline"
            if progress.losses:
                self._emit(self._clock.event(plan, self.frames))
        if not progress.losses:
            raise RoundFailedError(
                f"Round {plan.round} gave no update.",
                "No step was finished before the deadline." if partial else "No step had a finite loss.",
                "Ask the coordinator for a longer deadline or a smaller batch, or train on a faster computer.",
            )
        self._history.finish(plan, progress)
        self._optimiser.finish(plan, shelf, self._control.check)
        delta = self._policy.get_weights()
        delta -= global_weights
        seconds = progress.seconds + time.monotonic() - began
        metrics = round_metrics(plan, progress, delta, frames=self.frames, epoch_losses=self._history.losses, seconds=seconds)
        self._emit(RoundTrained(run=plan.run, round=plan.round, metrics=metrics, partial=partial))
        return RoundResult(delta=delta, metrics=metrics, partial=partial, losses=list(progress.losses))

    def close(self, *, restore: bool = True) -> None:
        """Let go of the prefix cache. Trainer and policy can be used again, unless what was freed of the backbone is not to come back."""
        if self._choice is not None:
            self._choice.close(restore=restore)
            self._gradients.forward = self._choice.forward

    def _choose_forward(self, plan: RoundPlan, steps: int) -> None:
        if self._choice is None:
            return
        visits = max(1, plan.rounds - plan.round + 1) * steps * plan.batch_size / max(1, self.frames)
        level, self._level = self._level, ""
        self._gradients.forward = self._choice.begin(plan.run, visits, level)
        # A step over prepared frames takes a quarter of the memory, and more frames at once make it a quarter faster.
        if self._may_take_more and not level and self._gradients.forward.level in ("V", "P") and self._gradients.micro == LARGE_AT_ONCE:
            self._gradients.micro = PREPARED_AT_ONCE

    def _begin_optimiser(self, plan: RoundPlan, shelf: RoundCheckpoint | None) -> None:
        found = self._optimiser.begin(plan, shelf)
        if self._optimiser.keeps and not found and plan.round > 1:
            self._emit(
                Notice(
                    severity="note",
                    code="optimiser-fresh",
                    what=f"The optimiser starts anew in round {plan.round}.",
                    why="Nothing is kept of it from a round before on this computer.",
                )
            )

    # --- keeping the middle of the round

    def _keeper(self, kept: RoundCheckpoint, plan: RoundPlan, start: np.ndarray) -> Keeper:
        # The deadline is left out: it is another one when the message came again.
        settled = {key: value for key, value in asdict(plan).items() if key not in ("deadline", "rounds")}
        identity = {**self._identity, "plan": settled, "start": hashlib.sha256(start.data).hexdigest(), "moments": self._optimiser.keeps}
        return Keeper(kept, identity, self._policy.parameters, self._optimiser)

    def _keep(self, plan: RoundPlan, progress: Progress, threads: int, keeper: Keeper) -> None:
        if not keeper.worth(progress):
            return
        size = sum(tensor.nbytes for tensor in keeper.tensors(progress).values())
        a_day = bytes_a_day(size, keeper.interval_s)
        self._emit(RoundKept(run=plan.run, round=plan.round, step=progress.step, bytes=size, bytes_a_day=a_day))
        # Numbers differ in their last bits with these, so that a round goes on with those that it began with.
        pinned = {"micro": self._gradients.micro, "threads": threads, "level": self._gradients.forward.level}
        keeper.keep(progress, {**self._history.to_json(), **pinned, "asked": self._asked}, self._control.check)
        if why := keeper.trouble():
            self._emit(
                Notice(
                    severity="warning",
                    code="round-not-kept",
                    what=f"The middle of round {plan.round} cannot be kept on disk.",
                    why=f"{why}.",
                    remedy="Training goes on; free some disk, or this round starts anew after a power cut.",
                )
            )

    def _restore(self, keeper: Keeper) -> tuple[Progress, int] | None:
        """The round as it was kept, and its number of threads."""
        found = keeper.restore()
        if found is None:
            return None
        progress, memory = found
        self._history.read(memory)
        if memory.get("asked") != self._asked:
            return progress, self._threads  # the operator set others since then
        self._gradients.micro = int(memory["micro"])
        self._level = str(memory.get("level", ""))
        return progress, int(memory["threads"])

    # --- pause

    def _pause(self, plan: RoundPlan, progress: Progress, threads: int, keeper: Keeper | None) -> None:
        """Hold until resumed, or the deadline. A pause may end with the computer switched off: what was done is kept first."""
        if keeper is not None:
            self._keep(plan, progress, threads, keeper)
        with self.memory_freed():
            self._control.hold(plan.deadline)

    @contextmanager
    def memory_freed(self) -> Iterator[None]:
        """Within it the policy, the optimiser and w_t are in main memory and not on the GPU, if the operator wants that of a pause."""
        if not (self._pause_frees_memory and has_own_memory(self._device)):
            yield
            return
        policy = self._policy.policy
        policy.zero_grad(set_to_none=True)
        bring_back = set_aside(self._device, [*policy.parameters(), *policy.buffers(), *self._optimiser.tensors().values(), *self._anchors])
        yield
        try:
            bring_back()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise RoundFailedError(
                "Training cannot go on after the pause.",
                "Other programs have taken the GPU's memory meanwhile.",
                "Close them and join again: the round goes on from where it was.",
            ) from error

    # --- a step

    def _step(self, plan: RoundPlan, step: PlannedStep, steps: int, groups: Groups, progress: Progress) -> None:
        """One optimiser step, or a skipped one."""

        started, mu = time.monotonic(), progress.mu
        self._policy.policy.zero_grad(set_to_none=True)
        noise, moment = draw_noise(self._policy, len(step.frames), plan.seed, self._node, plan.round, "noise", step.number)
        loss, norm = self._gradients.of(step.frames, groups, noise, moment)
        progress.step = step.number
        if not (np.isfinite(loss) and np.isfinite(norm)):
            progress.skipped += 1
            self._say_skipped(plan, step, progress.skipped)
            return
        progress.skipped = 0
        computed = time.perf_counter()
        proximal = add_proximal_gradient(self._policy.parameters, self._anchors, mu)
        # Clipping acts on the sum of both gradients.
        clip(self._policy.parameters)
        self._optimiser.step()
        self._clock.optimiser += time.perf_counter() - computed
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
            self._end_epoch(plan, step, progress)

    def _groups(self, indices: list[int], decoders: ThreadPoolExecutor) -> Groups:
        self._control.check()
        forward = self._gradients.forward
        return [(places, forward.batch([indices[place] for place in places], decoders)) for places in self._frames.alike(indices)]

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

    def _end_epoch(self, plan: RoundPlan, step: PlannedStep, progress: Progress) -> None:
        """Settle mu until the next epoch's end, and say why it changed."""
        before = progress.mu
        verdict = self._history.end_epoch(plan, progress)
        if verdict is None or verdict.mu == before:
            return
        up = verdict.mu > before
        self._emit(
            MuChanged(
                run=plan.run,
                round=plan.round,
                step=step.number,
                epoch=step.epoch,
                mu=verdict.mu,
                before=before,
                what=f"The proximal mu was {'raised' if up else 'lowered'} from {before:.3g} to {verdict.mu:.3g}.",
                why=verdict.why,
                loss_std=verdict.loss_std,
                loss_std_limit=verdict.loss_std_limit,
                grad_norm=verdict.grad_norm,
                grad_norm_limit=verdict.grad_norm_limit,
                cause=verdict.cause,
            )
        )

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


def _close(keeper: Keeper) -> Callable[..., None]:
    """For the end of a round: what is being written is not needed after an update or a stop, but is after an error."""

    def leave(kind: type[BaseException] | None, *_: object) -> None:
        keeper.close(finish=kind is not None and not issubclass(kind, Stopped))

    return leave
