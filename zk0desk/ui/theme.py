"""The look, in one place: tokens for light and dark, and the palette and style sheet made from them.

`color(name)` gives a token's colour in the scheme of the moment. `signals.changed` fires after the scheme changed;
widgets that are styled by palette and style sheet need nothing, those that keep colours (plots) listen to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from PySide6.QtCore import QObject, Qt, Signal
from PySide6.QtGui import QColor, QPalette
from PySide6.QtWidgets import QApplication, QStyleFactory

from zk0desk.resources import resource

Choice = Literal["system", "light", "dark"]

TOKENS: dict[str, tuple[str, str]] = {
    "background": ("#F6F7F9", "#14181D"),
    "surface": ("#FFFFFF", "#1B2127"),
    "raised": ("#FFFFFF", "#222A31"),
    "side": ("#EEF1F4", "#171C21"),
    "border": ("#E1E5EA", "#2E3740"),
    "control": ("#8A94A0", "#66727E"),
    "text": ("#1B2430", "#E6EAEE"),
    "muted": ("#5C6877", "#9AA7B4"),
    "accent": ("#0B6E75", "#4FC3C7"),
    "on-accent": ("#FFFFFF", "#07282A"),
    "soft": ("#E0F1F1", "#16393C"),
    "ok": ("#1E7F4F", "#62D196"),
    "warning": ("#9A6200", "#F2B95C"),
    "error": ("#B3261E", "#FF8A80"),
    "info": ("#2459A8", "#8AB4F8"),
    "ok-soft": ("#EAF7F0", "#16331F"),
    "warning-soft": ("#FBF0DA", "#3A2C12"),
    "error-soft": ("#FBE6E4", "#3F1D1B"),
    "info-soft": ("#E4EDFA", "#1A2B45"),
    "series-1": ("#0072B2", "#56B4E9"),
    "series-2": ("#D55E00", "#E69F00"),
    "series-3": ("#009E73", "#2BD9A4"),
    "series-4": ("#CC79A7", "#E39CC7"),
}
"""Name to (light, dark)."""

SPACE_1, SPACE_2, SPACE_3, SPACE_4, SPACE_6 = 4, 8, 12, 16, 24
"""The only distances, in device-independent pixels."""


class _Signals(QObject):
    changed = Signal()


signals = _Signals()
"""`changed` fires after palette and style sheet of the application were replaced."""

_state: dict[str, object] = {"dark": False, "choice": "system", "listening": None}


def is_dark() -> bool:
    """Whether the dark scheme is shown."""
    return bool(_state["dark"])


def color(name: str, alpha: float = 1.0) -> QColor:
    """The token's colour now; `alpha` from 0 to 1. KeyError for a name that is no token."""
    value = QColor(TOKENS[name][1 if _state["dark"] else 0])
    value.setAlphaF(alpha)
    return value


def _hex(name: str) -> str:
    return color(name).name()


def apply(app: QApplication, choice: Choice = "system") -> None:
    """Show `choice`; `system` follows the desktop from now on. Cheap when nothing changes."""
    hints = app.styleHints()
    if _state["listening"] is not app:
        _state["listening"] = app
        _state["sheet"] = None
        app.setStyle(QStyleFactory.create("Fusion"))
        font = app.font()
        font.setPixelSize(13)
        app.setFont(font)
        hints.colorSchemeChanged.connect(lambda _scheme: _state["choice"] == "system" and _show(app))
    _state["choice"] = choice
    _show(app)


def _show(app: QApplication) -> None:
    choice = _state["choice"]
    system_dark = app.styleHints().colorScheme() == Qt.ColorScheme.Dark
    dark = choice == "dark" or (choice == "system" and system_dark)
    if _state.get("sheet") is not None and dark == _state["dark"]:
        return
    _state["dark"] = dark
    app.setPalette(palette())
    sheet = style_sheet()
    _state["sheet"] = sheet
    app.setStyleSheet(sheet)
    signals.changed.emit()


def palette() -> QPalette:
    """Fusion's palette from the tokens."""
    role, group = QPalette.ColorRole, QPalette.ColorGroup
    result = QPalette()
    pairs = {
        role.Window: "background",
        role.WindowText: "text",
        role.Base: "surface",
        role.AlternateBase: "background",
        role.Text: "text",
        role.PlaceholderText: "muted",
        role.Button: "raised",
        role.ButtonText: "text",
        role.BrightText: "error",
        role.ToolTipBase: "raised",
        role.ToolTipText: "text",
        role.Link: "accent",
        role.LinkVisited: "accent",
        role.Accent: "accent",
        role.Highlight: "accent",
        role.HighlightedText: "on-accent",
        role.Mid: "border",
        role.Midlight: "border",
        role.Light: "raised",
        role.Dark: "control",
        role.Shadow: "control",
    }
    for key, name in pairs.items():
        result.setColor(key, color(name))
    for key in (role.WindowText, role.Text, role.ButtonText):
        result.setColor(group.Disabled, key, color("muted", 0.7))
    result.setColor(group.Disabled, role.Highlight, color("border"))
    return result


