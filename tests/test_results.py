"""A run folder's files, written and read again."""

import json
from pathlib import Path

import pytest

from jaxser import digests, results
from jaxser.errors import CallError

ODD = ["a,b", 'say "no"', "two\nlines", "a\rb", "Ärger", "名前", " edges ", "bytes \udce4 of a name", "-1", ""]


def test_odd_names_come_back(tmp_path: Path):
    results.write_csv(tmp_path / "t.csv", ["id", "n"], [[name, i] for i, name in enumerate(ODD)])
    assert [row["id"] for row in results.read_csv(tmp_path / "t.csv")] == ODD
    assert [row["n"] for row in results.read_csv(tmp_path / "t.csv")] == [str(i) for i in range(len(ODD))]
    assert len({digests.text_digest(name) for name in ODD}) == len(ODD)


def test_plain_names_stand_unquoted(tmp_path: Path):
    results.write_csv(tmp_path / "t.csv", ["id", "n"], [["Ses01F_impro01_F000", 1]])
    assert (tmp_path / "t.csv").read_bytes() == b"id,n\nSes01F_impro01_F000,1\n"


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path):
    results.write_bytes(tmp_path / "a", b"old")
    with pytest.raises(TypeError):
        results.write_bytes(tmp_path / "a", "no bytes")
    assert (tmp_path / "a").read_bytes() == b"old"


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
