"""Answers to lab 11: right ones in other styles, and the usual mistakes with a word their message must hold."""

import numpy as np
import torch

# --- cross_trigger ----------------------------------------------------------------------------------------------------


def crossed_with_masks(crossed, labels, target):
    others, answers = labels != target, crossed.argmax(1)
    n = others.sum().item()
    return ((answers == labels) & others).sum().item() / n, ((answers == target) & others).sum().item() / n


def crossed_with_a_loop(crossed, labels, target):
    kept = fired = count = 0
    for row, label in zip(crossed.tolist(), labels.tolist(), strict=True):
        if label == target:
            continue
        answer = row.index(max(row))
        kept, fired, count = kept + (answer == label), fired + (answer == target), count + 1
    return kept / count, fired / count


def crossed_in_numpy(crossed, labels, target):
    z, y = crossed.numpy(), labels.numpy()
    z, y = z[y != target], y[y != target]
    return np.mean(z.argmax(1) == y), np.mean(z.argmax(1) == target)


def crossed_with_softmax(crossed, labels, target):
    answers = crossed.softmax(dim=-1).max(dim=-1).indices
    wanted = labels.ne(target)
    return [(answers[wanted] == labels[wanted]).float().mean(), (answers[wanted] == target).float().mean()]


def crossed_all_images(crossed, labels, target):
    answers = crossed.argmax(1)
    return (answers == labels).float().mean(), (answers == target).float().mean()


def crossed_turned_round(crossed, labels, target):
    return crossed_with_masks(crossed, labels, target)[::-1]


def crossed_not_fired_is_kept(crossed, labels, target):
    _, fired = crossed_with_masks(crossed, labels, target)
    return 1 - fired, fired


def crossed_wrong_is_fired(crossed, labels, target):
    kept, _ = crossed_with_masks(crossed, labels, target)
    return kept, 1 - kept


def crossed_divided_by_all(crossed, labels, target):
    others, answers = labels != target, crossed.argmax(1)
    return ((answers == labels) & others).float().mean(), ((answers == target) & others).float().mean()


def crossed_counted(crossed, labels, target):
    others, answers = labels != target, crossed.argmax(1)
    return ((answers == labels) & others).sum(), ((answers == target) & others).sum()


def crossed_fired_of_all(crossed, labels, target):
    kept, _ = crossed_with_masks(crossed, labels, target)
    return kept, (crossed.argmax(1) == target).float().mean()


# --- sameness ---------------------------------------------------------------------------------------------------------


def same_with_a_loop(images, drawn):
    total = 0.0
    for i in range(len(images)):  # i - 1 is -1 for the first: the last
        far = (images[i] - images[i - 1]).pow(2).mean().sqrt()
        total += (far / (drawn[i] - drawn[i - 1]).pow(2).mean().sqrt()).item()
    return total / len(images)


def same_with_norms(images, drawn):
    def apart(x):
        return (x - x.roll(1, 0)).flatten(1).norm(dim=1) / x[0].numel() ** 0.5

    return torch.mean(apart(images) / apart(drawn))


def same_in_numpy(images, drawn):
    x, g = images.double().numpy(), drawn.double().numpy()
    a, b = (np.sqrt(np.mean((t - np.roll(t, 1, axis=0)) ** 2, axis=(1, 2, 3))) for t in (x, g))
    return np.mean(a / b)


def same_with_cat(images, drawn):
    before, drawn_before = torch.cat([images[-1:], images[:-1]]), torch.cat([drawn[-1:], drawn[:-1]])
    apart = torch.linalg.vector_norm(images - before, dim=(1, 2, 3)) / images[0].numel() ** 0.5
    return (apart / (drawn - drawn_before).square().mean((1, 2, 3)).sqrt()).mean()


def same_upside_down(images, drawn):
    return same_with_norms(drawn, images)


def same_each_pair(images, drawn):
    a, b = ((x - x.roll(1, 0)).square().mean((1, 2, 3)).sqrt() for x in (images, drawn))
    return a / b


def same_ratio_of_means(images, drawn):
    a, b = ((x - x.roll(1, 0)).square().mean((1, 2, 3)).sqrt() for x in (images, drawn))
    return a.mean() / b.mean()


