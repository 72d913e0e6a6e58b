"""Emotion recognition in speech: speaker-independent scores with their uncertainty.

Importing the package imports nothing heavy: the processes that compute descriptors never load jax.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxser.recogniser import Recogniser

__version__ = "0.1.0"


def load(path: str, **options: Any) -> "Recogniser":
    """A model that `jaxser.cv --save` wrote, to label signals: `jaxser.models.load`, which has the options."""
    from jaxser import models

    return models.load(path, **options)
