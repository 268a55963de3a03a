"""The pages of the window. They are imported when they are shown for the first time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PageSpec:
    """Where a page comes from: `module` below this package and the class in it. `label` carries the mnemonic."""

    page_id: str
    label: str
    icon_name: str
    module: str
    class_name: str

    @property
    def title(self) -> str:
        """The label without its mnemonic."""
        return self.label.replace("&", "")


PAGES: tuple[PageSpec, ...] = (
    PageSpec("recordings", "&Recordings", "video-vintage", "recordings", "RecordingsPage"),
    PageSpec("computer", "This &computer", "desktop-classic", "computer", "ComputerPage"),
    PageSpec("federation", "&Federation", "lan-connect", "federation", "FederationPage"),
    PageSpec("training", "&Training", "chart-line", "training", "TrainingPage"),
    PageSpec("activity", "&Activity", "history", "activity", "ActivityPage"),
    PageSpec("settings", "S&ettings", "cog-outline", "settings_page", "SettingsPage"),
)
"""In the order of the sidebar and of Ctrl+1 to Ctrl+6. Settings stands at the bottom."""
