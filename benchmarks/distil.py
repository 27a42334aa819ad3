"""Fine-tuning, NAD and mode connectivity repair on the same victims and clean images: CA, ASR and RA of each.

python benchmarks/distil.py --data signs gtsrb cifar10 [--attacks BadNets Blend] [--save]   (LABKIT_DATA: .npz files)

All three run at their defaults, the same recipe and number of epochs, on the defender's clean set. The bars are the
published figures of CIFAR-10, BadNets 10%, 5% clean data (Li et al. 2021, ABL, Table 1). The path's curve, which only
the evaluator can draw, is printed too.
"""

from card import arguments, card

from labkit import evaluate, load, victim
from labkit.attacks import BadNets, Blend
from labkit.defenses import fine_tune, mode_connectivity, nad

ATTACKS = {"BadNets": BadNets, "Blend": Blend}
BARS = {"nad": (82.18, 3.56), "mode_connectivity": (78.49, 3.32)}  # CA at least, ASR at most, in %


def main():
    options = arguments(__doc__, data=["signs"], attacks=["BadNets", "Blend"])
    for name in options.data:
        data = load(name)
        for attack in options.attacks:
            measure(f"{attack} on {name}", ATTACKS[attack](target=0, rate=0.1), data, options)


def measure(title, attack, data, options):
    """One victim a seed, and one row for each repair."""
    rows: dict[str, list] = {}
    for seed in options.seeds:
        made = victim(attack, data, seed=seed, progress=False)
        rows.setdefault("none", []).append(made.report)
        for repair in (fine_tune, nad, mode_connectivity):
            result = repair(made.model, data.clean, seed=seed, progress=False)
            rows.setdefault(repair.__name__, []).append(evaluate(result.model, data.test, made.trigger, made.target))
            print(f"  {title} seed {seed}, {repair.__name__}: {result}; {rows[repair.__name__][-1]}", flush=True)
            if repair is mode_connectivity:
                for t in result.grid:
                    print(
                        f"    t = {t:.1f}: {evaluate(result.at(t), data.test, made.trigger, made.target)}", flush=True
                    )
    report = rows["none"][0]
    clean, stamped = f"{report.n_clean:,} clean test images", f"{report.n_triggered:,} triggered test images"
    published = data.name == "cifar10" and isinstance(attack, BadNets)
    for repair, reports in rows.items():
        ca_bar, asr_bar = (f">= {BARS[repair][0]}", f"<= {BARS[repair][1]}") if published and repair in BARS else "--"
        shared = {
            "seeds": options.seeds,
            "save": options.save,
            "recipe": f"{attack!r}, small_cnn, {repair} on {len(data.clean):,} clean images",
        }
        ca, asr, ra = (
            [100 * getattr(r, f) for r in reports] for f in ("clean_accuracy", "attack_success_rate", "robust_accuracy")
        )
        card(f"{title}, {repair}, CA", ca, "%", n=clean, bar=ca_bar, **shared)
        card(f"{title}, {repair}, ASR", asr, "%", n=stamped, bar=asr_bar, **shared)
        card(f"{title}, {repair}, RA", ra, "%", n=stamped, bar="-", **shared)


main()
