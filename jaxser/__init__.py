"""Emotion recognition in speech: speaker-independent scores with their uncertainty.

Importing the package imports nothing heavy: the processes that compute descriptors never load jax.
"""

__version__ = "0.1.0"
