import dataclasses
import json
import re

import pytest

from jaxser.architecture import ARCHITECTURES, BASE, LARGE, NANO, Architecture
from jaxser.errors import CallError


def test_the_published_sizes_of_large():
    assert LARGE.stride == 160
    assert LARGE.receptive_field == (465, 12_945)
    assert LARGE.width == (512, 512)
    assert [LARGE.frames(n) for n in (0, 464, 465, 624, 625, 16_000, 80_000)] == [0, 0, 1, 1, 2, 98, 498]


def test_the_published_context_of_base():
    # The wav2vec paper, section 3.1: the encoder sees about 30 ms, the context about 210 ms, a frame each 10 ms.
    assert BASE.stride == 160
    assert [round(field / 16) for field in BASE.receptive_field] == [29, 209]
    assert NANO.receptive_field[0] == 465


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_through_json_and_back(name: str):
    config = ARCHITECTURES[name]
    assert Architecture.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_feature_layers": []}, "conv_feature_layers []: each layer"),
        ({"conv_feature_layers": [[512, 10]]}, "each layer is (channels, kernel, stride)"),
        ({"conv_feature_layers": [[512, 10, 0]]}, "whole numbers from 1"),
        ({"conv_aggregator_layers": [[512, 3.0, 1]]}, "whole numbers from 1"),
        ({"conv_aggregator_layers": [[512, 3, 2]]}, "context layers have stride 1"),
        ({"log_compression": 1}, "log_compression 1: True or False"),
        ({"residual_scale": -1}, "residual_scale -1: a number above 0"),
        ({"residual_scale": float("nan")}, "residual_scale nan"),
        ({"colour": "red"}, "needs, or does not know, the entries colour"),
    ],
)
def test_senseless_configurations(change: dict, message: str):
    with pytest.raises(CallError, match=re.escape(message)):
        Architecture.from_json(LARGE.to_json() | change)


def test_every_entry_must_be_stated():
    for field in dataclasses.fields(Architecture):
        values = {name: value for name, value in LARGE.to_json().items() if name != field.name}
        with pytest.raises(CallError, match=field.name):
            Architecture.from_json(values)
