#!/bin/sh
# The table of docs/shapes.md: zero-shot against DGL-transformer on shapes, three seeds of everything.
# Usage: benchmarks/studies/shapes_seeds.sh FOLDER   (what is there already is kept)
set -eu
folder=${1:?give a folder to fill}
mkdir -p "$folder"
for seed in 0 1 2; do
    dgl-shapes "$folder/shapes$seed" --seed $seed
done
for seed in 0 1 2; do
    shapes=$folder/shapes$seed run=$folder/dgl-transformer$seed
    [ -e "$run.json" ] && continue
    resume=$([ ! -e "$run/resume.pt" ] || echo --resume)
    dgl-train --dataset shapes --data-root "$shapes" --set training_seed=$seed --out "$run" $resume
    dgl-eval "$run" --dataset shapes --data-root "$shapes" --json > "$run.new"
    dgl-eval "$run" --zero-shot --dataset shapes --data-root "$shapes" --json > "$folder/zero-shot$seed.json"
    mv "$run.new" "$run.json"
done
python3 - "$folder" <<'PY'
import json, pathlib, sys

print("| seed | model | T2V R@1 | R@5 | R@10 | V2T R@1 | direction |\n|---|---|---|---|---|---|---|")
for seed in range(3):
    for name in ("zero-shot", "dgl-transformer"):
        report = json.loads(pathlib.Path(sys.argv[1], f"{name}{seed}.json").read_text())
        there, back = report["text_to_video"], report["video_to_text"]
        numbers = (there["r1"], there["r5"], there["r10"], back["r1"], report["direction_score"])
        print(f"| {seed} | {name} | " + " | ".join(f"{number:.1f}" for number in numbers) + " |")
PY
