"""Every reader on two thousand spoilt inputs: each gives a result or one clear error; no traceback, no hang, no stray file.

The mutations are drawn from one seed, so a failure repeats; hypothesis adds inputs that nobody thought of.
"""

import io
import json
import pickle
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import LITTLE, write_table, write_tone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxser import (
    audio,
    compare,
    corpora,
    cv,
    digests,
    extract_lld,
    glove,
    labels,
    models,
    predict,
    recogniser,
    report,
    results,
    store,
    wav2vec,
)
from jaxser.errors import CallError, WorkError
from jaxser.files import read_csv

CLEAR = (CallError, WorkError, audio.AudioError, OSError)
"""What every command turns into one line."""

PATIENCE = 120
"""Seconds after which an input counts as a hang."""

Reader = Callable[[Path], object]


class Hang(BaseException):
    """Nobody catches this one."""


class Payload:
    """A pickle that would leave a file behind if anybody ran it."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


WRITTEN: list[str] = []
"""Files opened for writing, and processes started, while `watched`."""
_watching = False


def _audit(event: str, arguments: tuple) -> None:
    if not _watching:
        return
    if event == "open" and isinstance(arguments[0], str | bytes) and isinstance(arguments[2], int) and arguments[2] & 3:
        WRITTEN.append(str(arguments[0]))
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        WRITTEN.append(event)


@pytest.fixture(scope="module", autouse=True)
def _hook():
    sys.addaudithook(_audit)  # there is no way to take one away: it sleeps where nothing is watched


@contextmanager
def watched() -> Iterator[list[str]]:
    """What is written or started inside."""
    global _watching
    WRITTEN.clear()
    _watching = True
    try:
        yield WRITTEN
    finally:
        _watching = False


def outcome(read: Reader, path: Path) -> str:
    """`result`, or `error` for one that says so clearly. Raises whatever else comes."""

    def too_long(number: int, frame: object) -> None:
        raise Hang(f"{path} takes longer than {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(PATIENCE)
    try:
        read(path)
    except CLEAR as error:
        if not 0 < len(str(error).strip()) < 4_000:
            raise AssertionError(f"an error that nobody would read: {error!r}") from error
        return "error"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return "result"


INTERESTING = [b"\x00", b"\xff" * 4, b"\x80\x00\x00\x00", b"\x7f\xff\xff\xff", b"\x00" * 8, b"\xff" * 8]
WORDS = [
    b"\x00", b"\r", b"\n", b'"', b",", b"\t", b"NaN", b"-1", b"1e999", b"1e-400", b"Infinity", b"null", b"true", b"[",
    b"{", b'""', b"\xef\xbb\xbf", b"\xff", "é\u2028ü".encode(), b"../../../../etc/passwd", b"9" * 400, b"a" * 5_000,
    b"\\u0000", b"%s%n",
]  # fmt: skip


def mutated(content: bytes, dice: random.Random) -> bytes:
    """The content after one to four small accidents."""
    found = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        place = dice.randrange(len(found) + 1)
        if dice.random() < 0.5:
            place = min(place, dice.randrange(200))  # headers matter most
        size = dice.choice((1, 2, 4, 16, 200))
        match dice.randrange(8):
            case 0:
                for i in range(place, min(place + size, len(found))):
                    found[i] ^= 1 << dice.randrange(8)
            case 1:
                del found[place:]
            case 2:
                del found[place : place + size]
            case 3:
                found[place:place] = dice.randbytes(size)
            case 4:
                found[place:place] = found[place : place + size] * dice.choice((1, 50))
            case 5:
                value = dice.choice(INTERESTING)
                found[place : place + len(value)] = value
            case 6:
                found[place:place] = dice.choice(WORDS)
            case 7:
                value = dice.choice(WORDS)
                found[place : place + len(value)] = value
    return bytes(found)


def of_audio(home: Path) -> list[tuple[Path, Reader]]:
    write_tone(home / "a.wav", 0.4)
    signal, rate = soundfile.read(home / "a.wav")
    soundfile.write(home / "a.flac", signal, rate)
    for name, options in {
        "float.wav": {"subtype": "FLOAT"}, "u8.wav": {"subtype": "PCM_U8"}, "ulaw.wav": {"subtype": "ULAW"}, "a.ogg": {},
        "a.mp3": {}, "a.opus": {"format": "OGG", "subtype": "OPUS"},
    }.items():  # fmt: skip
        soundfile.write(home / name, np.stack([signal, signal], 1), rate, **options)

    def read(path: Path) -> None:
        promised = audio.samples_promised(path)
        with suppress(audio.AudioError):
            audio.load_part(path, promised // 2, 1_600)
        frames = audio.load(path, 0.0)
        assert np.isfinite(frames).all()
        extract_lld._lld_of(("a", path), extract_lld.settings())

    return [(path, read) for path in sorted(home.iterdir())]


def of_manifests(home: Path) -> list[tuple[Path, Reader]]:
    write_tone(home / "a b.wav", 0.2)
    table = home / "corpus.csv"
    table.write_text(
        "path,label,speaker,group,text,id\n"
        + "".join(f'a b.wav,{label},s{i},g,"he said, ""so""",u{i}\n' for i, label in enumerate(corpora.PAPER_CLASSES * 3))
    )
    texts = home / "texts.csv"
    texts.write_text("path,text\na b.wav,hello\n")
    return [
        (table, lambda path: corpora.read("csv", path, "all")),
        (table, lambda path: corpora.read("csv", path, "paper")),
        (texts, lambda path: predict._texts_in(path, [home / "a b.wav"])),
    ]


