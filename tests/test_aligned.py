"""The recurrent heads by themselves: padding, the bounds of the alignment, and an LSTM worked by hand."""

import math
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxser.aligned import WIDTH, Aligned, Text, Voice
from jaxser.heads import HEADS
from jaxser.lstm import BiLSTM
from jaxser.store import Frames, frame_mask

# One frame, all frames, and between; never the same number of frames and words in an utterance.
FRAMES, WORDS = np.array([9, 1, 4, 9, 6]), np.array([3, 5, 1, 7, 2])
FEATURES, TEXT_FEATURES, CLASSES = 5, 8, 3
SMALL = 6
"""States of an LSTM."""

MODULES = {
    "bilstm": partial(Voice, CLASSES, dense=12),
    "text": partial(Text, CLASSES),
    "aligned": partial(Aligned, CLASSES),
}


def frames_of(counts: np.ndarray, features: int, extra: int = 0, padding: float = 0.0) -> Frames:
    """The same frames whatever `extra` frames of padding hold: numbers of the size `padding`."""
    longest = int(counts.max())
    x = np.random.default_rng(features).normal(size=(len(counts), longest, features)).astype(np.float32)
    x, mask = np.pad(x, ((0, 0), (0, extra), (0, 0))), frame_mask(counts, longest + extra)
    x[~mask] = padding * np.random.default_rng(9).normal(size=(int((~mask).sum()), features))
    return Frames(jnp.asarray(x), jnp.asarray(mask))


def inputs_of(name: str, audio: int = 0, text: int = 0, padding: float = 0.0) -> tuple[Frames, ...]:
    kinds = {
        "audio": frames_of(FRAMES, FEATURES, audio, padding),
        "text": frames_of(WORDS, TEXT_FEATURES, text, padding),
    }
    return tuple(kinds[kind] for kind in HEADS[name].inputs)


def drawn(module: nn.Module, *inputs: Any, **options: Any) -> Any:
    """Weights larger than at the start of training, where an alignment is next to even."""
    noise = np.random.default_rng(2)
    shapes = jax.eval_shape(partial(module.init, **options), jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda p: jnp.asarray(noise.normal(0, 1.2 * p.shape[-1] ** -0.5, p.shape), p.dtype), shapes)


@cache
def stepped(name: str, width: int):
    """A function of inputs: logits, and the gradients of a weighed sum of them by every parameter and every frame."""
    module = MODULES[name](dropout=0.0, width=width)
    params = drawn(module, *inputs_of(name), train=False)
    weight = np.random.default_rng(4).normal(size=(len(FRAMES), CLASSES)).astype(np.float32)

    @jax.jit
    def step(inputs):
        def total(params, xs):
            given = [Frames(x, f.mask) for x, f in zip(xs, inputs, strict=True)]
            logits = module.apply({"params": params}, *given, train=False)
            return (logits * weight).sum(), logits

        (of_params, of_frames), logits = jax.grad(total, (0, 1), has_aux=True)(params, [f.x for f in inputs])
        return logits, of_params, of_frames

    return lambda inputs: jax.device_get(step(inputs))


@pytest.mark.parametrize(("name", "width"), [*((name, SMALL) for name in MODULES), ("aligned", WIDTH)])
def test_what_padding_holds_changes_no_bit(name: str, width: int):
    step = stepped(name, width)
    logits, of_params, _ = step(inputs_of(name, 3, 2))
    assert np.ptp(logits, 0).min() > 0.01  # utterances differ
    for padding in (1.0, 1e4):
        inputs = inputs_of(name, 3, 2, padding)
        of_padded, gradients, of_frames = step(inputs)
        np.testing.assert_array_equal(of_padded, logits)
        # A weight's gradient is a sum over frames, padded ones too: those add products with an exact zero.
        jax.tree.map(np.testing.assert_array_equal, gradients, of_params)
        for frames, gradient in zip(inputs, of_frames, strict=True):
            assert not gradient[~np.asarray(frames.mask)].any()
            assert gradient[np.asarray(frames.mask)].any(-1).all()


@pytest.mark.parametrize(
    ("name", "extra"), [("bilstm", (30, 0)), ("text", (0, 30)), ("aligned", (30, 0)), ("aligned", (0, 30))]
)
def test_more_padding_changes_nothing(name: str, extra: tuple[int, int]):
    step = stepped(name, SMALL)
    logits, gradients, _ = step(inputs_of(name))
    found, of_longer, _ = step(inputs_of(name, *extra, padding=1e4))
    # Not a bit for bit: products and sums of another length are taken in another order.
    np.testing.assert_allclose(found, logits, atol=1e-6, rtol=0)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5), of_longer, gradients)


