"""A wav2vec with its weights: waveforms -> encoder features z and context features c. Saved, loaded, named, drawn at random."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxser import checkpoint, devices
from jaxser.architecture import ARCHITECTURES, Architecture
from jaxser.digests import text_digest
from jaxser.errors import CallError, WorkError
from jaxser.kinds import misfit
from jaxser.network import Wav2Vec, random_params, spectral_params

KIND = "a wav2vec encoder"
"""What its checkpoints say that they hold."""

PREDICTIONS = "predictions"
"""Where a checkpoint keeps the prediction head, which training needs and features do not."""

SHIPPED = Path(__file__).parent / "weights"
SHIPPED_NAMES = ("nano",)
"""Weights that come with the package. Their model card lies beside them."""

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, eq=False)
class Encoder:
    """A wav2vec with its weights, ready to be called."""

    config: Architecture
    params: Mapping[str, Any]
    digest: str
    """`encoder_digest` of the weights as they were converted or drawn, before any transformation for speed."""
    precision: Precision
    model: Wav2Vec
    mesh: Mesh
    """Of the local devices; a batch is shared out among them."""

    def __call__(
        self, waveforms: Float[Any, "b s"], lengths: Sequence[int] | Int[Any, " b"]
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t e"], Int[Array, " b"]]:
        """Features z and c, float32, and the number of valid frames of each waveform; the frames beyond those are zero.

        Waveforms are mono at 16 kHz in [-1, 1], not normalised; `lengths` counts their valid samples. A length below
        the receptive field gives no frames. Compiled once for every shape. Arrays of jax stay where they are.
        """
        array = jnp if isinstance(waveforms, jax.Array) else np
        waveforms, lengths = array.asarray(waveforms, np.float32), np.asarray(lengths, np.int32)
        b, s = waveforms.shape
        if lengths.min(initial=0) < 0 or lengths.max(initial=0) > s:
            raise CallError(f"lengths from {lengths.min()} to {lengths.max()} for waveforms of {s} samples")
        count = self.mesh.size
        rows, samples = -(-b // count) * count, max(s, self.config.receptive_field[0])
        if (rows, samples) == (b, s):  # an accelerator's batch is large, and copied to it alone
            return _apply(self.model, self.mesh, self.params, waveforms, lengths)
        waveforms = array.pad(waveforms, ((0, rows - b), (0, samples - s)))
        z, c, frames = _apply(self.model, self.mesh, self.params, waveforms, np.pad(lengths, (0, rows - b)))
        return z[:b], c[:b], frames[:b]


@partial(jax.jit, static_argnames=("model", "mesh"))
def _apply(model: Wav2Vec, mesh: Mesh, params: Any, waveforms: Array, lengths: Array) -> tuple[Array, Array, Array]:
    def on_each(params: Any, waveforms: Array, lengths: Array) -> tuple[Array, Array, Array]:
        z, c, frames = model.apply({"params": params}, waveforms, lengths)
        return z.astype(jnp.float32), c.astype(jnp.float32), frames

    alone, shared = PartitionSpec(), PartitionSpec("batch")
    return jax.shard_map(on_each, mesh=mesh, in_specs=(alone, shared, shared), out_specs=shared)(params, waveforms, lengths)


def encoder_digest(config: Architecture, params: Mapping[str, Any], known: str = "") -> str:
    """What names an encoder: the sha256 of its configuration and its weights, without the prediction head.

    `known`: `checkpoint.tree_digest` of these very weights, where somebody has it.
    """
    return text_digest(json.dumps(config.to_json(), sort_keys=True) + (known or checkpoint.tree_digest(params)))


def save(
    path: str | Path,
    config: Architecture,
    params: Mapping[str, Any],
    about: Mapping[str, Any],
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Write weights that `load` reads: the parameters of Wav2Vec(config), with or without a prediction head beside them.

    `about` is plain data that goes with them. In float16 they take half the space; `load` gives them in float32, as
    rounded. Raises CallError where something is at `path` already, WorkError for weights past float16's range.
    """
    params = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), dict(params))
    for name, leaf in checkpoint.named_leaves(params):
        if not np.isfinite(leaf).all():
            raise WorkError(f"{name} holds values that are not finite numbers in {dtype}: nothing was written")
    features = _float32({name: value for name, value in params.items() if name != PREDICTIONS})
    known = {"config": config.to_json(), "encoder_digest": encoder_digest(config, features)}
    checkpoint.save(path, KIND, params, {**about, **known})


