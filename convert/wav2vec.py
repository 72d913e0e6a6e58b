"""python -m convert.wav2vec CHECKPOINT OUT: wav2vec weights from fairseq or s3prl into a checkpoint of jaxser's own."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tyro

from convert.port import Rule, port
from convert.reader import Source, read
from jaxser import checkpoint, network, wav2vec
from jaxser.architecture import ARCHITECTURES, Architecture, parse_layers
from jaxser.audio import SAMPLE_RATE
from jaxser.command import run_command
from jaxser.digests import file_digest
from jaxser.errors import CallError, WorkError


def _kernel(weight: np.ndarray) -> np.ndarray:
    """Conv1d's [d, c, k] as [k, c, d]."""
    return weight.transpose(2, 1, 0)


def _projection(weight: np.ndarray) -> np.ndarray:
    """A 1x1 Conv1d's [d, c, 1] as [c, d]."""
    return weight.squeeze(2).T


def _steps(weight: np.ndarray) -> np.ndarray:
    """ConvTranspose2d's [c, d, 1, steps] as [steps, c, d]."""
    return weight.squeeze(2).transpose(2, 0, 1)


RULES = (
    Rule(r"feature_extractor\.conv_layers\.(\d+)\.0\.weight", "encoder_{}/kernel", _kernel),
    Rule(r"feature_extractor\.conv_layers\.(\d+)\.2\.weight", "encoder_{}/scale"),
    Rule(r"feature_extractor\.conv_layers\.(\d+)\.2\.bias", "encoder_{}/bias"),
    Rule(r"feature_aggregator\.conv_layers\.(\d+)\.1\.weight", "context_{}/kernel", _kernel),
    Rule(r"feature_aggregator\.conv_layers\.(\d+)\.1\.bias", "context_{}/kernel_bias"),
    Rule(r"feature_aggregator\.conv_layers\.(\d+)\.3\.weight", "context_{}/scale"),
    Rule(r"feature_aggregator\.conv_layers\.(\d+)\.3\.bias", "context_{}/bias"),
    Rule(r"feature_aggregator\.residual_proj\.(\d+)\.weight", "projection_{}", _projection),
    Rule(r"wav2vec_predictions\.project_to_steps\.weight", f"{wav2vec.PREDICTIONS}/kernel", _steps),
    Rule(r"wav2vec_predictions\.project_to_steps\.bias", f"{wav2vec.PREDICTIONS}/bias"),
)
"""fairseq's state dict -> the parameters of `jaxser.wav2vec.Wav2Vec`, and the prediction head that training goes on with."""

ONLY = {"aggregator": "cnn", "activation": "relu", "vq_type": "none", "project_features": "none"}
"""Options with one supported value, which is also what their absence means: checkpoints of 2019 do not know the last ones."""


@dataclass(frozen=True)
class Call:
    """Convert a wav2vec checkpoint of fairseq or s3prl. The options are needed only where the file does not state them."""

    checkpoint: tyro.conf.Positional[Path]
    """The .pt file."""
    out: tyro.conf.Positional[str]
    """The folder to write, where nothing else may be. May be remote (gs://)."""
    conv_feature_layers: str | None = None
    """Encoder layers, such as "[(512, 10, 5), (512, 8, 4)]": channels, kernel, stride."""
    conv_aggregator_layers: str | None = None
    """Context layers."""
    log_compression: bool | None = None
    skip_connections_feat: bool | None = None
    skip_connections_agg: bool | None = None
    residual_scale: float | None = None
    agg_zero_pad: bool | None = None


def main(call: Call) -> None:
    """The whole command: read, port, check, write; a line each of what was found."""
    there = digest_there(call.out)
    source = read(call.checkpoint)
    config = config_of(source, call)
    params = port_wav2vec(source.tensors, config)
    features = {name: value for name, value in params.items() if name != wav2vec.PREDICTIONS}
    checked = check_forward(config, features)
    variant = variant_of(config)
    about = {
        "variant": variant,
        "source": {"file": call.checkpoint.name, "sha256": file_digest(call.checkpoint), "form": source.form},
    }
    if wav2vec.encoder_digest(config, features) != there:
        wav2vec.save(call.out, config, params, about)
    count, needed = (sum(leaf.size for _, leaf in checkpoint.named_leaves(tree)) for tree in (params, features))
    z, c = config.receptive_field
    lines = {
        "found": f"{variant} ({source.form}, {source.dtype})",
        "sha256": about["source"]["sha256"],
        "parameters": f"{count:,} in {len(source.tensors)} tensors; features need {needed:,}",
        "frames": f"one each {config.stride} samples ({1000 * config.stride / SAMPLE_RATE:g} ms)",
        "sees": f"z {z:,} samples ({1000 * z / SAMPLE_RATE:.1f} ms), c {c:,} ({1000 * c / SAMPLE_RATE:.1f} ms)",
        "flags": ", ".join(f"{name} {value}" for name, value in config.to_json().items() if not name.startswith("conv_")),
        "forward": checked,
        "written": call.out,
    }
    for name, text in lines.items():
        print(f"{name:<11}{text}")


