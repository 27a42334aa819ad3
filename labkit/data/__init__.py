"""Images and labels: what they are (`imageset`), how to get them (`loading`), and the set that code draws (`signs`)."""

from labkit.data.imageset import ImageSet, Splits, check_images
from labkit.data.loading import load

__all__ = ["ImageSet", "Splits", "check_images", "load"]
