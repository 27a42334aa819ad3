"""Answers to lab 10: right ones in other styles, and the usual mistakes with a word their message must hold."""

import math

import numpy as np
import torch
import torch.nn.functional as F

# --- image_losses -----------------------------------------------------------------------------------------------------


def log_softmax_gather(logits, labels):
    return -logits.log_softmax(1).gather(1, labels[:, None])[:, 0]


def logsumexp_losses(logits, labels):
    return torch.logsumexp(logits, 1) - logits[torch.arange(len(labels)), labels]


def loop_losses(logits, labels):
    return torch.stack([F.cross_entropy(z[None], y[None]) for z, y in zip(logits, labels, strict=True)])


def nll_losses(logits, labels):
    return F.nll_loss(F.log_softmax(logits.double(), dim=-1), labels, reduction="none").numpy()


def mean_loss(logits, labels):
    return F.cross_entropy(logits, labels)


def summed_losses(logits, labels):
    return F.cross_entropy(logits, labels, reduction="sum")


def all_classes(logits, labels):
    return -logits.log_softmax(1)


def softmax_over_images(logits, labels):
    return -logits.log_softmax(0)[torch.arange(len(labels)), labels]


def losses_in_bits(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none") / math.log(2)


def probability(logits, labels):
    return 1 - logits.softmax(1)[torch.arange(len(labels)), labels]


def overflowing(logits, labels):
    odds = logits.exp()
    return -(odds[torch.arange(len(labels)), labels] / odds.sum(1)).log()


def loss_of_the_prediction(logits, labels):
    return F.cross_entropy(logits, logits.argmax(1), reduction="none")


def clamped_losses(logits, labels):
    return -logits.softmax(1)[torch.arange(len(labels)), labels].clamp_min(1e-12).log()


# --- flooding ---------------------------------------------------------------------------------------------------------


def flooded_with_abs(losses, level):
    return torch.abs(torch.mean(losses) - level) + level


def flooded_with_if(losses, level):
    mean = losses.mean().item()
    return mean if mean > level else 2 * level - mean


def flooded_with_max(losses, level):
    return torch.maximum(losses.mean(), 2 * level - losses.mean())


def plain_mean(losses, level):
    return losses.mean()


def flooded_each(losses, level):
    return ((losses - level).abs() + level).mean()


def level_forgotten(losses, level):
    return (losses.mean() - level).abs()


def clamped_at_the_level(losses, level):
    return losses.mean().clamp_min(level)


def signed_mean(losses, level):
    return (losses.mean() - level).sign() * losses.mean()


def flooded_not_averaged(losses, level):
    return (losses - level).abs() + level


def flooded_sum(losses, level):
    return (losses.sum() - level).abs() + level


# --- local_gradient_ascent --------------------------------------------------------------------------------------------


def lga_where(losses, gamma):
    return torch.where(losses > gamma, losses, -losses).mean()


def lga_loop(losses, gamma):
    return sum(x if x > gamma else -x for x in losses.tolist()) / len(losses)


def lga_split(losses, gamma):
    high, low = losses[losses > gamma], losses[losses <= gamma]
    return (high.sum() - low.sum()) / len(losses)


def lga_numpy(losses, gamma):
    x = losses.numpy().astype(np.float64)
    return np.mean(np.sign(x - gamma) * x)


def sign_of_the_mean(losses, gamma):
    return (losses.mean() - gamma).sign() * losses.mean()


def sign_turned(losses, gamma):
    return ((gamma - losses).sign() * losses).mean()


def distance_to_gamma(losses, gamma):
    return (losses - gamma).abs().mean()


def only_the_high(losses, gamma):
    return losses[losses > gamma].sum() / len(losses)


def lga_summed(losses, gamma):
    return ((losses - gamma).sign() * losses).sum()


def lga_each(losses, gamma):
    return (losses - gamma).sign() * losses


def only_signs(losses, gamma):
    return (losses - gamma).sign().mean()


# --- isolate ----------------------------------------------------------------------------------------------------------


def with_topk(losses, share):
    return losses.topk(round(share * len(losses)), largest=False).indices


def with_sort(losses, share):
    return torch.sort(losses).indices[: int(share * len(losses) + 0.5)]


def with_numpy(losses, share):
    return np.argsort(losses.numpy())[: round(share * len(losses))]


def with_threshold(losses, share):
    edge = losses.kthvalue(round(share * len(losses))).values
    return (losses <= edge).nonzero().flatten()


def highest(losses, share):
    return losses.argsort(descending=True)[: round(share * len(losses))]


def the_losses_themselves(losses, share):
    return losses.sort().values[: round(share * len(losses))]


def a_mask(losses, share):
    return losses <= losses.kthvalue(round(share * len(losses))).values


def below_the_share(losses, share):
    return (losses < share).nonzero().flatten()


def a_hundredth(losses, share):
    return losses.argsort()[: max(1, len(losses) // 100)]


def the_ranks(losses, share):
    return losses.argsort().argsort()[: round(share * len(losses))]


# --- abl_objective ----------------------------------------------------------------------------------------------------


def objective_minimum(losses, isolated, weight, ceiling):
    capped = torch.minimum(losses, torch.tensor(ceiling))
    return (capped[~isolated].sum() - weight * capped[isolated].sum()) / len(losses)


def objective_weights(losses, isolated, weight, ceiling):
    factor = 1 - (1 + weight) * isolated.double()  # 1 or -weight
    return (factor * losses.clamp(max=ceiling)).mean()


def objective_loop(losses, isolated, weight, ceiling):
    total = 0.0
    for x, mark in zip(losses.tolist(), isolated.tolist(), strict=True):
        total += (-weight if mark else 1) * min(x, ceiling)
    return total / len(losses)


def objective_turned(losses, isolated, weight, ceiling):
    capped = losses.clamp_max(ceiling)
    return torch.where(isolated, weight * capped, -capped).mean()


def objective_added(losses, isolated, weight, ceiling):
    capped = losses.clamp_max(ceiling)
    return torch.where(isolated, weight * capped, capped).mean()


def objective_without_isolated(losses, isolated, weight, ceiling):
    return losses[~isolated].clamp_max(ceiling).mean()


def objective_two_means(losses, isolated, weight, ceiling):
    capped = losses.clamp_max(ceiling)
    return capped[~isolated].mean() - weight * capped[isolated].mean()


def objective_unweighted(losses, isolated, weight, ceiling):
    capped = losses.clamp_max(ceiling)
    return torch.where(isolated, -capped, capped).mean()


def objective_uncapped(losses, isolated, weight, ceiling):
    return torch.where(isolated, -weight * losses, losses).mean()


def objective_floored(losses, isolated, weight, ceiling):
    high = losses.clamp_min(ceiling)
    return torch.where(isolated, -weight * high, high).mean()


def objective_only_isolated_capped(losses, isolated, weight, ceiling):
    return torch.where(isolated, -weight * losses.clamp_max(ceiling), losses).mean()


def objective_capped_after_weighting(losses, isolated, weight, ceiling):
    return torch.where(isolated, -(weight * losses).clamp_max(ceiling), losses.clamp_max(ceiling)).mean()


RIGHT = {
    "image_losses": [log_softmax_gather, logsumexp_losses, loop_losses, nll_losses],
    "flooding": [flooded_with_abs, flooded_with_if, flooded_with_max],
    "local_gradient_ascent": [lga_where, lga_loop, lga_split, lga_numpy],
    "isolate": [with_topk, with_sort, with_numpy, with_threshold],
    "abl_objective": [objective_minimum, objective_weights, objective_loop],
}

WRONG = {
    "image_losses": [
        (mean_loss, "a loss of its own"),
        (summed_losses, "shape"),
        (all_classes, "shape"),
        (softmax_over_images, "not the cross-entropy"),
        (losses_in_bits, "natural logarithm"),
        (probability, "natural logarithm"),
        (loss_of_the_prediction, "own label"),
        (overflowing, "finite"),
        (clamped_losses, "rounded to 0"),
    ],
    "flooding": [
        (plain_mean, "below the level"),
        (flooded_each, "batch's mean"),
        (level_forgotten, "above the level trains as usual"),
        (clamped_at_the_level, "pushed up"),
        (signed_mean, "pushed up"),
        (flooded_not_averaged, "one number"),
        (flooded_sum, "mean"),
    ],
    "local_gradient_ascent": [
        (plain_mean, "wrong sign"),
        (sign_of_the_mean, "image by image"),
        (sign_turned, "wrong sign"),
        (distance_to_gamma, "wrong sign or size"),
        (only_the_high, "ascend"),
        (lga_summed, "size"),
        (lga_each, "one number"),
        (only_signs, "size"),
    ],
    "isolate": [
        (highest, "smallest loss"),
        (the_losses_themselves, "positions"),
        (a_mask, "mask"),
        (below_the_share, "number"),
        (a_hundredth, "number"),
        (the_ranks, "lowest losses"),
    ],
    "abl_objective": [
        (objective_turned, "with a plus"),
        (objective_added, "with a minus"),
        (objective_without_isolated, "isolated"),
        (objective_two_means, "whole batch"),
        (objective_unweighted, "counts `weight` times"),
        (objective_uncapped, "lower bound"),
        (objective_floored, "below the ceiling"),
        (objective_only_isolated_capped, "isolated or not"),
        (objective_capped_after_weighting, "ceiling"),
    ],
}
