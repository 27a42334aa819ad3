"""What stands between a sign and a clean picture of it: scenery, things in the way, light, weather, a moving lens.

Every function works on a batch of B pictures at once, as float32 (3, B, PIXELS) with PIXELS = 32 * 32: colour first
and pixels flat, because numpy is fastest when the last axis is long. Values are in [0, 1] before the light changes.

    Dice                     a fixed row of random numbers per picture
    clouds, blob, blur       the three brushes
    scenery                  sky, trees, houses, clutter behind the sign
    occlude                  stickers, posts and leaves in front of it
    illuminate, weather      shadow, colour cast, fog, rain, snow

As in `sign_shapes`, only operations whose result IEEE 754 fixes to the last bit.
"""

from __future__ import annotations

import numpy as np

from labkit.data.sign_shapes import direction

SIDE = 32
PIXELS = SIDE * SIDE
_row = np.arange(SIDE, dtype=np.float32) + 0.5
Y, X = np.repeat(_row, SIDE)[None, :], np.tile(_row, SIDE)[None, :]  # (1, PIXELS): pixel centres
EVERYONE = slice(None)

SKIES = [(0.42, 0.62, 0.92), (0.58, 0.74, 0.95), (0.83, 0.86, 0.89), (0.70, 0.73, 0.77), (0.93, 0.81, 0.68)]
FOLIAGE = [(0.17, 0.28, 0.12), (0.27, 0.38, 0.17), (0.37, 0.44, 0.22), (0.50, 0.34, 0.12), (0.36, 0.31, 0.24)]
WALLS = [(0.58, 0.32, 0.25), (0.80, 0.74, 0.63), (0.66, 0.65, 0.64), (0.42, 0.41, 0.43), (0.88, 0.86, 0.83)]
CLUTTER = [(0.72, 0.10, 0.12), (0.10, 0.28, 0.62), (0.95, 0.75, 0.12), (0.92, 0.92, 0.91), (0.12, 0.12, 0.13)]
METAL = [(0.48, 0.50, 0.51), (0.66, 0.67, 0.67), (0.30, 0.29, 0.28)]
STICKERS = [(0.93, 0.92, 0.88), (0.55, 0.55, 0.56), (0.97, 0.62, 0.10), (0.15, 0.45, 0.30), (0.20, 0.20, 0.22)]


class Dice:
    """Uniform numbers for B pictures, dealt column by column: picture i always gets the same ones, whatever B is.

    `uniforms` float32 (B, R) in [0, 1); `rows` says which pictures of the batch they belong to.
    """

    def __init__(self, uniforms: np.ndarray, rows: slice | np.ndarray = EVERYONE):
        self.uniforms, self.rows, self.dealt = uniforms, rows, 0

    def __call__(self, low: float = 0.0, high: float = 1.0, size: int = 1) -> np.ndarray:
        """float32 (B, size), uniform between low and high."""
        self.dealt += size
        assert self.dealt <= self.uniforms.shape[1], "out of random numbers: deal more per picture"
        return self.uniforms[:, self.dealt - size : self.dealt] * (high - low) + low

    def colour(self, low: float, high: float) -> np.ndarray:
        """(3, B, 1): red, green and blue drawn separately."""
        return np.ascontiguousarray(self(low, high, 3).T)[:, :, None]

    def pick(self, palette: list[tuple[float, float, float]], vary: float = 0.04) -> np.ndarray:
        """(3, B, 1): one of the palette's colours, give or take `vary`."""
        index = (self() * len(palette)).astype(np.int64)[:, 0]
        return np.array(palette, np.float32)[index].T[:, :, None] + self.colour(-vary, vary)

    def some(self, chance: float, reserve: int) -> Dice:
        """Dice for about that share of the pictures; `reserve` numbers are set aside for them."""
        rows = np.flatnonzero(self()[:, 0] < chance)
        return Dice(self(size=reserve)[rows], rows)


def mix(images: np.ndarray, colour: np.ndarray | float, cover: np.ndarray) -> None:
    """Paint over `images`, in place, where cover (B, PIXELS) is 1."""
    images += (colour - images) * cover


