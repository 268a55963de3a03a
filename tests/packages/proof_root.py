"""A fresh minimal Debian to install into, and an ordinary user in it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

USER, UID, HOME = "eigner", 1000, "/home/eigner"


class Root:
    """A Debian 12 of debootstrap's `minbase` at `folder`. What is mounted in it goes with each command, in a namespace of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "etc" / "debian_version").exists():
            subprocess.run(
                ["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", folder, *_mirror()],
                check=True,
                capture_output=True,
            )
            for name in ("apt/sources.list.d", "apt/apt.conf.d", "resolv.conf", "ssl/certs/ca-certificates.crt"):
                _copy(Path("/etc") / name, folder / "etc" / name)
            (folder / "etc" / "apt" / "sources.list").unlink(missing_ok=True)
            folder.chmod(0o755)  # pytest keeps its folders to root; in here it is everybody's /
            self.run("apt-get update -qq")
            self.run(f"useradd --create-home --home-dir {HOME} --uid {UID} --shell /bin/sh {USER}")

    def run(self, command: str, *, user: bool = False, check: bool = True, seconds: int = 900, **environment: str):
        """Run a shell command in it, as root or as the ordinary user."""
        done = subprocess.run(self.line(command, user=user, **environment), capture_output=True, text=True, timeout=seconds)
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done

    def line(self, command: str, *, user: bool = False, read_only: str = "", **environment: str) -> list[str]:
        """The command line that does it; `read_only`: a folder in it that cannot be written to meanwhile."""
        base = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            "HOME": HOME if user else "/root",
        }
        told = " ".join(f"{name}={shlex.quote(value)}" for name, value in {**base, **environment}.items())
        inside = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"] if user else []
        root = shlex.quote(str(self.folder))
        script = [f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
        if read_only:
            place = shlex.quote(f"{self.folder}{read_only}")
            script += [f"mount --bind {place} {place}", f"mount -o remount,ro,bind {place}"]
        script.append(
            f"cd / && exec env -i {told} chroot {root} {' '.join(inside)} sh -c {shlex.quote(f'cd {HOME if user else "/"}; {command}')}"
        )
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", "\n".join(script)]

    def files(self) -> set[str]:
        """Every path in it, homes and what apt and dpkg keep for themselves aside."""
        skipped = {"proc", "sys", "dev", "run", "tmp", "home", "root"}
        found = set()
        for top in self.folder.iterdir():
            if top.name not in skipped and not top.is_symlink():
                found |= {str(path.relative_to(self.folder)) for path in top.rglob("*")}
        return {
            path for path in found if not path.startswith(("var/lib/apt", "var/cache/apt", "var/lib/dpkg", "var/log", "var/cache/debconf"))
        }


def _mirror() -> list[str]:
    """Where this computer's own packages come from; debootstrap's default when that is not written down."""
    for file in [
        *Path("/etc/apt/sources.list.d").glob("*.sources"),
        *Path("/etc/apt/sources.list.d").glob("*.list"),
        Path("/etc/apt/sources.list"),
    ]:
        for line in file.read_text().splitlines() if file.exists() else []:
            words = [word for word in line.split() if word.startswith(("http://", "https://"))]
            if words and not line.startswith("#"):
                return [words[0]]
    return []


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.exists():
        target.unlink(missing_ok=True)
        shutil.copyfile(source, target)
