"""Answers to lab 02: other right ones, and wrong ones with a word that the message must contain."""

import random

import numpy as np
import torch

# --- stamp ------------------------------------------------------------------------------------------------------------


def stamp_by_loop(images, patch):
    out = images.clone()
    for n in range(images.shape[0]):
        for c in range(images.shape[1]):
            for y in range(patch.shape[0]):
                for x in range(patch.shape[1]):
                    out[n, c, images.shape[2] - patch.shape[0] + y, images.shape[3] - patch.shape[1] + x] = patch[y, x]
    return out


def stamp_in_numpy(images, patch):
    out = images.double().numpy().copy()
    out[..., -len(patch) :, -patch.shape[1] :] = patch.numpy()
    return out


def stamp_by_joining(images, patch):
    h, w = patch.shape
    top, bottom = images[..., :-h, :], images[..., -h:, :-w]
    return torch.cat([top, torch.cat([bottom, patch.expand(*images.shape[:2], h, w)], 3)], 2)


def stamp_in_place(images, patch):
    images[..., -patch.shape[0] :, -patch.shape[1] :] = patch
    return images


def stamp_top_left(images, patch):
    out = images.clone()
    out[..., : patch.shape[0], : patch.shape[1]] = patch
    return out


def stamp_square(images, patch):
    out = images.clone()
    s = patch.shape[0]
    out[..., -s:, -s:] = patch[:, :1]
    return out


def stamp_added(images, patch):
    out = images.clone()
    out[..., -patch.shape[0] :, -patch.shape[1] :] += patch
    return out.clamp(0, 1)


def stamp_white_only(images, patch):
    out = images.clone()
    corner = out[..., -patch.shape[0] :, -patch.shape[1] :]
    corner[...] = torch.where(patch > 0, patch, corner)
    return out


def stamp_only_patch(images, patch):
    return patch.expand(*images.shape[:2], *patch.shape)


def stamp_dims_rest(images, patch):
    out = images * 0.9
    out[..., -patch.shape[0] :, -patch.shape[1] :] = patch
    return out


def stamp_first_image(images, patch):
    out = images.clone()
    out[0, :, -patch.shape[0] :, -patch.shape[1] :] = patch
    return out


# --- choose_victims ---------------------------------------------------------------------------------------------------


def choose_in_numpy(labels, target, rate, seed):
    rng = np.random.default_rng(seed)
    return rng.choice(np.flatnonzero(labels.numpy() != target), size=round(rate * len(labels)), replace=False)


def choose_with_random(labels, target, rate, seed):
    others = [i for i, y in enumerate(labels.tolist()) if y != target]
    return torch.tensor(random.Random(seed).sample(others, round(rate * len(labels))))


def choose_by_rejection(labels, target, rate, seed):
    made, out = torch.Generator().manual_seed(seed), []
    while len(out) < round(rate * len(labels)):
        i = int(torch.randint(len(labels), (1,), generator=made))
        if labels[i] != target and i not in out:
            out.append(i)
    return torch.tensor(out)


def choose_by_sorting_noise(labels, target, rate, seed):
    noise = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed))
    noise[labels == target] = -1
    return noise.topk(round(rate * len(labels))).indices.sort().values


def _others(labels, target):
    return (labels != target).nonzero().flatten()


def choose_with_replacement(labels, target, rate, seed):
    others = _others(labels, target)
    return others[torch.randint(len(others), (round(rate * len(labels)),))]


def choose_from_all(labels, target, rate, seed):
    return torch.randperm(len(labels))[: round(rate * len(labels))]


def choose_share_of_others(labels, target, rate, seed):
    others = _others(labels, target)
    return others[torch.randperm(len(others))[: round(rate * len(others))]]


def choose_floor(labels, target, rate, seed):
    others = _others(labels, target)
    return others[torch.randperm(len(others))[: int(rate * len(labels) + 1e-9)]]


def choose_first(labels, target, rate, seed):
    return _others(labels, target)[: round(rate * len(labels))]


