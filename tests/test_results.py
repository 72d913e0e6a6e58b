"""Run folders that are not as they should be."""

import json
from pathlib import Path

import pytest

from jaxser import results
from jaxser.errors import CallError
from jaxser.files import begun


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, None])
def test_json_that_is_no_object(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(CallError, match=r"summary\.json is damaged: delete"):
        results.read_json(tmp_path / "summary.json")


def test_folder_of_another_configuration(tmp_path: Path):
    assert results.finished_summary(tmp_path / "new", {"head": "mlp"}) is None
    results.begin(tmp_path / "new", {"head": "mlp"})
    assert results.finished_summary(tmp_path / "new", {"head": "mlp"}) is None
    with pytest.raises(CallError, match="head: there 'mlp', here 'mean'"):
        results.finished_summary(tmp_path / "new", {"head": "mean"})
    (tmp_path / "new" / "summary.json").write_text(json.dumps({"ua_mean": 0.5}))
    assert results.finished_summary(tmp_path / "new", {"head": "mlp"}) == {"ua_mean": 0.5}


def test_what_a_killed_command_had_not_finished_goes(tmp_path: Path):
    killed = begun(tmp_path / "scores.csv")
    left = Path(killed.__enter__().name)
    with results.claimed(tmp_path):
        assert not left.exists()
