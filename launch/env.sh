# Creates or updates .venv and puts it first on PATH. The other scripts source this file.
# PYTHON=/path/to/python3.12 selects the interpreter; the default is the first of the usual names with version >= 3.11.

ds4sci_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

ds4sci_python() {
    local name
    for name in ${PYTHON:-python3 python3.12 python3.11 python3.13}; do
        if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info)' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo "[environment] no Python >= 3.11 found (tried: ${PYTHON:-python3 python3.12 python3.11 python3.13})." >&2
    echo "  Debian 12, Ubuntu 24.04 and later:  sudo apt-get install -y python3 python3-venv" >&2
    echo "  another interpreter:                PYTHON=/path/to/python3.11 bash launch/…" >&2
    return 1
}

ds4sci_base_python="$(ds4sci_python)" || exit 1
"$ds4sci_base_python" "$ds4sci_root/launch/environment.py" || exit 1
export VIRTUAL_ENV="$ds4sci_root/.venv"
export PATH="$VIRTUAL_ENV/bin:$PATH"
