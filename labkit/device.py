"""Which device does the work, and what does it do well?

    print(pick_device())     # cpu in bfloat16, channels_last: has fast bfloat16 instructions (2 threads)

`bfloat16` (8 bits of mantissa instead of 24) and `channels_last` (colour values of one pixel side by side) make
convolutions several times faster on chips that have instructions for them, and slower on chips that emulate them. So
we ask the chip instead of assuming. Weights, loss and results stay float32 everywhere: only convolutions and matrix
products inside the network run in bfloat16 (torch's autocast).

Agreement: with the same weights, CPU and GPU give the same probabilities within 1e-3 in float32 and 3e-2 in bfloat16
(`tests/test_device.py`). Lab 00 teaches this page.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import time
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

CHOICES = "cpu, cuda, cuda:1, mps, each with ',fp32' or ',bf16' after it if you like"


class Device(str):
    """A device name that torch accepts anywhere (`model.to(device)`), with what we know about the device.

    dtype: what convolutions run in, torch.float32 or torch.bfloat16. channels_last: whether that memory layout pays
    here. reason: why this was chosen. `print` shows all of it.
    """

    dtype: torch.dtype
    channels_last: bool
    reason: str

    def __new__(cls, name: str, dtype: torch.dtype, channels_last: bool, reason: str):
        self = super().__new__(cls, name)
        self.dtype, self.channels_last, self.reason = dtype, channels_last, reason
        return self

    @property
    def name(self) -> str:
        return str.__str__(self)

    @property
    def type(self) -> str:
        return self.name.split(":")[0]

    def __str__(self) -> str:
        layout = ", channels_last" if self.channels_last else ""
        return f"{self.name} in {str(self.dtype).removeprefix('torch.')}{layout}: {self.reason}"

    __repr__ = __str__

    def __reduce__(self):
        return Device, (self.name, self.dtype, self.channels_last, self.reason)

    def autocast(self):
        """A context in which convolutions and matrix products run in `dtype`."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.type, self.dtype)

    def layout(self, x: Tensor) -> Tensor:
        """The image batch (N, C, H, W) on this device, in the memory layout that the device likes."""
        return x.to(self.name, memory_format=self._memory_format, non_blocking=True)

    def place(self, model: nn.Module) -> nn.Module:
        """The model itself, moved to this device and into the memory layout that the device likes."""
        model.to(self.name)
        return model.to(memory_format=self._memory_format)

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


def pick_device() -> Device:
    """The device to use: $LABKIT_DEVICE if set, else CUDA, MPS (Apple), CPU, in this order.

    Raises ValueError for a name that torch does not know or that this machine does not have. Lab 00.
    """
    wish = os.environ.get("LABKIT_DEVICE", "").strip().lower()
    name, _, number_format = (part.strip() for part in wish.partition(","))
    if name.split(":")[0] not in ("", "cpu", "cuda", "mps") or number_format not in ("", "fp32", "bf16"):
        raise ValueError(f"LABKIT_DEVICE: expected {CHOICES}; got {wish!r}. Unset it to let labkit choose.")
    name = name or ("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    device = describe_device(name)
    if wish:
        device.reason = f"LABKIT_DEVICE={wish} asked for it; " + device.reason
    if number_format:
        device.dtype = torch.float32 if number_format == "fp32" else torch.bfloat16
    return device


def describe_device(name: str | torch.device) -> Device:
    """What we know about one device, by name: `describe_device(next(model.parameters()).device)`."""
    kind, _, index = str(name).partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count()
        if int(index or 0) >= count:
            raise ValueError(f"device {name!r}: this machine has {count} CUDA device(s). Set LABKIT_DEVICE=cpu.")
        chip = torch.cuda.get_device_properties(int(index or 0))
        fast = chip.major >= 8  # Ampere was the first with bfloat16 tensor cores
        why = f"{chip.name}, {'has' if fast else 'has no'} bfloat16 tensor cores"
        return Device(str(name), torch.bfloat16 if fast else torch.float32, True, why)
    if kind == "mps":
        if not _has_mps():
            raise ValueError("device 'mps': this machine has no Apple GPU that torch can use. Set LABKIT_DEVICE=cpu.")
        return Device(str(name), torch.float32, False, "Apple GPU; bfloat16 gains little there")
    fast = _cpu_has_bf16()
    why = f"{'has' if fast else 'has no'} fast bfloat16 instructions ({torch.get_num_threads()} threads)"
    return Device("cpu", torch.bfloat16 if fast else torch.float32, True, why)


def device_of(model: nn.Module) -> Device:
    """The device that a model's weights are on (no weights: the CPU), in the number format $LABKIT_DEVICE asks for."""
    tensor = next((t for t in [*model.parameters(), *model.buffers()]), torch.empty(0))
    device, picked = describe_device(tensor.device), pick_device()
    if device.type == picked.type:
        device.dtype = picked.dtype
    return device


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


@cache
def _cpu_has_bf16() -> bool:
    """True where the CPU multiplies bfloat16 faster than float32: AMX (Linux tells), or AMD's AVX512-BF16.

    Intel's AVX512-BF16 alone, as on a virtual machine that hides AMX, is slower than float32. On one such Xeon a
    training step of `small_cnn` took 1.4 to 1.7 times as long, a product of large matrices 1.7 times.
    """
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        words = set(cpuinfo.read_text(errors="replace").split())
        return "amx_bf16" in words or {"avx512_bf16", "AuthenticAMD"} <= words
    amd = "AuthenticAMD" in platform.processor()  # Windows says so
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported" if amd else "_is_amx_tile_supported", None)
    return bool(probe and probe())


def keep_freed_memory() -> bool:
    """Ask glibc to keep big freed blocks instead of handing them back to the system; True if it agreed.

    A network's activations are large and short-lived. By default every one of them costs fresh pages from the system;
    keeping them makes CPU forward passes about twice as fast at large batches. Elsewhere than on Linux: no effect.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc" or os.environ.get("LABKIT_MALLOC") == "0":
        return False
    m_mmap_max, m_trim_threshold, m_top_pad = -4, -1, -2
    libc = ctypes.CDLL(None)
    settings = ((m_mmap_max, 0), (m_trim_threshold, 1 << 30), (m_top_pad, 64 << 20))
    return all(libc.mallopt(*setting) for setting in settings)


def generator(seed: int) -> torch.Generator:
    """A CPU random generator. Random choices are drawn on the CPU, so that they are the same on every device."""
    return torch.Generator().manual_seed(seed)


class Timer:
    """`with Timer() as t: ...` then t.seconds. Waits for the accelerator, which works on after Python has moved on."""

    seconds = 0.0

    def __enter__(self):
        self._wait()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_):
        self._wait()
        self.seconds = time.perf_counter() - self._start

    @staticmethod
    def _wait():
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        elif _has_mps():
            torch.mps.synchronize()
