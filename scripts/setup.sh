#!/bin/bash
# Make .venv at the checkout's root and install edge-lts into it, editable, with torch for the CPU.
#
# usage: scripts/setup.sh [demo|dev]     demo: what a search on this machine needs; dev (the default): also the tests
# A second call finds its stamp and returns at once. PYTHON=... chooses the interpreter (3.10 or newer).
# Installs nothing outside .venv, except Debian's python3-venv when that alone is missing and the caller is root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mode=${1:-dev}
case $mode in
    demo) extras=local ;;
    dev) extras=local,dev ;;
    *) echo "usage: scripts/setup.sh [demo|dev]" >&2; exit 2 ;;
esac

stamp=.venv/edge-lts-setup
log=.venv/edge-lts-setup.log
sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi; }
key=$({ pwd; cat pyproject.toml constraints.txt scripts/setup.sh; } | sha256 | cut -c 1-64)

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

is_done() {
    [ -x .venv/bin/python ] && [ -x .venv/bin/edge-lts ] && [ -r "$stamp" ] || return 1
    local done_key done_mode
    read -r done_key done_mode <"$stamp" || return 1
    [ "$done_key" = "$key" ] && { [ "$done_mode" = dev ] || [ "$done_mode" = "$mode" ]; }
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
        [ "$candidate" != "${PYTHON:-}" ] || die "PYTHON=$PYTHON is not a Python 3.10 or newer"
    done
    die "no Python 3.10 or newer found; install one, or name it: PYTHON=/path/to/python3 scripts/setup.sh"
}

install_ensurepip() {
    local package
    package=python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
        die "$python cannot make virtual environments; on Debian and Ubuntu: sudo apt-get install $package"
    say "installing $package"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends "$package"; } >/dev/null ||
        die "apt-get could not install $package"
}

# Run a step with its output in the log; show the end of the log if it fails.
step() {
    printf '\n$ %s\n' "$*" >>"$log"
    "$@" >>"$log" 2>&1 || { tail -n 15 "$log" >&2; die "failed: $* (all of it: $log)"; }
}

install_torch() {
    local wanted is_installed='import sys, importlib.metadata as m
sys.exit(m.version("torch").split("+")[0] != sys.argv[1])'
    wanted=$(sed -n 's/^torch==\([^ ;#]*\).*/\1/p' constraints.txt)
    ! .venv/bin/python -c "$is_installed" "$wanted" 2>/dev/null || return 0
    say "installing torch $wanted for the CPU"
    # On x86-64 Linux, PyPI's torch brings gigabytes of CUDA; uv knows where the CPU builds are.
    step .venv/bin/python -m pip install --quiet uv
    printf '\n$ uv pip install torch\n' >>"$log"
    if ! UV_HTTP_RETRIES=1 .venv/bin/uv pip install --quiet --python .venv/bin/python --torch-backend=cpu \
        -c constraints.txt torch >>"$log" 2>&1; then
        say "PyTorch's own CPU index is not reachable; taking torch from pip's indexes"
        step .venv/bin/python -m pip install -c constraints.txt torch
    fi
}

! is_done || exit 0
python=$(find_python)
if command -v flock >/dev/null; then
    exec 9<pyproject.toml # one set-up at a time in this checkout; nothing is left behind
    flock --nonblock 9 || { say "another set-up is running here; waiting"; flock 9; }
    ! is_done || exit 0
fi
"$python" -c 'import venv, ensurepip' 2>/dev/null || install_ensurepip
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    say "making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv || die "$python -m venv .venv failed"
fi
rm -f "$stamp"
: >"$log"
install_torch
say "installing edge-lts with its dependencies ($extras)"
step .venv/bin/python -m pip install -c constraints.txt -e ".[$extras]"
printf '%s %s\n' "$key" "$mode" >"$stamp"
say "done in $SECONDS s"
