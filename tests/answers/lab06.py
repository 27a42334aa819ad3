"""Answers to lab 06: right ones in other styles, and the usual mistakes with a word their message must hold."""

import numpy as np
import torch

# --- activity ---------------------------------------------------------------------------------------------------------


def flattened_activity(features):
    return features.transpose(0, 1).flatten(1).mean(1)


def numpy_activity(features):
    return features.numpy().mean(axis=(0, 2, 3))


def loop_activity(features):
    return [float(features[:, c].mean()) for c in range(features.shape[1])]


def stacked_activity(features):
    return torch.stack([features[:, c].double().mean() for c in range(features.shape[1])])


def steps_activity(features):
    return features.mean(3).mean(2).mean(0)


def summed_activity(features):
    return features.sum((0, 2, 3))


def summed_over_images(features):
    return features.mean((2, 3)).sum(0)


def peak_activity(features):
    return features.amax((0, 2, 3))


def mean_of_peaks(features):
    return features.amax((2, 3)).mean(0)


def of_each_image(features):
    return features.mean((2, 3))


def of_the_images(features):
    return features.mean((1, 2, 3))


def of_one_number(features):
    return features.mean()


def attention_map(features):
    return features.mean(1)


def share_of_time_awake(features):
    return (features > 0).float().mean((0, 2, 3))


def mean_when_awake(features):
    return features.sum((0, 2, 3)) / (features > 0).sum((0, 2, 3)).clamp_min(1)


# --- silence ----------------------------------------------------------------------------------------------------------


def cloned_silence(features, channels):
    out = features.clone()
    for c in channels.tolist():
        out[:, c] = 0.0
    return out


def masked_silence(features, channels):
    keep = torch.ones(features.shape[1])
    keep[channels] = 0
    return features * keep[None, :, None, None]


def filled_silence(features, channels):
    return features.index_fill(1, channels, 0.0)


def numpy_silence(features, channels):
    out = features.numpy().copy()
    out[:, channels.numpy()] = 0
    return out


def silenced_in_place(features, channels):
    features[:, channels] = 0
    return features


def silenced_images(features, channels):
    out = features.clone()
    out[channels.clamp_max(len(out) - 1)] = 0
    return out


def removed(features, channels):
    keep = [c for c in range(features.shape[1]) if c not in channels.tolist()]
    return features[:, keep]


def silenced_the_others(features, channels):
    return features - filled_silence(features, channels)


def silenced_the_first(features, channels):
    out = features.clone()
    out[:, : len(channels)] = 0
    return out


def silenced_one_corner(features, channels):
    out = features.clone()
    out[:, channels, 0, 0] = 0
    return out


def averaged(features, channels):
    out = features.clone()
    out[:, channels] = features[:, channels].mean((0, 2, 3), keepdim=True)
    return out


def rescaled(features, channels):
    """As dropout does: what is left is made louder to make up for it."""
    return filled_silence(features, channels) * features.shape[1] / max(1, features.shape[1] - len(channels))


# --- how_many ---------------------------------------------------------------------------------------------------------


def loop_how_many(curve, max_drop):
    best = 0
    for n in range(len(curve) - 1):
        if curve[0] - curve[n] <= max_drop:
            best = n
    return best


def backwards_how_many(curve, max_drop):
    for n in reversed(range(len(curve) - 1)):
        if curve[n] >= curve[0] - max_drop:
            return n


def numpy_how_many(curve, max_drop):
    c = curve.numpy()
    return np.flatnonzero(c[:-1] >= c[0] - max_drop)[-1]


def tensor_how_many(curve, max_drop):
    n = torch.arange(len(curve))
    return n[(curve >= curve[0] - max_drop) & (n < len(curve) - 1)].max()


def first_violation(curve, max_drop):
    for n in range(len(curve) - 1):
        if curve[n + 1] < curve[0] - max_drop:
            return n
    return len(curve) - 2


def all_may_go(curve, max_drop):
    return int((curve >= curve[0] - max_drop).nonzero().max())


def strict(curve, max_drop):
    allowed = (curve[:-1] > curve[0] - max_drop).nonzero()
    return int(allowed.max()) if len(allowed) else 0


def relative(curve, max_drop):
    return int((curve[:-1] >= curve[0] * (1 - max_drop)).nonzero().max())


def share_of_channels(curve, max_drop):
    return loop_how_many(curve, max_drop) / (len(curve) - 1)


def one_too_many(curve, max_drop):
    return loop_how_many(curve, max_drop) + 1