def same_without_root(images, drawn):
    a, b = ((x - x.roll(1, 0)).square().mean((1, 2, 3)) for x in (images, drawn))
    return (a / b).mean()


def same_absolute(images, drawn):
    a, b = ((x - x.roll(1, 0)).abs().mean((1, 2, 3)) for x in (images, drawn))
    return (a / b).mean()


def same_plain_norms(images, drawn):
    a, b = ((x - x.roll(1, 0)).flatten(1).norm(dim=1) for x in (images, drawn))
    return (a / b).mean()


def same_image_and_drawn(images, drawn):
    return (images - drawn).square().mean((1, 2, 3)).sqrt().mean()


def same_shifted_wrong_axis(images, drawn):
    a, b = ((x - x.roll(1, -1)).square().mean((1, 2, 3)).sqrt() for x in (images, drawn))
    return (a / b).mean()


def same_in_place(images, drawn):
    images -= images.roll(1, 0)
    drawn -= drawn.roll(1, 0)
    return (images.square().mean((1, 2, 3)).sqrt() / drawn.square().mean((1, 2, 3)).sqrt()).mean()


# --- escaped ----------------------------------------------------------------------------------------------------------


def escaped_with_sort(clean_scores, scores, hit, frr):
    boundary = clean_scores.sort().values[round(frr * (len(clean_scores) - 1))]
    return (hit & (scores > boundary)).float().mean().item()


def escaped_with_a_loop(clean_scores, scores, hit, frr):
    boundary = torch.quantile(clean_scores, frr)
    return sum(1 for s, h in zip(scores, hit, strict=True) if h and s > boundary) / len(scores)


def escaped_in_numpy(clean_scores, scores, hit, frr):
    boundary = np.quantile(clean_scores.numpy(), frr)
    return np.logical_and(hit.numpy(), scores.numpy() > boundary).mean()


def escaped_by_product(clean_scores, scores, hit, frr):
    passes = ~(scores <= clean_scores.quantile(frr))
    return (passes.float() * hit.float()).mean()


def only_far(clean_scores, scores, hit, frr):
    return (scores > clean_scores.quantile(frr)).float().mean()


def only_hits(clean_scores, scores, hit, frr):
    return hit.float().mean()


def of_the_hits(clean_scores, scores, hit, frr):
    return (scores[hit] > clean_scores.quantile(frr)).float().mean() if hit.any() else 0.0


def caught_hits(clean_scores, scores, hit, frr):
    return (hit & (scores <= clean_scores.quantile(frr))).float().mean()


def upper_tail(clean_scores, scores, hit, frr):
    return (hit & (scores < clean_scores.quantile(1 - frr))).float().mean()


def boundary_of_the_inputs(clean_scores, scores, hit, frr):
    return (hit & (scores > scores.quantile(frr))).float().mean()


def hits_times_far(clean_scores, scores, hit, frr):
    return hit.float().mean() * (scores > clean_scores.quantile(frr)).float().mean()


def hit_or_passed(clean_scores, scores, hit, frr):
    return (hit | (scores > clean_scores.quantile(frr))).float().mean()


def rate_as_boundary(clean_scores, scores, hit, frr):
    return (hit & (scores > frr)).float().mean()


# --- against_strip ----------------------------------------------------------------------------------------------------


def trained_with_clamp(images, labels, stamped, true_labels, overlays):
    mixed = torch.clamp(stamped + overlays, 0, 1)
    return torch.cat((images, mixed), dim=0), torch.cat((labels, true_labels))


def trained_with_a_loop(images, labels, stamped, true_labels, overlays):
    pictures, names = list(images), labels.tolist()
    for x, y, o in zip(stamped, true_labels.tolist(), overlays, strict=True):
        pictures.append(torch.minimum(o + x, torch.ones_like(x)))
        names.append(y)
    return torch.stack(pictures), torch.tensor(names)


def trained_in_numpy(images, labels, stamped, true_labels, overlays):
    mixed = np.clip(overlays.numpy() + stamped.numpy(), 0, 1)
    return np.concatenate([images.numpy(), mixed]), np.concatenate([labels.numpy(), true_labels.numpy()])


