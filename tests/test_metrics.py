"""CA, ASR, RA against hand-made answers; FRR, FAR and AUC against scikit-learn; predict's promises."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from labkit.attacks import BadNets
from labkit.data import ImageSet
from labkit.metrics import Report, area_under_roc, detection, evaluate, predict, roc
from tests.tiny import PatchDetector, image_set, linear_model


class Answers(nn.Module):
    """Says what it is told, image by image: the label is written in the first pixel (tenths)."""

    def forward(self, images):
        return nn.functional.one_hot((images[:, 0, 0, 0] * 10).round().long(), 10).float()


def told(answers, labels, classes=10) -> ImageSet:
    images = (torch.tensor(answers) / 10).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return ImageSet(images, torch.tensor(labels), tuple(str(k) for k in range(classes)))


def test_asr_and_ra_by_hand():
    data = told([0, 1, 2, 3, 4], [0, 1, 2, 3, 0])

    def trigger(images):  # sends 0, 1, 2 to class 7, leaves 3, sends 4 to 7
        return torch.where(images.eq(0.3), images, torch.full_like(images, 0.7))

    report = evaluate(Answers().eval(), data, trigger, 7)
    assert report == Report(4 / 5, 4 / 5, 1 / 5, 5, 5)


def test_images_of_the_target_class_do_not_count_for_asr():
    data = told([1, 1, 2, 2], [1, 1, 2, 2])
    report = evaluate(Answers().eval(), data, lambda images: images, 1)  # a trigger that does nothing
    assert report.attack_success_rate == 0 and report.robust_accuracy == 1
    assert (report.n_clean, report.n_triggered) == (4, 2)


def test_the_perfect_backdoor_has_asr_one():
    report = evaluate(PatchDetector(target=2).eval(), image_set(80), BadNets(2).trigger, 2)
    assert (report.clean_accuracy, report.attack_success_rate, report.robust_accuracy) == (1, 1, 0)


def test_the_report_is_one_line_with_both_denominators():
    line = str(Report(0.951, 0.995, 0.004, 2000, 1833))
    assert "\n" not in line
    for part in ("95.1%", "2,000", "99.5%", "0.4%", "1,833"):
        assert part in line
    assert "ASR" not in str(Report(0.9, None, None, 10, 0))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_predict_keeps_order_whatever_the_batch(batch_size):
    model, images = linear_model(), torch.rand(20, 3, 12, 12)
    order = torch.randperm(20)
    probs = predict(model, images, batch_size=batch_size)
    assert probs.shape == (20, 4) and probs.dtype == torch.float32 and probs.device.type == "cpu"
    assert torch.allclose(probs.sum(1), torch.ones(20), atol=1e-5)
    assert torch.allclose(predict(model, images[order], batch_size=batch_size), probs[order], atol=2e-2)
    assert torch.allclose(predict(model, images, logits=True).softmax(1), probs, atol=1e-6)


def test_predict_leaves_the_model_alone_and_warns_of_train_mode():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 144, 4)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.warns(UserWarning, match="expected eval mode; got train mode"):
        predict(model, torch.rand(4, 3, 12, 12))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_auc_and_roc_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    clean, triggered = rng.normal(1, 1, 300).round(1), rng.normal(0, 1, 200).round(1)  # rounding makes ties
    expected = roc_auc_score(np.r_[np.ones(300), np.zeros(200)], np.r_[clean, triggered])
    assert area_under_roc(torch.tensor(clean), torch.tensor(triggered)) == pytest.approx(expected, abs=1e-12)
    for threshold, frr, far in zip(*roc(torch.tensor(clean), torch.tensor(triggered)), strict=True):
        assert frr == pytest.approx((clean <= float(threshold)).mean())
        assert far == pytest.approx((triggered > float(threshold)).mean())


def test_detection_by_hand():
    found = detection(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 1.0, 5.0]), 1.0)
    assert (found.frr, found.far) == (1 / 4, 1 / 3)
    assert "FRR 25.00% of 4 clean" in str(found)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: predict(linear_model(), torch.rand(2, 3, 12, 12) * 3), "expected values in \\[0, 1\\]"),
        (lambda: predict(linear_model(), torch.rand(0, 3, 12, 12)), "at least one image"),
        (lambda: predict(linear_model(), torch.full((1, 3, 12, 12), torch.nan)), "NaN"),
        (lambda: predict(nn.Identity().eval(), torch.rand(2, 3, 4, 4)), "expected logits \\(N, K\\)"),
        (lambda: evaluate(linear_model(), image_set(), BadNets(0).trigger), "both trigger and target"),
        (lambda: evaluate(linear_model(), image_set(), BadNets(0).trigger, 4), "target: expected a class from 0 to 3"),
        (lambda: evaluate(linear_model(), image_set()[::4], BadNets(0).trigger, 0), "not of the target class 0"),
    ],
)
def test_bad_input_is_named(run, words):
    with pytest.raises(ValueError, match=words):
        run()
