"""The victims' cache: trained once, read bit for bit, never trusted blindly, never half written, never a pickle."""

import json
import multiprocessing
import os
import stat
from dataclasses import replace

import pytest
import torch

from labkit import kept, train, trained_once, victim, victims
from labkit.attacks import BadNets, Blend, PruningAware
from labkit.train import TrainConfig
from tests.tiny import splits

QUICK = TrainConfig(epochs=2, batch_size=32)
ATTACK = BadNets(target=1, rate=0.1)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    return tmp_path / "victims"


def make(attack=ATTACK, seed=0, epochs=None, **options):
    trained = []
    made = victim(attack, splits(), seed=seed, config=QUICK, progress=False, callback=trained.append, **options)
    return made, bool(trained)


def same(a, b) -> bool:
    x, y = a.model.state_dict(), b.model.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) and a.report == b.report


def test_trained_once_then_read_bit_for_bit(home):
    (first, trained), (second, again) = make(), make()
    assert trained and not again and same(first, second)
    images = splits().test.images
    assert torch.equal(first.trigger(images), second.trigger(images)) and second.target == 1
    assert second.card == json.loads(json.dumps(first.card)) and not second.model.training


def test_the_card_can_be_read_and_names_what_determines_the_victim(home):
    make()
    record = json.loads(next(home.glob("*.json")).read_text())
    assert record["card"]["attack"] == "BadNets" and record["card"]["settings"]["rate"] == 0.1
    assert record["card"]["train"]["epochs"] == 2 and record["card"]["seed"] == 0
    assert set(record["report"]) >= {"clean_accuracy", "attack_success_rate", "robust_accuracy"}


@pytest.mark.parametrize("other", [{"attack": BadNets(1, rate=0.2)}, {"attack": Blend(1)}, {"seed": 1}])
def test_anything_else_is_another_victim(home, other):
    make()
    assert make(**other)[1]
    assert len(list(home.glob("*.safetensors"))) == 2


def test_other_data_code_or_number_format_is_another_victim(home, monkeypatch):
    make()
    monkeypatch.setattr(victims, "code_of", lambda attack: ("train.py",))
    assert make()[1]
    monkeypatch.setenv("LABKIT_DEVICE", "cpu,fp32")
    first = make()[1]
    monkeypatch.setenv("LABKIT_DEVICE", "cpu,bf16")
    assert first or make()[1]
    data = splits(strength=0.4)
    trained = []
    victim(ATTACK, data, config=QUICK, progress=False, callback=trained.append)
    assert trained


def damage_weights(home):
    path = next(home.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-8] + b"\0" * 7 + b"\1")


def cut_weights(home):
    path = next(home.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])


def lose_weights(home):
    next(home.glob("*.safetensors")).unlink()


def spoil_card(home):
    next(home.glob("*.json")).write_text('{"card":')


def foreign_card(home):
    path = next(home.glob("*.json"))
    record = json.loads(path.read_text())
    record["card"]["settings"]["rate"] = 0.9
    path.write_text(json.dumps(record))


def list_for_a_card(home):
    next(home.glob("*.json")).write_text("[1, 2]")


def binary_card(home):
    next(home.glob("*.json")).write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    "damage", [damage_weights, cut_weights, lose_weights, spoil_card, foreign_card, list_for_a_card, binary_card]
)
def test_a_damaged_or_foreign_file_is_trained_anew_with_a_warning(home, damage):
    first, _ = make()
    damage(home)
    with pytest.warns(UserWarning, match="is not usable .*; training it anew"):
        second, trained = make()
    assert trained and same(first, second)
    assert not make()[1]


def test_a_killed_run_leaves_nothing_that_a_later_run_trusts(home, monkeypatch):
    """The weights are there but the card, written last, is not."""

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(kept.json, "dumps", lambda *a, **k: killed() if k.get("indent") else json_dumps(*a, **k))
    with pytest.raises(KeyboardInterrupt):
        make()
    monkeypatch.undo()
    os.environ["LABKIT_CACHE"] = str(home.parent)
    try:
        assert make()[1]
        assert not list(home.glob("*.part")) and not list(home.glob(".*.part"))
    finally:
        del os.environ["LABKIT_CACHE"]