def style_sheet() -> str:
    """The one style sheet. Widgets say what they are by the property `zk`."""
    values = {name.replace("-", "_"): _hex(name) for name in TOKENS}
    scheme = "dark" if _state["dark"] else "light"
    for way in ("down", "up"):
        values[way] = _quoted(resource(f"controls/{way}-{scheme}.svg"))
        values[f"{way}_off"] = _quoted(resource(f"controls/{way}-{scheme}-off.svg"))
    return _SHEET % values


def _quoted(path: Path) -> str:
    """`path` within the quotes of a style sheet: zk0desk may lie in a folder of any name."""
    return path.as_posix().replace("\\", "\\\\").replace('"', '\\"')


_SHEET = """
QToolTip { color: %(text)s; background: %(raised)s; border: 1px solid %(control)s; padding: 4px; }
QScrollArea, QScrollArea > QWidget > QWidget[zk="page"], QWidget[zk="page"] { background: transparent; border: none; }
QFrame[zk="ring"] { background: transparent; border: 1px solid %(accent)s; border-radius: 6px; }
QWidget[zk="side"] { background: %(side)s; border: none; border-right: 1px solid %(border)s; }
QWidget[zk="strip"] { background: %(surface)s; border: none; border-top: 1px solid %(border)s; }
QFrame[zk="card"] { background: %(surface)s; border: 1px solid %(border)s; border-radius: 10px; }
QFrame[zk="card"][chosen="true"] { background: %(soft)s; border: 1px solid %(accent)s; }
QFrame[zk="banner-ok"] { background: %(ok_soft)s; border: 1px solid %(ok)s; border-radius: 10px; }
QFrame[zk="banner-warning"] { background: %(warning_soft)s; border: 1px solid %(warning)s; border-radius: 10px; }
QFrame[zk="banner-error"] { background: %(error_soft)s; border: 1px solid %(error)s; border-radius: 10px; }
QFrame[zk="banner-info"] { background: %(info_soft)s; border: 1px solid %(info)s; border-radius: 10px; }
QFrame[zk="line"] { background: %(border)s; border: none; max-height: 1px; min-height: 1px; }
QLabel { background: transparent; border: none; }
QLabel[zk="title"] { font-size: 20px; font-weight: 600; }
QLabel[zk="brand"] { font-size: 14px; font-weight: 600; }
QLabel[zk="section"] { font-size: 14px; font-weight: 600; }
QLabel[zk="bold"] { font-weight: 600; }
QLabel[zk="number"] { font-size: 22px; font-weight: 600; }
QLabel[zk="caption"] { font-size: 12px; color: %(muted)s; }
QLabel[zk="muted"] { color: %(muted)s; }
QLabel[zk="error"] { color: %(error)s; }
QLabel[zk="badge-ok"], QLabel[zk="badge-warning"], QLabel[zk="badge-error"], QLabel[zk="badge-info"], QLabel[zk="badge-muted"] {
    font-size: 12px; font-weight: 600; border-radius: 8px; padding: 1px 10px; min-height: 16px; }
QLabel[zk="badge-ok"] { color: %(ok)s; background: %(ok_soft)s; }
QLabel[zk="badge-warning"] { color: %(warning)s; background: %(warning_soft)s; }
QLabel[zk="badge-error"] { color: %(error)s; background: %(error_soft)s; }
QLabel[zk="badge-info"] { color: %(info)s; background: %(info_soft)s; }
QLabel[zk="badge-muted"] { color: %(muted)s; background: %(side)s; }
QPushButton { background: %(raised)s; border: 1px solid %(control)s; border-radius: 7px; padding: 6px 13px; min-height: 19px; }
QPushButton:hover { background: %(side)s; }
QPushButton:pressed { background: %(soft)s; }
QPushButton:focus { border: 2px solid %(accent)s; padding: 5px 12px; }
QPushButton:disabled { color: %(muted)s; border-color: %(border)s; background: transparent; }
QPushButton[zk="primary"] { background: %(accent)s; color: %(on_accent)s; border: 1px solid %(accent)s; font-weight: 600; }
QPushButton[zk="primary"]:focus { border: 2px solid %(text)s; }
QPushButton[zk="primary"]:disabled { background: %(border)s; color: %(muted)s; border-color: %(border)s; }
QPushButton[zk="danger"] { color: %(error)s; }
QPushButton[zk="danger"]:disabled { color: %(muted)s; }
QPushButton[zk="link"] { background: transparent; border: 1px solid transparent; color: %(accent)s; padding: 5px 7px; }
QPushButton[zk="link"]:hover { background: %(soft)s; }
QPushButton[zk="link"]:focus { border: 1px solid %(accent)s; }
QPushButton[zk="link"]:checked { background: %(soft)s; }
QPushButton[zk="link"]:disabled { color: %(muted)s; }
QPushButton[zk="nav"] { background: transparent; border: 2px solid transparent; border-radius: 7px; text-align: left;
    padding: 6px 10px; min-height: 20px; }
QPushButton[zk="nav"]:hover { background: %(border)s; }
QPushButton[zk="nav"]:checked { background: %(soft)s; color: %(accent)s; font-weight: 600; }
QPushButton[zk="nav"]:focus { border: 2px solid %(accent)s; }
QPushButton[zk="tab"] { background: transparent; border: none; border-bottom: 2px solid transparent; border-radius: 0;
    color: %(muted)s; padding: 4px; }
QPushButton[zk="tab"]:checked { color: %(text)s; border-bottom: 2px solid %(accent)s; }
QPushButton[zk="tab"]:hover { color: %(text)s; }
QPushButton[zk="tab"]:focus { color: %(accent)s; border-bottom: 2px solid %(control)s; }
QLineEdit, QPlainTextEdit, QTextEdit, QAbstractSpinBox, QComboBox { background: %(surface)s; color: %(text)s;
    border: 1px solid %(control)s; border-radius: 7px; padding: 6px 9px; placeholder-text-color: %(muted)s;
    selection-background-color: %(accent)s; selection-color: %(on_accent)s; }
QLineEdit, QAbstractSpinBox, QComboBox { min-height: 19px; }
QLineEdit:hover, QPlainTextEdit:hover, QTextEdit:hover, QAbstractSpinBox:hover, QComboBox:hover { border-color: %(text)s; }
QLineEdit:focus, QPlainTextEdit:focus, QTextEdit:focus, QAbstractSpinBox:focus, QComboBox:focus, QComboBox:on {
    border: 2px solid %(accent)s; padding: 5px 8px; }
QLineEdit:disabled, QPlainTextEdit:disabled, QTextEdit:disabled, QAbstractSpinBox:disabled, QComboBox:disabled {
    background: %(background)s; color: %(muted)s; border: 1px solid %(border)s; }
QComboBox { combobox-popup: 0; padding-right: 30px; }
QComboBox:focus, QComboBox:on { padding-right: 29px; }
QComboBox::drop-down { subcontrol-origin: border; subcontrol-position: center right; width: 30px; border: none; background: transparent; }
QComboBox::down-arrow { image: url("%(down)s"); width: 12px; height: 12px; }
QComboBox::down-arrow:disabled { image: url("%(down_off)s"); }
QComboBox QAbstractItemView { background: %(raised)s; color: %(text)s; border: 1px solid %(control)s; border-radius: 0; padding: 4px;
    selection-background-color: %(soft)s; selection-color: %(accent)s; outline: none; }
QComboBox QAbstractItemView::item { min-height: 26px; padding: 0 6px; border-radius: 5px; }
QComboBox QAbstractItemView::item:hover, QComboBox QAbstractItemView::item:selected { background: %(soft)s; color: %(accent)s; }
QAbstractSpinBox { padding-right: 28px; }
QAbstractSpinBox:focus { padding-right: 27px; }
QAbstractSpinBox::up-button, QAbstractSpinBox::down-button {
    subcontrol-origin: border; width: 26px; border: none; background: transparent; }
QAbstractSpinBox::up-button { subcontrol-position: top right; margin: 3px 2px 0 0; }
QAbstractSpinBox::down-button { subcontrol-position: bottom right; margin: 0 2px 3px 0; }
QAbstractSpinBox::up-button:hover, QAbstractSpinBox::down-button:hover { background: %(soft)s; border-radius: 4px; }
QAbstractSpinBox::up-arrow { image: url("%(up)s"); width: 10px; height: 10px; }
QAbstractSpinBox::down-arrow { image: url("%(down)s"); width: 10px; height: 10px; }
QAbstractSpinBox::up-arrow:disabled, QAbstractSpinBox::up-arrow:off { image: url("%(up_off)s"); }
QAbstractSpinBox::down-arrow:disabled, QAbstractSpinBox::down-arrow:off { image: url("%(down_off)s"); }
QProgressBar { background: %(border)s; border: none; border-radius: 3px; max-height: 6px; min-height: 6px; }
QProgressBar::chunk { background: %(accent)s; border-radius: 3px; }
QTableView, QTreeView, QListView { background: %(surface)s; border: 1px solid %(border)s; border-radius: 10px; gridline-color: %(border)s;
    selection-background-color: %(soft)s; selection-color: %(text)s; outline: none; }
QTableView::item { padding: 0 8px; }
QHeaderView::section { background: %(side)s; color: %(muted)s; border: none; border-bottom: 1px solid %(border)s; padding: 6px 8px; }
QTableCornerButton::section { background: %(side)s; border: none; }
QMenu { background: %(raised)s; border: 1px solid %(control)s; padding: 4px; }
QMenu::item { padding: 6px 24px 6px 12px; border-radius: 5px; }
QMenu::item:selected { background: %(soft)s; color: %(accent)s; }
QScrollBar:vertical { background: transparent; width: 10px; margin: 0; }
QScrollBar:horizontal { background: transparent; height: 10px; margin: 0; }
QScrollBar::handle { background: %(control)s; border-radius: 4px; min-height: 28px; min-width: 28px; margin: 1px; }
QScrollBar::add-line, QScrollBar::sub-line, QScrollBar::add-page, QScrollBar::sub-page {
    background: none; border: none; width: 0; height: 0; }
"""
