#!/bin/sh
# The whole product on made clips: train, evaluate, export, index, search. Every step is a command that
# is printed before it runs; what an earlier run has made is reused.
set -eu
cd "$(dirname "$0")"
. ./environment.sh

make_environment .venv --editable '.[dev]'
PATH=$PWD/.venv/bin:$PATH
shapes=demo/shapes run=demo/run bundle=demo/bundle gallery=demo/gallery

# Prints a command as it can be typed, arguments with spaces in quotes.
show() {
    printf '\n$'
    for word in "$@"; do
        case $word in
            *' '*) printf ' "%s"' "$word" ;;
            *) printf ' %s' "$word" ;;
        esac
    done
}
step() {
    show "$@"
    echo
    "$@"
}
report() { # FILE COMMAND...: a step whose output goes into a file
    file=$1
    shift
    show "$@"
    echo " > $file"
    "$@" > "$file"
}

mkdir -p demo
echo "To repeat a step by hand, first: export PATH=\$PWD/.venv/bin:\$PATH"
step dgl-shapes $shapes
if [ ! -e demo/trained ]; then
    resume=$([ ! -e $run/resume.pt ] || echo --resume)
    step dgl-train --dataset shapes --data-root $shapes --out $run $resume
    touch demo/trained
fi
report demo/zero_shot.json dgl-eval $run --zero-shot --dataset shapes --data-root $shapes --json
report demo/tuned.json dgl-eval $run --dataset shapes --data-root $shapes --json
[ -e $bundle ] || step dgl-export --ckpt $run --format onnx --out $bundle
report demo/exported.json dgl-eval $bundle --dataset shapes --data-root $shapes --json
step dgl-index $bundle $shapes/videos --gallery $gallery
step dgl-search $gallery "a red circle moves left over a dark background" \
    "a blue ring grows over a light background" "a green cross turns yellow over a striped background" --top 3 --sheet demo/hits.png
step python examples/demo_table.py demo
