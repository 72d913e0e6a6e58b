import errno
import itertools
import os
from pathlib import Path

import pytest
from conftest import unreadable, write_tone

from jaxser import audio
from jaxser.errors import CallError, WorkError
from jaxser.recordings import Recording, counted, find, hold_out, hours

RATE = audio.SAMPLE_RATE


def test_a_folder_is_searched_whole(folder: Path):
    found = find([folder], shortest=RATE // 2)
    assert [r.path.name for r in found.recordings] == ["a.wav", "b.flac", "c.ogg", "silent.wav"]
    assert [r.samples for r in found.recordings] == [2 * RATE, RATE, 3 * RATE, RATE]
    reasons = {Path(path).name: reason for path, reason in found.left_out}
    assert reasons == {
        "broken.wav": "not readable as audio",
        "short.wav": "0.10 s, shorter than the 0.50 s that training needs",
    }
    assert hours(found.recordings) == pytest.approx(7 / 3600)
    assert counted(found.left_out) == "1 not readable as audio; 1 shorter than the 0.50 s that training needs"


def test_a_csv_names_speakers_and_files_count_once(folder: Path, tmp_path: Path):
    table = folder / "index.csv"
    table.write_text("speaker,path,more\nsam,a.wav,x\n,deep/b.flac,y\nsam,deep/c.ogg,z\n")
    found = find([table, folder], shortest=8_000)
    assert {r.path.name: r.speaker for r in found.recordings} == {
        "a.wav": "0:sam",
        "b.flac": None,
        "c.ogg": "0:sam",
        "silent.wav": None,
    }
    other = tmp_path / "moved"
    folder.rename(other)
    again = find([other / "index.csv", other], shortest=8_000)
    assert [r.path.name for r in again.recordings] == [r.path.name for r in found.recordings]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere", None, "nowhere: no such folder or CSV file"),
        ("a.txt", "path\n", "neither a folder nor a CSV"),
        ("a.csv", "file,speaker\nx.wav,s\n", "no column path in its header 'file,speaker'"),
        ("b.csv", "path\n", "no recordings"),
        ("c.csv", b"path\n\xff\xfe.wav\n", "not a CSV in UTF-8"),
    ],
)
def test_sources_that_are_none(tmp_path: Path, name: str, content: str | bytes | None, message: str):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CallError, match=message):
        find([path], 8_000)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CallError, match="no recordings"):
        find([tmp_path / "empty"], 8_000)


def test_whole_speakers_are_held_out():
    recordings = [Recording(Path(f"{i}.wav"), 16_000, f"s{i % 10}" if i < 80 else None) for i in range(100)]
    train, held, names = hold_out(recordings, 0.2, 0)
    assert {r.speaker for r in train} & {r.speaker for r in held} == set()
    assert None not in {r.speaker for r in held}  # a file without a name might be a voice that is trained on
    assert names == "3 speakers"  # 24 of 100: the first number of whole speakers that reaches 20
    assert len(held) == 24
    assert sorted(train + held, key=str) == sorted(recordings, key=str)
    assert hold_out(recordings, 0.2, 1)[1] != held
    assert hold_out(recordings, 0.0, 0)[1] == ()


def test_holding_out_goes_through_the_recordings_a_few_times_only():
    looked = itertools.count()

    class Counting(Recording):
        def __getattribute__(self, name: str):
            if name == "samples":
                next(looked)
            return super().__getattribute__(name)

    recordings = [Counting(Path(f"{i}.wav"), 16_000 + i) for i in range(2_000)]
    _, held, _ = hold_out(recordings, 0.5, 0)
    assert len(held) > 900
    assert next(looked) < 10 * len(recordings)  # and not of the order of their square


def test_files_are_held_out_where_nobody_is_named():
    recordings = [Recording(Path(f"{i}.wav"), 16_000) for i in range(10)]
    train, held, names = hold_out(recordings, 0.25, 0)
    assert (len(train), len(held), names) == (7, 3, "3 files")
    with pytest.raises(CallError, match=r"--held-out 0.99 takes every file"):
        hold_out(recordings, 0.99, 0)


def test_fewer_are_held_out_where_the_known_speakers_say_little():
    recordings = [Recording(Path(f"{i}.wav"), 16_000, "s" if i == 5 else None) for i in range(100)]
    train, held, names = hold_out(recordings, 0.04, 0)
    assert (len(train), [r.path.name for r in held], names) == (99, ["5.wav"], "1 speaker")


