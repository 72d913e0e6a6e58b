"""The heads against torch's, those with LSTMs on packed sequences, with the same weights: logits and every gradient."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[convert]'")

from benchmarks import torch_heads, torch_loop  # noqa: E402 (torch is optional)
from jaxser import heads, train  # noqa: E402
from jaxser.aligned import Aligned, Text, Voice  # noqa: E402
from jaxser.checkpoint import named_leaves  # noqa: E402
from jaxser.lstm import BiLSTM  # noqa: E402
from jaxser.standards import Standard  # noqa: E402
from jaxser.store import Frames, frame_mask  # noqa: E402

# One frame, all frames, and between; never the same number of frames and words in an utterance.
FRAMES, WORDS = np.array([9, 1, 4, 9, 6]), np.array([3, 5, 1, 7, 2])
FEATURES, TEXT_FEATURES, CLASSES = 5, 8, 3
SMALL, REAL = 6, 100
"""States of an LSTM: few, and as many as are used."""
DTYPES = {"float32": 1e-5, "float64": 1e-9}

OURS = {
    "linear": lambda width: heads.Linear(CLASSES, 0.0),
    "attention": lambda width: heads.Attention(CLASSES, 0.0),
    "mlp": lambda width: heads.MLP(CLASSES, 0.0),
    "bilstm": lambda width: Voice(CLASSES, 0.0, width, 12),
    "text": lambda width: Text(CLASSES, 0.0, width),
    "aligned": lambda width: Aligned(CLASSES, 0.0, width),
}
THEIRS = {
    "linear": lambda width: torch_heads.Linear(FEATURES, CLASSES, 0.0),
    "attention": lambda width: torch_heads.Attention(FEATURES, CLASSES, 0.0),
    "mlp": lambda width: torch_heads.MLP(FEATURES, CLASSES, 0.0),
    "bilstm": lambda width: torch_heads.Voice(FEATURES, CLASSES, 0.0, width, 12),
    "text": lambda width: torch_heads.Text(TEXT_FEATURES, CLASSES, 0.0, width),
    "aligned": lambda width: torch_heads.Aligned(FEATURES, TEXT_FEATURES, CLASSES, 0.0, width),
}


def frames_of(counts: np.ndarray, features: int, dtype: str, seed: int) -> Frames:
    """Padding holds numbers as large as any."""
    longest = int(counts.max())
    x = np.random.default_rng(seed).normal(size=(len(counts), longest, features)).astype(dtype)
    return Frames(jnp.asarray(x), jnp.asarray(frame_mask(counts, longest)))


def inputs_of(name: str, dtype: str) -> tuple[Frames, ...]:
    audio, text = frames_of(FRAMES, FEATURES, dtype, 0), frames_of(WORDS, TEXT_FEATURES, dtype, 1)
    pooled = frames_of(np.ones(len(FRAMES), int), FEATURES, dtype, 2)
    return {"text": (text,), "aligned": (audio, text), "linear": (pooled,)}.get(name, (audio,))


def as_torch(frames: Frames) -> Any:
    return torch_heads.Ragged(torch.from_numpy(np.array(frames.x)), torch.from_numpy(np.asarray(frames.mask).sum(1)))


def drawn(module: Any, inputs: tuple, dtype: str, **options: Any) -> Any:
    """Weights twice as large as at the start of training, where an alignment is next to even."""
    noise = np.random.default_rng(2)
    shapes = jax.eval_shape(partial(module.init, **options), jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda p: jnp.asarray(noise.normal(0, 1.2 * p.shape[-1] ** -0.5, p.shape), dtype), shapes)


def compare(what: str, ours: Any, theirs: Any, bound: float) -> None:
    """Every leaf of two trees."""
    ours, theirs = dict(named_leaves(ours)), dict(named_leaves(theirs))
    assert ours.keys() == theirs.keys()
    errors = {name: float(np.abs(leaf - theirs[name]).max()) for name, leaf in ours.items()}
    print(f"{what}: off by at most {max(errors.values()):.1e}, in {max(errors, key=errors.get)}")
    assert all(leaf.shape == theirs[name].shape for name, leaf in ours.items())
    assert max(errors.values()) < bound, errors
    assert all(np.abs(leaf).max() > 1e-4 for leaf in theirs.values())  # there is something to compare


@pytest.mark.parametrize("width", [SMALL, REAL])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_an_lstm_is_torchs_on_packed_sequences(dtype: str, width: int):
    with jax.enable_x64(dtype == "float64"):
        frames, module = frames_of(FRAMES, FEATURES, dtype, 0), BiLSTM(width)
        weight = np.random.default_rng(3).normal(size=(*frames.mask.shape, 2 * width)).astype(dtype) / width
        params = drawn(module, frames, dtype)
        twin = torch.nn.LSTM(FEATURES, width, batch_first=True, bidirectional=True, dtype=getattr(torch, dtype))
        torch_heads.copy_lstm(params, twin)
        ragged = as_torch(frames)
        x = ragged.x.requires_grad_()
        expected = torch_heads.states_of(twin, x, ragged.lengths)
        (expected * torch.from_numpy(weight)).sum().backward()

        def weighed(params, x):
            states = module.apply({"params": params}, x, frames.mask)
            return (states * weight).sum(), states

        (of_params, of_x), states = jax.jit(jax.grad(weighed, (0, 1), has_aux=True))(params, frames.x)
        assert states.dtype == dtype
        found, wanted = {"states": states, "x": of_x, **of_params}, torch_heads.gradients_of(twin)
        wanted |= {"states": expected.detach().numpy(), "x": x.grad.numpy()}
        compare(f"LSTM of {width}, {dtype}", found, wanted, DTYPES[dtype])


@pytest.mark.parametrize(("name", "width"), [*((name, SMALL) for name in OURS), ("bilstm", REAL), ("aligned", REAL)])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_head_is_torchs(name: str, width: int, dtype: str):
    labels = np.array([0, 2, 1, 1, 0])
    with jax.enable_x64(dtype == "float64"):
        inputs, module = inputs_of(name, dtype), OURS[name](width)
        params = drawn(module, inputs, dtype, train=False)
        twin = THEIRS[name](width).to(getattr(torch, dtype))
        torch_heads.copy_weights(params, twin)
        logits = twin(*map(as_torch, inputs))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()

        def loss_of(params):
            logits = module.apply({"params": params}, *inputs, train=False)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

        gradients, found = jax.jit(jax.grad(loss_of, has_aux=True))(params)
        assert found.dtype == dtype
        compare(f"{name} of {width}, {dtype}, logits", {"logits": found}, {"logits": logits.detach().numpy()}, DTYPES[dtype])
        compare(f"{name} of {width}, {dtype}, gradients", gradients, torch_heads.gradients_of(twin), DTYPES[dtype])


@pytest.mark.parametrize("name", list(OURS))
def test_the_benchmarks_two_trainings_are_one(name: str):
    """What `benchmarks.train` times beside each other: without dropout, the same losses update after update."""
    labels = np.array([0, 2, 1, 1, 0], np.int32)
    plan = np.array([[0, 3, 1], [4, 2, -1], [1, 0, 2], [4, 3, -1], [2, 3, 4]], np.int32)
    with jax.enable_x64(True):
        inputs, module, tx = inputs_of(name, "float64"), OURS[name](SMALL), optax.adam(1e-2)
        params = drawn(module, inputs, "float64", train=False)
        twin = THEIRS[name](SMALL).double()
        torch_heads.copy_weights(params, twin)
        # Adam would move both of torch's biases by a full step each, and so their sum, our one bias, by two.
        for parameter in (p for n, p in twin.named_parameters() if "bias_hh" in n):
            parameter.requires_grad_(False)
        standards = tuple(Standard(np.full(f.x.shape[-1], 0.5), np.full(f.x.shape[-1], 2.0)) for f in inputs)
        state = train.State(params, tx.init(params), jax.random.key(0), jnp.zeros((), jnp.int32))
        _, losses = jax.jit(partial(train.advance, module, tx))(inputs, labels, standards, state, plan)
        theirs = torch_loop.standardised(jax.tree.map(np.asarray, inputs), standards)
        learner = torch_loop.Learner(twin, torch.optim.Adam(twin.parameters(), 1e-2), theirs, torch.from_numpy(labels).long())
        compare(f"losses of {name}", {"losses": losses}, {"losses": np.array(torch_loop.advance(learner, plan))}, 1e-9)
