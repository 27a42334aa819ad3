"""Answers to lab 03: other right ones, and wrong ones with a word that the message must contain."""

import math
import random

import numpy as np
import torch

# --- blend ------------------------------------------------------------------------------------------------------------


def blend_by_loop(images, pattern, alpha):
    return torch.stack([image * (1 - alpha) + pattern * alpha for image in images])


def blend_in_numpy(images, pattern, alpha):
    return alpha * pattern.numpy()[None] + (1 - alpha) * images.double().numpy()


def blend_by_steps(images, pattern, alpha):
    return (images + alpha * (pattern - images)).clamp(0, 1)


def blend_in_place_on_a_copy(images, pattern, alpha):
    out = images.clone()
    out *= 1 - alpha
    out += alpha * pattern
    return out


def blend_added(images, pattern, alpha):
    return images + alpha * pattern


def blend_added_clipped(images, pattern, alpha):
    return (images + alpha * pattern).clamp(0, 1)


def blend_swapped(images, pattern, alpha):
    return alpha * images + (1 - alpha) * pattern


def blend_half(images, pattern, alpha):
    return (images + pattern) / 2


def blend_first_channel(images, pattern, alpha):
    return (1 - alpha) * images + alpha * pattern[:1]


def blend_in_place(images, pattern, alpha):
    images *= 1 - alpha
    images += alpha * pattern
    return images


def blend_scales_pattern_in_place(images, pattern, alpha):
    return (1 - alpha) * images + pattern.mul_(alpha)


def blend_first_image(images, pattern, alpha):
    return ((1 - alpha) * images + alpha * pattern)[:1]


def blend_black_is_clear(images, pattern, alpha):
    return torch.where(pattern > 0, (1 - alpha) * images + alpha * pattern, images)


def blend_only_pattern(images, pattern, alpha):
    return (alpha * pattern).expand_as(images)


# --- ripple -----------------------------------------------------------------------------------------------------------


def ripple_by_loop(images, delta, frequency):
    out, width = images.clone(), images.shape[-1]
    for j in range(width):
        out[:, :, :, j] += delta * math.sin(2 * math.pi * j * frequency / width)
    return out.clamp(min=0, max=1)


def ripple_in_numpy(images, delta, frequency):
    width = images.shape[3]
    wave = delta * np.sin(2 * np.pi * frequency * np.arange(width) / width)
    return np.clip(images.numpy() + wave, 0, 1)


def ripple_from_linspace(images, delta, frequency):
    phase = torch.linspace(0, 2 * torch.pi * frequency, images.shape[3] + 1)[:-1]
    wave = (delta * phase.sin()).expand_as(images)
    return torch.minimum(torch.maximum(images + wave, torch.tensor(0.0)), torch.tensor(1.0))


def ripple_in_place_on_a_copy(images, delta, frequency):
    out = images.clone()
    j = torch.arange(out.shape[-1]).view(1, 1, 1, -1)
    return out.add_(delta * torch.sin(2 * torch.pi * j * frequency / out.shape[-1])).clamp_(0, 1)


def _wave(n, delta, frequency):
    return delta * torch.sin(2 * math.pi * torch.arange(n) * frequency / n)


def ripple_vertical(images, delta, frequency):
    return (images + _wave(images.shape[2], delta, frequency)[:, None]).clamp(0, 1)


def ripple_in_turns(images, delta, frequency):
    width = images.shape[3]
    return (images + delta * torch.sin(torch.arange(width) * frequency / width)).clamp(0, 1)


def ripple_per_pixel(images, delta, frequency):
    return (images + delta * torch.sin(2 * math.pi * torch.arange(images.shape[3]) * frequency)).clamp(0, 1)


def ripple_to_the_edge(images, delta, frequency):
    phase = torch.linspace(0, 2 * math.pi * frequency, images.shape[3])
    return (images + delta * phase.sin()).clamp(0, 1)


def ripple_cosine(images, delta, frequency):
    width = images.shape[3]
    return (images + delta * torch.cos(2 * math.pi * torch.arange(width) * frequency / width)).clamp(0, 1)


def ripple_from_one(images, delta, frequency):
    width = images.shape[3]
    return (images + delta * torch.sin(2 * math.pi * torch.arange(1, width + 1) * frequency / width)).clamp(0, 1)


