"""Where do the traffic signs come from? `draw` photographs them: 32x32 RGB, 12 classes, no files and no fonts.

A picture is made the way a camera on a car makes one:

    1. scenery       sky, trees, houses, clutter                                  (sign_scenes)
    2. the sign      a face from `sign_shapes`, seen from an angle, on its pole, old and dirty
    3. occlusion     stickers, posts, leaves                                      (sign_scenes)
    4. light, then weather                                                        (sign_scenes)
    5. lens          defocus, motion
    6. sensor        noise, 8 bits

Picture number i of a seed is a function of (seed, i) alone: asking for more pictures, or for a later part of them,
never changes the others. The bytes are the same on every platform and numpy version: random numbers come from the
raw stream of PCG64, everything else from operations that IEEE 754 fixes to the last bit (a test pins the hash).

Some classes are alike on purpose (speed 30 and 80, pedestrians and roadworks, the blue arrows), so that pixels alone
do not give the answer. How it differs from real photographs: one design per class, daylight, no video tracks.
Lab 00 looks at the pictures, lab 01 trains on them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from labkit.data.sign_scenes import (
    METAL,
    PIXELS,
    SIDE,
    Dice,
    X,
    Y,
    blur,
    clouds,
    illuminate,
    mix,
    occlude,
    scenery,
    weather,
)
from labkit.data.sign_shapes import CLASSES, COMPANIONS, EXTENT, FACES, direction, icon, paint

__all__ = ["CLASSES", "SIGNS_VERSION", "draw", "icon"]

SIGNS_VERSION = "3"  # part of the cache key: raise it whenever a change here moves a single byte
TEXELS = 96  # a face is sampled from a picture of this size: two to four texels per sample
CHUNK = 128  # pictures at a time: arrays that fit in the processor's cache, and are worth a thread's turn
DICE = 2048  # random numbers per picture, besides one for each pixel of each colour


def draw(n: int, seed: int, *, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pictures number `first` to `first + n` of a seed: images uint8 (n, 32, 32, 3) and labels int64 (n,).

    Every block of 12 pictures shows each class once, in random order, so any n has balanced classes.
    """
    for name, value, least in (("n", n, 1), ("seed", seed, 0), ("first", first, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"expected {name} to be a whole number of at least {least}, got {value!r}")
    labels = _labels(int(n), int(seed), int(first))
    images = np.empty((n, SIDE, SIDE, 3), np.uint8)

    def photograph(start: int) -> None:
        part = labels[start : start + CHUNK]
        per_picture = DICE + 3 * PIXELS
        stream = np.random.PCG64([int(seed), 1])
        stream.advance((int(first) + start) * per_picture)
        raw = stream.random_raw(len(part) * per_picture).reshape(len(part), per_picture)
        images[start : start + CHUNK] = _photograph(part, raw)

    _faces()  # before two threads ask for them at once
    with ThreadPoolExecutor(2) as threads:  # numpy lets go of the interpreter while it works on large arrays
        list(threads.map(photograph, range(0, int(n), CHUNK)))
    return images, labels


def _labels(n: int, seed: int, first: int) -> np.ndarray:
    k = len(CLASSES)
    skip, stop = first // k, (first + n + k - 1) // k
    stream = np.random.PCG64([seed, 0])
    stream.advance(skip * k)
    blocks = stream.random_raw((stop - skip) * k).reshape(-1, k)
    return np.argsort(blocks, axis=1, kind="stable").reshape(-1)[first - skip * k :][:n].astype(np.int64)


def _photograph(labels: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """labels (B,), raw uint64 (B, DICE + 3 * PIXELS) -> uint8 (B, 32, 32, 3)."""
    dice = Dice((raw[:, :DICE] >> np.uint64(40)).astype(np.float32) * 2.0**-24)
    images = scenery(dice)  # (3, B, PIXELS)
    cx, cy, radius = _hang(images, labels, dice)
    occlude(images, dice, cx, cy, radius)
    images = illuminate(images, dice)
    weather(images, dice)
    images = _lens(images, dice)
    return _sensor(images, dice, raw[:, DICE:])


def _hang(images: np.ndarray, labels: np.ndarray, dice: Dice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paint the signs over the scenery, in place; returns their centres and radii in pixels, (B, 1) each."""
    radius = dice(7.5, 14.5)
    cx, cy = 16 + (18.5 - radius) * dice(-1, 1), 16 + (18.5 - radius) * dice(-1, 1)
    cos, sin = direction(dice(-0.18, 0.18))  # the sign hangs askew, up to 16 degrees
    wide, high = dice(1.0, 1.45) / radius, dice(1.0, 1.15) / radius  # seen from the side it looks narrower
    lean, tilt = dice(-0.22, 0.22), dice(-0.15, 0.15)  # the near edge looks larger
    pole = dice.pick(METAL) * dice(0.6, 1.1)
    neighbour = dice.some(0.3, 4)  # a second sign on the same pole, on the outer side
    other = (neighbour(0, len(CLASSES) + len(COMPANIONS))).astype(np.int64)
    above = np.where(cy[neighbour.rows] < 16, -2.12, 2.12).astype(np.float32)  # the label's sign is nearer the centre

    layer = np.zeros((len(labels), PIXELS, 4), np.float32)
    post = np.zeros((len(labels), PIXELS), np.float32)
    for ox, oy in ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25)):  # 2x2 samples per pixel
        x, y = X + ox - cx, Y + oy - cy
        across, down = x * cos + y * sin, y * cos - x * sin
        depth = 1 + (lean * across + tilt * down) / radius
        u, v = across * wide / depth, down * high / depth  # on the sign, in units of its radius
        layer += _look_up(labels[:, None], u, v)
        rows = neighbour.rows
        layer[rows] += _look_up(other, u[rows], v[rows] - above)
        post += (np.abs(u) < 0.09) & (v > 0)
    mix(images, pole, post * 0.25)
    red, green, blue, cover = np.ascontiguousarray((layer * 0.25).transpose(2, 0, 1))

    dirt = 1 - clouds(dice, 6) * dice(0.0, 0.35)
    fading, grey = dice(-0.1, 0.5), (red + green + blue) * (1 / 3)
    for image, paint_ in zip(images, (red, green, blue), strict=True):
        image *= 1 - np.minimum(cover, 1)
        image += (paint_ + (grey - paint_) * fading) * dirt
    return cx, cy, radius


@cache
def _faces() -> np.ndarray:
    """float32 (faces * TEXELS * TEXELS, 4): the classes, then what else hangs on poles."""
    faces = [*FACES.values(), *COMPANIONS]
    return np.stack([paint(face, TEXELS) for face in faces]).reshape(-1, 4)


def _look_up(face: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The nearest texel (B, PIXELS, 4) at (u, v); off the face it is transparent."""
    column = np.clip((u + EXTENT) * (TEXELS / 2 / EXTENT), 0, TEXELS - 1).astype(np.int64)
    row = np.clip((v + EXTENT) * (TEXELS / 2 / EXTENT), 0, TEXELS - 1).astype(np.int64)
    return np.take(_faces(), (face * TEXELS + row) * TEXELS + column, axis=0)


def _lens(images: np.ndarray, dice: Dice) -> np.ndarray:
    """Out of focus, and smeared along or across by the moving car."""
    soft = dice(0.0, 0.22)
    images = blur(images, soft, soft)
    moved = dice.some(0.35, 2)
    share, level = moved(0.1, 0.33), moved() < 0.7
    across, down = np.where(level, share, 0 * share), np.where(level, 0 * share, share)
    part = images[:, moved.rows]
    for _ in range(4):
        part = blur(part, across, down)
    images[:, moved.rows] = part
    return images


def _sensor(images: np.ndarray, dice: Dice, raw: np.ndarray) -> np.ndarray:
    """Noise that grows with the light (the sum of four uniforms is nearly a Gaussian), then 8 bits."""
    low = np.uint64(0xFFFF)
    noise = (raw & low) + (raw >> np.uint64(16) & low) + (raw >> np.uint64(32) & low) + (raw >> np.uint64(48))
    gauss = (noise.astype(np.float32) - 131070.0) * (1 / 37837.0)  # mean 0, standard deviation 1
    gauss = gauss.reshape(-1, 3, PIXELS).transpose(1, 0, 2)
    images = np.clip(images, 0.0, 1.0)
    images += gauss * (np.sqrt(images + 0.1) * dice(0.01, 0.05))
    bytes_ = np.floor(np.clip(images, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return bytes_.transpose(1, 2, 0).reshape(-1, SIDE, SIDE, 3)
