"""Answers to lab 05: right ones in other styles, and the usual mistakes with a word their message must hold."""

import math
from statistics import NormalDist

import numpy as np
import torch

# --- superimpose ------------------------------------------------------------------------------------------------------


def loop_superimpose(images, overlays):
    out = torch.empty_like(overlays)
    for b in range(overlays.shape[0]):
        for n in range(overlays.shape[1]):
            out[b, n] = images[b, 0] + overlays[b, n]
    return out


def numpy_superimpose(images, overlays):
    return images.numpy() + overlays.numpy()


def expanded_superimpose(images, overlays):
    return images.expand_as(overlays).double() + overlays.double()


def own_copy_superimpose(images, overlays):
    mixed = overlays.clone()
    mixed += images
    return mixed


def clipped(images, overlays):
    return (images + overlays).clamp(0, 1)


def averaged(images, overlays):
    return (images + overlays) / 2


def screen(images, overlays):
    return torch.maximum(images, overlays)


def squeezed(images, overlays):
    """Drops the axis that was there for broadcasting: the last axes line up wrongly, at times without an error."""
    return torch.stack([images[:, 0] + row[: len(images)] for row in overlays])


def first_image_only(images, overlays):
    return images[:1] + overlays


def joined(images, overlays):
    return torch.cat([images, overlays], dim=1)


def in_place(images, overlays):
    overlays += images
    return overlays


# --- entropy_bits -----------------------------------------------------------------------------------------------------


def where_entropy(probs):
    logs = torch.where(probs > 0, probs, torch.ones_like(probs)).log2()
    return -(probs * logs).sum(-1)


def xlogy_entropy(probs):
    return -torch.xlogy(probs, probs).sum(dim=-1) / math.log(2)


def numpy_entropy(probs):
    p = probs.numpy().astype(np.float64)
    return -(p * np.log2(np.where(p > 0, p, 1))).sum(-1)


def nan_to_num_entropy(probs):
    return -(probs * probs.log2()).nan_to_num(0).sum(-1)


def epsilon_entropy(probs):
    return -(probs * (probs + 1e-12).log2()).sum(-1)


def loop_entropy(probs):
    rows = [sum(-p * math.log2(p) for p in row if p > 0) for row in probs.reshape(-1, probs.shape[-1]).tolist()]
    return torch.tensor(rows).reshape(probs.shape[:-1])


def entropy_in_nats(probs):
    return torch.special.entr(probs).sum(-1)


def entropy_normalised(probs):
    return torch.special.entr(probs).sum(-1) / math.log(probs.shape[-1])


def entropy_sign_forgotten(probs):
    return -where_entropy(probs)


def entropy_nan(probs):
    return -(probs * probs.log2()).sum(-1)


def entropy_total(probs):
    return where_entropy(probs).sum()


def entropy_of_first_axis(probs):
    return torch.special.entr(probs).sum(0) / math.log(2)


def entropy_mean_of_classes(probs):
    return torch.special.entr(probs).mean(-1) / math.log(2)


def surprise_of_the_winner(probs):
    return -probs.max(-1).values.log2()


def entropy_crude_epsilon(probs):
    return -(probs * (probs + 0.01).log2()).sum(-1)


# --- strip_score ------------------------------------------------------------------------------------------------------


def mean_entropy(probs):
    return where_entropy(probs).mean(dim=1)


def loop_score(probs):
    return torch.stack([torch.stack([where_entropy(one) for one in row]).mean() for row in probs])


def numpy_score(probs):
    return numpy_entropy(probs).mean(axis=1)


def sum_over_both(probs):
    return where_entropy(probs).sum(1) / probs.shape[1]


def over_overlays(probs):
    """Columns are no distributions; summed up, all terms are there all the same, so only the scale is off."""
    return (torch.special.entr(probs).sum(1) / math.log(2)).mean(-1)


def over_overlays_normalised(probs):
    """What scipy.stats.entropy does by default: along axis 0 of (N, K), each column brought to a sum of 1."""
    return over_overlays(probs / probs.sum(1, keepdim=True))


def entropy_of_the_mean(probs):
    return where_entropy(probs.mean(1))


def summed_score(probs):
    return where_entropy(probs).sum(1)


def score_in_nats(probs):
    return torch.special.entr(probs).sum(-1).mean(-1)


def unaveraged_score(probs):
    return where_entropy(probs)


def one_score_for_all(probs):
    return where_entropy(probs).mean()


def smallest_entropy(probs):
    return where_entropy(probs).min(1).values


# --- boundary ---------------------------------------------------------------------------------------------------------


def sorted_boundary(clean_scores, frr, kind="quantile"):
    if kind == "normal":
        return clean_scores.mean() + clean_scores.std(unbiased=False) * NormalDist().inv_cdf(frr)
    rank = max(1, int(frr * len(clean_scores)))
    return clean_scores.sort().values[rank - 1]


def numpy_boundary(clean_scores, frr, kind="quantile"):
    scores = clean_scores.numpy()
    if kind == "normal":
        return NormalDist(scores.mean(), scores.std()).inv_cdf(frr)
    return np.quantile(scores, frr, method="higher")


def torch_boundary(clean_scores, frr, kind="quantile"):
    if kind == "quantile":
        return torch.kthvalue(clean_scores, round(frr * len(clean_scores))).values
    normal = torch.distributions.Normal(clean_scores.mean(), clean_scores.std())
    return normal.icdf(torch.tensor(frr))


def upper_tail(clean_scores, frr, kind="quantile"):
    return sorted_boundary(clean_scores, 1 - frr, kind)


