import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import LITTLE

from jaxser import wav2vec
from jaxser.contrastive import Objective, draw_negatives, random_predictions
from jaxser.crops import Read
from jaxser.network import Wav2Vec
from jaxser.recipes import RECIPES, Recipe
from jaxser.selfsupervised import batch_sums, make_learner, make_schedule

SMALL = replace(
    RECIPES["nano"],
    architecture=LITTLE,
    updates=100,
    warm_up=10,
    learning_rate=3e-3,
)


def first(recipe: Recipe) -> dict:
    head = random_predictions(recipe.architecture, recipe.objective, 0)
    return wav2vec.random_params(recipe.architecture, 0) | {"predictions": head}


def read(seed: int = 0, rows: int = 4, samples: int = 8_000) -> Read:
    """Chirps: what comes next can be told."""
    generator, time = np.random.default_rng(seed), np.arange(samples) / 16_000
    waves = [
        np.sin(2 * np.pi * (generator.uniform(100, 900) + generator.uniform(-300, 900) * time) * time) for _ in range(rows)
    ]
    return Read(0.1 * np.array(waves, np.float32), np.full(rows, samples, np.int32), rows * samples)


def test_the_schedule_is_fairseqs():
    recipe = replace(RECIPES["large"], updates=1_000, warm_up=100)
    rate = make_schedule(recipe)
    peak, last = recipe.learning_rate, recipe.last_learning_rate
    assert rate(100) == pytest.approx(peak)
    assert rate(50) == pytest.approx((peak + 1e-4 * peak) / 2)
    assert rate(550) == pytest.approx((peak + last) / 2)  # half of a half cosine
    assert rate(1_000) == pytest.approx(last)
    assert rate(325) == pytest.approx(last + (peak - last) * (1 + np.cos(np.pi / 4)) / 2)


def test_updates_are_adam_on_the_clipped_gradient_of_the_mean_loss():
    recipe = replace(SMALL, clip_norm=0.05)
    learner = make_learner(recipe, 0)
    state = learner.start(first(recipe))
    ours = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params)
    moments = jax.tree.map(lambda leaf: np.zeros((2, *leaf.shape)), ours)

    @jax.jit
    def gradient_of(params, waveforms, lengths, key):
        def mean_loss(params):
            def negatives_of(frames, width):
                return draw_negatives(key, jnp.arange(4), frames, width, recipe.objective)

            sums = batch_sums(Wav2Vec(recipe.architecture), recipe.objective, params, waveforms, lengths, negatives_of)
            return sums.loss / sums.positives

        return jax.grad(mean_loss)(params)

    for number in range(4):
        batch, key = read(number), jax.random.fold_in(jax.random.key(0), number)
        gradient = gradient_of(jax.tree.map(np.float32, ours), batch.waveforms, batch.lengths, key)
        norm = np.sqrt(sum(float((leaf.astype(np.float64) ** 2).sum()) for leaf in map(np.asarray, jax.tree.leaves(gradient))))
        assert norm > recipe.clip_norm  # or clipping would not be seen
        rate = float(make_schedule(recipe)(number))

        def adam(leaf, slope, pair, number=number, norm=norm, rate=rate):
            # Kingma and Ba, 2015, algorithm 1.
            slope = np.asarray(slope, np.float64) * (recipe.clip_norm / norm)
            pair[0], pair[1] = 0.9 * pair[0] + 0.1 * slope, 0.999 * pair[1] + 0.001 * slope**2
            mean, square = pair[0] / (1 - 0.9 ** (number + 1)), pair[1] / (1 - 0.999 ** (number + 1))
            return leaf - rate * mean / (np.sqrt(square) + 1e-8)

        ours = jax.tree.map(adam, ours, gradient, moments)
        state, metrics = learner.update(state, read(number))
        assert float(metrics.norm) == pytest.approx(norm, rel=1e-3)
    assert float(metrics.loss) == pytest.approx(np.log(11), abs=0.3)  # one of eleven, before any training
    assert int(state.step) == 4
    for one, two in zip(*map(jax.tree.leaves, (state.params, ours)), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)


