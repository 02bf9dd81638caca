#!/usr/bin/env bash
# What only a machine with an NVIDIA card can show; each part leaves a log in runs/gpu.
#   bash scripts/gpu.sh                 tests, resume, speed, tables (the last takes hours)
#   bash scripts/gpu.sh tests resume    some of them
# In data/ `speed` wants EuroSAT.zip (or say IMAGES=demo), `tables` also EuroSAT_published_split
# and UCMerced_LandUse.zip. JOBS: cells of a table at once. DEVICE=cpu: `resume` without a card.
# MRHASH_PYTHON=python3 takes that interpreter as it is, for machines without a network.
set -euo pipefail
parts=${*:-tests resume speed tables}
for part in $parts; do
  if [[ ! $part =~ ^(tests|resume|speed|tables)$ ]]; then
    echo "error: $part is no part: use tests, resume, speed or tables" >&2
    exit 2
  fi
done
source "$(dirname "$0")/setup.sh"
setup requirements.txt requirements-dev.txt
device=${DEVICE:-cuda}
cards=$("$python" -c 'import torch; print(torch.cuda.device_count())')
if [ "$device" = cuda ] && [ "$cards" = 0 ]; then
  echo "error: torch finds no CUDA card: scripts/gpu.sh is for machines with one" >&2
  exit 2
fi
then_run='import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name="__main__")'

tests() {
  "$python" -m pytest -rs -k "cuda or nccl"
}

same_losses() { # same_losses RUN: as in the run `whole`, but for what rounding makes of `again`
  "$python" - "$1" <<'PYTHON'
import json, sys
# Six epochs: later a card's own noise has grown to percents.
whole, again, other = ([json.loads(line)["loss"] for line in open(f"runs/gpu/demo/{run}/log.jsonl")]
                       [:6] for run in ("whole", "again", sys.argv[1]))
noise, apart = (max(abs(a - b) / a for a, b in zip(whole, losses, strict=True))
                for losses in (again, other))
print(f"losses of epochs against a whole run: {sys.argv[1]} {apart:.1e}, a second one {noise:.1e}")
if apart > max(1e-3, 10 * noise):
    sys.exit(f"error: {sys.argv[1]} differs by more than rounding")
PYTHON
}

resume() {
  local demo=runs/gpu/demo
  local train=(train.py --pretrained_dp_path $demo/autoencoder/autoencoder.pth --weights none
    --model_type resnet18 --multi_lr 0.1 --n_clusters 8 --image_size 64 --batch_size 16
    --max_epoch 19 --eval_frequency 0 --device "$device" --resume --output_dir)
  rm -rf $demo
  "$python" myautoencoder/autoencoder.py --data_name demo --feature_backbone resnet18 \
    --feature_weights none --image_size 64 --epoch 20 --device "$device" \
    --output_dir $demo/autoencoder
  "$python" "${train[@]}" $demo/whole
  "$python" "${train[@]}" $demo/again
  # Runs save every half minute, and this one is over before.
  "$python" -c "from engine.loop import Run; Run.SAVE_EVERY = 0.2; $then_run" \
    "${train[@]}" $demo/killed &
  until [ -e $demo/killed/last.pth ] && grep -qs '"epoch": 2,' $demo/killed/log.jsonl; do
    kill -0 $! # ends this part where the run has ended
    sleep 0.05
  done
  kill -9 $!
  "$python" "${train[@]}" $demo/killed | tee $demo/resumed.txt
  grep -q "^resuming" $demo/resumed.txt
  same_losses killed
  if [ "$cards" -ge 2 ]; then # each has a card of its own, so gradients go by NCCL
    "$python" -m torch.distributed.run --standalone --nproc_per_node 2 "${train[@]}" $demo/ranks
    same_losses ranks
  fi
}

speed() {
  local images=${IMAGES:-EuroSAT} stage1=runs/gpu/8gb/autoencoder
  # As on a card of 8 GB, of which CUDA itself takes a part.
  local limit="import torch; card = torch.cuda.get_device_properties(0); \
torch.cuda.set_per_process_memory_fraction(min(1.0, 7 * 2**30 / card.total_memory)); $then_run"
  "$python" -c "$limit" myautoencoder/autoencoder.py --data_name "$images" --epoch 2 \
    --feature_weights none --device cuda --cache_dir none --output_dir $stage1 --overwrite
  "$python" -c "$limit" train.py --pretrained_dp_path $stage1/autoencoder.pth --weights none \
    --max_epoch 0 --device cuda --output_dir runs/gpu/8gb/mrhash --overwrite
  "$python" -m benchmarks.speed all --device cuda --data_name "$images"
}

tables() {
  local table=(-m benchmarks.compare --backbone efficientnet_lite0 --seeds 3 --jobs "${JOBS:-4}"
    --methods float itq mrhash best best-tuned --output_dir runs/gpu/compare)
  "$python" "${table[@]}" --data_name UCMerced
  "$python" "${table[@]}" --data_name EuroSAT --split_dir data/EuroSAT_published_split
}

mkdir -p runs/gpu
for part in $parts; do
  {
    date
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv || true
    "$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
    git log -1 --format="commit %h" || true
    $part
  } 2>&1 | tee "runs/gpu/$part-$(date +%F-%H%M%S).log"
done