def ripple_by_height(images, delta, frequency):
    height, width = images.shape[2:]
    return (images + delta * torch.sin(2 * math.pi * torch.arange(width) * frequency / height)).clamp(0, 1)


def ripple_in_bytes(images, delta, frequency):
    return ripple_by_loop(images, delta / 255, frequency)


def ripple_unclipped(images, delta, frequency):
    return images + _wave(images.shape[3], delta, frequency)


def ripple_in_place(images, delta, frequency):
    images += _wave(images.shape[3], delta, frequency)
    return images.clamp(0, 1)


def ripple_wave_alone(images, delta, frequency):
    return _wave(images.shape[3], delta, frequency)


# --- psnr -------------------------------------------------------------------------------------------------------------


def psnr_by_loop(images, others):
    return [10 * math.log10(1 / float(((a - b) ** 2).mean())) for a, b in zip(images, others, strict=True)]


def psnr_in_numpy(images, others):
    error = (images.double().numpy() - others.double().numpy()) ** 2
    return -10 * np.log10(error.mean(axis=(1, 2, 3)))


def psnr_from_rmse(images, others):
    return -20 * (others - images).square().flatten(1).mean(1).sqrt().log10()


def psnr_by_change_of_base(images, others):
    return 10 * torch.log(1 / (images - others).pow(2).mean(dim=[1, 2, 3])) / math.log(10)


def psnr_of_the_batch(images, others):
    return -10 * (images - others).square().mean().log10()


def psnr_mean_of_all(images, others):
    return psnr_from_rmse(images, others).mean()


def psnr_in_bytes(images, others):
    return 10 * torch.log10(255**2 / (images - others).square().mean((1, 2, 3)))


def psnr_natural(images, others):
    return -10 * (images - others).square().mean((1, 2, 3)).log()


def psnr_twice(images, others):
    return -20 * (images - others).square().mean((1, 2, 3)).log10()


def psnr_upside_down(images, others):
    return 10 * (images - others).square().mean((1, 2, 3)).log10()


def psnr_absolute(images, others):
    return -10 * (images - others).abs().mean((1, 2, 3)).log10()


def psnr_square_of_mean(images, others):
    return -10 * (images - others).mean((1, 2, 3)).square().log10()


def psnr_of_the_sum(images, others):
    return -10 * (images - others).square().sum((1, 2, 3)).log10()


def psnr_per_channel(images, others):
    return -10 * (images - others).square().mean((2, 3)).log10()


def psnr_in_place(images, others):
    return -10 * images.sub_(others).square().mean((1, 2, 3)).log10()


# --- poison_own_class -------------------------------------------------------------------------------------------------


def own_by_loop(images, labels, target, rate, trigger, seed):
    own = [i for i, y in enumerate(labels.tolist()) if y == target]
    new = list(images)
    for i in random.Random(seed).sample(own, round(rate * len(own))):
        new[i] = trigger(images[i : i + 1])[0]
    return torch.stack(new), labels


def own_in_numpy(images, labels, target, rate, trigger, seed):
    own = np.flatnonzero(labels.numpy() == target)
    chosen = np.random.default_rng(seed).permutation(own)[: round(rate * len(own))]
    new = images.numpy().copy()
    new[chosen] = trigger(images[torch.from_numpy(chosen)]).numpy()
    return new, labels.numpy()


def _draw(labels, target, rate, seed):
    own = torch.where(labels == target)[0]
    return own[torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))][: round(rate * len(own))]


def own_index_copy(images, labels, target, rate, trigger, seed):
    chosen = _draw(labels, target, rate, seed)
    return [images.index_copy(0, chosen, trigger(images[chosen])), labels.clone()]


def own_says_the_target_again(images, labels, target, rate, trigger, seed):
    new, same = images.clone(), labels.clone()
    chosen = _draw(labels, target, rate, seed)
    new[chosen], same[chosen] = trigger(new[chosen]), target  # that is what they were
    return new, same


def own_in_place(images, labels, target, rate, trigger, seed):
    chosen = _draw(labels, target, rate, seed)
    images[chosen] = trigger(images[chosen])
    return images, labels


def own_share_of_all(images, labels, target, rate, trigger, seed):
    own = torch.where(labels == target)[0]
    chosen = own[torch.randperm(len(own))[: round(rate * len(labels))]]
    return images.index_copy(0, chosen, trigger(images[chosen])), labels


