import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh

from jaxser import devices, ensemble, program, streams, train
from jaxser.errors import CallError
from jaxser.folds import batches
from jaxser.heads import HEADS, mlp_width
from jaxser.rooms import ROOMS, rooms_of
from jaxser.standards import moments, standardisation
from jaxser.store import Entry, Frames, frame_mask, load_frames, open_store, write_part

SOME = ("mean", "meanmax", "attention", "mlp")
"""Without the recurrent heads, which take long to compile."""


TIMES = {"mlp": 10}
"""How often each frame stands in `problem` for a head that computes no padding: batches are then large enough for rooms."""


def problem(n: int = 40, features: int = 5, classes: int = 3, times: int = 1) -> tuple[Frames, np.ndarray]:
    random = np.random.default_rng(0)
    labels = (np.arange(n) % classes).astype(np.int32)
    x = random.normal(size=(n, 9, features)) * 3 + labels[:, None, None] * 3
    frames = Frames(x.astype(np.float32), frame_mask(random.integers(1, 10, n), 9))
    return Frames(*(np.repeat(of, times, 1) for of in frames)), labels


@contextmanager
def few_rooms() -> Iterator[None]:
    """Four steps in place of sixteen: each that occurs is compiled, and two or three of them are different rooms too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxser.rooms.ROOMS", 4)
        yield


def runs_of(count: int, updates: int = 30, n: int = 40) -> list[train.Run]:
    rows = np.arange(n)
    return [train.Run(i // 5, i % 5, 0, updates, rows[rows % 5 != i % 5], rows[rows % 5 == i % 5]) for i in range(count)]


def trained(head: str, runs: list[train.Run], dropout: float = 0.2, rate: float = 1e-2, **options) -> ensemble.Trained:
    frames, labels = problem(times=TIMES.get(head, 1))
    kinds = len(HEADS[head].inputs)  # a head that reads words reads the same frames as words
    of = moments(frames)
    standards = [(standardisation(of, run.train),) * kinds for run in runs]
    with few_rooms():
        return ensemble.train_runs(
            HEADS[head].module(3, dropout), optax.adam(rate), (HEADS[head].summarise(frames),) * kinds, labels, runs,
            standards, batch_size=6, **options,
        )  # fmt: skip


def row_of(result: ensemble.Trained, i: int):
    return jax.tree.map(lambda leaf: leaf[i], result.params), result.logits[i], result.losses[i]


def assert_same_bits(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("head", list(HEADS))
def test_a_run_alone_has_the_same_bits_as_among_others(head: str):
    runs = runs_of(7)
    together = trained(head, runs, parallel=1)
    assert_same_bits(row_of(trained(head, [runs[4]], parallel=1), 0), row_of(together, 4))


@pytest.mark.parametrize("head", SOME)
@pytest.mark.parametrize(("count", "parallel", "at_once"), [(7, 3, 3), (7, 100, 4), (9, 3, 3)])
def test_runs_at_once_differ_by_rounding_only(head: str, count: int, parallel: int, at_once: int):
    # On two devices; of the five places that nine runs need on each, the last two are a remainder.
    runs = runs_of(count)
    one, many = trained(head, runs, parallel=1), trained(head, runs, parallel=parallel)
    assert (one.parallel, many.parallel) == (1, at_once)
    for a, b in zip(one.logits, many.logits, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_call_takes_no_more_memory_for_more_runs_but_for_more_at_once():
    def needed(count: int, parallel: int) -> int:
        frames, labels = problem()
        mesh = Mesh(np.array(jax.local_devices()), ("runs",))
        model, tx = HEADS["mlp"].module(3, 0.2), optax.adam(1e-2)
        runs, of_all = runs_of(count), program.Program(model, tx, (frames,), labels, 6, mesh)
        standards = jax.tree.map(lambda leaf: np.stack([leaf] * count), (standardisation(moments(frames), runs[0].train),))
        resting, order = program.started(of_all, runs), list(range(count))
        shared, plan = of_all.placed(np.full((count, 4, 6), -1, np.int32))
        all_ = (of_all.counted(4), *shared), (of_all.seated(standards, order), plan), (resting.taken(of_all, order),)
        return of_all.updating(parallel).lower(*all_).compile().memory_analysis().temp_size_in_bytes

    states = 36 / 2 * 3 * 4 * sum(leaf.size for leaf in jax.tree.leaves(trained("mlp", runs_of(1)).params))
    few, many = needed(4, 1), needed(40, 1)
    assert many - few < 0.1 * states  # of 36 more runs, 18 on each of two devices: parameters and two moments
    two, four = needed(8, 2), needed(8, 4)
    print(few, many, two, four)
    assert four > 1.2 * two


def test_prediction_holds_no_more_than_training():
    frames, labels = problem(times=10)  # so that frames weigh more than parameters
    mesh = Mesh(np.array(jax.local_devices()), ("runs",))
    runs = runs_of(64)
    rooms = rooms_of(frames, runs, 16)
    of_all = program.Program(HEADS["mlp"].module(3, 0.2), optax.adam(1e-2), (frames,), labels, 16, mesh, rooms)
    standards = jax.tree.map(lambda leaf: np.stack([leaf] * 64), (standardisation(moments(frames), runs[0].train),))
    resting, order = program.started(of_all, runs), list(range(64))
    own, params = of_all.seated(standards, order), of_all.seated(resting.changing[0], order)
    shared, plan = of_all.placed(np.full((64, 4, 16), -1, np.int32))
    training = of_all.updating(32).lower((of_all.counted(4), *shared), (own, plan), (resting.taken(of_all, order),))
    shared, rows = of_all.placed(np.ones((64, 130), np.int32))
    predicting = of_all.predicting(32).lower(shared, (own, rows, params))
    needed = [lowered.compile().memory_analysis().temp_size_in_bytes for lowered in (predicting, training)]
    assert needed[0] <= needed[1]


@given(st.integers(1, 200), st.integers(1, 300))
def test_as_many_runs_predict_at_once_as_have_the_rows_of_training(parallel: int, batch_size: int):
    mesh = Mesh(np.array(jax.local_devices()), ("runs",))
    of_all = program.Program(HEADS["mean"].module(3, 0.2), optax.adam(1e-2), (), np.zeros(0), batch_size, mesh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "over_runs", lambda one, mesh, few, apart: lambda: few)
        few = of_all.predicting(parallel)()
    allowed = [k for k in range(1, parallel + 1) if k * train.PREDICT_BATCH <= parallel * batch_size]
    assert few == max(allowed, default=1)


@pytest.mark.parametrize("head", SOME)
def test_chunk_length_changes_no_bit(head: str):
    runs = runs_of(2, updates=30)
    expected = trained(head, runs)
    for chunk in (1, 7, 30):
        assert_same_bits(row_of(trained(head, runs, chunk=chunk), 1), row_of(expected, 1))


def test_same_call_same_bits():
    assert_same_bits(row_of(trained("mlp", runs_of(3)), 2), row_of(trained("mlp", runs_of(3)), 2))


def test_a_run_among_others_is_that_run_by_itself():
    # One of seven, which take turns on two devices, against the pure functions called once, for all of its updates.
    runs, tx, module = runs_of(7), optax.adam(1e-2), HEADS["mlp"].module(3, 0.2)
    found = trained("mlp", runs)
    frames, labels = jax.tree.map(jnp.asarray, problem(times=TIMES["mlp"]))
    for number in (0, 6):
        run = runs[number]
        standard = (standardisation(moments(frames), run.train),)
        state = train.start(module, tx, (frames,), train.run_key(run.seed, run.fold, 0))
        plan = batches(run.train, 6, 0, 30, run.seed, run.fold, 0)
        with few_rooms():
            rooms = rooms_of(frames, [run], 6)
        assert len(rooms) > 1
        state, losses = jax.jit(partial(train.advance, module, tx, rooms=rooms))((frames,), labels, standard, state, plan)
        logits = train.predict(module, (frames,), standard, state.params, jnp.asarray(run.test))
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), row_of(found, number), (state.params, logits, losses))


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
    standard = (standardisation(moments(frames), np.arange(40)),)
    state = train.start(module, tx, (frames,), train.run_key(0, 0, 0))
    state, _ = step((frames,), labels, standard, state, jnp.arange(12, dtype=jnp.int32).reshape(2, 6))
    empty, rows = jnp.full((2, 6), -1, jnp.int32), jnp.arange(18, 24, dtype=jnp.int32)[None]
    after, losses = step((frames,), labels, standard, state, empty)
    assert_same_bits((after.params, after.optimiser, after.step), (state.params, state.optimiser, state.step))
    assert np.isnan(losses).all()
    among, losses = step((frames,), labels, standard, state, jnp.concatenate([empty, rows, empty]))
    alone, _ = step((frames,), labels, standard, state, rows)
    assert_same_bits((among.params, among.optimiser, among.step), (alone.params, alone.optimiser, alone.step))
    assert np.isfinite(losses).tolist() == [False, False, True, False, False]


def test_short_batches_weigh_their_rows_alone():
    frames, labels = problem()
    tx, module = optax.sgd(1.0), HEADS["attention"].module(3, 0.0)
    step = jax.jit(partial(train.advance, module, tx))
    standard = (standardisation(moments(frames), np.arange(40)),)
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
        standard = standardisation(moments(changed), run.train)
        results.append(
            ensemble.train_runs(HEADS["mlp"].module(3, 0.2), optax.adam(1e-2), (changed,), y, [run], [(standard,)], 6)
        )
    assert_same_bits(
        (results[0].params, results[0].standards, results[0].losses),
        (results[1].params, results[1].standards, results[1].losses),
    )
    assert not np.array_equal(results[0].logits[0], results[1].logits[0])


def test_standardisation_is_that_of_all_training_frames():
    frames, _ = problem()
    rows = np.array([1, 5, 9, 30])
    every = np.concatenate([frames.x[i][frames.mask[i]] for i in rows]).astype(np.float64)
    standard = standardisation(moments(frames), rows)
    np.testing.assert_allclose(standard.mean, every.mean(0), rtol=1e-6)
    np.testing.assert_allclose(standard.scale, every.std(0), rtol=1e-6)


def test_a_constant_feature_is_left_as_it_is():
    frames, _ = problem()
    frames.x[:, :, 2] = -99.0018
    assert standardisation(moments(frames), np.arange(40)).scale[2] == 1


def test_training_equals_adam_written_by_hand():
    # The linear head without dropout is softmax regression: its gradient is known, and Adam is short (Kingma and Ba, 2015).
    frames, labels = problem()
    run = runs_of(1, updates=40)[0]
    result = trained("mean", [run], dropout=0.0)
    standard = standardisation(moments(frames), run.train)
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


def test_losses_that_are_not_finite_are_named_and_once_all_are_training_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    seen, looks = [], program.looks

    def watched(*given):
        for look in looks(*given):
            seen.append(look)
            yield look

    monkeypatch.setattr(program, "looks", watched)
    found = trained("mean", runs_of(3), rate=float("inf"), chunk=5)
    assert sorted(found.diverged) == [0, 1, 2]
    assert re.search(r"seed 0, fold 2: the loss is nan at update \d+; the other runs go on", capsys.readouterr().err)
    # The last one sits out the first turn; when it is lost as well, nothing more is trained.
    assert [2 in look.losses for look in seen].index(True) == len(seen) - 1


@pytest.mark.parametrize(("free", "parallel"), [(1, 1), (10**9, 2)])
def test_an_accelerator_takes_as_many_runs_at_once_as_its_memory_holds(monkeypatch, free: int, parallel: int):
    # What a GPU would say of its memory; three runs on two devices are two on one of them.
    alone = trained("mlp", runs_of(3), parallel=1)
    monkeypatch.setattr(devices, "free_memory", lambda device: free)
    monkeypatch.setattr(devices, "memory_for_frames", lambda device: 10**9)
    found = trained("mlp", runs_of(3))
    assert found.parallel == parallel
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), alone.logits, found.logits)


def test_what_is_made_to_learn_its_memory_trains(monkeypatch):
    traced, advance = [], train.advance
    monkeypatch.setattr(train, "advance", lambda *args: traced.append(args) or advance(*args))
    trained("mean", runs_of(3), parallel=2)
    asked = len(traced)
    monkeypatch.setattr(devices, "free_memory", lambda device: 10**9)
    monkeypatch.setattr(devices, "memory_for_frames", lambda device: 10**9)
    assert trained("mean", runs_of(3)).parallel == 2
    assert len(traced) == 2 * asked


def test_runs_at_once_have_the_frames_of_a_device_once():
    frames, labels = problem(n=300, times=10)
    runs, mesh = runs_of(8), Mesh(np.array(jax.local_devices()[:1]), ("runs",))
    of_all = program.Program(HEADS["attention"].module(3, 0.2), optax.adam(1e-2), (frames,), labels, 6, mesh)
    standards = jax.tree.map(lambda *of: np.stack(of), *[(standardisation(moments(frames), run.train),) for run in runs])
    order, state = list(range(8)), program.started(of_all, runs).taken(of_all, list(range(8)))
    plan = np.stack([batches(run.train, 6, 0, 4, run.seed, run.fold, run.train_size) for run in runs])
    shared, rows = of_all.placed(plan)
    lowered = of_all.updating(8).lower((of_all.counted(4), *shared), (of_all.seated(standards, order), rows), (state,))
    assert lowered.compile().memory_analysis().temp_size_in_bytes < frames.x.nbytes


def test_devices_of_a_cpu_share_the_frames():
    frames, labels = problem()
    mesh = Mesh(np.array(jax.local_devices()), ("runs",))
    of_all = program.Program(HEADS["mean"].module(3, 0.0), optax.adam(1e-2), (frames,), labels, 6, mesh)
    for leaf in jax.tree.leaves(of_all.resident):
        assert len(leaf.addressable_shards) == mesh.size > 1
        assert len({shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards}) == 1


def test_rooms_hold_every_batch_and_depend_on_it_alone():
    frames, _ = problem(times=TIMES["mlp"])
    counts, runs = frames.mask.sum(1), runs_of(3)
    rooms = rooms_of(frames, runs, 6)
    assert rooms_of(problem()[0], runs, 6) == ()  # too few frames to be worth it
    assert len(rooms) > 2
    assert list(rooms) == sorted({room for run in runs for room in rooms_of(frames, [run], 6)})
    for run in runs:
        for rows in batches(run.train, 6, 0, run.updates, run.seed, run.fold, run.train_size):
            filled = counts[np.where(rows < 0, rows.max(), rows)].sum()
            first = min(room for room in rooms if room >= filled)
            assert first - filled < 6 * 90 / ROOMS + 1


@pytest.mark.parametrize(("platform", "parallel", "rooms"), [("cpu", 1, (4, 8)), ("cpu", 2, (8,)), ("gpu", 1, (8,))])
def test_rooms_are_compiled_for_one_run_on_a_cpu(
    platform: str, parallel: int, rooms: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(program.train, "advance", lambda *given: given[7])
    of_all = program.Program(
        Padded(3, 0.2), optax.adam(1e-2), (), np.zeros(0), 6, Mesh(np.array(jax.devices()), ("runs",)), (4, 8)
    )
    device = SimpleNamespace(platform=platform)
    object.__setattr__(of_all, "mesh", SimpleNamespace(devices=np.array([device])))  # there is no other here
    assert program._update(of_all, parallel)(*[None] * 6) == rooms


def test_training_with_rooms_is_training_without():
    frames, labels = problem(times=TIMES["mlp"])
    runs, module, tx = runs_of(4), HEADS["mlp"].module(3, 0.2), optax.adam(1e-2)
    work = ((frames,), labels, runs, [(standardisation(moments(frames), run.train),) for run in runs], 6)
    found = ensemble.train_runs(module, tx, *work, parallel=1)
    alone = ensemble.train_runs(module, tx, work[0], labels, runs[1:2], work[3][1:2], 6, parallel=1)
    assert_same_bits(row_of(alone, 0), row_of(found, 1))
    at_once = ensemble.train_runs(module, tx, *work, parallel=2)  # one room, the largest, for all
    assert at_once.parallel == 2
    padded = ensemble.train_runs(Padded(3, 0.2), tx, *work)
    for other in (at_once, padded):
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), found.logits, other.logits)


class Padded(nn.Module):
    """The MLP in its plain form: every frame is computed, padding too."""

    classes: int
    dropout: float

    @nn.compact
    def __call__(self, frames, train):
        width = mlp_width(frames.x.shape[-1], self.classes)
        x = nn.relu(nn.Dense(width)(frames.x))
        x = nn.Dropout(self.dropout, broadcast_dims=(1,))(x, deterministic=not train)
        x = nn.relu(nn.Dense(width)(x))
        pooled = jnp.where(frames.mask[..., None], x, 0).sum(1) / frames.mask.sum(1, keepdims=True)
        return nn.Dense(self.classes)(nn.Dropout(self.dropout)(pooled, deterministic=not train))


@pytest.mark.parametrize(("head", "parallel"), [("attention", 1), ("mlp", 1), ("mlp", 2), ("text", 1)])
def test_frames_that_do_not_fit_are_streamed_with_the_same_bits(head: str, parallel: int, tmp_path: Path):
    # A table holds 64 rows at the least, two of them an eighth of these 1,400: more than ten times what a device is given.
    frames, labels = problem(n=1400, times=TIMES.get(head, 1))
    random = np.random.default_rng(1)
    runs = [
        train.Run(0, fold, 0, updates, random.permutation(1400)[:300], random.permutation(1400)[:150])
        for fold, updates in enumerate((25, 40, 12))
    ]
    of = moments(frames)
    standards = [(standardisation(of, run.train),) for run in runs]
    work = (HEADS[head].module(3, 0.2), optax.adam(1e-2), (frames,), labels, runs, standards, 6, parallel)
    memory = frames.x.nbytes * parallel / 10 / 2**30
    with few_rooms():
        whole = ensemble.train_runs(*work)
    settings, names = {"extractor": "lld", "width": frames.x.shape[-1]}, [f"{i}" for i in range(len(frames.x))]
    of_each = (x[:k] for x, k in zip(frames.x, frames.mask.sum(1), strict=True))
    write_part(open_store(tmp_path, settings), list(map(Entry, names, of_each)))
    on_disk = load_frames(open_store(tmp_path, settings), names)
    with few_rooms():
        streamed = ensemble.train_runs(*work[:2], (on_disk,), *work[3:], memory)
    assert_same_bits(
        (whole.params, whole.standards, whole.logits, whole.losses),
        (streamed.params, streamed.standards, streamed.logits, streamed.losses),
    )
    with pytest.raises(CallError, match=r"two tables of 64 utterances need .*: give as much with --memory"):
        ensemble.train_runs(*work, memory / 4)


@given(st.integers(1, 3), st.lists(st.integers(-1, 30), min_size=12, max_size=12))
def test_a_table_holds_what_its_rows_need(devices: int, rows: list[int]):
    frames, labels = problem(n=31)
    asked = np.array(rows, np.int32).reshape(6, 2)
    ((table,), of_table), places = streams.table_of((frames,), labels, asked, devices)
    assert table.x.shape[:2] == of_table.shape == (devices, 12 // devices)
    for run, (mine, place) in enumerate(zip(asked, places, strict=True)):
        there = mine >= 0
        assert (place >= 0).tolist() == there.tolist()
        device = run * devices // 6
        np.testing.assert_array_equal(table.x[device][place[there]], frames.x[mine[there]])
        np.testing.assert_array_equal(of_table[device][place[there]], labels[mine[there]])
        assert there.sum() < 2 or (mine[0] < mine[1]) == (place[0] < place[1])


DEVICES = """
import sys; sys.path.insert(0, {tests!r})
from test_train import runs_of, trained
import jax, numpy as np
from jaxser import program
sizes, looks = [], program.looks
program.looks = lambda of_all, *more: (sizes.append(of_all.mesh.size), looks(of_all, *more))[1]
found = [trained(head, runs_of(7), parallel=1) for head in {heads}]
assert sizes == [{count}] * len(found), sizes
np.savez({out!r}, *(logits for one in found for logits in one.logits))
"""

PMAP = """
import sys; sys.path.insert(0, {tests!r})
from functools import partial
from types import SimpleNamespace
from test_train import few_rooms, problem, runs_of
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import Mesh
from jaxser import train
from jaxser.folds import batches
from jaxser.heads import HEADS
from jaxser.rooms import rooms_of
from jaxser.spread import over_runs
from jaxser.standards import moments, standardisation
frames, labels = problem(times=10)
runs, model, tx = runs_of(4), HEADS["mlp"].module(3, 0.2), optax.adam(1e-2)
with few_rooms():
    of, rooms = moments(frames), rooms_of(frames, runs, 6)
