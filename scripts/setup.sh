# Sourced by the other scripts: makes .venv when it is missing or its requirements changed.
#   setup requirements.txt          sets $python
# MRHASH_PYTHON=... takes an interpreter that has them already, where there is no network.
setup() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
  local base wanted mark
  if [ -n "${MRHASH_PYTHON:-}" ]; then
    python=$MRHASH_PYTHON
    if ! "$python" -c 'import torch, torchvision, timm' 2>/dev/null; then
      echo "error: MRHASH_PYTHON=$python has no torch, torchvision and timm: leave it out to have .venv made" >&2
      exit 2
    fi
    return
  fi
  base=$(command -v python3) || { echo "error: python3 was not found; install Python 3.10 or newer" >&2; exit 2; }
  if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: $("$base" --version) is too old; install Python 3.10 or newer" >&2
    exit 2
  fi
  python=.venv/bin/python
  wanted=$(cat "$@" | cksum)
  mark=.venv/installed-$(echo "$*" | tr ' ' '+')
  if [ ! -x "$python" ] || [ "$(cat "$mark" 2>/dev/null)" != "$wanted" ]; then
    echo "installing $* into .venv (some minutes the first time)"
    [ -x "$python" ] || "$base" -m venv .venv || exit 2
    "$python" -m pip install --quiet --disable-pip-version-check $(printf -- '-r %s ' "$@") || exit 2
    echo "$wanted" >"$mark" # last, so that an interrupted installation is done again
  fi
}
