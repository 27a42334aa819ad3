"""Answers to lab 09: right ones in other styles, and the usual mistakes with a word their message must hold."""

import torch
import torch.nn.functional as F

# --- attention_map ----------------------------------------------------------------------------------------------------


def einsum_map(features, p=2.0):
    summed = torch.einsum("bchw->bhw", features.abs() ** p)
    length = torch.linalg.vector_norm(summed, dim=(1, 2), keepdim=True)
    return summed / length.clamp_min(1e-12)


def mean_map(features, p=2.0):
    """A mean over channels is the sum over channels, once the length is 1."""
    averaged = features.abs().pow(p).mean(dim=1)
    flat = F.normalize(averaged.flatten(1), dim=1)
    return flat.view_as(averaged)


def loop_map(features, p=2.0):
    maps = []
    for one in features:
        total = sum(channel.abs() ** p for channel in one)
        norm = total.pow(2).sum().sqrt()
        maps.append(total / norm if norm > 0 else total)
    return torch.stack(maps)


def numpy_map(features, p=2.0):
    f = (abs(features.detach().numpy()) ** p).sum(1)
    norm = (f**2).sum((1, 2), keepdims=True) ** 0.5
    return f / norm.clip(1e-20)


def map_over_positions(features, p=2.0):
    return F.normalize(features.abs().pow(p).sum((2, 3)), dim=1)


def map_power_after_the_sum(features, p=2.0):
    return F.normalize(features.sum(1).abs().pow(p), dim=(1, 2))


def map_of_the_strongest_channel(features, p=2.0):
    return F.normalize(features.abs().pow(p).amax(1), dim=(1, 2))


def map_signed(features, p=2.0):
    return F.normalize(features.pow(p).sum(1), dim=(1, 2))


def map_always_squared(features, p=2.0):
    return F.normalize(features.square().sum(1), dim=(1, 2))


def map_not_scaled(features, p=2.0):
    return features.abs().pow(p).sum(1)


def map_scaled_to_sum_one(features, p=2.0):
    strength = features.abs().pow(p).sum(1)
    return strength / strength.sum((1, 2), keepdim=True).clamp_min(1e-12)


def map_scaled_for_the_batch(features, p=2.0):
    strength = features.abs().pow(p).sum(1)
    return strength / strength.norm()


def map_rows_scaled(features, p=2.0):
    """F.normalize's default: along axis 1, which after the sum is the image's rows."""
    return F.normalize(features.abs().pow(p).sum(1))


def map_nan(features, p=2.0):
    strength = features.abs().pow(p).sum(1)
    return strength / strength.flatten(1).norm(dim=1)[:, None, None]


# --- nad_loss ---------------------------------------------------------------------------------------------------------


def loop_loss(logits, labels, student_maps, teacher_maps, beta):
    total = F.cross_entropy(logits, labels)
    for s, t in zip(student_maps, teacher_maps, strict=True):
        total = total + beta * ((s - t) ** 2).sum() / len(s)
    return total


def cosine_loss(logits, labels, student_maps, teacher_maps, beta):
    """Two vectors of length 1: the squared distance is 2 - 2 cos."""
    apart = [(2 - 2 * (s * t).sum((1, 2))).mean() for s, t in zip(student_maps, teacher_maps, strict=True)]
    return F.nll_loss(logits.log_softmax(1), labels) + beta * torch.stack(apart).sum()


def joined_loss(logits, labels, student_maps, teacher_maps, beta):
    s, t = (torch.cat([m.flatten(1) for m in maps], dim=1) for maps in (student_maps, teacher_maps))
    return F.cross_entropy(logits, labels) + beta * (s - t).square().sum(1).mean()


def mse_sized_loss(logits, labels, student_maps, teacher_maps, beta):
    pairs = zip(student_maps, teacher_maps, strict=True)
    return F.cross_entropy(logits, labels) + beta * sum(F.mse_loss(s, t) * s[0].numel() for s, t in pairs)


def loss_softmax_twice(logits, labels, student_maps, teacher_maps, beta):
    return loop_loss(logits.softmax(1), labels, student_maps, teacher_maps, beta)


def loss_summed_cross_entropy(logits, labels, student_maps, teacher_maps, beta):
    attention = loop_loss(logits, labels, student_maps, teacher_maps, beta) - F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, reduction="sum") + attention


