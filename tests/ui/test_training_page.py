"""The training page: figures measured from events, plots that keep a zoom, runs of the past, saving."""

from __future__ import annotations

import csv
import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PySide6.QtCore import QPointF, Qt
from PySide6.QtGui import QColor, QImage
from PySide6.QtWidgets import QApplication

from zk0desk import events
from zk0desk.control import NodeControl
from zk0desk.federation import schedule
from zk0desk.federation.node_state import NodeState
from zk0desk.ui import theme
from zk0desk.ui.all_runs import AllRuns
from zk0desk.ui.durations import duration
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.training import TrainingPage
from zk0desk.ui.plots import number, right_end, tick_step
from zk0desk.ui.run_data import SMOOTHED, RunData, Smoothed, Track
from zk0desk.ui.save_policy import SavePolicy

BEGAN = 1_700_000_000.0


def state(name: NodeState, time: float) -> events.NodeStateChanged:
    return events.NodeStateChanged(state=name, what=name, time=time)


def a_round(number: int, steps: int = 20, done: int | None = None, at: float = BEGAN, run: str = "run-1") -> list[events.Event]:
    """A round of `steps` steps of one second each, 8 frames a step; the first `done` of them happened."""
    began = at + (number - 1) * 30
    made: list[events.Event] = [
        events.FederationMetrics(run=run, round=number - 1, nodes=2, train_loss=2.0 / number, eval_loss=3.0 / number, time=began),
        events.RoundStarted(run=run, round=number, rounds=5, lr=1e-4, mu=0.01, steps=steps, epochs=2, batch_size=8, frames=80, time=began),
        state(NodeState.TRAINING, began),
    ]
    for step in range(1, (steps if done is None else done) + 1):
        made.append(
            events.StepDone(
                run=run, round=number, step=step, steps=steps, epoch=step // 11, loss=1.0 / (number + step / steps), proximal=0.001 * step,
                grad_norm=2.0, lr=1e-4, mu=0.01, frames=8, seconds=0.8, time=began + step,
            )
        )  # fmt: skip
    if done is None:
        made.append(events.RoundTrained(run=run, round=number, metrics={"loss-mean": 1.0 / number}, time=began + steps))
    return made


@pytest.fixture
def model(tmp_path: Path, qapp: QApplication, monkeypatch):
    monkeypatch.setenv("ZK0DESK_HOME", str(tmp_path / "home"))
    theme.apply(qapp, "light")
    made = AppModel(tmp_path / "settings.toml", tmp_path / "journal.sqlite")
    yield made
    made.close()


@pytest.fixture
def page(model: AppModel, qtbot) -> TrainingPage:
    widget = TrainingPage(model)
    qtbot.addWidget(widget)
    widget.resize(1060, 700)
    widget.show()
    return widget


def train(model: AppModel, made: list[events.Event]) -> None:
    """As if a node ran and told `made`."""
    if model.control is None:
        model.control = NodeControl()
        model._thread = object()  # type: ignore[assignment]
    model.take(made)


def test_the_empty_page_leads_to_the_recordings(page: TrainingPage, model: AppModel, qtbot) -> None:
    assert page.empty.isVisible()
    with qtbot.waitSignal(model.showPage) as shown:
        qtbot.mouseClick(page.empty.button, Qt.MouseButton.LeftButton)
    assert shown.args == ["recordings"]


def test_a_failure_is_told_on_the_page_and_goes_when_the_node_runs_again(page: TrainingPage, model: AppModel) -> None:
    failed = events.NodeStateChanged(state=NodeState.FAILED, what="Out of memory.", why="The GPU is full.", then="Close other programs.")
    model.take([failed])
    assert page.empty.sentence.text() == "Out of memory. The GPU is full. Close other programs."
    train(model, a_round(1))
    page.refresh()
    model.take([failed])
    assert page.banner.isVisible() and page.banner.what.text() == "Out of memory."
    model.take([state(NodeState.CHECKING, BEGAN)])
    assert not page.banner.isVisible()