json_dumps = json.dumps


def _ask(folder, queue):
    os.environ["LABKIT_CACHE"] = folder
    torch.set_num_threads(1)
    queue.put(make()[1])


def test_two_kernels_that_ask_at_once_train_it_once(home):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    askers = [context.Process(target=_ask, args=(str(home.parent), queue)) for _ in range(2)]
    for asker in askers:
        asker.start()
    trained = [queue.get(timeout=120) for _ in askers]
    for asker in askers:
        asker.join()
    assert sorted(trained) == [False, True]


def test_a_folder_that_cannot_be_made_costs_a_warning_not_the_lab(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"expected a folder that can be written; got .*set LABKIT_CACHE"):
        made, trained = make()
    assert trained and made.report.n_clean == 60


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_costs_a_warning(tmp_path, monkeypatch):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    with pytest.warns(UserWarning, match="cache: expected a folder that can be written"):
        make()


def test_a_full_disk_costs_a_warning_and_keeps_the_victim(home, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "save_file", full)
    with pytest.warns(UserWarning, match="not kept for next time: cache: .*No space left on device.*Free some space"):
        made, trained = make()
    assert trained and made.report.n_clean == 60
    assert not list(home.glob("*.json")) and not list(home.glob(".*"))


def network(monkeypatch, data=None, **change):
    """A network from `trained_once`, and whether it was trained now."""
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(victims, "train", lambda *a, **k: calls.append(a) or train(*a, **k))
        options = {"seed": 0, "config": QUICK, "progress": False} | change
        return trained_once("small_cnn", data or splits().train, **options), bool(calls)


def test_an_ordinary_network_is_trained_once_and_is_what_train_makes(home, monkeypatch):
    (first, trained), (second, again) = network(monkeypatch), network(monkeypatch)
    plain = train("small_cnn", splits().train, seed=0, config=QUICK, progress=False)
    assert trained and not again and not first.training and not second.training
    for other in (first, second):
        assert all(map(torch.equal, plain.state_dict().values(), other.state_dict().values()))


def test_any_other_image_label_or_setting_is_another_network(home, monkeypatch):
    network(monkeypatch)
    data = splits().train
    relabelled = replace(data, labels=data.labels.roll(1))
    brighter = replace(data, images=(data.images + 0.01).clamp(0, 1))
    for change in ({"seed": 1}, {"config": replace(QUICK, epochs=1)}, {"data": relabelled}, {"data": brighter}):
        assert network(monkeypatch, **change)[1] and not network(monkeypatch, **change)[1]
    with monkeypatch.context() as patch:
        patch.setattr(victims, "source_hash", lambda *files: "an edited loop")
        assert network(monkeypatch)[1]


def test_a_damaged_network_is_trained_anew(home, monkeypatch):
    network(monkeypatch)
    damage_weights(home)
    with pytest.warns(UserWarning, match="is not usable .*; training it anew"):
        assert network(monkeypatch)[1]
    assert not network(monkeypatch)[1]


def test_the_key_of_a_network_knows_the_code_that_trains():
    assert victims.sources(["labkit.train"]) == (
        "augment.py",
        "data/imageset.py",
        "jpeg.py",
        "layers.py",
        "models.py",
        "train.py",
    )


def test_only_safetensors_and_json_are_written(home):
    make()
    assert {path.suffix for path in home.iterdir()} == {".safetensors", ".json", ".lock"}


def test_the_key_knows_the_attacks_own_code_all_that_it_imports_and_no_other_attacks():
    shared = {
        "augment.py",
        "attacks/base.py",
        "data/imageset.py",
        "train.py",
        "models.py",
        "layers.py",
        "jpeg.py",
        "metrics.py",
    }
    plain, aware = (set(victims.code_of(attack)) for attack in (BadNets(), PruningAware(Blend())))
    assert plain == shared | {"attacks/badnets.py"}
    assert aware == shared | {"attacks/pruning_aware.py", "attacks/blend.py", "channels.py"}


def test_an_attack_of_ones_own_is_known_by_what_it_is_built_on():
    class Mine(BadNets):
        pass

    assert victims.code_of(Mine()) == victims.code_of(BadNets())
