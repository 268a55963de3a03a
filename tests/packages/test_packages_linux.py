"""The Linux packages, built, installed in a fresh minimal Debian and started as an ordinary user would. `make test-packages`.

Needs root, debootstrap, xvfb, xdotool, squashfs-tools, lintian, desktop-file-utils, appstream, patchelf. ZK0DESK_PACKAGES names a folder
with packages that were built before; ZK0DESK_PICTURES one for the pictures of the screen.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from proof_root import HOME, UID, Root
from proof_screen import Screen, colours, difference

pytestmark = [pytest.mark.packages, pytest.mark.timeout(3600)]

ODD = "Röbot Ärm 机器人"


@pytest.fixture(scope="module")
def packages(tmp_path_factory, checkout):
    """The deb, the tar and the squashfs: those in ZK0DESK_PACKAGES, or built now and compressed quickly."""
    given = os.environ.get("ZK0DESK_PACKAGES")
    if given:
        return Path(given)
    out = tmp_path_factory.mktemp("packages")
    command = [
        sys.executable,
        checkout / "packaging" / "build.py",
        "--system",
        "linux",
        "--format",
        "deb,tar,appimage",
        "--python",
        "running",
        "--fast",
    ]
    done = subprocess.run([*command, "--out", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    assert os.geteuid() == 0, "The fresh root file system needs root rights."
    return Root(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def installed(root, packages):
    """The root with the deb in it, and what there was before: installed by apt with what it depends on, nothing recommended."""
    # What a desktop has anyway, but no library of Qt's: what opens links, a bus, one font.
    root.run("apt-get install -y -qq --no-install-recommends libglib2.0-bin desktop-file-utils shared-mime-info dbus fonts-dejavu-core")
    before = root.files()
    deb = next(packages.glob("*.deb"))
    shutil.copyfile(deb, root.folder / "tmp" / deb.name)
    root.run(f"apt-get install -y -qq --no-install-recommends /tmp/{deb.name}")
    yield root, before


@pytest.fixture
def screen():
    shown = Screen()
    yield shown
    shown.close()


class Desktop:
    """What a person has before them: a screen, and what they started on it."""

    def __init__(self, screen, folder):
        self.screen, self._folder, self._running = screen, folder, []

    def start(self, root, command, name, read_only="", home=""):
        """Run `command` as the ordinary user, wait for the window, and return its picture. `home`: for a person who never had zk0desk."""
        stay = f"{command}; sleep 3600"  # gio ends at once; what it started lives on in this session
        line = root.line(
            f"exec dbus-run-session -- sh -c {shlex.quote(stay)}",
            user=True,
            read_only=read_only,
            DISPLAY=self.screen.name,
            **({"ZK0DESK_HOME": home} if home else {}),
        )
        with (self._folder / f"{name}.err").open("w") as told:
            self._running.append(subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=told))
        self.screen.wait_for("zk0desk")
        return self.picture(name)

    def picture(self, name):
        """The screen, once it has shown the same for four seconds: pages fill themselves in after the first paint."""
        file, before = self._folder / f"{name}.png", self._folder / f"{name}-before.png"
        same, until = 0, time.monotonic() + 60
        self.screen.picture(before)
        while same < 4 and time.monotonic() < until:
            time.sleep(1)
            same = same + 1 if difference(before, self.screen.picture(file)) == 0 else 0
            shutil.copyfile(file, before)
        if kept := os.environ.get("ZK0DESK_PICTURES"):
            shutil.copyfile(file, Path(kept) / f"{name}.png")
        many, bright = colours(file)
        assert many > 50 and bright > 0.5, f"the screen shows {many} colours, {bright:.0%} of it not black"
        return file

    def close(self):
        for process in self._running:
            for first in psutil.Process(process.pid).children():
                first.kill()  # the first process of its namespace: all that runs in there goes with it
            process.wait(30)
        self._running.clear()


@pytest.fixture
def desktop(screen, tmp_path):
    found = Desktop(screen, tmp_path)
    yield found
    found.close()


def test_desktop_files_are_valid_and_lintian_has_nothing_to_add(packages, checkout, tmp_path):
    for command in (
        ["desktop-file-validate", checkout / "resources" / "org.zk0.Desk.desktop"],
        ["appstreamcli", "validate", "--no-net", checkout / "resources" / "org.zk0.Desk.metainfo.xml"],
        ["lintian", "--tag-display-limit", "0", "--fail-on", "error,warning", next(packages.glob("*.deb"))],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_says_that_it_is_not_for_release(packages, tmp_path):
    deb = next(packages.glob("*.deb"))
    inside = "./opt/zk0desk/python/lib/python3.12/site-packages/zk0desk/_resources/artefact.json"
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], capture_output=True, check=True).stdout
    said = json.loads(subprocess.run(["tar", "-xO", inside], input=tar, capture_output=True, check=True).stdout)
    assert said["format"] == "deb" and not said["release"] and "not for release: " in said["stamp"] and "copy of the one" in said["stamp"]


def test_installed_in_a_fresh_debian_it_opens_from_the_menu(installed, desktop, root):
    desktop.start(root, "gio launch /usr/share/applications/org.zk0.Desk.desktop", "menu")
    assert "org.zk0.Desk.desktop" in root.run("gio mime x-scheme-handler/zk0desk", user=True).stdout


@pytest.fixture(scope="module")
def invitation():
    """An invitation with umlauts in it and behind it, as a mail program may hand it over."""
    from zk0desk.federation.invitation import Invitation, certificate_sha256
    from zk0desk.federation.server_folder import make_certificate

    pem, _ = make_certificate("localhost")
    digest = "ab" * 32
    return Invitation(
        federation="Röbot Ärme 机器人", contact="Jürgen", host="127.0.0.1", port=9, certificate=pem,
        certificate_sha256=certificate_sha256(pem), policy_id="tiny", backbone_sha256=digest, layout_sha256=digest, parameters=100,
        trainable_parameters=50, rounds=2, local_epochs=1.0, batch_size=8, deadline_s=60.0,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_link_and_a_file_open_the_joining_page_of_a_window_that_is_there_or_not(installed, desktop, root, kind, invitation):
    folder = root.folder / HOME.lstrip("/") / ODD
    folder.mkdir(exist_ok=True)
    invitation.write(folder / "Einladung für Öl.zk0invite")
    subprocess.run(["chown", "-R", f"{UID}:{UID}", folder], check=True)
    thing = f"{invitation.to_line()}&für=Öl" if kind == "link" else f"{HOME}/{ODD}/Einladung für Öl.zk0invite"
    opened = f"gio open {shlex.quote(thing)}"
    cold = desktop.start(root, opened, kind, home=f"{HOME}/{kind}-1")
    desktop.close()
    plain = desktop.start(root, "zk0desk-window", f"{kind}-before", home=f"{HOME}/{kind}-2")
    assert difference(plain, cold) > 0.02, "the window shows the same without it"
    # The second start hands over what it was given, and ends.
    root.run(
        f"dbus-run-session -- sh -c {shlex.quote(f'{opened}; sleep 4')}",
        user=True,
        DISPLAY=desktop.screen.name,
        ZK0DESK_HOME=f"{HOME}/{kind}-2",
    )
    handed = desktop.picture(f"{kind}-handed-over")
    assert difference(plain, handed) > 0.02, "the window that was there shows the same as before"
    assert difference(cold, handed) < 0.02, "it shows something else than a window that is opened with it"


def test_a_recording_is_checked_to_the_last_frame_before_any_engine_is_there(installed, root, checkout):
    recordings = checkout.parent / "shared" / "recordings" / "cr5-cube"
    if not recordings.exists():
        pytest.skip("there are no recordings beside the checkout")
    shutil.copytree(recordings, root.folder / HOME.lstrip("/") / "Aufnahme Würfel", dirs_exist_ok=True)
    done = root.run("zk0desk recordings check 'Aufnahme Würfel' --deep --json", user=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"ok"' in done.stdout and "Traceback" not in done.stderr


def test_the_engine_that_could_be_fetched_is_told_and_training_says_that_it_is_missing(installed, root):
    told = root.run("zk0desk engine status --json", user=True, check=False)
    assert "Traceback" not in told.stderr and '"none"' in told.stdout, told.stdout + told.stderr
    said = root.run("zk0desk policy view /nowhere --json; zk0desk demo --headless --rounds 1", user=True, check=False)
    assert "Traceback" not in said.stdout + said.stderr and "engine" in said.stdout + said.stderr


def test_the_same_from_a_read_only_place(installed, desktop, root):
    desktop.start(root, "zk0desk-window", "read-only", read_only="/opt", home=f"{HOME}/read-only-home")
    root.run("test -z \"$(find /opt/zk0desk -newer /tmp/*.deb -name '*.pyc')\"")


def test_from_a_folder_with_any_name_and_from_another_after_it_was_moved(installed, desktop, root, packages):
    home = root.folder / HOME.lstrip("/")
    folder = home / ODD
    folder.mkdir(exist_ok=True)
    subprocess.run(["tar", "-xf", next(packages.glob("*.tar.xz")), "-C", folder], check=True)
    (tree,) = folder.glob("zk0desk-*")
    before = {path: path.stat().st_size for path in tree.rglob("*")}
    subprocess.run(["chown", "-R", f"{UID}:{UID}", folder], check=True)
    name = tree.name
    desktop.start(root, f"{shlex.quote(f'{HOME}/{ODD}/{name}/zk0desk')}", "folder", home=f"{HOME}/folder-home")
    child = root.run(f"{shlex.quote(f'{HOME}/{ODD}/{name}/python/bin/python3.12')} -m zk0desk --version", user=True, PYTHONSAFEPATH="1")
    assert child.stdout.startswith("zk0desk ")
    assert {path: path.stat().st_size for path in tree.rglob("*")} == before, "something was written into the folder"


def test_moved_it_starts_again(installed, desktop, root, packages):
    home = root.folder / HOME.lstrip("/")
    (tree,) = (home / ODD).glob("zk0desk-*")
    shutil.move(tree, home / "umgezogen")
    desktop.start(root, f"{HOME}/umgezogen/zk0desk", "moved", home=f"{HOME}/moved-home")


def test_the_squashfs_starts_mounted(installed, desktop, root, packages):
    image = next(packages.glob("*.squashfs"))
    place = root.folder / "mnt"
    subprocess.run(["mount", "-t", "squashfs", "-o", "loop,ro", image, place], check=True)
    try:
        desktop.start(root, "/mnt/AppRun", "squashfs", home=f"{HOME}/squashfs-home")
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def test_purged_nothing_is_left_but_the_persons_data(installed, root):
    _, before = installed
    mine = f"{HOME}/.local/share/zk0desk/policies/mine.txt"
    root.run(f"mkdir -p {HOME}/.local/share/zk0desk/policies && echo mine > {mine}", user=True)
    owned = {path for path in (root.folder / HOME.lstrip("/")).rglob("*") if "zk0desk" in path.as_posix()}
    root.run("apt-get purge -y -qq zk0desk")
    left = {path for path in root.files() - before if "zk0" in path.lower() or path.startswith("opt/")}
    assert left == set()
    for cache in ("usr/share/applications/mimeinfo.cache", "usr/share/mime/globs2"):
        assert "zk0" not in (root.folder / cache).read_text().lower()
    assert root.folder / mine.lstrip("/") in owned and all(path.exists() or path.is_symlink() for path in owned)


def test_the_same_input_gives_the_same_bytes(packages, checkout, tmp_path):
    digests = []
    for number in (1, 2):
        out = tmp_path / str(number)
        command = [
            sys.executable,
            checkout / "packaging" / "build.py",
            "--system",
            "linux",
            "--format",
            "tar",
            "--python",
            "running",
            "--fast",
        ]
        subprocess.run([*command, "--out", out, "--no-engine-lists"], check=True, capture_output=True)
        digests.append(hashlib.sha256(next(out.glob("*.tar.xz")).read_bytes()).hexdigest())
    assert digests[0] == digests[1]
