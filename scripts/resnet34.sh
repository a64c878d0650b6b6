#!/usr/bin/env bash
# The paper's ImageNet half, in small: ResNet-18 and 34 and their plain twins at a quarter of the width,
# on CIFAR-10 at 32 pixels, with their own stem: results/cifar10-resnet.
#   command   RESEXP_CIFAR10_JPEG=cifar10-jpeg.tar.xz ./scripts/resnet34.sh   (again: finished runs are skipped)
#   hardware  any CPU; about a quarter of an hour of one core
#   expected  little: 18 layers hardly show degradation, 34 only begin to (the paper's table 2, ten crops:
#             plain 27.94 and 28.54 %, residual 27.88 and 25.03 %)
# Two seeds are a smoke test, and the verdict says so.
. "$(dirname "$0")/sweep.sh"
on_jpegs cifar10-resnet steps=300 eval_every=100 seed=0,1 \
    depth=18,34 arch=resnet arch.shortcut=A twin=none,plain width=16 \
    "remark='ResNet-18 and 34 at a quarter of their width, 300 steps of 128 at 32 pixels'" "$@"
"${resexp[@]}" export "$here" --out results
"${resexp[@]}" verdict "$here" || [ $? -eq 4 ] # two seeds decide nothing
