import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tensorstore

from jaxser import checkpoint
from jaxser.errors import CallError, WorkError

PARAMS = {"layer": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.zeros(3, np.float16)}, "top": np.ones(1)}


EIO = Path("/proc/self/mem")
"""It can be opened, and nothing can be read from its beginning: Input/output error, as from a disk that fails."""


@contextmanager
def failing(path: Path, to: Path = EIO) -> Iterator[None]:
    """While this lasts a file or folder cannot be read; then it is there again as it was."""
    if not EIO.exists():
        pytest.skip(f"no {EIO} on this system")
    kept = path.rename(path.with_name("kept"))
    path.symlink_to(to)
    yield
    path.unlink()
    kept.rename(path)


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


@pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("what", "loops", "reason"),
    [
        ("weights/about/metadata", False, "Input/output error"),
        # Tensorstore would not read a file without a length: here a link leads to itself.
        ("weights/params/d/*", True, "Too many levels of symbolic links"),
        ("weights", True, "Too many levels of symbolic links"),
    ],
)
def test_a_disk_that_fails_is_no_damage(saved: Path, what: str, loops: bool, reason: str):
    path = next(saved.parent.glob(what))
    with (
        failing(path, path if loops else EIO),
        pytest.raises(checkpoint.DiskError, match=f"^{saved} cannot be read now: {reason}: run again$"),
    ):
        checkpoint.load(saved, "a thing")
    assert checkpoint.tree_digest(checkpoint.load(saved, "a thing")[0]) == checkpoint.tree_digest(PARAMS)


def test_a_remote_store_that_cannot_be_reached_is_no_damage():
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("localhost", 0))
        url = f"http://localhost:{nobody_listens.getsockname()[1]}"
        tries = {"http_request_retries": {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}}
        with pytest.raises(ValueError, match="Could not connect") as raised:
            tensorstore.KvStore.open({"driver": "http", "base_url": url, "context": tries}).result().read("params").result()
    with pytest.raises(checkpoint.DiskError, match=r"^gs://a/b cannot be read now: .*Could not connect to server: run again$"):
        checkpoint._demand_readable("gs://a/b", raised.value)


def test_a_folder_without_its_description_is_not_read(saved: Path):
    (saved / "about" / "metadata").unlink()
    with pytest.raises(CallError, match="not a whole one"):
        checkpoint.load(saved, "a thing")
