"""A saved model: what cv gave, again; signals of any form; what does not fit it, refused."""

import csv
import dataclasses
import json
import shlex
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tyro
from conftest import LITTLE, write_table
from test_checkpoint import failing

import jaxser
from jaxser import audio, cv, glove, models, recogniser, wav2vec
from jaxser.errors import CallError, WorkError
from jaxser.files import read_csv, write_json
from jaxser.store import Entry


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, wav2vec weights, and a run folder of three heads that learnt something, each with its model."""
    home = tmp_path_factory.mktemp("recogniser")
    table = write_table(home / "corpus")
    lines = [line + (",text" if i == 0 else f",hello number {i % 7}") for i, line in enumerate(table.read_text().splitlines())]
    table.write_text("\n".join(lines) + "\n")
    wav2vec.save(home / "weights", LITTLE, wav2vec.random_params(LITTLE, 0), {})
    (home / "glove.txt").write_text("".join(f"{w} {i} 1 0\n" for i, w in enumerate(("hello", "number", *map(str, range(7))))))
    config = cv.Config(
        corpus="csv", root=table, features="lld", updates=120, learning_rate=1e-2, seeds=2, cache=home / "cache", save=True
    )
    wave = {"features": "wav2vec", "weights": str(home / "weights")}
    kinds = {
        "mlp": {"head": "mlp", "final": True},
        "mean": {"head": "mean", **wave},
        "attention": {"head": "attention", **wave},
        "aligned": {"head": "aligned", "text": "glove", "text_model": str(home / "glove.txt"), "updates": 10},
        "text": {"head": "text", "text": "glove", "text_model": str(home / "glove.txt"), "updates": 10, "features": "wav2vec"},
    }
    for name, changes in kinds.items():
        cv.main(dataclasses.replace(config, **changes, out=home / name))
    return home


def predictions(home: Path, name: str, fold: int, seed: int) -> dict[str, dict[str, str]]:
    return {
        row["id"]: row
        for row in read_csv(home / name / "predictions.csv")
        if (row["fold"], row["seed"]) == (str(fold), str(seed))
    }


def load(home: Path, name: str, **options) -> recogniser.Recogniser:
    return models.load(home / name, cache=home / "cache", **options)


@pytest.mark.parametrize(("name", "fold", "seed"), [("mlp", 1, 1), ("mean", 0, 0), ("attention", 2, 1), ("aligned", 0, 1)])
def test_one_head_gives_what_cv_gave(home: Path, name: str, fold: int, seed: int):
    alone = load(home, name).member(fold, seed)
    with (home / "corpus" / "corpus.csv").open() as file:
        texts = {Path(row["path"]).with_suffix("").as_posix(): row["text"] for row in csv.DictReader(file)}
    rows = predictions(home, name, fold, seed)
    items = [
        recogniser.Item(name, home / "corpus" / f"{name}.wav", texts[name] if "aligned" in alone.head else None)
        for name in rows
    ]
    for row, found in zip(rows.values(), alone.stream(items, jobs=1), strict=True):
        for label, p in found.probabilities.items():
            assert p == pytest.approx(float(row[f"p_{label}"]), abs=1e-6)
        assert found.label == row["predicted"]
        assert found.agreement == 1


def test_all_heads_are_averaged_after_the_temperature(home: Path):
    model = load(home, "mlp")
    assert len(model.members.names) == 6
    found = json.loads((home / "mlp" / "summary.json").read_text())["calibration"]
    assert model.temperature == found["temperature"]
    assert model.temperature_of_mean == found["temperature_of_mean"]
    # These heads make no mistake, and at their temperature no probability is but 0 or 1.
    model = dataclasses.replace(model, temperature=30.0, temperature_of_mean=1.0)
    signal, rate = soundfile.read(home / "corpus" / "audio" / "s0-low-0.wav")
    found = model.predict(signal, rate)
    each = [model.member(fold, seed) for seed in range(2) for fold in range(3)]
    cooled = [dataclasses.replace(one, temperature=model.temperature).predict(signal, rate) for one in each]
    for label, p in found.probabilities.items():
        assert p == pytest.approx(np.mean([one.probabilities[label] for one in cooled]), abs=1e-6)
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found.agreement == np.mean([one.label == found.label for one in cooled])
    assert 0.01 < found.probabilities["low"] < 0.99
    again = dataclasses.replace(model, temperature_of_mean=0.5).predict(signal, rate)
    squares = np.square(list(found.probabilities.values()))
    assert list(again.probabilities.values()) == pytest.approx(squares / squares.sum())
    assert (again.label, again.agreement) == (found.label, found.agreement)


def test_the_temperature_of_the_mean_moves_no_label_and_is_not_for_one_head(home: Path):
    items = items_of(home, 24)
    model = dataclasses.replace(load(home, "mlp"), temperature=30.0)
    for of, changes in ((model, True), (model.member(1, 0), False), (load(home, "mlp", final=True), False)):
        plain, other = (list(dataclasses.replace(of, temperature_of_mean=t).stream(items)) for t in (1.0, 0.3))
        assert [one.label for one in other] == [one.label for one in plain]
        assert (plain != other) == changes
        assert [max(one.probabilities, key=one.probabilities.get) for one in other] == [one.label for one in plain]


def test_the_head_on_all_data(home: Path):
    final = load(home, "mlp", final=True)
    assert [one["fold"] for one in final.members.names] == [None]
    found = final.predict(*soundfile.read(home / "corpus" / "audio" / "s0-low-0.wav"))
    assert (found.label, found.agreement) == ("low", 1)
    with pytest.raises(CallError, match=r"has no head trained on all data: train it with jaxser\.cv --final"):
        load(home, "mean", final=True)


def test_saving_and_one_more_head_change_no_score(home: Path, tmp_path: Path):
    known = json.loads((home / "mlp" / "config.json").read_text())
    assert not {"save", "final", "state_seconds"} & set(known)
    config = cv.Config(
        corpus="csv", root=home / "corpus" / "corpus.csv", features="lld", updates=120, learning_rate=1e-2, seeds=2,
        cache=home / "cache", out=tmp_path / "plain",
    )  # fmt: skip
    cv.main(config)
    for name in ("scores.csv", "predictions.csv", "losses.csv", "config.json"):
        assert (tmp_path / "plain" / name).read_bytes() == (home / "mlp" / name).read_bytes()
    assert not (tmp_path / "plain" / "model").exists()
    cv.main(dataclasses.replace(config, save=True))  # the finished run has no model: it is made
    assert load(tmp_path, "plain").member(0, 0)


def test_a_model_that_cannot_be_read_now_is_not_taken_for_none(home: Path, tmp_path: Path):
    shutil.copytree(home / "mlp" / "model", tmp_path / "model")
    with failing(tmp_path / "model" / "about" / "metadata"), pytest.raises(WorkError, match="cannot be read now"):
        models.is_there(tmp_path / "model", final=True)
    assert models.is_there(tmp_path / "model", final=True)
    assert not models.is_there(tmp_path / "nothing", final=True)


def test_signals_of_any_form_are_one_sound(home: Path):
    model = load(home, "mlp")
    signal, rate = soundfile.read(home / "corpus" / "audio" / "s1-high-3.wav", dtype="int16")
    first = model.predict(signal, rate)
    floats = signal / 2.0**15
    for other in (
        floats,
        floats.astype(np.float32),
        np.stack([floats, floats]),
        np.stack([floats, floats], 1),
        signal.astype(np.int32) << 16,
    ):
        found = model.predict(other, rate)
        assert found.label == first.label
        assert found.probabilities == pytest.approx(first.probabilities, abs=1e-5)
    faster = np.interp(np.arange(0, len(floats), 16 / 44.1), np.arange(len(floats)), floats)
    assert model.predict(faster, 44_100).label == first.label
    several = model.predict([floats, floats[: len(floats) // 2]], rate)
    assert several[0].probabilities == pytest.approx(first.probabilities, abs=1e-5)
    assert len(several) == 2


@pytest.mark.parametrize(
    ("signal", "rate", "message"),
    [
        (np.zeros(16_000), 16_000, "silent"),
        (np.full(16_000, np.nan), 16_000, "not finite"),
        (np.random.default_rng(0).normal(size=100), 16_000, "shorter than one window"),
        (np.zeros((3, 16_000)), 16_000, "for several of them give a list"),
        (np.zeros(0), 16_000, "without a sample"),
        (np.array(["a"]), 16_000, "numbers"),
        (np.zeros(16_000), 0, "how many of them make a second"),
    ],
)
def test_what_is_no_signal_is_named(home: Path, signal: np.ndarray, rate: int, message: str):
    with pytest.raises((audio.AudioError, CallError), match=message):
        load(home, "mlp").predict(signal, rate)


def test_words_are_read_where_the_head_reads_them(home: Path):
    model = load(home, "text")
    assert [extractor.of for extractor in model.extractors] == ["text"]
    first, second = model.stream([recogniser.Item("a", text="hello number 3"), recogniser.Item("b", text="[LAUGHTER]")])
    assert first.label in model.classes
    assert second == "nothing but tags in its text, '[LAUGHTER]' (--tags keep takes them as words)"


def items_of(home: Path, count: int) -> list[recogniser.Item]:
    """Recordings of the corpus, again and again, each with a text of its own; the third has none."""
    files = sorted((home / "corpus").rglob("*.wav"))
    return [recogniser.Item(f"{i}", files[i % len(files)], "" if i == 2 else f"hello number {i}") for i in range(count)]


@pytest.mark.parametrize("name", ["mlp", "mean", "aligned"])
def test_neither_those_before_nor_workers_change_a_bit(home: Path, name: str):
    model, items = load(home, name).member(0, 0), items_of(home, 82)
    whole = list(model.stream(items, jobs=1))
    assert [number for number, found in enumerate(whole) if isinstance(found, str)] == [2] * (name == "aligned")
    assert list(model.stream(items, jobs=3, skip=20)) == whole[20:]


def test_a_text_depends_on_none_of_another_block(home: Path):
    model = load(home, "text")
    (extractor,) = model.extractors

    def crowded(parts, jobs, bar):
        for part in parts:  # a BERT's vectors depend on their company by rounding, these by much
            yield [Entry(content, np.full((2, 3), len(part), np.float32), words=("a", "b")) for content, _ in part]

    model = dataclasses.replace(model, extractors=(dataclasses.replace(extractor, compute=crowded),))
    whole = list(model.stream(items_of(home, 100)))
    for skip in (5, 16, 50, 90):
        assert list(model.stream(items_of(home, 100), skip=skip)) == whole[skip:]


def test_no_more_than_a_block_of_texts_is_in_memory(home: Path, monkeypatch: pytest.MonkeyPatch):
    made, embedded = [], glove.embedded

    def noted(*given):
        vectors = embedded(*given)
        made.append(weakref.ref(vectors))
        return vectors

    monkeypatch.setattr(glove, "embedded", noted)
    there = []
    for number, _ in enumerate(load(home, "text").stream(items_of(home, 1_000))):
        if number == 0:
            assert len(made) == 15  # of the first block, one has no text
        there.append(sum(one() is not None for one in made))
    assert len(made) == 999
    assert max(there) <= 512 + 1  # zip keeps its last


def test_a_row_waits_for_few_headers(home: Path, monkeypatch: pytest.MonkeyPatch):
    read, samples_in = [], audio.samples_in
    monkeypatch.setattr(audio, "samples_in", lambda source: read.append(source) or samples_in(source))
    stream = load(home, "mean").stream(items_of(home, 2_000), jobs=2)
    next(stream)
    stream.close()
    assert len(read) == 16 + 64 + 256  # those of the first block, and of two that are decoded ahead


def test_other_weights_are_refused_and_moved_ones_found(home: Path, tmp_path: Path):
    shutil.copytree(home / "weights", tmp_path / "moved")
    assert load(home, "mean", weights=str(tmp_path / "moved")).classes == ("high", "low")
    wav2vec.save(tmp_path / "other", LITTLE, wav2vec.random_params(LITTLE, 1), {})
    with pytest.raises(CallError, match=r"the features at hand are not those that .* was trained on .*: give --weights"):
        load(home, "mean", weights=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("text", {"weights": "w"}, "^--weights w: .*text reads no wav2vec"),  # though its configuration names some
        ("aligned", {"weights": "w"}, "^--weights w: .*aligned reads no wav2vec"),
        ("mean", {"text_model": "t"}, "^--text-model t: .*mean reads no words"),
    ],
)
def test_weights_that_it_does_not_read_are_refused(home: Path, name: str, options: dict[str, str], message: str):
    with pytest.raises(CallError, match=message):
        load(home, name, **options)


def test_the_card_says_what_it_is(home: Path):
    card = (home / "mlp" / "model" / "MODEL_CARD.md").read_text()
    summary = json.loads((home / "mlp" / "summary.json").read_text())
    for text in (
        f"{100 * summary['ua_mean']:.1f} %",
        "95 % interval",
        summary["signature"],
        "6 heads",
        "high, low",
        "one head trained on all data",
        f"divided by {summary['calibration']['temperature']:.3f}",
        f"mean is divided by {summary['calibration']['temperature_of_mean']:.3f}",
        "with one seed nothing is known of means",
        "To repeat it: `python -m jaxser.cv --corpus csv",
        "--learning-rate 0.01 --final`",
        "What it is not for",
    ):
        assert text in card
    card = (home / "mean" / "model" / "MODEL_CARD.md").read_text()
    assert f"weights c, sha256 {wav2vec.load(home / 'weights').digest}" in card
    assert "--learning-rate 0.01 --save`" in card


def test_a_run_without_a_model_says_how_it_gets_one(home: Path, tmp_path: Path):
    run = tmp_path / "a run"
    shutil.copytree(home / "mean", run, ignore=shutil.ignore_patterns("model"))
    with pytest.raises(
        CallError, match=r"a run has no model, for it was run without --save: .* trains the same heads anew"
    ) as no:
        jaxser.load(str(run))
    given = tyro.cli(cv.Config, args=shlex.split(str(no.value).partition("keeps them: python -m jaxser.cv")[2]))
    config = cv.resolve(dataclasses.replace(given, cache=home / "cache"))
    assert (config.out, config.save) == (run, True)
    assert cv.settings(config) == json.loads((run / "config.json").read_text())
    cv.main(config)
    assert load(tmp_path, "a run").member(0, 0)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "model")
    with pytest.raises(
        CallError, match=r"a run is not finished and has no model: repeat the command that began it, with --save"
    ):
        jaxser.load(str(run))
    write_json(run / "summary.json", {"cells": {}})
    with pytest.raises(CallError, match=r"is a table or figure of jaxser\.paper; its runs are named in .*cells\.csv"):
        jaxser.load(str(run))


def test_what_is_no_model_is_refused(home: Path, tmp_path: Path):
    with pytest.raises(CallError, match="no such folder"):
        jaxser.load(str(tmp_path / "nothing"))
    with pytest.raises(CallError, match="holds a wav2vec encoder, not a trained recogniser"):
        jaxser.load(str(home / "weights"))
    damaged = tmp_path / "model"
    shutil.copytree(home / "mlp" / "model", damaged)
    about = damaged / "about" / "metadata"
    about.write_text(about.read_text().replace('"longest"', '"shortest"'))
    with pytest.raises(WorkError, match="damaged or of another version, it has no longest"):
        jaxser.load(str(damaged))


def test_a_model_without_a_temperature_of_the_mean_is_of_another_version(home: Path, tmp_path: Path):
    older = tmp_path / "model"
    shutil.copytree(home / "mean" / "model", older)
    about = older / "about" / "metadata"
    note = json.loads(about.read_text())
    about.write_text(json.dumps({name: value for name, value in note.items() if name != "temperature_of_mean"}))
    with pytest.raises(WorkError, match="of another version, it has no temperature_of_mean: repeat its command, with --save"):
        jaxser.load(str(older))
    assert not models.is_there(older, final=False)  # so that the command makes it anew
    about.write_text(json.dumps(note | {"temperature_of_mean": 0.0}))
    with pytest.raises(WorkError, match="damaged"):
        jaxser.load(str(older))
