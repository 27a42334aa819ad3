"""Neural Cleanse's three repairs, with the reversed and the true trigger: CA, ASR, RA before and after.

python benchmarks/unlearn.py --data mnist gtsrb signs --attacks BadNets [--seeds 0 1 2] [--save]
    (LABKIT_DATA: the folder with .npz files; --share 0.1: of the training data, the paper's 10%; 0: the defender's set)

One epoch, trigger on 20% of the images, labels unchanged, on images drawn from the *unpoisoned* training set, as in the
paper: the defender holds a clean sample. The reversed trigger is that of the true target, found on the same images.
"""

import torch
from card import arguments, card, report_cards

from labkit import attacks, evaluate, load, victim
from labkit.defenses import neural_cleanse, neuron_filter, prune_trigger_neurons, unlearn
from labkit.device import Timer
from labkit.metrics import detection

BARS = {"mnist": "<= 0.57", "gtsrb": "<= 0.14"}  # ASR in %, unlearning with the reversed trigger


def main():
    options = arguments(__doc__, data=["signs"], attacks=["BadNets"], share=["0.1"])
    for name in options.data:
        data = load(name)
        for kind in options.attacks:
            repairs(name, data, getattr(attacks, kind)(target=0, rate=0.1), float(options.share[0]), options)


def defenders_images(data, share: float, seed: int):
    """`share` of the training set, before any poisoning; the defender's own small set where it is 0."""
    if not share:
        return data.clean
    return data.train[torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))][
        : round(share * len(data.train))
    ]


def repairs(name, data, attack, share: float, options):
    rows: dict[str, list] = {}
    filters: dict[str, list] = {}
    for seed in options.seeds:
        made, clean = victim(attack, data, seed=seed, progress=False), defenders_images(data, share, seed)
        k = made.target
        rows.setdefault("before", []).append((made.report, 0.0))
        found = neural_cleanse(made.model, clean, seed=seed, progress=False)
        print(f"  {name} seed {seed}: {found}", flush=True)
        triggers = {"reversed trigger": found.trigger(k), "true trigger": made.trigger, "clean images only": None}
        for what, trigger in triggers.items():
            with Timer() as timer:
                result = unlearn(made.model, clean, trigger, seed=seed)
            rows.setdefault(f"unlearn, {what}", []).append(
                (evaluate(result.model, data.test, made.trigger, k), timer.seconds)
            )
            if trigger is None:
                continue
            with Timer() as timer:
                pruned = prune_trigger_neurons(made.model, clean, trigger)
            print(f"  {what}: {pruned}", flush=True)
            report = evaluate(pruned.model, data.test, made.trigger, k)
            rows.setdefault(f"neuron pruning, {what}", []).append((report, timer.seconds))
            inputs = torch.cat([data.test.images, made.trigger(data.test.images[data.test.labels != k])])
            watched = neuron_filter(made.model, inputs, clean, trigger)
            scores = -watched.scores  # there, low is suspicious
            n = len(data.test)
            filters.setdefault(f"neuron filter, {what}", []).append(
                detection(scores[:n], scores[n:], -watched.threshold)
            )
    kind, recipe = type(attack).__name__, f"{attack}, {len(clean):,} clean images"
    shared = {"seeds": options.seeds, "save": options.save, "recipe": recipe}
    for what, found in rows.items():
        title, reports = f"{kind} on {name}, {what}", [r for r, _ in found]
        bar = BARS.get(name, "-") if what.endswith("reversed trigger") and what.startswith("unlearn") else "-"
        report_cards(title, reports, {"CA": "before - 1", "ASR": bar}, **shared)
        if what != "before":
            card(f"{title}, time", [s for _, s in found], "s", n=f"{len(clean):,} images", bar="-", **shared)
    for what, found in filters.items():
        title, n = f"{kind} on {name}, {what}", f"{found[0].n_clean:,} clean, {found[0].n_triggered:,} triggered"
        card(f"{title}, FRR", [100 * d.frr for d in found], "%", n=n, bar="about 5", **shared)
        card(f"{title}, FAR", [100 * d.far for d in found], "%", n=n, bar="-", **shared)


main()
