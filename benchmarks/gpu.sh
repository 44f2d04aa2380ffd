#!/bin/sh
# Everything that needs a GPU, in one call: the gpu tests, then dgl-doctor, dgl-bench encode and quality.
#
#   benchmarks/gpu.sh [OUT]           results in OUT (default: gpu-results); the exit code is 1 if a step failed
#   DEVICE=cpu benchmarks/gpu.sh      as far as it goes without a GPU
#
# BUNDLE=DIR   a bundle made elsewhere; without it one with random weights is exported
# DEMO=DIR     what demo.sh made (default: demo); without it quality, which needs a trained run, is left out
# SITE=DIR     a folder of packages to put first on the path, where no registry can be reached (a slim onnxruntime)
# PYTHON=FILE  the interpreter (default: python3, from the path)
# QUICK=1      a few rounds: whether it runs, not how fast
set -eu

project=$(cd "$(dirname "$0")/.." && pwd)
out=$(realpath -m "${1:-gpu-results}") # as the caller means it, before we go elsewhere
bundle=$(realpath -m "${BUNDLE:-$out/bundle}")
demo=$(realpath -m "${DEMO:-$project/demo}")
site=${SITE:+$(realpath -m "$SITE"):}
device=${DEVICE:-cuda}
python=${PYTHON:-python3}
cd "$project"
export PYTHONPATH="$site$PWD:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"
: >"$out/steps.txt"
failed=0
on=
[ "$device" = cpu ] || on="--device $device"

# step NAME COMMAND...: run it, keep what it says in OUT/NAME.log, note how it ended, go on.
step() {
    name=$1
    shift
    echo "== $name: $*"
    code=0
    "$@" >"$out/$name.log" 2>&1 || code=$?
    tail -n 40 "$out/$name.log"
    echo "$name $code" >>"$out/steps.txt"
    [ "$code" -eq 0 ] || failed=1
}

bench() {
    name=$1
    shift
    step "$name" "$python" -c "from dgl_bench.cli import bench; bench(prog_name='dgl-bench')" "$name" "$@"
}

if [ "$device" != cpu ]; then
    step machine nvidia-smi
    step tests "$python" -m pytest -q -m gpu
fi
if [ ! -e "$bundle" ]; then
    step export "$python" -c "from dgl_export.cli import export; export(prog_name='dgl-export')" \
        --zero-shot --backbone ViT-B-32-quickgelu --out "$bundle"
fi
step doctor "$python" -c "from dgl_runtime.commands.doctor import doctor; doctor(prog_name='dgl-doctor')" --json "$out/doctor.json" # every engine, TensorRT's too, on tiny graphs
bench encode --out "$out" $on ${QUICK:+--rounds 3 --compile=}
if [ -e "$demo/run" ]; then
    step quality "$python" benchmarks/studies/quality.py "$demo/run" --dataset shapes --data-root "$demo/shapes" --out "$out" ${QUICK:+--rounds 3}
else
    echo "== quality is left out: there is no $demo/run; make it with ./demo.sh, or name another in DEMO"
fi
bench startup "$bundle" --out "$out" $on ${QUICK:+--rounds 2}

echo "== steps, with their exit codes"
cat "$out/steps.txt"
exit "$failed"
