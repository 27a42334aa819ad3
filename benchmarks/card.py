"""One published number, with everything needed to believe it: printed as a line, kept as `results/<name>.json`.

`once` keeps what a seed came to in the cache, so that a run that was killed goes on with the next seed.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from labkit import pick_device
from labkit.cache import cache_folder, source_hash, written_whole
from labkit.metrics import Report

RESULTS = Path(__file__).parent.parent / "results"


def arguments(doc: str | None, **defaults) -> argparse.Namespace:
    """The options that all benchmark scripts share; `defaults` adds lists such as data=["signs"]."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--save", action="store_true", help="keep the figures as cards in results/")
    parser.add_argument("--busy", action="store_true", help="other work runs beside: times are neither shown nor kept")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", nargs="+", default=value)
    return parser.parse_args()


def once(work: Callable[[], Any], *what) -> Any:
    """What `work()` returns, as JSON gives it back; from the cache where the same was measured before.

    The same: `what`, the script, labkit's source, the machine. LABKIT_CACHE: another folder measures anew.
    """
    script = Path(sys.argv[0])
    key = repr([script.name, script.read_bytes(), source_hash("."), machine(), what])
    path = cache_folder("benchmarks") / f"{script.stem}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    if path.is_file():
        print(f"  {', '.join(map(str, what))}: measured before", flush=True)
        return json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps(work())
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")
    return json.loads(text)


def percent(report: Report) -> dict[str, float]:
    """CA, ASR and RA in %; CA alone where nothing was triggered."""
    shares = {"CA": report.clean_accuracy, "ASR": report.attack_success_rate, "RA": report.robust_accuracy}
    return {what: 100 * share for what, share in shares.items() if share is not None}


def report_cards(title: str, reports: list[Report], bars: dict[str, str], **shared):
    """Three cards, CA, ASR and RA, of the reports of several seeds."""
    stamped = f"{reports[0].n_triggered:,} triggered test images"
    n = {"CA": f"{reports[0].n_clean:,} clean test images", "ASR": stamped, "RA": stamped}
    rows = [percent(report) for report in reports]
    for what in rows[0]:
        card(f"{title}, {what}", [row[what] for row in rows], "%", n=n[what], bar=bars.get(what, "-"), **shared)


def card(name: str, values: list[float], unit: str, *, seeds: list[int], n: str, recipe: str, bar: str, save: bool):
    """Prints mean, smallest and largest of `values` (one for each seed or run); keeps them if asked to."""
    if unit == "s" and "--busy" in sys.argv:
        return
    mean = statistics.fmean(values)
    low, high = min(values), max(values)
    print(f"{name:44} {mean:9.3f} {unit:8} ({low:.3f} to {high:.3f}; {len(values)} runs; {n}; bar {bar})", flush=True)
    if not save:
        return
    command = " ".join(["python", *(os.path.relpath(a) if a.endswith(".py") else a for a in sys.argv)])
    record = {
        "name": name,
        "value": round(mean, 4),
        "unit": unit,
        "spread": [round(low, 4), round(high, 4)],
        "values": [round(v, 4) for v in values],
        "n": n,
        "seeds": seeds,
        "bar": bar,
        "machine": machine(),
        "recipe": recipe,
        "command": command,
        "date": datetime.date.today().isoformat(),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{'_'.join(re.findall(r'[a-z0-9.-]+', name.lower()))}.json"
    with written_whole(path) as part:
        part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def machine() -> str:
    """The processor, its cores, the device that labkit picks, and torch's version."""
    chip = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                chip = line.split(":", 1)[1].strip()
                break
    except OSError:
        if platform.system() == "Darwin":
            chip = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True).stdout
    device = pick_device()
    dtype = str(device.dtype).removeprefix("torch.")
    return f"{chip.strip()}, {os.cpu_count()} cores; {device.name} in {dtype}; torch {torch.__version__.split('+')[0]}"
