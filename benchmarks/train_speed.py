"""train() against the usual loop: same network, same data, same augmentation, images a second.

python benchmarks/train_speed.py [--data signs] [--save]

The usual loop is the one in most tutorials: a Dataset of PIL images, RandomCrop with padding and ToTensor for each, a
DataLoader with a worker a core (and with none; the faster of the two counts), float32, contiguous layout. Both run in
this process, one after the other, once a seed; the ratio is taken pair by pair. glibc's memory settings, which
labkit makes for the process, are the same for both: that favours the usual loop.
"""

import os
import time

import torch
from card import arguments, card
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from labkit import TrainConfig, load, train
from labkit.models import build


class Pictures(Dataset):
    def __init__(self, data):
        self.images = [to_pil_image(image) for image in data.images]
        self.labels = data.labels.tolist()
        self.transform = transforms.Compose(
            [transforms.RandomCrop(data.images.shape[-1], padding=2, padding_mode="reflect"), transforms.ToTensor()]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(self.images[i]), self.labels[i]


def usual(data, config, workers: int) -> float:
    """Images a second of the usual loop over one epoch."""
    model = build("small_cnn", data.images.shape[1], len(data.classes))
    model.normalise.fit(data.images)
    loader = DataLoader(Pictures(data), batch_size=config.batch_size, shuffle=True, num_workers=workers)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    start = time.perf_counter()
    for images, labels in loader:
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return len(data) / (time.perf_counter() - start)


def ours(data, config) -> float:
    seconds = []
    train("small_cnn", data, config=config, progress=False, callback=lambda epoch: seconds.append(epoch.seconds))
    return len(data) / seconds[0]


def main():
    options = arguments(__doc__, data=["signs"])
    for name in options.data:
        data, config = load(name).train[:8000], TrainConfig(epochs=1)
        ours(data[:1000], config)
        pairs = []
        for _ in options.seeds:
            fast = ours(data, config)
            slow = {w: usual(data, config, w) for w in (0, os.cpu_count() or 1)}
            print(
                f"  labkit {fast:.0f} images/s; usual loop "
                + ", ".join(f"{v:.0f} ({w} workers)" for w, v in slow.items())
            )
            pairs.append((fast, max(slow.values())))
        shared = {"seeds": options.seeds, "save": options.save, "n": f"{len(data):,} images, batch {config.batch_size}"}
        recipe = "small_cnn, one epoch, shift 2"
        card(f"training on {name}, labkit", [a for a, _ in pairs], "images/s", recipe=recipe, bar="-", **shared)
        card(f"training on {name}, usual loop", [b for _, b in pairs], "images/s", recipe=recipe, bar="-", **shared)
        card(f"training on {name}, ratio", [a / b for a, b in pairs], "x", recipe=recipe, bar=">= 3, aim 5", **shared)


main()
