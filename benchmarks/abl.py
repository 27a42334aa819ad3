"""Anti-backdoor learning: what stage 1 isolates; CA, ASR and RA beside no defence and beside a naive filter.

python benchmarks/abl.py --data signs cifar10 [--attacks BadNets Blend clean] [--rates 0.1 0.5] [--isolate 0.01 0.05]
    [--early flooding local_gradient_ascent cross_entropy] [--filter 0.1] [--save]     (LABKIT_DATA: .npz files)

Precision: the share of the isolated images that are poisoned. --early: the losses to compare in stage 1; the first is
the one that ABL goes on with. --filter: also train on what is left when that share of the lowest losses is thrown away,
which costs one more training each. "clean" is a set that nobody has touched. Times leave
out the training without a defence, from which the ascent starts. The bars are for CIFAR-10, WRN-16-1, from
Li et al. 2021; ours is `small_cnn`.
"""

import torch
import torch.nn.functional as F
from card import arguments, card, once, percent

from labkit import evaluate, load, train, victim
from labkit.attacks import BadNets, Blend
from labkit.defenses import abl
from labkit.defenses.isolate import flooding, local_gradient_ascent, lowest, train_early
from labkit.device import Timer

ATTACKS = {"BadNets": BadNets, "Blend": Blend}
EARLY = {"flooding": flooding(), "local_gradient_ascent": local_gradient_ascent(), "cross_entropy": F.cross_entropy}
BARS = {("BadNets", 0.1): 3.04, ("Blend", 0.1): 16.23, ("BadNets", 0.5): 4.98, ("Blend", 0.5): 27.28}  # ASR in %


def main():
    options = arguments(
        __doc__, data=["signs"], attacks=["BadNets", "Blend"], rates=["0.1"], isolate=["0.01"], early=["flooding"],
        filter=[],
    )  # fmt: skip
    for name in options.data:
        data = load(name)
        for kind in options.attacks:
            if kind == "clean":
                untouched(name, data, options)
                continue
            for rate in map(float, options.rates):
                measure(f"{kind} {rate:.0%} on {name}", ATTACKS[kind](target=0, rate=rate), data, options)


def measure(title, attack, data, options):
    """One poisoned set a seed; one row of cards for each way to train on it."""
    chosen = (options.isolate, options.early, options.filter)
    seeds = [
        once(
            lambda seed=seed: one_seed(title, attack, data, options, seed), title, f"seed {seed}", repr(attack), chosen
        )
        for seed in options.seeds
    ]
    n = f"{len(data.train):,} training images"
    for what in seeds[0]["precision"]:
        early, share = what.split(", ")
        bar = ">= 95" if share == "1%" else "-"
        values = [seed["precision"][what] for seed in seeds]
        publish(f"{title}, {early}, precision of the lowest {share}", values, "%", n, bar, attack, options)
    for what, first in seeds[0]["rows"].items():
        default = what == "ABL 1%"
        asr = BARS.get((type(attack).__name__, attack.rate)) if data.name == "cifar10" and default else None
        bars = {"CA": "no defence - 1" if default else "-", "ASR": f"<= {asr}" if asr else "-"}
        counts = {"CA": first["clean"], "ASR": first["triggered"], "RA": first["triggered"], "time": n}
        for quantity in sorted(set(counts) & set(first)):
            values, unit = [seed["rows"][what][quantity] for seed in seeds], "s" if quantity == "time" else "%"
            bar = bars.get(quantity, "-")
            publish(f"{title}, {what}, {quantity}", values, unit, counts[quantity], bar, attack, options)


def one_seed(title, attack, data, options, seed) -> dict[str, dict]:
    """{"rows": {way to train: CA, ASR, RA in %, perhaps time in s}, "precision": {"early loss, share": %}}"""
    rows, precision = {}, {}
    poisoned = attack.poison(data.train, seed)
    training_set, truth = poisoned.without_secrets(), poisoned.poisoned

    def note(what, model, **more):
        report = evaluate(model, data.test, attack.trigger, attack.target)
        print(f"  {title} seed {seed}, {what}: {report}", flush=True)
        counts = {"clean": f"{report.n_clean:,} images", "triggered": f"{report.n_triggered:,} triggered"}
        rows[what] = percent(report) | counts | more

    def isolated(what, losses):
        for share in (0.01, 0.05, 0.1, 0.2):
            hits = float(truth[lowest(losses, share)].float().mean())
            precision[f"{what}, {share:.0%}"] = 100 * hits
            print(f"  {title} seed {seed}, {what}: {hits:.1%} of the lowest {share:.0%} poisoned", flush=True)

    start = victim(attack, data, seed=seed, progress=False).model
    note("no defence", start)
    for what in options.early[1:]:
        isolated(what, train_early(training_set, loss=EARLY[what], seed=seed, progress=False).losses.mean(0))
    for share in map(float, options.isolate):
        with Timer() as timer:
            made = abl(
                training_set, isolate=share, early=EARLY[options.early[0]], start=start, seed=seed, progress=False
            )
        print(f"  {title} seed {seed}, {made}", flush=True)
        doubted = truth[made.disbelieved]
        print(f"    of the disbelieved {int(doubted.sum()):,} of {int(truth.sum()):,} poisoned images", flush=True)
        if made.unlearned:
            note(f"ABL {share:.0%}, after the ascent", made.unlearned)
        note(f"ABL {share:.0%}", made.model, time=timer.seconds)
    isolated(options.early[0], made.losses)
    for share in map(float, options.filter):
        keep = torch.ones(len(truth), dtype=torch.bool)
        keep[lowest(made.losses, share)] = False
        print(f"  {title} seed {seed}: the filter leaves {int(truth[keep].sum()):,} poisoned images", flush=True)
        note(f"filter {share:.0%}", train("small_cnn", training_set[keep], seed=seed, progress=False))
    return {"rows": rows, "precision": precision}


def untouched(name, data, options):
    """A clean set: what is taken for poison, and what the defence costs."""
    found: dict[str, list[float]] = {"no defence": [], "ABL": [], "ABL, unlearned in any case": [], "agreement": []}
    for seed in options.seeds:
        models = {"no defence": train("small_cnn", data.train, seed=seed, progress=False)}
        for what, agreement in (("ABL", 0.6), ("ABL, unlearned in any case", 0.0)):
            made = abl(data.train, early=EARLY[options.early[0]], agreement=agreement, seed=seed, progress=False)
            print(f"  clean {name} seed {seed}, {made}", flush=True)
            models[what] = made.model
        found["agreement"].append(100 * made.agreement)
        for what, model in models.items():
            found[what].append(100 * evaluate(model, data.test).clean_accuracy)
    for what, values in found.items():
        n = f"{len(data.test):,} images" if what != "agreement" else f"lowest 1% of {len(data.train):,} images"
        row = what if what == "agreement" else f"{what}, CA"
        publish(f"clean {name}, {row}", values, "%", n, "-", "no attack", options)


def publish(name, values, unit, n, bar, attack, options):
    recipe = f"{attack}, small_cnn; stage 1 {options.early[0]}"
    card(name, values, unit, seeds=options.seeds, n=n, recipe=recipe, bar=bar, save=options.save)


main()