def clouds(dice: Dice, cells: int) -> np.ndarray:
    """(B, PIXELS) in [0, 1): value noise, a lattice of random numbers with straight lines in between."""
    lattice = dice(size=(cells + 1) * (cells + 1)).reshape(-1, cells + 1, cells + 1)
    at = _row * (cells / SIDE)
    cell = at.astype(np.int64)
    part = at - cell
    rows = lattice[:, cell] * (1 - part)[:, None] + lattice[:, cell + 1] * part[:, None]  # (B, SIDE, cells + 1)
    return (rows[:, :, cell] * (1 - part) + rows[:, :, cell + 1] * part).reshape(-1, PIXELS)


def blob(cx: np.ndarray, cy: np.ndarray, a: np.ndarray, b: np.ndarray, turn: np.ndarray, boxy: np.ndarray):
    """Cover (B, PIXELS) of a turned ellipse (boxy 0) or box (boxy 1); half-axes a, b and a soft edge in pixels."""
    cos, sin = direction(turn)
    u, v = np.abs((X - cx) * cos + (Y - cy) * sin) / a, np.abs((Y - cy) * cos - (X - cx) * sin) / b
    far = np.where(boxy > 0.5, np.maximum(u, v), np.sqrt(u * u + v * v))
    return np.clip((1 - far) * np.minimum(a, b) + 0.5, 0.0, 1.0)


