"""Pruning, fine-tuning and fine-pruning against a plain and a pruning-aware backdoor: CA, ASR and RA of each.

python benchmarks/pruning.py --data signs gtsrb [--attacks BadNets Blend] [--kinds plain aware]
    [--repairs prune fine_prune] [--save]    (LABKIT_DATA: the folder with .npz files; default: all rows)

The rows of the lecture's table (Liu 2018), and the curve behind them: CA, ASR, RA over the number of silenced channels,
which only the evaluator, who knows the trigger, can draw, for the first seed. `brisk_tune` is fine-tuning alone at
fine-pruning's highest rate: it shows what the cut adds. Every repair chooses by the clean set alone. The lecture's ASR
after fine-pruning on traffic signs: .288 (plain) and .366 (pruning-aware).
"""

from dataclasses import replace

import torch
from card import arguments, card, once, percent

from labkit import evaluate, load, victim
from labkit.attacks import BadNets, Blend, PruningAware
from labkit.defenses import fine_prune, fine_tune, prune, pruning_curve
from labkit.defenses.fine_tune import gentle
from labkit.device import Timer

ATTACKS = {"BadNets": BadNets, "Blend": Blend}
BARS = {"plain": 28.8, "aware": 36.6}  # ASR after fine-pruning on GTSRB, at most, in %
REPAIRS = {
    "prune": lambda model, clean, **_: prune(model, clean),
    "fine_tune": fine_tune,
    "brisk_tune": lambda model, clean, **options: fine_tune(
        model, clean, config=replace(gentle(clean), lr=0.1), **options
    ),
    "fine_prune": fine_prune,
}


def main():
    options = arguments(
        __doc__, data=["signs"], attacks=["BadNets", "Blend"], kinds=["plain", "aware"], repairs=list(REPAIRS)
    )
    for name in options.data:
        data = load(name)
        for attack in options.attacks:
            inner = ATTACKS[attack](target=0, rate=0.1)
            for kind in options.kinds:
                planted = PruningAware(inner) if kind == "aware" else inner
                measure(f"{kind} {attack} on {name}", kind, planted, data, options)


def measure(title, kind, attack, data, options):
    """One victim a seed, its pruning curve, and one row for each repair."""
    chosen, save = options.repairs, {"seeds": options.seeds, "save": options.save}
    seeds = [
        once(lambda s=seed: one_seed(title, attack, data, options, s), title, f"seed {seed}", repr(attack), chosen)
        for seed in options.seeds
    ]
    for repair, first in seeds[0].items():
        recipe = f"{attack!r}, small_cnn, {repair} on {len(data.clean):,} clean images"
        last = repair == "fine_prune" and data.name == "gtsrb"
        bars = {"CA change": ">= -0.2", "ASR": f"<= {BARS[kind]}"} if last else {}
        clean, stamped = f"{first['clean']:,} clean test images", f"{first['triggered']:,} triggered test images"
        units = {"CA": ("%", clean), "CA change": ("points", clean), "ASR": ("%", stamped), "RA": ("%", stamped)}
        for what, (unit, n) in (units | {"time": ("s", f"{len(data.clean):,} clean images")}).items():
            if what in first:
                values = [seed[repair][what] for seed in seeds]
                bar = bars.get(what, "-")
                card(f"{title}, {repair}, {what}", values, unit, n=n, bar=bar, recipe=recipe, **save)


def one_seed(title, attack, data, options, seed) -> dict[str, dict]:
    """{repair, or "none": CA, CA change, ASR, RA in %, perhaps time in s, and how many images were asked}"""
    made = victim(attack, data, seed=seed, progress=False)
    rows = {"none": row(made.report, made.report)}
    print(f"  {title} seed {seed}: {made.report}", flush=True)
    for repair in options.repairs:
        with Timer() as timer:
            result = REPAIRS[repair](made.model, data.clean, seed=seed, progress=False)
        report = evaluate(result.model, data.test, made.trigger, made.target)
        rows[repair] = row(report, made.report) | {"time": timer.seconds}
        print(f"  {title} seed {seed}, {repair}: {result}; {report}", flush=True)
        if repair == "prune" and seed == options.seeds[0]:
            print_curve(made, data.test, result)
    return rows


def row(report, before) -> dict[str, float]:
    found = percent(report)
    return {
        "CA": found["CA"],
        "CA change": found["CA"] - percent(before)["CA"],
        "ASR": found["ASR"],
        "RA": found["RA"],
        "clean": report.n_clean,
        "triggered": report.n_triggered,
    }


def print_curve(made, test, result):
    """CA, ASR, RA with 0 to C channels silenced, at 13 points: one pass over the features for each."""
    others = test[test.labels != made.target]
    stamped, wanted = made.trigger(others.images), torch.full_like(others.labels, made.target)
    asked = ((test.images, test.labels), (stamped, wanted), (stamped, others.labels))
    with Timer() as timer:
        ca, asr, ra = (pruning_curve(made.model, x, y, result.order, result.layer) for x, y in asked)
    for n in torch.linspace(0, len(result.order), 13).round().long().tolist():
        print(f"    {n:4} silenced: CA {ca[n]:6.1%}, ASR {asr[n]:6.1%}, RA {ra[n]:6.1%}")
    print(f"    whole curves, {len(ca)} points each: {timer.seconds:.1f} s", flush=True)


main()