assert len(rooms) > 1
own = jax.tree.map(lambda *leaves: np.stack(leaves), *[(standardisation(of, r.train),) for r in runs])
keys = jnp.stack([train.run_key(r.seed, r.fold, r.train_size) for r in runs])
plan = np.stack([batches(r.train, 6, 0, 20, r.seed, r.fold, 0) for r in runs])

def one(inputs, labels, standards, plan, key):
    state = train.start(model, tx, inputs, key)
    return train.advance(model, tx, inputs, labels, standards, state, plan, rooms)

mesh = Mesh(np.array(jax.local_devices()), ("runs",))
assert mesh.size == 4
ours = over_runs(one, mesh)(((frames,), labels), (own, plan, keys))
theirs = jax.pmap(one, in_axes=(None, None, 0, 0, 0))((frames,), labels, own, plan, keys)
for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    if not jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
        np.testing.assert_array_equal(one, two)
"""


def run_on_devices(count: int, code: str) -> None:
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(count), "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_four_devices_give_the_bits_of_pmap():
    run_on_devices(4, PMAP.format(tests=os.path.dirname(__file__)))


def test_any_number_of_devices_gives_the_same(tmp_path):
    # Seven runs do not divide by four: the eighth place is filled with a run that does nothing. One device alone is compiled
    # in another way, and rounds differently. Two are those of this process.
    heads = ("attention", "mlp")
    for count in (1, 4):
        code = DEVICES.format(tests=os.path.dirname(__file__), heads=heads, count=count, out=str(tmp_path / f"{count}.npz"))
        run_on_devices(count, code)
    assert jax.local_device_count() == 2
    two = [logits for head in heads for logits in trained(head, runs_of(7), parallel=1).logits]
    one, four = (list(np.load(tmp_path / f"{count}.npz").values()) for count in (1, 4))
    assert len(two) == 14
    for alone, pair, many in zip(one, two, four, strict=True):
        np.testing.assert_array_equal(pair, many)
        np.testing.assert_allclose(alone, pair, atol=1e-5)
