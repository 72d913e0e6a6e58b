"""What fixes a pretraining besides its audio: the published recipes of wav2vec, and that of the weights that ship."""

from dataclasses import dataclass, replace

from jaxser.architecture import BASE, LARGE, NANO, Architecture
from jaxser.contrastive import Objective


@dataclass(frozen=True)
class Recipe:
    """Settings of one pretraining. Adam has its usual betas and epsilon (0.9, 0.999, 1e-8)."""

    architecture: Architecture
    objective: Objective
    updates: int
    learning_rate: float
    """The highest, after the warm-up; it rises to there from a ten-thousandth, and falls along a half cosine."""
    last_learning_rate: float
    warm_up: int
    """Updates."""
    crop_seconds: float
    batch_seconds: float
    """Sound an update, on all devices together."""
    clip_norm: float
    """The gradient is scaled down to this norm where it is above; 0: never."""
    gain: tuple[float, float]
    """Each crop is multiplied by a factor drawn from here, evenly in decibels, so that the features do not depend on the level
    of a recording: the norms' epsilon is not small against a quiet one."""


PUBLISHED = Recipe(
    architecture=LARGE,
    objective=Objective(),
    updates=400_000,
    learning_rate=5e-3,
    last_learning_rate=1e-6,
    warm_up=500,
    crop_seconds=9.375,
    batch_seconds=750.0,
    clip_norm=25.0,
    gain=(1.0, 1.0),
)
"""fairseq's command for wav2vec-large (its examples/wav2vec/README.md): crops of 150,000 samples, 1.5 million samples a GPU, on
the eight GPUs of the wav2vec paper; clipping at 25 was its default in 2019. Two departures: a recording below the crop's length
is padded and masked, where fairseq crops the batch to its shortest member, and an epoch hears as many crops of a recording as
fit into it, where fairseq's hears one."""

RECIPES = {
    "nano": Recipe(
        architecture=NANO,
        objective=Objective(infonce=True),
        updates=10_000,
        learning_rate=1e-3,
        last_learning_rate=0.0,
        warm_up=100,
        crop_seconds=2.0,
        batch_seconds=16.0,
        clip_norm=1.0,
        gain=(0.05, 1.5),
    ),
    "base": replace(PUBLISHED, architecture=BASE),
    "large": PUBLISHED,
}
