#!/bin/sh
# Lint, types and the whole test suite; then the runtime's tests in an environment without torch.
set -eu
cd "$(dirname "$0")"
. ./environment.sh

make_environment .venv --editable '.[dev]'
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/pytest "$@"

echo "The runtime without torch:"
make_environment .venv-light '.[cpu]'
lean=$(du -sm .venv-light | cut -f1)
.venv-light/bin/python -m pip install --quiet --force-reinstall --no-deps .
.venv-light/bin/python -m pip install --quiet '.[test]'
echo "$lean MB installed before pytest."
.venv/bin/python tests/make_fixtures.py .venv-light/fixtures
DGL_TEST_FIXTURES=$PWD/.venv-light/fixtures .venv-light/bin/python -m pytest tests/runtime tests/house
