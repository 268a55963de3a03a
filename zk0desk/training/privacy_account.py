"""What was released so far under differential privacy, on disk: it outlives runs, and counts before anything leaves."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from zk0desk import folders
from zk0desk.errors import ExitStatus, OperatorError
from zk0desk.training.privacy import Release, epsilon, rounds_within


class AccountUnreadable(OperatorError):
    """What was spent before is not known, so nothing more may be."""

    code = "privacy-unreadable"


class BudgetSpent(OperatorError):
    """One more release would spend more than the budget allows."""

    code = "privacy-budget"
    exit_status = ExitStatus.REFUSED


class PrivacyAccount:
    """The releases in the file `path` (JSON, mode 0600). One process uses it at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counts = self._read()

    def releases(self) -> list[Release]:
        """All so far."""
        return [Release(float(noise), count) for noise, count in sorted(self._counts.items())]

    def epsilon(self, delta: float) -> float:
        """What they have spent."""
        return epsilon(self.releases(), delta)

    def left(self, noise_multiplier: float, budget: float, delta: float) -> int:
        """How many more with this noise the budget allows."""
        return rounds_within(budget, delta, noise_multiplier, self.releases())

    def count(self, noise_multiplier: float, budget: float, delta: float) -> float:
        """Count one more release before it is made; what is spent then. `BudgetSpent` when the budget does not allow it."""
        spent = epsilon([*self.releases(), Release(noise_multiplier)], delta)
        if spent > budget:
            raise BudgetSpent(
                "The privacy budget is spent.",
                f"One more round would make epsilon {spent:.3g} at delta {delta:g}; the budget is {budget:g}.",
                "A larger budget protects less; to choose it is a decision, not a remedy.",
            )
        key = repr(noise_multiplier)
        self._counts[key] = self._counts.get(key, 0) + 1
        self._write()
        return spent

    def _read(self) -> dict[str, int]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))["releases"]
            counts = {repr(float(noise)): int(count) for noise, count in found.items()}
            if any(count < 0 for count in counts.values()):
                raise ValueError("a number of releases is negative")
            return counts
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise AccountUnreadable(
                f"{self._path} cannot be read.",
                f"{error}. It says what was spent of the privacy budget.",
                "Restore it; if you remove it, what was spent before is forgotten and no longer protected.",
            ) from error

    def _write(self) -> None:
        folders.private_folder(self._path.parent)
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name, suffix=".partial")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"releases": self._counts}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
