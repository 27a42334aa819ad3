"""pick_device: what it chooses, how it is overridden, and that number formats and devices agree."""

import pytest
import torch

from labkit import device as devices
from labkit import pick_device, predict
from labkit.device import Timer, describe_device, device_of
from labkit.models import build
from tests.tiny import linear_model


@pytest.fixture(autouse=True)
def no_wish(monkeypatch):
    monkeypatch.delenv("LABKIT_DEVICE", raising=False)


def test_torch_takes_it_as_a_device_and_it_explains_itself():
    device = pick_device()
    assert torch.zeros(1).to(device).device.type == device.type
    linear_model().to(device)
    assert torch.device(device).type == device.type
    assert device.reason in str(device) and device.name in str(device)


def test_the_environment_variable_decides(monkeypatch):
    monkeypatch.setenv("LABKIT_DEVICE", "cpu,fp32")
    device = pick_device()
    assert device.name == "cpu" and device.dtype == torch.float32 and "LABKIT_DEVICE=cpu,fp32" in str(device)
    monkeypatch.setenv("LABKIT_DEVICE", "cpu,bf16")
    assert pick_device().dtype == torch.bfloat16 == device_of(linear_model()).dtype


@pytest.mark.parametrize("wish", ["gpu", "cpu,int8", "cuda0"])
def test_an_unknown_wish_is_named(monkeypatch, wish):
    monkeypatch.setenv("LABKIT_DEVICE", wish)
    with pytest.raises(ValueError, match=f"LABKIT_DEVICE: expected .*got '{wish}'"):
        pick_device()


def test_a_device_that_is_not_there_is_named():
    count = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"this machine has {count} CUDA device"):
        describe_device(f"cuda:{count}")


@pytest.mark.parametrize(
    ("vendor", "words", "dtype"),
    [
        ("AuthenticAMD", "avx2", torch.float32),
        ("AuthenticAMD", "avx512_bf16", torch.bfloat16),
        ("GenuineIntel", "avx512_bf16", torch.float32),  # where it is slower than float32
        ("GenuineIntel", "avx512_bf16 amx_bf16", torch.bfloat16),
    ],
)
def test_the_cpu_is_asked_not_assumed(monkeypatch, tmp_path, vendor, words, dtype):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"vendor_id : {vendor}\nflags : fpu sse2 {words}\n")
    monkeypatch.setattr(devices, "Path", lambda _: cpuinfo)
    monkeypatch.setattr(devices, "_cpu_has_bf16", devices._cpu_has_bf16.__wrapped__)  # it remembers its answer
    assert describe_device("cpu").dtype == dtype


def test_cuda_then_mps_then_cpu(monkeypatch):
    class Chip:
        major, name = 9, "a chip"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Chip)
    assert pick_device().name == "cuda" and pick_device().dtype == torch.bfloat16
    Chip.major = 7
    assert pick_device().dtype == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "_has_mps", lambda: True)
    assert pick_device().name == "mps"


def test_number_formats_agree(monkeypatch):
    model, images = build("small_cnn", 3, 10).eval(), torch.rand(64, 3, 32, 32)
    probs = {}
    for wish in ("cpu,fp32", "cpu,bf16"):
        monkeypatch.setenv("LABKIT_DEVICE", wish)
        probs[wish] = predict(model, images)
    assert (probs["cpu,fp32"] - probs["cpu,bf16"]).abs().max() < 3e-2
    assert not torch.equal(probs["cpu,fp32"], probs["cpu,bf16"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("number_format", "tolerance"), [("fp32", 1e-3), ("bf16", 3e-2)])
def test_cpu_and_gpu_agree(monkeypatch, number_format, tolerance):
    model, images = build("small_cnn", 3, 10).eval(), torch.rand(256, 3, 32, 32)
    monkeypatch.setenv("LABKIT_DEVICE", f"cpu,{number_format}")
    here = predict(model, images)
    monkeypatch.setenv("LABKIT_DEVICE", f"cuda,{number_format}")
    there = predict(model.to(pick_device()), images)
    assert (here - there).abs().max() < tolerance


def test_the_timer_counts_seconds():
    with Timer() as timer:
        torch.rand(100, 100) @ torch.rand(100, 100)
    assert 0 < timer.seconds < 10
