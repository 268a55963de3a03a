#!/usr/bin/env bash
# Put this checkout's zk0desk into the menu of a Linux desktop for this user, or take it out again. Nothing needs root rights.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bin=$HOME/.local/bin
scripts=$PWD/.venv/bin

menu() { # the same that the window does; to take it out any Python will do
  local python=$scripts/python
  "$python" -c '' 2>/dev/null || python=python3
  PYTHONPATH=$PWD "$python" -m zk0desk.desktop.menu "$1"
}

link_commands() { # zk0desk and zk0desk-window for a terminal
  local name
  mkdir -p "$bin"
  for name in zk0desk zk0desk-window; do
    if [ -e "$bin/$name" ] && [ ! -L "$bin/$name" ]; then
      echo "$bin/$name is somebody else's file and was left alone." >&2
    else
      ln -sfn "$scripts/$name" "$bin/$name"
    fi
  done
  case ":$PATH:" in *":$bin:"*) ;; *) echo "$bin is not in PATH; log in again, or call $bin/zk0desk" ;; esac
}

unlink_commands() { # only a link into this checkout is ours
  local name
  for name in zk0desk zk0desk-window; do
    if [ -L "$bin/$name" ] && [ "$(readlink "$bin/$name")" = "$scripts/$name" ]; then rm -f "$bin/$name"; fi
  done
}

case "${1:-}" in
  install) menu install && link_commands ;;
  uninstall) menu uninstall && unlink_commands ;;
  *) echo "usage: $0 install|uninstall" >&2; exit 2 ;;
esac
