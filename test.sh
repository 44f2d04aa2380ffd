#!/bin/sh
# Lint, types and the whole test suite; then the runtime's tests in an environment without torch.
set -eu
cd "$(dirname "$0")"
. ./environment.sh

make_environment .venv --editable '.[dev]'
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
if [ $# -gt 0 ]; then
    .venv/bin/pytest "$@"
else # the tests of training beside the others: there are two cores
    told=$(mktemp)
    # A shell lets what it starts beside itself ignore Ctrl-C, which is among what is tested.
    heed='import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])'
    .venv/bin/python -c "$heed" .venv/bin/pytest tests/train > "$told" 2>&1 &
    training=$!
    trap 'kill $training 2> /dev/null || true; rm -f "$told"' EXIT
    failed=0
    .venv/bin/pytest --ignore tests/train || failed=1
    wait $training || failed=1
    echo "The tests of training:"
    cat "$told"
    [ $failed -eq 0 ]
fi

echo "The runtime in an environment with nothing but its CPU extra:"
light=.venv-light
rm -rf $light
.venv/bin/python -m venv --without-pip $light
install() { .venv/bin/python -m pip --python $light/bin/python install --quiet "$@"; }
install '.[cpu]'
size_mb=$(du -sm $light | cut -f1)
echo "$size_mb MB"
[ "$size_mb" -lt 350 ]
install '.[cpu,large,serve,shots,test,watch]'
.venv/bin/python tests/make_fixtures.py $light/fixtures
mkdir -p $light/.pytest_cache
[ ! -d .pytest_cache/d ] || cp -r .pytest_cache/d $light/.pytest_cache/ # clips fetched above: no pip in there
cp -r tests pyproject.toml $light/ # away from the checkout, whose packages must not be imported
(cd $light && DGL_TEST_FIXTURES=fixtures bin/python -m pytest tests/runtime tests/house/test_imports.py)
