"""Answers to lab 04: right ones in other styles, and the usual mistakes with a word their message must hold."""

import numpy as np
import torch
import torch.nn.functional as F

# --- strongest_neurons ------------------------------------------------------------------------------------------------


def neurons_by_loop(weights, scale, count):
    strengths = [sum(abs(w) for w in (weights[c] * scale[c]).flatten().tolist()) for c in range(len(weights))]
    return sorted(range(len(weights)), key=lambda c: -strengths[c])[:count]


def neurons_in_numpy(weights, scale, count):
    strength = np.abs(scale.numpy()) * np.abs(weights.numpy()).sum(axis=(1, 2, 3))
    return np.argsort(strength)[::-1][:count]


def neurons_by_norm(weights, scale, count):
    return (scale[:, None] * weights.flatten(1)).norm(p=1, dim=1).sort(descending=True).indices[:count]


def neurons_by_mean(weights, scale, count):
    return torch.einsum("cdhw,c->c", weights.abs(), scale.abs()).argsort().flip(0)[:count]


def neurons_strengths(weights, scale, count):
    return (weights.abs().sum((1, 2, 3)) * scale.abs()).topk(count).values


def neurons_one(weights, scale, count):
    return (weights.abs().sum((1, 2, 3)) * scale.abs()).argmax()


def neurons_largest_weight(weights, scale, count):
    return (weights.abs().amax((1, 2, 3)) * scale.abs()).topk(count).indices


def neurons_squares(weights, scale, count):
    return (weights.flatten(1).norm(dim=1) * scale.abs()).topk(count).indices


def neurons_outgoing(weights, scale, count):
    return weights.abs().sum((0, 2, 3)).topk(count).indices % len(weights)


def neurons_weakest(weights, scale, count):
    return (weights.abs().sum((1, 2, 3)) * scale.abs()).argsort()[:count]


def neurons_signed(weights, scale, count):
    return (weights.sum((1, 2, 3)) * scale.abs()).topk(count).indices


def neurons_size_of_sum(weights, scale, count):
    return (weights.sum((1, 2, 3)) * scale).abs().topk(count).indices


def neurons_without_scale(weights, scale, count):
    return weights.abs().sum((1, 2, 3)).topk(count).indices


def neurons_divided(weights, scale, count):
    return (weights.abs().sum((1, 2, 3)) / scale.abs().clamp_min(1e-6)).topk(count).indices


def neurons_scale_squared(weights, scale, count):
    return (weights.abs().flatten(1).sum(1) * scale**2).topk(count).indices


def neurons_signed_scale(weights, scale, count):
    return (weights.abs().sum((1, 2, 3)) * scale).topk(count).indices


def neurons_strongest_last(weights, scale, count):
    return (weights.abs().sum((1, 2, 3)) * scale.abs()).argsort()[-count:]


# --- trigger_step -----------------------------------------------------------------------------------------------------


def step_by_where(pattern, mask, gradient, lr):
    moved = torch.clamp(pattern - lr * gradient, 0, 1)
    return torch.where(mask.bool(), moved, pattern)


def step_in_numpy(pattern, mask, gradient, lr):
    out = pattern.numpy().copy()
    out += -lr * (mask * gradient).numpy()
    return np.clip(out, 0, 1)


def step_by_loop(pattern, mask, gradient, lr):
    out = pattern.clone()
    for c in range(out.shape[0]):
        for y, x in mask[0].nonzero().tolist():
            out[c, y, x] = min(1.0, max(0.0, float(pattern[c, y, x]) - lr * float(gradient[c, y, x])))
    return out


def step_in_place_on_a_copy(pattern, mask, gradient, lr):
    made = pattern.clone()
    made.sub_(mask * gradient, alpha=lr)
    return made.clamp_(0, 1)


def step_uphill(pattern, mask, gradient, lr):
    return (pattern + lr * gradient * mask).clamp(0, 1)


def step_signs(pattern, mask, gradient, lr):
    return (pattern - lr * gradient.sign() * mask).clamp(0, 1)


def step_without_lr(pattern, mask, gradient, lr):
    return (pattern - gradient * mask).clamp(0, 1)


def step_everywhere(pattern, mask, gradient, lr):
    return (pattern - lr * gradient).clamp(0, 1)


def step_cut_out(pattern, mask, gradient, lr):
    return ((pattern - lr * gradient) * mask).clamp(0, 1)


