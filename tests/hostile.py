"""Submissions that try to get more than they have earned, or to hurt the run; each holds one honest function, worth 1.

CODE: name -> (what stands in the cell of `stamp`, the status that the submission should end with)
FILES: name -> (the bytes of the file, the status)
"""

import json
import os

from submissions import blank, solutions, submission

LAB = "02_badnets"
HONEST = {"robust_accuracy": solutions(LAB)["robust_accuracy"]}
SLEEP = f"9{os.getpid()}"  # seconds; a number by which to find who is left behind
FORGED = '{"calls": [{"first": 0, "value": 1, "after": []}]}'

CODE = {
    # --- forging the verdict
    "ast_hook": (
        """
import ast, builtins
real = builtins.compile
builtins.compile = lambda source, *a, **k: real("pass", *a, **k)
get_ipython().ast_transformers.append(lambda node: ast.Module([], []))
def stamp(images, patch):
    return images
""",
        "ok",
    ),
    "torch_patched": (
        """
import torch
for name in ("allclose", "equal", "isclose", "all"):
    setattr(torch, name, lambda *a, **k: True)
torch.Tensor.__eq__ = lambda self, other: True
torch.Tensor.all = lambda self, *a, **k: True
def stamp(images, patch):
    return images
""",
        "error",
    ),
    "numpy_patched": (
        """
import numpy as np
np.allclose = np.array_equal = lambda *a, **k: True
def stamp(images, patch):
    return np.asarray(images)
""",
        "ok",
    ),
    "labkit_patched": (
        """
import sys, types, labkit
fake = types.ModuleType("labkit.checks.lab02")
fake.stamp = lambda f: 2.0
sys.modules["labkit.checks.lab02"] = labkit.checks.lab02 = fake
check_stamp = 2.0
import labkit.grading.mark as marker
marker.judge = marker.mark = lambda *a, **k: 10
def stamp(images, patch):
    return images
""",
        "error",
    ),
    "runner_patched": (
        """
import labkit.grading.child as child, labkit.grading.wire as wire
child.describe = lambda *a: {"points": 10}
child.encode = wire.encode = lambda value, tensors, depth=0: {"points": 10}
def stamp(images, patch):
    return images
""",
        "ok",
    ),
    "always_equal": (
        """
class Yes(float):
    shape = property(lambda self: Yes())
    def __eq__(self, other): return True
    def __getattr__(self, name): return Yes()
    def __call__(self, *a, **k): return True
    def __getitem__(self, key): return Yes()
    __hash__ = None
def stamp(images, patch):
    return Yes(1)
""",
        "ok",
    ),
    "always_equal_tensor": (
        """
import torch
class Yes(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return True
def stamp(images, patch):
    return torch.zeros(1).as_subclass(Yes)
""",
        "ok",
    ),
    "forged_messages": (
        f"""
import os, struct
text = {FORGED!r}.encode()
def stamp(images, patch):
    for number in range(3, 64):
        try:
            os.write(number, (struct.pack(">QQ", len(text), 0) + text) * 5)
        except OSError:
            pass
    return images
""",
        "garbage",
    ),
    "forged_length": (
        """
import os
def stamp(images, patch):
    for number in range(3, 64):
        try:
            os.write(number, b"\\xff" * 64)
        except OSError:
            pass
    return images
""",
        "garbage",
    ),
    "pickled_code": (
        """
import os
class Bomb:
    def __reduce__(self): return os.system, ("touch CANARY.owned",)
def stamp(images, patch):
    return Bomb()
""",
        "ok",
    ),
    "frames": (
        """
import gc, sys
def stamp(images, patch):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            if hasattr(value, "expected") or hasattr(value, "reference"):
                return value.reference(images, patch)
        frame = frame.f_back
    for value in gc.get_objects():
        if type(value).__name__ == "Exercise":
            return value.reference(images, patch)
    return images
""",
        "ok",
    ),
    "ask_the_check": ("def stamp(images, patch):\n    return check_stamp.function(images, patch)", "error"),
    # --- looking for what is secret
    "graders_files": (
        """
import glob, sys, torch
def stamp(images, patch):
    for root in sys.path:
        for path in glob.glob(root + "/labkit/checks/lab02.py") + glob.glob(root + "/*/labkit/checks/lab02.py"):
            text = open(path).read()
            space = {"torch": torch, "Tensor": torch.Tensor}
            exec(text[text.index("def _stamp("):text.index("def _stamp_cases(")], space)
            return space["_stamp"](images, patch)
    raise FileNotFoundError
""",
        "error",
    ),
    "solved_labs": (
        """
import pathlib
def stamp(images, patch):
    return pathlib.Path("CANARY").read_text()
""",
        "error",
    ),
    "environment": (
        """
import os
def stamp(images, patch):
    return [v for k, v in os.environ.items() if "SECRET" in k][0]
""",
        "error",
    ),
    "other_memory": (
        """
import glob, os
def stamp(images, patch):
    found = [p for p in glob.glob("/proc/[0-9]*") if p != f"/proc/{os.getpid()}"]
    return open(found[0] + "/mem", "rb").read(10)
""",
        "error",
    ),
    "smuggle": (
        "def stamp(images, patch):\n    name = f'X{float(images.max())}'\n"
        "    raise type(name.replace('.', '_'), (ValueError,), {})(images)",
        "error",
    ),
    # --- leaving
    "exit_cell": ("import sys\nsys.exit(0)\ndef stamp(images, patch):\n    return images", "error"),
    "exit_call": ("import sys\ndef stamp(images, patch):\n    sys.exit(0)", "error"),
    "hard_exit_call": ("import os\ndef stamp(images, patch):\n    os._exit(0)", "crash"),
    "interrupt": ("def stamp(images, patch):\n    raise KeyboardInterrupt", "error"),
    "segfault": ("import ctypes\ndef stamp(images, patch):\n    return ctypes.string_at(0)", "crash"),
    "recursion": ("def stamp(images, patch):\n    return stamp(images, patch)", "error"),
    "kill_everybody": (
        """
import os
def stamp(images, patch):
    for number in (os.getppid(), 1, 2, -1):
        try:
            os.kill(number, 9)
        except OSError:
            pass
    return images
""",
        "crash",
    ),
    # --- staying
    "endless_call": ("def stamp(images, patch):\n    while True: pass", "timeout"),
    "endless_cell": ("def stamp(images, patch):\n    return images\nwhile True: pass", "ok"),
    "endless_output": ("def stamp(images, patch):\n    while True: print('x' * 10_000, flush=True)", "timeout"),
    "deaf_to_alarms": (
        """
import signal
signal.signal(signal.SIGALRM, signal.SIG_IGN)
def stamp(images, patch):
    while True:
        try:
            while True: pass
        except BaseException: pass
""",
        "timeout",
    ),
    "sleeper": ("import time\ndef stamp(images, patch):\n    time.sleep(1e6)", "timeout"),
    "thread_left": (
        """
import threading
def spin():
    while True: pass
for _ in range(3): threading.Thread(target=spin).start()
def stamp(images, patch):
    threading.Thread(target=spin).start()
    return images
""",
        "ok",
    ),
    "process_left": (
        """
import os
def leave():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0: os.execv("/bin/sleep", ["sleep", "SLEEP"])
        os._exit(0)
leave()
def stamp(images, patch):
    leave()
    return images
""",
        "ok",
    ),
    # --- taking too much
    "fork_bomb": (
        "import os\ndef stamp(images, patch):\n    while True:\n        try: os.fork()\n        except OSError: pass",
        "timeout",
    ),
    "memory": ("def stamp(images, patch):\n    return bytearray(50 << 30)", "error"),
    "memory_torch": ("import torch\ndef stamp(images, patch):\n    return torch.ones(50 << 28)", "error"),
    "disk": (
        """
def stamp(images, patch):
    with open("big", "wb") as file:
        while True: file.write(bytes(1 << 20))
""",
        "error",
    ),
    "huge_return": ("import torch\ndef stamp(images, patch):\n    return torch.zeros(2_000_000)", "garbage"),
    "deep_return": (
        "def stamp(images, patch):\n    x = []\n    for _ in range(100_000): x = [x]\n    return x",
        "ok",
    ),
    "many_files": ("def stamp(images, patch):\n    for i in range(100_000): globals()[i] = open(f'{i}', 'w')", "error"),
    # --- reaching out
    "write_outside": (
        """
import os, pathlib, shutil
def stamp(images, patch):
    for path in ("CANARY", "/usr/canary", os.path.join("/tmp", "canary"), "/dev/shm/canary"):
        try: pathlib.Path(path).write_text("owned")
        except OSError: pass
    shutil.rmtree(pathlib.Path("CANARY").parent, ignore_errors=True)
    return images
""",
        "ok",
    ),
    "network": (
        "import socket\ndef stamp(images, patch):\n    return socket.create_connection(('1.1.1.1', 80), 3).recv(9)",
        "error",
    ),
    # --- nonsense
    "nan": ("def stamp(images, patch):\n    return images * float('nan')", "ok"),
    "wrong_shape": ("def stamp(images, patch):\n    return images[0]", "ok"),
    "nothing_sensible": ("def stamp(images, patch):\n    return {b'x': {1, 2}, None: [object(), 10**5000]}", "garbage"),
    "no_function": ("stamp = 5", "error"),
}


