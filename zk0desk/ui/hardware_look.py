"""A look at this computer and the base policy together, as the window's pages share it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from zk0desk.errors import OperatorError

if TYPE_CHECKING:
    from zk0desk.settings import Settings
    from zk0desk.training.hardware import Computer, Verdict
    from zk0desk.training.policy_files import PolicyFiles


class Asked(NamedTuple):
    """What the verdict depends on besides the computer: the policy's folder, and the settings' device and precision."""

    folder: Path | None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    @classmethod
    def of(cls, settings: Settings) -> Asked:
        """What `settings` ask."""
        return cls(settings.policy.folder, settings.training.device, settings.training.precision)


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


def look_at_hardware(asked: Asked) -> HardwareLook:
    """Look now. It takes up to seconds: call it in the background."""
    from zk0desk.training.hardware import inspect_computer, verdict

    computer, files, trouble = inspect_computer(), None, None
    if asked.folder is not None:
        from zk0desk.training.policy_files import read_policy

        try:
            files = read_policy(asked.folder)
        except OperatorError as error:
            trouble = error
    size = (files.parameters, files.trainable_parameters) if files else ()
    answer = verdict(computer, *size, device=asked.device, precision=asked.precision)
    return HardwareLook(asked, computer, answer, files, trouble)
