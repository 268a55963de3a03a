"""What is in the keyring's way, on the pages that need it: the sentence, and the two ways out."""

from __future__ import annotations

from zk0desk.ui.model import AppModel
from zk0desk.ui.widgets import Banner, SecondaryButton


class KeyringBanner(Banner):
    """Seen while the trial of the keyring found something in the way."""

    def __init__(self, model: AppModel) -> None:
        super().__init__("warning")
        self._model = model
        self.again = SecondaryButton("Check again", "refresh", self._again)
        self.again.setAccessibleName("Check the keyring again")
        self.elsewhere = SecondaryButton("Key storage…", "cog-outline", lambda: model.showPage.emit("settings"))
        self.actions.addWidget(self.again)
        self.actions.addWidget(self.elsewhere)
        model.keyringChecked.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Show what was found."""
        trouble = self._model.keyring_trouble
        self.again.setEnabled(True)
        if trouble is not None:
            self.set("warning", trouble.what, f"{trouble.why} {trouble.remedy}".strip())
        self.setVisible(trouble is not None)

    def _again(self) -> None:
        self.again.setEnabled(False)
        self._model.check_keyring()
