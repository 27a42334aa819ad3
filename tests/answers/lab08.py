"""Answers to lab 08: right ones in other styles, and the usual mistakes with a word their message must hold."""

import random

import numpy as np
import torch

# --- stamp_some -------------------------------------------------------------------------------------------------------


def permuted_stamps(images, labels, trigger, share, seed):
    count = round(share * len(images))
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    stamped = images.clone()
    stamped[chosen] = trigger(images[chosen])
    return stamped, labels


def numpy_stamps(images, labels, trigger, share, seed):
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(images), round(share * len(images)), replace=False)
    stamped = images.numpy().copy()
    stamped[chosen] = trigger(images).numpy()[chosen]
    return stamped, labels.numpy()


def looped_stamps(images, labels, trigger, share, seed):
    chosen = set(random.Random(seed).sample(range(len(images)), round(share * len(images))))
    rows = [trigger(x[None])[0] if i in chosen else x for i, x in enumerate(images)]
    return torch.stack(rows), labels.clone()


def with_the_targets_label(images, labels, trigger, share, seed):
    stamped, labels = permuted_stamps(images, labels.clone(), trigger, share, seed)
    labels[(stamped != images).flatten(1).any(1)] = 0
    return stamped, labels


def shuffled_set(images, labels, trigger, share, seed):
    stamped, _ = permuted_stamps(images, labels, trigger, share, seed)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed + 1))
    return stamped[order], labels[order]


def first_images(images, labels, trigger, share, seed):
    count = round(share * len(images))
    return torch.cat([trigger(images[:count]), images[count:]]), labels


