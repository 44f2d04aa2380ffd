# Sourced by demo.sh and test.sh: makes a virtual environment once, and again when pyproject.toml changed.

# make_environment FOLDER WHAT...: a virtual environment with WHAT installed by pip.
make_environment() {
    folder=$1
    shift
    stamp="$folder/installed-$(echo "$* $(cat pyproject.toml)" | cksum | tr ' ' '-')"
    [ -e "$stamp" ] && return
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "Python 3.11 or newer is needed, $python is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.11." >&2
        exit 1
    }
    echo "Making the environment $folder (a few GB for torch, once) ..."
    rm -rf "$folder"
    "$python" -m venv "$folder"
    # torch alone first: pip keeps all it downloads until it is done, and torch's part is gigabytes.
    "$folder/bin/python" -m pip install --quiet torch
    "$folder/bin/python" -m pip install --quiet "$@"
    touch "$stamp"
}
