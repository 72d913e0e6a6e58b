import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

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
    assert {path.name for path in tmp_path.iterdir()} == {"a.wav", ".digests.json.lock", ".weights.json.lock"}


def many(home: Path, count: int) -> list[Path]:
    files = [home / f"{number}.wav" for number in range(count)]
    for file in files:
        file.write_text(file.name)
    return files


def test_what_another_command_remembers_meanwhile_stays(tmp_path: Path):
    (one, other), memory = many(tmp_path, 2), tmp_path / "digests.json"

    def paths() -> Iterator[Path]:
        yield one
        digests.digests([other], memory)

    digests.digests(paths(), memory)
    for file in (one, other):
        file.unlink()
    assert set(digests.digests([one, other], memory)) == {one, other}


def test_commands_that_end_at_once_remember_what_each_has_read(tmp_path: Path):
    files, memory = many(tmp_path, 16), tmp_path / "digests.json"
    with ThreadPoolExecutor(len(files)) as commands:
        list(commands.map(lambda file: digests.digests([file], memory), files))
    for file in files:
        file.unlink()
    assert set(digests.digests(files, memory)) == set(files)


def test_a_lock_that_cannot_be_had_hinders_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (file,), memory = many(tmp_path, 1), tmp_path / "digests.json"
    (tmp_path / ".digests.json.lock").mkdir()
    found = digests.digests([file], memory)
    monkeypatch.setattr(digests, "file_digest", lambda path: pytest.fail(f"{path} was read again"))
    assert digests.digests([file], memory) == found


def test_files_are_read_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files, together, read = many(tmp_path, 2), Barrier(2), digests.file_digest
    monkeypatch.setattr(digests, "file_digest", lambda path: (together.wait(20), read(path))[1])
    found = digests.digests(files, tmp_path / "digests.json")
    assert found == {file: hashlib.sha256(file.name.encode()).hexdigest() for file in files}


def test_an_interruption_keeps_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files, memory, read = many(tmp_path, 3), tmp_path / "digests.json", digests.file_digest

    def interrupted(path: Path) -> str:
        if path == files[2]:
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(digests, "file_digest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        digests.digests(files, memory)
    monkeypatch.setattr(digests, "file_digest", lambda path: pytest.fail(f"{path} was read again"))
    assert set(digests.digests(files[:2], memory)) == set(files[:2])


def test_what_was_read_is_remembered_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files, memory, read = many(tmp_path, 2), tmp_path / "digests.json", digests.file_digest
    monkeypatch.setattr(digests, "REMEMBERED", 0.0, raising=False)
    until = time.monotonic() + 60

    def slow(path: Path) -> str:
        while path == files[1] and not memory.exists() and time.monotonic() < until:
            time.sleep(0.01)
        return read(path)

    monkeypatch.setattr(digests, "file_digest", slow)
    assert set(digests.digests(files, memory)) == set(files)
    assert time.monotonic() < until
    monkeypatch.setattr(digests, "file_digest", lambda path: pytest.fail(f"{path} was read again"))
    assert set(digests.digests(files, memory)) == set(files)


def test_a_name_that_no_file_can_have(tmp_path: Path):
    assert digests.digests([Path("a\0b.wav"), *many(tmp_path, 1)], tmp_path / "digests.json").keys() == {tmp_path / "0.wav"}
