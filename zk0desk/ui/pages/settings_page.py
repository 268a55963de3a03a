"""Settings: everything that the settings file holds, from its own model, checked while it is typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from PySide6.QtCore import QTimer
from PySide6.QtGui import QDesktopServices, QShowEvent
from PySide6.QtWidgets import QCheckBox, QComboBox, QFileDialog, QHBoxLayout, QLineEdit, QVBoxLayout, QWidget

from zk0desk import folders
from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.choice_box import ChoiceBox
from zk0desk.ui.pages.data_card import DataCard
from zk0desk.ui.pages.desktop_card import DesktopCard
from zk0desk.ui.pages.tick_box import TickBox
from zk0desk.ui.widgets import Banner, Caption, Card, LinkButton, PageHeader, SecondaryButton, Text, scrolled

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from zk0desk.settings import Settings

SAVE_MS = 500
"""A typed value is written when nothing was typed for this long."""

NAMES = {
    "recordings": "Recordings",
    "policy": "Base policy",
    "federation": "Federation",
    "training": "Training",
    "cache": "Prepared frames",
    "privacy": "Differential privacy",
    "appearance": "Look",
    "updates": "Updates",
}
ELSEWHERE = {("recordings", "chosen"), ("federation", "consent")}
"""Set on their own pages: chosen recordings on Recordings, the consent on Federation."""


class SettingField(QWidget):
    """One setting: its name, its control, what it means, and what is wrong with it."""

    def __init__(self, section: str, name: str, info: FieldInfo, value: Any, changed: Callable[[], None]) -> None:
        super().__init__()
        self.section, self.name = section, name
        self._changed = changed
        self.label = (info.alias or name).replace("-", " ").capitalize()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, theme.SPACE_1, 0, theme.SPACE_1)
        column.setSpacing(3)
        row = QHBoxLayout()
        row.setSpacing(theme.SPACE_3)
        label = Text(self.label, wrap=False)
        label.setMinimumWidth(150)
        row.addWidget(label)
        self.control: QWidget = self._control(info, value)
        self.control.setAccessibleName(self.label)
        self.control.setAccessibleDescription(info.description or "")
        label.setBuddy(self.control)
        row.addWidget(self.control, 1)
        if self._is_path(info):
            choose = SecondaryButton("Choose…", "folder-open-outline", self._choose)
            choose.setAccessibleName(f"Choose {self.label.lower()}")
            row.addWidget(choose)
        column.addLayout(row)
        column.addWidget(Caption(info.description or ""))
        self.problem = Text("", "error")
        self.problem.hide()
        column.addWidget(self.problem)

    @staticmethod
    def _is_path(info: FieldInfo) -> bool:
        return "Path" in str(info.annotation)

    def _control(self, info: FieldInfo, value: Any) -> QWidget:
        if get_origin(info.annotation) is Literal:
            combo = ChoiceBox([(str(choice), choice) for choice in get_args(info.annotation)], value)
            combo.currentTextChanged.connect(lambda _text: self._changed())
            return combo
        if info.annotation is bool:
            box = TickBox("Yes")
            box.setChecked(bool(value))
            box.toggled.connect(lambda _on: self._changed())
            return box
        line = QLineEdit(self._as_text(value))
        line.setCursorPosition(0)
        self._many = isinstance(value, tuple)
        if self._many:
            line.setPlaceholderText("Folders, separated by semicolons")
        elif self._is_path(info):
            line.setPlaceholderText("Not chosen")
        line.textEdited.connect(lambda _text: self._changed())
        return line

    @staticmethod
    def _as_text(value: Any) -> str:
        if value is None:
            return ""
        return "; ".join(str(each) for each in value) if isinstance(value, tuple) else str(value)

    @property
    def value(self) -> Any:
        """What is entered, as pydantic is to judge it."""
        control = self.control
        if isinstance(control, QComboBox):
            return control.currentText()
        if isinstance(control, QCheckBox):
            return control.isChecked()
        assert isinstance(control, QLineEdit)
        text = control.text().strip()
        if self._many:
            return [part.strip() for part in text.split(";") if part.strip()]
        return text

    def show_value(self, value: Any) -> None:
        """Show what the settings hold now, unless the person is typing here."""
        control = self.control
        if control.hasFocus():
            return
        control.blockSignals(True)
        if isinstance(control, QComboBox):
            control.setCurrentText(str(value))
        elif isinstance(control, QCheckBox):
            control.setChecked(bool(value))
        elif isinstance(control, QLineEdit):
            control.setText(self._as_text(value))
            control.setCursorPosition(0)
        control.blockSignals(False)

    def show_problem(self, sentence: str) -> None:
        """Say what is wrong with the value, or nothing."""
        self.problem.setText(sentence)
        self.problem.setVisible(bool(sentence))

    def _choose(self) -> None:
        assert isinstance(self.control, QLineEdit)
        if self.name == "key_file":
            path, _ = QFileDialog.getSaveFileName(self, self.label)
        else:
            path = QFileDialog.getExistingDirectory(self, self.label)
        if path:
            before = self.control.text().strip()
            self.control.setText(f"{before}; {path}" if self._many and before else path)
            self._changed()


class SettingsPage(QWidget):
    """A form made from `zk0desk.settings.Settings`."""

    page_id, title, icon_name = "settings", "Settings", "cog-outline"

    def __init__(self, model: AppModel) -> None:
        super().__init__()
        self.model = model
        self.fields: dict[tuple[str, str], SettingField] = {}
        self.noise = Text("", "bold")
        self.desktop, self.data = DesktopCard(), DataCard(model)
        self.data.changed.connect(model.check_keyring)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(22, theme.SPACE_4, 20, 0)
        outer.setSpacing(theme.SPACE_3)
        self.header = PageHeader("Settings", "Changes are kept as you make them.")
        path = model.settings_path or folders.settings_file()
        self.header.actions.addWidget(SecondaryButton("Sh&ow the file", "file-document-outline", lambda: _open(path)))
        outer.addWidget(self.header)
        self.banner = Banner("error")
        self.banner.actions.addWidget(LinkButton("Read aga&in", "refresh", self._read_again))
        self.banner.hide()
        outer.addWidget(self.banner)
        self._content = QWidget()
        self._column = QVBoxLayout(self._content)
        self._column.setContentsMargins(0, 0, theme.SPACE_2, theme.SPACE_4)
        self._column.setSpacing(theme.SPACE_3)
        outer.addWidget(scrolled(self._content), 1)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(SAVE_MS)
        self._timer.timeout.connect(self.save)
        self._path = path
        model.settingsChanged.connect(self._show_values)

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        self._show_values()

    def _settings(self) -> Settings | None:
        try:
            settings = self.model.settings
        except OperatorError as error:
            self.banner.set("error", error.what, f"{error.why} {error.remedy}".strip())
            self.banner.show()
            return None
        return settings

    def _read_again(self) -> None:
        self.banner.hide()
        try:
            self.model.reload_settings()
        except OperatorError:
            self._settings()

    def _build(self, settings: Settings) -> None:
        for section, section_info in type(settings).model_fields.items():
            part = getattr(settings, section)
            card = Card(NAMES.get(section, section.capitalize()))
            for name, info in type(part).model_fields.items():
                if (section, name) in ELSEWHERE:
                    continue
                field = SettingField(section, name, info, getattr(part, name), self._typed)
                self.fields[section, name] = field
                card.body.addWidget(field)
            if section_info.description:
                card.body.insertWidget(1, Caption(section_info.description))
            if section == "privacy":
                card.body.addWidget(self.noise)
                self._say_noise(settings)
            self._column.addWidget(card)
        self.desktop.refresh()
        self._column.addWidget(self.desktop)
        self._column.addWidget(self.data)
        self._column.addWidget(Caption(f"All of it is in {self._path}. The private key is never there."))
        self._column.addStretch(1)

    def _show_values(self) -> None:
        if not self.isVisible() and not self.fields:
            return
        settings = self._settings()
        if settings is None:
            return
        self.banner.hide()
        if not self.fields:
            self._build(settings)
            return
        self.desktop.refresh()
        for (section, name), field in self.fields.items():
            if field.problem.isHidden():
                field.show_value(getattr(getattr(settings, section), name))
        self._say_noise(settings)

    def _say_noise(self, settings: Settings) -> None:
        """What the noise will be beside an update of this federation, before anyone chooses it."""
        from zk0desk.federation.invitation import Invitation
        from zk0desk.training.privacy import noise_words

        words, noise = "", settings.privacy.noise_multiplier
        if noise > 0:
            try:
                words = noise_words(noise, Invitation.parse(settings.federation.invitation).trainable_parameters)
            except OperatorError:
                words = "How long the noise is beside an update is told once there is an invitation: it names the policy's size."
        self.noise.setText(words)
        self.noise.setVisible(bool(words))

    def _typed(self) -> None:
        found = self.validate()
        if found is not None:
            self._say_noise(found)
        self._timer.start()

    def validate(self) -> Settings | None:
        """The settings as typed, or None; each wrong value is said beside its field."""
        from pydantic import ValidationError

        before = self._settings()
        if before is None:
            return None
        data: dict[str, Any] = before.model_dump(by_alias=False)
        for (section, name), field in self.fields.items():
            info = type(getattr(before, section)).model_fields[name]
            empty_path = field.value == "" and info.default is None
            data[section][name] = None if empty_path else field.value
        problems: dict[tuple[str, str], str] = {}
        found: Settings | None = None
        try:
            found = type(before).model_validate(data)
        except ValidationError as error:
            for each in error.errors():
                place = tuple(str(part).replace("-", "_") for part in each["loc"][:2])
                if len(place) == 2:
                    problems[place[0], place[1]] = f"{each['msg']}. The value before is kept."
        for key, field in self.fields.items():
            field.show_problem(problems.get(key, ""))
        self.header.set_answer(_refused(len(problems)) if problems else "Changes are kept as you make them.")
        return found

    def save(self) -> None:
        """Write what is typed, when all of it is right."""
        self._timer.stop()
        settings = self.validate()
        if settings is None or settings == self.model.settings:
            return
        try:
            self.model.update_settings(settings)
        except (OSError, OperatorError) as error:
            self.banner.set("error", "The settings could not be written.", str(error))
            self.banner.show()

    def hideEvent(self, event: Any) -> None:
        if self._timer.isActive():
            self.save()
        super().hideEvent(event)


def _refused(count: int) -> str:
    return "One value cannot be used and is not kept." if count == 1 else f"{count} values cannot be used and are not kept."


def _open(path: Path) -> None:
    from PySide6.QtCore import QUrl

    QDesktopServices.openUrl(QUrl.fromLocalFile(str(path if path.exists() else path.parent)))
