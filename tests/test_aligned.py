"""The recurrent heads by themselves: padding, the alignment's bounds, and an LSTM worked by hand."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxser.aligned import WIDTH, Aligned, Text, Voice
from jaxser.heads import HEADS
from jaxser.lstm import BiLSTM
from jaxser.store import Frames, frame_mask

FRAMES, WORDS = np.array([9, 1, 4, 9, 6]), np.array([3, 5, 1, 7, 2])
FEATURES, TEXT_FEATURES, CLASSES = 5, 8, 3
SMALL = 6
GARBAGE = 1e4

MODULES = {
    "bilstm": partial(Voice, CLASSES, width=SMALL, dense=12),
    "text": partial(Text, CLASSES, width=SMALL),
    "aligned": partial(Aligned, CLASSES, width=SMALL),
}


def frames_of(counts: np.ndarray, features: int, extra: int = 0, padding: float = 0.0) -> Frames:
    longest = int(counts.max())
    x = np.random.default_rng(features).normal(size=(len(counts), longest, features)).astype(np.float32)
    x, mask = np.pad(x, ((0, 0), (0, extra), (0, 0))), frame_mask(counts, longest + extra)
    noise = np.random.default_rng(9).normal(0, padding, x.shape).astype(np.float32)
    return Frames(jnp.asarray(np.where(mask[..., None], x, noise)), jnp.asarray(mask))


def inputs_of(name: str, extra: dict[str, int] | None = None, padding: float = 0.0) -> tuple[Frames, ...]:
    extra = extra or {}
    kinds = {
        "audio": frames_of(FRAMES, FEATURES, extra.get("audio", 0), padding),
        "text": frames_of(WORDS, TEXT_FEATURES, extra.get("text", 0), padding),
    }
    return tuple(kinds[kind] for kind in HEADS[name].inputs)


def drawn(module: nn.Module, *inputs, scale: float = 2.0, **options):
    """Weights larger than at the start of training, where an alignment is next to even."""
    params = module.init(jax.random.key(1), *inputs, **options)["params"]
    noise = np.random.default_rng(2)
    return jax.tree.map(lambda p: scale * p + noise.normal(0, 0.05, p.shape).astype(np.float32), params)


def logits_of(name: str, inputs: tuple[Frames, ...]) -> np.ndarray:
    module = MODULES[name](dropout=0.0)
    return np.asarray(module.apply({"params": drawn(module, *inputs, train=False)}, *inputs, train=False))


def gradients_of(name: str, inputs: tuple[Frames, ...]):
    """Of a weighed sum of all logits, by every parameter and every input."""
    module = MODULES[name](dropout=0.0)
    weight = np.random.default_rng(4).normal(size=(len(FRAMES), CLASSES))

    def total(params, xs):
        given = [Frames(x, f.mask) for x, f in zip(xs, inputs, strict=True)]
        return (module.apply({"params": params}, *given, train=False) * weight).sum()

    return jax.jit(jax.grad(total, (0, 1)))(drawn(module, *inputs, train=False), [f.x for f in inputs])


LONGER = [{"audio": 1}, {"audio": 30}, {"text": 1}, {"text": 30}, {"audio": 7, "text": 11}]


@pytest.mark.parametrize("name", list(MODULES))
def test_what_padding_holds_changes_no_bit(name: str):
    logits, (of_params, _) = logits_of(name, inputs_of(name)), gradients_of(name, inputs_of(name))
    assert np.ptp(logits, 0).min() > 0.01  # utterances differ
    for padding in (1.0, GARBAGE):
        inputs = inputs_of(name, padding=padding)
        np.testing.assert_array_equal(logits_of(name, inputs), logits)
        of_padded, of_xs = gradients_of(name, inputs)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), of_padded, of_params)
        for frames, of_x in zip(inputs, of_xs, strict=True):
            assert not np.asarray(of_x)[~frames.mask].any()
            assert np.asarray(of_x)[frames.mask].any(-1).all() or name == "text"


@pytest.mark.parametrize("name", list(MODULES))
@pytest.mark.parametrize("extra", LONGER, ids=str)
def test_more_padding_changes_nothing(name: str, extra: dict[str, int]):
    if not extra.keys() & set(HEADS[name].inputs):
        pytest.skip("the head does not read it")
    inputs = inputs_of(name, extra, GARBAGE)
    d = np.abs(logits_of(name, inputs) - logits_of(name, inputs_of(name))).max()
    (a, _), (b, _) = gradients_of(name, inputs), gradients_of(name, inputs_of(name))
    print(name, extra, d, max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b))))