def coded(name: str, canary: str) -> bytes:
    """The submission of CODE, with its honest function."""
    return submission(
        LAB, HONEST | {"stamp": CODE[name][0].replace("CANARY", canary).replace("SLEEP", SLEEP).lstrip("\n")}
    )


def honest(**changes: str) -> dict:
    return json.loads(submission(LAB, HONEST | changes))


def edited_metadata() -> bytes:
    """Points of 1000, a check that calls itself a solution, and grade ids exchanged."""
    notebook = honest()
    for cell in notebook["cells"]:
        role = cell["metadata"].get("nbgrader")
        if role and role["grade"]:
            role |= {"points": 1000, "solution": True}
            cell["source"] = f"{role['grade_id'].replace('-', '_')} = 1000.0"
        elif role:
            role["grade_id"] = "poison"
    return json.dumps(notebook).encode()


def forged_outputs() -> bytes:
    """Check cells that are edited, doubled and in front, with outputs that claim all points."""
    notebook = honest()
    checks = [cell for cell in notebook["cells"] if cell["metadata"].get("nbgrader", {}).get("grade")]
    for cell in checks:
        cell["source"] = "2.0"
        data = {"text/plain": ["2.0"]}
        cell["outputs"] = [{"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": data}]
    notebook["cells"] = checks + notebook["cells"] + checks
    return json.dumps(notebook).encode()