def blur(images: np.ndarray, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Each pixel gives the shares `across` and `down` (B, 1), at most 1/3, to each neighbour; the border repeats."""
    out = images.reshape(*images.shape[:2], SIDE, SIDE)
    for axis, share in ((3, across), (2, down)):
        line, change = np.moveaxis(out, axis, -1), np.moveaxis(np.empty_like(out), axis, -1)
        change[..., 1:-1] = line[..., :-2] + line[..., 2:]
        change[..., 0], change[..., -1] = line[..., 0] + line[..., 1], line[..., -2] + line[..., -1]
        change -= 2 * line
        change *= share[..., None]
        change += line
        out = np.moveaxis(change, -1, axis)
    return out.reshape(images.shape)


def scenery(dice: Dice) -> np.ndarray:
    """(3, B, PIXELS): sky, a rough line of trees, perhaps a house, a few objects, all a little out of focus."""
    coarse, fine = clouds(dice, 4), clouds(dice, 13)
    images = dice.pick(SKIES) + (Y / SIDE - 0.5) * dice(-0.15, 0.25) + (coarse - 0.5) * dice(0.0, 0.2)
    trees = dice.pick(FOLIAGE) * dice(0.6, 1.3) * (0.25 + 0.6 * coarse + 0.9 * fine)
    treeline = dice(-12, 44) + (coarse - 0.5) * dice(0, 24) + (fine - 0.5) * 8
    mix(images, trees, np.clip(Y - treeline, 0.0, 1.0))

    house = dice.some(0.4, 24)
    left, width, top = house(-10, 28), house(8, 26), house(-6, 22)
    wall = house.pick(WALLS) * house(0.7, 1.1) * (0.9 + 0.2 * fine[house.rows])
    column, storey = (X - left) / house(3.5, 7), (Y - top) / house(4, 8)
    window = np.clip((0.28 - np.abs(column - np.floor(column) - 0.5)) * 5 + 0.5, 0.0, 1.0)
    window *= np.clip((0.30 - np.abs(storey - np.floor(storey) - 0.5)) * 6 + 0.5, 0.0, 1.0)
    wall = wall * (1 - window * house(0.0, 0.6))
    within = np.clip(np.minimum(np.minimum(X - left, left + width - X), Y - top), 0.0, 1.0)
    part = images[:, house.rows]
    mix(part, wall, within)
    images[:, house.rows] = part

    for chance, palette, thin, long in ((0.5, CLUTTER, 2.0, 7.0), (0.5, CLUTTER, 1.5, 6.0), (0.3, METAL, 0.6, 40.0)):
        thing = dice.some(chance, 16)
        shape = blob(
            thing(-2, 34), thing(-2, 34), thing(thin, 2.5 * thin), thing(0.4 * long, long), thing(-0.2, 0.2), thing()
        )
        part = images[:, thing.rows]
        mix(part, thing.pick(palette) * thing(0.5, 1.1), shape)
        images[:, thing.rows] = part
    focus = dice(0.05, 0.33)
    return blur(blur(images, focus, focus), focus, focus)


def occlude(images: np.ndarray, dice: Dice, cx: np.ndarray, cy: np.ndarray, radius: np.ndarray) -> None:
    """Stickers on the sign, a post or a branch in front of it, painted in place; cx, cy, radius (B, 1) in pixels."""
    for chance in (0.35, 0.2):
        sticker = dice.some(chance, 16)
        at = sticker.rows
        x, y = cx[at] + radius[at] * sticker(-0.7, 0.7), cy[at] + radius[at] * sticker(-0.7, 0.7)
        a, b = radius[at] * sticker(0.12, 0.3), radius[at] * sticker(0.1, 0.2)
        part = images[:, at]
        mix(part, sticker.pick(STICKERS), 0.95 * blob(x, y, a, b, sticker(-0.5, 0.5), sticker()))
        images[:, at] = part

    post = dice.some(0.12, 16)
    at = post.rows
    shape = blob(
        cx[at] + radius[at] * post(-0.8, 0.8), post(10, 22), post(0.5, 1.4), post(40, 50), post(-0.1, 0.1), post()
    )
    part = images[:, at]
    mix(part, post.pick(METAL) * (0.8 + 0.4 * shape), np.minimum(2 * shape, 1))
    images[:, at] = part

    branch = dice.some(0.25, 240)
    at = branch.rows
    leaves, (cos, sin) = clouds(branch, 14), direction(branch(-1, 1))
    into = (
        ((X - cx[at]) * cos + (Y - cy[at]) * sin) / radius[at] * np.where(branch() < 0.5, -1.0, 1.0).astype(np.float32)
    )
    part = images[:, at]
    mix(part, branch.pick(FOLIAGE) * (0.4 + 1.5 * leaves), np.clip((leaves + into - branch(0.7, 1.4)) * 4, 0.0, 1.0))
    images[:, at] = part


def illuminate(images: np.ndarray, dice: Dice) -> np.ndarray:
    """Exposure, colour cast, light falling off to one side, and now and then the edge of a shadow."""
    cos, sin = direction(dice(-1, 1))
    slope = ((X - 16) * cos + (Y - 16) * sin) / 16 * dice(-0.35, 0.35)
    images = images * (dice(0.4, 1.15) * dice.colour(0.9, 1.1)) * (1 + slope)
    shadow = dice.some(0.35, 8)
    cos, sin = direction(shadow(-1, 1))
    side = np.where(shadow() < 0.5, -1.0, 1.0).astype(np.float32)
    depth = np.clip((((X - 16) * cos + (Y - 16) * sin) * side + shadow(-8, 8)) / shadow(1, 5), 0.0, 1.0)
    images[:, shadow.rows] *= 1 - depth * shadow(0.25, 0.6)
    return images


def weather(images: np.ndarray, dice: Dice) -> None:
    """Fog, rain or snow on some of the pictures, in place."""
    fog = dice.some(0.2, 8)
    images[:, fog.rows] += (fog(0.55, 0.85) + fog.colour(-0.03, 0.03) - images[:, fog.rows]) * fog(0.15, 0.6)

    rain = dice.some(0.15, 100)
    lane = (X + Y * rain(-0.5, 0.5) + SIDE).astype(np.int64) % 47
    phase, strength = (np.take_along_axis(rain(size=47), lane, 1) for _ in range(2))
    drop = Y / rain(6, 14) + phase
    streak = np.clip((0.5 - np.abs(drop - np.floor(drop) - 0.5)) * 3 - 0.5, 0.0, 1.0) * np.maximum(strength - 0.6, 0)
    images[:, rain.rows] += (0.8 - images[:, rain.rows]) * streak * rain(0.8, 1.6)

    snow = dice.some(0.1, 100)
    part = images[:, snow.rows]
    for _ in range(18):
        size = snow(0.4, 1.2)
        mix(part, 0.93, 0.9 * blob(snow(0, 32), snow(0, 32), size, size, snow(0, 0.5), 0 * size))
    images[:, snow.rows] = part