def test_the_five_numbers_are_measured_from_events(page: TrainingPage, model: AppModel) -> None:
    train(model, a_round(1) + a_round(2) + a_round(3, done=10))
    page.refresh()
    page._numbers()
    cards = {key: (card.value.text(), card.compare.text()) for key, card in page.cards.items()}
    assert cards["held"] == ("1.00", "3.00 before training, best 1.00")
    assert cards["round"] == ("3 of 5", "step 10 of 20, epoch 1 of 2")
    assert cards["speed"] == ("10.0", "1.0 s a step")
    assert cards["left"] == ("10 s", "run: about 70 s")
    assert cards["loss"][1].endswith("at the start of the round")


def test_time_left_of_the_run_is_not_guessed_before_a_round_is_measured(page: TrainingPage, model: AppModel) -> None:
    train(model, a_round(1, done=3))
    page.refresh()
    page._numbers()
    assert page.cards["left"].compare.text() == "run: measured after this round"


def test_while_it_follows_the_axes_change_seldom_and_hold_every_step(page: TrainingPage, model: AppModel) -> None:
    seen, box = set(), page.plot.getViewBox()
    happens = a_round(1, steps=200, done=200)
    train(model, happens[:3])
    for done, step in enumerate(happens[3:], 1):
        train(model, [step])
        page.refresh()
        (left, right), (low, high) = box.viewRange()
        values = page.plot._raw.getData()[1]
        assert left <= 0 and right >= done == len(values)
        assert low <= values.min() and values.max() <= high
        seen.add((right, low, high))
    assert len(seen) < 60, "an axis that changes with every step is painted with every step"


def test_an_axis_that_changes_is_painted_with_few_calls(page: TrainingPage, model: AppModel) -> None:
    train(model, a_round(1, steps=200, done=200))
    for _ in range(3):  # all is laid out and painted once before
        page.refresh()
        QApplication.processEvents()
    strokes: list[str] = []

    def note(_frame: object, event: str, called: object) -> None:
        if event == "c_call" and getattr(called, "__qualname__", "").startswith("QPainter."):
            strokes.append(called.__qualname__)  # type: ignore[attr-defined]

    box = page.plot.getViewBox()
    sys.setprofile(note)
    try:
        box.setRange(xRange=(0, 1230), yRange=(0.1, 3.3), padding=0)
        QApplication.processEvents()
    finally:
        sys.setprofile(None)
    assert "QPainter.drawText" in strokes, "the axes were not painted"
    assert len(strokes) < 120, "while training holds Python's lock every call may wait for it"


@given(st.floats(1e-9, 1e9), st.floats(1, 4000))
def test_ticks_are_round_numbers_with_room_for_their_words(span: float, length: float) -> None:
    step = tick_step(span, length, 80)
    assert step * length / span >= 80 * (1 - 1e-6) or length < 80
    assert step <= 2.5 * span * 80 / max(length, 80) * (1 + 1e-6)
    assert f"{step:.5e}"[0] in "125" and float(f"{step:.5e}".split("e")[0]) in (1.0, 2.0, 5.0)


@pytest.mark.parametrize("size", [0, 1, 9, 99, 100, 101, 1_234, 99_999, 1_000_000])
def test_the_axis_of_steps_ends_a_little_after_the_run(size: int) -> None:
    assert max(10, size) <= right_end(size) <= max(10, size * 1.14)
    assert right_end(size) <= right_end(size + 1)


def test_a_zoom_is_kept_when_data_arrives_and_follow_brings_all_back(page: TrainingPage, model: AppModel, qtbot) -> None:
    train(model, a_round(1) + a_round(2, done=5))
    page.refresh()
    page.plot.setFocus()
    qtbot.keyClick(page.plot, Qt.Key.Key_Plus)
    assert not page.follow.isChecked()
    kept = page.plot.getViewBox().viewRange()[0]
    train(model, a_round(3))
    page.refresh()
    assert page.plot.getViewBox().viewRange()[0] == kept
    qtbot.mouseClick(page.follow, Qt.MouseButton.LeftButton)
    left, right = page.plot.getViewBox().viewRange()[0]
    assert left <= 0 and right >= len(model.live_run or ())


