"""The look: contrast, and a change of the theme at run time."""

from __future__ import annotations

import shutil

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QImage, QPalette
from PySide6.QtWidgets import QApplication, QCheckBox, QComboBox, QDoubleSpinBox, QLineEdit, QPlainTextEdit, QSpinBox, QVBoxLayout, QWidget

from zk0desk.resources import resource
from zk0desk.ui import theme
from zk0desk.ui.icons import icon


def _luminance(color: QColor) -> float:
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (color.redF(), color.greenF(), color.blueF())]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(theme.color(one)), _luminance(theme.color(other))), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest, qapp: QApplication) -> str:
    theme.apply(qapp, request.param)
    return str(request.param)


@pytest.mark.parametrize("ground", ["background", "surface", "side"])
def test_text_can_be_read_on_every_ground(scheme: str, ground: str) -> None:
    for text in ("text", "muted", "accent", "error"):
        assert _contrast(text, ground) >= 4.5, (scheme, text, ground)


def test_controls_and_series_stand_out_from_the_surface(scheme: str) -> None:
    for name in ("control", "series-1", "series-2", "series-3"):
        assert _contrast(name, "surface") >= 3.0, (scheme, name)


def test_words_in_badges_and_on_the_primary_button_can_be_read(scheme: str) -> None:
    assert _contrast("on-accent", "accent") >= 4.5
    for kind in ("ok", "warning", "error", "info"):
        assert _contrast(kind, f"{kind}-soft") >= 4.4, (scheme, kind)


def test_a_change_of_the_theme_reaches_palette_sheet_and_listeners(qapp: QApplication, qtbot) -> None:
    theme.apply(qapp, "light")
    with qtbot.waitSignal(theme.signals.changed):
        theme.apply(qapp, "dark")
    assert qapp.palette().color(QPalette.ColorRole.Window) == theme.color("background") == QColor("#14181D")
    assert "#14181d" not in qapp.styleSheet() or "#1b2127" in qapp.styleSheet()
    box = QCheckBox("x")
    qtbot.addWidget(box)
    assert box.palette().color(QPalette.ColorRole.WindowText) == theme.color("text")


def test_showing_the_same_theme_again_costs_nothing(qapp: QApplication, qtbot) -> None:
    theme.apply(qapp, "dark")
    with qtbot.assertNotEmitted(theme.signals.changed):
        theme.apply(qapp, "dark")


def test_the_desktops_scheme_is_followed_only_when_asked(qapp: QApplication) -> None:
    theme.apply(qapp, "system")
    qapp.styleHints().setColorScheme(Qt.ColorScheme.Dark)
    followed = theme.is_dark() == (qapp.styleHints().colorScheme() == Qt.ColorScheme.Dark)
    theme.apply(qapp, "light")
    qapp.styleHints().setColorScheme(Qt.ColorScheme.Dark)
    assert followed and not theme.is_dark()
    qapp.styleHints().unsetColorScheme()


def test_an_icon_takes_the_colour_of_the_theme_at_the_moment_it_is_drawn(qapp: QApplication) -> None:
    sign = icon("stop", "error")
    seen = []
    for choice in ("light", "dark"):
        theme.apply(qapp, choice)
        seen.append(sign.pixmap(32, 32).toImage().pixelColor(16, 16).name())
    assert seen == ["#b3261e", "#ff8a80"]


# --- input widgets


class Form(QWidget):
    """One of each input, and something else that can have the focus."""

    def __init__(self) -> None:
        super().__init__()
        column = QVBoxLayout(self)
        self.combo, self.spin, self.double = QComboBox(), QSpinBox(), QDoubleSpinBox()
        self.combo.addItems(["one", "two"])
        self.inputs: list[QWidget] = [self.combo, self.spin, self.double, QLineEdit("words"), QPlainTextEdit("words")]
        self.other = QCheckBox("x")
        for each in (self.other, *self.inputs):
            column.addWidget(each)
        self.resize(320, 420)


@pytest.fixture
def form(scheme: str, qtbot) -> Form:
    made = Form()
    qtbot.addWidget(made)
    made.show()
    qtbot.waitExposed(made)
    made.activateWindow()
    qtbot.waitUntil(made.isActiveWindow)
    made.other.setFocus()
    return made


def grabbed(widget: QWidget) -> QImage:
    return widget.grab().toImage()


def near(one: QColor, other: QColor) -> bool:
    return all(abs(a - b) <= 3 for a, b in zip(one.getRgb()[:3], other.getRgb()[:3], strict=True))


def test_inputs_are_plain_surfaces_with_a_frame_and_no_gradient(form: Form) -> None:
    for widget in form.inputs:
        image = grabbed(widget)
        column = {image.pixelColor(widget.width() // 2, y).name() for y in range(8, widget.height() - 8)}
        assert column == {theme.color("surface").name()}, (type(widget).__name__, column)
        assert near(image.pixelColor(0, widget.height() // 2), theme.color("control")), type(widget).__name__


def test_the_input_with_the_keyboard_has_a_ring_in_the_accent(form: Form) -> None:
    for widget in form.inputs:
        widget.setFocus()
        image = grabbed(widget)
        ring = [image.pixelColor(x, widget.height() // 2) for x in (0, 1)]
        assert all(near(each, theme.color("accent")) for each in ring), type(widget).__name__


def test_an_input_that_is_off_looks_off(form: Form) -> None:
    for widget in form.inputs:
        widget.setEnabled(False)
        image = grabbed(widget)
        assert near(image.pixelColor(0, widget.height() // 2), theme.color("border")), type(widget).__name__
        assert near(image.pixelColor(widget.width() // 2, widget.height() // 2), theme.color("background")), type(widget).__name__


def test_arrows_can_be_seen(form: Form) -> None:
    for widget in (form.combo, form.spin, form.double):
        image = grabbed(widget)
        right = [image.pixelColor(x, y) for x in range(widget.width() - 26, widget.width() - 4) for y in range(5, widget.height() - 5)]
        assert any(near(each, theme.color("muted")) for each in right), type(widget).__name__


def test_a_list_that_drops_down_has_the_themes_surface(form: Form, qtbot) -> None:
    form.combo.showPopup()
    view = form.combo.view()
    qtbot.waitUntil(view.isVisible)
    image = grabbed(view)
    assert near(image.pixelColor(view.width() // 2, view.height() - 3), theme.color("raised"))
    form.combo.hidePopup()


def test_the_style_sheet_holds_wherever_zk0desk_lies(tmp_path, qapp: QApplication, qtbot, qtlog, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / 'Röbot "Ärm" 机器人 100% (a)'
    shutil.copytree(resource("controls"), place / "controls")
    monkeypatch.setattr(theme, "resource", lambda name: place / name)
    widget = QComboBox()
    qtbot.addWidget(widget)
    widget.setStyleSheet(theme.style_sheet())
    widget.show()
    qtbot.waitExposed(widget)
    widget.grab()
    assert [each.message for each in qtlog.records if "parse" in each.message or "open" in each.message] == []