def test_training_learns_to_tell_what_comes_next():
    learner = make_learner(SMALL, 0)
    state, held = learner.start(first(SMALL)), read(seed=99)
    begin = learner.score(state, held, 0)
    for number in range(100):
        state, _ = learner.update(state, read(seed=number % 10))
    end = learner.score(state, held, 0)
    assert float(end.loss) < 0.9 * float(begin.loss)
    assert int(end.correct) > 1.5 * int(begin.correct)
    again = learner.score(state, held, 0)
    assert float(again.loss) == float(end.loss)
    assert float(learner.score(state, held, 1).loss) != float(end.loss)  # other negatives


def test_one_program_at_a_time_on_a_cpu():
    # Two at once, on a busy machine, wait for each other's threads for ever.
    learner = make_learner(SMALL, 0)
    state = learner.start(first(SMALL))
    for number in range(3):
        state, metrics = learner.update(state, read(number))
        assert all(leaf.is_ready() for leaf in jax.tree.leaves((state, metrics)))
        assert all(leaf.is_ready() for leaf in learner.score(state, read(9), 0))


def test_an_empty_batch_changes_nothing_but_the_count():
    learner = make_learner(SMALL, 0)
    state, _ = learner.update(learner.start(first(SMALL)), read())
    before = jax.tree.map(np.asarray, (state.params, state.optimiser))
    empty = Read(np.zeros((4, 8_000), np.float32), np.zeros(4, np.int32), 0)
    state, metrics = learner.update(state, empty)
    for one, two in zip(*map(jax.tree.leaves, (before, (state.params, state.optimiser))), strict=True):
        np.testing.assert_array_equal(one, two)
    assert (float(metrics.loss), int(state.step)) == (0.0, 2)


def test_negatives_are_drawn_anew_at_each_update():
    still = replace(SMALL, learning_rate=1e-12)
    learner = make_learner(still, 0)
    state = learner.start(first(still))
    losses = []
    for _ in range(3):
        state, metrics = learner.update(state, read())
        losses.append(float(metrics.loss))
    assert len(set(losses)) == 3


FOUR = """
import sys, pickle, jax, numpy as np
sys.path.insert(0, {tests!r})
from test_selfsupervised import SMALL, first, read
from jaxser.selfsupervised import make_learner
assert jax.device_count() == {devices}
learner = make_learner(SMALL, 0)
state = learner.start(first(SMALL))
for number in range(3):
    state, metrics = learner.update(state, read(number))
pickle.dump(jax.tree.map(np.asarray, (state.params, metrics, learner.score(state, read(9), 0))), open(sys.argv[1], "wb"))
"""


def test_four_devices_share_a_batch(tmp_path: Path):
    import os
    import pickle

    found = []
    for devices in (1, 4):
        script = FOUR.format(tests=str(Path(__file__).parent), devices=devices)
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
        command = [sys.executable, "-c", script, str(tmp_path / str(devices))]
        subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[1], timeout=300)
        found.append(pickle.loads((tmp_path / str(devices)).read_bytes()))
    (one, m1, s1), (four, m4, s4) = found
    assert (int(s1.positives), float(m1.accuracy)) == (int(s4.positives), pytest.approx(float(m4.accuracy), abs=0.01))
    assert float(m1.loss) == pytest.approx(float(m4.loss), rel=1e-5)
    # Sums in another order, then Adam, which makes a full step of any gradient however small: a few weights may differ by one.
    for a, b in zip(*map(jax.tree.leaves, (one, four)), strict=True):
        assert np.quantile(np.abs(a - b), 0.99) < 1e-5
        assert np.abs(a - b).max() < 3 * 2 * SMALL.learning_rate


def test_objective_and_recipes():
    assert RECIPES["large"].objective == Objective()
    for recipe in RECIPES.values():
        assert recipe.warm_up < recipe.updates