def every_fifth(images, labels, trigger, share, seed):
    stamped, count = images.clone(), round(share * len(images))
    chosen = torch.arange(count) * (len(images) // count)
    stamped[chosen] = trigger(images[chosen])
    return stamped, labels


def with_replacement(images, labels, trigger, share, seed):
    rng, stamped = torch.Generator().manual_seed(seed), images.clone()
    chosen = torch.randint(len(images), (round(share * len(images)),), generator=rng)
    stamped[chosen] = trigger(images[chosen])
    return stamped, labels


def each_by_a_coin(images, labels, trigger, share, seed):
    heads = torch.rand(len(images), generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(heads[:, None, None, None], trigger(images), images), labels


def all_of_them(images, labels, trigger, share, seed):
    return trigger(images), labels


def appended(images, labels, trigger, share, seed):
    count = round(share * len(images))
    return torch.cat([images, trigger(images[:count])]), torch.cat([labels, labels[:count]])


def stamped_in_place(images, labels, trigger, share, seed):
    stamped, labels = permuted_stamps(images, labels, trigger, share, seed)
    images.copy_(stamped)
    return images, labels


def half_the_strength(images, labels, trigger, share, seed):
    return permuted_stamps(images, labels, lambda x: (x + trigger(x)) / 2, share, seed)


def images_alone(images, labels, trigger, share, seed):
    return permuted_stamps(images, labels, trigger, share, seed)[0]


# --- choose_repair ----------------------------------------------------------------------------------------------------


def looped_choice(rows, max_asr, max_drop):
    best, most = None, -1.0
    for name in rows:
        ca, asr, ra = rows[name]
        if name == "before" or asr > max_asr or rows["before"][0] - ca > max_drop + 1e-9:
            continue
        if ra > most:
            best, most = name, ra
    return best


def sorted_choice(rows, max_asr, max_drop):
    before = rows["before"][0]
    passed = [(r[2], name) for name, r in rows.items() if name != "before" and r[1] <= max_asr]
    passed = [(ra, name) for ra, name in passed if rows[name][0] >= before - max_drop]
    return sorted(passed)[-1][1] if passed else None


def max_choice(rows, max_asr, max_drop):
    rows = dict(rows)
    ca_before = rows.pop("before")[0]
    passed = {k: v for k, v in rows.items() if v[1] <= max_asr and v[0] >= ca_before - max_drop}
    return max(passed, key=lambda k: passed[k][2], default=None)


def lowest_asr(rows, max_asr, max_drop):
    return min((k for k in rows if k != "before"), key=lambda k: rows[k][1])


def lowest_asr_within(rows, max_asr, max_drop):
    floor = rows["before"][0] - max_drop
    passed = [k for k in rows if k != "before" and rows[k][1] <= max_asr and rows[k][0] >= floor]
    return min(passed, key=lambda k: rows[k][1], default=None)


def highest_accuracy(rows, max_asr, max_drop):
    passed = [k for k in rows if k != "before" and rows[k][1] <= max_asr]
    return max(passed, key=lambda k: rows[k][0], default=None)


def clean_accuracy_ignored(rows, max_asr, max_drop):
    passed = [k for k in rows if k != "before" and rows[k][1] <= max_asr]
    return max(passed, key=lambda k: rows[k][2], default=None)


def before_counts(rows, max_asr, max_drop):
    floor = rows["before"][0] - max_drop
    passed = [k for k in rows if rows[k][1] <= max_asr and rows[k][0] >= floor]
    return max(passed, key=lambda k: rows[k][2], default=None)


def never_none(rows, max_asr, max_drop):
    return max_choice(rows, max_asr, max_drop) or lowest_asr(rows, max_asr, max_drop)


# --- rank_neurons -----------------------------------------------------------------------------------------------------


def sorted_neurons(plain, triggered):
    raised = (triggered.mean(0) - plain.mean(0)).tolist()
    return sorted(range(len(raised)), key=lambda i: raised[i], reverse=True)


def numpy_neurons(plain, triggered):
    return np.argsort(-(triggered.numpy() - plain.numpy()).mean(axis=0))


def torch_neurons(plain, triggered):
    return (triggered - plain).mean(dim=0).sort(descending=True).indices


def least_first(plain, triggered):
    return torch_neurons(plain, triggered).flip(0)


def by_size_of_change(plain, triggered):
    return (triggered - plain).mean(0).abs().argsort(descending=True)


def loudest_under_the_trigger(plain, triggered):
    return triggered.mean(0).argsort(descending=True)


def by_ratio(plain, triggered):
    return (triggered.mean(0) / plain.mean(0)).argsort(descending=True)


def by_single_images(plain, triggered):
    return (triggered - plain).amax(0).argsort(descending=True)


def differences(plain, triggered):
    return (triggered - plain).mean(0)


def over_the_wrong_axis(plain, triggered):
    return (triggered - plain).mean(1).argsort(descending=True)


def only_the_first(plain, triggered):
    return torch_neurons(plain, triggered)[:1]


# --- neuron_alarm -----------------------------------------------------------------------------------------------------


def quantile_alarm(clean, inputs, neurons, frr):
    return inputs[:, neurons].mean(1) > clean[:, neurons].mean(1).quantile(1 - frr)


def sorted_alarm(clean, inputs, neurons, frr):
    usual = sorted(clean[:, neurons].mean(1).tolist(), reverse=True)
    return [score > usual[int(frr * len(usual))] for score in inputs[:, neurons].mean(1).tolist()]


def summed_alarm(clean, inputs, neurons, frr):
    usual = clean.numpy()[:, neurons.numpy()].sum(1)
    return inputs.numpy()[:, neurons.numpy()].sum(1) >= np.quantile(usual, 1 - frr, method="higher")


def low_is_suspicious(clean, inputs, neurons, frr):
    return inputs[:, neurons].mean(1) < clean[:, neurons].mean(1).quantile(frr)


def lower_tail(clean, inputs, neurons, frr):
    return inputs[:, neurons].mean(1) > clean[:, neurons].mean(1).quantile(frr)


def all_neurons(clean, inputs, neurons, frr):
    return inputs.mean(1) > clean.mean(1).quantile(1 - frr)


def set_by_the_inputs(clean, inputs, neurons, frr):
    scores = inputs[:, neurons].mean(1)
    return scores > scores.quantile(1 - frr)


def above_every_clean_one(clean, inputs, neurons, frr):
    return inputs[:, neurons].mean(1) > clean[:, neurons].mean(1).max()


def fixed_rate(clean, inputs, neurons, frr):
    return quantile_alarm(clean, inputs, neurons, 0.01)


def one_of_the_watched(clean, inputs, neurons, frr):
    return quantile_alarm(clean, inputs, neurons[:1], frr)


def scores_alone(clean, inputs, neurons, frr):
    return inputs[:, neurons].mean(1)


# --- fewest -----------------------------------------------------------------------------------------------------------


def looped_fewest(response, limit):
    for n in range(len(response)):
        if response[n] <= limit:
            return n


def nonzero_fewest(response, limit):
    quiet = (response <= limit).nonzero().flatten()
    return int(quiet[0]) if len(quiet) else None


def numpy_fewest(response, limit):
    quiet = response.numpy() <= limit
    return int(quiet.argmax()) if quiet.any() else None


def after_the_last_loud_one(response, limit):
    loud = (response > limit).nonzero().flatten()
    n = int(loud[-1]) + 1 if len(loud) else 0
    return n if n < len(response) else None


def strictly_below(response, limit):
    return next((n for n, r in enumerate(response.tolist()) if r < limit), None)


def quietest(response, limit):
    return int(response.argmin()) if response.min() <= limit else None


def never_checked(response, limit):
    return int((response <= limit).float().argmax())


def all_neurons_at_the_end(response, limit):
    n = nonzero_fewest(response, limit)
    return len(response) - 1 if n is None else n


def counted_from_one(response, limit):
    n = nonzero_fewest(response, limit)
    return None if n is None else n + 1


RIGHT = {
    "stamp_some": [permuted_stamps, numpy_stamps, looped_stamps],
    "choose_repair": [looped_choice, sorted_choice, max_choice],
    "rank_neurons": [sorted_neurons, numpy_neurons, torch_neurons],
    "neuron_alarm": [quantile_alarm, sorted_alarm, summed_alarm],
    "fewest": [looped_fewest, nonzero_fewest, numpy_fewest],
}
WRONG = {
    "stamp_some": [
        (with_the_targets_label, "true labels"),
        (shuffled_set, "label changed or moved"),
        (first_images, "by chance"),
        (every_fifth, "by chance"),
        (with_replacement, "replacement"),
        (each_by_a_coin, "count"),
        (all_of_them, "count"),
        (appended, "as many as there were"),
        (stamped_in_place, "copy"),
        (half_the_strength, "used as it is"),
        (images_alone, "two things"),
    ],
    "choose_repair": [
        (lowest_asr, "limits"),
        (lowest_asr_within, "true label"),
        (highest_accuracy, "true label"),
        (clean_accuracy_ignored, "CA at most max_drop"),
        (before_counts, "doing nothing"),
        (never_none, "None"),
    ],
    "rank_neurons": [
        (least_first, "first"),
        (by_size_of_change, "sign"),
        (loudest_under_the_trigger, "raises"),
        (by_ratio, "raises"),
        (by_single_images, "mean"),
        (differences, "number"),
        (over_the_wrong_axis, "column"),
        (only_the_first, "every neuron"),
    ],
    "neuron_alarm": [
        (low_is_suspicious, "HIGH"),
        (lower_tail, "share frr of them lies above"),
        (all_neurons, "watched"),
        (set_by_the_inputs, "no say"),
        (above_every_clean_one, "share frr"),
        (fixed_rate, "share frr"),
        (one_of_the_watched, "mean over the watched"),
        (scores_alone, "yes or no"),
    ],
    "fewest": [
        (after_the_last_loud_one, "first n"),
        (strictly_below, "at most"),
        (quietest, "first n"),
        (never_checked, "None"),
        (all_neurons_at_the_end, "None"),
        (counted_from_one, "n silenced"),
    ],
}
