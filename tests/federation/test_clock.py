"""The coordinator's clock is set while a federation runs: its processes see another time, through the C library's own calls."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.federation.coordinator_parts import make_server
from tests.federation.kill_parts import KEYS, Federation, SturdyNode, federation

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
ROUNDS = 4

SHIFT = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long shift(void) {
    char text[32] = {0};
    const char *path = getenv("ZK0DESK_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0) return 0;
    if (read(file, text, sizeof text - 1) < 0) text[0] = 0;
    close(file);
    return atol(text);
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, which, now);
    if (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE) now->tv_sec += shift();
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"""


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the seconds by which the clocks of processes that are started from now on go wrong."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library, file = tmp_path / "shift.c", tmp_path / "shift.so", tmp_path / "clock"
    source.write_text(SHIFT)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    file.write_text("0")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("ZK0DESK_TEST_CLOCK", str(file))
    return file


def set_clock(file: Path, seconds: int) -> None:
    partial = file.with_suffix(".new")
    partial.write_text(str(seconds))
    partial.replace(file)


def complete(made: Federation) -> None:
    made.events.wait_for(lambda event: event.name == "run-finished" and event.reason == "complete", 120)


def test_a_clock_that_is_set_forth_by_minutes_in_a_round_changes_nothing(tmp_path, clock):
    seconds = 200

    def watch(event) -> None:
        if event.name == "round-opened" and event.round == 2:
            set_clock(clock, seconds)

    with federation(make_server(tmp_path, rounds=ROUNDS), ROUNDS) as made:
        made.start(watch)
        with SturdyNode(made.folder, KEYS[0], 0.02), SturdyNode(made.folder, KEYS[1], -0.03):
            complete(made)
        shown = [event.time - time.time() for event in made.events.named("round-aggregated")]
        assert abs(shown[0]) < 100
        assert abs(shown[-1] - seconds) < 100, "the processes did see the other time"
        assert made.audit().findings == []
        assert list(made.hashes()) == list(range(1, ROUNDS + 1))


@pytest.mark.parametrize("seconds", [-3600, 86_400])
def test_a_clock_that_is_far_off_keeps_nodes_away_with_a_sentence_until_it_is_right(tmp_path, clock, seconds):
    """Signatures of nodes carry the time, and a SuperLink takes none from another hour."""

    def watch(event) -> None:
        if event.name == "checkpoint-saved" and event.round == 2:
            set_clock(clock, seconds)

    with federation(make_server(tmp_path, rounds=ROUNDS, deadline_s=5.0), ROUNDS) as made:
        made.start(watch)
        with SturdyNode(made.folder, KEYS[0], 0.02) as first, SturdyNode(made.folder, KEYS[1], -0.03):
            made.events.wait_for(lambda event: event.name == "checkpoint-saved" and event.round == 2, 90)
            ends = time.monotonic() + 60
            while not any("clock" in words for words in first.trouble):
                assert time.monotonic() < ends, first.trouble
                time.sleep(0.1)
            set_clock(clock, 0)
            complete(made)
        assert made.audit().findings == []
        assert list(made.hashes()) == list(range(1, ROUNDS + 1))