def own_other_classes(images, labels, target, rate, trigger, seed):
    others, n = torch.where(labels != target)[0], round(rate * int((labels == target).sum()))
    chosen = others[torch.randperm(len(others))[:n]]
    return images.index_copy(0, chosen, trigger(images[chosen])), labels


def own_any_class(images, labels, target, rate, trigger, seed):
    chosen = torch.randperm(len(labels))[: round(rate * int((labels == target).sum()))]
    return images.index_copy(0, chosen, trigger(images[chosen])), labels


def own_dirty(images, labels, target, rate, trigger, seed):
    new, labels_too = own_other_classes(images, labels, target, rate, trigger, seed)
    changed = (new != images).flatten(1).any(1)
    return new, labels_too.masked_fill(changed, target)


def own_relabelled(images, labels, target, rate, trigger, seed):
    chosen = _draw(labels, target, rate, seed)
    lies = labels.clone()
    lies[chosen] = (target + 1) % 2
    return images.index_copy(0, chosen, trigger(images[chosen])), lies


def own_with_replacement(images, labels, target, rate, trigger, seed):
    own = torch.where(labels == target)[0]
    chosen = own[torch.randint(len(own), (round(rate * len(own)),))]
    new = images.clone()
    new[chosen] = trigger(images[chosen])
    return new, labels


def own_all_stamped(images, labels, target, rate, trigger, seed):
    return trigger(images), labels


def own_whole_class(images, labels, target, rate, trigger, seed):
    return torch.where((labels == target)[:, None, None, None], trigger(images), images), labels


def own_first(images, labels, target, rate, trigger, seed):
    own = torch.where(labels == target)[0]
    chosen = own[: round(rate * len(own))]
    return images.index_copy(0, chosen, trigger(images[chosen])), labels


def own_chosen_only(images, labels, target, rate, trigger, seed):
    chosen = _draw(labels, target, rate, seed)
    return trigger(images[chosen]), labels[chosen]


def own_misplaced(images, labels, target, rate, trigger, seed):
    chosen = _draw(labels, target, rate, seed)
    new = images.clone()
    new[chosen] = trigger(images[: len(chosen)])
    return new, labels


def own_without_seed(images, labels, target, rate, trigger, seed):
    own = torch.where(labels == target)[0].tolist()
    chosen = torch.tensor(random.sample(own, round(rate * len(own))))
    return images.index_copy(0, chosen, trigger(images[chosen])), labels


def own_global_chance(images, labels, target, rate, trigger, seed):
    own = torch.where(labels == target)[0]
    chosen = own[torch.randperm(len(own))[: round(rate * len(own))]]
    return images.index_copy(0, chosen, trigger(images[chosen])), labels


def own_seed_zero(images, labels, target, rate, trigger, seed):
    chosen = _draw(labels, target, rate, 0)
    return images.index_copy(0, chosen, trigger(images[chosen])), labels


def own_brightest(images, labels, target, rate, trigger, seed):
    own = torch.where(labels == target)[0]
    brightest = images[own].mean((1, 2, 3)).argsort(descending=True)
    chosen = own[brightest[: round(rate * len(own))]]
    return images.index_copy(0, chosen, trigger(images[chosen])), labels


# --- stay_close -------------------------------------------------------------------------------------------------------


def close_by_limits(perturbed, originals, epsilon):
    low, high = (originals - epsilon).clamp_min(0), (originals + epsilon).clamp_max(1)
    return perturbed.clamp(low, high)


def close_in_numpy(perturbed, originals, epsilon):
    x, o = perturbed.double().numpy(), originals.double().numpy()
    return np.clip(np.clip(x, 0, 1), o - epsilon, o + epsilon)


def close_by_min_and_max(perturbed, originals, epsilon):
    near = torch.max(torch.min(perturbed, originals + epsilon), originals - epsilon)
    return near.clip(0, 1)


def close_by_where(perturbed, originals, epsilon):
    step = perturbed - originals
    step = torch.where(step.abs() > epsilon, epsilon * step.sign(), step)
    return (originals + step).clamp(0.0, 1.0)


def close_no_range(perturbed, originals, epsilon):
    return originals + (perturbed - originals).clamp(-epsilon, epsilon)


