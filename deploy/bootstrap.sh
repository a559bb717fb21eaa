#!/bin/sh
# Make the virtual environment: on a fresh Debian or Ubuntu with Python 3.11 or newer, as root or not.
# Called by `make setup`; VENV names the environment, PYTHON a certain interpreter.
set -eu

VENV="${VENV:-.venv}"

fail() {
    echo "gpuhub setup: $*" >&2
    exit 2
}

is_new_enough() {
    "$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    for name in ${PYTHON:-} python3.14 python3.13 python3.12 python3.11 python3; do
        if is_new_enough "$name"; then
            command -v "$name"
            return
        fi
    done
    found=$(python3 --version 2>/dev/null || true)
    fail "Python 3.11 or newer is needed, found ${found:-none}; install it (apt-get install python3 python3-venv) or set PYTHON"
}

# uv from the PATH; else in an environment of its own; else unpacked by pip beside the build's other files.
find_uv() {
    if command -v uv >/dev/null 2>&1; then
        command -v uv
    elif [ -x build/bootstrap/bin/uv ]; then
        echo build/bootstrap/bin/uv
    elif "$1" -m venv build/bootstrap >&2 && build/bootstrap/bin/python -m pip install --quiet uv >&2; then
        echo build/bootstrap/bin/uv
    elif [ -x build/uv/bin/uv ]; then
        echo build/uv/bin/uv
    elif "$1" -m pip install --quiet --target build/uv uv >&2; then
        echo build/uv/bin/uv
    else
        fail "neither uv, venv nor pip works here; run apt-get install python3-venv, or install uv"
    fi
}

python=$(find_python)
mkdir -p build
uv=$(find_uv "$python")

if ! is_new_enough "$VENV/bin/python"; then
    "$uv" venv --quiet --clear --python "$python" "$VENV"
fi

install() {
    VIRTUAL_ENV="$VENV" "$uv" pip "$@" || {
        command -v gcc >/dev/null 2>&1 || fail "a package could not be installed, perhaps because gcc is missing: apt-get install gcc"
        fail "a package could not be installed; the reason stands above"
    }
}

install sync --quiet --require-hashes requirements.lock
install install --quiet --no-deps --no-build-isolation --editable .
echo "ready: $VENV ($("$VENV/bin/python" --version)); now: make up"
