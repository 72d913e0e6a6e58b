"""How long the utterances of real corpora are, for those that benchmarks make of noise."""

import numpy as np

RAVDESS, IEMOCAP = 864, 5_531
"""Utterances of the four classes."""


def as_ravdess(random: np.random.Generator, count: int = RAVDESS) -> np.ndarray:
    """Seconds of so many utterances: normal, mean 3.70, deviation 0.34."""
    return random.normal(3.70, 0.34, count)


def as_iemocap(random: np.random.Generator, count: int = IEMOCAP) -> np.ndarray:
    """Seconds of so many utterances: log-normal with IEMOCAP's median of 3.58 and mean of 4.55, from 0.585 to 34.14."""
    spread = (2 * np.log(4.55 / 3.58)) ** 0.5
    return np.clip(3.58 * np.exp(spread * random.normal(size=count)), 0.585, 34.14)
