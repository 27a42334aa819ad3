"""Several at a time: the same results, in order, and nothing of torch's settings left changed."""

import importlib
import threading

import pytest
import torch

from labkit import TrainConfig, at_once, load, train
from labkit.device import Device, describe_device
from labkit.models import build

module = importlib.import_module("labkit.at_once")  # `labkit.at_once` itself is the function


@pytest.fixture
def two_threads():
    """torch with two threads, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(module, "pick_device", lambda: describe_device("cpu"))


def weights(model):
    return torch.cat([p.detach().cpu().flatten() for p in model.parameters()])


def trained(data, seed):
    return weights(train("tiny_cnn", data, config=TrainConfig(epochs=1), seed=seed, progress=False))


def test_two_trainings_at_once_are_those_of_one_thread_bit_for_bit(two_threads, on_a_cpu):
    tiny = load("signs").train[:256]
    together = at_once(lambda seed: trained(tiny, seed), [0, 1])
    torch.set_num_threads(1)
    for seed in (0, 1):
        assert torch.equal(together[seed], trained(tiny, seed))


def test_they_run_at_the_same_time_with_a_thread_each(two_threads, on_a_cpu):
    met = threading.Barrier(2, timeout=30)  # a sequence would wait here for ever

    def meet(_):
        met.wait()
        return torch.get_num_threads()

    assert at_once(meet, "ab") == [1, 1]
    assert torch.get_num_threads() == 2


def test_threads_that_come_later_have_as_many_as_before(two_threads, on_a_cpu):
    at_once(str, "ab")
    said = []
    later = threading.Thread(target=lambda: said.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert said == [2]


def test_results_are_in_the_order_of_the_items(two_threads, on_a_cpu):
    second_is_done = threading.Event()

    def slow_first(item):
        if item == 0:
            assert second_is_done.wait(30)
        else:
            second_is_done.set()
        return item

    assert at_once(slow_first, iter([0, 1])) == [0, 1]
    assert at_once(slow_first, []) == []


def test_an_error_is_raised_at_once_and_what_waits_never_begins(two_threads, on_a_cpu):
    begun, ended, other_is_busy, caller_knows = [], [], threading.Event(), threading.Event()

    def first_fails(item):
        begun.append(item)
        if item == 0:
            assert other_is_busy.wait(30)
            raise ValueError("item 0")
        other_is_busy.set()
        caller_knows.wait(30)
        ended.append(item)

    with pytest.raises(ValueError, match="item 0"):
        at_once(first_fails, range(500))
    assert not ended  # what was running runs on, and nobody waited for it
    assert torch.get_num_threads() == 2
    caller_knows.set()
    for worker in [thread for thread in threading.enumerate() if thread.name.startswith("at_once")]:
        worker.join(30)
    assert len(begun) < 10


@pytest.mark.parametrize("device, threads", [("cuda", 2), ("mps", 2), ("cpu", 1)])
def test_elsewhere_it_is_one_after_the_other_in_the_caller_s_thread(monkeypatch, two_threads, device, threads):
    monkeypatch.setattr(module, "pick_device", lambda: Device(device, torch.float32, False, "for a test"))
    torch.set_num_threads(threads)
    assert at_once(lambda _: threading.current_thread(), range(3)) == [threading.current_thread()] * 3
    assert torch.get_num_threads() == threads


def test_fresh_weights_depend_on_the_seed_alone_though_threads_draw_them_at_once(two_threads, on_a_cpu):
    seeds, before = list(range(12)) * 4, torch.get_rng_state()
    torch.set_num_threads(4)
    drawn = at_once(lambda seed: weights(build("small_cnn", 3, 5, seed)), seeds)
    for seed, found in zip(seeds, drawn, strict=True):
        assert torch.equal(found, weights(build("small_cnn", 3, 5, seed)))
    assert torch.equal(torch.get_rng_state(), before)
