"""The latent backdoor before and after transfer: what Neural Cleanse finds in the teacher, and in the student.

python benchmarks/latent.py --data signs [--save] [--busy]      (LABKIT_DATA: the folder with .npz files)

The teacher has no output for the target, so its ASR is not defined; shown instead: CA, and its accuracy on stamped
images of its own classes. The defender has clean images of those classes. "Flagged": shares of the runs.
"""

from dataclasses import replace

from card import arguments, card, once, percent

from labkit import evaluate, load
from labkit.attacks import LatentBackdoor
from labkit.attacks.latent import without
from labkit.defenses import neural_cleanse

UNITS = dict.fromkeys(("CA", "on stamped", "ASR", "RA", "flagged", "target flagged"), "%") | {"largest index": ""}
ATTACK = LatentBackdoor(target=0)


def main():
    options = arguments(__doc__, data=["signs"])
    for data in map(load, options.data):
        rows = [
            once(lambda d=data, s=seed: one_seed(d, s), data.name, f"seed {seed}", repr(ATTACK))
            for seed in options.seeds
        ]
        n = f"{len(data.test):,} test images; {len(data.clean):,} clean ones for the defender"
        for who in rows[0]:
            for what in rows[0][who]:
                values = [row[who][what] for row in rows]
                bar = "0" if (who, what) == ("teacher", "flagged") else "-"
                shared = {"seeds": options.seeds, "save": options.save, "recipe": f"{ATTACK}, small_cnn", "n": n}
                card(f"LatentBackdoor on {data.name}, {who}, {what}", values, UNITS[what], bar=bar, **shared)


def one_seed(data, seed: int) -> dict[str, dict[str, float]]:
    """{"teacher" or "student": what UNITS lists, as far as it has it}"""
    teacher = ATTACK.infect(data.train, seed=seed, progress=False)
    student = ATTACK.transfer(teacher, data.train, seed=seed, progress=False)
    task, clean = without(data.test, ATTACK.target), without(data.clean, ATTACK.target)
    stamped = replace(task, images=teacher.trigger(task.images))
    before = percent(evaluate(teacher.model, task))
    before["on stamped"] = percent(evaluate(teacher.model, stamped))["CA"]
    after = percent(evaluate(student, data.test, teacher.trigger, ATTACK.target))
    for who, row, model, images in (("teacher", before, teacher.model, clean), ("student", after, student, data.clean)):
        found = neural_cleanse(model, images, seed=seed, progress=False)
        print(f"  {data.name} seed {seed}, {who}: {found}", flush=True)
        row |= {"largest index": float(found.anomaly.max()), "flagged": 100.0 * bool(found.flagged)}
        if who == "student":
            row["target flagged"] = 100.0 * (ATTACK.target in found.flagged)
    return {"teacher": before, "student": after}


main()
