"""A class of thirty for `make demo-class`: right, partly right, blank, broken and copied submissions of one lab.

python -m tests.demo_class FOLDER     writes FOLDER/STUDENT/02_badnets.ipynb, the same bytes each time
"""

import inspect
import random
import shutil
import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from submissions import blank, solutions, submission, write

from labkit.course.notebooks import encode
from labkit.grading.needed import pick, statements

LAB = "02_badnets"
STUDENTS = (
    "ada alan barbara carl claude dennis donald edsger ellen emmy erna fran george grace hedy ida ivo jana john "
    "kathleen katherine lise mary niklaus radia richard rosalind shafi tim vint"
).split()

QUIRKY = '''def stamp(images, patch):
    """New images (N, C, H, W) with the patch (h, w) in the bottom right corner of every channel."""
    rows_from, columns_from = images.shape[-2] - patch.size(0), images.shape[-1] - patch.size(1)
    canvas = torch.empty_like(images)
    canvas[...] = images
    for row in range(rows_from, images.shape[-2]):
        for column in range(columns_from, images.shape[-1]):
            canvas[:, :, row, column] = float(patch[row - rows_from, column - columns_from])
    return canvas
'''


def written_out(name: str, kind: str, number: int) -> str:
    """The source of an answer in tests/answers, with the helpers it uses, under the name that the exercise asks for."""
    module = import_module(f"tests.answers.lab{LAB[:2]}")
    answer = getattr(module, kind)[name][number]
    answer = answer[0] if isinstance(answer, tuple) else answer
    made = pick([answer.__name__], [statements([inspect.getsource(module)])])
    return "\n\n\n".join([*made, f"{name} = {answer.__name__}"])


def cells(student: str, rng: random.Random) -> dict[str, str]:
    """What a student of the better or the weaker half writes, exercise by exercise."""
    module, made = import_module(f"tests.answers.lab{LAB[:2]}"), {}
    for name, own in solutions(LAB).items():
        draw = rng.random()
        right, wrong = len(module.RIGHT[name]), len(module.WRONG[name])
        if STUDENTS.index(student) < 12 and draw < 0.9:
            made[name] = own if draw < 0.2 else written_out(name, "RIGHT", rng.randrange(right))
        elif draw < 0.4:
            made[name] = written_out(name, "RIGHT", rng.randrange(right))
        elif draw < 0.85:
            made[name] = written_out(name, "WRONG", rng.randrange(wrong))
    return made


def content(student: str) -> bytes:
    rng = random.Random(student)
    made = cells(student, rng)
    if student in ("erna", "hedy", "tim"):
        return encode(blank(LAB))
    if student == "vint":
        return encode(blank(LAB))[:4000]  # an upload that was cut off
    if student == "fran":
        made["stamp"] = "def stamp(images, patch):\n    while True:\n        images = images + 0"
    if student == "john":
        made["poison"] = "def poison(images, labels, chosen, trigger, target)\n    return images, labels"
    if student == "lise":
        made["stamp"] = "import os\n\n\ndef stamp(images, patch):\n    os._exit(1)"
    if student == "ivo":
        made["stamp"] = QUIRKY
    if student == "jana":  # ivo's, with other names
        made["stamp"] = QUIRKY.replace("canvas", "out").replace("rows_from", "y0").replace("columns_from", "x0")
        made["stamp"] = made["stamp"].replace("row", "y").replace("column", "x")
    return submission(LAB, made)


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for student in STUDENTS:
        write(folder, student, LAB, content(student))
    print(f"{len(STUDENTS)} submissions of {LAB} in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
