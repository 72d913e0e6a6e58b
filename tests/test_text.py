"""Heads that read words, from a corpus with transcripts to the run folder."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_tone
from test_bert import narrow

from jaxser import bert, corpora, cv, extract, extract_text
from jaxser.errors import CallError, WorkError
from jaxser.files import read_csv

SENTENCES = {
    "glad": ("what a lovely day", "this is great", "great news today"),
    "sad": ("all is lost", "this hurts", "lost again today"),
}
WORDS = sorted({word for sentences in SENTENCES.values() for sentence in sentences for word in sentence.split()})


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """Six speakers who say every sentence once, with a word of their own, in a voice that tells nothing."""
    lines = ["path,label,speaker,text"]
    for speaker in range(6):
        for label, sentences in SENTENCES.items():
            for i, sentence in enumerate(sentences):
                name = f"audio/s{speaker}-{label}-{i}.wav"
                write_tone(tmp_path / name, 0.4 + 0.1 * i, 200, seed=100 * speaker + i + 10 * (label == "sad"))
                lines.append(f"{name},{label},s{speaker},{sentence} friend{speaker}{speaker}{speaker}{speaker}")
    path = tmp_path / "corpus.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    path = tmp_path / "vectors.txt"
    numbers = np.random.default_rng(0).normal(size=(len(WORDS), 8))
    path.write_text("".join(f"{word} {' '.join(map(str, row))}\n" for word, row in zip(WORDS, numbers, strict=True)))
    return path


def config(spoken: Path, vectors: Path, **changes) -> cv.Config:
    home = spoken.parent
    flags = {"corpus": "csv", "root": spoken, "out": home / "run", "cache": home / "cache", "jobs": 1}
    flags |= {"text": "glove", "text_model": str(vectors), "head": "text", "folds": 3, "updates": 60, "learning_rate": 3e-3}
    return cv.Config(**(flags | changes))


def read(out: Path, name: str) -> dict:
    return json.loads((out / name).read_text())


def edited(spoken: Path, texts: dict[int, str]) -> Path:
    """The table with other texts in some of its lines."""
    lines = spoken.read_text().splitlines()
    for row, text in texts.items():
        lines[row] = ",".join([*lines[row].split(",")[:3], text])
    spoken.write_text("\n".join(lines) + "\n")
    return spoken


def test_words_alone_need_no_audio(spoken: Path, vectors: Path, tmp_path: Path):
    for path in (tmp_path / "audio").iterdir():
        path.unlink()
    cv.main(config(spoken, vectors))
    summary, card = read(tmp_path / "run", "summary.json"), read(tmp_path / "run", "protocol.json")
    assert summary["ua_mean"] > 0.9
    assert "|text:glove-" in summary["signature"]
    assert "features:" not in summary["signature"]
    assert card["settings"].keys() == {"text"}
    vectors.unlink()  # the store is enough
    cv.main(config(spoken, vectors, updates=2, out=tmp_path / "again"))
    assert read(tmp_path / "again", "summary.json")["utterances"] == 36


def test_sound_and_words_together(spoken: Path, vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    call = config(spoken, vectors, head="aligned", features="lld", updates=20, show=("audio/s0-glad-0", "audio/s3-sad-1"))
    cv.main(call)
    assert read(tmp_path / "run", "protocol.json")["settings"].keys() == {"audio", "text"}
    with (tmp_path / "run" / "alignment.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows} == set(call.show)
    mine = [row for row in rows if row["id"] == "audio/s0-glad-0"]
    assert list(dict.fromkeys(row["word"] for row in mine)) == ["what", "a", "lovely", "day", "friend0000"]
    for number in range(1, 6):
        assert sum(float(row["weight"]) for row in mine if row["word_number"] == str(number)) == pytest.approx(1, abs=1e-5)
    assert float(mine[-1]["end"]) == pytest.approx(0.4, abs=1e-3)
    assert "What the words listened to" in (tmp_path / "run" / "report.html").read_text()
    printed = capsys.readouterr().out
    cv.main(call)  # a finished run is printed again
    assert capsys.readouterr().out == printed


def test_sound_alone_with_a_recurrent_head(spoken: Path, vectors: Path, tmp_path: Path):
    cv.main(config(spoken, vectors, head="bilstm", features="lld", text="none", text_model=None, updates=5))
    card = read(tmp_path / "run", "protocol.json")
    assert card["settings"].keys() == {"audio"}
    assert card["repeated_text"] == []


def test_runs_do_not_depend_on_their_company(spoken: Path, vectors: Path, tmp_path: Path):
    for seeds in (2, 1):
        out = tmp_path / str(seeds)
        cv.main(config(spoken, vectors, updates=3, seeds=seeds, out=out))
    of_both = [row for row in read_csv(tmp_path / "2" / "predictions.csv") if row["seed"] == "0"]
    assert of_both == read_csv(tmp_path / "1" / "predictions.csv")


def test_utterances_without_text(spoken: Path, vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    call = config(edited(spoken, {1: "", 2: "[LAUGHTER]", 3: "   "}), vectors, updates=2)
    cv.main(call)
    assert read(tmp_path / "run", "summary.json")["left_out"] == 3
    reasons = dict(read(tmp_path / "run", "protocol.json")["left_out"])
    assert reasons["audio/s0-glad-0"] == reasons["audio/s0-glad-2"] == "no text"
    assert reasons["audio/s0-glad-1"].startswith("nothing but tags in its text, '[LAUGHTER]' (--tags keep")
    assert "left out: audio/s0-glad-0: no text" in capsys.readouterr().err
    with pytest.raises(WorkError, match=r"s0-glad-0.wav: no text .*--strict"):
        cv.main(replace(call, strict=True, out=tmp_path / "other"))
    cv.main(replace(call, tags="keep", out=tmp_path / "kept"))
    assert read(tmp_path / "kept", "summary.json")["left_out"] == 2


def test_a_corpus_without_any_text(table: Path, vectors: Path, tmp_path: Path):
    with pytest.raises(WorkError, match=r"none of 48 utterances can be used; the first one, audio/s0-low-0: no text"):
        cv.main(config(table, vectors, folds=None))
    assert not (tmp_path / "run").exists()


def test_repeated_text_is_counted_and_can_be_left_out(spoken: Path, vectors: Path, tmp_path: Path, capsys):
    call = config(edited(spoken, {1: "what a lovely day", 7: "What a lovely day!"}), vectors, updates=2)  # by two speakers
    cv.main(call)
    found = read(tmp_path / "run", "protocol.json")["repeated_text"]
    assert sorted(fold["repeated"] for fold in found) == [0, 1, 1]
    assert "also stand in training word for word" in capsys.readouterr().out
    cv.main(replace(call, exclude_repeated_text=True, out=tmp_path / "strictly"))
    card = read(tmp_path / "strictly", "protocol.json")
    assert all(fold["repeated"] == 0 for fold in card["repeated_text"])
    assert sorted(sum(fold["train"].values()) for fold in card["folds"]) == [23, 23, 24]
    assert len({read(tmp_path / name, "summary.json")["signature"] for name in ("run", "strictly")}) == 2
    same = {row: SENTENCES["glad"][0] for row in range(1, 37) if (row - 1) % 6 < 3}
    with pytest.raises(WorkError, match=r"no example of 'glad' to train on: leave out --exclude-repeated-text"):
        cv.main(replace(call, root=edited(spoken, same), exclude_repeated_text=True, out=tmp_path / "nothing"))


def test_a_store_of_another_corpus_is_refused(spoken: Path, vectors: Path, tmp_path: Path):
    flags = config(spoken, vectors)
    corpus = corpora.read("csv", spoken, "all")
    half = replace(corpus, utterances=corpus.utterances[::2])
    _, features = extract.extract(half, extract.text_extractor(flags), flags.cache)
    assert len(features.frames(half.utterances).x) == 18
    with pytest.raises(
        WorkError, match=r"glove vectors.txt was computed for another corpus.*18 of 36 utterances, audio/s0-glad-1"
    ):
        features.frames(corpus.utterances)


def test_a_text_is_stored_once_and_by_what_the_model_reads(spoken: Path, vectors: Path):
    flags = config(edited(spoken, {1: "[X] all  is lost", 2: "all is lost"}), vectors)
    corpus = corpora.read("csv", spoken, "all")
    folders = []
    for tags in ("drop", "keep"):
        _, features = extract.extract(corpus, extract.text_extractor(replace(flags, tags=tags)), flags.cache)
        folders.append(features.store.folder)
        assert (features.contents["audio/s0-glad-0"] == features.contents["audio/s0-glad-1"]) == (tags == "drop")
    assert folders[0] != folders[1]


WITHOUT = {"text": "none", "text_model": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (WITHOUT, "--head text reads words: say --text bert"),
        ({"head": "mlp"}, "--text glove changes nothing for --head mlp, which reads no text: text, aligned do"),
        ({"features": "lld"}, "--features lld changes nothing for --head text, which reads no audio"),
        ({"layer": "z"}, "--layer z changes nothing for --head text, which reads no audio"),
        ({"max_seconds": 3.0}, "--max-seconds 3.0 changes nothing for --head text"),
        ({"text": "none", "head": "mlp"}, "--text-model .* goes with --text"),
        (WITHOUT | {"head": "mlp", "tags": "keep"}, "--tags keep goes with --text"),
        ({"text_model": None}, "--text glove needs --text-model"),
        ({"average_frames": 2}, "not for --head text"),
        ({"show": ("x",)}, "--show draws alignments, and --head text has none"),
        (WITHOUT | {"head": "mlp", "exclude_repeated_text": True}, "for heads that read words"),
        ({"head": "aligned", "features": "lld", "show": ("nobody",)}, "--show nobody: no utterance of that id"),
    ],
)
def test_contradictions(spoken: Path, vectors: Path, tmp_path: Path, changes: dict, message: str):
    with pytest.raises(CallError, match=message):
        cv.main(config(spoken, vectors, **changes))
    assert not (tmp_path / "run").exists()


def test_the_command_extracts_both(spoken: Path, vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = vars(config(spoken, vectors))
    kept = {name: given[name] for name in ("corpus", "root", "text", "text_model", "cache", "jobs")}
    extract.main(extract.Config(features="lld", **kept))
    printed = capsys.readouterr().out
    assert "csv · lld + glove vectors.txt · 36 utterances, 0 left out" in printed
    assert "h of sound in" in printed
    assert "36 different texts in" in printed


def test_words_cut_short_and_gone_on_with_make_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read_in = bert.load

    def load(model: bert.Model) -> bert.Encoder:
        # To how many pieces a text is padded shows in every number, as on some machine in the last digits of some.
        encoder = read_in(model)
        return replace(encoder, hidden=lambda params, ids, mask: encoder.hidden(params, ids, mask) + ids.shape[1])

    monkeypatch.setattr(bert, "load", load)
    monkeypatch.setattr(bert, "PIECES", dict.fromkeys(bert.PIECES, 256))
    monkeypatch.setattr(extract_text, "PART", 5)
    texts = [" ".join(np.random.default_rng(i).choice(WORDS, i)) for i in range(1, 60)]
    utterances = tuple(corpora.Utterance(f"u{i}", Path("x"), "a", "s", "g", text) for i, text in enumerate(texts))
    corpus = corpora.Corpus("csv", utterances, ("a",))
    flags = extract.Config(text="bert", text_model=str(narrow(tmp_path / "bert", [*WORDS, "no"])), cache=tmp_path / "cache")

    def parts() -> dict[Path, bytes]:
        _, features = extract.extract(corpus, extract.text_extractor(flags), flags.cache)
        return {path: path.read_bytes() for path in features.store.folder.glob("part-*")}

    def longest(path: Path) -> int:
        return max(row[1] for row in json.loads(path.with_suffix(".json").read_text())["rows"].values())

    whole = parts()
    assert len(whole) > 6  # three parts and more
    of_first = max(whole, key=longest).stem  # for the longest texts go first
    for path in whole:
        if path.stem != of_first:
            path.unlink()
    assert parts() == whole


def test_a_text_model_is_remembered_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def made(home: Path, width: int) -> Path:
        (home / "bert").mkdir(parents=True)
        (home / "bert" / "config.json").write_text(
            json.dumps({"model_type": "bert", "hidden_size": width, "num_hidden_layers": 2})
        )
        for name in ("vocab.txt", "model.safetensors"):
            (home / "bert" / name).write_text("x")
        return home

    def key(name: str, where: Path) -> dict:
        monkeypatch.chdir(where)
        return extract_text.of_bert(name, "drop", tmp_path / "cache")[0]

    one, other, hub = made(tmp_path / "one", 8), tmp_path / "other", made(tmp_path / "snapshot", 24)
    other.mkdir()
    of_one = key("bert", one)
    with pytest.raises(CallError, match="--text-model bert: not in the hub's cache"):
        key("bert", other)
    of_other = key("bert", made(other / "deep", 16))
    with monkeypatch.context() as patch:
        patch.setattr(bert, "_fetched", lambda name: hub / "bert")
        of_hub = key("bert", tmp_path)
    assert [found["width"] for found in (of_one, of_other, of_hub)] == [8, 16, 24]
    # Gone, each is still known: by its place, and the hub's from anywhere.
    shutil.rmtree(one)
    one.mkdir()
    assert key(str(one / "bert"), tmp_path) == of_one
    assert key("bert", other / "deep") == of_other
    assert key("bert", tmp_path) == of_hub == key("bert", other)


def test_what_is_heard_of_an_utterance_whose_words_are_all_read(
    spoken: Path, vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    call = config(spoken, vectors, head="aligned", features="lld", updates=2, max_seconds=0.5)  # they last 0.4, 0.5 and 0.6 s
    cv.main(call)
    line = "24 of 36 utterances last 0.5 s or longer: of their sound the first 0.5 s are heard, of their words all are read"
    card = read(tmp_path / "run", "protocol.json")
    assert card["notes"] == [line]
    assert line in capsys.readouterr().err
    assert card["choices"]["words"] == "of the whole utterance, also past the part of its sound that is heard"
    for name, changes in (("whole", {"max_seconds": 0.0}), ("sound", {"head": "bilstm", **WITHOUT})):
        cv.main(replace(call, out=tmp_path / name, **changes))
        card = read(tmp_path / name, "protocol.json")
        assert card["notes"] == []
        assert "words" not in card["choices"]


def test_the_card_says_whether_a_bert_is_cased(spoken: Path, tmp_path: Path):
    for lowers, expected in ((True, "lowered (uncased)"), (False, "kept (cased)")):
        folder = narrow(tmp_path / f"bert-{lowers}", WORDS, lowers)
        out = tmp_path / f"run-{lowers}"
        cv.main(config(spoken, folder, text="bert", updates=2, out=out))
        assert read(out, "protocol.json")["settings"]["text"]["capitals"] == expected
        assert f"capitals {expected}" in (out / "report.html").read_text()
