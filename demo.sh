#!/bin/sh
# The whole product on made clips: train, evaluate, export, index, search. Every step is a command that
# is printed before it runs; what an earlier run has made is reused.
set -eu
cd "$(dirname "$0")"
. ./environment.sh

make_environment .venv --editable '.[dev]'
PATH=$PWD/.venv/bin:$PATH
shapes=demo/shapes run=demo/run bundle=demo/bundle gallery=demo/gallery

step() {
    printf '\n$ %s\n' "$*"
    "$@"
}

step dgl-shapes $shapes
[ -e $run/finished ] || step dgl-train --dataset shapes --data-root $shapes --out $run --resume
step dgl-eval $run --zero-shot --dataset shapes --data-root $shapes --out demo/zero_shot.json
step dgl-eval $run --dataset shapes --data-root $shapes --out demo/tuned.json
[ -e $bundle ] || step dgl-export --ckpt $run --format onnx --out $bundle
step dgl-eval $bundle --dataset shapes --data-root $shapes --out demo/exported.json
step dgl-index $bundle $shapes/videos --gallery $gallery
step dgl-search $gallery "a red circle moves left over a dark background" \
    "a blue star grows over a light background" "a green square turns yellow" --top 3 --sheet demo/hits.png
step dgl-bench demo demo
