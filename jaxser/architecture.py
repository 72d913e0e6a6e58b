"""What a wav2vec is made of: its layers and flags, and the published variants. No arrays here."""

import ast
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from jaxser.errors import CallError

Layer = tuple[int, int, int]
"""Channels, kernel, stride."""


def frames_of_layer(frames: Any, kernel: int, stride: int) -> Any:
    """How many frames an unpadded layer gives for this many; ints or an integer array, none where they are too few."""
    after = (frames - kernel) // stride + 1
    return after * (after > 0)


@dataclass(frozen=True)
class Architecture:
    """Layers and flags. No flag has a default: five of them leave no trace in the weights, and a wrong guess stays unseen."""

    conv_feature_layers: tuple[Layer, ...]
    conv_aggregator_layers: tuple[Layer, ...]
    log_compression: bool
    """z = log(|x| + 1) after the last encoder layer."""
    skip_connections_feat: bool
    skip_connections_agg: bool
    residual_scale: float
    """Sums with a skip connection are multiplied by its square root."""
    agg_zero_pad: bool
    """Zeros in place of the first frame, repeated, on the left of each context layer."""
    no_conv_bias: bool
    """Context convolutions without a bias; those of the encoder never have one."""
    non_affine_group_norm: bool

    @property
    def width(self) -> tuple[int, int]:
        """Channels of z and of c."""
        return self.conv_feature_layers[-1][0], self.conv_aggregator_layers[-1][0]

    @property
    def stride(self) -> int:
        """Samples from one frame to the next."""
        return prod(stride for *_, stride in self.conv_feature_layers)

    @property
    def receptive_field(self) -> tuple[int, int]:
        """Samples that one frame of z and one frame of c see. Fewer than the first give no frame at all."""
        field, step = 1, 1
        for _, kernel, stride in self.conv_feature_layers:
            field += (kernel - 1) * step
            step *= stride
        return field, field + step * sum(kernel - 1 for _, kernel, _ in self.conv_aggregator_layers)

    def frames(self, samples: Any) -> Any:
        """How many frames this many samples give; ints or an integer array."""
        for _, kernel, stride in self.conv_feature_layers:
            samples = frames_of_layer(samples, kernel, stride)
        return samples

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` takes it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Architecture":
        """A configuration from plain data that somebody else wrote. Raises CallError for entries that are unknown, missing
        or make no sense."""
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        if odd := sorted(fields.keys() ^ set(values)):
            raise CallError(f"the configuration of a wav2vec needs, or does not know, the entries {', '.join(odd)}")
        values = dict(values)
        for name in ("conv_feature_layers", "conv_aggregator_layers"):
            values[name] = _layers(name, values[name])
        if any(stride != 1 for *_, stride in values["conv_aggregator_layers"]):
            raise CallError(f"conv_aggregator_layers {values['conv_aggregator_layers']}: context layers have stride 1")
        for name, kind in fields.items():
            if kind is bool and type(values[name]) is not bool:
                raise CallError(f"{name} {values[name]!r}: True or False")
        scale = values["residual_scale"]
        if type(scale) not in (int, float) or not 0 < scale < float("inf"):
            raise CallError(f"residual_scale {scale!r}: a number above 0")
        return cls(**values | {"residual_scale": float(scale)})


def _layers(name: str, given: Any) -> tuple[Layer, ...]:
    layers = given if isinstance(given, list | tuple) else ()
    layers = tuple(tuple(layer) if isinstance(layer, list | tuple) else () for layer in layers)
    if not layers or any(len(layer) != 3 or any(type(n) is not int or n < 1 for n in layer) for layer in layers):
        raise CallError(f"{name} {given!r}: each layer is (channels, kernel, stride), whole numbers from 1")
    return layers


def parse_layers(name: str, text: Any) -> tuple[tuple[Any, ...], ...] | None:
    """fairseq's layer lists: Python lists as text, in which lists may be added and repeated. It evaluates them; here only
    lists, tuples, whole numbers, + and * are understood, and anything else is a CallError. That each has channels, kernel and
    stride is for `Architecture.from_json` to see."""
    if text is None or not isinstance(text, str):
        return None if text is None else tuple(tuple(layer) for layer in text)
    try:
        layers = _value(ast.parse(text.strip(), mode="eval").body)
        return tuple(tuple(layer) for layer in layers)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise CallError(f"{name} {text[:80]!r} is no list of layers (channels, kernel, stride)") from None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
            return left + right
        if isinstance(node.op, ast.Mult) and isinstance(left, list) and isinstance(right, int) and len(left) * right <= 1000:
            return left * right
    raise ValueError("not a list of layers")


_LARGE_ENCODER = ((512, 10, 5), (512, 8, 4), (512, 4, 2), (512, 4, 2), (512, 4, 2), (512, 1, 1), (512, 1, 1))

LARGE = Architecture(
    conv_feature_layers=_LARGE_ENCODER,
    conv_aggregator_layers=tuple((512, kernel, 1) for kernel in range(2, 14)),
    log_compression=True,
    skip_connections_feat=False,
    skip_connections_agg=True,
    residual_scale=0.5,
    agg_zero_pad=False,
    no_conv_bias=False,
    non_affine_group_norm=False,
)
"""wav2vec-large as published: what the paper uses."""

BASE = dataclasses.replace(
    LARGE, conv_feature_layers=_LARGE_ENCODER[:5], conv_aggregator_layers=((512, 3, 1),) * 9, skip_connections_agg=False
)
"""The smaller model of the wav2vec paper, section 3.1: five encoder layers, nine of context with kernel 3."""

NANO = dataclasses.replace(
    LARGE,
    conv_feature_layers=((64, 10, 5), *((128, kernel, stride) for _, kernel, stride in _LARGE_ENCODER[1:])),
    conv_aggregator_layers=tuple((128, kernel, 1) for kernel in range(2, 10)),
)
"""One twenty-seventh of the work of LARGE at the same frame rate: the weights that ship. The first layer has half the channels
of the others, for its activations are most of what training has to move."""

ARCHITECTURES = {"large": LARGE, "base": BASE, "nano": NANO}
