import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxser import spectral


def sums(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The correlation as its definition has it, in float64."""
    t = x.shape[1] - len(kernel) + 1
    return sum(x[:, i : i + t].astype(np.float64) @ tap.astype(np.float64) for i, tap in enumerate(kernel))


@pytest.mark.parametrize("frames", [1, 15, 16, 17, 31, 32, 33, 100])
@pytest.mark.parametrize("taps", [1, 2, 5, 13, spectral.LONGEST])
def test_it_is_the_sum_over_taps(taps: int, frames: int):
    generator = np.random.default_rng(taps)
    x = generator.normal(size=(3, frames + taps - 1, 4))
    kernel = generator.normal(size=(taps, 4, 6))
    with jax.enable_x64(True):
        y = spectral.convolve(jnp.asarray(x), jnp.asarray(spectral.transform_kernel(kernel)), taps)
        assert y.dtype == np.float64
        np.testing.assert_allclose(y, sums(x, kernel), atol=1e-12)


def test_float32_error_is_that_of_the_direct_sum():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, 200, 256)).astype(np.float32)
    kernel = (generator.normal(size=(13, 256, 64)) / np.sqrt(13 * 256)).astype(np.float32)
    exact = sums(x, kernel)
    ours = spectral.convolve(jnp.asarray(x), jnp.asarray(spectral.transform_kernel(kernel)), 13)
    direct = jax.lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
    assert np.abs(ours - exact).max() < 4 * np.abs(direct - exact).max()


def test_fewer_products_than_taps():
    for taps in range(5, spectral.LONGEST + 1):
        assert spectral.PRODUCTS / len(spectral.transform(taps).inverse) < taps


@pytest.mark.parametrize("taps", [0, spectral.LONGEST + 1])
def test_kernels_that_do_not_fit(taps: int):
    with pytest.raises(ValueError, match=f"{taps} frames: 1 to 17"):
        spectral.transform(taps)
