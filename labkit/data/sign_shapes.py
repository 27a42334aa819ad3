"""What does each traffic sign look like, face on?

A sign is a stack of layers, painted one over the other; a layer is a shape and a colour. A shape is a signed
distance: a function of x and y that is negative inside. Units: the sign's radius is 1, x points right, y down.

    disc, polygon, stroke    the three shapes everything is made of
    arc, text                points and strokes for round things and for the few characters we need
    FACES                    the 12 classes
    paint, icon              layers -> pixels

Only + - * / sqrt, comparisons and floor are used: IEEE 754 fixes their result to the last bit, so the pictures
are the same bytes on every platform (sin, exp and matrix products are not: each maths library rounds its own way).
The designs follow the Vienna Convention on Road Signs and Signals (1968), simplified to what 32x32 pixels can show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]
Colour = tuple[float, float, float]
Layer = tuple[Shape, Colour]
Points = list[tuple[float, float]]

RED, BLUE, YELLOW = (0.76, 0.07, 0.11), (0.04, 0.31, 0.66), (0.99, 0.76, 0.04)
WHITE, BLACK, GREY = (0.96, 0.96, 0.95), (0.07, 0.07, 0.08), (0.55, 0.57, 0.58)
EXTENT = 1.1  # a face is painted on the square from -EXTENT to EXTENT: the rim of the square is transparent


def direction(quarters):
    """(cos, sin) of an angle in quarter turns within [-1, 1], for floats and arrays.

    By the half-angle formulas, cos = (1 - t^2) / (1 + t^2) and sin = 2t / (1 + t^2), where t = tan(angle / 2) is a
    polynomial that is exact at 0 and at 1: the point is on the unit circle whatever the polynomial's error (< 1e-3).
    """
    square = quarters * quarters
    t = quarters * (0.7853982 + square * (0.1614910 + square * (0.0398463 + square * 0.0132645)))
    return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)


def arc(cx: float, cy: float, rx: float, ry: float, start: float, stop: float, steps: int = 14) -> Points:
    """`steps` + 1 points on an ellipse; angles in turns, 0 = right, 0.25 = down (y points down)."""
    points = []
    for i in range(steps + 1):
        quarters = 4 * (start + (stop - start) * i / steps)
        whole = math.floor(quarters)
        x, y = direction(quarters - whole)
        for _ in range(whole % 4):
            x, y = -y, x
        points.append((cx + rx * x, cy + ry * y))
    return points


def disc(radius: float, cx: float = 0.0, cy: float = 0.0) -> Shape:
    return lambda x, y: np.sqrt((x - cx) * (x - cx) + (y - cy) * (y - cy)) - radius


def stroke(points: Points, width: float) -> Shape:
    """A pen of that width drawn along the points."""

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        nearest = np.full_like(x, 1e9)
        for (x1, y1), (x2, y2) in pairwise(points):
            dx, dy = x2 - x1, y2 - y1
            length2 = dx * dx + dy * dy or 1.0  # two equal points are a dot
            along = np.clip(((x - x1) * dx + (y - y1) * dy) / length2, 0.0, 1.0)
            ex, ey = x - x1 - along * dx, y - y1 - along * dy
            nearest = np.minimum(nearest, ex * ex + ey * ey)
        return np.sqrt(nearest) - width / 2

    return distance


def polygon(points: Points, grow: float = 0.0) -> Shape:
    """A filled polygon, its edge moved outwards by `grow`, which rounds the corners."""
    closed = [*points, points[0]]
    outline = stroke(closed, 0.0)

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        inside = np.zeros(x.shape, bool)
        for (x1, y1), (x2, y2) in pairwise(closed):
            if y1 != y2:  # even-odd rule: does a ray to the right cross this edge?
                inside ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
        return np.where(inside, -1.0, 1.0) * outline(x, y) - grow

    return distance


def text(characters: str, height: float, width: float, spacing: float, pen: float, colour: Colour) -> list[Layer]:
    """Centred characters as pen strokes; a character is `width` wide and starts `spacing` after the one before."""
    glyphs: dict[str, list[Points]] = {  # on the square from -1 to 1
        "S": [arc(0, -0.5, 1, 0.5, -0.06, -0.75) + arc(0, 0.5, 1, 0.5, -0.25, 0.44)],
        "T": [[(-1, -1), (1, -1)], [(0, -1), (0, 1)]],
        "O": [arc(0, 0, 1, 1, 0, 1, 24)],
        "P": [[(-1, 1), (-1, -1), (0, -1), *arc(0.1, -0.45, 0.9, 0.55, -0.25, 0.25), (-1, 0.1)]],
        "0": [arc(0, 0, 0.9, 1, 0, 1, 24)],
        "3": [arc(-0.1, -0.53, 0.9, 0.47, -0.42, 0.25) + arc(-0.1, 0.47, 1, 0.53, -0.25, 0.44)],
        "8": [arc(0, -0.53, 0.8, 0.47, 0, 1, 20), arc(0, 0.47, 0.95, 0.53, 0, 1, 20)],
    }
    left = -spacing * (len(characters) - 1) / 2
    return [
        (stroke([(left + i * spacing + x * width / 2, y * height / 2) for x, y in line], pen), colour)
        for i, character in enumerate(characters)
        for line in glyphs[character]
    ]


def _turned(points: Points, thirds: int) -> Points:
    for _ in range(thirds):
        points = [(-0.5 * x - 0.8660254 * y, 0.8660254 * x - 0.5 * y) for x, y in points]
    return points


def _car(cx: float, colour: Colour) -> list[Layer]:
    at = [(-0.24, 0.14), (-0.24, -0.02), (-0.17, -0.06), (-0.12, -0.23), (0.12, -0.23), (0.17, -0.06), (0.24, -0.02)]
    body = polygon([(cx + x, y) for x, y in [*at, (0.24, 0.14)]], 0.03)
    window = polygon([(cx - 0.1, -0.06), (cx - 0.07, -0.17), (cx + 0.07, -0.17), (cx + 0.1, -0.06)])
    wheels = [stroke([(cx + side * 0.17, 0.12), (cx + side * 0.17, 0.22)], 0.13) for side in (-1, 1)]
    return [(body, colour), *[(wheel, colour) for wheel in wheels], (window, WHITE)]


def _octagon(radius: float) -> Shape:
    return polygon(arc(0, 0, radius, radius, 1 / 16, 17 / 16, 8)[:-1])


def _diamond(radius: float) -> Shape:
    return polygon([(0, -radius), (radius, 0), (0, radius), (-radius, 0)], 0.06)


_PLATE_UP: Points = [(-0.9, 0.74), (0.9, 0.74), (0, -0.82)]
_WARNING: list[Layer] = [
    (polygon(_PLATE_UP, 0.1), RED),
    (polygon([(0.6 * x, 0.6 * y + 0.1) for x, y in _PLATE_UP], 0.05), WHITE),
]
_PROHIBITION: list[Layer] = [(disc(1.0), RED), (disc(0.77), WHITE)]
_MANDATORY: list[Layer] = [(disc(1.0), WHITE), (disc(0.95), BLUE)]
_WALKER: list[Layer] = [
    (disc(0.1, 0.02, -0.27), BLACK),
    (stroke([(0.0, -0.1), (-0.01, 0.2)], 0.17), BLACK),
    (stroke([(-0.01, 0.2), (0.14, 0.38), (0.17, 0.6)], 0.11), BLACK),
    (stroke([(-0.01, 0.2), (-0.1, 0.42), (-0.24, 0.6)], 0.11), BLACK),
    (stroke([(0.02, -0.09), (0.2, 0.06), (0.29, 0.02)], 0.08), BLACK),
    (stroke([(-0.02, -0.09), (-0.16, 0.05), (-0.2, 0.18)], 0.08), BLACK),
]
_DIGGER: list[Layer] = [
    (disc(0.1, -0.02, -0.25), BLACK),
    (stroke([(-0.09, -0.1), (-0.22, 0.18)], 0.17), BLACK),
    (stroke([(-0.22, 0.18), (-0.12, 0.38), (-0.14, 0.6)], 0.1), BLACK),
    (stroke([(-0.22, 0.18), (-0.36, 0.38), (-0.42, 0.6)], 0.1), BLACK),
    (stroke([(-0.08, -0.08), (0.06, 0.1), (0.14, 0.22)], 0.08), BLACK),
    (stroke([(-0.16, 0.1), (0.24, 0.42)], 0.06), BLACK),
    (polygon([(0.06, 0.62), (0.52, 0.62), (0.3, 0.34)], 0.03), BLACK),
]
_ARROW_ROUND: Points = [(0.42, -0.44), (0.8, -0.06), (0.22, 0.02)]

FACES: dict[str, Sequence[Layer]] = {
    "stop": [(_octagon(1.05), WHITE), (_octagon(0.98), RED), *text("STOP", 0.54, 0.25, 0.4, 0.1, WHITE)],
    "no entry": [
        (disc(1.0), WHITE),
        (disc(0.95), RED),
        (polygon([(-0.66, -0.15), (0.66, -0.15), (0.66, 0.15), (-0.66, 0.15)], 0.03), WHITE),
    ],
    "yield": [
        (polygon([(x, -y) for x, y in _PLATE_UP], 0.1), RED),
        (polygon([(0.56 * x, -0.56 * y - 0.12) for x, y in _PLATE_UP], 0.05), WHITE),
    ],
    "priority road": [
        (_diamond(0.96), WHITE),
        (_diamond(0.9), BLACK),
        (_diamond(0.86), WHITE),
        (_diamond(0.6), YELLOW),
    ],
    "speed 30": [*_PROHIBITION, *text("30", 0.72, 0.36, 0.56, 0.16, BLACK)],
    "speed 80": [*_PROHIBITION, *text("80", 0.72, 0.36, 0.56, 0.16, BLACK)],
    "no overtaking": [*_PROHIBITION, *_car(-0.34, RED), *_car(0.34, BLACK)],
    "pedestrians": [*_WARNING, *_WALKER],
    "roadworks": [*_WARNING, *_DIGGER],
    "ahead only": [
        *_MANDATORY,
        (stroke([(0, 0.62), (0, -0.2)], 0.26), WHITE),
        (polygon([(-0.4, -0.14), (0.4, -0.14), (0, -0.7)]), WHITE),
    ],
    "turn right": [
        *_MANDATORY,
        (stroke([(-0.36, 0.56), (-0.36, 0.02), (-0.26, -0.12), (0.2, -0.12)], 0.26), WHITE),
        (polygon([(0.14, -0.52), (0.14, 0.28), (0.7, -0.12)]), WHITE),
    ],
    "roundabout": [
        *_MANDATORY,
        *[(stroke(_turned(arc(0, 0, 0.52, 0.52, -0.25, -0.06), i), 0.2), WHITE) for i in range(3)],
        *[(polygon(_turned(_ARROW_ROUND, i)), WHITE) for i in range(3)],
    ],
}
CLASSES: tuple[str, ...] = tuple(FACES)
COMPANIONS: Sequence[Sequence[Layer]] = [  # what else hangs on poles: a supplementary plate, the back of a sign
    [
        (polygon([(-0.75, -0.9), (0.75, -0.9), (0.75, -0.4), (-0.75, -0.4)], 0.04), BLACK),
        (polygon([(-0.75, -0.9), (0.75, -0.9), (0.75, -0.4), (-0.75, -0.4)]), WHITE),
        (stroke([(-0.5, -0.65), (0.5, -0.65)], 0.12), BLACK),
    ],
    [(disc(1.0), GREY)],
]


def paint(layers: Sequence[Layer], size: int) -> np.ndarray:
    """float32 (size, size, 4): red, green, blue already multiplied by opacity, and opacity; edges are smooth."""
    pixel = 2 * EXTENT / size
    line = (np.arange(size, dtype=np.float64) + 0.5) * pixel - EXTENT
    x, y = line[None, :] + 0 * line[:, None], line[:, None] + 0 * line[None, :]
    out = np.zeros((4, size, size))
    for shape, colour in layers:
        cover = np.clip(0.5 - shape(x, y) / pixel, 0.0, 1.0)
        for channel, value in zip(out, (*colour, 1.0), strict=True):
            channel += (value - channel) * cover
    return np.ascontiguousarray(out.transpose(1, 2, 0), dtype=np.float32)


def icon(k: int, size: int = 96, background: Colour = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Class k straight on, on a plain background: uint8 (size, size, 3)."""
    if not 0 <= k < len(CLASSES):
        raise ValueError(f"expected a class between 0 and {len(CLASSES) - 1}, got {k}; the names are in CLASSES")
    if size < 1:
        raise ValueError(f"expected a size of at least 1 pixel, got {size}")
    face = paint(FACES[CLASSES[k]], size).astype(np.float64)
    picture = face[..., :3] + (1.0 - face[..., 3:]) * np.array(background)
    return np.floor(np.clip(picture, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
