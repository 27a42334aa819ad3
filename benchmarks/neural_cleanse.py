"""Neural Cleanse: is the target found, are clean models left alone, seconds, and speed against bare gradients.

python benchmarks/neural_cleanse.py --data signs mnist gtsrb cifar10 --seeds 0 1 2 3 4 [--save]
python benchmarks/neural_cleanse.py --only clean --data signs mnist --seeds 0 1 2 3 4 5 6 7 8 9 [--save]
    (LABKIT_DATA: the folder with .npz files; --attacks BadNets Blend: poisoning 10%)

The bare rate: forward passes and gradients towards the images of the same frozen model, in the same number format, at
the fastest of several batch sizes, timed before and after the search that it is compared with.
"""

import copy

import torch
import torch.nn.functional as F
from card import arguments, card

from labkit import attacks, load, train, victim
from labkit.defenses import SearchConfig, neural_cleanse
from labkit.device import Timer, device_of

BARS = {"signs": 25, "gtsrb": 180}  # seconds for all classes
SIZE = 3  # pixels: the patch of BadNets, in the bottom right corner


def main():
    options = arguments(__doc__, data=["signs"], attacks=["BadNets"], only=["victims", "clean", "speed"])
    for name in options.data:
        data = load(name)
        shared = {"seeds": options.seeds, "save": options.save, "recipe": f"{SearchConfig()}, {len(data.clean)} images"}
        if "victims" in options.only:
            for attack in options.attacks:
                victims(name, data, getattr(attacks, attack)(target=0, rate=0.1), options, shared)
        if "clean" in options.only:
            clean_models(name, data, options, shared)
        if "speed" in options.only:
            model = victim(attacks.BadNets(target=0, rate=0.1), data, seed=options.seeds[0], progress=False).model
            ratios = [speed(model, data.clean, seed) for seed in options.seeds]
            n = "images/s over images/s, same minute"
            card(f"Neural Cleanse on {name}, rate over bare gradients", ratios, "x", n=n, bar=">= 0.8", **shared)


def victims(name, data, attack, options, shared):
    kind, rows = type(attack).__name__, []
    for seed in options.seeds:
        made = victim(attack, data, seed=seed, progress=False)
        with Timer() as timer:
            found = neural_cleanse(made.model, data.clean, seed=seed, progress=False)
        others = found.norms[torch.arange(len(found.norms)) != made.target]
        index, largest = float(found.anomaly[made.target]), int(found.anomaly.argmax()) == made.target
        corner = float(found.masks[made.target, 0, -SIZE:, -SIZE:].sum() / found.norms[made.target])
        print(f"  {kind} on {name} seed {seed}: {found}; {made.report}; {timer.seconds:.1f} s", flush=True)
        rows.append((index, index > 2 and largest, found.norms[made.target], others.min(), corner, timer.seconds))
    index, right, norm, other, corner, seconds = ([float(v) for v in column] for column in zip(*rows, strict=True))
    title, n = f"Neural Cleanse, {kind} on {name}", f"{len(data.classes)} classes"
    card(f"{title}, index of the target", index, "", n=n, bar="> 2", **shared)
    card(f"{title}, target found and most unusual", [100 * r for r in right], "%", n=n, bar="100", **shared)
    card(f"{title}, norm of the target", norm, "pixels", n=n, bar="-", **shared)
    card(f"{title}, smallest other norm", other, "pixels", n=n, bar="-", **shared)
    if kind == "BadNets":
        card(f"{title}, mask on the patch", [100 * c for c in corner], "%", n="of its sum", bar="-", **shared)
    card(f"{title}, time", seconds, "s", n=n, bar=f"<= {BARS[name]}" if name in BARS else "-", **shared)


def clean_models(name, data, options, shared):
    flagged, classes, largest = [], [], []
    for seed in options.seeds:
        model = train("small_cnn", data.train, seed=seed, progress=False)
        found = neural_cleanse(model, data.clean, seed=seed, progress=False)
        print(f"  clean model of {name} seed {seed}: {found}", flush=True)
        flagged.append(100.0 * bool(found.flagged))
        classes.append(100.0 * len(found.flagged) / len(data.classes))
        largest.append(float(found.anomaly.max()))
    n = f"{len(options.seeds)} models, {len(data.classes)} classes"
    card(f"Neural Cleanse, clean {name}, models flagged", flagged, "%", n=n, bar="<= 10", **shared)
    card(f"Neural Cleanse, clean {name}, classes flagged", classes, "%", n=n, bar="-", **shared)
    card(f"Neural Cleanse, clean {name}, largest index", largest, "", n=n, bar="-", **shared)


def speed(model, clean, seed) -> float:
    """Images/s of a whole search, with all that belongs to it, over the mean of the bare rates before and after it."""
    size = max((64, 128, 256, 512, 1024), key=lambda batch: bare_rate(model, clean.images, batch))
    before = bare_rate(model, clean.images, size)
    with Timer() as timer:
        found = neural_cleanse(model, clean, seed=seed, progress=False)
    after = bare_rate(model, clean.images, size)
    return int(found.updates.sum()) * SearchConfig().batch / timer.seconds / ((before + after) / 2)


def bare_rate(model, images, batch: int, count: int = 8000) -> float:
    """Images/s of forward passes and gradients towards the images, which lie ready in the device's layout."""
    device, frozen = device_of(model), copy.deepcopy(model).requires_grad_(False)
    ready = device.layout(images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch]).requires_grad_()
    wanted = torch.zeros(batch, dtype=torch.int64, device=ready.device)

    def once():
        ready.grad = None
        with device.autocast():
            logits = frozen(ready).float()
        F.cross_entropy(logits, wanted).backward()

    once()
    repeats = max(2, round(count / batch))
    with Timer() as timer:
        for _ in range(repeats):
            once()
    return repeats * batch / timer.seconds


main()
