"""A look at this computer and the base policy together, as the window's pages share it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from zk0desk.errors import OperatorError

if TYPE_CHECKING:
    from zk0desk.settings import Settings
    from zk0desk.training.hardware import Computer, Verdict
    from zk0desk.training.policy_files import PolicyFiles


class Asked(NamedTuple):
    """What the verdict depends on besides the computer: the policy's folder, the settings of training, and the federation's batch."""

    folder: Path | None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    micro_batch: int = 0
    memory_free: float = 0.0
    batch: int = 64

    @classmethod
    def of(cls, settings: Settings) -> Asked:
        """What `settings` ask."""
        from zk0desk.federation.asked_round import invitation_in

        training, invitation = settings.training, invitation_in(settings)
        asked = (training.device, training.precision, training.micro_batch, training.memory_free)
        return cls(settings.policy.folder, *asked, *(() if invitation is None else (invitation.batch_size,)))


@dataclass(frozen=True)
class HardwareLook:
    """What was seen: the computer, the policy (None without one, or with `trouble`), and whether it trains here as `asked`."""

    asked: Asked
    computer: Computer
    verdict: Verdict
    files: PolicyFiles | None
    trouble: OperatorError | None

    @property
    def headline(self) -> str:
        """The verdict without its first finding, which stands on the page by itself."""
        first = self.verdict.findings[:1]
        return self.verdict.sentence.removesuffix("".join(f" {finding.what} {finding.remedy}" for finding in first))

    def judged(self, asked: Asked) -> HardwareLook:
        """This computer and policy judged as is `asked` now; the policy's folder is the same. Nothing is looked at."""
        return replace(self, asked=asked, verdict=_judge(asked, self.computer, self.files))


def look_at_hardware(asked: Asked) -> HardwareLook:
    """Look now. It takes up to seconds: call it in the background."""
    from zk0desk.training.hardware import inspect_computer

    computer, files, trouble = inspect_computer(), None, None
    if asked.folder is not None:
        from zk0desk.training.policy_files import read_policy

        try:
            files = read_policy(asked.folder)
        except OperatorError as error:
            trouble = error
    return HardwareLook(asked, computer, _judge(asked, computer, files), files, trouble)


def _judge(asked: Asked, computer: Computer, files: PolicyFiles | None) -> Verdict:
    from zk0desk.training.hardware import verdict

    size = (files.parameters, files.trainable_parameters) if files else ()
    return verdict(
        computer, *size, batch=asked.batch, device=asked.device, precision=asked.precision, micro_batch=asked.micro_batch,
        memory_free=asked.memory_free,
    )  # fmt: skip
