"""The training objective against fairseq's own model and criterion: same weights, same sound, same negatives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.reader import Source
from convert.wav2vec import Call, config_of, port_wav2vec
from jaxser import contrastive, wav2vec
from jaxser.checkpoint import named_leaves
from jaxser.selfsupervised import batch_sums

NARROW = {
    "conv_feature_layers": "[(24, 10, 5), (32, 8, 4), (32, 4, 2), (32, 4, 2), (32, 4, 2), (32, 1, 1)]",
    "conv_aggregator_layers": "[(32, 2, 1), (48, 3, 1), (48, 5, 1), (40, 9, 1)]",
}

# Four samples a frame where those have 160, in two layers for six: what differs between objectives lies behind the network.
SHALLOW = {"conv_feature_layers": "[(24, 4, 2), (32, 4, 2)]", "conv_aggregator_layers": "[(32, 2, 1), (40, 3, 1)]"}

OBJECTIVES: dict[str, dict[str, Any]] = {
    "published": {},
    "cross-sample": {"cross_sample_negatives": 5},
    "balanced": {"balanced_classes": True},
    "balanced and cross-sample": {"balanced_classes": True, "cross_sample_negatives": 3},
    "infonce": {"infonce": True},
    "other steps and offset": {"prediction_steps": 5, "offset": 1, "num_negatives": 4},
}


def made(twins, options: dict[str, Any], network: dict[str, str] = NARROW) -> tuple[Any, Any, contrastive.Objective]:
    model, args = twins.fairseq_model(seed=3, **network, **options)
    config = config_of(Source({n: t.numpy() for n, t in model.state_dict().items()}, vars(args), "", ""), Call("model", ""))
    offset = contrastive.automatic_offset(config) if args.offset == "auto" else args.offset
    names = ("num_negatives", "cross_sample_negatives", "balanced_classes", "infonce")
    return model, config, contrastive.Objective(args.prediction_steps, offset, *(getattr(args, name) for name in names))


def theirs(twins, model: Any, waveforms: np.ndarray) -> tuple[float, float, np.ndarray, dict[str, np.ndarray]]:
    """Loss a prediction, sample size, negatives as rows of a [b * t] list (i64[b, t, n]), gradients by name."""
    import torch

    source = torch.from_numpy(waveforms).to(next(model.parameters()).dtype)
    criterion = twins.fairseq_criterion()(None, infonce=model.wav2vec_predictions.infonce)
    with torch.no_grad():
        b, _, t = model.feature_extractor(source).shape
    # Which frames are drawn does not depend on what is in them: number the frames, and draw with the same seed.
    numbers = torch.arange(b * t, dtype=torch.float64).reshape(b, 1, t)
    torch.manual_seed(5)
    negatives = model.wav2vec_predictions.sample_negatives(numbers)[:, :, 0].long().permute(1, 2, 0)
    torch.manual_seed(5)
    loss, size, _ = criterion(model, {"net_input": {"source": source}, "id": torch.arange(b)})
    model.zero_grad()
    (loss / size).backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return float(loss.detach() / size), float(size), negatives.numpy(), gradients


def ours(config, objective, params, waveforms, negatives, dtype) -> tuple[float, float, dict[str, Any]]:
    model = wav2vec.Wav2Vec(config, dtype)
    waveforms, lengths = jnp.asarray(waveforms), jnp.full(len(waveforms), waveforms.shape[1])

    def loss_of(params):
        sums = batch_sums(model, objective, params, waveforms, lengths, lambda frames, width: jnp.asarray(negatives))
        return sums.loss / sums.positives, sums.positives

    (loss, size), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)
    return float(loss), float(size), gradients


def compare(twins, model, config, objective, waveforms, dtype, bound: float) -> None:
    their_loss, their_size, negatives, their_gradients = theirs(twins, model, waveforms)
    tensors = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), port_wav2vec(tensors, config))
    loss, size, gradients = ours(config, objective, params, waveforms.astype(dtype), negatives, dtype)
    expected = dict(named_leaves(port_wav2vec(their_gradients, config)))
    errors = {name: float(np.abs(leaf - expected[name]).max()) for name, leaf in named_leaves(gradients)}
    print(f"loss {loss:.6f}, off by {abs(loss - their_loss):.1e}; gradients by at most {max(errors.values()):.1e}")
    assert size == their_size
    assert abs(loss - their_loss) < bound
    assert errors.keys() == expected.keys()
    assert max(errors.values()) < bound, errors
    assert max(float(np.abs(leaf).max()) for leaf in expected.values()) > 1e-3  # there is something to compare


def waveforms(samples: int) -> np.ndarray:
    return np.random.default_rng(samples).normal(0, 0.1, (3, samples)).astype(np.float32)


# 2,500 samples leave 13 frames, as do 60 before the shallow network: the last steps reach further than that. 8,000 leave 48.
@pytest.mark.parametrize(
    ("name", "samples"),
    [("published", 2_500), ("published", 8_000), *((name, 60) for name in OBJECTIVES if name != "published")],
)
def test_loss_and_gradients(twins, name: str, samples: int, monkeypatch: pytest.MonkeyPatch):
    import torch
    from torch.nn import functional

    model, config, objective = made(twins, OBJECTIVES[name], NARROW if name == "published" else SHALLOW)
    compare(twins, model.float(), config, objective, waveforms(samples), np.float32, 1e-5)

    # fairseq casts to float32 in two places, whatever comes in: its Fp32GroupNorm and its criterion. Here they do not.
    def without_casts(self, x):
        return functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    monkeypatch.setattr(twins.fairseq_wav2vec().Fp32GroupNorm, "forward", without_casts)
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)
    with jax.enable_x64(True):
        compare(twins, model.double(), config, objective, waveforms(samples), np.float64, 1e-9)


def test_the_automatic_offset_is_fairseqs(twins):
    model, config, _ = made(twins, {})
    assert contrastive.automatic_offset(config) == model.wav2vec_predictions.offset == 3


def test_the_head_starts_as_fairseqs_does(twins):
    _model, config, objective = made(twins, {})
    head = contrastive.random_predictions(config, objective, 0)
    torchs = twins.fairseq_wav2vec().Wav2VecPredictionsModel(40, 32, 12, 10, 0, None, 0.0, 3, False, False)
    weight, bias = torchs.project_to_steps.weight.detach().numpy(), torchs.project_to_steps.bias.detach().numpy()
    assert head["kernel"].std() == pytest.approx(weight.std(), rel=0.05)
    assert np.abs(head["kernel"]).max() == pytest.approx(np.abs(weight).max(), rel=0.01)
    assert np.abs(head["bias"]).max() <= np.abs(weight).max() * 1.01 >= np.abs(bias).max()