def of_iemocap(home: Path) -> list[tuple[Path, Reader]]:
    turn, dialog = "Ses01F_impro01_F000", home / "Session1" / "dialog"
    for folder in ("EmoEvaluation", "transcriptions"):
        (dialog / folder).mkdir(parents=True)
    lines = [
        f"[6.2901 - 8.2357]\t{turn[:-1]}{i}\t{label}\t[2.5000, 2.5000, 2.5000]\nC-E1:\tNeutral;\t()\n"
        for i, label in enumerate(("neu", "hap", "sad", "ang", "xxx"))
    ]
    label_file, text_file = (dialog / folder / "Ses01F_impro01.txt" for folder in ("EmoEvaluation", "transcriptions"))
    label_file.write_text("% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n" + "\n".join(lines))
    text_file.write_text("".join(f"{turn[:-1]}{i} [006.2901-008.2357]: Excuse me: [LAUGHTER]\n" for i in range(5)))
    for i in range(5):
        write_tone(home / "Session1" / "sentences" / "wav" / "Ses01F_impro01" / f"{turn[:-1]}{i}.wav", 0.1)
    return [(path, lambda path: corpora.read("iemocap", home, "paper")) for path in (label_file, text_file)]


def of_glove(home: Path) -> list[tuple[Path, Reader]]:
    path = home / "glove.txt"
    path.write_text("".join(f"{word} {i}.5 -1 2e-3\n" for i, word in enumerate(("the", "a", "it's", "über"))))

    def read(path: Path) -> None:
        width = glove.width_of(path)
        for vector in glove.vectors(path, {"the", "über", "no"}).values():
            assert vector.shape == (width,)

    return [(path, read)]


def of_stores(home: Path) -> list[tuple[Path, Reader]]:
    settings = extract_lld.settings()
    opened = store.open_store(home, settings)
    entries = [store.Entry(f"{i}", np.full((3 + i, 34), i, np.float32), "s", 0.1) for i in range(4)]
    store.write_part(opened, [*entries, store.Entry("bad", None, reason="silent")])

    def read(path: Path) -> None:
        again = store.open_store(home, settings)
        frames = store.load_frames(again, list(again.rows))
        assert np.isfinite(np.asarray(frames.x)).all()

    memory = home / "digests.json"
    sound = write_tone(home / "a.wav", 0.1)
    digests.digests([sound], memory)
    return [(path, read) for path in sorted(opened.folder.iterdir())] + [(memory, lambda path: digests.digests([sound], path))]


