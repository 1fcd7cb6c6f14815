# Sourced by the other scripts: a virtual environment in .venv, made if it is missing or stale.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
"$python" - <<'PY' || { echo "error: stepmark needs Python 3.11 or newer; set PYTHON to one" >&2; exit 2; }
import sys
sys.exit(sys.version_info < (3, 11))
PY

# Stale: made from other requirements, or by another Python.
stamp=$(cat pyproject.toml constraints.txt | "$python" -c '
import hashlib, sys
print(sys.version.split()[0], hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if [ ! -x .venv/bin/python ] || [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ]; then
    echo "installing into .venv (torch is about 3 GB to fetch; some minutes the first time)" >&2
    rm -rf .venv
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint constraints.txt --editable '.[dev]'
    printf '%s\n' "$stamp" > .venv/stamp
fi
export PATH="$PWD/.venv/bin:$PATH"
