# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts beside it: makes .venv, once per change of what it is made from. NEEDS=demo
# installs what the demo needs; otherwise the tools of the tests are added.
# The .lock files hold every package with its hash: uv downloads them and resolves nothing.
# LOCKED=no takes the newest versions that setup.py allows.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

stop() {
  printf '%s\n' "$@" >&2
  exit 1
}

PYTHON=${PYTHON:-python3}
NEEDS=${NEEDS:-test}
LOCKED=${LOCKED:-yes}
made_from=$(cat setup.py package.xml scripts/*.lock | sha256sum | cut -d' ' -f1)-$LOCKED

make_venv() {
  "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
    stop "Python 3.10 to 3.13 is needed (the ROS 2 wheels exist for these), but '$PYTHON' is" \
      "$("$PYTHON" --version 2>&1). Install one and run: PYTHON=python3.11 $0"
  mkdir -p .venv
  echo incomplete >.venv/made_from
  find .venv/ -mindepth 1 -not -path .venv/made_from -delete
  "$PYTHON" -m venv .venv ||
    stop "The venv could not be made; on Debian and Ubuntu: apt install python3-venv"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
    --requirement scripts/installer.lock ||
    stop "" "uv and setuptools could not be installed into .venv; pip's message above says why." \
      "Without a connection or behind a proxy: set HTTPS_PROXY or pip's settings. Then run $0 again."
}

# uv reads none of pip's settings: an index, a certificate or a proxy is handed on.
hand_on() {
  local settings value pip_name uv_name
  settings=$(.venv/bin/python -m pip config list)
  while read -r pip_name uv_name; do
    value=$(sed -nE "s/^[^=]*\.$pip_name='(.*)'\$/\1/p" <<<"$settings" | tail -n 1)
    [ -z "$value" ] || [ -n "${!uv_name:-}" ] || export "$uv_name=$value"
  done <<<$'index-url UV_DEFAULT_INDEX\ncert SSL_CERT_FILE\nproxy HTTPS_PROXY'
}

get() {
  local terms=(--no-config --no-build-isolation)
  [ -t 2 ] || terms+=(--quiet)
  .venv/bin/uv pip install --python .venv/bin/python "${terms[@]}" "$@" ||
    stop "" "The installation into .venv failed; uv's message above names the package and the reason." \
      "- No connection, or a proxy: set HTTPS_PROXY. Another index than PyPI: UV_DEFAULT_INDEX." \
      "- A certificate is refused: UV_SYSTEM_CERTS=1 takes those of the system." \
      "- The disk is full: 8 GB are needed, and again as much where ~/.cache/uv is on another disk." \
      "- A hash differs: the index has another file than the one that was pinned." \
      "Then run $0 again: it begins anew, with what has been downloaded."
}

install() {
  local what="torch, timm and ROS 2 Jazzy" size=5.7 lock=requirements extras=ros
  if [ "$NEEDS" != demo ]; then
    what="$what, and the tools of the tests" size=7.1 lock=requirements_test extras=ros,test
  fi
  say "Installing $what (all from PyPI) into .venv, which will have $size GB"
  [ "$1" = rest ] || make_venv
  echo incomplete >.venv/made_from
  hand_on
  if [ "$LOCKED" = yes ]; then
    get --no-deps --require-hashes --requirement scripts/$lock.lock
    get --no-deps --editable .
  else
    get --upgrade --editable ".[$extras]"
  fi
  .venv/bin/python -m pip check || stop "The packages in .venv do not fit together: see above."
  echo "$made_from $NEEDS" >.venv/made_from
}

[ ! -e .venv ] || [ -e .venv/made_from ] ||
  stop ".venv was not made by $0, so it is left alone. Move or delete it, then run $0 again."
case "$(cat .venv/made_from 2>/dev/null)" in
  "$made_from $NEEDS" | "$made_from test") say ".venv is up to date" ;;
  "$made_from demo") install rest ;;
  *) install all ;;
esac
export PATH="$PWD/.venv/bin:$PATH"
# An environment of another ROS install would be mixed with the wheels'.
unset PYTHONPATH AMENT_PREFIX_PATH COLCON_PREFIX_PATH

# run_tests PYTHON [ARGUMENTS OF PYTEST]: with nothing but options (-x, --durations=80), all tests.
run_tests() {
  local pytest=("$1" -m pytest --durations=10) word beside code=0
  shift
  # Some hundred processes are started, and without bytecode each compiles torch anew: 9 s of CPU.
  unset PYTHONDONTWRITEBYTECODE
  for word in "$@"; do
    if [[ $word != -* ]]; then
      say "Tests (pytest)"
      "${pytest[@]}" "$@"
      return
    fi
  done
  # Tests with real ROS processes wait most of the time, and have rates and deadlines to keep, so
  # they go one by one. The others run beside them, on what they leave of the CPU: two files at
  # once, each in one thread, for threads that share a core wait for each other while they spin.
  local without_ros=(test/model test/engine test/datasets test/metrics test/world test/project test/run
    test/apps/test_{bench_temporal,doctor_prove,export,run_command,train,training}.py)
  local log=build/tests_without_ros.log
  mkdir -p build
  pytest+=(-p no:cacheprovider) # several at once would write over each other
  say "Tests (pytest): those without ROS processes into $log, meanwhile all others"
  OMP_NUM_THREADS=1 nice -n 19 "${pytest[@]}" --numprocesses 2 --dist loadfile \
    "${without_ros[@]}" "$@" >"$log" 2>&1 &
  beside=$!
  trap "kill $beside" EXIT
  "${pytest[@]}" "${without_ros[@]/#/--ignore=}" "$@" || code=$?
  say "Tests without ROS processes (pytest)"
  wait $beside || code=$?
  trap - EXIT
  cat "$log"
  return "$code"
}
