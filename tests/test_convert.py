"""The converter on every form of checkpoint that is in use, and on what people give it by mistake or in malice."""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxser import checkpoint, wav2vec
from jaxser.architecture import Architecture
from jaxser.errors import CallError, WorkError

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[convert]'")

from convert import wav2vec as convert  # noqa: E402
from convert.port import Rule, port  # noqa: E402

SMALL = Architecture(
    conv_feature_layers=((8, 10, 5), (8, 8, 4), (12, 4, 2)),
    conv_aggregator_layers=((12, 2, 1), (16, 3, 1)),
    log_compression=True,
    skip_connections_feat=False,
    skip_connections_agg=True,
    residual_scale=0.5,
    agg_zero_pad=False,
    no_conv_bias=False,
    non_affine_group_norm=False,
)
SEEN_IN_WEIGHTS = ("no_conv_bias", "non_affine_group_norm")


def options_of(config: Architecture) -> dict[str, Any]:
    values = config.to_json()
    for name in ("conv_feature_layers", "conv_aggregator_layers"):
        values[name] = str([tuple(layer) for layer in values[name]])
    return values | {"aggregator": "cnn", "prediction_steps": 12, "arch": "wav2vec", "gru_dim": 512, "offset": "auto"}


def tensors_of(config: Architecture) -> dict[str, Any]:
    """Random tensors under fairseq's names, in its layouts."""
    torch.manual_seed(0)
    found, channels = {}, 1
    for i, (d, k, _) in enumerate(config.conv_feature_layers):
        found[f"feature_extractor.conv_layers.{i}.0.weight"] = torch.randn(d, channels, k)
        found[f"feature_extractor.conv_layers.{i}.2.weight"] = torch.randn(d)
        found[f"feature_extractor.conv_layers.{i}.2.bias"] = torch.randn(d)
        channels = d
    for i, (d, k, _) in enumerate(config.conv_aggregator_layers):
        found[f"feature_aggregator.conv_layers.{i}.1.weight"] = torch.randn(d, channels, k)
        for name in ("1.bias", "3.weight", "3.bias"):
            found[f"feature_aggregator.conv_layers.{i}.{name}"] = torch.randn(d)
        if d != channels:
            found[f"feature_aggregator.residual_proj.{i}.weight"] = torch.randn(d, channels, 1)
        channels = d
    z, c = config.width
    found["wav2vec_predictions.project_to_steps.weight"] = torch.randn(c, z, 1, 12)
    found["wav2vec_predictions.project_to_steps.bias"] = torch.randn(z)
    return found


TENSORS = tensors_of(SMALL)
ARGS = {"args": argparse.Namespace(**options_of(SMALL))}


def run(path: Path, content: Any, zipped: bool = True, **stated: Any) -> dict[str, Any]:
    """Save `content` as torch does, convert it, and give back the arrays that were written."""
    torch.save(content, path / "given.pt", _use_new_zipfile_serialization=zipped)
    return convert_file(path / "given.pt", path / "out", **stated)


def convert_file(file: Path, out: Path, **stated: Any) -> dict[str, Any]:
    convert.main(convert.Call(file, str(out), **stated))
    return checkpoint.load(out, wav2vec.KIND)[0]


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return checkpoint.tree_digest(one) == checkpoint.tree_digest(two)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("expected"), ARGS | {"model": TENSORS})


def test_layouts_worked_by_hand(expected: dict[str, Any]):
    d, c, k = 5, 3, 2
    weight = TENSORS["feature_extractor.conv_layers.1.0.weight"]
    assert expected["encoder_1"]["kernel"][k, c, d] == weight[d, c, k]
    assert expected["context_1"]["kernel"][k, c, d] == TENSORS["feature_aggregator.conv_layers.1.1.weight"][d, c, k]
    assert expected["projection_1"][c, d] == TENSORS["feature_aggregator.residual_proj.1.weight"][d, c, 0]
    head = TENSORS["wav2vec_predictions.project_to_steps.weight"]
    assert expected[wav2vec.PREDICTIONS]["kernel"][7, c, d] == head[c, d, 0, 7]


def meters() -> Any:
    """What fairseq 0.8 and 0.9 left in `extra_state`: objects of classes that nobody has installed."""
    module = types.ModuleType("fairseq.meters")
    found = {}
    for name in ("AverageMeter", "TimeMeter", "StopwatchMeter"):
        made = type(name, (), {"__module__": "fairseq.meters"})
        setattr(module, name, made)
        found[name] = made()
        found[name].__dict__.update(val=1.5, count=3)
    return module, found


