"""The paper's baseline features: pyAudioAnalysis' 34 low-level descriptors a frame. The one import of pyAudioAnalysis."""

import os

import numpy as np
from jaxtyping import Float

from jaxser.audio import SAMPLE_RATE, AudioError
from jaxser.errors import CallError

WIDTH = 34
VERSION = "pyAudioAnalysis 0.3.14"

WINDOW_MS = 50.0
HOP_MS = 25.0
"""The paper names neither. These are usual in examples of pyAudioAnalysis; 25 ms and 10 ms, the habit
of speech recognition, cost twice the time."""

SHORTEST_WINDOW_MS = 15.0
"""Below this the library's chroma filters run past its spectrum and it fails with a shape error."""


def samples_of(milliseconds: float) -> int:
    """A duration in samples at SAMPLE_RATE."""
    return round(milliseconds * SAMPLE_RATE / 1000)


def check_window(window_ms: float, hop_ms: float) -> None:
    """Raise CallError for a window or hop that the library cannot work with."""
    if not SHORTEST_WINDOW_MS <= window_ms <= 1000:
        raise CallError(f"--lld-window {window_ms:g}: the window must be {SHORTEST_WINDOW_MS:g} to 1000 ms")
    if not 1 <= hop_ms <= window_ms:
        raise CallError(f"--lld-hop {hop_ms:g}: the hop must be 1 ms to the window's {window_ms:g} ms")


def lld(signal: Float[np.ndarray, " s"], window_ms: float = WINDOW_MS, hop_ms: float = HOP_MS) -> Float[np.ndarray, "t 34"]:
    """The descriptors of a 16 kHz waveform, one row a frame, exactly as pyAudioAnalysis computes them (float64).

    There are (s - window) // hop + 1 frames: nothing is padded. The library takes the clip's mean and peak away first,
    so loudness is lost and a crop is not a part of the whole's features. Raises AudioError for a clip below one window.
    """
    window, hop = samples_of(window_ms), samples_of(hop_ms)
    if len(signal) < window:
        raise AudioError(f"{len(signal) / SAMPLE_RATE * 1000:.0f} ms of sound are shorter than one window of {window_ms:g} ms")
    os.environ.setdefault("MPLBACKEND", "Agg")  # it imports pyplot, which would look for a display
    from pyAudioAnalysis import ShortTermFeatures  # takes a second, and only sound not seen before needs it

    features, _ = ShortTermFeatures.feature_extraction(signal, SAMPLE_RATE, window, hop, deltas=False)
    return features.T