def always_quantile(clean_scores, frr, kind="quantile"):
    return float(clean_scores.quantile(frr))


def always_normal(clean_scores, frr, kind="quantile"):
    return sorted_boundary(clean_scores, frr, "normal")


def minimum(clean_scores, frr, kind="quantile"):
    return clean_scores.min()


def fixed_z(clean_scores, frr, kind="quantile"):
    if kind == "normal":
        return clean_scores.mean() - 2.326 * clean_scores.std()
    return clean_scores.quantile(frr)


def fixed_percent(clean_scores, frr, kind="quantile"):
    return sorted_boundary(clean_scores, 0.01, kind)


def variance_for_deviation(clean_scores, frr, kind="quantile"):
    if kind == "normal":
        return clean_scores.mean() + clean_scores.var() * NormalDist().inv_cdf(frr)
    return clean_scores.quantile(frr)


def tensor_of_boundaries(clean_scores, frr, kind="quantile"):
    return clean_scores[clean_scores < clean_scores.quantile(frr)]


# --- frr_far ----------------------------------------------------------------------------------------------------------


def loop_rates(clean_scores, triggered_scores, threshold):
    rejected = sum(1 for s in clean_scores.tolist() if s <= threshold)
    accepted = sum(1 for s in triggered_scores.tolist() if s > threshold)
    return rejected / len(clean_scores), accepted / len(triggered_scores)


def numpy_rates(clean_scores, triggered_scores, threshold):
    return np.mean(clean_scores.numpy() <= threshold), np.mean(triggered_scores.numpy() > threshold)


def tensor_rates(clean_scores, triggered_scores, threshold):
    return torch.stack([(clean_scores <= threshold).float().mean(), 1 - (triggered_scores <= threshold).float().mean()])


def swapped(clean_scores, triggered_scores, threshold):
    return loop_rates(clean_scores, triggered_scores, threshold)[::-1]


def strict(clean_scores, triggered_scores, threshold):
    return (clean_scores < threshold).float().mean(), (triggered_scores >= threshold).float().mean()


def caught(clean_scores, triggered_scores, threshold):
    frr, far = loop_rates(clean_scores, triggered_scores, threshold)
    return frr, 1 - far


def high_is_suspicious(clean_scores, triggered_scores, threshold):
    return (clean_scores > threshold).float().mean(), (triggered_scores <= threshold).float().mean()


def counts(clean_scores, triggered_scores, threshold):
    return (clean_scores <= threshold).sum(), (triggered_scores > threshold).sum()


def over_all_inputs(clean_scores, triggered_scores, threshold):
    n = len(clean_scores) + len(triggered_scores)
    return (clean_scores <= threshold).sum() / n, (triggered_scores > threshold).sum() / n


def percent(clean_scores, triggered_scores, threshold):
    return tuple(100 * rate for rate in loop_rates(clean_scores, triggered_scores, threshold))


def precision(clean_scores, triggered_scores, threshold):
    """A share of what was flagged instead of a share of what was clean."""
    alarms, hits = (clean_scores <= threshold).sum(), (triggered_scores <= threshold).sum()
    return alarms / (alarms + hits).clamp_min(1), 1 - hits / len(triggered_scores)


RIGHT = {
    "superimpose": [loop_superimpose, numpy_superimpose, expanded_superimpose, own_copy_superimpose],
    "entropy_bits": [
        where_entropy,
        xlogy_entropy,
        numpy_entropy,
        nan_to_num_entropy,
        epsilon_entropy,
        loop_entropy,
    ],
    "strip_score": [mean_entropy, loop_score, numpy_score, sum_over_both],
    "boundary": [sorted_boundary, numpy_boundary, torch_boundary],
    "frr_far": [loop_rates, numpy_rates, tensor_rates],
}
WRONG = {
    "superimpose": [
        (clipped, "clip"),
        (averaged, "sum"),
        (screen, "sum"),
        (squeezed, "broadcasting"),
        (first_image_only, "row b"),
        (joined, "shape"),
        (in_place, "in place"),
    ],
    "entropy_bits": [
        (entropy_in_nats, "logarithm"),
        (entropy_normalised, "bits"),
        (entropy_sign_forgotten, "negative"),
        (entropy_nan, "zero"),
        (entropy_total, "shape"),
        (entropy_of_first_axis, "classes"),
        (entropy_mean_of_classes, "bits"),
        (surprise_of_the_winner, "not an entropy"),
        (entropy_crude_epsilon, "entropy"),
    ],
    "strip_score": [
        (over_overlays, "scale"),
        (over_overlays_normalised, "axis"),
        (entropy_of_the_mean, "order"),
        (summed_score, "scale"),
        (score_in_nats, "bits"),
        (unaveraged_score, "one score"),
        (one_score_for_all, "shape"),
        (smallest_entropy, "one number"),
    ],
    "boundary": [
        (upper_tail, "tail"),
        (always_quantile, "bell curve"),
        (always_normal, "count"),
        (minimum, "share"),
        (fixed_z, "frr"),
        (fixed_percent, "frr"),
        (variance_for_deviation, "standard deviation"),
        (tensor_of_boundaries, "one finite number"),
    ],
    "frr_far": [
        (swapped, "FRR"),
        (strict, "equal"),
        (caught, "let through"),
        (high_is_suspicious, "low"),
        (counts, "between 0 and 1"),
        (over_all_inputs, "alone"),
        (percent, "between 0 and 1"),
        (precision, "of the clean"),
    ],
}
