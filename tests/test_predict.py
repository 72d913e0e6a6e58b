"""The command that labels recordings: formats, windows, texts, going on, bad files, bad calls."""

import csv
import dataclasses
import errno
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
from conftest import unreadable, write_table, write_tone

from jaxser import audio, cv, labels, models, predict, recogniser, results
from jaxser.errors import CallError, WorkError


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a model that tells low tones from high ones."""
    home = tmp_path_factory.mktemp("predict")
    table = write_table(home / "corpus")
    cv.main(
        cv.Config(
            corpus="csv", root=table, features="lld", head="mean", updates=400, learning_rate=1e-2, cache=home / "cache",
            out=home / "run", save=True, max_seconds=1.0,
        )
    )  # fmt: skip
    return home


def config_of(home: Path, *files: Path | str, **changes) -> predict.Config:
    return predict.Config(model=str(home / "run"), files=tuple(map(str, files)), cache=home / "cache", jobs=1, **changes)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def long_recording(path: Path, *pitches: int, rate: int = 16_000) -> Path:
    """Half a second of each pitch."""
    parts = [soundfile.read(write_tone(path.with_name("part.wav"), 0.5, hertz, i, rate))[0] for i, hertz in enumerate(pitches)]
    soundfile.write(path, np.concatenate(parts), rate)
    path.with_name("part.wav").unlink()
    return path


def test_formats_say_the_same(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = [write_tone(tmp_path / "a b,ü.wav", 0.7, 160), write_tone(tmp_path / "high.flac", 0.7, 620)]
    predict.main(config_of(home, *files, format="csv"))
    found = rows_of(capsys.readouterr().out)
    assert [row["path"] for row in found] == [str(file) for file in files]
    assert [row["label"] for row in found] == ["low", "high"]
    assert list(found[0]) == ["path", "start", "end", "label", "p_high", "p_low", "agreement", "reason"]
    assert [(row["start"], row["end"]) for row in found] == [("0.000", "0.700")] * 2
    predict.main(config_of(home, *files, format="jsonl"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["path"], line["label"]) for line in lines] == [(row["path"], row["label"]) for row in found]
    assert lines[0]["p_low"] == float(found[0]["p_low"])
    predict.main(config_of(home, *files))
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 3
    assert table[1].endswith("a b,ü.wav")
    assert " low " in table[1]


def test_heads_that_the_flags_ask_for(home: Path):
    model = models.load(home / "run", cache=home / "cache")

    def temperatures(**flags) -> tuple[float, float]:
        found = predict.chosen(dataclasses.replace(model, temperature=3.0, temperature_of_mean=0.7), config_of(home, **flags))
        return found.temperature, found.temperature_of_mean if len(found.members.names) > 1 else 1.0

    assert temperatures() == (3.0, 0.7)
    assert temperatures(uncalibrated=True) == (1.0, 1.0)
    assert temperatures(fold=0, seed=0) == (3.0, 1.0)
    assert temperatures(fold=0, seed=0, uncalibrated=True) == (1.0, 1.0)


def test_every_format_of_audio(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_tone(tmp_path / "tone.wav", 0.9, 600, rate=44_100)
    signal, rate = soundfile.read(tmp_path / "tone.wav")
    (tmp_path / "in").mkdir()
    for name in ("stereo.wav", "stereo.mp3", "stereo.ogg", "stereo.flac"):
        soundfile.write(tmp_path / "in" / name, np.stack([signal, signal], 1), rate)
    predict.main(config_of(home, tmp_path / "in", format="csv"))
    found = rows_of(capsys.readouterr().out)
    assert [Path(row["path"]).name for row in found] == ["stereo.flac", "stereo.mp3", "stereo.ogg", "stereo.wav"]
    assert {row["label"] for row in found} == {"high"}


def test_windows_and_their_picture(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = long_recording(tmp_path / "long $x.wav", 150, 150, 600, 600, 600, rate=44_100)
    predict.main(config_of(home, file, format="csv", segments=0.5, pictures=tmp_path / "pictures"))
    found = rows_of(capsys.readouterr().out)
    assert [row["label"] for row in found] == ["low", "low", "high", "high", "high"]
    assert [(row["start"], row["end"]) for row in found][::4] == [("0.000", "0.500"), ("2.000", "2.500")]
    assert (tmp_path / "pictures" / "long_x.png").read_bytes()[:4] == b"\x89PNG"
    predict.main(config_of(home, file, format="csv", segments=0.6))
    last = rows_of(capsys.readouterr().out)[-1]
    assert (last["start"], last["end"]) == ("1.900", "2.500")  # as long as the others, so it reaches back


def test_one_window_is_the_recording_itself(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = write_tone(tmp_path / "short.wav", 0.7, 600)
    out = []
    for changes in ({}, {"segments": 0.9}, {"segments": 0.7}):
        predict.main(config_of(home, file, format="csv", **changes))
        out.append(capsys.readouterr().out)
    assert out[0] == out[1] == out[2]


def test_longer_ones_are_said(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    predict.main(config_of(home, write_tone(tmp_path / "a.wav", 1.5), format="csv"))
    printed = capsys.readouterr()
    assert "of 1 of 1 recordings the first 1 s were heard, as in training; --segments 1 labels all of them" in printed.err
    assert rows_of(printed.out)[0]["end"] == "1.000"


def test_headers_are_read_side_by_side_and_their_order_kept(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = [write_tone(tmp_path / f"{i}.wav", 0.3 + 0.1 * i) for i in range(4)]
    meeting, promised = threading.Barrier(2, timeout=60), audio.samples_promised

    def promised_to_two(path: Path) -> int:
        meeting.wait()
        return promised(path)

    monkeypatch.setattr(audio, "samples_promised", promised_to_two)
    config = dataclasses.replace(config_of(home, *files), jobs=2)
    work = predict.work_of(models.load(home / "run", cache=home / "cache"), config, files, [None] * 4)
    assert work.spans == [(str(file), 0.0, pytest.approx(0.3 + 0.1 * i)) for i, file in enumerate(files)]


def test_bad_files_have_their_row_and_reason(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good = write_tone(tmp_path / "good.wav", 0.5)
    (tmp_path / "broken.wav").write_text("no audio")
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    files = [tmp_path / "broken.wav", good, tmp_path / "silent.wav", tmp_path / "gone.wav"]
    predict.main(config_of(home, *files, format="csv"))
    printed = capsys.readouterr()
    found = rows_of(printed.out)
    assert [bool(row["label"]) for row in found] == [False, True, False, False]
    for row, reason in zip((found[0], found[2], found[3]), ("not readable", "silent", "no such file"), strict=True):
        assert reason in row["reason"]
    assert "3 of 4 could not be labelled" in printed.err
    with pytest.raises(WorkError, match="none of 1 could be labelled"):
        predict.main(config_of(home, tmp_path / "gone.wav", format="csv"))


def count_heard(patch: pytest.MonkeyPatch) -> list:
    """What is computed from now on."""
    heard, stream = [], recogniser.Recogniser.stream

    def counted(*arguments):
        for prediction in stream(*arguments):
            heard.append(prediction)
            yield prediction

    patch.setattr(recogniser.Recogniser, "stream", counted)
    return heard


def test_a_folder_goes_on_where_it_was_interrupted(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = [write_tone(tmp_path / "in" / f"{i:02}\nx.wav", 0.4, 100 + 20 * i, i) for i in range(24)]
    for form in ("csv", "jsonl"):
        whole, cut = (config_of(home, tmp_path / "in", out=tmp_path / f"{name}.{form}") for name in ("whole", "cut"))
        predict.main(whole)
        predict.main(cut)
        content = (tmp_path / f"cut.{form}").read_bytes()
        assert content == (tmp_path / f"whole.{form}").read_bytes()
        with monkeypatch.context() as patch:
            heard = count_heard(patch)
            for length in (len(content) // 3, len(content) - 3, content.index(b"\n") + 8, 3, len(content)):
                (tmp_path / f"cut.{form}").write_bytes(content[:length])
                predict.main(cut)
                assert (tmp_path / f"cut.{form}").read_bytes() == content
            assert 24 <= len(heard) < 5 * 24
        with pytest.raises(CallError, match="was made otherwise"):
            predict.main(dataclasses.replace(cut, uncalibrated=True))
        (tmp_path / f"cut.{form}.json").unlink()
        with pytest.raises(CallError, match="nothing says how it was made"):
            predict.main(cut)
    assert len(files) == 24


def test_labels_of_other_recordings_are_not_gone_on_with(home: Path, tmp_path: Path):
    for name in "bc":
        write_tone(tmp_path / "in" / f"{name}.wav", 0.4)
    config = config_of(home, tmp_path / "in", out=tmp_path / "labels.csv")
    predict.main(config)
    before = (tmp_path / "labels.csv").read_bytes()
    write_tone(tmp_path / "in" / "a.wav", 0.4)
    with pytest.raises(CallError, match=r"is of other recordings, .*b\.wav where there is .*a\.wav now"):
        predict.main(config)
    (tmp_path / "in" / "a.wav").unlink()
    (tmp_path / "in" / "c.wav").rename(tmp_path / "c.wav")
    with pytest.raises(CallError, match="is of more recordings than there are now"):
        predict.main(config)
    assert (tmp_path / "labels.csv").read_bytes() == before
    (tmp_path / "c.wav").rename(tmp_path / "in" / "c.wav")
    write_tone(tmp_path / "in" / "d.wav", 0.4)
    predict.main(config)
    assert (tmp_path / "labels.csv").read_bytes().startswith(before)
    with (tmp_path / "labels.csv").open("ab") as file:
        assert results.locked(file)
        with pytest.raises(WorkError, match="is being written by another process"):
            predict.main(config)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_recording_that_is_back_is_labelled(home: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch):
    files = [write_tone(tmp_path / f"{name}.wav", 0.8) for name in "abc"]
    never = tmp_path / "never.wav"
    cut, whole = (config_of(home, *files, never, out=tmp_path / f"{name}.{form}", segments=0.4) for name in ("cut", "whole"))
    predict.main(whole)  # two windows of each
    files[1].rename(tmp_path / "aside")
    predict.main(cut)
    without = cut.out.read_bytes()
    assert without.count(b"no such file") == 2
    with monkeypatch.context() as patch:
        heard = count_heard(patch)
        predict.main(cut)  # what is not there still has its row
        assert (heard, cut.out.read_bytes()) == ([], without)
        (tmp_path / "aside").rename(files[1])
        predict.main(cut)
        assert cut.out.read_bytes() == whole.out.read_bytes()
        assert len(heard) == 5  # but for those of a.wav


def test_a_recording_that_was_out_of_reach_is_labelled(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    good, bad, silent = (tmp_path / f"{name}.wav" for name in ("good", "bad", "silent"))
    for path in (good, bad):
        write_tone(path, 0.4)
    soundfile.write(silent, np.zeros(16_000), 16_000)
    cut, whole = (config_of(home, silent, good, bad, out=tmp_path / f"{name}.csv") for name in ("cut", "whole"))
    predict.main(whole)
    with monkeypatch.context() as patch:
        ends_early = audio._ends_early

        def refuse(path: Path) -> bool:
            if path == bad:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return ends_early(path)

        patch.setattr(audio, "_ends_early", refuse)
        predict.main(cut)
    assert rows_of(cut.out.read_text())[2]["reason"] == f"cannot be reached: {os.strerror(errno.EIO)}"
    heard = count_heard(monkeypatch)
    predict.main(cut)
    # To rounding: good.wav was read by the heads in a smaller batch.
    found, expected = (rows_of(config.out.read_text()) for config in (cut, whole))
    assert [(row["path"], row["label"], row["reason"]) for row in found] == [
        (row["path"], row["label"], row["reason"]) for row in expected
    ]
    assert float(found[2]["p_low"]) == pytest.approx(float(expected[2]["p_low"]), abs=1e-6)
    assert len(heard) == 1  # silent.wav stays what it is


def test_labels_of_a_recording_that_has_changed(home: Path, tmp_path: Path):
    config = config_of(home, tmp_path / "in", out=tmp_path / "labels.csv")
    for name in "ab":
        write_tone(tmp_path / "in" / f"{name}.wav", 0.4, 150)
    (tmp_path / "in" / "c.wav").write_text("no audio")
    predict.main(config)
    assert [row["label"] for row in rows_of(config.out.read_text())] == ["low", "low", ""]
    write_tone(tmp_path / "in" / "c.wav", 0.4, 600)  # that had no label, and is mended
    predict.main(config)
    before = config.out.read_bytes()
    assert [row["label"] for row in rows_of(config.out.read_text())] == ["low", "low", "high"]
    write_tone(tmp_path / "in" / "b.wav", 0.5, 600)
    with pytest.raises(
        CallError, match=r"is of another .*b\.wav than there is now \(size or time differ\): give another --out"
    ):
        predict.main(config)
    assert config.out.read_bytes() == before


def test_labels_are_not_lost_for_a_recording_that_is_mended(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bad, *good = (tmp_path / f"{name}.wav" for name in ("bad", "a", "b"))
    bad.write_text("no audio")
    for path in good:
        write_tone(path, 0.4)
    config = config_of(home, bad, *good, out=tmp_path / "labels.csv")
    predict.main(config)
    before = config.out.read_bytes()
    write_tone(bad, 0.4)
    for files, message in (((bad, good[0]), "is of more recordings"), ((bad, *good[::-1]), "is of other recordings")):
        with pytest.raises(CallError, match=message):
            predict.main(dataclasses.replace(config, files=tuple(map(str, files))))
        assert config.out.read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr(labels, "write_json", Mock(side_effect=OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            predict.main(config)
    predict.main(config)
    assert [row["label"] for row in rows_of(config.out.read_text())] == ["low"] * 3


def test_labels_whose_recordings_nobody_noted_are_gone_on_with(home: Path, tmp_path: Path):
    config = config_of(home, write_tone(tmp_path / "a.wav", 0.4), out=tmp_path / "labels.csv")
    predict.main(config)
    note = tmp_path / "labels.csv.json"
    note.write_text(json.dumps({name: value for name, value in json.loads(note.read_text()).items() if name != "recordings"}))
    before = config.out.read_bytes()
    predict.main(config)
    assert config.out.read_bytes() == before
    write_tone(tmp_path / "a.wav", 0.5)
    with pytest.raises(CallError, match=r"is of another .*a\.wav"):
        predict.main(config)


@pytest.mark.skipif(os.name == "nt", reason="longer names are allowed there")
def test_what_the_system_refuses_has_its_row(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    good, long = write_tone(tmp_path / "good.wav", 0.5), tmp_path / ("x" * 300 + ".wav")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{long}\n{good}\n"))
    for files in ((long, good), ("-",)):
        predict.main(config_of(home, *files, format="csv"))
        rows = rows_of(capsys.readouterr().out)
        assert [row["path"] for row in rows] == [str(long), str(good)]
        assert [row["reason"] for row in rows] == ["cannot be reached: File name too long", ""]


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
def test_texts_meet_files_however_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_tone(tmp_path / "audio" / "a.wav")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "audio")
    (tmp_path / "corpus" / "texts.csv").write_text("path,text\n../audio/a.wav,hello\nb\0.wav,never\n")
    monkeypatch.chdir(tmp_path)
    named = [Path("audio/a.wav"), Path("linked/a.wav"), tmp_path / "audio" / "a.wav", Path("audio/b.wav")]
    config = predict.Config("model", text=("corpus/texts.csv",))
    assert predict.texts_of(config, named) == ["hello", "hello", "hello", None]


def test_paths_from_standard_input(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    files = [write_tone(tmp_path / "a.wav"), write_tone(tmp_path / "in" / "b.wav")]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{files[0]}\n\n{files[1].parent}\n"))
    predict.main(config_of(home, "-", format="csv"))
    assert [row["path"] for row in rows_of(capsys.readouterr().out)] == list(map(str, files))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": ()}, "no recordings"),
        ({"fold": 0}, "--fold and --seed go together"),
        ({"fold": 7, "seed": 0}, "no head of --fold 7 --seed 0: folds are 0, 1, 2, seeds 0"),
        ({"fold": 0, "seed": 0, "final": True}, "--final is a head without a fold"),
        ({"final": True}, "has no head trained on all data"),
        ({"segments": 2.0}, "this model hears at most 1 s at once"),
        ({"segments": 0.01}, r"windows of 0\.2 s or more"),
        ({"segments": float("nan")}, "--segments nan"),
        ({"pictures": Path("p")}, "say --segments SECONDS"),
        ({"text": ("a",)}, "reads no words"),
        ({"text": ("a",), "segments": 1.0}, "nobody knows which words"),
        ({"out": Path("labels.txt")}, r"ends in \.csv or \.jsonl"),
        ({"out": Path("labels.csv"), "format": "jsonl"}, "contradict each other"),
        ({"model": "nowhere"}, "no such folder"),
        ({"weights": "w"}, r"^--weights w: .*run reads no wav2vec; leave it out"),
        ({"text_model": "t"}, r"^--text-model t: .*run reads no words; leave it out"),
    ],
)
def test_bad_calls_are_one_line(home: Path, tmp_path: Path, changes: dict, message: str):
    config = dataclasses.replace(config_of(home, write_tone(tmp_path / "a.wav", 1.2)), **changes)
    with pytest.raises(CallError, match=message):
        predict.main(config)


def test_an_empty_folder_is_named(home: Path, tmp_path: Path):
    with pytest.raises(CallError, match=r"no recordings \(.wav, "):
        predict.main(config_of(home, tmp_path))


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
def test_nothing_in_a_folder_is_passed_over_in_silence(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "in"
    write_tone(folder / "a.wav")
    write_tone(tmp_path / "other disk" / "b.wav")
    (folder / "linked").symlink_to(tmp_path / "other disk")
    (folder / "not fetched.wav").symlink_to(tmp_path / "nowhere.wav")
    predict.main(config_of(home, folder, format="csv"))
    printed = capsys.readouterr()
    found = {Path(row["path"]).relative_to(folder).as_posix(): row["reason"] for row in rows_of(printed.out)}
    assert found == {"a.wav": "", "linked/b.wav": "", "not fetched.wav": "no such file: the link leads nowhere"}
    with unreadable(folder / "linked"), pytest.raises(WorkError, match="linked: Permission denied, and what lies in it"):
        predict.found(str(folder))


def test_formats_that_are_not_read_are_said(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    write_tone(tmp_path / "one" / "a.wav")
    for name in ("one/b.m4a", "one/deep/c.WEBM", "one/._d.m4a", "one/notes.txt", "two/e.m4a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    write_tone(tmp_path / "two" / "f.wav")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{tmp_path / 'one'}\n{tmp_path / 'two'}\n"))
    predict.main(config_of(home, "-", format="csv"))
    printed = capsys.readouterr()
    passed_over = "3 files of other formats (.m4a, .webm) were passed over: convert them, e.g. ffmpeg -i x.m4a x.wav"
    assert printed.err.splitlines() == [passed_over]
    assert len(rows_of(printed.out)) == 2
    (tmp_path / "two" / "f.wav").unlink()
    message = (
        r"two: no recordings \(\.wav, .*\) there; 1 file of another format \(\.m4a\) was passed over: convert it, e\.g\. ffmpeg"
    )
    with pytest.raises(CallError, match=message):
        predict.main(config_of(home, tmp_path / "two"))


def test_texts_whose_commas_are_not_quoted(tmp_path: Path):
    (tmp_path / "texts.csv").write_text("path,text\na.wav,Yes\nb.wav,Yes, we can\n")
    with pytest.raises(CallError, match=r"^--text .*texts\.csv, line 3: more cells than the header has columns \(3 and 2\)"):
        predict.texts_of(predict.Config("model", text=(str(tmp_path / "texts.csv"),)), [])
    (tmp_path / "texts.csv").write_text("path;text\na.wav;Yes\n")
    with pytest.raises(CallError, match=r"^--text .*texts\.csv: no column path, text in its header 'path;text'"):
        predict.texts_of(predict.Config("model", text=(str(tmp_path / "texts.csv"),)), [])


@pytest.mark.parametrize("odd", ["a,b", 'say "no"', "two\nlines", "a\rb"])
def test_classes_of_any_name_stand_in_the_header(tmp_path: Path, odd: str):
    classes = (odd, "c")
    row = labels.Row("x.wav", 0.0, 1.0, recogniser.Prediction(odd, {odd: 0.75, "c": 0.25}, 1.0))
    text = labels.header("csv", classes) + labels.as_csv(row, classes)
    (found,) = csv.DictReader(io.StringIO(text, newline=""))
    assert (found["label"], found[f"p_{odd}"], found["p_c"]) == (odd, "0.75000000", "0.25000000")
    out, spans = tmp_path / "labels.csv", [("x.wav", 0.0, 1.0)]
    for there in ([], [row]):
        with labels.opened(out, "csv", classes, {}, spans) as (rows, write):
            assert rows == there
            if not rows:
                write(row)


def test_the_command_itself(home: Path, tmp_path: Path):
    file = write_tone(tmp_path / "-dash.wav", 0.6, 600)

    def call(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jaxser.predict", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False, **options)

    done = call(str(home / "run"), str(file), "--format", "csv", "--uncalibrated", "--fold", "1", "--seed", "0")
    assert done.returncode == 0, done.stderr
    assert rows_of(done.stdout)[0]["label"] == "high"
    wrong = call(str(home / "corpus"), str(file))
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert len(wrong.stderr.splitlines()) == 1
    assert wrong.stderr.startswith("jaxser.predict: ")
    shell = f"{sys.executable} -m jaxser.predict {home / 'run'} - --format csv | head -n 1"
    piped = subprocess.run(
        ["bash", "-c", shell], input=f"{file}\n" * 200, capture_output=True, text=True, timeout=120, check=False, env=os.environ
    )
    assert piped.stdout.startswith("path,start,end")
    assert "Traceback" not in piped.stderr