def of_run_folders(home: Path) -> list[tuple[Path, Reader]]:
    run = finished_run(home)

    def read(path: Path) -> None:
        results.finished_summary(run, json.loads((run / "config.json.whole").read_text()))
        results.read_finished(run)
        report.table(run)

    def compared(path: Path) -> None:
        with redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape")):  # as every command has it
            compare.main(compare.Config(run, home / "other"))

    shutil.copytree(run, home / "other")
    shutil.copy(run / "config.json", run / "config.json.whole")
    names = ("config.json", "summary.json", "protocol.json", "scores.csv", "predictions.csv")
    return [(run / name, reader) for name in names for reader in (read, compared)]


def of_models(home: Path) -> list[tuple[Path, Reader]]:
    run = finished_run(home)
    wav2vec.save(home / "weights", LITTLE, wav2vec.random_params(LITTLE, 0), {})
    model = [p for p in sorted((run / "model").rglob("*")) if p.is_file() and p.suffix != ".md"]
    weights = [p for p in sorted((home / "weights").rglob("*")) if p.is_file()]
    signal = np.sin(np.arange(8_000) / 10)
    return [(p, lambda path: models.load(run / "model", cache=home / "cache").predict(signal, 16_000)) for p in model] + [
        (p, lambda path: wav2vec.load(home / "weights")) for p in weights
    ]


def of_labels(home: Path) -> list[tuple[Path, Reader]]:
    classes, found = ("high", "low"), []
    for form in ("csv", "jsonl"):
        path = home / f"labels.{form}"
        spans = [*((f"a,{i}\n.wav", 0.0, 1.5) for i in range(5)), ("b.wav", 0.0, None)]
        with labels.opened(path, form, classes, {"model": "a"}, spans) as (_, write):
            for i in range(5):
                write(labels.Row(f"a,{i}\n.wav", 0.0, 1.5, recogniser.Prediction("low", {"high": 0.25, "low": 0.75}, 0.5)))
            write(labels.Row("b.wav", 0.0, None, None, "silent"))

        def read(changed: Path, path: Path = path, form: str = form, spans: list = spans) -> None:
            with labels.opened(path, form, classes, {"model": "a"}, spans):
                pass

        found += [(path, read), (path.with_name(path.name + ".json"), read)]
    return found


def of_fairseq(home: Path) -> list[tuple[Path, Reader]]:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[convert]'")
    from test_convert import ARGS, TENSORS, convert_file

    for name, zipped in (("zip.pt", True), ("old.pt", False)):
        torch.save({**ARGS, "model": TENSORS}, home / name, _use_new_zipfile_serialization=zipped)
    evil = {**ARGS, "model": TENSORS, "extra_state": Payload(home / "RAN")}
    torch.save(evil, home / "evil.pt", pickle_module=pickle)
    (home / "bare.pt").write_bytes(pickle.dumps(evil["extra_state"]))

    def read(path: Path) -> None:
        shutil.rmtree(home / "converted", ignore_errors=True)
        convert_file(path, home / "converted")
        assert path.name not in ("evil.pt", "bare.pt") or not (home / "RAN").exists()

    return [(home / name, read) for name in ("zip.pt", "old.pt", "evil.pt", "bare.pt")]


_RUN: list[Path] = []


def finished_run(home: Path) -> Path:
    """A run folder with a model, trained once."""
    if not _RUN:
        table = write_table(home / "corpus")
        config = cv.Config(corpus="csv", root=table, features="lld", head="mean", updates=20, save=True)
        cv.main(cv.dataclasses.replace(config, cache=home / "cache", out=home / "trained"))
        _RUN.append(home / "trained")
    shutil.copytree(_RUN[0], home / "run")
    return home / "run"


KINDS = {
    of_audio: 640, of_manifests: 300, of_iemocap: 200, of_glove: 120, of_stores: 200, of_run_folders: 300, of_models: 120,
    of_labels: 120, of_fairseq: 100,
}  # fmt: skip
"""What is spoilt, and how many times."""


