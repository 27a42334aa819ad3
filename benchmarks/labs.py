"""Seconds that each solved lab takes from a cold cache, notebook start-up included.

python benchmarks/labs.py [--labs 00 01 02 05] [--save]
"""

import os
import tempfile
import time
from pathlib import Path

import nbformat
from card import arguments, card
from nbclient import NotebookClient

LABS = Path(__file__).parent.parent / "labs"


def main():
    options = arguments(__doc__, labs=[path.name[:2] for path in sorted(LABS.glob("[0-9][0-9]_*.ipynb"))])
    for number in options.labs:
        path, seconds = next(LABS.glob(f"{number}_*.ipynb")), []
        for _ in options.seeds:
            os.environ["LABKIT_CACHE"] = tempfile.mkdtemp()
            notebook = nbformat.read(path, as_version=4)
            start = time.perf_counter()
            NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
            seconds.append(time.perf_counter() - start)
        shared = {
            "seeds": options.seeds,
            "save": options.save,
            "recipe": path.name,
            "n": "cold cache, kernel start included",
        }
        card(f"lab {number}, time", seconds, "s", bar="<= 60", **shared)


main()
