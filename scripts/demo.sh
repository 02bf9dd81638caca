#!/usr/bin/env bash
# The main job on generated images: pretrain, train, test, and a picture of what was found.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
setup requirements.txt

run() {
  echo "\$ ${*/#$python/python}"
  "$@"
}

backbone=resnet18
weights=imagenet
multi_lr=0.01
try="from network import load_backbone; load_backbone('$backbone', 'imagenet', 64)"
if ! "$python" -c "$try" >/dev/null 2>&1; then
  echo "ImageNet weights cannot be downloaded: going on with random ones (--weights none)," \
    "which find less"
  weights=none
  multi_lr=0.1
fi
run "$python" myautoencoder/autoencoder.py --data_name demo --feature_backbone $backbone \
  --feature_weights $weights --image_size 112 --epoch 100 --output_dir runs/demo/autoencoder \
  --overwrite
run "$python" train.py --hash_bit 32 --pretrained_dp_path runs/demo/autoencoder/autoencoder.pth \
  --model_type $backbone --weights $weights --multi_lr $multi_lr --n_clusters 8 --image_size 64 \
  --batch_size 16 --max_epoch 9 --output_dir runs/demo/mrhash --overwrite
run "$python" test.py --hash_bit 32 --pretrain_path runs/demo/mrhash/mrhash.pth \
  --picture runs/demo/neighbours.png
"$python" - <<'PYTHON'
import json
results = json.load(open("runs/demo/mrhash/results.json"))
print(f"\nmAP@{results['R']} {results['map']:.3f} (ties: {results['ties']}); a random order would "
      f"give {results['map_chance']:.3f}")
PYTHON
echo "picture of six queries with their ten nearest images: $PWD/runs/demo/neighbours.png"