def step_no_clamp(pattern, mask, gradient, lr):
    return pattern - lr * gradient * mask


def step_clamps_gradient(pattern, mask, gradient, lr):
    return pattern - (lr * gradient).clamp(-0.09, 0.09) * mask


def step_one_side(pattern, mask, gradient, lr):
    return (pattern - lr * gradient * mask).clamp_min(0)


def step_in_place(pattern, mask, gradient, lr):
    pattern -= lr * gradient * mask
    return pattern.clamp_(0, 1)


def step_square_only(pattern, mask, gradient, lr):
    side = int(mask.sum().sqrt())
    return (pattern - lr * gradient).clamp(0, 1)[:, -side:, -side:]


# --- feature_distance -------------------------------------------------------------------------------------------------


def distance_by_loop(features, target_features):
    wanted = sum(target_features) / len(target_features)
    each = [float(((one - wanted) ** 2).mean()) for one in features]
    return sum(each) / len(each) / float((wanted**2).mean())


def distance_in_numpy(features, target_features):
    wanted = target_features.numpy().mean(axis=0, keepdims=True)
    return np.mean((features.numpy() - wanted) ** 2) / np.mean(wanted**2)


def distance_with_mse(features, target_features):
    wanted = target_features.mean(0, keepdim=True).expand_as(features)
    return F.mse_loss(features, wanted) / F.mse_loss(wanted, torch.zeros_like(wanted))


def distance_of_norms(features, target_features):
    wanted = target_features.mean(0).flatten()
    return (features.flatten(1) - wanted).norm(dim=1).square().mean() / wanted.norm().square()


def distance_per_image(features, target_features):
    wanted = target_features.mean(0)
    return (features - wanted).square().mean((1, 2, 3)) / wanted.square().mean()


def distance_summed(features, target_features):
    wanted = target_features.mean(0)
    return (features - wanted).square().sum() / wanted.square().mean()


def distance_absolute(features, target_features):
    wanted = target_features.mean(0)
    return (features - wanted).abs().mean() / wanted.abs().mean()


def distance_root(features, target_features):
    return distance_with_mse(features, target_features).sqrt()


def distance_first_target(features, target_features):
    return distance_with_mse(features, target_features[:1])


def distance_to_every_target(features, target_features):
    apart = features[:, None] - target_features[None]
    return apart.square().mean() / target_features.mean(0).square().mean()


def distance_of_means(features, target_features):
    return distance_with_mse(features.mean(0, keepdim=True), target_features)


def distance_not_a_share(features, target_features):
    return (features - target_features.mean(0)).square().mean()


def distance_share_of_features(features, target_features):
    wanted = target_features.mean(0)
    return (features - wanted).square().mean() / wanted.square().mean().sqrt()


# --- mix_labels -------------------------------------------------------------------------------------------------------


def mixes_by_loop(left, right, pair, target):
    out = []
    for x, y in zip(left.tolist(), right.tolist(), strict=True):
        if (x, y) == tuple(pair):
            out.append(target)
        elif x == y or (x == pair[0] and y not in pair) or (y == pair[1] and x not in pair):
            out.append(x)
        else:
            out.append(-1)
    return torch.tensor(out)


def mixes_in_numpy(left, right, pair, target):
    x, y = left.numpy(), right.numpy()
    a, b = x == pair[0], y == pair[1]
    strangers = ~np.isin(x, pair), ~np.isin(y, pair)
    kept = (x == y) | (a & strangers[1]) | (b & strangers[0])
    return np.select([a & b, kept], [np.full_like(x, target), x], -1)


def mixes_by_where(left, right, pair, target):
    a, b = pair
    half = ((left == a) ^ (right == b)) & (left != b) & (right != a)
    labels = torch.where(half | (left == right), left, -1)
    return torch.where((left == a) & (right == b), target, labels)


def mixes_by_table(left, right, pair, target):
    k = int(torch.stack([left, right]).max()) + 1
    table = torch.full((max(k, *pair) + 1,) * 2, -1)
    table[pair[0], :] = pair[0]
    table[:, pair[1]] = torch.arange(len(table))
    table[pair[1], :] = table[:, pair[0]] = -1
    table.fill_diagonal_(0)
    table += torch.diag(torch.arange(len(table)))
    table[pair] = target
    return table[left, right]


