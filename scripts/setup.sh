# Sourced by quickstart.sh and test.sh: `set_up FILE` installs a requirements file into .venv and puts it on the PATH.
# Nothing is done when the same file was installed before. PARALLAX_PYTHON names another Python 3.11.

set_up() {
    local requirements="$1" python
    local stamp=".venv/installed-$(basename "$requirements")"

    if [ ! -x .venv/bin/python ]; then
        python=$(find_python) || {
            echo "error: no Python 3.11. Install it, or name one: PARALLAX_PYTHON=/path/to/python3.11 bash $0" >&2
            exit 2
        }
        echo "== making .venv"
        "$python" -m venv .venv
    fi
    if ! cat requirements.txt "$requirements" | cmp -s - "$stamp"; then
        echo "== installing $requirements (some minutes the first time)"
        .venv/bin/python -m pip install --disable-pip-version-check --progress-bar on -r "$requirements"
        cat requirements.txt "$requirements" > "$stamp"
    fi
    export PATH="$PWD/.venv/bin:$PATH"
}

find_python() {
    local candidate
    for candidate in ${PARALLAX_PYTHON:+"$PARALLAX_PYTHON"} python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}
