"""Answers to lab 07: right ones in other styles, and the usual mistakes with a word their message must hold."""

import statistics

import numpy as np
import torch
import torch.nn.functional as F

# --- paint ------------------------------------------------------------------------------------------------------------


def equation_paint(images, mask, pattern):
    return (1 - mask) * images + mask * pattern


def difference_paint(images, mask, pattern):
    return images + mask * (pattern - images)


def expanded_paint(images, mask, pattern):
    mask, pattern = mask.expand_as(images).double(), pattern.expand_as(images).double()
    return images.double() * (1 - mask) + pattern * mask


def copied_paint(images, mask, pattern):
    painted = images.clone()
    painted *= 1 - mask
    painted += mask * pattern
    return painted


def roles_swapped(images, mask, pattern):
    return mask * images + (1 - mask) * pattern


def added(images, mask, pattern):
    return images + mask * pattern


def added_and_clipped(images, mask, pattern):
    return (images + mask * pattern).clamp(0, 1)


def hard_paint(images, mask, pattern):
    return torch.where(mask > 0.5, pattern, images)


def any_mask_paint(images, mask, pattern):
    return torch.where(mask > 0, pattern, images)


def cut_out_only(images, mask, pattern):
    return (1 - mask) * images


def one_image_only(images, mask, pattern):
    return ((1 - mask) * images + mask * pattern)[:1]


def painted_in_place(images, mask, pattern):
    with torch.no_grad():
        images.mul_(1 - mask).add_(mask * pattern)
    return images


def without_gradients(images, mask, pattern):
    return torch.from_numpy((1 - mask.numpy()) * images.numpy() + mask.numpy() * pattern.numpy())


# --- objective --------------------------------------------------------------------------------------------------------


def library_objective(logits, target, mask, weight):
    wanted = torch.full((len(logits),), target)
    return F.cross_entropy(logits, wanted) + weight * mask.abs().sum()


def log_softmax_objective(logits, target, mask, weight):
    return -logits.log_softmax(-1)[:, target].mean() + weight * mask.norm(p=1)


def nll_objective(logits, target, mask, weight):
    wanted = torch.tensor([target] * logits.shape[0])
    return F.nll_loss(F.log_softmax(logits, dim=1), wanted) + mask.flatten().abs().sum() * weight


def one_row_objective(logits, target, mask, weight):
    return library_objective(logits, target, mask, weight)[None]


def mean_of_the_mask(logits, target, mask, weight):
    return library_objective(logits, target, mask, 0) + weight * mask.mean()


def euclidean(logits, target, mask, weight):
    return library_objective(logits, target, mask, 0) + weight * mask.norm()


def summed_over_images(logits, target, mask, weight):
    return library_objective(logits, target, mask, 0) * len(logits) + weight * mask.sum()


def rewarding_large_masks(logits, target, mask, weight):
    return library_objective(logits, target, mask, 0) - weight * mask.sum()


def away_from_the_target(logits, target, mask, weight):
    return -library_objective(logits, target, mask, 0) + weight * mask.sum()


def keeping_the_answers(logits, target, mask, weight):
    return F.cross_entropy(logits, logits.argmax(1)) + weight * mask.sum()


def probabilities_for_logits(logits, target, mask, weight):
    return library_objective(logits.softmax(1), target, mask, weight)


def in_two_steps(logits, target, mask, weight):
    return -logits.softmax(1)[:, target].log().mean() + weight * mask.sum()


def one_for_each_image(logits, target, mask, weight):
    return -logits.log_softmax(-1)[:, target] + weight * mask.sum()


# --- next_lambda ------------------------------------------------------------------------------------------------------


def all_lambda(weight, worked):
    last = worked[-5:]
    if len(last) < 5:
        return weight
    if all(last):
        return 0.001 if weight == 0 else 2 * weight
    return weight / 2**1.5 if not any(last) else weight


def sum_lambda(weight, worked):
    score = sum(1 if w else -1 for w in worked[-5:])
    if score == 5:
        return max(0.001, 2 * weight) if weight == 0 else 2 * weight
    return weight * 2**-1.5 if score == -5 else weight


def counting_lambda(weight, worked):
    run = 0
    for w in reversed(worked):
        if w != worked[-1]:
            break
        run += 1
    if run < 5:
        return weight
    return (2 * weight or 0.001) if worked[-1] else weight / 8**0.5


def never_down(weight, worked):
    return all_lambda(weight, worked) if worked and worked[-1] else weight


def never_up(weight, worked):
    return all_lambda(weight, worked) if not (worked and worked[-1]) or weight == 0 else weight


def stuck_at_zero(weight, worked):
    return 2 * weight if worked[-5:] == [True] * 5 else all_lambda(weight, worked)


def halved(weight, worked):
    return weight / 2 if worked[-5:] == [False] * 5 else all_lambda(weight, worked)


def on_the_last_alone(weight, worked):
    return all_lambda(weight, worked[-1:] * 5)


def all_of_nothing(weight, worked):
    """all([]) is True: with no update, or with four good ones, the weight rises."""
    if all(worked[-5:]):
        return 2 * weight or 0.001
    return weight / 2**1.5 if not any(worked[-5:]) else weight


