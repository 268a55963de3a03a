"""Which level is chosen for a described computer, and what is said about it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0desk.training.disk_speed import disk_speed
from zk0desk.training.prefix_level import CacheCase, choose_level

GB = 10**9
SMALL = CacheCase(frames=750, v_bytes=245_760, p_bytes=2_867_200, memory_free=8 * GB, disk_free=200 * GB, budget=20 * GB)
MANY = replace(SMALL, frames=50_000)
ON_GPU = replace(MANY, gpu=True, budget=200 * GB)

CASES = {
    "a CPU whose memory takes all of P": (SMALL, "P", "P: 2.2 GB for 750 frames; fits the budget of 20.0 GB and the memory."),
    "a CPU with a budget too small for P": (MANY, "V", "P would take 143.4 GB of a budget of 20.0 GB."),
    "a CPU with a large budget: even a slow disk is faster": (replace(MANY, budget=200 * GB, disk_speed=5e8), "P", "500 MB/s"),
    "a GPU whose memory takes all of P": (replace(SMALL, gpu=True), "P", "and the memory"),
    "a GPU with a fast disk": (replace(ON_GPU, disk_speed=3e9), "P", "3,000 MB/s"),
    "a GPU with a slow disk": (replace(ON_GPU, disk_speed=5e8), "V", "P would gain nothing: a disk with 500 MB/s"),
    "a GPU with a disk that nobody measured": (ON_GPU, "V", "a speed that nobody measured"),
    "a very fast GPU with a fast disk": (replace(ON_GPU, disk_speed=3e9, compute_speed=2e14), "V", "P would gain nothing"),
    "a GPU with a network's disk": (replace(ON_GPU, disk_speed=1e7, memory_free=0), "N", "would take as long as computing"),
    "a budget for a part of V": (replace(MANY, frames=200_000), "V", "41% of the frames are kept"),
    "a budget for next to nothing": (replace(MANY, frames=3_000_000), "N", "V would take 737.3 GB of a budget of 20.0 GB"),
    "no budget": (replace(SMALL, budget=0), "N", "of a budget of 0 MB"),
    "a full disk": (replace(SMALL, disk_free=GB), "V", "P would take 2.2 GB of 1.0 GB that are free on the disk"),
    "a full disk that has P already": (replace(SMALL, disk_free=0, kept_p=750), "P", "fits"),
    "one visit a frame": (replace(SMALL, visits=1.0), "N", "visited only once"),
    "one visit a frame, kept already": (replace(SMALL, visits=1.0, kept_p=750), "P", "fits"),
    "no frames": (replace(SMALL, frames=0), "N", "no frame"),
    "set to off": (replace(SMALL, setting="off"), "off", "set in Settings"),
    "set to N": (replace(SMALL, setting="N"), "N", "set in Settings"),
    "set to V": (replace(SMALL, setting="V"), "V", "Set in Settings."),
    "set to P, which fits in part": (replace(MANY, setting="P"), "P", "14% of the frames are kept. Set in Settings."),
    "set to P, which does not fit": (replace(MANY, setting="P", frames=100_000), "V", "P is set in Settings, but P would take 286.7 GB"),
    "set to V, which does not fit": (replace(MANY, setting="V", frames=3_000_000), "N", "V is set in Settings, but V would take"),
    "refused, whatever is set": (replace(SMALL, setting="P", refused="The backbone is trained too."), "off", "off: The backbone is"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_level_for_a_described_computer_and_its_reason(name: str) -> None:
    case, level, words = CASES[name]
    choice = choose_level(case)
    assert choice.level == level and words in choice.reason, choice.reason
    assert choice.reason.startswith(f"{level}: ") and choice.reason.endswith(".")


def test_what_a_larger_budget_would_give_is_said_where_it_would_give_something() -> None:
    assert choose_level(MANY).larger == "With a budget of 143.4 GB all frames fit at level P: about 2.3 times faster."
    assert choose_level(replace(MANY, frames=200_000)).larger.startswith("With a budget of 49.2 GB all frames fit at level V")
    assert "With room on the disk for 2.2 GB" in choose_level(replace(SMALL, disk_free=GB)).larger
    assert choose_level(SMALL).larger == "" and choose_level(replace(ON_GPU, disk_speed=5e8)).larger == ""


cases = st.builds(
    CacheCase,
    frames=st.integers(0, 10**7),
    v_bytes=st.integers(1, 10**6),
    p_bytes=st.integers(10**6, 10**7),
    memory_free=st.integers(0, 10**12),
    disk_free=st.integers(0, 10**13),
    budget=st.integers(0, 10**13),
    gpu=st.booleans(),
    disk_speed=st.just(0.0) | st.floats(1e6, 1e10),
    compute_speed=st.just(0.0) | st.floats(1e9, 1e15),
    cores=st.integers(1, 128),
    visits=st.floats(0, 1000),
    setting=st.sampled_from(["auto", "off", "N", "V", "P"]),
)


@given(cases)
def test_what_is_chosen_never_takes_more_than_there_is(case: CacheCase) -> None:
    choice = choose_level(case)
    assert choice.bytes <= min(case.budget, case.disk_free)
    assert 0 <= choice.share <= 1 and (choice.share == 0) == (choice.level not in ("V", "P"))


@given(cases)
def test_a_larger_budget_never_makes_it_slower(case: CacheCase) -> None:
    case = replace(case, setting="auto")
    # A level is left only for a clear gain, so the one may be a little slower than the other would be.
    assert choose_level(replace(case, budget=2 * case.budget)).gain * 1.2001 >= choose_level(case).gain


def test_a_disk_is_measured_and_nothing_stays_of_it(tmp_path) -> None:
    assert disk_speed(tmp_path, 4_000_000) > 1e5
    assert not list(tmp_path.iterdir())
    assert disk_speed(tmp_path / "missing") == 0