def test_a_zoom_with_the_mouse_ends_following(page: TrainingPage, model: AppModel) -> None:
    train(model, a_round(1))
    page.refresh()
    page.plot.getViewBox().sigRangeChangedManually.emit([True, True])
    assert not page.follow.isChecked()


def test_nothing_is_drawn_while_hidden_and_all_is_there_afterwards(page: TrainingPage, model: AppModel) -> None:
    train(model, a_round(1))
    page.refresh()
    page.hide()
    assert not page._timer.isActive()
    before = page.plot._drawn
    train(model, a_round(2))
    page.plot.draw()
    assert page.plot._drawn == before
    page.show()
    assert len(page.plot._raw.getData()[0]) == 40


def test_values_are_read_by_pointer_and_by_keyboard(page: TrainingPage, model: AppModel, qtbot) -> None:
    train(model, a_round(1) + a_round(2))
    page.refresh()
    qtbot.keyClick(page.plot, Qt.Key.Key_Home)
    assert page.reading.text().startswith("round 1, step 1: 0.952")
    qtbot.keyClick(page.plot, Qt.Key.Key_End)
    assert page.reading.text().startswith("round 2, step 20: 0.333, smoothed ")
    box = page.plot.getViewBox()
    page.plot._hover(box.mapViewToScene(QPointF(20, sum(box.viewRange()[1]) / 2)))
    assert page.reading.text().startswith("round 2, step 1:")


@pytest.mark.parametrize("column", ["proximal", "grad_norm", "lr", "mu"])
def test_every_series_can_be_shown_without_losing_the_zoom(page: TrainingPage, model: AppModel, qtbot, column: str) -> None:
    train(model, a_round(1))
    page.refresh()
    page.plot.set_follow(False)
    page.plot.getViewBox().setXRange(5, 15, padding=0)
    qtbot.mouseClick(page.tabs[column], Qt.MouseButton.LeftButton)
    assert page.plot.column == column
    assert page.plot.getViewBox().viewRange()[0] == [5, 15]
    assert np.isfinite(page.plot._raw.getData()[1]).all()


def test_on_a_log_scale_values_that_are_not_positive_are_gaps(page: TrainingPage, model: AppModel, qtbot) -> None:
    train(model, a_round(1))
    assert model.live_run is not None
    model.live_run.tracks["loss"].values[3] = 0.0
    page.refresh()
    qtbot.mouseClick(page.log_scale, Qt.MouseButton.LeftButton)
    y = page.plot._raw.getData()[1]
    assert math.isnan(y[3]) and y[0] == pytest.approx(math.log10(1 / 1.05))


def test_a_pause_is_marked_with_its_length(page: TrainingPage, model: AppModel) -> None:
    train(model, a_round(1, done=10))
    train(model, [state(NodeState.PAUSED, BEGAN + 11), state(NodeState.TRAINING, BEGAN + 731), state(NodeState.RECONNECTING, BEGAN + 740)])
    data = model.live_run
    assert data is not None
    assert [(band.kind, band.at) for band in data.bands] == [("paused", 10), ("reconnecting", 10)]
    assert data.bands[0].words(0) == "paused 12 min" and data.bands[1].words(BEGAN + 780) == "reconnecting 40 s"
    page.refresh()
    image = page.plot.grab().toImage()
    assert _has(image, theme.color("warning"))


def _has(image: QImage, wanted: QColor) -> bool:
    wanted_rgb = wanted.getRgb()[:3]
    for y in range(image.height()):
        for x in range(image.width()):
            if all(abs(a - b) < 12 for a, b in zip(image.pixelColor(x, y).getRgb()[:3], wanted_rgb, strict=True)):
                return True
    return False


def test_a_change_of_the_theme_repaints_the_plots(page: TrainingPage, model: AppModel, qapp: QApplication) -> None:
    train(model, a_round(1) + a_round(2))
    page.refresh()
    theme.apply(qapp, "dark")
    image = page.plot.grab().toImage()
    assert image.pixelColor(2, 2).name() == theme.color("surface").name() == "#1b2127"
    assert _has(image, theme.color("series-1"))


