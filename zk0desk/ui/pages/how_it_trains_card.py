"""How this computer trains: device, threads, memory that stays free, frames at once, and the decoder. The verdict follows each choice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from PySide6.QtWidgets import QGridLayout, QHBoxLayout

from zk0desk.errors import OperatorError
from zk0desk.ui import theme
from zk0desk.ui.background import in_background
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages.choice_box import ChoiceBox
from zk0desk.ui.widgets import Caption, Card, LinkButton, Text

if TYPE_CHECKING:
    from zk0desk.training.decoder import Decoder
    from zk0desk.training.hardware import Computer, Verdict

MEMORY_GB = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


class HowItTrainsCard(Card):
    """`show_look` is told what was seen; each choice goes into the settings at once."""

    def __init__(self, model: AppModel) -> None:
        super().__init__("How it trains here")
        self._model = model
        self._turn = 0
        self.device, self.threads, self.memory, self.batch = ChoiceBox(), ChoiceBox(), ChoiceBox(), ChoiceBox()
        grid = QGridLayout()
        grid.setHorizontalSpacing(theme.SPACE_4)
        grid.setVerticalSpacing(theme.SPACE_2)
        fields = (
            ("Device", self.device, "device"),
            ("CPU threads", self.threads, "threads"),
            ("Memory to leave free", self.memory, "memory_free"),
            ("Frames at once", self.batch, "micro_batch"),
        )
        for number, (word, box, name) in enumerate(fields):
            row, column = divmod(number, 2)
            label = Text(word, "muted", wrap=False)
            label.setBuddy(box)
            box.setAccessibleName(word)
            box.setMinimumWidth(140)
            box.chosen.connect(lambda value, name=name: self._choose(name, value))
            grid.addWidget(label, row, 2 * column)
            grid.addWidget(box, row, 2 * column + 1)
            grid.setColumnStretch(2 * column + 1, 1)
        self.body.addLayout(grid)
        self.answer = Caption("")
        self.body.addWidget(self.answer)
        line = QHBoxLayout()
        self.decoder = Text("", "muted")
        self.try_decoder = LinkButton("Try the &video decoders", "play-circle-outline", lambda: self._look_at_decoder(again=True))
        line.addWidget(self.decoder, 1)
        line.addWidget(self.try_decoder)
        self.body.addLayout(line)

    def show_look(self, computer: Computer, answer: Verdict) -> None:
        """Offer what `computer` has, show what the settings hold, and what comes of it."""
        from zk0desk.amounts import gigabytes

        try:
            training = self._model.settings.training
        except OperatorError:
            return
        kinds = {"mps" if gpu.kind == "mps" else "cuda" for gpu in computer.gpus} | {"cpu", training.device}
        words = {"cpu": "The processor", "cuda": "The GPU", "mps": "The GPU (Apple)"}
        self.device.set_choices(
            [("The best that works", "auto"), *((words[kind], kind) for kind in words if kind in kinds)], training.device
        )
        counts = _with(range(1, computer.cores + 1), training.threads)
        self.threads.set_choices([(f"All but one ({max(1, computer.cores - 1)})", 0), *((str(n), n) for n in counts)], training.threads)
        sizes = _with(MEMORY_GB[1:], training.memory_free)
        self.memory.set_choices([("Nothing", 0.0), *((f"{size:g} GB", size) for size in sizes)], training.memory_free)
        frames = _with((1, 2, 4, 8, 16, 32, 64), training.micro_batch)
        self.batch.set_choices([("As many as fit", 0), *((str(n), n) for n in frames)], training.micro_batch)
        where = {"cpu": "the computer's memory", "mps": "the memory"}.get(answer.device, "the GPU's memory")
        left = f"{gigabytes(answer.memory_needed)} of {where}, {gigabytes(answer.memory_left)} more would be free"
        fits = f"{answer.micro_batch} at once in {left}" if answer.micro_batch else "not even one frame fits into what is free"
        self.answer.setText(f"Now: {answer.device}, {answer.precision}, {fits}. More frames at once are quicker and change no result.")
        self._look_at_decoder()

    def _choose(self, name: str, value: Any) -> None:
        try:
            settings = self._model.settings
            training = settings.training.model_copy(update={name: value})
            self._model.update_settings(settings.model_copy(update={"training": training}))
        except (OperatorError, OSError) as error:
            self.answer.setText(str(error))

    def _look_at_decoder(self, *, again: bool = False) -> None:
        try:
            chosen = self._model.settings.recordings.chosen
        except OperatorError:
            return
        self._turn += 1
        self.try_decoder.setVisible(bool(chosen))
        if not chosen:
            self.decoder.setText("Videos: choose a recording to see which decoder plays it.")
            return
        turn, folder = self._turn, chosen[0].path
        if again:
            self.decoder.setText("The decoders are tried on a frame of the first recording…")
            self.try_decoder.setEnabled(False)

        def show(text: str) -> None:
            if turn == self._turn:
                self.try_decoder.setEnabled(True)
                self.decoder.setText(text)

        in_background(
            self,
            lambda: _decoder(folder, again=again),
            lambda found: show(f"Videos are decoded by {found.name}. {found.why}"),
            lambda error: show(str(error)),
        )


def _decoder(folder: Path, *, again: bool) -> Decoder:
    from zk0desk.training.decoder import decoder_of

    return decoder_of(folder, again=again, only_kept=not again)


def _with(values: Any, chosen: Any) -> list[Any]:
    """`values` with what the settings hold among them, in order."""
    return sorted({*values, chosen} - {0})
