#!/bin/sh
# Lint, types and tests, on all cores; the slowest tests are named.
#   ./test.sh          every test but the slow ones
#   ./test.sh quick    the packages' own rules, without videos, processes and exports: a few minutes
#   ./test.sh all      all of them, and the runtime's in an environment without torch; CI runs this
#   ./test.sh ...      what pytest is to run
set -eu
cd "$(dirname "$0")"
. ./environment.sh

make_environment .venv --editable '.[dev]'
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy

made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
# Each process of the tests would make these for itself.
.venv/bin/python tests/make_fixtures.py "$made/fixtures"
export DGL_TEST_FIXTURES="$made/fixtures"
# Each process of the tests has a core; torch would take them all, and its threads wait for each other.
export OMP_NUM_THREADS=1
run() { .venv/bin/pytest --numprocesses auto --dist loadfile --durations 10 "$@"; }
case "${1-}" in
    "") run ;;
    quick) run tests/house tests/runtime/bundle tests/runtime/tables tests/runtime/gallery tests/runtime/search tests/train/model tests/train/recipes tests/golden ;;
    all) run -m "not gpu and not soak" ;;
    *) exec .venv/bin/pytest "$@" ;;
esac
[ "${1-}" = all ] || exit 0

echo "The runtime in an environment with nothing but its CPU extra:"
light=.venv-light
rm -rf $light
.venv/bin/python -m venv --without-pip $light
install() { .venv/bin/python -m pip --python $light/bin/python install --quiet "$@"; }
install '.[cpu]'
size_mb=$(du -sm $light | cut -f1)
echo "$size_mb MB"
[ "$size_mb" -lt 350 ]
install '.[cpu,large,postgres,serve,shots,test,watch]'
mkdir -p $light/.pytest_cache
[ ! -d .pytest_cache/d ] || cp -r .pytest_cache/d $light/.pytest_cache/ # clips fetched above: no pip in there
cp -r tests pyproject.toml $light/ # away from the checkout, whose packages must not be imported
cd $light
# The slow ones, of which torch is no part, ran above.
bin/python -m pytest --numprocesses auto --dist loadfile -m "not gpu and not slow and not soak" tests/runtime tests/house/test_imports.py
