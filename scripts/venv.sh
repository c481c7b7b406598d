# shellcheck shell=bash
# Sourced by setup and test-redis-versions: what uv and plain pip do differently.

# Certificates as curl and git trust them: behind a company's proxy uv's own list is not enough.
export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-true}"

say() { printf '%s\n' "$*" >&2; }

# Prints the path of a Python that fits. $PYTHON, if set, is the only candidate.
find_python() {
    local name
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        "$name" -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14); print(sys.executable)' \
            2>/dev/null && return
    done
    if [ -z "${PYTHON:-}" ] && command -v uv >/dev/null; then
        uv python install --quiet 3.12 >&2 && uv python find 3.12 && return
    fi
    say "promptq needs Python 3.11, 3.12 or 3.13; ${PYTHON:-what is on PATH} is none of them." \
        "Install one (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python@3.13)."
    return 1
}

# make_venv PYTHON FOLDER
make_venv() {
    if command -v uv >/dev/null; then
        uv venv --quiet --no-config --clear --python "$1" "$2"
    elif "$1" -c 'import ensurepip, venv' 2>/dev/null; then
        "$1" -m venv --clear "$2"
    else
        say "$1 cannot make virtual environments." \
            "Install what is missing (Debian, Ubuntu: apt install python3-venv), or uv."
        return 1
    fi
}

# pip_install FOLDER ARGUMENTS...: quiet, but for errors.
pip_install() {
    local venv=$1
    shift
    if command -v uv >/dev/null; then
        uv pip install --quiet --python "$venv/bin/python" "$@"
    else
        "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input "$@"
    fi
}
