# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts beside it: makes .venv with everything of setup.py, once per change of it.
# Versions and hashes are those of requirements.lock; with LOCKED=no the newest that setup.py allows.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; then
  echo "Python 3.10 to 3.13 is needed (the ROS 2 wheels exist for these), but '$PYTHON' is" \
    "$("$PYTHON" --version 2>&1). Install one and run: PYTHON=python3.11 $0" >&2
  exit 1
fi

LOCKED=${LOCKED:-yes}
made_from=$(cat setup.py package.xml scripts/requirements.lock | sha256sum | cut -d' ' -f1)-$LOCKED
if [ "$(cat .venv/made_from 2>/dev/null)" != "$made_from" ]; then
  say "Installing torch, timm, ROS 2 (from PyPI) and the rest into .venv: about 7.5 GB, a few minutes"
  "$PYTHON" -m venv .venv || {
    echo "The venv could not be made; on Debian and Ubuntu: apt install python3-venv" >&2
    exit 1
  }
  pip_install() {
    .venv/bin/python -m pip install --progress-bar on "$@" 2>&1 |
      { grep --line-buffered -E '^(Collecting|Installing|ERROR|error|Successfully)' || true; } |
      cut -c1-100
  }
  if [ "$LOCKED" = yes ]; then
    pip_install --require-hashes --requirement scripts/requirements.lock
    pip_install --no-deps --no-build-isolation --editable .
  else
    pip_install --upgrade --upgrade-strategy eager --editable '.[ros,test]'
  fi
  echo "$made_from" >.venv/made_from
else
  say ".venv is up to date"
fi
export PATH="$PWD/.venv/bin:$PATH"
# An environment of another ROS install would be mixed with the wheels'.
unset PYTHONPATH AMENT_PREFIX_PATH COLCON_PREFIX_PATH