def close_range_only(perturbed, originals, epsilon):
    return perturbed.clamp(0, 1)


def close_to_zero(perturbed, originals, epsilon):
    return perturbed.clamp(-epsilon, epsilon).clamp(0, 1)


def close_step_alone(perturbed, originals, epsilon):
    return (perturbed - originals).clamp(-epsilon, epsilon)


def close_upwards_only(perturbed, originals, epsilon):
    return torch.minimum(perturbed, originals + epsilon).clamp(0, 1)


def close_by_rescaling(perturbed, originals, epsilon):
    step = perturbed - originals
    step = step / step.abs().amax((1, 2, 3), keepdim=True).clamp_min(epsilon) * epsilon
    return (originals + step).clamp(0, 1)


def close_sign(perturbed, originals, epsilon):
    return (originals + epsilon * (perturbed - originals).sign()).clamp(0, 1)


def close_gives_up(perturbed, originals, epsilon):
    return torch.where((perturbed - originals).abs() > epsilon, originals, perturbed).clamp(0, 1)


def close_in_place(perturbed, originals, epsilon):
    return perturbed.clamp_(originals - epsilon, originals + epsilon).clamp(0, 1)


RIGHT = {
    "blend": [blend_by_loop, blend_in_numpy, blend_by_steps, blend_in_place_on_a_copy],
    "ripple": [ripple_by_loop, ripple_in_numpy, ripple_from_linspace, ripple_in_place_on_a_copy],
    "psnr": [psnr_in_numpy, psnr_from_rmse, psnr_by_change_of_base],
    "poison_own_class": [own_by_loop, own_in_numpy, own_index_copy, own_says_the_target_again],
    "stay_close": [close_by_limits, close_in_numpy, close_by_min_and_max, close_by_where],
}
WRONG = {
    "blend": [
        (blend_added, "range"),
        (blend_added_clipped, "add up to 1"),
        (blend_swapped, "wrong way round"),
        (blend_half, "weights"),
        (blend_first_channel, "channel"),
        (blend_in_place, "pure"),
        (blend_scales_pattern_in_place, "pure"),
        (blend_first_image, "shape"),
        (blend_only_pattern, "weighted mean"),
        (blend_black_is_clear, "black one"),
    ],
    "ripple": [
        (ripple_vertical, "column"),
        (ripple_in_turns, "2 pi"),
        (ripple_per_pixel, "2 pi"),
        (ripple_to_the_edge, "width"),
        (ripple_cosine, "sin(0)"),
        (ripple_from_one, "j = 0"),
        (ripple_by_height, "width"),
        (ripple_in_bytes, "255"),
        (ripple_unclipped, "clipped"),
        (ripple_in_place, "copy"),
        (ripple_wave_alone, "shape"),
    ],
    "psnr": [
        (psnr_of_the_batch, "each image"),
        (psnr_mean_of_all, "each image"),
        (psnr_per_channel, "each image"),
        (psnr_in_bytes, "255"),
        (psnr_natural, "base 10"),
        (psnr_twice, "factor of 10"),
        (psnr_upside_down, "scale"),
        (psnr_absolute, "square"),
        (psnr_square_of_mean, "square"),
        (psnr_of_the_sum, "mean"),
        (psnr_in_place, "changed"),
    ],
    "poison_own_class": [
        (own_in_place, "copy"),
        (own_share_of_all, "share of the *target class*"),
        (own_other_classes, "another class"),
        (own_any_class, "another class"),
        (own_dirty, "label"),
        (own_relabelled, "label"),
        (own_with_replacement, "once"),
        (own_all_stamped, "another class"),
        (own_whole_class, "number"),
        (own_first, "chance"),
        (own_chosen_only, "whole training set"),
        (own_misplaced, "each in its place"),
        (own_without_seed, "same seed"),
        (own_global_chance, "another seed"),
        (own_seed_zero, "another seed"),
        (own_brightest, "another seed"),
    ],
    "stay_close": [
        (close_no_range, "range"),
        (close_range_only, "epsilon"),
        (close_to_zero, "original"),
        (close_step_alone, "epsilon"),
        (close_upwards_only, "downwards"),
        (close_by_rescaling, "more than necessary"),
        (close_sign, "more than necessary"),
        (close_gives_up, "more than necessary"),
        (close_in_place, "changed"),
    ],
}
