"""The drawn traffic signs: the same bytes for everybody, and neither too easy nor too hard."""

import hashlib

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from labkit.data import signs
from labkit.data.sign_scenes import blur
from labkit.data.sign_shapes import direction, disc, polygon, stroke


@pytest.fixture(scope="module")
def drawn():
    return signs.draw(240, seed=0)


def test_the_bytes_are_pinned():
    """Fails on any change of the pictures. If the change is meant, raise SIGNS_VERSION and pin the new hash."""
    images, labels = signs.draw(200, seed=0)
    digest = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    assert (signs.SIGNS_VERSION, digest[:32]) == ("3", "047f147c7dcee6fa91204a9d9d3462a1")


def test_shape_type_and_range(drawn):
    images, labels = drawn
    assert images.shape == (240, 32, 32, 3) and images.dtype == np.uint8
    assert labels.shape == (240,) and labels.dtype == np.int64
    assert images.min() < 20 and images.max() > 235
    per_picture = images.reshape(240, -1)
    assert per_picture.std(axis=1).min() > 4, "a picture without contrast"


@pytest.mark.parametrize("n", [1, 12, 100, 240])
def test_classes_are_balanced_whatever_the_number(n):
    counts = np.bincount(signs.draw(n, seed=3)[1], minlength=len(signs.CLASSES))
    assert counts.max() - counts.min() <= 1 and counts.sum() == n


def test_the_order_is_shuffled(drawn):
    blocks = drawn[1].reshape(-1, len(signs.CLASSES))
    assert len({tuple(block) for block in blocks}) == len(blocks)


@pytest.mark.parametrize(("n", "first"), [(5, 0), (64, 0), (70, 0), (30, 59), (1, 200), (100, 7)])
def test_a_picture_depends_on_its_seed_and_number_alone(drawn, n, first):
    images, labels = signs.draw(n, seed=0, first=first)
    np.testing.assert_array_equal(images, drawn[0][first : first + n])
    np.testing.assert_array_equal(labels, drawn[1][first : first + n])


def test_no_picture_twice(drawn):
    other = signs.draw(240, seed=1)[0]
    assert len({image.tobytes() for image in [*drawn[0], *other]}) == 480


def test_the_seed_changes_the_labels_too(drawn):
    assert (signs.draw(240, seed=1)[1] != drawn[1]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0, "seed": 0}, "expected n to be a whole number of at least 1, got 0"),
        ({"n": -3, "seed": 0}, "at least 1, got -3"),
        ({"n": 2.5, "seed": 0}, "whole number of at least 1, got 2.5"),
        ({"n": True, "seed": 0}, "got True"),
        ({"n": 1, "seed": -1}, "expected seed to be a whole number of at least 0, got -1"),
        ({"n": 1, "seed": 0, "first": -1}, "expected first"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        signs.draw(**arguments)


def test_every_class_has_its_own_icon():
    assert len(set(signs.CLASSES)) == 12
    icons = [signs.icon(k, 32).astype(int) for k in range(12)]
    for k, mine in enumerate(icons):
        assert mine.shape == (32, 32, 3) and mine.min() >= 0 and mine.max() <= 255
        for other in icons[:k]:
            different = (abs(mine - other).max(axis=2) > 64).sum()
            assert different >= 20, "two classes differ in fewer than 20 of 1,024 pixels"


def test_an_icon_of_any_size_on_any_background():
    small, large = signs.icon(0, 24), signs.icon(0, background=(0.0, 0.0, 0.0))
    assert small.shape == (24, 24, 3) and large.shape == (96, 96, 3) and large.dtype == np.uint8
    assert (small[0, 0] == 255).all() and (large[0, 0] == 0).all()
    with pytest.raises(ValueError, match="expected a class between 0 and 11, got 12"):
        signs.icon(12)
    with pytest.raises(ValueError, match="at least 1 pixel"):
        signs.icon(0, 0)


def test_distances_against_geometry():
    x, y = np.array([0.0, 2.0, 0.0, 0.5]), np.array([0.0, 0.0, -3.0, 0.5])
    np.testing.assert_allclose(disc(1.0)(x, y), np.hypot(x, y) - 1)
    np.testing.assert_allclose(stroke([(-1, 0), (1, 0)], 0.5)(x, y), [-0.25, 0.75, 2.75, 0.25])
    square = polygon([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    np.testing.assert_allclose(square(x, y), [-1, 1, 2, -0.5])


def test_direction_against_the_maths_library():
    quarters = np.linspace(-1, 1, 101)
    cos, sin = direction(quarters)
    np.testing.assert_allclose(cos, np.cos(quarters * np.pi / 2), atol=1e-3)
    np.testing.assert_allclose(sin, np.sin(quarters * np.pi / 2), atol=1e-3)
    np.testing.assert_allclose(cos * cos + sin * sin, 1, rtol=1e-12)


def test_blur_moves_light_to_the_neighbours_and_loses_none():
    image = np.zeros((3, 1, 1024), np.float32)
    image[:, :, 16 * 32 + 10] = 1
    out = blur(image, np.array([[0.25]], np.float32), np.array([[0.0]], np.float32)).reshape(3, 32, 32)
    np.testing.assert_allclose(out[0, 16, 9:12], [0.25, 0.5, 0.25])
    np.testing.assert_allclose(out.sum(axis=(1, 2)), 1)


@pytest.mark.slow
def test_pixels_alone_do_not_give_the_answer():
    """Logistic regression on pictures of half the size (which helps it; C is the best of three): under 60%."""
    (train, y), (test, truth) = signs.draw(4000, seed=1), signs.draw(1000, seed=2)
    coarse = [
        part.reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4)).reshape(len(part), -1) / 255 for part in (train, test)
    ]
    model = LogisticRegression(C=0.1, max_iter=300).fit(coarse[0], y)
    accuracy = model.score(coarse[1], truth)
    assert 0.2 < accuracy < 0.6, f"chance is 8%; {accuracy:.1%}"