def _float32(params: Mapping[str, Any]) -> dict[str, Any]:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), dict(params))


def make_encoder(config: Architecture, params: Mapping[str, Any], precision: Precision = "float32", known: str = "") -> Encoder:
    """An encoder on the local devices. `known` as for `encoder_digest`. Raises CallError for bfloat16 on a CPU, where it is
    slower and less exact."""
    on_cpu = jax.default_backend() == "cpu"
    if precision == "bfloat16" and on_cpu:
        raise CallError("--precision bfloat16 is for GPU and TPU: on a CPU it is slower than float32 and less exact")
    model, digest = Wav2Vec(config, jnp.dtype(precision), spectral=on_cpu), encoder_digest(config, params, known)
    mesh = Mesh(np.array(devices.for_batches()), ("batch",))
    if on_cpu:
        params = spectral_params(config, params)
    return Encoder(config, devices.on_all(dict(params), mesh), digest, precision, model, mesh)


def load(weights: str | Path, precision: Precision = "float32") -> Encoder:
    """An encoder: `nano`, which ships with the package, or from what `python -m convert.wav2vec` or `python -m jaxser.pretrain`
    wrote, or untrained, from `random:SEED` or `random-nano:SEED`.

    Raises CallError where there is no such checkpoint and WorkError where it is damaged.
    """
    if drawn := _drawn(weights):
        return make_encoder(drawn[0], random_params(*drawn), precision)
    config, stored, note = _stored(weights)
    params = _float32({name: stored[name] for name in stored if name != PREDICTIONS})
    # The digest that was just verified is that of the encoder's own arrays where they are all there is, and as they lie there.
    as_stored = PREDICTIONS not in stored and all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(stored))
    encoder = make_encoder(config, params, precision, note["digest"] if as_stored else "")
    if encoder.digest != note["encoder_digest"]:
        raise WorkError(f"{weights} is damaged: its configuration is not the one that its weights were written with")
    return encoder


def load_params(weights: str | Path) -> tuple[Architecture, dict[str, Any], dict[str, Any]]:
    """Architecture, float32 parameters (with the prediction head, where it was kept) and what a checkpoint says of itself."""
    config, stored, note = _stored(weights)
    return config, _float32(stored), note


def _stored(weights: str | Path) -> tuple[Architecture, dict[str, Any], dict[str, Any]]:
    stored, note = checkpoint.load(path_of(weights), KIND)
    return _described(weights, note), stored, note


def path_of(weights: str | Path) -> str | Path:
    """Where weights lie: those that ship have a name, all others are a path."""
    return SHIPPED / str(weights) if str(weights) in SHIPPED_NAMES else weights


def identify(weights: str | Path) -> tuple[Architecture, str, bool]:
    """The architecture of an encoder, the digest of its weights and whether they are random, without making it."""
    if drawn := _drawn(weights):
        return drawn[0], encoder_digest(drawn[0], random_params(*drawn)), True
    note = checkpoint.about(path_of(weights), KIND)
    return _described(weights, note), note["encoder_digest"], False


def _described(weights: str | Path, note: Mapping[str, Any]) -> Architecture:
    if odd := misfit(note, {"config": dict, "encoder_digest": str}):
        raise WorkError(f"{weights} is damaged: what it says of itself is not whole, {odd}")
    return Architecture.from_json(note["config"])


def _drawn(weights: str | Path) -> tuple[Architecture, int] | None:
    found = re.fullmatch(r"random(?:-(\w+))?:(\d+)", str(weights))
    if not found:
        return None
    name = found[1] or "large"
    if name not in ARCHITECTURES:
        raise CallError(f"--weights {weights}: random weights are made for {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name], int(found[2])
