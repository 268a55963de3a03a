#!/usr/bin/env bash
# Prepare .venv: system libraries for the window, a Python 3.12, and exactly the packages of requirements.lock.
# Runs from a bare Debian or Ubuntu with git and make; a second run only compares a stamp.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
stamp=$venv/.zk0desk-setup

say() { printf '%s\n' "$*" >&2; }
fail() { # what, why, remedy
  printf '%s\n' "$@" >&2
  exit 1
}

wanted_stamp() { { pwd; cat requirements.lock pyproject.toml packaging/linux/system-libraries.txt "${BASH_SOURCE[0]}"; } | sha256sum | cut -d' ' -f1; }
if [ "$(cat $stamp 2>/dev/null)" = "$(wanted_stamp)" ] && $venv/bin/python -c '' 2>/dev/null; then
  exit 0
fi

mkdir -p .bootstrap
exec 9>.bootstrap/lock
if command -v flock >/dev/null && ! flock -n 9; then
  say "Another make is preparing the environment; waiting for it."
  flock 9
  if [ "$(cat $stamp 2>/dev/null)" = "$(wanted_stamp)" ]; then exit 0; fi
fi

# --- system packages ----------------------------------------------------------------------------------------

# The libraries that Qt's wheels load, each with the Debian package that has it; packages are built from the same table.
libraries=$(grep -v '^#' packaging/linux/system-libraries.txt)

missing_packages() {
  local present
  present=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null || true)
  while read -r library package _; do
    if [ -n "$library" ] && [[ $present != *"$library "* ]]; then echo "$package"; fi
  done <<<"$libraries"
  # Without any font the window shows boxes; without certificates nothing can be fetched.
  if ! find /usr/share/fonts /usr/local/share/fonts -name '*.[to]tf' 2>/dev/null | grep -q .; then echo fonts-dejavu-core; fi
  if [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then echo ca-certificates; fi
}

apt_install() {
  local root=()
  if [ "$(id -u)" != 0 ]; then
    if sudo -n true 2>/dev/null; then root=(sudo -n); else return 1; fi
  fi
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2 || say "The package lists could not be refreshed; trying with the old ones."
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends "$@" >/dev/null
}

if [ "$(uname)" = Linux ]; then
  mapfile -t packages < <(missing_packages)
  if [ ${#packages[@]} -gt 0 ]; then
    if command -v apt-get >/dev/null; then
      say "Installing system packages: ${packages[*]}"
      apt_install "${packages[@]}" || fail "System packages are missing: ${packages[*]}" \
        "They could not be installed from here (no root rights without a password, or apt-get failed: see above)." \
        "Run this, then make again:  sudo apt-get install -y ${packages[*]}"
    else
      say "The window may need libraries that were not found; their Debian names are: ${packages[*]}" \
        "Install your distribution's packages for them if the window does not open."
    fi
  fi
fi

# --- Python 3.12 and uv -------------------------------------------------------------------------------------

is_python() { # an interpreter that really runs and is at least / exactly the version asked for
  "$1" -c "import sys; sys.exit(not (sys.version_info[:2] $2))" >/dev/null 2>&1
}

find_python() {
  local candidate
  for candidate in python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12.*/bin/python3.12 /usr/bin/python3.12 /usr/local/bin/python3.12 python3 python; do
    if is_python "$candidate" "== (3, 12)"; then
      command -v "$candidate"
      return
    fi
  done
}

find_any_python() { # one that can make a virtual environment
  local candidate
  for candidate in "$@" python3 /usr/bin/python3 python3.13 python3.11 python3.10 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[0-9].*/bin/python3; do
    if [ -n "$candidate" ] && is_python "$candidate" ">= (3, 9)" && "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

python=$(find_python)
if [ -z "$python" ] && command -v apt-cache >/dev/null && apt-cache show python3.12 >/dev/null 2>&1; then
  say "Installing system packages: python3.12 python3.12-venv"
  apt_install python3.12 python3.12-venv || true
  python=$(find_python)
fi

uv=""
for candidate in $venv/bin/uv uv "$HOME/.local/bin/uv" "$HOME/.cargo/bin/uv" .bootstrap/uv/bin/uv; do
  if "$candidate" --version >/dev/null 2>&1; then
    uv=$(command -v "$candidate")
    break
  fi
done
if [ -z "$uv" ]; then
  host=$(find_any_python "$python")
  if [ -z "$host" ] && command -v apt-get >/dev/null; then
    say "Installing system packages: python3 python3-venv"
    apt_install python3 python3-venv || true
    host=$(find_any_python "$python")
  fi
  [ -n "$host" ] || fail "No Python was found that can make a virtual environment." \
    "The environment is installed with uv, and uv is fetched with Python's own pip." \
    "Run this, then make again:  sudo apt-get install -y python3 python3-venv"
  say "Fetching uv, which installs the locked packages."
  rm -rf .bootstrap/uv
  "$host" -m venv .bootstrap/uv
  # The lock names uv too, with its hashes: nothing is run that it does not vouch for.
  sed -n '/^uv==/,/^[^ ]/p' requirements.lock | sed '1b;/^[^ ]/d' >.bootstrap/uv.lock
  .bootstrap/uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .bootstrap/uv.lock ||
    fail "uv could not be fetched." "pip did not reach a package index (its message is above)." \
      "Check the network and the proxy settings (HTTPS_PROXY, PIP_INDEX_URL), then make again."
  uv=$PWD/.bootstrap/uv/bin/uv
fi

if ! $venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
  if [ -z "$python" ]; then say "No Python 3.12 was found on this computer; uv fetches one for zk0desk alone."; fi
  # uv may live in the environment that is made anew: take it along.
  case $uv in *"$venv"/*) mkdir -p .bootstrap && cp "$uv" .bootstrap/uv-kept && uv=$PWD/.bootstrap/uv-kept ;; esac
  "$uv" venv --quiet --clear --prompt zk0desk --python "${python:-3.12}" $venv ||
    fail "A Python 3.12 could not be set up." "This computer has none, and none could be fetched from github.com (uv's message is above)." \
      "Install one, for example with  pyenv install 3.12  or from Ubuntu 24.04's packages (python3.12), and make again." \
      "A mirror of uv's Python builds can be named in UV_PYTHON_INSTALL_MIRROR."
fi

# --- the locked packages ------------------------------------------------------------------------------------

free_mb=$(df -Pm . | awk 'NR == 2 {print $4}')
if [ ! -e $venv/lib/python3.12/site-packages/torch ]; then
  if [ "${free_mb:-0}" -lt 6000 ]; then say "Only $free_mb MB are free here; torch and its libraries need about 6000 MB. Going on."; fi
  say "Installing the locked packages into $venv. What is not in uv's cache is fetched, up to 3 GB."
else
  say "Bringing $venv to what requirements.lock says."
fi
export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300}
export VIRTUAL_ENV=$PWD/$venv
"$uv" pip sync --quiet --require-hashes --python $venv/bin/python requirements.lock ||
  fail "The locked packages could not be installed." "uv's message is above; usually the network, a proxy (HTTPS_PROXY) or the disk." \
    "Then make again: what was fetched is kept."
"$uv" pip install --quiet --no-deps --no-build-isolation --python $venv/bin/python --editable .
wanted_stamp >$stamp
rm -f .bootstrap/uv-kept
say "The environment is ready."