def accuracy_there(curve, max_drop):
    return float(curve[loop_how_many(curve, max_drop)])


def accuracy_floor(curve, max_drop):
    return int((curve[:-1] >= 1 - max_drop).nonzero().max()) if (curve[:-1] >= 1 - max_drop).any() else 0


def drop_of_each_step(curve, max_drop):
    small = (curve[:-1] - curve[1:] <= max_drop).nonzero().flatten().tolist()
    return max(small, default=0)


# --- overlap ----------------------------------------------------------------------------------------------------------


def sets_overlap(clean, triggered, k):
    rise = (triggered - clean).tolist()
    woken = sorted(range(len(rise)), key=lambda c: -rise[c])[:k]
    busy = set(sorted(range(len(rise)), key=lambda c: -float(clean[c]))[: len(rise) // 2])
    return sum(c in busy for c in woken) / k


def numpy_overlap(clean, triggered, k):
    woken = np.argsort((clean - triggered).numpy())[:k]
    busy = np.argsort(-clean.numpy())[: len(clean) // 2]
    return np.isin(woken, busy).mean()


def median_overlap(clean, triggered, k):
    woken = (triggered - clean).argsort(descending=True)[:k]
    return (clean[woken] > clean.sort().values[(len(clean) - 1) // 2]).float().mean()


def loudest_under_the_trigger(clean, triggered, k):
    woken = triggered.topk(k).indices
    return torch.isin(woken, clean.topk(len(clean) // 2).indices).float().mean()


def counted(clean, triggered, k):
    return k * sets_overlap(clean, triggered, k)


def of_half(clean, triggered, k):
    return k * sets_overlap(clean, triggered, k) / (len(clean) // 2)


def with_dormant(clean, triggered, k):
    return 1 - sets_overlap(clean, triggered, k)


def fallen(clean, triggered, k):
    woken = (clean - triggered).topk(k).indices
    return torch.isin(woken, clean.topk(len(clean) // 2).indices).float().mean()


def busy_under_the_trigger(clean, triggered, k):
    woken = (triggered - clean).topk(k).indices
    return torch.isin(woken, triggered.topk(len(clean) // 2).indices).float().mean()


def with_the_k_busiest(clean, triggered, k):
    woken = (triggered - clean).topk(k).indices
    return torch.isin(woken, clean.topk(k).indices).float().mean()


def relative_rise(clean, triggered, k):
    """By factor: a channel near 0 wins with the smallest stir."""
    woken = (triggered / clean).topk(k).indices
    return torch.isin(woken, clean.topk(len(clean) // 2).indices).float().mean()


RIGHT = {
    "activity": [flattened_activity, numpy_activity, stacked_activity, steps_activity],
    "silence": [cloned_silence, masked_silence, filled_silence, numpy_silence],
    "how_many": [loop_how_many, backwards_how_many, numpy_how_many, tensor_how_many],
    "overlap": [sets_overlap, numpy_overlap, median_overlap],
}
WRONG = {
    "activity": [
        (summed_activity, "mean"),
        (summed_over_images, "scale"),
        (peak_activity, "all outputs"),
        (mean_of_peaks, "all outputs"),
        (of_each_image, "shape"),
        (of_the_images, "shape"),
        (of_one_number, "one number for each channel"),
        (attention_map, "axes"),
        (share_of_time_awake, "value"),
        (mean_when_awake, "zeros too"),
    ],
    "silence": [
        (silenced_in_place, "in place"),
        (silenced_images, "second axis"),
        (removed, "shape"),
        (silenced_the_others, "speaks"),
        (silenced_the_first, "speaks"),
        (silenced_one_corner, "every position"),
        (averaged, "must be 0"),
        (rescaled, "not chosen"),
    ],
    "how_many": [
        (first_violation, "largest n"),
        (all_may_go, "stay"),
        (strict, "threshold"),
        (relative, "difference"),
        (share_of_channels, "whole number"),
        (one_too_many, "n of them"),
        (accuracy_there, "whole number"),
        (accuracy_floor, "curve[0]"),
        (drop_of_each_step, "curve[0]"),
    ],
    "overlap": [
        (loudest_under_the_trigger, "rises most"),
        (counted, "share"),
        (of_half, "divide by k"),
        (with_dormant, "difference"),
        (fallen, "rises most"),
        (busy_under_the_trigger, "clean"),
        (with_the_k_busiest, "half"),
        (relative_rise, "difference"),
    ],
}
