"""What `benchmarks/ablation.py` compares, and the curves that it keeps of each run."""

from __future__ import annotations

from dataclasses import dataclass, field

from ablation_data import THIRDS

REFERENCE = "fedprox"
"""Whose loss late in the run the others are to reach."""
FOUR = {name: (name,) for name in (*THIRDS, "cube")}
TWO = {"banana": THIRDS, "cube": ("cube",)}
NO_CUBE = {name: (name,) for name in THIRDS}


@dataclass(frozen=True)
class Case:
    """One configuration. `rule`: whether a node raises its own mu. `steps`: local steps of a round (the paper's E)."""

    name: str
    strategy: str
    mu: float = 0.01
    rule: bool = False
    steps: int = 20
    nodes: dict[str, tuple[str, ...]] = field(default_factory=lambda: FOUR)

    def rounds(self, budget: int) -> int:
        """Rounds in which all nodes together make `budget` steps."""
        return budget // (self.steps * len(self.nodes))


CASES = (
    Case("fedavg", "fedavg", 0.0),
    Case("fedprox", "fedprox"),
    Case("dynamic", "dynamic", rule=True),
    Case("dynamic, no rule", "dynamic"),
    Case("mu 1", "fedprox", 1.0),
    Case("mu 1, rule", "fedprox", 1.0, rule=True),
    Case("dynamic, E 50", "dynamic", rule=True, steps=50),
    Case("dynamic, 2 nodes", "dynamic", rule=True, nodes=TWO),
    Case("fedavg, no cube", "fedavg", 0.0, nodes=NO_CUBE),
    Case("fedprox, no cube", "fedprox", nodes=NO_CUBE),
    Case("dynamic, no cube", "dynamic", rule=True, nodes=NO_CUBE),
    Case("mu 1, no cube", "fedprox", 1.0, nodes=NO_CUBE),
)
COMPARED = (
    ("fedprox", "fedavg"),
    ("mu 1", "fedavg"),
    ("dynamic", "fedprox"),
    ("dynamic", "dynamic, no rule"),
    ("mu 1, rule", "mu 1"),
    ("dynamic, E 50", "dynamic"),
    ("dynamic, 2 nodes", "dynamic"),
    ("fedprox, no cube", "fedavg, no cube"),
    ("mu 1, no cube", "fedavg, no cube"),
    ("dynamic, no cube", "fedprox, no cube"),
)
"""Which is compared with which."""


@dataclass
class Curves:
    """Of one run, after each round (losses: round 0 too). `apart`: the variance of the nodes' updates by the square of their mean's norm;
    `unlike`: the standard deviation of the nodes' last losses; `raised`: mu that the nodes used by the one that they were asked with."""

    held_out: list[float] = field(default_factory=list)
    retention: list[float] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    mu: list[float] = field(default_factory=list)
    apart: list[float] = field(default_factory=list)
    unlike: list[float] = field(default_factory=list)
    raised: list[float] = field(default_factory=list)
    signals: list[str] = field(default_factory=list)