def test_a_round_that_begins_again_replaces_its_steps(model: AppModel, page: TrainingPage) -> None:
    train(model, a_round(1) + a_round(2, done=7) + a_round(2, done=3))
    assert model.live_run is not None and len(model.live_run) == 23
    assert model.live_run.step_of.values[-3:].tolist() == [1, 2, 3]


def test_a_step_that_was_not_finite_is_a_gap(model: AppModel, page: TrainingPage) -> None:
    made = a_round(1, done=4)
    made.append(events.StepDone(**{**vars(made[-1]), "step": 5, "loss": math.inf}))
    train(model, made)
    page.refresh()
    assert model.live_run is not None and math.isnan(model.live_run.tracks["loss"].values[-1])
    assert math.isfinite(model.live_run.smoothed["loss"].values[-1])


def test_a_run_of_the_past_is_opened_from_the_journal_and_the_live_one_is_a_click_away(page: TrainingPage, model: AppModel, qtbot) -> None:
    for event in a_round(1, run="old") + a_round(2, run="old"):
        model.journal.record(event)
    train(model, a_round(1, done=3))
    dialog = AllRuns(model, page)
    dialog.opened.connect(page.open_run)
    qtbot.waitUntil(lambda: dialog.table.rowCount() == 1)
    with qtbot.waitSignal(dialog.opened, timeout=10_000):
        qtbot.mouseClick(dialog.open_button, Qt.MouseButton.LeftButton)
    assert page.data is not None and page.data.run == "old" and len(page.data) == 40
    assert page.data.per_round("train_loss")[1].tolist() == [1.0, 0.5]
    assert page.banner.isVisible()
    qtbot.mouseClick(page.back, Qt.MouseButton.LeftButton)
    assert page.data is model.live_run and not page.banner.isVisible()


def test_a_run_that_goes_on_after_a_restart_shows_its_earlier_rounds(model: AppModel, page: TrainingPage, qtbot) -> None:
    for event in a_round(1) + a_round(2):
        model.journal.record(event)
    train(model, a_round(3, done=5))
    data = model.live_run
    assert data is not None
    qtbot.waitUntil(lambda: len(data) == 45, timeout=10_000)
    assert data.rounds[3].first == 40 and data.rounds[2].first == 20


def test_a_round_that_goes_on_after_a_restart_keeps_the_steps_that_count(model: AppModel, page: TrainingPage, qtbot) -> None:
    for event in a_round(1) + a_round(2, done=13):
        model.journal.record(event)
    again = [event for event in a_round(2) if not isinstance(event, events.StepDone) or event.step > 8]
    again = [dataclasses.replace(event, done=8) if isinstance(event, events.RoundStarted) else event for event in again]
    for event in again:
        model.journal.record(event)
    train(model, again)
    data = model.live_run
    assert data is not None
    qtbot.waitUntil(lambda: len(data) == 40, timeout=10_000)
    assert data.step_of.values.tolist() == [*range(1, 21), *range(1, 21)]
    assert data.rounds[2].first == 20
    stored = RunData.from_journal(model.journal, "run-1")
    assert stored.step_of.values.tolist() == data.step_of.values.tolist()


def test_the_held_out_loss_before_training_is_the_first_point(model: AppModel, page: TrainingPage) -> None:
    base = events.FederationMetrics(run="run-1", round=0, nodes=0, eval_loss=3.5, time=BEGAN)
    train(model, [*a_round(1)[1:], base, *a_round(2)])
    page.refresh()
    page._numbers()
    assert page.data is not None
    assert page.data.per_round("held_out")[1].tolist() == [3.5, 1.5]
    assert page.cards["held"].compare.text() == "3.50 before training, best 1.50"


def test_the_table_and_the_picture_are_saved(page: TrainingPage, model: AppModel, tmp_path: Path) -> None:
    train(model, a_round(1) + a_round(2))
    page.refresh()
    page.save_csv(tmp_path / "t.csv")
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert len(rows) == 40 and rows[20]["round"] == "2" and float(rows[0]["loss"]) == pytest.approx(1 / 1.05)
    page.save_png(tmp_path / "t.png")
    assert QImage(str(tmp_path / "t.png")).width() == 2 * page.steps_card.width()