# Orbax reads all arrays at once: after the first failure has been reported, others may come back to an event loop that is gone.
@pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # pickletools, which Python itself keeps quiet
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__[3:])
def test_spoilt_inputs(kind: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "a home ü"
    home.mkdir()
    given = kind(home)
    dice, counts = random.Random(kind.__name__), Counter()
    beside = sorted(path.name for path in tmp_path.iterdir())
    for path, read in given:
        if path.name not in ("evil.pt", "bare.pt"):
            assert outcome(read, path) == "result", f"{path} is whole and not read"
    for number in range(KINDS[kind]):
        path, read = given[number % len(given)]
        whole = path.read_bytes()
        spoilt = mutated(whole, dice)
        path.write_bytes(spoilt)
        try:
            with watched() as written:
                counts[outcome(read, path)] += 1
        except BaseException as error:
            (tmp_path / "spoilt").write_bytes(spoilt)
            raise AssertionError(f"mutation {number} of {path}, kept in {tmp_path / 'spoilt'}: {error!r}") from error
        finally:
            path.write_bytes(whole)
        strange = [
            name for name in written if not Path(name).absolute().is_relative_to(tmp_path) and not name.startswith("/dev/")
        ]
        assert not strange, f"mutation {number} of {path} touched {strange}"
    assert sorted(path.name for path in tmp_path.iterdir()) == beside
    assert not list(tmp_path.rglob("RAN"))
    assert counts["error"]
    with capsys.disabled():
        print(
            f"\n{kind.__name__[3:]}: {counts.total()} spoilt, {counts['result']} results, {counts['error']} clear errors",
            end=" ",
        )


def test_two_thousand_are_spoilt():
    assert sum(KINDS.values()) >= 2_000


MAGIC = [b"", b"RIFF\x10\0\0\0WAVEfmt ", b"fLaC", b"OggS\0", b"ID3\3", b"\xff\xfb"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), magic=st.sampled_from(MAGIC), suffix=st.sampled_from(audio.SUFFIXES))
def test_any_bytes_as_audio(tmp_path: Path, content: bytes, magic: bytes, suffix: str):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(magic + content)
    outcome(lambda path: audio.load(path), path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(st.text(max_size=8), max_size=5), max_size=5))
def test_any_text_as_a_manifest(tmp_path: Path, rows: list[list[str]]):
    path = tmp_path / "corpus.csv"
    text = "path,label,speaker\n" + "\n".join(",".join(row) for row in rows)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    outcome(lambda path: corpora.read("csv", path, "all"), path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON)
def test_any_json_as_a_part_of_a_store(tmp_path: Path, value: object):
    opened = store.open_store(tmp_path, extract_lld.settings())
    note = opened.folder / "part-0123456789abcdef.json"
    note.with_suffix(".npy").write_bytes(b"")
    found = {"crc32": 0, "rows": value, "failed": {}}
    note.write_text(json.dumps(found if isinstance(value, dict) else value))
    outcome(lambda path: store.open_store(tmp_path, extract_lld.settings()), note)


def test_odd_paths_go_all_the_way(tmp_path: Path):
    table = write_table(tmp_path / "corpus")
    odd = [
        "a b.wav",
        "ü\u0301\u2028.wav",
        "new\nline.wav",
        "semi;colon,comma.wav",
        '"quoted".wav',
        "-dash.wav",
        "$(touch x).wav",
        "..wav",
        "%s.wav",
    ]
    lines = ["path,label,speaker"]
    for i, name in enumerate(odd * 2):
        folder = tmp_path / "corpus" / f"deep {i}"
        write_tone(folder / "a.wav", 0.3, 150 + 450 * (i % 2), i).rename(folder / name)
        cell = f"deep {i}/../deep {i}/{name}".replace('"', '""')
        lines.append(f'"{cell}",{["lo", "hi"][i % 2]},s{i % 6 // 2 + 3 * (i % 2)}')
    table.write_text("\n".join(lines) + "\n")
    config = cv.Config(corpus="csv", root=table, features="lld", head="mean", updates=20, folds=3, save=True)
    cv.main(cv.dataclasses.replace(config, cache=tmp_path / "cache", out=tmp_path / "run"))
    finished = results.read_finished(tmp_path / "run")
    assert len(finished.predictions) == len(odd) * 2
    files = tuple(str(path) for path in sorted((tmp_path / "corpus").glob("deep*/*")))
    predict.main(predict.Config(str(tmp_path / "run"), files, out=tmp_path / "labels.csv", cache=tmp_path / "cache"))
    assert [row["path"] for row in read_csv(tmp_path / "labels.csv")] == list(files)
    assert not (tmp_path / "x").exists()
