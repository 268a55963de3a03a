"""The card of a published policy: what it is, how it came about, how well it does, and by which fingerprints it can be told."""

from __future__ import annotations

from dataclasses import dataclass

from zk0desk import __version__


@dataclass(frozen=True)
class Lineage:
    """Where a policy comes from: the base policy's name (and its id on the Hub, if it is there), and SHA-256 of what makes it up."""

    base_name: str
    base_repo: str
    policy_id: str
    backbone_sha256: str
    layout_sha256: str
    base_weights_sha256: str
    weights_sha256: str


@dataclass(frozen=True)
class Facts:
    """What the card tells of the run. Losses are flow-matching losses on held-out recordings; None where none was measured."""

    federation: str
    run: str
    round: int
    rounds: int
    nodes: int
    parameters: int
    trainable_parameters: int
    base_loss: float | None
    loss: float | None
    standard_error: float | None
    forgetting: dict[str, float]
    settings: dict[str, str]
    license: str
    picture: bool
    privacy: str = ""
    """What differential privacy at the coordinator has spent, in words; empty without."""


def model_card(facts: Facts, lineage: Lineage) -> str:
    """README.md of the policy's repository: the Hub's metadata as YAML, then Markdown."""
    head = ["---", f"license: {facts.license}", "library_name: lerobot", "pipeline_tag: robotics"]
    if lineage.base_repo:
        head += [f"base_model: {lineage.base_repo}"]
    head += ["tags:", "- robotics", "- lerobot", "- smolvla", "- federated-learning", "- zk0desk", "---", ""]
    return "\n".join([*head, *_body(facts, lineage), ""])


def _body(facts: Facts, lineage: Lineage) -> list[str]:
    nodes = "one node" if facts.nodes == 1 else f"{facts.nodes} nodes"
    took_part = f"{nodes} took part in the last one" if not facts.privacy else f"{nodes} were expected in each"
    lines = [
        f"# {_plain(facts.federation)}: round {facts.round}",
        "",
        f"A SmolVLA policy of {facts.parameters:,} parameters. {facts.trainable_parameters:,} of them (the action expert and five "
        f"projections) were trained by federated learning over {facts.round} rounds; {took_part}. No recording left "
        "the computer that it is on.",
        "",
        "## How well it does",
        "",
    ]
    if facts.loss is None:
        lines += ["It was not measured on held-out recordings.", ""]
    else:
        error = f" ± {facts.standard_error:.4f} (standard error)" if facts.standard_error else ""
        lines += ["| | flow-matching loss on held-out recordings |", "|---|---|"]
        lines += [f"| base policy | {facts.base_loss:.4f} |"] if facts.base_loss is not None else []
        lines += [f"| this policy, round {facts.round} of {facts.rounds} | {facts.loss:.4f}{error} |", ""]
        lines += ["A loss is no success rate: nothing was tried on a robot.", ""]
    if facts.forgetting:
        rise = sum(facts.forgetting.values()) / len(facts.forgetting)
        lines += [f"On tasks that the base policy knew, its loss changed by {rise:+.4f} since round 0.", ""]
    if facts.picture:
        lines += ["![Losses, learning rate and mu by round](curves.png)", ""]
    lines += ["## How it was trained", "", "| setting | value |", "|---|---|"]
    lines += [f"| {name} | {_plain(value)} |" for name, value in facts.settings.items()]
    if facts.privacy:
        lines += ["", f"Updates were clipped and summed with noise at the coordinator: differential privacy of {facts.privacy} for a node."]
    lines += ["", f"Run `{facts.run}`, zk0desk {__version__}. Updates were weighted by the frames that a node trained on.", ""]
    lines += ["## Lineage", "", "| what | |", "|---|---|"]
    base = f"[{lineage.base_repo}](https://huggingface.co/{lineage.base_repo})" if lineage.base_repo else _plain(lineage.base_name)
    lines += [
        f"| base policy | {base} |",
        f"| policy id | `{lineage.policy_id}` |",
        f"| backbone, frozen (SHA-256) | `{lineage.backbone_sha256}` |",
        f"| layout of the trainable set (SHA-256) | `{lineage.layout_sha256}` |",
        f"| trainable weights of the base policy (SHA-256) | `{lineage.base_weights_sha256}` |",
        f"| trainable weights of this policy (SHA-256) | `{lineage.weights_sha256}` |",
        "",
        "`zk0desk policy show FOLDER` prints a folder's id, backbone and layout; policies that agree in these can be compared and merged.",
        "",
        "## Use",
        "",
        "The processors carry the statistics of the coordinator's held-out recordings. For your own robot, save the policy with the",
        "statistics of your recordings, or fine-tune it with `lerobot-train --policy.path=`.",
    ]
    return lines


def _plain(text: str) -> str:
    """Text that is no Markdown and no HTML, on one line."""
    kept = "".join(letter if letter.isprintable() else " " for letter in text)
    for letter in "\\`*_[]<>|#!":
        kept = kept.replace(letter, f"\\{letter}" if letter not in "<>" else " ")
    return kept.strip()
