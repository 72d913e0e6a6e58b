import hashlib
import os
from pathlib import Path

import pytest
from conftest import full_disk

from jaxser import digests


def test_content_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, memory = tmp_path / "a.wav", tmp_path / "cache" / "digests.json"
    file.write_bytes(b"one")
    expected = {file: hashlib.sha256(b"one").hexdigest()}
    assert digests.digests([file, tmp_path / "missing"], memory) == expected

    monkeypatch.setattr(digests, "file_digest", lambda path: pytest.fail(f"{path} was read again"))
    assert digests.digests([file], memory) == expected
    file.unlink()
    assert digests.digests([file], memory) == expected  # gone, but known


def test_changed_content_is_read_again_even_with_its_old_time(tmp_path: Path):
    file, memory = tmp_path / "a.wav", tmp_path / "digests.json"
    file.write_bytes(b"one")
    digests.digests([file], memory)
    times = file.stat()
    file.write_bytes(b"two")  # the same length
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digests.digests([file], memory) == {file: hashlib.sha256(b"two").hexdigest()}


def test_damaged_memory_is_begun_anew(tmp_path: Path):
    file, memory = tmp_path / "a.wav", tmp_path / "digests.json"
    file.write_bytes(b"one")
    for damaged in ("{ not json", "[]", "[" * 100_000, f'{{"{file}": 3}}', f'{{"{file}": [[], null]}}'):
        memory.write_text(damaged)
        assert len(digests.digests([file], memory)) == 1
        assert len(digests.digests([file], memory)) == 1


def test_a_memory_that_cannot_be_written_costs_only_time(tmp_path: Path):
    file = tmp_path / "a.wav"
    file.write_bytes(b"one")
    with full_disk(0):
        assert len(digests.digests([file], tmp_path / "digests.json")) == 1
        assert digests.recalled(tmp_path / "weights.json", "w", lambda: {"sha256": "x"}) == {"sha256": "x"}
    assert list(tmp_path.iterdir()) == [file]
