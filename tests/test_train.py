import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxser import train
from jaxser.errors import WorkError
from jaxser.folds import batches
from jaxser.heads import HEADS
from jaxser.store import Frames, frame_mask

SOME = ("mean", "meanmax", "attention", "mlp")
"""Without the recurrent heads, which take long to compile."""


def problem(n: int = 40, features: int = 5, classes: int = 3) -> tuple[Frames, np.ndarray]:
    random = np.random.default_rng(0)
    labels = (np.arange(n) % classes).astype(np.int32)
    x = random.normal(size=(n, 9, features)).astype(np.float32) * 3 + labels[:, None, None] * 3
    return Frames(x, frame_mask(random.integers(1, 10, n), 9)), labels


def runs_of(count: int, updates: int = 30, n: int = 40) -> list[train.Run]:
    rows = np.arange(n)
    return [train.Run(i // 5, i % 5, 0, updates, rows[rows % 5 != i % 5], rows[rows % 5 == i % 5]) for i in range(count)]


def trained(head: str, runs: list[train.Run], dropout: float = 0.2, rate: float = 1e-2, **options) -> train.Trained:
    frames, labels = problem()
    kinds = len(HEADS[head].inputs)  # a head that reads words reads the same frames as words
    moments = train.moments(frames)
    standards = [(train.standardisation(moments, run.train),) * kinds for run in runs]
    return train.train_runs(
        HEADS[head].module(3, dropout), optax.adam(rate), (HEADS[head].summarise(frames),) * kinds, labels, runs, standards,
        batch_size=6, **options,
    )  # fmt: skip


def row_of(result: train.Trained, i: int):
    return jax.tree.map(lambda leaf: leaf[i], result.params), result.logits[i], result.losses[i]


def assert_same_bits(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("head", list(HEADS))
def test_a_run_alone_has_the_same_bits_as_among_others(head: str):
    runs = runs_of(7)
    together = trained(head, runs, parallel=1)
    assert_same_bits(row_of(trained(head, [runs[4]], parallel=1), 0), row_of(together, 4))


@pytest.mark.parametrize("head", SOME)
@pytest.mark.parametrize("parallel", [3, 100])
def test_runs_at_once_differ_by_rounding_only(head: str, parallel: int):
    runs = runs_of(7)
    one, many = trained(head, runs, parallel=1), trained(head, runs, parallel=parallel)
    for a, b in zip(one.logits, many.logits, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("head", SOME)
def test_chunk_length_changes_no_bit(head: str):
    runs = runs_of(2, updates=30)
    expected = trained(head, runs)
    for chunk in (1, 7, 30):
        assert_same_bits(row_of(trained(head, runs, chunk=chunk), 1), row_of(expected, 1))


def test_same_call_same_bits():
    assert_same_bits(row_of(trained("mlp", runs_of(3)), 2), row_of(trained("mlp", runs_of(3)), 2))


def test_runs_of_unequal_length_and_size_share_a_program():
    runs = runs_of(3)
    runs[1] = replace(runs[1], updates=11, train=runs[1].train[:10], test=runs[1].test[:3])
    together = trained("mlp", runs)
    assert [len(loss) for loss in together.losses] == [30, 11, 30]
    assert [len(logits) for logits in together.logits] == [8, 3, 8]
    assert_same_bits(row_of(trained("mlp", [runs[1]]), 0), row_of(together, 1))


def test_an_empty_step_changes_nothing_at_all():
    frames, labels = problem()
    tx, module = optax.adam(1e-2), HEADS["mlp"].module(3, 0.5)
    step = jax.jit(partial(train.advance, module, tx))
    standard = (train.standardisation(train.moments(frames), np.arange(40)),)
    state = train.start(module, tx, (frames,), train.run_key(0, 0, 0))
    state, _ = step((frames,), labels, standard, state, jnp.arange(12, dtype=jnp.int32).reshape(2, 6))
    after, losses = step((frames,), labels, standard, state, jnp.full((3, 6), -1, jnp.int32))
    assert_same_bits((after.params, after.optimiser, after.step), (state.params, state.optimiser, state.step))
    assert np.isnan(losses).all()


def test_short_batches_weigh_their_rows_alone():
    frames, labels = problem()
    tx, module = optax.sgd(1.0), HEADS["attention"].module(3, 0.0)
    step = jax.jit(partial(train.advance, module, tx))
    standard = (train.standardisation(train.moments(frames), np.arange(40)),)
    state = train.start(module, tx, (frames,), train.run_key(0, 0, 0))
    exact, _ = step((frames,), labels, standard, state, jnp.array([[3, 8]], jnp.int32))
    filled, _ = step((frames,), labels, standard, state, jnp.array([[3, -1, 8, -1, -1]], jnp.int32))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), exact.params, filled.params)


def test_test_rows_touch_nothing_of_the_training():
    frames, labels = problem()
    run = runs_of(1)[0]
    results = []
    for change in (False, True):
        x, y = frames.x.copy(), labels.copy()
        if change:
            x[run.test] = 1e6
            y[run.test] = (y[run.test] + 1) % 3
        changed = Frames(x, frames.mask)
        standard = train.standardisation(train.moments(changed), run.train)
        results.append(train.train_runs(HEADS["mlp"].module(3, 0.2), optax.adam(1e-2), (changed,), y, [run], [(standard,)], 6))
    assert_same_bits(
        (results[0].params, results[0].standards, results[0].losses),
        (results[1].params, results[1].standards, results[1].losses),
    )
    assert not np.array_equal(results[0].logits[0], results[1].logits[0])


def test_standardisation_is_that_of_all_training_frames():
    frames, _ = problem()
    rows = np.array([1, 5, 9, 30])
    every = np.concatenate([frames.x[i][frames.mask[i]] for i in rows]).astype(np.float64)
    standard = train.standardisation(train.moments(frames), rows)
    np.testing.assert_allclose(standard.mean, every.mean(0), rtol=1e-6)
    np.testing.assert_allclose(standard.scale, every.std(0), rtol=1e-6)


def test_a_constant_feature_is_left_as_it_is():
    frames, _ = problem()
    frames.x[:, :, 2] = -99.0018
    assert train.standardisation(train.moments(frames), np.arange(40)).scale[2] == 1


def test_training_equals_adam_written_by_hand():
    # The linear head without dropout is softmax regression: its gradient is known, and Adam is short (Kingma and Ba, 2015).
    frames, labels = problem()
    run = runs_of(1, updates=40)[0]
    result = trained("mean", [run], dropout=0.0)
    standard = train.standardisation(train.moments(frames), run.train)
    pooled = np.array([x[m].mean(0, dtype=np.float64) for x, m in zip(frames.x, frames.mask, strict=True)])
    pooled = (pooled - standard.mean) / standard.scale

    initial, _ = jax.random.split(train.run_key(0, 0, 0))
    first = HEADS["mean"].summarise(Frames(frames.x[:1], frames.mask[:1]))
    start = HEADS["mean"].module(3, 0.0).init(initial, first, train=False)["params"]["Dense_0"]
    weights = [np.asarray(start["kernel"], np.float64), np.asarray(start["bias"], np.float64)]
    m, v = [0 * w for w in weights], [0 * w for w in weights]
    for step, rows in enumerate(batches(run.train, 6, 0, 40, 0, 0, 0), 1):
        rows = rows[rows >= 0]
        logits = pooled[rows] @ weights[0] + weights[1]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        error = (p - np.eye(3)[labels[rows]]) / len(rows)
        for i, g in enumerate([pooled[rows].T @ error, error.sum(0)]):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            weights[i] = weights[i] - 1e-2 * (m[i] / (1 - 0.9**step)) / (np.sqrt(v[i] / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(result.params["Dense_0"]["kernel"][0], weights[0], atol=2e-5)
    np.testing.assert_allclose(result.logits[0], pooled[run.test] @ weights[0] + weights[1], atol=2e-5)


def test_training_learns():
    # `trained` has labels that shift every feature: whoever learns at all learns these.
    result = trained("mlp", runs_of(5, updates=200))
    _, labels = problem()
    right = [np.mean(z.argmax(1) == labels[r.test]) for z, r in zip(result.logits, runs_of(5), strict=True)]
    assert np.mean(right) > 0.6


def test_a_loss_that_is_not_finite_names_its_run():
    with pytest.raises(WorkError, match=r"seed 0, fold \d is .* at update \d+: lower --learning-rate"):
        trained("mean", runs_of(3), rate=float("inf"))


DEVICES = """
import sys; sys.path.insert(0, {tests!r})
from test_train import runs_of, trained
import jax, numpy as np
assert len(jax.local_devices()) == {count}
result = trained("mlp", runs_of(7), parallel=1)
assert result.devices == {count}, result.devices
np.savez({out!r}, *result.logits)
"""


def test_four_devices_give_the_bits_of_one(tmp_path):
    # Seven runs do not divide by four: the eighth place is filled with a run that does nothing.
    for count in (1, 4):
        code = DEVICES.format(tests=os.path.dirname(__file__), count=count, out=str(tmp_path / f"{count}.npz"))
        flags = f"--xla_force_host_platform_device_count={count}"
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"})
    one, four = (np.load(tmp_path / f"{count}.npz") for count in (1, 4))
    assert len(one.files) == 7
    for name in one.files:
        np.testing.assert_array_equal(one[name], four[name])