def loss_attention_only(logits, labels, student_maps, teacher_maps, beta):
    return loop_loss(logits, labels, student_maps, teacher_maps, beta) - F.cross_entropy(logits, labels)


def loss_mean_over_positions(logits, labels, student_maps, teacher_maps, beta):
    pairs = zip(student_maps, teacher_maps, strict=True)
    return F.cross_entropy(logits, labels) + beta * sum(F.mse_loss(s, t) for s, t in pairs)


def loss_summed_over_images(logits, labels, student_maps, teacher_maps, beta):
    pairs = zip(student_maps, teacher_maps, strict=True)
    return F.cross_entropy(logits, labels) + beta * sum((s - t).square().sum() for s, t in pairs)


def loss_not_squared(logits, labels, student_maps, teacher_maps, beta):
    pairs = zip(student_maps, teacher_maps, strict=True)
    return F.cross_entropy(logits, labels) + beta * sum((s - t).abs().sum((1, 2)).mean() for s, t in pairs)


def loss_without_beta(logits, labels, student_maps, teacher_maps, beta):
    return loop_loss(logits, labels, student_maps, teacher_maps, float(beta > 0))


def loss_mean_over_layers(logits, labels, student_maps, teacher_maps, beta):
    return loop_loss(logits, labels, student_maps, teacher_maps, beta / len(student_maps))


def loss_last_layer(logits, labels, student_maps, teacher_maps, beta):
    return loop_loss(logits, labels, student_maps[-1:], teacher_maps[-1:], beta)


def loss_per_image(logits, labels, student_maps, teacher_maps, beta):
    apart = sum((s - t).square().sum((1, 2)) for s, t in zip(student_maps, teacher_maps, strict=True))
    return F.cross_entropy(logits, labels, reduction="none") + beta * apart


# --- bezier_point -----------------------------------------------------------------------------------------------------


def casteljau(start, bend, end, t):
    """De Casteljau: the point between two points between the three."""
    return {k: start[k].lerp(bend[k], t).lerp(bend[k].lerp(end[k], t), t) for k in start}


def loop_bezier(start, bend, end, t):
    found = {}
    for name, a in start.items():
        found[name] = (1 - t) * ((1 - t) * a + t * bend[name]) + t * ((1 - t) * bend[name] + t * end[name])
    return found


def numpy_bezier(start, bend, end, t):
    w = ((1 - t) ** 2, 2 * t * (1 - t), t * t)
    return {k: sum(f * m[k].numpy() for f, m in zip(w, (start, bend, end), strict=True)) for k in bend}


def bezier_with_copies(start, bend, end, t):
    found = {k: v.clone() for k, v in start.items()}
    for k in found:
        found[k] *= (1 - t) ** 2
        found[k] += 2 * t * (1 - t) * bend[k] + t * t * end[k]
    return found


def straight(start, bend, end, t):
    return {k: start[k].lerp(end[k], t) for k in start}


def backwards(start, bend, end, t):
    return casteljau(end, bend, start, t)


def forgot_the_two(start, bend, end, t):
    return {k: (1 - t) ** 2 * start[k] + t * (1 - t) * bend[k] + t**2 * end[k] for k in start}


def linear_in_the_ends(start, bend, end, t):
    return {k: (1 - t) * start[k] + 2 * t * (1 - t) * bend[k] + t * end[k] for k in start}


def polygon_point(start, bend, end, t):
    """The other curve of the paper, which reaches the bend."""
    return {
        k: start[k].lerp(bend[k], 2 * t) if t <= 0.5 else bend[k].lerp(end[k], 2 * t - 1) for k in start
    }  # fmt: skip


def first_weight_alone(start, bend, end, t):
    name = next(iter(start))
    return casteljau({name: start[name]}, bend, end, t)


def list_of_weights(start, bend, end, t):
    return list(casteljau(start, bend, end, t).values())


def start_overwritten(start, bend, end, t):
    for k in start:
        start[k].mul_((1 - t) ** 2).add_(2 * t * (1 - t) * bend[k] + t**2 * end[k])
    return start


# --- choose_t ---------------------------------------------------------------------------------------------------------


