# shellcheck shell=bash
# Sourced by the scripts beside it: sets `root` and `venv`, and makes sure that the virtual
# environment in .venv holds exactly what pyproject.toml and requirements.lock ask for.
#
# Variables that matter, all optional:
#   SEQ2SEQ_PYTHON       the Python to make .venv with, instead of the first fit one on the PATH
#   PIP_EXTRA_INDEX_URL  read by pip; https://download.pytorch.org/whl/cpu offers torch without CUDA

root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$root/.venv"
setup_log="$root/.venv-setup.log"

# What the environment should have been made from, in the words of the Python inside it.
# Written to .venv/complete at the very end: without it, the set-up was interrupted.
setup_fingerprint() {
  "$venv/bin/python" -I - "$root" 2>/dev/null <<'PYTHON'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
files = [root / "pyproject.toml", root / "requirements.lock"]
print(sys.version.split()[0], hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest(), root)
PYTHON
}

setup_is_complete() {
  local made_from
  [ -f "$venv/complete" ] && made_from="$(setup_fingerprint)" &&
    [ "$made_from" = "$(cat "$venv/complete")" ]
}

# Prints the first Python that is new enough and can make virtual environments.
setup_find_python() {
  local candidate found problem="" where="on the PATH"
  local candidates=(python3 python3.13 python3.12 python3.11 python3.14 python)
  if [ -n "${SEQ2SEQ_PYTHON:-}" ]; then
    candidates=("$SEQ2SEQ_PYTHON")
    where="at SEQ2SEQ_PYTHON=$SEQ2SEQ_PYTHON"
  fi
  for candidate in "${candidates[@]}"; do
    found="$(command -v "$candidate")" || continue
    "$found" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    if "$found" -I -c 'import ensurepip, venv' 2>/dev/null; then
      echo "$found"
      return
    fi
    problem="$found is new enough but cannot make virtual environments: install its venv package"
    problem="$problem (Debian and Ubuntu: apt install python3-venv) and run this again."
  done
  if [ -z "$problem" ]; then
    problem="No Python 3.11 or newer $where: install one (https://www.python.org/downloads/)"
    problem="$problem or name one in SEQ2SEQ_PYTHON, and run this again."
  fi
  echo "$problem" >&2
  return 1
}

# setup_phase WHAT COMMAND...: one line on the screen, the command's own words in the log.
setup_phase() {
  local what="$1"
  shift
  echo "Set-up: $what" >&2
  if ! "$@" >>"$setup_log" 2>&1 </dev/null; then
    {
      echo "Set-up failed at: $what. The end of $setup_log:"
      tail -n 20 "$setup_log"
      echo "Nothing needs cleaning up: run the same command again to retry."
    } >&2
    return 1
  fi
}

setup_environment() {
  local python pip started=$SECONDS
  setup_is_complete && return # another run finished it while this one waited
  # Only packages that pip itself puts into .venv count, wherever the user's settings point.
  unset PYTHONPATH PYTHONHOME
  export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
  : >"$setup_log"
  if [ -f "$venv/complete" ] && setup_same_place; then
    echo "Set-up: the project's dependencies have changed" >&2
    rm -f "$venv/complete"
  else
    python="$(setup_find_python)" || return
    setup_phase "making $venv with $("$python" --version 2>&1) ($python)" \
      "$python" -m venv --clear "$venv" || return
  fi
  # /dev/dxg is how a GPU appears in Windows' Linux.
  if [ "$(uname -s)" = Linux ] && [ -z "${PIP_EXTRA_INDEX_URL:-}" ] &&
    [ ! -e /dev/nvidiactl ] && [ ! -e /dev/dxg ]; then
    echo "Set-up: no NVIDIA GPU here; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu" \
      "makes the download much smaller" >&2
  fi
  pip=("$venv/bin/python" -m pip install)
  setup_phase "installing the packages of requirements.lock (minutes the first time)" \
    "${pip[@]}" --requirement "$root/requirements.lock" || return
  setup_phase "installing seq2seq itself" \
    "${pip[@]}" --no-deps --no-build-isolation --editable "$root" || return
  setup_fingerprint >"$venv/complete.part" && mv "$venv/complete.part" "$venv/complete" || return
  echo "Set-up: done in $((SECONDS - started)) s" >&2
}

# True if .venv was made here and with the Python that it has now: then pip can bring it up to date.
setup_same_place() {
  local now then
  now="$(setup_fingerprint)" && then="$(cat "$venv/complete")" &&
    [ "${now%% *}" = "${then%% *}" ] && [ "${now#* * }" = "${then#* * }" ]
}

if ! setup_is_complete; then
  # In a subshell, so that the lock is given back and no variable leaks into what follows.
  (
    if command -v flock >/dev/null && ! flock --nonblock 9; then
      echo "Set-up: waiting for another one in $root" >&2
      flock 9
    fi
    setup_environment
  ) 9>"$root/.venv-setup.lock" || exit 1
fi
