"""at_once against one training after the other: two networks of each architecture, as in the labs.

python benchmarks/at_once.py [--archs tiny_cnn small_cnn] [--save]

Both ways in this process in turn, once a seed, on images of `signs` in batches of 32; the ratio is taken pair by pair.
"""

import time

from card import arguments, card

from labkit import TrainConfig, at_once, load, train

CONFIG = TrainConfig(epochs=1, batch_size=32, lr=0.05)


def main():
    options, data = arguments(__doc__, archs=["tiny_cnn", "small_cnn"]), load("signs").train[:4000]
    for arch in options.archs:

        def one(seed: int, arch=arch):
            train(arch, data, config=CONFIG, seed=seed, progress=False)

        at_once(one, [0, 1])
        pairs = []
        for seed in options.seeds:
            start = time.perf_counter()
            for which in (seed, seed + 100):
                one(which)
            middle = time.perf_counter()
            at_once(one, [seed, seed + 100])
            pairs.append((middle - start, time.perf_counter() - middle))
        shared = {
            "seeds": options.seeds,
            "save": options.save,
            "recipe": f"{arch}, one epoch, batch {CONFIG.batch_size}",
            "n": f"{len(data):,} images, two networks",
        }
        card(f"two trainings of {arch}, one after the other", [a for a, _ in pairs], "s", bar="-", **shared)
        card(f"two trainings of {arch}, at once", [b for _, b in pairs], "s", bar="-", **shared)
        card(f"two trainings of {arch}, ratio", [a / b for a, b in pairs], "x", bar="> 1", **shared)


main()
