"""The torch side of parity tests and benchmarks: fairseq's own wav2vec, unmodified, and a twin that takes ragged batches.

fairseq 0.12.2 cannot be imported on Python 3.11 and newer (a mutable dataclass default), but its wav2vec needs only five more
of its files and torch. `fairseq_wav2vec` runs those files as they were installed, with the names they import from the rest of
fairseq stood in for: base classes, decorators and configuration that a forward pass never calls.
"""

import argparse
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

MODULES = ("fp32_group_norm", "layer_norm", "transpose_last", "gumbel_vector_quantizer", "kmeans_vector_quantizer")
"""The files of fairseq/modules that wav2vec.py imports."""

EXPORTS = {
    "fp32_group_norm": ("Fp32GroupNorm",),
    "layer_norm": ("LayerNorm", "Fp32LayerNorm"),
    "transpose_last": ("TransposeLast",),
    "gumbel_vector_quantizer": ("GumbelVectorQuantizer",),
    "kmeans_vector_quantizer": ("KmeansVectorQuantizer",),
}

LARGE = {
    "conv_feature_layers": "[(512, 10, 5), (512, 8, 4), (512, 4, 2), (512, 4, 2), (512, 4, 2), (512, 1, 1), (512, 1, 1)]",
    "conv_aggregator_layers": str([(512, k, 1) for k in range(2, 14)]),
    "aggregator": "cnn",
    "gru_dim": 512,
    "activation": "relu",
    "vq_type": "none",
    "infonce": False,
    "log_compression": True,
    "skip_connections_feat": False,
    "skip_connections_agg": True,
    "residual_scale": 0.5,
    "no_conv_bias": False,
    "agg_zero_pad": False,
    "non_affine_group_norm": False,
    "dropout": 0.0,
    "dropout_features": 0.0,
    "dropout_agg": 0.0,
    "prediction_steps": 12,
    "sample_distance": None,
    "num_negatives": 10,
    "cross_sample_negatives": 0,
    "balanced_classes": False,
    "project_features": "none",
    "offset": "auto",
}
"""Options of wav2vec-large under their names in a fairseq checkpoint of 2019, and the three that came later."""


def installed() -> Path | None:
    """The folder of fairseq's files, or None where it is not installed. Imports nothing of it."""
    spec = importlib.util.find_spec("fairseq")
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


@cache
def fairseq_wav2vec() -> types.ModuleType:
    """fairseq/models/wav2vec/wav2vec.py as it was installed. Raises ImportError where fairseq is absent."""
    root = installed()
    if root is None:
        raise ImportError("fairseq is not installed: READTHEDOCS=1 pip install --no-deps fairseq==0.12.2")
    with _stand_ins() as packages:
        for name in MODULES:
            module = _run_file(root / "modules" / f"{name}.py")
            for exported in EXPORTS[name]:
                setattr(packages["fairseq.modules"], exported, getattr(module, exported))
        return _run_file(root / "models" / "wav2vec" / "wav2vec.py")


@cache
def fairseq_criterion() -> type[nn.Module]:
    """fairseq/criterions/wav2vec_criterion.py as it was installed: `criterion(model, sample)` gives the summed loss, its
    denominator and what is logged."""
    root = installed()
    with _stand_ins():
        return _run_file(root / "criterions" / "wav2vec_criterion.py").Wav2vecCriterion


class Criterion(nn.Module):
    """Stands in for fairseq's base class of criterions, which only remembers the task."""

    def __init__(self, task: object):
        super().__init__()


