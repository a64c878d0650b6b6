#!/usr/bin/env bash
# docs/figures: each kind of figure, drawn from the committed digits for a screen, a column of a
# printed page and a slide.
#   command   ./scripts/figures.sh
#   hardware  any CPU; half a minute on a quiet one
#   expected  15 PNG files, each below 100 kB
set -euo pipefail
cd "$(dirname "$0")/.."
drawn() { # FOLDER OPTION... : every kind of that folder, at the three sizes
  resexp plot "results/digits/$1" "${@:2}" --dpi 130 --out docs/figures/screen
  resexp plot "results/digits/$1" "${@:2}" --dpi 200 --width 8.5 --out docs/figures/print
  resexp plot "results/digits/$1" "${@:2}" --dpi 72 --style slide --out docs/figures/slide
}
drawn five-seeds
drawn families --which families
drawn surface --which surface
python - docs/figures/*/*.png <<'PALETTE'  # 256 colours are enough: a third of the size
import sys
from PIL import Image
for path in sys.argv[1:]:
    image = Image.open(path)
    small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(path, optimize=True, dpi=image.info["dpi"])
PALETTE