def test_what_cannot_be_saved_is_told(page: TrainingPage, model: AppModel, tmp_path: Path) -> None:
    train(model, a_round(1))
    page.refresh()
    page.save_csv(tmp_path / "missing" / "t.csv")
    assert "could not be saved" in page.banner.what.text()


def test_saving_the_policy_without_a_run_says_why_in_words(page: TrainingPage, tmp_path: Path, qtbot) -> None:
    page.save_shared_policy(tmp_path / "policy")
    saving = page._saving
    assert saving is not None and not page.save_policy.isEnabled()
    with qtbot.waitSignal(saving.done, timeout=120_000) as done:
        pass
    ok, what, _why = done.args
    assert not ok and what
    assert page.banner.what.text() == what and page._saving is None
    assert not (tmp_path / "policy").exists()


def test_saving_uses_the_windows_own_settings(tmp_path: Path, qapp) -> None:
    made = SavePolicy(tmp_path / "p", settings=tmp_path / "s.toml")
    assert made.arguments[-2:] == ["--settings", str(tmp_path / "s.toml")]


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=400), st.integers(1, 50))
def test_a_view_keeps_every_peak(values: list[float], chunk: int) -> None:
    track = Track()
    for begin in range(0, len(values), chunk):
        track.extend(np.array(values[begin : begin + chunk]))
    x, y = track.view(0, len(values), 8)
    assert (y.min(), y.max()) == (min(values), max(values))
    assert len(x) <= 4 * 8 * 4 + 8 and (np.diff(x) > 0).all()


@given(st.lists(st.floats(-10, 10) | st.just(math.nan), min_size=1, max_size=200), st.integers(1, 60))
def test_the_moving_mean_is_the_mean_of_the_last_values(values: list[float], chunk: int) -> None:
    smoothed = Smoothed()
    for begin in range(0, len(values), chunk):
        smoothed.feed(np.array(values[begin : begin + chunk]))
    last = np.array(values[-SMOOTHED:])
    finite = last[np.isfinite(last)]
    assert smoothed.values[-1] == pytest.approx(finite.mean(), abs=1e-9) if len(finite) else math.isnan(smoothed.values[-1])


def test_a_million_points_are_drawn_from_a_few_thousand() -> None:
    data = RunData("big")
    data.tracks["loss"].extend(np.random.default_rng(0).random(1_000_000))
    assert len(data.tracks["loss"].view(0, 1e6, 1200)[0]) < 10_000
    assert len(data.tracks["loss"].view(500_000, 500_100, 1200)[0]) <= 104


@pytest.mark.parametrize(
    ("value", "words"), [(0.36149, "0.361"), (87.4, "87.4"), (1e-4, "1.00e-4"), (0, "0"), (math.nan, "-"), (12345, "12345")]
)
def test_numbers_have_three_digits(value: float, words: str) -> None:
    assert number(value) == words


@pytest.mark.parametrize(("seconds", "words"), [(40, "40 s"), (700, "12 min"), (12_000, "3 h 20 min"), (3600, "1 h"), (200_000, "2 d 7 h")])
def test_lengths_of_time_are_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_why_mu_changed_is_marked_and_read_live_and_from_the_journal(page: TrainingPage, model: AppModel) -> None:
    changed = events.MuChanged(
        run="run-1", round=1, step=10, epoch=1, mu=0.02, before=0.01, cause="loss", what="The proximal mu was raised from 0.01 to 0.02.",
        why="The losses of the last 5 epochs scatter by 1.3, above 1.2.", loss_std=1.3, loss_std_limit=1.2,
        grad_norm=0.5, grad_norm_limit=1.0,
    )  # fmt: skip
    made = a_round(1)
    train(model, [*made[:13], changed, *made[13:]])
    for event in (*made, changed):
        model.journal.record(event)
    for data in (model.live_run, RunData.from_journal(model.journal, "run-1")):
        assert data is not None and [(mark.at, mark.raised) for mark in data.mu_marks] == [(10, True)]
        assert data.mark("mu", 9) is None and "scatter by 1.3, above 1.2" in data.mark("mu", 10).words
    page.refresh()
    page.show_series("mu")
    page.plot.grab()
    assert "scatter by 1.3" in page.plot.words(15) and "scatter" not in page.plot.words(3)


