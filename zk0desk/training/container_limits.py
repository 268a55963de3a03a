"""What a container or a service may use of its computer: memory and cores by Linux control groups, version 1 and 2."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_UNLIMITED = 2**50
"""Version 1 says "no limit" by a number near 2**63."""


@dataclass(frozen=True)
class Limits:
    """`memory` in bytes and `cpu` in cores, 0 where there is no limit; `memory_used` counts against it, without what can be dropped."""

    memory: int = 0
    memory_used: int = 0
    cpu: float = 0.0


def container_limits(root: Path = ROOT, own: Path = OWN) -> Limits:
    """The tightest limits on this process, its group's and those of the groups around it. None of it on other systems."""
    groups = _groups(own)
    memory = used = 0
    cpu = 0.0
    for folder in _folders(root, groups, "memory"):
        for limit_file, used_file, dropped in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _number(folder / limit_file)
            if 0 < limit < _UNLIMITED and (not memory or limit < memory):
                memory, used = limit, max(0, _number(folder / used_file) - _stat(folder / "memory.stat", dropped))
    for folder in _folders(root, groups, "cpu"):
        quota, period = _quota(folder)
        if quota > 0 and period > 0 and (not cpu or quota / period < cpu):
            cpu = quota / period
    return Limits(memory, used, cpu)


def usable_cores() -> int:
    """Cores that this process may use: of those it is bound to, as many as its container's quota allows. At least 1."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = container_limits().cpu
    return max(1, min(bound, int(quota))) if quota else max(1, bound)


def usable_memory() -> tuple[int, int]:
    """Bytes of memory that this process may use, and of them what is free: this computer's, or its container's where that is less."""
    import psutil

    seen, limits = psutil.virtual_memory(), container_limits()
    if not limits.memory:
        return seen.total, seen.available
    return min(seen.total, limits.memory), min(seen.available, max(0, limits.memory - limits.memory_used))


def in_container() -> bool:
    """Whether this process runs in a container (Docker, Podman, Kubernetes, LXC)."""
    if any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")) or "KUBERNETES_SERVICE_HOST" in os.environ:
        return True
    return bool(os.environ.get("container"))  # noqa: SIM112 - systemd and Podman write it so


def _groups(own: Path) -> dict[str, str]:
    """Controller to this process's group; the key "" is version 2's."""
    result = {}
    for line in _text(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for name in controllers.split(","):
            result[name] = path
    return result


def _folders(root: Path, groups: dict[str, str], controller: str) -> Iterator[Path]:
    """Where the limits of `controller` may be written: this process's group and all around it, up to the root that is seen."""
    for base, path in ((root, groups.get("", "/")), (root / controller, groups.get(controller, "/")), (root / "cpu,cpuacct", "/")):
        if not base.is_dir():
            continue
        # In a container the path may be the host's, which is not seen from inside: then the root is its group.
        folder = base / path.strip("/")
        while folder != base:
            yield folder
            folder = folder.parent
        yield base


def _quota(folder: Path) -> tuple[int, int]:
    words = _text(folder / "cpu.max").split()
    if len(words) == 2 and words[0].isdigit():
        return int(words[0]), int(words[1])
    return _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")


def _stat(path: Path, name: str) -> int:
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0


def _number(path: Path) -> int:
    text = _text(path).strip()
    return int(text) if text.isdigit() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
