"""The wire contract: what is right comes through unchanged, everything else is refused by name."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0desk.federation.messages import (
    SIGNALS,
    TRAIN_METRICS,
    MessageRefused,
    TrainRequest,
    check_metrics,
    check_query,
    check_reply,
    own_config,
    reply_config,
)
from zk0desk.federation.schedule import MARKED

HEX = "ab" * 32


def request(**changes: object) -> TrainRequest:
    values: dict[str, object] = {
        "run_uid": "run-1", "server_round": 2, "num_rounds": 3, "seed": 7, "lr": 1e-4, "proximal_mu": 0.01, "batch_size": 8,
        "policy_id": "tiny", "backbone_sha256": HEX, "layout_sha256": HEX, "weights_sha256": HEX, "base_sha256": HEX, "deadline_s": 60.0,
        "last": {"last-round": 1, "last-nodes": 2, "last-eval-loss": 0.5}, **changes,
    }  # fmt: skip
    return TrainRequest(**values)  # type: ignore[arg-type]


def test_that_a_request_survives_the_wire() -> None:
    assert TrainRequest.from_config(request().to_config()) == request()


def test_that_losses_that_are_not_finite_are_left_out_rather_than_sent() -> None:
    config = request(last={"last-round": 1, "last-eval-loss": math.nan}).to_config()
    assert "last-eval-loss" not in config
    assert config["last-round"] == 1


def test_that_a_loss_beyond_its_limit_does_not_make_the_round_unusable() -> None:
    config = request(last={"last-round": 1, "last-eval-loss": 1e30, "last-train-loss": 2.0}).to_config()
    assert TrainRequest.from_config(config).last == {"last-round": 1, "last-train-loss": 2.0}


def test_that_every_signal_of_the_schedule_travels_and_nothing_else_does() -> None:
    assert set(SIGNALS) == set(MARKED)
    for signal in SIGNALS:
        assert TrainRequest.from_config(request(last_signal=signal).to_config()).last_signal == signal
    assert "last-signal" not in request().to_config()
    for wrong in ("", "Plateau", "<b>plateau</b>", 3, True):
        with pytest.raises(MessageRefused, match="last-signal"):
            TrainRequest.from_config({**request().to_config(), "last-signal": wrong})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0.2), ("lr", math.nan), ("lr", math.inf), ("lr", "0.1"), ("lr", True), ("batch-size", 0), ("batch-size", 2.0),
        ("batch-size", 10**40), ("local-epochs", -1.0), ("run-uid", "../../etc"), ("run-uid", ".."), ("run-uid", "a/b"), ("run-uid", ""),
        ("run-uid", "x\n"), ("weights-sha256", "AB" * 32), ("weights-sha256", HEX + "\n"), ("encoding", "pickle"), ("arrays-kind", "code"),
        ("deadline-s", 1e9), ("server-round", 4), ("accepted-round", 2), ("base-sha256", "cd" * 32), ("seed", [1]),
    ],
)  # fmt: skip
def test_that_a_value_out_of_range_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(MessageRefused) as refused:
        TrainRequest.from_config({**request().to_config(), key: value})
    assert refused.value.key == key
    assert key in refused.value.reason


def test_that_an_unknown_key_and_a_missing_key_are_refused() -> None:
    with pytest.raises(MessageRefused, match="code-url"):
        TrainRequest.from_config({**request().to_config(), "code-url": "https://example.org"})
    config = request().to_config()
    del config["seed"]
    with pytest.raises(MessageRefused, match="seed"):
        TrainRequest.from_config(config)


@pytest.mark.parametrize("verdict", ["accepted", "norm-beyond-bound: 3 times the median", ""])
def test_that_a_verdict_on_the_last_reply_travels_with_the_request(verdict: str) -> None:
    config = request(last_verdict=verdict).to_config()
    assert TrainRequest.from_config(config) == request(last_verdict=verdict)
    assert ("last-verdict" in config) == bool(verdict)
    long = own_config(last_verdict="a\nb" + "c" * 400)
    assert TrainRequest.from_config({**request().to_config(), **long}).last_verdict == "a b" + "c" * 297


@pytest.mark.parametrize("verdict", ["a\nb", "\x1b[31m", "x" * 301, 3, b"accepted"])
def test_that_a_verdict_of_more_than_a_line_is_refused(verdict: object) -> None:
    with pytest.raises(MessageRefused, match="last-verdict"):
        TrainRequest.from_config({**request().to_config(), "last-verdict": verdict})
    with pytest.raises(MessageRefused, match="last-verdict"):
        check_query({"run-uid": "r", "last-verdict": verdict})


keys = st.sampled_from(sorted(request().to_config())) | st.text(max_size=12)
values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=80)
    | st.lists(st.integers(), max_size=3)
    | st.binary(max_size=4)
)


@given(st.dictionaries(keys, values), st.booleans())
def test_that_any_mapping_is_a_valid_request_or_is_refused(mapping: dict[str, object], complete: bool) -> None:
    config = {**request().to_config(), **mapping} if complete else mapping
    try:
        found = TrainRequest.from_config(config)
    except MessageRefused:
        return
    plan = found.plan(0.0)
    assert 0 <= plan.lr <= 0.1 and plan.batch_size >= 1 and plan.round <= plan.rounds
    assert plan.local_steps or plan.local_epochs > 0
    assert TrainRequest.from_config(found.to_config()) == found


@given(st.dictionaries(st.sampled_from(sorted(TRAIN_METRICS)) | st.text(max_size=8), st.floats() | st.integers() | st.text(max_size=4)))
def test_that_any_metrics_are_in_range_or_are_refused(metrics: dict[str, object]) -> None:
    try:
        found = check_metrics({"num-examples": 1, "steps-done": 1, **metrics})
    except MessageRefused:
        return
    for key, value in found.items():
        low, high = TRAIN_METRICS[key]
        assert low <= value <= high


def test_that_a_node_cannot_claim_a_trillion_frames() -> None:
    with pytest.raises(MessageRefused, match="num-examples"):
        check_metrics({"num-examples": 1e12, "steps-done": 1})


@pytest.mark.parametrize(
    "change", [{"base-sha256": "cd" * 32}, {"server-round": 1}, {"encoding": "fp32"}, {"extra": 1}, {"server-round": 2.0}]
)
def test_that_a_reply_to_another_request_is_refused(change: dict[str, object]) -> None:
    check_reply(reply_config(request()), request())
    with pytest.raises(MessageRefused, match=next(iter(change))):
        check_reply({**reply_config(request()), **change}, request())


def test_that_a_query_asks_for_nothing_but_names_the_run_and_its_losses() -> None:
    assert check_query({"run-uid": "r", "last-round": 3, "last-eval-loss": 0.25}) == {"last-round": 3, "last-eval-loss": 0.25}
    assert check_query({}) == {}
    with pytest.raises(MessageRefused, match="recordings"):
        check_query({"recordings": "all"})
    with pytest.raises(MessageRefused, match="run-uid"):
        check_query({"last-round": 3})


def test_that_the_plan_holds_what_was_asked() -> None:
    plan = request(local_steps=5, mu_max=0.0).plan(12.0)
    assert (plan.run, plan.round, plan.rounds, plan.local_steps, plan.deadline) == ("run-1", 2, 3, 5, 12.0)
    assert plan.mu_max >= plan.mu
    assert dataclasses.asdict(plan)["seed"] == 7