def digest_there(out: str) -> str | None:
    """What names the encoder that an earlier call has written, for the same call to say so again, or None.

    Raises CallError where something else is there.
    """
    try:
        return checkpoint.about(out, wav2vec.KIND)["encoder_digest"]
    except CallError:
        checkpoint.demand_new(out)
    return None


def config_of(source: Source, stated: Call) -> Architecture:
    """The architecture, from the checkpoint's own options and, where it has none, those of the call.

    Raises CallError for what is not supported, not stated anywhere, or stated twice and differently.
    """
    options = source.options
    for name, only in ONLY.items():
        if options.get(name) not in (None, only):
            raise CallError(f"{stated.checkpoint}: {name} {options[name]!r} is not supported, only {only!r}")
    if any(name.startswith("feature_aggregator.1.") for name in source.tensors):
        raise CallError(f"{stated.checkpoint}: aggregator 'gru' is not supported, only 'cnn'")
    if any(name.startswith("project_features.") for name in source.tensors):
        raise CallError(f"{stated.checkpoint}: project_features is not supported, only 'none'")
    # Two flags can be seen in the weights themselves.
    values: dict[str, Any] = {
        "no_conv_bias": "feature_aggregator.conv_layers.0.1.bias" not in source.tensors,
        "non_affine_group_norm": "feature_extractor.conv_layers.0.2.weight" not in source.tensors,
    }
    missing = []
    for field in dataclasses.fields(Architecture):
        name = field.name
        found, given = options.get(name, values.get(name)), getattr(stated, name, None)
        if name.endswith("_layers"):
            found, given = (parse_layers(name, value) for value in (found, given))
        if found is not None and given is not None and found != given:
            raise CallError(f"--{name.replace('_', '-')} {given}: the checkpoint itself says {found}")
        values[name] = given if found is None else found
        if values[name] is None:
            missing.append("--" + name.replace("_", "-"))
    if missing:
        raise CallError(
            f"{stated.checkpoint} does not say how its model is built, nor do its weights show it: give {', '.join(missing)}"
        )
    return Architecture.from_json(values)


def port_wav2vec(tensors: Mapping[str, np.ndarray], config: Architecture) -> dict[str, Any]:
    """The parameters of Wav2Vec(config), with the prediction head beside them under PREDICTIONS."""
    steps = tensors.get("wav2vec_predictions.project_to_steps.weight", np.zeros((0, 0, 0, 12))).shape[-1]
    z, c = config.width
    head = {"kernel": SimpleNamespace(shape=(steps, c, z)), "bias": SimpleNamespace(shape=(z,))}
    return port(tensors, RULES, {**network.parameter_shapes(config), wav2vec.PREDICTIONS: head})


def check_forward(config: Architecture, params: Mapping[str, Any]) -> str:
    """Run one second of noise through the model; a WorkError where what comes out cannot be right."""
    samples = max(SAMPLE_RATE, config.receptive_field[0] + config.stride)
    noise = np.random.default_rng(0).normal(0, 0.1, (1, samples)).astype(np.float32)
    z, c, frames = wav2vec.make_encoder(config, params)(noise, np.array([samples]))
    for name, x in (("z", z), ("c", c)):
        if not np.isfinite(x).all() or not np.std(x) > 0:
            raise WorkError(f"a forward pass over noise gives {name} that is not finite or does not vary")
    return f"1 s of noise: {int(frames[0])} frames, z within {float(abs(z).max()):.3g}, c within {float(abs(c).max()):.3g}"


def variant_of(config: Architecture) -> str:
    """The published name of an architecture, or that it has none."""
    for name, known in ARCHITECTURES.items():
        if config == known:
            return f"wav2vec-{name}"
    layers = f"{len(config.conv_feature_layers)} + {len(config.conv_aggregator_layers)} layers"
    return f"a wav2vec of its own architecture, {layers}"


if __name__ == "__main__":
    run_command("convert.wav2vec", Call, main)
