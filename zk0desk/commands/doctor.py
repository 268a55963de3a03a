"""`zk0desk doctor`: does the policy train on this computer?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def doctor(
    policy: Annotated[Path | None, typer.Option(help="The policy's folder; default: SmolVLA in full size.", show_default=False)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not try to load torch.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> int:
    """Say whether this computer can train the policy, and if not, why and what to do.

    Works where torch, a display or a keyring are missing, and says so. Exit status: 0 it can, 3 with limits, 4 it cannot.

    \b
    Example: zk0desk doctor --json
    """
    from zk0desk.training.hardware import PARAMETERS, TRAINABLE, gigabytes, inspect_computer, verdict

    parameters, trainable = PARAMETERS, TRAINABLE
    if policy is not None:
        from zk0desk.training.policy_files import read_policy

        files = read_policy(policy)
        parameters, trainable = files.parameters, files.trainable_parameters
    computer = inspect_computer(probe_engine=not quick)
    answer = verdict(computer, parameters, trainable)
    if as_json:
        data: dict[str, Any] = {**answer.to_json(), "computer": computer.to_json()}
        print(json.dumps(data, indent=2))
        return int(answer.exit_status)
    print(answer.sentence)
    rows = [
        ("System", computer.system),
        ("Processor", f"{computer.cpu}, {computer.cores} cores, {' '.join(computer.instructions)}"),
        *(("GPU", f"{g.name}, {gigabytes(g.memory_free)} of {gigabytes(g.memory)} free, driver {g.driver or '-'}") for g in computer.gpus),
        ("Memory", f"{gigabytes(computer.memory_free)} of {gigabytes(computer.memory)} free; {gigabytes(answer.memory_needed)} needed"),
        ("Disk", f"{gigabytes(computer.disk_free)} free"),
        ("Keyring", computer.keyring),
        ("Screen", "yes" if computer.display else "no: the window cannot open, headless commands work"),
        ("Versions", ", ".join(f"{name} {version or 'not installed'}" for name, version in computer.versions.items())),
    ]
    for name, value in rows:
        print(f"  {name:<10}{value}")
    for finding in answer.findings:
        print(f"  {finding.severity:<10}  {finding.what} {finding.why} {finding.remedy}".rstrip())
    return int(answer.exit_status)
