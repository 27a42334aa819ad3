"""STRIP with 100 overlays at FRR 1%: FAR on each data set, and time against bare forward passes of the same model.

python benchmarks/strip.py --data signs mnist gtsrb cifar10 [--save]      (LABKIT_DATA: the folder with .npz files)

Scored inputs: up to 2,000 clean and 2,000 triggered test images, as in the paper. The forward passes: as many images as
STRIP mixes, from memory, in the same number format, at the fastest of several batch sizes, measured in the same run.
"""

import statistics

import torch
from card import arguments, card

from labkit import load, victim
from labkit.attacks import BadNets
from labkit.defenses import strip
from labkit.defenses.strip import superimpose
from labkit.device import Timer, device_of
from labkit.metrics import detection

N = 2000


def main():
    options = arguments(__doc__, data=["signs"])
    for name in options.data:
        data, found, ratios = load(name), [], []
        for seed in options.seeds:
            made = victim(BadNets(target=0, rate=0.05), data, seed=seed, progress=False)
            pick = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(seed))
            clean = data.test[pick[:N]]
            others = data.test[pick[data.test.labels[pick] != made.target][:N]]
            inputs = torch.cat([clean.images, made.trigger(others.images)])
            result = strip(made.model, inputs, data.clean, overlays=100, frr=0.01, blend=superimpose, seed=seed)
            found.append(detection(result.scores[: len(clean)], result.scores[len(clean) :], result.threshold))
            print(f"  {name} seed {seed}: {found[-1]}; threshold from {len(data.clean):,} clean images", flush=True)
            ratios.append(overhead(made.model, inputs[:200], data.clean[:200]))
        shared = {"seeds": options.seeds, "save": options.save, "recipe": "strip(overlays=100, frr=0.01), BadNets 5%"}
        n = f"{found[0].n_clean:,} clean, {found[0].n_triggered:,} triggered"
        card(f"STRIP on {name}, FAR at FRR 1%", [100 * d.far for d in found], "%", n=n, bar="<= 1", **shared)
        card(f"STRIP on {name}, measured FRR", [100 * d.frr for d in found], "%", n=n, bar="about 1", **shared)
        card(f"STRIP on {name}, AUC", [d.auc for d in found], "", n=n, bar="-", **shared)
        card(f"STRIP on {name}, time over forward passes", ratios, "x", n="median of 3 pairs", bar="<= 1.15", **shared)


def overhead(model, inputs, clean) -> float:
    """Seconds of strip over seconds of as many forward passes: median of three pairs, run one after the other."""
    count = 100 * (len(inputs) + len(clean))
    batch = min((64, 128, 256, 512, 1024), key=lambda size: forward_seconds(model, clean.images, 20_000, size))
    pairs = []
    for _ in range(3):
        with Timer() as timer:
            strip(model, inputs, clean, overlays=100)
        pairs.append(timer.seconds / forward_seconds(model, clean.images, count, batch))
    return statistics.median(pairs)


@torch.no_grad()
def forward_seconds(model, images, count: int, batch: int) -> float:
    """Seconds for `count` bare forward passes, `batch` at a time, images ready in the device's layout."""
    device = device_of(model)
    repeats = -(-batch // len(images))
    ready = device.layout(images.repeat(repeats, 1, 1, 1)[:batch])
    with device.autocast():
        model(ready)
        with Timer() as timer:
            for _ in range(round(count / batch)):
                model(ready)
    return timer.seconds * count / (round(count / batch) * batch)


main()
