import numpy as np
import pytest
from pyAudioAnalysis import ShortTermFeatures

from jaxser import audio, lld
from jaxser.errors import CallError


@pytest.mark.parametrize(("window", "hop"), [(50.0, 25.0), (25.0, 10.0), (20.0, 10.0), (15.0, 15.0)])
def test_identical_to_pyaudioanalysis(window: float, hop: float):
    signal = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    expected, names = ShortTermFeatures.feature_extraction(signal, 16_000, int(window * 16), int(hop * 16), deltas=False)
    features = lld.lld(signal, window, hop)
    np.testing.assert_array_equal(features, expected.T)
    assert len(names) == lld.WIDTH == features.shape[1]
    assert len(features) == (24_000 - window * 16) // (hop * 16) + 1


def test_identical_on_real_speech(ravdess):
    signal = audio.load(ravdess / "Actor_01" / "03-01-05-01-01-01-01.flac")
    expected, _ = ShortTermFeatures.feature_extraction(signal, 16_000, 800, 400, deltas=False)
    np.testing.assert_array_equal(lld.lld(signal), expected.T)


def test_one_window_is_enough_and_less_is_an_error():
    signal = np.random.default_rng(0).normal(0, 0.1, 800).astype(np.float32)
    assert lld.lld(signal).shape == (1, 34)
    with pytest.raises(audio.AudioError, match="50 ms of sound are shorter than one window of 50 ms"):
        lld.lld(signal[:799])


@pytest.mark.parametrize(("window", "hop"), [(10.0, 5.0), (50.0, 60.0), (50.0, 0.0), (2000.0, 10.0), (float("nan"), 1.0)])
def test_impossible_windows(window: float, hop: float):
    with pytest.raises(CallError, match="--lld-"):
        lld.check_window(window, hop)