def alignment_of(loudness: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The alignment f32[b, k, t], which frames there are and which words; `loudness` multiplies what a frame scores."""
    module, inputs = Aligned(CLASSES, 0.0, SMALL), inputs_of("aligned", 3, 2, 1e4)
    params = drawn(module, *inputs, train=False)
    params["alignment"]["frame"]["kernel"] *= loudness
    _, found = jax.jit(partial(module.apply, train=False, mutable="intermediates"))({"params": params}, *inputs)
    (weights,) = found["intermediates"]["attention"]
    return np.asarray(weights), *(np.asarray(f.mask) for f in inputs)


@pytest.mark.parametrize("loudness", [1.0, 1e3])
def test_a_word_shares_itself_out_over_the_valid_frames(loudness: float):
    weights, frames, words = alignment_of(loudness)
    assert weights.shape == (len(FRAMES), words.shape[1], frames.shape[1])
    assert not weights[np.broadcast_to(~frames[:, None], weights.shape)].any()
    assert (weights[np.broadcast_to(frames[:, None], weights.shape)] > 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    several = frames.sum(1) > 1
    highest = weights.max(-1)[several]
    factor = highest / np.where(frames[:, None], weights, np.inf).min(-1)[several]
    assert factor.max() <= math.e**2 * (1 + 1e-5)
    assert factor.max() > (math.e**2 * 0.99 if loudness > 1 else 1.5)  # the bound is met, and no alignment is even
    if loudness == 1:
        assert np.ptp(weights[3][words[3]], 0).max() > 0.01  # words differ in where they look: without the tanh none would


@pytest.mark.parametrize(("name", "kind"), [("bilstm", 0), ("text", 0), ("aligned", 0), ("aligned", 1)])
def test_the_order_of_frames_and_of_words_matters(name: str, kind: int):
    step, inputs = stepped(name, SMALL), list(inputs_of(name))
    logits, *_ = step(tuple(inputs))
    longest = int(np.asarray(inputs[kind].mask).sum(1).argmax())
    inputs[kind] = inputs[kind]._replace(x=inputs[kind].x.at[longest].set(inputs[kind].x[longest, ::-1]))
    turned, *_ = step(tuple(inputs))
    assert np.abs(turned - logits)[longest].max() > 1e-3
    np.testing.assert_array_equal(np.delete(turned, longest, 0), np.delete(logits, longest, 0))


def test_a_step_worked_by_hand():
    """One feature, one state a direction, two frames and one of padding; gates in the order i, f, g, o."""
    of_input = [[0.5, -1.0, 2.0, 0.25], [1.5, 0.75, -0.5, 1.0]]
    recurrent = [[-0.5, 1.0, 0.75, 2.0], [0.25, -2.0, 1.25, 0.5]]
    bias = [[0.1, 0.2, -0.3, 0.4], [-0.2, 0.3, 0.5, -0.1]]

    def logistic(value):
        return 1 / (1 + math.exp(-value))

    def one(way, x, hidden, cell):
        i, f, g, o = (x * a + hidden * b + c for a, b, c in zip(of_input[way], recurrent[way], bias[way], strict=True))
        cell = logistic(f) * cell + logistic(i) * math.tanh(g)
        return logistic(o) * math.tanh(cell), cell

    first = one(0, 0.7, 0.0, 0.0)
    # i = logistic(0.45) = 0.6106, g = tanh(1.1) = 0.8005, o = logistic(0.575) = 0.6399: c = i g = 0.4888, h = o tanh(c)
    assert first == pytest.approx((0.2901, 0.4888), abs=1e-4)
    second = one(0, -1.2, *first)
    last = one(1, -1.2, 0.0, 0.0)
    before_last = one(1, 0.7, *last)
    expected = [[first[0], before_last[0]], [second[0], last[0]], [0, 0]]
    params = {
        "input": jnp.asarray(of_input)[:, None],
        "recurrent": jnp.asarray(recurrent)[:, None],
        "bias": jnp.asarray(bias),
    }
    x, mask = jnp.asarray([[[0.7], [-1.2], [55.0]]]), jnp.asarray([[True, True, False]])
    found = BiLSTM(1).apply({"params": params}, x, mask)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_backward_is_forward_on_the_sequence_turned_round():
    frames, module = frames_of(FRAMES, FEATURES, 3, 1e4), BiLSTM(SMALL)
    params = drawn(module, *frames)
    swapped = jax.tree.map(lambda p: p[::-1], params)
    turned = np.array(frames.x)
    for row, count in zip(turned, FRAMES, strict=True):
        row[:count] = row[:count][::-1].copy()
    states = np.asarray(module.apply({"params": params}, *frames))
    of_turned = np.asarray(module.apply({"params": swapped}, jnp.asarray(turned), frames.mask))
    assert not states[~np.asarray(frames.mask)].any()
    for row, other, count in zip(states, of_turned, FRAMES, strict=True):
        np.testing.assert_allclose(row[:count, SMALL:], other[:count][::-1, :SMALL], atol=1e-6)
        np.testing.assert_allclose(row[:count, :SMALL], other[:count][::-1, SMALL:], atol=1e-6)
        assert np.abs(row[:count, SMALL:] - row[:count, :SMALL]).max() > 0.01  # two directions, not one twice


def test_dropout_has_one_mask_for_all_frames():
    module, inputs = Aligned(CLASSES, 0.5, SMALL), inputs_of("aligned")
    params = drawn(module, *inputs, train=False)
    _, found = module.apply(
        {"params": params}, *inputs, train=True, rngs={"dropout": jax.random.key(0)}, mutable="intermediates",
        capture_intermediates=lambda layer, _: isinstance(layer, nn.Dropout),
    )  # fmt: skip
    for frames, layer in zip(inputs, ("Dropout_0", "Dropout_1"), strict=True):
        (dropped,) = found["intermediates"][layer]["__call__"]
        gone = np.stack([(x[mask] == 0).mean(0) for x, mask in zip(dropped, frames.mask, strict=True)])
        assert set(np.unique(gone)) == {0, 1}  # of a state all frames or none
        assert 0.2 < gone.mean() < 0.8
        assert np.ptp(gone, 0).any()  # and another for each utterance
