"""Before the training engine is there the window works fully, but for training, and leads to the engine in one click.

Torch, LeRobot and flwr are really not there: the program runs on a copy of the environment that lacks them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tests.federation.coordinator_parts import make_server
from zk0desk import settings as files
from zk0desk.federation.consent import consent_digest
from zk0desk.settings import ChosenRecording, Federation, Policy, Recordings, ServerPolicy, Settings

LACKING = (
    "torch",
    "torchvision",
    "lerobot",
    "flwr",
    "transformers",
    "accelerate",
    "datasets",
    "__editable__",
    "triton",
    "nvidia",
    "zk0desk",
)

PROGRAM = """
import json, sys
from pathlib import Path
from PySide6.QtCore import QEventLoop, QTimer
from PySide6.QtWidgets import QLabel, QPushButton
from zk0desk.ui import background
from zk0desk.ui.main import application
from zk0desk.ui.model import AppModel
from zk0desk.ui.pages import PAGES
from zk0desk.ui.widgets import EmptyState
from zk0desk.ui.window import MainWindow

app = application(["zk0desk"])
model = AppModel()
window = MainWindow(model)
window.show()

def wait(condition):
    loop = QEventLoop()
    timer = QTimer()
    timer.timeout.connect(lambda: condition() and loop.quit())
    timer.start(20)
    QTimer.singleShot(60_000, loop.quit)
    loop.exec()
    timer.stop()
    assert condition()

def words(widget):
    return "\\n".join(label.text() for label in widget.findChildren(QLabel) if label.isVisible())

wait(lambda: window._painted)
told = {"broken": []}
for spec in PAGES:
    window.show_page(spec.page_id)
    page = window.page(spec.page_id)
    wait(lambda: "Looking" not in words(page) and "Reading" not in words(page))
    background.wait(60)
    app.processEvents()
    if type(page) is EmptyState and "cannot be shown" in page.sentence.text():
        told["broken"].append(page.sentence.text())
    told[spec.page_id] = words(page)
window.show_page("recordings")
recordings = window.page("recordings")
wait(lambda: recordings.cards)
told["cards"] = [words(card) for card in recordings.cards.values()]
window.show_page("federation")
federation = window.page("federation")
wait(lambda: federation.footer.mend.isVisible() and "looked at" not in federation.footer.waits_for.text())
federation.agree.setChecked(True)
told["join"] = federation.join.isEnabled()
told["waits for"], told["button"] = federation.footer.waits_for.text(), federation.footer.mend.text()
federation.footer.mend.click()
told["page"] = window.current_page
model.join()
wait(lambda: not model.running)
app.processEvents()
told["failed"] = [model.last_notice.code, model.last_notice.what, model.last_notice.remedy]
told["strip"] = window.strip.engine.isVisible()
window.show_page("training")
window.strip.engine.click()
told["from strip"] = window.current_page
told["loaded"] = sorted({"torch", "lerobot", "flwr"} & set(sys.modules))
window.close()
model.close()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all packages but those of the engine."""
    folder = tmp_path_factory.mktemp("without engine")
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith(LACKING) and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture
def told(bare_python: Path, tmp_path: Path, demo_recording: Path, demo_policy: Path, checkout: Path) -> dict[str, Any]:
    """What the window says on all its pages, on a computer without the engine."""
    server = make_server(tmp_path / "coordinator")
    files.save(server.settings().model_copy(update={"policy": ServerPolicy(folder=demo_policy)}), server.settings_path)
    invitation = server.invitation(9443)
    files.save(
        Settings(
            recordings=Recordings(folders=(demo_recording,), chosen=(ChosenRecording(path=demo_recording),)),
            policy=Policy(folder=demo_policy),
            federation=Federation(
                invitation=invitation.to_line(), consent=consent_digest(invitation), key_storage="file", key_file=tmp_path / "key.pem"
            ),
        )
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(bare_python), str(checkout)])}
    done = subprocess.run([sys.executable, "-S", "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.timeout(180)
def test_all_pages_work_and_every_way_to_train_leads_to_the_engine(told: dict[str, Any]) -> None:
    assert told["broken"] == [] and told["loaded"] == []
    assert "1 of 1 chosen: 2 episodes, 80 frames. It fits the policy." in told["recordings"], "recordings are listed and checked"
    assert ["Ready" in card for card in told["cards"]] == [True]
    assert "The training engine is not installed: torch, lerobot, flwr." in told["computer"]
    assert not told["join"] and "training engine is not installed" in told["waits for"]
    assert told["button"].replace("&", "") == "Get the training engine" and told["page"] == "computer"
    code, what, remedy = told["failed"]
    assert code == "engine-missing" and remedy and what
    assert told["strip"] and told["from strip"] == "computer"