def all_told(weight, worked):
    if sum(worked) >= 5:
        return 2 * weight or 0.001
    return weight / 2**1.5 if len(worked) - sum(worked) >= 5 else weight


def the_wrong_way(weight, worked):
    return all_lambda(weight, [not w for w in worked])


# --- anomaly_index ----------------------------------------------------------------------------------------------------


def numpy_index(norms):
    v = norms.numpy().astype(float)
    below = np.median(v) - v
    return below / (1.4826 * np.median(np.abs(below)))


def statistics_index(norms):
    v = norms.tolist()
    middle = statistics.median(v)
    mad = statistics.median(abs(x - middle) for x in v)
    return torch.tensor([(middle - x) / (1.4826 * mad) for x in v])


def sorted_index(norms):
    def median(x):
        s, k = x.sort().values, len(x)
        return (s[(k - 1) // 2] + s[k // 2]) / 2

    below = median(norms) - norms
    return below / median(below.abs()) / 1.4826


def lower_median(norms):
    below = norms.median() - norms
    return below / (1.4826 * below.abs().median())


def unsigned(norms):
    return sorted_index(norms).abs()


def upside_down(norms):
    return -sorted_index(norms)


def bare_mad(norms):
    return sorted_index(norms) * 1.4826


def multiplied(norms):
    return sorted_index(norms) * 1.4826**2


def z_score(norms):
    return (norms.mean() - norms) / norms.std()


def mean_deviation(norms):
    below = torch.quantile(norms, 0.5) - norms
    return below / (1.4826 * below.abs().mean())


def around_the_mean(norms):
    below = norms.mean() - norms
    return below / (1.4826 * torch.quantile(below.abs(), 0.5))


def not_divided(norms):
    return torch.quantile(norms, 0.5) - norms


def largest_only(norms):
    return sorted_index(norms).max()


# --- name_targets -----------------------------------------------------------------------------------------------------


def sorted_targets(index, works):
    return sorted((k for k in range(len(index)) if index[k] > 2 and works[k]), key=lambda k: -index[k])


def tensor_targets(index, works):
    order = index.argsort(descending=True)
    return order[(index[order] > 2) & works[order]]


def numpy_targets(index, works):
    order = np.argsort(-index.numpy())
    return tuple(order[(index.numpy()[order] > 2) & works.numpy()[order]])


def two_sided(index, works):
    return sorted((k for k in range(len(index)) if abs(index[k]) > 2 and works[k]), key=lambda k: -index[k])


def always_somebody(index, works):
    return [int(index.argmax())]


def at_least_two(index, works):
    return sorted((k for k in range(len(index)) if index[k] >= 2 and works[k]), key=lambda k: -index[k])


def by_number(index, works):
    return [k for k in range(len(index)) if index[k] > 2 and works[k]]


def works_or_not(index, works):
    return sorted((k for k in range(len(index)) if index[k] > 2), key=lambda k: -index[k])


def yes_or_no(index, works):
    return bool(((index > 2) & works).any())


def booleans(index, works):
    return (index > 2) & works


RIGHT = {
    "paint": [equation_paint, difference_paint, expanded_paint, copied_paint],
    "objective": [library_objective, log_softmax_objective, nll_objective, one_row_objective],
    "next_lambda": [all_lambda, sum_lambda, counting_lambda],
    "anomaly_index": [numpy_index, statistics_index, sorted_index],
    "name_targets": [sorted_targets, tensor_targets, numpy_targets],
}
WRONG = {
    "paint": [
        (roles_swapped, "mask is 0"),
        (added, "replaces"),
        (added_and_clipped, "replaces"),
        (hard_paint, "mixes"),
        (any_mask_paint, "mixes"),
        (cut_out_only, "mask is 1"),
        (one_image_only, "shape"),
        (painted_in_place, "in place"),
        (without_gradients, "requires grad"),
    ],
    "objective": [
        (mean_of_the_mask, "sum"),
        (euclidean, "L1"),
        (summed_over_images, "mean over the images"),
        (rewarding_large_masks, "added"),
        (away_from_the_target, "small is good"),
        (keeping_the_answers, "towards the target"),
        (probabilities_for_logits, "cross-entropy"),
        (in_two_steps, "in one step"),
        (one_for_each_image, "one number"),
    ],
    "next_lambda": [
        (never_down, "come down"),
        (never_up, "smaller mask"),
        (stuck_at_zero, "twice nothing"),
        (halved, "power of 1.5"),
        (on_the_last_alone, "too early"),
        (all_of_nothing, "fewer than five"),
        (all_told, "last five"),
        (the_wrong_way, "attack works"),
    ],
    "anomaly_index": [
        (lower_median, "even count"),
        (unsigned, "sign"),
        (upside_down, "sign"),
        (bare_mad, "factor"),
        (multiplied, "median"),
        (z_score, "standard deviation"),
        (mean_deviation, "median"),
        (around_the_mean, "median"),
        (not_divided, "spread"),
        (largest_only, "shape"),
    ],
    "name_targets": [
        (two_sided, "one-sided"),
        (always_somebody, "may be none"),
        (at_least_two, "larger than 2"),
        (by_number, "order"),
        (works_or_not, "never worked"),
        (yes_or_no, "list of class numbers"),
        (booleans, "list of class numbers"),
    ],
}
