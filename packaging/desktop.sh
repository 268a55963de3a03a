#!/usr/bin/env bash
# Put zk0desk into the menu of a Linux desktop for this user, or take it out again. Nothing needs root rights.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

id=org.zk0.Desk
data=${XDG_DATA_HOME:-$HOME/.local/share}
bin=$HOME/.local/bin

refresh() { # what a desktop keeps about its files; each tool is optional
  command -v update-desktop-database >/dev/null && update-desktop-database -q "$data/applications" || true
  command -v update-mime-database >/dev/null && update-mime-database "$data/mime" 2>/dev/null || true
  command -v gtk-update-icon-cache >/dev/null && gtk-update-icon-cache -qtf "$data/icons/hicolor" 2>/dev/null || true
}

install_it() {
  local size
  for size in 16 24 32 48 64 128 256 512; do
    install -Dm644 "resources/icons/hicolor/${size}x$size/apps/$id.png" "$data/icons/hicolor/${size}x$size/apps/$id.png"
  done
  install -Dm644 "resources/icons/$id.svg" "$data/icons/hicolor/scalable/apps/$id.svg"
  install -Dm644 "resources/$id.metainfo.xml" "$data/metainfo/$id.metainfo.xml"
  install -Dm644 "resources/$id.mime.xml" "$data/mime/packages/$id.xml"
  install -d "$data/applications" "$bin"
  # The menu starts this checkout's environment. A path in Exec is quoted; % and \ have a meaning there.
  local command
  command=$(printf '%s' "$PWD/.venv/bin/zk0desk-window" | sed -e 's/\\/\\\\\\\\/g' -e 's/%/%%/g' -e 's/["`$]/\\\\&/g')
  awk -v command="\"$command\"" -v try="$PWD/.venv/bin/zk0desk-window" '
    /^Exec=/ { sub(/^Exec=zk0desk-window/, ""); print "Exec=" command $0; next }
    /^TryExec=/ { print "TryExec=" try; next }
    { print }' "resources/$id.desktop" >"$data/applications/$id.desktop"
  local name
  for name in zk0desk zk0desk-window; do
    if [ -e "$bin/$name" ] && [ ! -L "$bin/$name" ]; then
      echo "$bin/$name is somebody else's file and was left alone." >&2
    else
      ln -sfn "$PWD/.venv/bin/$name" "$bin/$name"
    fi
  done
  refresh
  echo "zk0desk is in the menu. In a terminal: zk0desk"
  case ":$PATH:" in *":$bin:"*) ;; *) echo "$bin is not in PATH; log in again, or call $bin/zk0desk" ;; esac
}

uninstall_it() {
  local name
  rm -f "$data/applications/$id.desktop" "$data/metainfo/$id.metainfo.xml" "$data/mime/packages/$id.xml"
  rm -f "$data"/icons/hicolor/*/apps/"$id".png "$data/icons/hicolor/scalable/apps/$id.svg"
  for name in zk0desk zk0desk-window; do
    # Only a link into this checkout is ours.
    if [ -L "$bin/$name" ] && [ "$(readlink "$bin/$name")" = "$PWD/.venv/bin/$name" ]; then rm -f "$bin/$name"; fi
  done
  refresh
  echo "zk0desk is out of the menu. Settings, journal and the node's key stay in $data/zk0desk and ${XDG_CONFIG_HOME:-$HOME/.config}/zk0desk."
}

case "${1:-}" in
  install) install_it ;;
  uninstall) uninstall_it ;;
  *) echo "usage: $0 install|uninstall" >&2; exit 2 ;;
esac
