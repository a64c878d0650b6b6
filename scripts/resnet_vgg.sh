#!/usr/bin/env bash
# The paper's ImageNet half, in small: ResNet-18 and 34 and their plain twins, and VGG-11 and 19 with
# normalisation and without, at a quarter of the width, on CIFAR-10 at 32 pixels, with their own stems:
# results/cifar10-resnet and cifar10-vgg.
#   command   RESEXP_CIFAR10_JPEG=cifar10-jpeg.tar.xz ./scripts/resnet_vgg.sh   (again: finished runs are skipped)
#   hardware  any CPU; about half an hour of one core
#   expected  little: 18 layers hardly show degradation, 34 only begin to (the paper's table 2, ten crops:
#             plain 27.94 and 28.54 %, residual 27.88 and 25.03 %). VGG-19 without normalisation was trained
#             from VGG-11's weights by its authors; from random ones it may not learn.
# Two seeds are a smoke test, and the verdict says so.
. "$(dirname "$0")/sweep.sh"
# in_small NAME WORDS KEY=VALUE...: two seeds of networks called WORDS, 300 steps
in_small() {
    on_jpegs "$1" steps=300 eval_every=100 seed=0,1 width=16 \
        "remark='$2 at a quarter of their width, 300 steps of 128 at 32 pixels'" "${@:3}"
    "${resexp[@]}" export "$here" --out results
}
in_small cifar10-resnet "ResNet-18 and 34" depth=18,34 arch=resnet arch.shortcut=A twin=none,plain "$@"
in_small cifar10-vgg "VGG-11 and 19" depth=11,19 arch=vgg norm=batch,none "$@"
for runs in cifar10-resnet "cifar10-vgg arch.norm=batch" "cifar10-vgg arch.norm=none"; do
    "${resexp[@]}" verdict results/$runs || [ $? -eq 4 ] # unquoted: a filter; two seeds decide nothing
done
