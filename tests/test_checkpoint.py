import json
from pathlib import Path

import numpy as np
import pytest

from jaxser import checkpoint
from jaxser.errors import CallError, WorkError

PARAMS = {"layer": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.zeros(3, np.float16)}, "top": np.ones(1)}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "new" / "weights", "a thing", PARAMS, {"config": {"n": 3}})
    return tmp_path / "new" / "weights"


def test_there_and_back(saved: Path):
    params, about = checkpoint.load(saved, "a thing")
    assert about["config"] == {"n": 3}
    assert about["digest"] == checkpoint.tree_digest(params) == checkpoint.tree_digest(PARAMS)
    for (name, one), (other, two) in zip(checkpoint.named_leaves(PARAMS), checkpoint.named_leaves(params), strict=True):
        assert name == other
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    assert [path.name for path in saved.parent.iterdir()] == ["weights"]  # nothing temporary stays


def test_the_digest_sees_names_values_types_and_shapes():
    one = checkpoint.tree_digest({"a": np.zeros(4, np.float32)})
    others = [
        {"b": np.zeros(4, np.float32)},
        {"a": np.array([0, 0, 0, 1], np.float32)},
        {"a": np.zeros(2, np.float64)},
        {"a": np.zeros((2, 2), np.float32)},
    ]
    assert one not in {checkpoint.tree_digest(tree) for tree in others}


def test_nothing_is_written_over(saved: Path, tmp_path: Path):
    with pytest.raises(CallError, match="weights exists already"):
        checkpoint.save(saved, "a thing", PARAMS, {})
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CallError, match="file exists already"):
        checkpoint.save(tmp_path / "file", "a thing", PARAMS, {})


def test_what_is_no_checkpoint(saved: Path, tmp_path: Path):
    with pytest.raises(CallError, match="nowhere: no such folder"):
        checkpoint.load(tmp_path / "nowhere", "a thing")
    with pytest.raises(CallError, match="is no checkpoint of jaxser"):
        checkpoint.load(tmp_path, "a thing")
    with pytest.raises(CallError, match="holds a thing, not another"):
        checkpoint.load(saved, "another")


# Orbax reads all arrays at once: after the first failure has been reported, others may come back to an event loop that is gone.
@pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("harm", ["about", "format", "arrays", "digest"])
def test_damage_is_seen(saved: Path, harm: str):
    note = saved / "about" / "metadata"
    kept = json.loads(note.read_text())
    if harm == "about":
        note.write_text('{"kind": ')
    elif harm == "format":
        note.write_text(json.dumps(kept | {"format": "jaxser-9"}))
    elif harm == "digest":
        note.write_text(json.dumps(kept | {"digest": "0" * 64}))
    else:
        for path in (saved / "params").rglob("*"):
            if path.is_file() and "/d/" in str(path):
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises((CallError, WorkError), match=r"not a whole one|another version|is damaged"):
        checkpoint.load(saved, "a thing")


def test_a_folder_without_its_description_is_not_read(saved: Path):
    (saved / "about" / "metadata").unlink()
    with pytest.raises(CallError, match="not a whole one"):
        checkpoint.load(saved, "a thing")
