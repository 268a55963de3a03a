"""What a Linux desktop knows an application by: menu entry, icons, AppStream metadata, MIME type. From resources/ of the checkout."""

from __future__ import annotations

import shutil
from pathlib import Path

from zk0build.recipe import CHECKOUT, Identity

RESOURCES = CHECKOUT / "resources"


def put(share: Path, identity: Identity) -> None:
    """Lay the files into `share`, a .../share folder of the XDG Base Directory layout."""
    name = identity.id
    files = {
        f"{name}.desktop": f"applications/{name}.desktop",
        f"{name}.metainfo.xml": f"metainfo/{name}.metainfo.xml",
        f"{name}.mime.xml": f"mime/packages/{name}.xml",
        f"icons/{name}.svg": f"icons/hicolor/scalable/apps/{name}.svg",
    }
    pictures = RESOURCES / "icons"
    files |= {
        f"icons/{path.relative_to(pictures)}": f"icons/{path.relative_to(pictures)}" for path in pictures.glob("hicolor/*/apps/*.png")
    }
    for source, place in files.items():
        (share / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(RESOURCES / source, share / place)
