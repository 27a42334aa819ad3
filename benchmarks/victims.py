"""BadNets victims on each data set: CA, ASR, RA and seconds to train, over seeds.

python benchmarks/victims.py --data signs mnist gtsrb cifar10 [--save]      (LABKIT_DATA: the folder with .npz files)

With LABKIT_CACHE set to an empty folder the victims stay there, and benchmarks/strip.py need not train them again.
"""

import os
import tempfile

from card import arguments, card, report_cards

from labkit import load, victim
from labkit.attacks import BadNets
from labkit.device import Timer

BARS = {  # CA >= %, ASR >= %, seconds <=
    "signs": (95, 99.5, 15),
    "mnist": (99.3, 99.9, 30),
    "gtsrb": (97, 99.9, 120),
    "cifar10": (85, 99.9, 300),
    "digits": (95, 99.5, 15),
}


def main():
    options = arguments(__doc__, data=["signs"])
    os.environ.setdefault("LABKIT_CACHE", tempfile.mkdtemp())
    for name in options.data:
        data, rows = load(name), []
        for seed in options.seeds:
            attack, epochs = BadNets(target=0, rate=0.05), []
            with Timer() as timer:
                made = victim(attack, data, seed=seed, progress=False, callback=epochs.append)
            if not epochs:  # the time would be that of reading a file
                raise SystemExit(f"{name} seed {seed} is in the cache already: set LABKIT_CACHE to an empty folder.")
            print(f"  {name} seed {seed}: {made.report}; {timer.seconds:.1f} s", flush=True)
            rows.append((made.report, timer.seconds))
        shared = {
            "seeds": options.seeds,
            "save": options.save,
            "recipe": f"victim(BadNets(target=0, rate=0.05), load('{name}')), small_cnn, {made.card['train']}",
        }
        ca, asr, seconds = BARS[name]
        bars = {"CA": f">= {ca}", "ASR": f">= {asr}"}
        report_cards(f"BadNets on {name}", [report for report, _ in rows], bars, **shared)
        times, n = [took for _, took in rows], "cold cache, evaluation included"
        card(f"BadNets on {name}, time", times, "s", n=n, bar=f"<= {seconds}", **shared)


main()
