"""Fine-tuning, NAD and mode connectivity repair on the same victims and clean images: CA, ASR and RA of each.

python benchmarks/distil.py --data signs cifar10 [--attacks BadNets Blend] [--repairs nad] [--save]
    (LABKIT_DATA: .npz files; --repairs: some of the rows below, by default all)

Every repair runs at its defaults on the defender's clean set. Rows: `fine_tune`, gentle; `teacher`, fine-tuning as NAD
does it, so that the row below shows what the attention term adds; `nad`; `mode_connectivity` between the victim and the
next seed's victim, which has the same backdoor; `mode_connectivity_one_model`, where the other end is fine-tuned. The
bars are the published figures of CIFAR-10, BadNets 10%, 5% clean data (Li et al. 2021, ABL, Table 1). The path's curve,
which only the evaluator can draw, is printed too.
"""

from card import arguments, card, report_cards

from labkit import evaluate, load, victim
from labkit.attacks import BadNets, Blend
from labkit.defenses import fine_tune, mode_connectivity, nad
from labkit.device import Timer

ATTACKS = {"BadNets": BadNets, "Blend": Blend}
REPAIRS = {
    "fine_tune": lambda model, other, clean, **options: fine_tune(model, clean, **options),
    "nad": lambda model, other, clean, **options: nad(model, clean, **options),
    "mode_connectivity": lambda model, other, clean, **options: mode_connectivity(model, clean, other=other, **options),
    "mode_connectivity_one_model": lambda model, other, clean, **options: mode_connectivity(model, clean, **options),
}
BARS = {"nad": (82.18, 3.56), "mode_connectivity": (78.49, 3.32)}  # CA above, ASR at most, in %


def main():
    options = arguments(__doc__, data=["signs"], attacks=["BadNets", "Blend"], repairs=list(REPAIRS))
    for name in options.data:
        data = load(name)
        for attack in options.attacks:
            measure(f"{attack} on {name}", ATTACKS[attack](target=0, rate=0.1), data, options)


def repairs(made, other, clean, seed, names):
    """(name, repaired model, record, seconds) of each repair of one victim; the teacher is NAD's own."""
    for name in names:
        with Timer() as timer:
            result = REPAIRS[name](made.model, other.model, clean, seed=seed, progress=False)
        if name == "nad":
            yield "teacher", result.teacher, "NAD's teacher", None
        yield name, result.model, result, timer.seconds


def measure(title, attack, data, options):
    """One victim a seed, and one row for each repair."""
    rows: dict[str, list] = {}
    seconds: dict[str, list[float]] = {}
    victims = [victim(attack, data, seed=seed, progress=False) for seed in options.seeds]
    if len(victims) == 1:
        victims.append(victim(attack, data, seed=options.seeds[0] + 1, progress=False))
    for i, seed in enumerate(options.seeds):
        made, other = victims[i], victims[(i + 1) % len(victims)]
        rows.setdefault("none", []).append(made.report)
        for name, model, record, took in repairs(made, other, data.clean, seed, options.repairs):
            rows.setdefault(name, []).append(evaluate(model, data.test, made.trigger, made.target))
            if took is not None:
                seconds.setdefault(name, []).append(took)
            print(f"  {title} seed {seed}, {name}: {record}; {rows[name][-1]}", flush=True)
            if name.startswith("mode_connectivity"):
                for t in record.grid:
                    report = evaluate(record.at(t), data.test, made.trigger, made.target)
                    print(f"    t = {t:.1f}: held-out {float(record.accuracy[record.grid.index(t)]):.1%}; {report}")
    published = data.name == "cifar10" and isinstance(attack, BadNets)
    for repair, reports in rows.items():
        bars = {"CA": f"> {BARS[repair][0]}", "ASR": f"<= {BARS[repair][1]}"} if published and repair in BARS else {}
        shared = {
            "seeds": options.seeds,
            "save": options.save,
            "recipe": f"{attack!r}, small_cnn, {repair} on {len(data.clean):,} clean images",
        }
        report_cards(f"{title}, {repair}", reports, bars, **shared)
        if repair in seconds:
            n = f"{len(data.clean):,} clean images"
            card(f"{title}, {repair}, time", seconds[repair], "s", n=n, bar="-", **shared)


main()