def loop_choice(grid, accuracy, max_drop):
    best, chosen = max(accuracy.tolist()), None
    for t, a in zip(grid, accuracy.tolist(), strict=True):
        if a < best - max_drop:
            continue
        if chosen is None or round(abs(t - 0.5) - abs(chosen[0] - 0.5), 9) < 0:
            chosen = (t, a)
        elif abs(abs(t - 0.5) - abs(chosen[0] - 0.5)) < 1e-9 and a > chosen[1]:
            chosen = (t, a)
    return chosen[0]


def sorted_choice(grid, accuracy, max_drop):
    points = sorted(zip(grid, accuracy.tolist(), strict=True), key=lambda p: (round(abs(p[0] - 0.5), 6), -p[1]))
    return next(t for t, a in points if a >= float(accuracy.max()) - max_drop - 1e-9)


def tensor_choice(grid, accuracy, max_drop):
    t = torch.tensor(grid, dtype=torch.float64)
    cost = (t - 0.5).abs() - 1e-6 * accuracy.double()
    cost[accuracy < accuracy.max() - max_drop] = float("inf")
    return t[cost.argmin()]


def most_accurate(grid, accuracy, max_drop):
    return grid[int(accuracy.argmax())]


def the_middle(grid, accuracy, max_drop):
    return min(grid, key=lambda t: abs(t - 0.5))


def index_of_the_choice(grid, accuracy, max_drop):
    return grid.index(loop_choice(grid, accuracy, max_drop)) + 2


def least_accurate_allowed(grid, accuracy, max_drop):
    allowed = accuracy.masked_fill(accuracy < accuracy.max() - max_drop, 2.0)
    return grid[int(allowed.argmin())]


def drop_from_the_start(grid, accuracy, max_drop):
    """Measured from the model at t = 0, which need not be the best."""
    allowed = [i for i in range(len(grid)) if accuracy[i] >= accuracy[0] - max_drop]
    return grid[min(allowed, key=lambda i: (round(abs(grid[i] - 0.5), 6), -float(accuracy[i])))]


def first_of_equals(grid, accuracy, max_drop):
    allowed = [t for t, a in zip(grid, accuracy.tolist(), strict=True) if a >= float(accuracy.max()) - max_drop]
    return min(allowed, key=lambda t: round(abs(t - 0.5), 6))


def furthest_from_the_start(grid, accuracy, max_drop):
    return max(t for t, a in zip(grid, accuracy.tolist(), strict=True) if a >= float(accuracy.max()) - max_drop)


RIGHT = {
    "attention_map": [einsum_map, mean_map, loop_map, numpy_map],
    "nad_loss": [loop_loss, cosine_loss, joined_loss, mse_sized_loss],
    "bezier_point": [casteljau, loop_bezier, numpy_bezier, bezier_with_copies],
    "choose_t": [loop_choice, sorted_choice, tensor_choice],
}
WRONG = {
    "attention_map": [
        (map_over_positions, "shape"),
        (map_power_after_the_sum, "first"),
        (map_of_the_strongest_channel, "add up"),
        (map_signed, "absolute"),
        (map_always_squared, "argument"),
        (map_not_scaled, "length 1"),
        (map_scaled_to_sum_one, "root of the sum of squares"),
        (map_scaled_for_the_batch, "its own"),
        (map_rows_scaled, "position"),
        (map_nan, "silent"),
    ],
    "nad_loss": [
        (loss_softmax_twice, "softmax"),
        (loss_summed_cross_entropy, "averaged"),
        (loss_attention_only, "cross-entropy"),
        (loss_mean_over_positions, "positions"),
        (loss_summed_over_images, "images"),
        (loss_not_squared, "squared"),
        (loss_without_beta, "beta"),
        (loss_mean_over_layers, "added up"),
        (loss_last_layer, "every layer"),
        (loss_per_image, "one number"),
    ],
    "bezier_point": [
        (straight, "quadratic"),
        (backwards, "ends"),
        (forgot_the_two, "add up to 1"),
        (linear_in_the_ends, "1/4"),
        (polygon_point, "quadratic"),
        (first_weight_alone, "same names"),
        (list_of_weights, "dictionary"),
        (start_overwritten, "changed"),
    ],
    "choose_t": [
        (most_accurate, "nearer to the middle"),
        (the_middle, "max_drop"),
        (index_of_the_choice, "not its index"),
        (least_accurate_allowed, "nearer"),
        (drop_from_the_start, "below the best"),
        (first_of_equals, "higher accuracy"),
        (furthest_from_the_start, "nearer"),
    ],
}