def test_one_file_has_one_name(folder: Path):
    table = folder / "deep" / "index.csv"
    table.write_text("path,speaker\n../a.wav,sam\n./b.flac,kim\n")
    for sources in ([table, folder], [folder, table]):
        found = find(sources, 8_000)
        assert sorted(r.path.name for r in found.recordings) == ["a.wav", "b.flac", "c.ogg", "silent.wav"]
        assert {r.path.name for r in found.recordings if r.speaker} == {"a.wav", "b.flac"}


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
def test_a_file_counts_once_however_it_is_reached(folder: Path, tmp_path: Path):
    (tmp_path / "linked").symlink_to(folder / "deep")
    (folder / "z.wav").symlink_to(folder / "a.wav")
    table = tmp_path / "index.csv"
    table.write_text("path,speaker\nlinked/../a.wav,sam\nlinked/b.flac,kim\n")  # that is speech/a.wav, not one beside the CSV
    for sources in ([table, folder], [folder, table]):
        found = find(sources, 8_000)
        assert sorted(r.path.name for r in found.recordings) == ["a.wav", "b.flac", "c.ogg", "silent.wav"]
        assert {r.path.name for r in found.recordings if r.speaker} == {"a.wav", "b.flac"}
    assert tmp_path / "linked" / "b.flac" in [r.path for r in find([table], 8_000).recordings]  # named as it was given


@pytest.mark.skipif(os.name == "nt", reason="longer names are allowed there")
def test_what_the_system_refuses_is_left_out(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    long = "x" * 300 + ".wav"
    (folder / "index.csv").write_text(f"path\na.wav\n{long}\n")
    found = find([folder / "index.csv"], 8_000)
    assert found.left_out == ((str(folder / long), "cannot be reached: File name too long"),)
    assert counted(found.left_out) == "1 cannot be reached"
    with pytest.raises(CallError, match="x: cannot be reached: File name too long"):
        find([tmp_path / ("x" * 300)], 8_000)
    opened = Path.open

    def refused(path: Path, *how) -> object:
        if path.name == "a.wav":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *how)

    monkeypatch.setattr(Path, "open", refused)
    assert dict(find([folder], 8_000).left_out)[str(folder / "a.wav")] == "cannot be reached: Permission denied"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here whose disk is sure to fail")
def test_what_a_disk_does_not_give_just_now_is_not_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "z.wav").symlink_to("/proc/self/mem")
    with pytest.raises(WorkError, match=r"/z\.wav cannot be read now: Input/output error: run again$"):
        find([folder], 8_000)
    (folder / "z.wav").unlink()
    is_file, opened = Path.is_file, Path.open

    def stale(path: Path, *how) -> object:
        if path.name == "broken.wav":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return (opened if how else is_file)(path, *how)

    monkeypatch.setattr(Path, "is_file", stale)
    monkeypatch.setattr(Path, "open", stale)
    with pytest.raises(WorkError, match=rf"/broken\.wav cannot be read now: {os.strerror(errno.ESTALE)}: run again$"):
        find([folder], 8_000)


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
def test_nothing_in_a_folder_is_passed_over_in_silence(folder: Path, tmp_path: Path):
    write_tone(tmp_path / "other disk" / "d.wav", 1.0, seed=4)
    (folder / "linked").symlink_to(tmp_path / "other disk")
    (folder / "gone.wav").symlink_to(tmp_path / "not fetched.wav")
    found = find([folder], 8_000)
    assert [r.path.name for r in found.recordings] == ["a.wav", "b.flac", "c.ogg", "d.wav", "silent.wav"]
    assert dict(found.left_out)[str(folder / "gone.wav")] == "no such file: the link leads nowhere"
    assert "1 no such file" in counted(found.left_out)
    with unreadable(folder / "deep"), pytest.raises(WorkError, match=f"^{folder / 'deep'}: Permission denied"):
        find([folder], 8_000)


def test_a_comma_that_would_shift_speakers(folder: Path):
    table = folder / "index.csv"
    table.write_text("path,text,speaker\na.wav,Yes,sam\ndeep/b.flac,Yes, we can,kim\n")
    with pytest.raises(CallError, match=r"^--audio .*index\.csv, line 3: more cells than the header has columns \(4 and 3\)"):
        find([table], 8_000)


def test_one_speaker_written_in_two_ways(folder: Path):
    table = folder / "index.csv"
    table.write_text("path,speaker\na.wav,J\u00fcrgen\ndeep/b.flac,Ju\u0308rgen\n", encoding="utf-8")
    assert len({r.speaker for r in find([table], 8_000).recordings}) == 1


def test_nothing_that_can_be_used(folder: Path):
    table = folder / "index.csv"
    table.write_text("path\nmistyped.wav\nx.raw\n")
    (folder / "x.raw").write_bytes(bytes(100_000))
    with pytest.raises(CallError, match=r"none of 2 recordings can be used; the first one, .*mistyped.wav: no such file"):
        find([table], 8_000)


def test_a_row_that_is_longer_than_its_header(tmp_path: Path):
    (tmp_path / "t.csv").write_text("file\na.wav,s1\n")
    with pytest.raises(CallError, match="no column path in its header 'file'"):
        find([tmp_path / "t.csv"], 8_000)