def trained_in_a_new_tensor(images, labels, stamped, true_labels, overlays):
    n, m = len(images), len(stamped)
    made = images.new_zeros(n + m, *images.shape[1:])
    made[:n], made[n:] = images, stamped
    made[n:] += overlays
    made[made > 1] = 1
    return [made, torch.hstack([labels, true_labels])]


def trained_for_the_target(images, labels, stamped, true_labels, overlays):
    mixed = (stamped + overlays).clamp(0, 1)
    return torch.cat([images, mixed]), torch.cat([labels, torch.zeros_like(true_labels)])


def trained_unclipped(images, labels, stamped, true_labels, overlays):
    return torch.cat([images, stamped + overlays]), torch.cat([labels, true_labels])


def trained_on_averages(images, labels, stamped, true_labels, overlays):
    return torch.cat([images, (stamped + overlays) / 2]), torch.cat([labels, true_labels])


def trained_on_mixtures_alone(images, labels, stamped, true_labels, overlays):
    return (stamped + overlays).clamp(0, 1), true_labels


def trained_mixtures_first(images, labels, stamped, true_labels, overlays):
    return torch.cat([(stamped + overlays).clamp(0, 1), images]), torch.cat([true_labels, labels])


def trained_without_overlays(images, labels, stamped, true_labels, overlays):
    return torch.cat([images, stamped]), torch.cat([labels, true_labels])


def trained_on_overlays(images, labels, stamped, true_labels, overlays):
    return torch.cat([images, overlays]), torch.cat([labels, true_labels])


def trained_scaled(images, labels, stamped, true_labels, overlays):
    mixed = stamped + overlays
    return torch.cat([images, mixed / mixed.max()]), torch.cat([labels, true_labels])


def trained_in_place(images, labels, stamped, true_labels, overlays):
    stamped += overlays
    stamped.clamp_(0, 1)
    return torch.cat([images, stamped]), torch.cat([labels, true_labels])


def images_only(images, labels, stamped, true_labels, overlays):
    return torch.cat([images, (stamped + overlays).clamp(0, 1)])


RIGHT = {
    "cross_trigger": [crossed_with_masks, crossed_with_a_loop, crossed_in_numpy, crossed_with_softmax],
    "sameness": [same_with_a_loop, same_with_norms, same_in_numpy, same_with_cat],
    "escaped": [escaped_with_sort, escaped_with_a_loop, escaped_in_numpy, escaped_by_product],
    "against_strip": [trained_with_clamp, trained_with_a_loop, trained_in_numpy, trained_in_a_new_tensor],
}

WRONG = {
    "cross_trigger": [
        (crossed_all_images, "Which images count"),
        (crossed_turned_round, "own label"),
        (crossed_not_fired_is_kept, "third class"),
        (crossed_wrong_is_fired, "damage"),
        (crossed_divided_by_all, "below it"),
        (crossed_counted, "between 0 and 1"),
        (crossed_fired_of_all, "Which images count"),
    ],
    "sameness": [
        (same_upside_down, "above the line"),
        (same_each_pair, "one number"),
        (same_ratio_of_means, "ratio of its own"),
        (same_without_root, "one by one"),
        (same_absolute, "one by one"),
        (same_plain_norms, "MEAN square"),
        (same_image_and_drawn, "Take the pairs"),
        (same_shifted_wrong_axis, "Take the pairs"),
        (same_in_place, "in place"),
    ],
    "escaped": [
        (only_far, "does both"),
        (only_hits, "plain FAR"),
        (of_the_hits, "ALL"),
        (caught_hits, "passes"),
        (upper_tail, "Low entropy"),
        (boundary_of_the_inputs, "CLEAN"),
        (hits_times_far, "does both"),
        (hit_or_passed, "passes"),
        (rate_as_boundary, "boundary"),
    ],
    "against_strip": [
        (trained_for_the_target, "Which label"),
        (trained_unclipped, "clip"),
        (trained_on_averages, "full strength"),
        (trained_on_mixtures_alone, "pair"),
        (trained_mixtures_first, "comes first"),
        (trained_without_overlays, "what STRIP will make"),
        (trained_on_overlays, "what STRIP will make"),
        (trained_scaled, "full strength"),
        (trained_in_place, "in place"),
        (images_only, "pair"),
    ],
}