@contextmanager
def _stand_ins() -> Iterator[dict[str, types.ModuleType]]:
    contents = {
        "omegaconf": {"II": str},
        "fairseq": {"__path__": [], "metrics": None},
        "fairseq.criterions": {"FairseqCriterion": Criterion, "register_criterion": lambda *name, **options: lambda made: made},
        "fairseq.dataclass": {"ChoiceEnum": lambda choices: str, "FairseqDataclass": object},
        "fairseq.models": {
            "__path__": [],
            "BaseFairseqModel": nn.Module,
            "register_model": lambda *name, **options: lambda model: model,
        },
        "fairseq.models.wav2vec": {"__path__": []},
        "fairseq.modules": {"__path__": []},
        "fairseq.tasks": {"FairseqTask": object},
        "fairseq.utils": {"buffered_arange": torch.arange, "is_xla_tensor": lambda tensor: False},
        "fairseq.logging": {"__path__": []},
        "fairseq.logging.meters": {"safe_round": round},
    }
    packages = {name: types.ModuleType(name) for name in contents}
    packages["fairseq"].utils = packages["fairseq.utils"]
    for name, values in contents.items():
        vars(packages[name]).update(values)
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in ("fairseq", "omegaconf")}
    sys.modules.update(packages)
    try:
        yield packages
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("fairseq", "omegaconf")]:
            del sys.modules[name]
        sys.modules.update(before)


def _run_file(path: Path) -> types.ModuleType:
    # Under a name of its own, under which it stays imported: torch.compile looks a function's globals up by module name.
    name = f"fairseq_unmodified_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def fairseq_model(seed: int = 0, **options: object) -> tuple[nn.Module, argparse.Namespace]:
    """fairseq's Wav2VecModel with seeded random weights, and the Namespace that a checkpoint of it would hold.

    Norms and biases are drawn too: at their initial ones and zeros a mistake in them could not be seen.
    """
    args = argparse.Namespace(**{**LARGE, **options})
    torch.manual_seed(seed)
    model = fairseq_wav2vec().Wav2VecModel(args)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(1.0 if name.endswith(".weight") else 0.0, 0.2)
    return model.eval(), args


class MaskedTwin(nn.Module):
    """A fairseq model's encoder and context for zero-padded batches: group norm over each item's valid frames only.

    What a torch user would have to write to batch utterances of unequal length without changing what comes out; the same
    weights, shared with `model`. Only for the default options (no skip connections between features, replication padding).
    With `channels_last` its convolutions are two-dimensional ones of height 1, the only ones that torch has with channels side
    by side in memory, which tensor cores want.
    """

    def __init__(self, model: nn.Module, channels_last: bool = False):
        super().__init__()
        self.channels_last = channels_last
        self.encoder = model.feature_extractor.conv_layers
        self.context = model.feature_aggregator.conv_layers
        self.scale = model.feature_aggregator.residual_scale

    def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """f32[b, s], i64[b] -> z, c f32[b, d, t]; frames beyond an item's own hold finite numbers."""
        x = waveforms[:, None]
        for block in self.encoder:
            x = self.convolved(x, block[0])
            lengths = (lengths - block[0].kernel_size[0]) // block[0].stride[0] + 1
            x = functional.relu(masked_group_norm(x, lengths, block[2]))
        z = x = torch.log(x.abs() + 1)
        for block in self.context:
            y = masked_group_norm(self.convolved(x, block[1], block[0].padding), lengths, block[3])
            x = (functional.relu(y) + x) * self.scale
        return z, x

    def convolved(self, x: torch.Tensor, layer: nn.Conv1d, padding: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """f32[b, d, t] -> f32[b, d, t], its ends repeated so often."""
        if not self.channels_last:
            return layer(functional.pad(x, padding, mode="replicate") if any(padding) else x)
        x = x[:, :, None].contiguous(memory_format=torch.channels_last)
        if any(padding):
            x = functional.pad(x, (*padding, 0, 0), mode="replicate")
        weight = layer.weight[:, :, None].contiguous(memory_format=torch.channels_last)
        return functional.conv2d(x, weight, layer.bias, (1, *layer.stride))[:, :, 0]


def masked_group_norm(x: torch.Tensor, lengths: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
    """One group over channels and the first `lengths` frames of x f32[b, d, t]."""
    mask = (torch.arange(x.shape[2], device=x.device) < lengths[:, None])[:, None]
    count = (lengths * x.shape[1])[:, None, None]
    mean = (x * mask).sum((1, 2), keepdim=True) / count
    variance = ((x - mean) * mask).square().sum((1, 2), keepdim=True) / count
    return (x - mean) * torch.rsqrt(variance + norm.eps) * norm.weight[:, None] + norm.bias[:, None]