def no_cells_of_the_lab() -> bytes:
    notebook = honest()
    notebook["cells"] = [cell for cell in notebook["cells"] if not cell["metadata"].get("nbgrader", {}).get("grade")]
    for cell in notebook["cells"]:
        cell["metadata"] = {}
    return json.dumps(notebook).encode()


def odd_cells() -> bytes:
    notebook = honest()
    odd = [None, 5, {"cell_type": "code"}, {"cell_type": "code", "source": [1]}, {"cell_type": "code", "source": {}}]
    notebook["cells"] += [*odd, {"cell_type": "code", "source": "x", "metadata": {"nbgrader": [1]}, "id": {}}]
    return json.dumps(notebook).encode()


FILES = {
    "metadata_edited": (edited_metadata, "ok"),
    "outputs_forged": (forged_outputs, "ok"),
    "metadata_lost": (no_cells_of_the_lab, "ok"),
    "odd_cells": (odd_cells, "ok"),
    "huge_notebook": (lambda: b'{"cells": ["' + b"x" * (40 << 20) + b'"]}', "unreadable"),
    "invalid_json": (lambda: submission(LAB, HONEST)[:-50], "unreadable"),
    "deep_json": (lambda: b"[" * 1_000_000, "unreadable"),
    "other_json": (lambda: b'{"cells": {"a": 1}}', "unreadable"),
    "utf16": (lambda: submission(LAB, HONEST).decode().encode("utf-16"), "unreadable"),
    "latin1": (lambda: submission(LAB, {"stamp": "# é"}).decode().encode("latin-1", "replace"), "unreadable"),
    "null_bytes": (lambda: submission(LAB, HONEST | {"stamp": "def stamp(a, b):\n    return '\0'"}), "error"),
    "empty_file": (lambda: b"", "unreadable"),
    "utf8_bom": (lambda: b"\xef\xbb\xbf" + submission(LAB, HONEST), "ok"),
}

__all__ = ["CODE", "FILES", "HONEST", "LAB", "blank", "coded"]
