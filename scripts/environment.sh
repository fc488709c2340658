# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts beside it: makes .venv with everything of setup.py, once per change of it.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; then
  echo "Python 3.10 to 3.13 is needed (the ROS 2 wheels exist for these), but '$PYTHON' is" \
    "$("$PYTHON" --version 2>&1). Install one and run: PYTHON=python3.11 $0" >&2
  exit 1
fi

made_from=$(cat setup.py package.xml | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv/made_from 2>/dev/null)" != "$made_from" ]; then
  say "Installing torch, timm, ROS 2 (from PyPI) and the rest into .venv: about 7.5 GB, a few minutes"
  "$PYTHON" -m venv .venv || {
    echo "The venv could not be made; on Debian and Ubuntu: apt install python3-venv" >&2
    exit 1
  }
  .venv/bin/python -m pip install --quiet --upgrade pip
  .venv/bin/python -m pip install --progress-bar on --editable '.[ros,test]' 2>&1 |
    grep --line-buffered -E '^(Collecting|Installing|ERROR|error|Successfully)' | cut -c1-100
  test "${PIPESTATUS[0]}" -eq 0
  echo "$made_from" >.venv/made_from
else
  say ".venv is up to date"
fi
export PATH="$PWD/.venv/bin:$PATH"
# An environment of another ROS install would be mixed with the wheels'.
unset PYTHONPATH AMENT_PREFIX_PATH COLCON_PREFIX_PATH
