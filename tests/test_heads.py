import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxser import pooling
from jaxser.heads import HEADS, MLP_PARAMETERS, end_to_end, mlp_parameters, mlp_width
from jaxser.store import Frames, frame_mask

FOUR = ("mean", "meanmax", "attention", "mlp")
"""The paper's; tests/test_aligned.py has those that are recurrent."""

COUNTS = np.array([5, 9, 1, 12])


def frames_of(extra: int = 0, features: int = 6, junk: float = 0.0) -> Frames:
    random = np.random.default_rng(0)
    x = random.normal(size=(4, 12, features)).astype(np.float32)
    mask = frame_mask(COUNTS, 12 + extra)
    x = np.pad(x, ((0, 0), (0, extra), (0, 0)))
    x[~mask] = junk
    return Frames(x, mask)


def module_and_params(name: str, frames: Frames):
    module = HEADS[name].module(3, 0.5)
    params = module.init(jax.random.key(1), frames, train=False)["params"]
    noise = np.random.default_rng(2)
    return module, jax.tree.map(lambda p: p + noise.normal(size=p.shape).astype(np.float32) * 0.1, params)


def logits_of(name: str, frames: Frames) -> np.ndarray:
    frames = HEADS[name].summarise(frames)
    module, params = module_and_params(name, frames)
    return np.asarray(module.apply({"params": params}, frames, train=False))


@pytest.mark.parametrize("name", FOUR)
def test_padding_changes_nothing(name: str):
    expected = logits_of(name, frames_of())
    np.testing.assert_allclose(logits_of(name, frames_of(extra=30)), expected, atol=1e-6)
    np.testing.assert_allclose(logits_of(name, frames_of(extra=3, junk=1e4)), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["attention", "mlp"])  # the others are pooled ahead: no padding reaches them
def test_padding_gets_no_gradient(name: str):
    frames = frames_of()
    module, params = module_and_params(name, frames)
    gradient = jax.grad(lambda x: module.apply({"params": params}, Frames(x, frames.mask), train=False).sum())(frames.x)
    assert not np.asarray(gradient)[~frames.mask].any()
    assert np.asarray(gradient)[frames.mask].any(-1).all()


def by_hand(name: str, params, x: np.ndarray) -> np.ndarray:
    """Logits of one utterance's frames f64[t, d], written as the paper's Figure 1 has it."""
    dense = {k: (np.asarray(p["kernel"], np.float64), np.asarray(p.get("bias", 0), np.float64)) for k, p in params.items()}
    if name == "mean":
        kernel, bias = dense["Dense_0"]
        return x.mean(0) @ kernel + bias
    if name == "meanmax":
        kernel, bias = dense["Dense_0"]
        return np.concatenate([x.mean(0), x.max(0)]) @ kernel + bias
    if name == "attention":
        kernel, bias = dense["Dense_0"]
        score = np.exp((x @ kernel + bias)[:, 0])
        kernel, bias = dense["Dense_1"]
        return (score / score.sum()) @ x @ kernel + bias
    for layer in ("Dense_0", "Dense_1"):
        kernel, bias = dense[layer]
        x = np.maximum(x @ kernel + bias, 0)
    kernel, bias = dense["Dense_2"]
    return (x @ kernel + bias).mean(0)  # the output layer on every frame, then the mean


@pytest.mark.parametrize("name", FOUR)
def test_against_plain_numpy(name: str):
    frames = frames_of()
    logits = logits_of(name, frames)
    _, params = module_and_params(name, HEADS[name].summarise(frames))
    for i, count in enumerate(COUNTS):
        np.testing.assert_allclose(logits[i], by_hand(name, params, frames.x[i, :count].astype(np.float64)), atol=2e-5)


@pytest.mark.parametrize("name", ["mean", "meanmax"])
def test_pooling_commutes_with_standardisation(name: str):
    frames = frames_of()
    centre, scale = np.float32(3.0), np.float32(0.2)
    summarise = HEADS[name].summarise
    np.testing.assert_allclose(
        summarise(Frames((frames.x - centre) / scale, frames.mask)).x, (summarise(frames).x - centre) / scale, rtol=1e-5
    )


