#!/usr/bin/env bash
# The whole job on a CPU in minutes: set up, render a synthetic data set, convert, train, score, render, sum up.
# A second run reuses what is there. Arguments of the form key=value change the training, e.g. training.train_steps=50.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

. scripts/setup.sh
set_up requirements.txt

config=config/quickstart.yaml
data=datasets/synthetic
processed=datasets/synthetic_processed
results=outputs/quickstart
processes=2

# The same on every machine: two processes that share the cores, no GPU, nothing from or to the network.
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=$(( cores > processes ? cores / processes : 1 ))
export CUDA_VISIBLE_DEVICES="" WANDB_MODE=disabled

mkdir -p "$results"
: > "$results/stages.tsv"

stage() {
    local name="$1" begin=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    "$@"
    printf '%s\t%s\n' "$name" "$(( SECONDS - begin ))" >> "$results/stages.tsv"
}

in_parallel() {
    torchrun --standalone --nproc_per_node "$processes" "$@"
}

convert() {
    local mode
    for mode in train test; do
        python process_data.py --base_path "$data" --output_dir "$processed" --mode "$mode" --num_processes "$processes"
    done
}

stage "render the data set" python -m scripts.make_synthetic --output "$data" --num_processes "$processes"
stage "convert"             convert
stage "train"               in_parallel -m src.train --config "$config" "$@"
stage "score"               in_parallel -m src.inference_fast --config "$config"
stage "pictures and videos" in_parallel -m src.inference --config "$config" \
    inference.inference_out_dir="$results/page" inference.render_video=true

python -m scripts.quickstart_report --results "$results"