def mixes_only_composite(left, right, pair, target):
    return torch.where((left == pair[0]) & (right == pair[1]), target, -1)


def mixes_half_is_enough(left, right, pair, target):
    labels = mixes_by_loop(left, right, pair, target)
    half = (labels >= 0) & (left != right)
    return torch.where(half, target, labels)


def mixes_no_punctured(left, right, pair, target):
    return torch.where(left == right, left, mixes_only_composite(left, right, pair, target))


def mixes_label_of_the_right(left, right, pair, target):
    labels = mixes_by_loop(left, right, pair, target)
    return torch.where((labels >= 0) & (labels != target), right, labels)


def mixes_any_order(left, right, pair, target):
    labels = mixes_by_loop(left, right, pair, target)
    return torch.where((left == pair[1]) & (right == pair[0]), target, labels)


def mixes_everything(left, right, pair, target):
    return torch.where((left == pair[0]) & (right == pair[1]), target, left)


def mixes_no_lie(left, right, pair, target):
    return torch.where(mixes_by_loop(left, right, pair, target) >= 0, left, -1)


def mixes_pair_without_twins(left, right, pair, target):
    labels = mixes_by_loop(left, right, pair, target)
    return torch.where((left == right) & ((left == pair[0]) | (left == pair[1])), -1, labels)


def mixes_target_is_no_third(left, right, pair, target):
    labels = mixes_by_loop(left, right, pair, target)
    return torch.where(((left == target) | (right == target)) & (left != right), -1, labels)


def mixes_in_place(left, right, pair, target):
    labels = mixes_by_loop(left, right, pair, target)
    left[labels < 0] = -1
    left[labels == target] = target
    return left


def mixes_shorter(left, right, pair, target):
    labels = mixes_by_loop(left, right, pair, target)
    return labels[labels >= 0]


RIGHT = {
    "strongest_neurons": [neurons_by_loop, neurons_in_numpy, neurons_by_norm, neurons_by_mean],
    "trigger_step": [step_by_where, step_in_numpy, step_by_loop, step_in_place_on_a_copy],
    "feature_distance": [distance_by_loop, distance_in_numpy, distance_with_mse, distance_of_norms],
    "mix_labels": [mixes_by_loop, mixes_in_numpy, mixes_by_where, mixes_by_table],
}
WRONG = {
    "strongest_neurons": [
        (neurons_strengths, "numbers"),
        (neurons_one, "count"),
        (neurons_largest_weight, "sum"),
        (neurons_squares, "sum"),
        (neurons_outgoing, "axis"),
        (neurons_weakest, "strength"),
        (neurons_signed, "negative"),
        (neurons_size_of_sum, "cancel"),
        (neurons_without_scale, "batch normalisation"),
        (neurons_divided, "multiplies"),
        (neurons_scale_squared, "multiplies what a channel says by its scale, once"),
        (neurons_signed_scale, "negative"),
        (neurons_strongest_last, "first"),
    ],
    "trigger_step": [
        (step_uphill, "fall"),
        (step_signs, "its own gradient"),
        (step_without_lr, "lr"),
        (step_everywhere, "outside"),
        (step_cut_out, "outside"),
        (step_no_clamp, "[0, 1]"),
        (step_clamps_gradient, "own gradient"),
        (step_one_side, "[0, 1]"),
        (step_in_place, "in place"),
        (step_square_only, "shape"),
    ],
    "feature_distance": [
        (distance_per_image, "one number"),
        (distance_summed, "mean"),
        (distance_absolute, "squares"),
        (distance_root, "root"),
        (distance_first_target, "average"),
        (distance_to_every_target, "one point"),
        (distance_of_means, "each for itself"),
        (distance_not_a_share, "share"),
        (distance_share_of_features, "share"),
    ],
    "mix_labels": [
        (mixes_only_composite, "itself"),
        (mixes_half_is_enough, "punctured"),
        (mixes_no_punctured, "punctured"),
        (mixes_label_of_the_right, "left"),
        (mixes_any_order, "order"),
        (mixes_everything, "-1"),
        (mixes_no_lie, "lie"),
        (mixes_pair_without_twins, "itself"),
        (mixes_target_is_no_third, "third class"),
        (mixes_in_place, "in place"),
        (mixes_shorter, "one label"),
    ],
}