@pytest.mark.parametrize("name", FOUR)
def test_dropout_acts_in_training_only(name: str):
    frames = HEADS[name].summarise(frames_of())
    module, params = module_and_params(name, frames)
    one, two = (module.apply({"params": params}, frames, train=True, rngs={"dropout": jax.random.key(k)}) for k in (0, 1))
    assert not np.allclose(one, two)
    without = HEADS[name].module(3, 0.0).apply({"params": params}, frames, train=True)
    np.testing.assert_array_equal(module.apply({"params": params}, frames, train=False), without)


def test_each_utterance_has_one_dropout_mask_for_all_its_frames():
    frames = Frames(np.ones((3, 40, 5), np.float32), frame_mask(np.array([40, 40, 40]), 40))
    module = HEADS["mlp"].module(3, 0.5)
    params = jax.tree.map(lambda p: jnp.full(p.shape, 0.1), module.init(jax.random.key(1), frames, train=False)["params"])

    def logits(params):
        return module.apply({"params": params}, frames, train=True, rngs={"dropout": jax.random.key(3)}).sum(1)

    # All weights are positive: a unit of the first layer has no part in an utterance only where its mask takes it out.
    kept = np.asarray(jax.jacobian(logits)(params)["Dense_0"]["bias"]) != 0
    assert (abs(kept.mean(1) - 0.5) < 0.2).all()
    assert len({row.tobytes() for row in kept}) == 3


@pytest.mark.parametrize(("features", "width"), [(34, 128), (512, 39)])
def test_mlp_capacity_matches(features: int, width: int):
    assert mlp_width(features, 4) == width
    assert mlp_parameters(features, width, 4) == pytest.approx(MLP_PARAMETERS, rel=0.015)
    module = HEADS["mlp"].module(4, 0.0)
    frames = Frames(jnp.zeros((1, 2, features)), jnp.ones((1, 2), bool))
    params = module.init(jax.random.key(0), frames, train=False)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == mlp_parameters(features, width, 4)


def test_frames_laid_end_to_end_worked_by_hand():
    x = np.arange(1, 9, dtype=np.float32).reshape(2, 4, 1)
    frames = Frames(x, frame_mask(np.array([3, 2]), 4))
    laid, whose = end_to_end(frames, 6)
    np.testing.assert_array_equal(laid[:5, 0], [1, 2, 3, 5, 6])
    np.testing.assert_array_equal(whose, [0, 0, 0, 1, 1, 2])  # the last one is nobody's
    assert end_to_end(frames)[1].shape == (8,)


def test_sums_and_their_gradients_are_those_of_each_members_frames():
    whose = np.array([0, 0, 2, 2, 2, 3, 3])  # the second member has no frames, and the last two frames are nobody's
    x = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    sums, back = jax.vjp(lambda x: pooling.sums_of_each(x, jnp.asarray(whose), 3), jnp.asarray(x))
    np.testing.assert_allclose(sums, [x[:2].sum(0), np.zeros(5), x[2:5].sum(0)], atol=1e-6)
    gradient = np.arange(15.0, dtype=np.float32).reshape(3, 5)
    np.testing.assert_array_equal(back(jnp.asarray(gradient))[0], np.concatenate([gradient, np.zeros((1, 5))])[whose])


def test_room_beyond_the_frames_of_a_batch_changes_nothing():
    frames = frames_of(extra=3, junk=1e3)
    module, params = module_and_params("mlp", frames)

    def loss(params, room):
        logits = module.clone(room=room).apply({"params": params}, frames, train=True, rngs={"dropout": jax.random.key(3)})
        return (logits * jnp.arange(12.0).reshape(4, 3)).sum()

    exact = jax.grad(loss)(params, int(COUNTS.sum()))
    for room in (None, int(COUNTS.sum()) + 5):
        jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=2e-5), exact, jax.grad(loss)(params, room))
    too_small = jax.grad(loss)(params, int(COUNTS.sum()) - 6)
    assert not np.allclose(too_small["Dense_1"]["kernel"], exact["Dense_1"]["kernel"], atol=2e-5)