def test_what_the_schedule_decided_is_marked_in_the_curves_that_it_changed(page: TrainingPage, model: AppModel) -> None:
    def decided(number: int, signal: str, lr: float, mu: float) -> events.ScheduleDecided:
        return events.ScheduleDecided(run="run-1", round=number, lr=lr, mu=mu, signal=signal, why=schedule.MARKED[signal])

    rounds = [a_round(number) for number in range(1, 6)]
    told = [decided(2, "spike", 5e-5, 0.01), *(decided(n, "rising", 5e-5, 0.01) for n in (3, 4)), decided(5, "plateau", 2e-4, 0.008)]
    batch = [*rounds[0], *(event for pair in zip(told, rounds[1:], strict=True) for event in (pair[0], *pair[1]))]
    train(model, batch)
    for event in batch:
        model.journal.record(event)
    steps = len(model.live_run) // 5
    for data in (model.live_run, RunData.from_journal(model.journal, "run-1")):
        assert [(mark.at, mark.raised) for mark in data.marks("lr")] == [(steps, False), (2 * steps, False), (4 * steps, True)]
        assert [(mark.at, mark.raised) for mark in data.marks("mu")] == [(4 * steps, False)]
    page.refresh()
    page.show_series("lr")
    page.plot.grab()
    assert "The held-out loss jumped" in page.plot.words(steps + 1) and "Round 5: " in page.plot.words(4 * steps)
    page.show_series("loss")
    assert "held-out" not in page.plot.words(4 * steps)


def test_what_keeping_the_round_writes_in_a_day_is_said(page: TrainingPage, model: AppModel) -> None:
    made = a_round(1, done=5)
    train(model, [*made, events.RoundKept(run="run-1", round=1, step=5, bytes=1_200_000_000, bytes_a_day=1_728_000_000_000)])
    page.refresh()
    page._header()
    assert page.header.answer.text().endswith("keeping the round writes 1.73 TB a day")


def test_the_answer_of_an_evaluation_is_a_sentence_and_a_table(qtbot) -> None:
    from zk0desk.ui.pages.evaluate_dialog import EvaluateDialog

    def of(loss: float, error: float = 0.0) -> dict:
        part = {"loss": loss, "standard-error": error, "frames": 20, "of": 40}
        return {**part, "parts": {"recording": {"cubes": part}, "task": {"a": part, "b": part}, "cameras": {"top": part}}}

    dialog = EvaluateDialog()
    qtbot.addWidget(dialog)
    dialog.show()
    dialog.show_answer({"round": 3, "base": of(2.0), "shared": of(1.0, 0.05)})
    assert dialog.answer.text() == "The shared policy of round 3 has a loss of 1.0000, the base policy 2.0000 (-50%)."
    cells = [words for n in range(dialog.grid.count()) if (words := dialog.grid.itemAt(n).widget().text())]
    assert "1.0000 ± 0.0500" in cells and "cubes" in cells and "b" in cells and "top" not in cells
    assert "20 of 40 frames" in dialog.why.text()


def test_an_evaluation_without_a_shared_policy_says_why(tmp_path: Path, qtbot, monkeypatch) -> None:
    from zk0desk.ui.pages.evaluate_dialog import EvaluateDialog

    monkeypatch.setenv("ZK0DESK_HOME", str(tmp_path / "home"))
    dialog = EvaluateDialog(settings=tmp_path / "settings.toml")
    qtbot.addWidget(dialog)
    dialog.start()
    qtbot.waitUntil(lambda: not dialog.again.isHidden(), timeout=20_000)
    assert "recordings are named or chosen" in dialog.why.text()
    dialog.close()
