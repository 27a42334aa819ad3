"""Which number is far too small for its company? The median absolute deviation, MAD.

A mean and a standard deviation are pulled along by the very outlier they should reveal; medians are not. For normally
distributed numbers 1.4826 * MAD estimates the standard deviation, so an index above 2 is a rare draw (Hampel 1974; the
"anomaly index" of Wang et al. 2019, Section IV). Lab 07.
"""

from __future__ import annotations

import torch
from torch import Tensor

CONSISTENCY = 1.4826  # 1 / (0.75 quantile of the normal distribution)


def median(values: Tensor) -> Tensor:
    """The ordinary median: the mean of the middle two of an even count, as in numpy. torch.median's is the lower."""
    return torch.quantile(values.double(), 0.5)


def anomaly_index(values: Tensor) -> Tensor:
    """How far each of values (K,) lies below their median, in robust standard deviations: float32 (K,).

    One-sided: positive below the median, negative above it, so that only a small value can pass a threshold. The paper
    takes the absolute difference first and then looks at the small values alone, which flags the same ones. A MAD of
    zero (more than half of the values equal) makes every other value infinitely far. Raises ValueError for fewer than
    3 values: of two numbers each is as far from the median as the other.
    """
    if values.ndim != 1 or len(values) < 3:
        raise ValueError(
            f"anomaly index: expected at least 3 values to tell which is unusual; got shape {tuple(values.shape)}. "
            "Compare more classes."
        )
    below = median(values) - values.double()
    spread = CONSISTENCY * median(below.abs())
    return torch.where(below == 0, 0.0, below / spread).float()
