"""Files that are there whole or not at all, and say their name where they cannot be."""

import os
from pathlib import Path

import pytest
from conftest import full_disk, unreadable

from jaxser import digests, files
from jaxser.errors import WorkError

ODD = ["a,b", 'say "no"', "two\nlines", "a\rb", "Ärger", "名前", " edges ", "bytes \udce4 of a name", "-1", ""]


def test_odd_names_come_back(tmp_path: Path):
    files.write_csv(tmp_path / "t.csv", ["id", "n"], [[name, i] for i, name in enumerate(ODD)])
    assert [row["id"] for row in files.read_csv(tmp_path / "t.csv")] == ODD
    assert [row["n"] for row in files.read_csv(tmp_path / "t.csv")] == [str(i) for i in range(len(ODD))]
    assert len({digests.text_digest(name) for name in ODD}) == len(ODD)
    files.write_json(tmp_path / "t.json", {"names": ODD})
    assert files.json_of(tmp_path / "t.json") == {"names": ODD}


def test_plain_names_stand_unquoted(tmp_path: Path):
    files.write_csv(tmp_path / "t.csv", ["id", "n"], [["Ses01F_impro01_F000", 1]])
    assert (tmp_path / "t.csv").read_bytes() == b"id,n\nSes01F_impro01_F000,1\n"


def test_what_is_no_content_spoils_nothing(tmp_path: Path):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    for write, content in ((files.write_json, {"new": object()}), (files.write_bytes, "no bytes")):
        with pytest.raises(TypeError):
            write(path, content)
    assert path.read_text() == '{\n "old": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_writers_of_one_number_do_not_meet(tmp_path: Path):
    # As in two containers that share a disk and each count their processes from 1.
    path = tmp_path / "a"
    with files.begun(path) as one:
        one.write(b"one")
        with files.begun(path) as two:
            two.write(b"two")
        assert path.read_bytes() == b"two"
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [b"old", None])
def test_a_full_disk_spoils_nothing_and_is_named(tmp_path: Path, old: bytes | None):
    path = tmp_path / "a"
    if old is not None:
        path.write_bytes(old)
    with full_disk(10_000), pytest.raises(OSError, match=r"File too large: .*/a'$"):
        files.write_bytes(path, bytes(20_000))
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if old is None else [old])


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Or a power cut may leave the name, and an empty file.
    path, synced, sync = tmp_path / "a", [], os.fsync

    def fsync(number: int) -> None:
        sync(number)
        synced.append((os.fstat(number).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_bytes(path, bytes(1_000))
    assert synced == [(1_000, False)]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here whose disk is sure to fail")
def test_json_that_a_disk_does_not_give_is_not_taken_for_none(tmp_path: Path):
    (tmp_path / "a.json").symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match=r"Input/output error: .*/a\.json'$"):
        files.json_of(tmp_path / "a.json")


def test_a_folder_that_is_not_there_is_named_with_the_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"gone/a'$"):
        files.write_bytes(tmp_path / "gone" / "a", b"")


def test_an_error_that_names_a_file_keeps_its_name(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="/another"), files.named(tmp_path / "a"):
        (tmp_path / "another").read_bytes()
    with full_disk(10), pytest.raises(OSError, match="/a"), files.named(tmp_path / "a"):
        (tmp_path / "another").write_bytes(bytes(20))


def names_below(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(files.below(folder))]


def test_below_is_what_rglob_finds_in_a_tree_without_links(tmp_path: Path):
    for name in ("b.wav", "a b/c.wav", "a/deep/.hidden/d", "a-b.wav", "a.wav/e", "Z/f"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    everything = (path for path in tmp_path.rglob("*") if path.is_file())
    assert sorted(files.below(tmp_path)) == sorted(path for path in everything if ".hidden" not in path.parts)
    assert list(files.below(tmp_path / "a" / "deep" / ".hidden")) == [tmp_path / "a" / "deep" / ".hidden" / "d"]  # asked for


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
def test_what_git_annex_keeps_is_found_under_its_names_alone(tmp_path: Path):
    kept = tmp_path / ".git" / "annex" / "objects" / "f8" / "MD5E-s9--0.wav" / "MD5E-s9--0.wav"
    kept.parent.mkdir(parents=True)
    kept.touch()
    (tmp_path / "speaker").mkdir()
    (tmp_path / "speaker" / "a.wav").symlink_to(kept)
    (tmp_path / "linked").symlink_to(kept.parents[2])  # a folder that somebody gave a name has one
    with unreadable(tmp_path / ".git"):  # as .Trashes of a disk
        assert names_below(tmp_path) == ["linked/f8/MD5E-s9--0.wav/MD5E-s9--0.wav", "speaker/a.wav"]


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
def test_linked_folders_are_entered_once_and_never_in_a_circle(tmp_path: Path):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for path in (home / "real" / "a", elsewhere / "deep" / "b", tmp_path / "beside"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (home / "again").symlink_to(home / "real")  # before it in the alphabet, and no other files
    (home / "out").symlink_to(elsewhere)
    (home / "out too").symlink_to(elsewhere / "deep")
    (home / "real" / "round").symlink_to(home)
    (home / "up").symlink_to(tmp_path)  # what lies beside is no part of it
    (elsewhere / "back").symlink_to(home / "real")
    (home / "gone").symlink_to(tmp_path / "nowhere")
    assert names_below(home) == ["gone", "out/deep/b", "real/a"]
    (tmp_path / "by another name").symlink_to(home)
    assert names_below(tmp_path / "by another name") == names_below(home)


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path: Path):
    (tmp_path / "a" / "locked").mkdir(parents=True)
    message = rf"^{tmp_path / 'a' / 'locked'}: Permission denied, and what lies in it would be missing: make it readable"
    with unreadable(tmp_path / "a" / "locked"):
        with pytest.raises(WorkError, match=message):
            list(files.below(tmp_path))
        with pytest.raises(WorkError, match=message):
            files.lying_in(tmp_path / "a" / "locked", "*.txt")
    assert files.lying_in(tmp_path / "a", "l*") == [tmp_path / "a" / "locked"]
    assert files.lying_in(tmp_path / "nowhere", "*") == []