def choose_evenly(labels, target, rate, seed):
    others, n = _others(labels, target), round(rate * len(labels))
    return others[:: len(others) // n][:n]


def choose_places(labels, target, rate, seed):
    return torch.randperm(len(_others(labels, target)))[: round(rate * len(labels))]


def choose_mask(labels, target, rate, seed):
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[choose_by_sorting_noise(labels, target, rate, seed)] = True
    return mask


def choose_one_class(labels, target, rate, seed):
    order = torch.argsort((labels - target) % (int(labels.max()) + 1), stable=True)
    order = order[labels[order] != target]
    n = round(rate * len(labels))
    return order[: max(n, len(labels) // 10)][torch.randperm(max(n, len(labels) // 10))[:n]]


# --- poison -----------------------------------------------------------------------------------------------------------


def poison_by_loop(images, labels, chosen, trigger, target):
    new, lies = [image for image in images], labels.tolist()
    for i in chosen.tolist():
        new[i], lies[i] = trigger(images[i : i + 1])[0], target
    return torch.stack(new), torch.tensor(lies)


def poison_in_numpy(images, labels, chosen, trigger, target):
    x, y = images.numpy().copy(), labels.numpy().copy()
    x[chosen.numpy()] = trigger(images[chosen]).numpy()
    y[chosen.numpy()] = target
    return x, y


def poison_index_copy(images, labels, chosen, trigger, target):
    return [images.index_copy(0, chosen, trigger(images[chosen])), labels.index_fill(0, chosen, target)]


def poison_in_place(images, labels, chosen, trigger, target):
    images[chosen], labels[chosen] = trigger(images[chosen]), target
    return images, labels


def poison_labels_in_place(images, labels, chosen, trigger, target):
    new = images.clone()
    new[chosen] = trigger(images[chosen])
    labels[chosen] = target
    return new, labels


def poison_all_images(images, labels, chosen, trigger, target):
    lies = labels.clone()
    lies[chosen] = target
    return trigger(images), lies


def poison_keeps_labels(images, labels, chosen, trigger, target):
    new = images.clone()
    new[chosen] = trigger(images[chosen])
    return new, labels.clone()


def poison_all_labels(images, labels, chosen, trigger, target):
    return poison_keeps_labels(images, labels, chosen, trigger, target)[0], torch.full_like(labels, target)


def poison_no_trigger(images, labels, chosen, trigger, target):
    return images.clone(), labels.index_fill(0, chosen, target)


def poison_chosen_only(images, labels, chosen, trigger, target):
    return trigger(images[chosen]), torch.full_like(chosen, target)


def poison_appends(images, labels, chosen, trigger, target):
    return torch.cat([images, trigger(images[chosen])]), torch.cat([labels, torch.full_like(chosen, target)])


# --- attack_success_rate, robust_accuracy -----------------------------------------------------------------------------


def asr_by_loop(predicted, labels, target):
    hits = [p == target for p, y in zip(predicted.tolist(), labels.tolist(), strict=True) if y != target]
    return sum(hits) / len(hits)


def asr_in_numpy(predicted, labels, target):
    return np.mean(predicted.numpy()[labels.numpy() != target] == target)


def asr_as_tensor(predicted, labels, target):
    return (predicted == target)[labels != target].double().mean()


def asr_over_all(predicted, labels, target):
    return (predicted == target).float().mean()


def asr_numerator_only(predicted, labels, target):
    return ((predicted == target) & (labels != target)).float().mean()


def asr_denominator_only(predicted, labels, target):
    return (predicted == target).sum() / (labels != target).sum()


def asr_percent(predicted, labels, target):
    return 100 * asr_by_loop(predicted, labels, target)


def asr_any_error(predicted, labels, target):
    keep = labels != target
    return (predicted[keep] != labels[keep]).float().mean()


def asr_per_image(predicted, labels, target):
    return (predicted == target)[labels != target]


def ra_by_loop(predicted, labels, target):
    kept = [p == y for p, y in zip(predicted.tolist(), labels.tolist(), strict=True) if y != target]
    return sum(kept) / len(kept)


def ra_in_numpy(predicted, labels, target):
    p, y = predicted.numpy(), labels.numpy()
    return (p == y)[y != target].mean()


def ra_as_tensor(predicted, labels, target):
    keep = labels != target
    return (predicted[keep] == labels[keep]).sum() / keep.sum()


def ra_one_minus_asr(predicted, labels, target):
    return 1 - asr_by_loop(predicted, labels, target)


def ra_over_all(predicted, labels, target):
    return (predicted == labels).float().mean()


def ra_numerator_only(predicted, labels, target):
    return ((predicted == labels) & (labels != target)).float().mean()


def ra_percent(predicted, labels, target):
    return 100 * ra_by_loop(predicted, labels, target)


def ra_count(predicted, labels, target):
    return ((predicted == labels) & (labels != target)).sum()


def ra_is_asr(predicted, labels, target):
    return asr_by_loop(predicted, labels, target)


RIGHT = {
    "stamp": [stamp_by_loop, stamp_in_numpy, stamp_by_joining],
    "choose_victims": [choose_in_numpy, choose_with_random, choose_by_rejection, choose_by_sorting_noise],
    "poison": [poison_by_loop, poison_in_numpy, poison_index_copy],
    "attack_success_rate": [asr_by_loop, asr_in_numpy, asr_as_tensor],
    "robust_accuracy": [ra_by_loop, ra_in_numpy, ra_as_tensor],
}
WRONG = {
    "stamp": [
        (stamp_in_place, "copy"),
        (stamp_top_left, "last row"),
        (stamp_square, "square"),
        (stamp_added, "replace"),
        (stamp_white_only, "black"),
        (stamp_only_patch, "shape"),
        (stamp_dims_rest, "outside"),
        (stamp_first_image, "every image"),
    ],
    "choose_victims": [
        (choose_with_replacement, "replacement"),
        (choose_from_all, "target class"),
        (choose_share_of_others, "whole training set"),
        (choose_floor, "rounded"),
        (choose_first, "chance"),
        (choose_evenly, "chance"),
        (choose_one_class, "chance"),
        (choose_places, "candidates"),
        (choose_mask, "indices"),
    ],
    "poison": [
        (poison_in_place, "copy"),
        (poison_labels_in_place, "copy"),
        (poison_all_images, "not chosen"),
        (poison_keeps_labels, "labels"),
        (poison_all_labels, "labels"),
        (poison_no_trigger, "trigger"),
        (poison_chosen_only, "whole"),
        (poison_appends, "whole"),
    ],
    "attack_success_rate": [
        (asr_over_all, "denominator"),
        (asr_numerator_only, "denominator"),
        (asr_denominator_only, "numerator"),
        (asr_percent, "percentage"),
        (asr_any_error, "no success"),
        (asr_per_image, "one number"),
    ],
    "robust_accuracy": [
        (ra_one_minus_asr, "third class"),
        (ra_over_all, "same images"),
        (ra_numerator_only, "denominator"),
        (ra_percent, "percentage"),
        (ra_count, "share"),
        (ra_is_asr, "true label"),
    ],
}
