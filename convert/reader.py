"""Reads a torch checkpoint that somebody else made: tensors and plain options come out, and nothing in it is ever run.

A torch checkpoint is a pickle, and a pickle is a program. Here it is looked at twice: first as text, without executing it, for
the names that tell what model it is; then by torch's restricted unpickler, which builds tensors, plain containers and the few
harmless classes named below, and refuses all else.
"""

import argparse
import mmap
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxser.errors import CallError, WorkError

OTHER_MODELS = {
    "vector_quantizer.": "vq-wav2vec",
    "label_embs_concat": "HuBERT",
    "grep_linear": "WavLM",
    "relative_attention_bias": "WavLM",
    "hubert.": "HuBERT (in the form of the transformers library)",
    "wav2vec2.": "wav2vec 2.0 (in the form of the transformers library)",
    "masked_spec_embed": "wav2vec 2.0 or one of its kin (in the form of the transformers library)",
    "mask_emb": "wav2vec 2.0",
    "post_extract_proj": "wav2vec 2.0 or one of its kin",
}
"""What stands in the names of a model's tensors, and the model; looked for in this order."""


class _Ignored:
    """Takes the place of classes that checkpoints hold beside the weights; keeps nothing of what it is given."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


DAMAGED = (
    *(ValueError, OSError, EOFError, IndexError, KeyError, ArithmeticError, MemoryError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
"""What zipfile and pickletools raise for bytes that are none of theirs."""

HARMLESS = [
    argparse.Namespace,
    *(
        (_Ignored, name)
        for name in (
            *(f"fairseq.{home}meters.{m}Meter" for home in ("", "logging.") for m in ("Average", "Time", "Stopwatch")),
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray.scalar",
            "numpy.dtype",
        )
    ),
]
"""All that may be built besides tensors and plain containers. fairseq 0.8 and 0.9 pickled their meters of time and loss."""


@dataclass(frozen=True)
class Source:
    """What a checkpoint holds: its tensors by name, the options of its model, and which form it has."""

    tensors: Mapping[str, np.ndarray]
    options: Mapping[str, Any]
    form: str
    dtype: str


def read(path: Path) -> Source:
    """Read a wav2vec checkpoint of fairseq (2019's `args`, later `cfg`) or as s3prl converts it.

    Raises CallError where the file is something else, WorkError where it is damaged or would run code.
    """
    try:
        import torch
    except ImportError:
        raise CallError("torch reads such checkpoints, and is not installed: pip install '.[convert]'") from None
    if not path.is_file():
        raise CallError(f"{path}: no such file")
    _demand_wav2vec(path)
    try:
        with torch.serialization.safe_globals(HARMLESS):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a crafted or damaged pickle can raise anything at all
        reason = " ".join(str(error).split())
        if "GLOBAL" in reason or "Unsupported" in reason or "not allowed" in reason:
            named = reason.partition("GLOBAL ")[2].partition(" ")[0] or "an operation of its own"
            raise WorkError(
                f"{path} refers to {named}, which no wav2vec checkpoint needs: refused, and nothing of it was run"
            ) from None
        raise WorkError(f"{path} is damaged or cut short: {reason[:120] or type(error).__name__}") from None
    return _source(path, found)


def _source(path: Path, found: Any) -> Source:
    from torch import Tensor

    found = found if isinstance(found, dict) else {}
    if "model_weight" in found:
        form, model, options = "s3prl's converted form", found["model_weight"], found.get("model_cfg")
    else:
        form, model, options = "fairseq, options in args", found.get("model"), found.get("args")
        if options is None and isinstance(found.get("cfg"), dict):
            form, options = "fairseq, options in cfg", found["cfg"].get("model")
    options = vars(options) if isinstance(options, argparse.Namespace) else options
    if not isinstance(model, dict) or not all(isinstance(t, Tensor) and isinstance(n, str) for n, t in model.items()):
        raise CallError(f"{path} holds no model: neither fairseq's `model` nor s3prl's `model_weight` is there")
    tensors = {name: tensor.detach().float() if tensor.is_floating_point() else tensor for name, tensor in model.items()}
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in model.values()})
    return Source(
        {name: tensor.numpy() for name, tensor in tensors.items()},
        options if isinstance(options, dict) else {},
        form,
        "+".join(dtypes),
    )


def _demand_wav2vec(path: Path) -> None:
    names = "\n".join(_strings(path))
    for part, model in OTHER_MODELS.items():
        if part in names:
            raise CallError(f"{path} is {model}, not wav2vec (2019): only that one is ported")
    if "feature_aggregator." not in names:
        raise CallError(f"{path} holds no wav2vec: none of its tensors is called feature_aggregator")


def _strings(path: Path) -> Iterator[str]:
    """Every text in the pickles of a torch file, by reading them as data."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (broken := archive.testzip()) is not None:
                    raise WorkError(f"{path} is damaged: {broken} does not fit its checksum")
                for name in archive.namelist():
                    if name.endswith("data.pkl"):
                        yield from _texts(archive.open(name))
        else:
            with path.open("rb") as file:
                first = file.read(4)
                if first[:2] == b"PK":
                    raise WorkError(f"{path} is cut short: a zip file without its end")
                if first[:1] != b"\x80":
                    raise CallError(f"{path} is no torch checkpoint")
                # A file would make room for as many bytes as a damaged pickle says that follow; a map gives what there is.
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    for _ in range(4):  # magic number, protocol, system, then the object itself
                        yield from _texts(content)
    except DAMAGED as error:
        if isinstance(error, CallError | WorkError):
            raise
        raise WorkError(f"{path} is damaged or cut short: {' '.join(str(error).split())[:120]}") from None


def _texts(file: Any) -> Iterator[str]:
    yield from (value for _, value, _ in pickletools.genops(file) if isinstance(value, str))
