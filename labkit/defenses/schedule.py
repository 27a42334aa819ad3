"""How strongly should Neural Cleanse ask for a small mask? The weight lambda, up and down, for one class.

Wang et al. 2019, Section IV: lambda is adjusted while searching, so that more than 99% of the images reach the class.
Too small, and the mask stays large; too large, and the attack stops working. So lambda rises after a run of successes,
falls after a run of failures, and the search ends when it has done both and the mask no longer shrinks. Lab 07.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SearchConfig:
    """How to search: the settings of the paper's released experiments, but for `steps` and `batch`.

    There a step is 1,000 images (31 updates) and there are up to 1,000 steps, some 30 million images a model. Here a
    step is one update, and success is judged on its batch alone: at 32 images, all of them must reach the class.
    That is noisy: measured again on all images, success is a few points below the threshold (`success` says it).
    """

    steps: int = 400  # updates, at most; most classes are done before
    batch: int = 32  # images per class and update
    lr: float = 0.1  # Adam
    betas: tuple[float, float] = (0.5, 0.9)
    threshold: float = 0.99  # share of images sent to the class from which on the attack "works"
    first_lambda: float = 1e-3  # lambda is 0 until the attack has worked `patience` times
    multiplier: float = 2.0  # lambda *= multiplier, or lambda /= multiplier ** 1.5
    patience: int = 5  # updates in a row that work, or fail, before lambda changes
    early_stop: int = 25  # updates in a row without a smaller mask, once lambda has gone both up and down

    def __post_init__(self):
        counts = (self.steps, self.batch, self.patience, self.early_stop)
        if (
            min(counts) < 1
            or not min(self.lr, self.first_lambda, self.multiplier - 1) > 0
            or not 0 < self.threshold <= 1
        ):
            raise ValueError(
                "SearchConfig: expected steps, batch, patience, early_stop >= 1, lr and first_lambda > 0, "
                f"multiplier > 1, threshold in (0, 1]; got {self}."
            )


@dataclass
class Schedule:
    """One class's lambda, how long its attack has worked or failed, and the smallest norm that worked.

    Every class has its own, so that nothing of one class's search leaks into another's. `update` changes it.
    """

    config: SearchConfig
    lambda_: float = 0.0
    best_norm: float = math.inf
    worked: int = 0  # updates in a row
    failed: int = 0  # updates in a row
    idle: int = 0  # updates in a row without a smaller mask
    went_up: bool = False
    went_down: bool = False

    def update(self, success: float, norm: float) -> bool:
        """Takes in one update's success share and mask norm; True if this mask is the smallest that worked so far."""
        works = success >= self.config.threshold
        better = works and norm < self.best_norm
        if better:
            self.best_norm = norm
        self.idle = 0 if better or self.best_norm == math.inf else self.idle + 1
        self.worked, self.failed = (self.worked + 1, 0) if works else (0, self.failed + 1)
        if self.worked == self.config.patience:
            self.worked, self.went_up = 0, self.went_up or self.lambda_ > 0  # from 0 to the first value is no rise
            self.lambda_ = self.lambda_ * self.config.multiplier or self.config.first_lambda
        elif self.failed == self.config.patience:
            self.failed, self.went_down = 0, self.went_down or self.lambda_ > 0
            self.lambda_ /= self.config.multiplier**1.5
        return better

    @property
    def done(self) -> bool:
        return self.went_up and self.went_down and self.idle >= self.config.early_stop