def test_every_form(tmp_path: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    module, objects = meters()
    monkeypatch.setitem(sys.modules, "fairseq", types.ModuleType("fairseq"))
    monkeypatch.setitem(sys.modules, "fairseq.meters", module)
    with_meters = ARGS | {"model": TENSORS, "extra_state": {"train_meters": objects, "best": np.float64(1.25)}}
    cfg = {"args": None, "cfg": {"model": options_of(SMALL) | {"_name": "wav2vec", "activation": "relu", "vq_type": "none"}}}
    s3prl = {"task_cfg": {}, "model_cfg": options_of(SMALL) | {"activation": "relu"}, "model_weight": TENSORS}
    forms = {
        "before zip": (ARGS | {"model": TENSORS}, False),
        "meters": (with_meters, True),
        "meters before zip": (with_meters, False),
        "cfg": (cfg | {"model": TENSORS}, True),
        "s3prl": (s3prl, True),
    }
    for name, (content, zipped) in forms.items():
        torch.save(content, tmp_path / f"{name}.pt", _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()  # no fairseq is there when it is read
    for name in forms:
        assert same(convert_file(tmp_path / f"{name}.pt", tmp_path / name), expected), name


def test_half_precision(tmp_path: Path, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    halves = run(tmp_path, ARGS | {"model": {name: tensor.half() for name, tensor in TENSORS.items()}})
    assert "float16" in capsys.readouterr().out
    for (name, one), (_, two) in zip(checkpoint.named_leaves(halves), checkpoint.named_leaves(expected), strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, two.astype(np.float16), err_msg=name)


def test_what_is_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(tmp_path, ARGS | {"model": TENSORS})
    printed = capsys.readouterr().out
    count = sum(tensor.numel() for tensor in TENSORS.values())
    sha = hashlib.sha256((tmp_path / "given.pt").read_bytes()).hexdigest()
    for text in (f"{count:,} in {len(TENSORS)} tensors", "3 + 2 layers", sha, "z 105 samples", "c 225", "log_compression True"):
        assert text in printed
    about = checkpoint.about(tmp_path / "out", wav2vec.KIND)
    assert about["source"] == {"file": "given.pt", "sha256": sha, "form": "fairseq, options in args"}
    assert Architecture.from_json(about["config"]) == SMALL
    encoder = wav2vec.load(tmp_path / "out")
    _, c, frames = encoder(np.random.default_rng(0).normal(0, 0.1, (1, 800)).astype(np.float32), np.array([800]))
    assert c.shape[1:] == (int(frames[0]), 16)


def test_flags_that_leave_no_trace_are_demanded(tmp_path: Path, expected: dict[str, Any]):
    with pytest.raises(CallError) as caught:
        run(tmp_path, {"model": TENSORS})
    unseen = [name for name in SMALL.to_json() if name not in SEEN_IN_WEIGHTS]
    assert all("--" + name.replace("_", "-") in str(caught.value) for name in unseen)
    assert not any("--" + name.replace("_", "-") in str(caught.value) for name in SEEN_IN_WEIGHTS)
    assert not (tmp_path / "out").exists()
    stated = {name: options_of(SMALL)[name] for name in unseen}
    assert same(run(tmp_path, {"model": TENSORS}, **stated), expected)


def test_a_flag_stated_twice_and_differently(tmp_path: Path):
    with pytest.raises(CallError, match="--log-compression False: the checkpoint itself says True"):
        run(tmp_path, ARGS | {"model": TENSORS}, log_compression=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregator": "gru"}, "aggregator 'gru' is not supported, only 'cnn'"),
        ({"activation": "gelu"}, "activation 'gelu' is not supported, only 'relu'"),
        ({"vq_type": "gumbel"}, "vq_type 'gumbel' is not supported"),
        ({"project_features": "new"}, "project_features 'new' is not supported"),
        ({"conv_feature_layers": "__import__('os').system('touch hacked')"}, "is no list of layers"),
        ({"conv_feature_layers": "[(8, 10, 5)] * 10**9"}, "is no list of layers"),
        ({"conv_feature_layers": "[" * 5000}, "is no list of layers"),
        ({"conv_aggregator_layers": "[(12, 2)]"}, "each layer is (channels, kernel, stride)"),
        ({"conv_aggregator_layers": "[(12, 2, 2)]"}, "context layers have stride 1"),
        ({"residual_scale": "half"}, "residual_scale 'half': a number above 0"),
    ],
)
def test_what_is_refused_by_name(tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(CallError, match=re.escape(message)):
        run(tmp_path, {"args": argparse.Namespace(**options_of(SMALL) | options), "model": TENSORS})
    assert [path.name for path in tmp_path.iterdir()] == ["given.pt"]


def test_layer_lists_as_fairseqs_users_write_them():
    assert convert.parse_layers("layers", "[(512, 10, 5)] + [(512, 4, 2)] * 2") == ((512, 10, 5), (512, 4, 2), (512, 4, 2))


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("vector_quantizer.vars", "vq-wav2vec"),
        ("mask_emb", "wav2vec 2.0"),
        ("label_embs_concat", "HuBERT"),
        ("encoder.layers.0.self_attn.grep_linear.weight", "WavLM"),
        ("wav2vec2.encoder.layers.0.attention.k_proj.weight", "transformers library"),
        ("linear.weight", "none of its tensors is called feature_aggregator"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_other_models_are_called_by_their_names(tmp_path: Path, name: str, model: str, zipped: bool):
    # As the real ones: beside the weights lies a class that is not even looked at before the model is known.
    content = {"model": {name: torch.zeros(2)}, "cfg": ForeignClass()}
    if model == "vq-wav2vec":
        content["model"] |= TENSORS
    with pytest.raises(CallError, match=model):
        run(tmp_path, content, zipped)
    assert not (tmp_path / "out").exists()


class ForeignClass:
    pass


class Hostile:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code(tmp_path: Path, zipped: bool):
    content = ARGS | {"model": TENSORS, "extra_state": Hostile(tmp_path / "hacked")}
    with pytest.raises(WorkError, match=r"refers to (posix|nt)\.system, which no wav2vec checkpoint needs: refused"):
        run(tmp_path, content, zipped)
    assert [path.name for path in tmp_path.iterdir()] == ["given.pt"]


def test_faults_are_listed_together(tmp_path: Path):
    broken = dict(TENSORS)
    del broken["feature_extractor.conv_layers.0.2.bias"]
    broken["feature_extractor.conv_layers.1.0.weight"] = torch.zeros(8, 8, 7)
    broken["feature_aggregator.conv_layers.0.1.bias"] = torch.full((12,), torch.nan)
    broken["feature_aggregator.conv_layers.0.3.weight"] = torch.zeros(12, 1)
    broken["decoder.weight"] = torch.zeros(3)
    with pytest.raises(WorkError) as caught:
        run(tmp_path, ARGS | {"model": broken})
    for text in (
        "5 fault(s)",
        "encoder_0/bias (8,): no tensor fills it",
        "feature_extractor.conv_layers.1.0.weight (8, 8, 7): it gives (7, 8, 8), and encoder_1/kernel is (8, 8, 8)",
        "feature_aggregator.conv_layers.0.1.bias: it holds values that are not finite",
        "feature_aggregator.conv_layers.0.3.weight (12, 1): it gives (12, 1), and context_0/scale is (12,)",
        "decoder.weight (3,): nothing in this architecture takes it",
    ):
        assert text in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_rules_that_overlap_are_faults():
    shapes = {"a": np.zeros(2), "b": np.zeros(2)}
    rules = (Rule("x", "a"), Rule("[xy]", "b"), Rule("z", "b"))
    with pytest.raises(WorkError, match=r"x \(2,\): two rules claim it.*z: b has been filled by y.*a \(2,\): no tensor"):
        port({"x": np.zeros(2), "y": np.zeros(2), "z": np.zeros(2)}, rules, shapes)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file(tmp_path: Path, zipped: bool, kept: float):
    torch.save(ARGS | {"model": TENSORS}, tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: int(kept * len(content))])
    with pytest.raises((CallError, WorkError), match=r"cut\.pt is (damaged|cut short|no torch checkpoint)"):
        convert_file(tmp_path / "cut.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_flipped_bit_in_a_zip_file(tmp_path: Path):
    torch.save(ARGS | {"model": TENSORS}, tmp_path / "whole.pt")
    content = bytearray((tmp_path / "whole.pt").read_bytes())
    weights = TENSORS["feature_extractor.conv_layers.1.0.weight"].numpy().tobytes()
    content[content.index(weights) + 100] ^= 1
    (tmp_path / "flipped.pt").write_bytes(content)
    with pytest.raises(WorkError, match=r"flipped\.pt is damaged: .* does not fit its checksum"):
        convert_file(tmp_path / "flipped.pt", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no torch checkpoint"),
        (b"RIFF....WAVE", "is no torch checkpoint"),
        (b'{"model": 1}', "is no torch checkpoint"),
        (b"\x80\x02garbage", "is damaged or cut short"),
    ],
)
def test_not_a_checkpoint(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises((CallError, WorkError), match=message):
        convert_file(tmp_path / "file.pt", tmp_path / "out")


def test_the_command(tmp_path: Path):
    torch.save(ARGS | {"model": TENSORS}, tmp_path / "given.pt")

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "convert.wav2vec", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    done = call(str(tmp_path / "given.pt"), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    again = call(str(tmp_path / "given.pt"), str(tmp_path / "out"))  # as after a kill that came too late
    assert (again.returncode, again.stdout, again.stderr) == (0, done.stdout, "")
    torch.save(ARGS | {"model": TENSORS | {name: TENSORS[name] + 1 for name in list(TENSORS)[:1]}}, tmp_path / "other.pt")
    for arguments, code, message in (
        ([str(tmp_path / "other.pt"), str(tmp_path / "out")], 2, f"{tmp_path / 'out'} exists already"),
        ([str(tmp_path / "nowhere.pt"), str(tmp_path / "two")], 2, "nowhere.pt: no such file"),
    ):
        done = call(*arguments)
        assert done.returncode == code
        assert done.stderr.startswith("convert.wav2vec: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""
