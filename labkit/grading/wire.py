"""What crosses the border between the grader and a student's process, and in which form?

    pack(message) -> bytes      unpack(bytes) -> message      JSON, with the tensors in safetensors behind it
    encode(value, tensors)      decode(form, tensors)         a value as JSON, its tensors put aside

Nothing is pickled, so nothing that a student's process sends can run here: numbers, strings, tensors, and tuples, lists
and dicts of these come back as such, anything else as an `Opaque`, which equals nothing. In the other direction small
functions and modules may travel too, as source text; only the student's process ever runs it.
"""

from __future__ import annotations

import functools
import inspect
import json
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from labkit.grading.needed import pick, statements

HEAD = struct.Struct(">QQ")  # length of the JSON, length of the tensors
DTYPES = {
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.int16,
    torch.int32, torch.int64,
}  # fmt: skip
DEPTH = 20  # of nested tuples, lists and dicts


class Broken(Exception):
    """What came is no message: cut off, too long, no JSON, no tensors."""


@dataclass(frozen=True, eq=False)
class Opaque:
    """Something that a student's function returned and that is no data; equal to nothing but itself."""

    kind: str


# --- bytes ------------------------------------------------------------------------------------------------------------


def pack(message: Any, tensors: list[Tensor] | None = None) -> bytes:
    text = json.dumps(message).encode()
    blob = safetensors.torch.save({str(i): t for i, t in enumerate(tensors)}) if tensors else b""
    return HEAD.pack(len(text), len(blob)) + text + blob


def unpack(text: bytes, blob: bytes) -> tuple[Any, list[Tensor]]:
    try:
        named = safetensors.torch.load(blob) if blob else {}
        return json.loads(text), [named[str(i)] for i in range(len(named))]
    except Exception as error:  # whatever bytes a student's process makes up
        raise Broken(type(error).__name__) from None


def send(line: socket.socket, message: Any, tensors: list[Tensor] | None = None) -> None:
    line.sendall(pack(message, tensors))


def receive(line: socket.socket, limit: int, seconds: float) -> tuple[Any, list[Tensor]]:
    """The next message. Broken if the other side hangs up or sends more than `limit` bytes, TimeoutError when late."""
    deadline = time.monotonic() + seconds
    text_size, blob_size = HEAD.unpack(exactly(line, HEAD.size, deadline))
    if text_size + blob_size > limit:
        raise Broken("too long")
    return unpack(exactly(line, text_size, deadline), exactly(line, blob_size, deadline))


def exactly(line: socket.socket, size: int, deadline: float) -> bytes:
    parts, missing = [], size
    while missing:
        line.settimeout(max(1e-3, deadline - time.monotonic()))
        try:
            part = line.recv(min(missing, 1 << 20))
        except TimeoutError:
            raise
        except OSError as error:
            raise Broken(type(error).__name__) from None
        if not part:
            raise Broken("hung up")
        parts.append(part)
        missing -= len(part)
        if missing and time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(parts)


# --- values -----------------------------------------------------------------------------------------------------------


def encode(value: Any, tensors: list[Tensor], depth: int = DEPTH) -> Any:
    """The value as JSON; its tensors are appended to `tensors` and referred to by number."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.generic) or isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            return {"opaque": type(value).__name__[:40]}
        value = torch.from_numpy(np.array(value))
    if isinstance(value, Tensor):
        if value.dtype not in DTYPES or value.layout != torch.strided:
            return {"opaque": "Tensor"}
        tensors.append(value.detach().cpu().contiguous().clone())
        return {"tensor": len(tensors) - 1, "grad": value.requires_grad and value.is_leaf}
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 63):
        return value
    if value is Ellipsis:
        return {"ellipsis": True}
    if depth and isinstance(value, (list, tuple)):
        inside = [encode(one, tensors, depth - 1) for one in value]
        return inside if isinstance(value, list) else {"tuple": inside}
    if depth and isinstance(value, dict):
        return {"dict": [[encode(side, tensors, depth - 1) for side in pair] for pair in value.items()]}
    if isinstance(value, nn.Module):
        weights = encode(dict(value.state_dict()), tensors, depth - 1)
        return {"module": expression(value), "weights": weights} | program(value)
    return {"opaque": type(value).__name__[:40]} | program(value)


def decode(form: Any, tensors: list[Tensor], depth: int = DEPTH) -> Any:
    """The value again. Modules become the dict of their weights, functions and other objects an `Opaque`."""
    if depth < 0:
        raise Broken("too deep")
    if isinstance(form, list):
        return [decode(one, tensors, depth - 1) for one in form]
    if not isinstance(form, dict):
        return form
    (kind, content), *_ = form.items()
    try:
        if kind == "tensor":
            return tensors[int(content)]
        if kind == "tuple":
            return tuple(decode(one, tensors, depth - 1) for one in content)
        if kind == "dict":
            return {key: decode(one, tensors, depth - 1) for key, one in content}
        if kind == "module":
            return decode(form["weights"], tensors, depth - 1)
    except Broken:
        raise
    except Exception as error:
        raise Broken(type(error).__name__) from None
    return Ellipsis if kind == "ellipsis" else Opaque(str(content)[:40])


def build(form: Any, tensors: list[Tensor]) -> Any:
    """As `decode`, with modules and functions made from their source: for the student's process only."""
    if isinstance(form, list):
        return [build(one, tensors) for one in form]
    if not isinstance(form, dict):
        return form
    if "tensor" in form:
        return tensors[form["tensor"]].clone().requires_grad_(form["grad"])
    if "tuple" in form:
        return tuple(build(one, tensors) for one in form["tuple"])
    if "dict" in form:
        return {key: build(one, tensors) for key, one in form["dict"]}
    space: dict[str, Any] = {"nn": nn, "torch": torch}
    exec("\n".join(form.get("code", [])), space)
    if "module" in form:
        module = eval(form["module"], space)
        module.load_state_dict(decode(form["weights"], tensors))
        return module
    return eval(form["name"], space)


def expression(module: nn.Module) -> str:
    """Python that makes a module of this shape: torch's own print themselves so, others take no arguments here."""
    if isinstance(module, nn.Sequential):
        return f"nn.Sequential({', '.join(expression(part) for part in module)})"
    torchs_own = type(module).__module__.startswith("torch.nn")
    return f"nn.{module!r}" if torchs_own else f"{type(module).__name__}()"


def program(value: Any) -> dict[str, Any]:
    """The source of a function, or of a module's class, with what it needs of its file; {} for what is not labkit's."""
    made = value if inspect.isfunction(value) else type(value)
    home = str(getattr(made, "__module__", ""))
    return source_of(home, made.__name__) if home.startswith("labkit.checks.") and home in sys.modules else {}


@functools.cache
def source_of(home: str, name: str) -> dict[str, Any]:
    return {"code": pick([name], [statements([inspect.getsource(sys.modules[home])])]), "name": name}
