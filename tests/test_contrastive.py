"""Properties of the objective that need no torch; parity/test_contrastive.py holds it against fairseq's own code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import LITTLE

from jaxser import contrastive, wav2vec
from jaxser.architecture import BASE, LARGE, NANO
from jaxser.contrastive import Objective, Sums
from jaxser.selfsupervised import batch_sums


def drawn(frames: list[int], width: int, objective: Objective, seed: int = 0) -> np.ndarray:
    key, rows = jax.random.key(seed), jnp.arange(len(frames))
    return np.asarray(contrastive.draw_negatives(key, rows, jnp.array(frames), width, objective))


def test_negatives_are_valid_frames_of_the_same_row_and_never_the_frame_itself():
    frames, width = [40, 7, 2], 40
    negatives = drawn(frames, width, Objective(num_negatives=500))
    for row, count in enumerate(frames):
        for t in range(count):
            found = set((negatives[row, t] - row * width).tolist())
            assert found == set(range(count)) - {t}


def test_negatives_are_drawn_evenly():
    counts = np.bincount(drawn([30], 30, Objective(num_negatives=3_000))[0, 4], minlength=30)
    assert counts[4] == 0
    expected = 3_000 / 29  # a deviation of six standard deviations would be 60
    assert np.abs(np.delete(counts, 4) - expected).max() < 60


def test_cross_sample_negatives_come_from_all_rows():
    frames, width = [5, 0, 3, 4], 6
    negatives = drawn(frames, width, Objective(num_negatives=1, cross_sample_negatives=600))[..., 1:]
    everything = {row * width + t for row, count in enumerate(frames) for t in range(count)}
    for row, count in enumerate(frames):
        for t in range(count):
            assert set(negatives[row, t].tolist()) == everything - {row * width + t}


def test_what_a_row_draws_does_not_depend_on_its_company():
    objective = Objective()
    both = drawn([30, 20], 30, objective)
    key = jax.random.key(0)
    second = np.asarray(contrastive.draw_negatives(key, jnp.array([1]), jnp.array([20]), 30, objective))
    np.testing.assert_array_equal(both[1] - 30, second[0])
    assert (drawn([30, 20], 30, objective, seed=1) != both).any()


def test_scores_worked_by_hand():
    # One channel, three frames, an offset of one, one step ahead: z_t stands against 2 c_{t-1} + 1.
    head = {"kernel": jnp.array([[[2.0]]]), "bias": jnp.array([1.0])}
    z, c = jnp.array([[[3.0], [5.0], [7.0]]]), jnp.array([[[1.0], [10.0], [100.0]]])
    objective = Objective(prediction_steps=1, offset=1, num_negatives=1)
    negatives = jnp.array([[[1], [2], [0]]])
    x = contrastive.scores(head, z, c, negatives, objective)[0, :, 0]
    np.testing.assert_allclose(x[1:], [[3 * 5, 3 * 7], [21 * 7, 21 * 3]])
    sums = contrastive.sums(head, z, c, jnp.array([3]), negatives, objective)
    each = [np.log1p(np.exp(-15)), np.log1p(np.exp(21)), np.log1p(np.exp(-147)), np.log1p(np.exp(63))]
    assert float(sums.loss) == pytest.approx(sum(each))
    assert (int(sums.positives), int(sums.correct)) == (2, 1)


@pytest.mark.parametrize("frames", [0, 3, 4, 10, 14, 15, 40])
def test_how_many_predictions_there_are(frames: int):
    objective = Objective()
    # Step i is predicted at all valid frames from offset + i on.
    assert contrastive.predicted(jnp.array([frames]), 40, objective).sum() == sum(max(0, frames - 3 - i) for i in range(12))


def test_the_shortest_recording_gives_each_step_one_prediction():
    for config in (LARGE, BASE, NANO):
        samples = contrastive.shortest(config, Objective())
        assert config.frames(samples) == 15
        assert config.frames(samples - 1) == 14


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


@pytest.mark.parametrize("objective", [Objective(), Objective(infonce=True), Objective(balanced_classes=True)])
def test_a_ragged_batch_is_the_sum_of_its_members(objective: Objective):
    params = wav2vec.random_params(LITTLE, 0) | {"predictions": contrastive.random_predictions(LITTLE, objective, 0)}
    model, key = wav2vec.Wav2Vec(LITTLE), jax.random.key(3)
    lengths, width = np.array([8_000, 5_000, 0]), 8_000
    batch = noise(3, width)

    @jax.jit
    def sums_and_gradient(waveforms: jax.Array, lengths: jax.Array, rows: jax.Array) -> tuple[Sums, dict]:
        def loss_of(params):
            def negatives_of(frames, width):
                return contrastive.draw_negatives(key, rows, frames, width, objective)

            sums = batch_sums(model, objective, params, waveforms, lengths, negatives_of)
            return sums.loss, sums

        gradient, sums = jax.grad(loss_of, has_aux=True)(params)
        return sums, gradient

    together, gradient = sums_and_gradient(batch, lengths, np.arange(3))
    garbage = np.where(np.arange(width) < lengths[:, None], batch, np.nan)  # what lies beyond a length changes no bit
    for one, two in zip(
        jax.tree.leaves((together, gradient)), jax.tree.leaves(sums_and_gradient(garbage, lengths, np.arange(3))), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    # Alone and without padding, each with the negatives that it had in the batch.
    alone = [sums_and_gradient(batch[i : i + 1, :n], lengths[i : i + 1], np.array([i])) for i, n in enumerate(lengths) if n]
    assert int(together.positives) == sum(int(sums.positives) for sums, _ in alone)
    assert float(together.loss) == pytest.approx(sum(float(sums.loss) for sums, _ in alone), rel=1e-5)
    for whole, *parts in zip(*map(jax.tree.leaves, (gradient, *(g for _, g in alone))), strict=True):
        np.testing.assert_allclose(whole, sum(parts), rtol=1e-3, atol=1e-3 * float(np.abs(whole).max()))
