import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from conftest import apart, write_tone
from hypothesis import given
from hypothesis import strategies as st

from jaxser import audio, corpora, cv, extract, extract_wav2vec, wav2vec
from jaxser.architecture import NANO
from jaxser.errors import CallError, WorkError
from jaxser.extract_wav2vec import REFERENCE, Budget, padded_batches, padded_length, plan_parts
from jaxser.files import read_csv
from jaxser.report import table as printed_table
from jaxser.store import Entry, load_frames, open_store


def config(table: Path, cache: Path, **changes) -> extract.Config:
    flags = {"features": "wav2vec", "weights": "random-nano:0"} | changes
    return extract.Config(corpus="csv", root=table, cache=cache, **flags)


def run(table: Path, cache: Path, **changes):
    flags = config(table, cache, **changes)
    extract.check(flags)
    corpus, features = extract.extract(
        corpora.read("csv", table, "all"), extract.sound_extractor(flags), cache, 2, flags.strict
    )
    return corpus, features.store, features.contents


@given(
    st.lists(st.tuples(st.sampled_from([0, 7, 50, 172, 400]), st.text("abcdef", min_size=1)), unique_by=lambda t: t[1]),
    st.integers(0, 40),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
)
def test_what_is_done_does_not_move_what_is_left(drawn: list[tuple[int, str]], done: int, sharing: int, mixed: bool):
    tasks = [(content, Path(content)) for _, content in drawn]
    samples = {task: 1_600 * tenths for task, (tenths, _) in zip(tasks, drawn, strict=True)}
    budget = Budget(10.0, 3, 4, mixed)
    plan = plan_parts(tasks, list(samples.values()), budget, 0, sharing)
    assert sorted(task for part in plan for task in part) == sorted(tasks)
    longest_first = [samples[task] for part in plan for task in part]
    assert longest_first == sorted(longest_first, reverse=True)
    left = [task for part in plan[done:] for task in part]
    random.Random(0).shuffle(left)
    assert plan_parts(left, [samples[task] for task in left], budget, 0, sharing) == plan[done:]


@given(st.lists(st.floats(0.1, 30), max_size=300), st.sampled_from([1, 2, 4]))
def test_parts_are_of_full_batches(seconds: list[float], sharing: int):
    samples = [round(s * 16_000) for s in seconds]
    tasks = [(f"{i:03}", Path(str(i))) for i in range(len(samples))]
    budget, empty = Budget(10.0, 3, 4), Counter()
    for part in plan_parts(tasks, samples, budget, 0, 4):  # for four, and so for one and for two
        waveforms = [np.broadcast_to(np.float32(0), samples[int(content)]) for content, _ in part]
        batches = list(padded_batches(waveforms, budget, 0, sharing))
        assert sum(batch.size for _, batch, _ in batches) < 16_000 * 4 * (10 * 3 + 36)  # oversteps by a batch, of 36 s at most
        for numbers, batch, _ in batches:
            empty[batch.shape[1]] += len(numbers) < len(batch)
    assert all(count <= 1 for count in empty.values())


@given(st.lists(st.floats(0.1, 30), max_size=300), st.sampled_from([1, 2, 4]))
def test_of_mixed_batches_the_last_alone_has_empty_rows(seconds: list[float], sharing: int):
    samples = [round(s * 16_000) for s in seconds]
    tasks = [(f"{i:03}", Path(str(i))) for i in range(len(samples))]
    budget, filled = Budget(10.0, 3, 1, mixed=True), []
    for part in plan_parts(tasks, samples, budget, 0, sharing):
        waveforms = [np.broadcast_to(np.float32(1 + int(content)), samples[int(content)]) for content, _ in part]
        for numbers, batch, lengths in padded_batches(waveforms, budget, 0, sharing):
            filled.append(len(numbers) == len(batch))
            expected = np.zeros_like(batch)
            for row, number in enumerate(numbers):
                expected[row, : lengths[row]] = waveforms[number]
            np.testing.assert_array_equal(batch, expected)
            assert lengths.tolist() == [len(waveforms[number]) for number in numbers] + [0] * (len(batch) - len(numbers))
    assert all(filled[:-1])


def partitions(things: list[int]) -> Iterator[list[list[int]]]:
    """Every way to share things out among groups."""
    if not things:
        yield []
        return
    for groups in partitions(things[1:]):
        yield [[things[0]], *groups]
        for i, group in enumerate(groups):
            yield [*groups[:i], [things[0], *group], *groups[i + 1 :]]


@given(st.lists(st.integers(10_000, 640_000), max_size=6))
def test_no_other_way_makes_fewer_batches_than_mixed_ones(samples: list[int]):
    budget = Budget(80.0, 2, 1, mixed=True)  # rows for one file of 40 s or two, for four of 20 s
    made = padded_batches([np.broadcast_to(np.float32(0), count) for count in samples], budget)

    def fits(group: list[int]) -> bool:
        return len(group) <= round(80 * 16_000 / padded_length(max(group), 1))

    assert len(list(made)) == min(len(groups) for groups in partitions(samples) if all(map(fits, groups)))


@given(st.integers(465, 3_600 * 16_000), st.sampled_from([1, 4]))
def test_padded_lengths_are_few_and_near(samples: int, an_octave: int):
    length = padded_length(samples, an_octave)
    assert samples <= length <= 2 ** (1 / an_octave) * samples + 1
    assert padded_length(length, an_octave) == length


def test_the_default_crop_is_padded_by_nothing():
    assert padded_length(REFERENCE, 4, REFERENCE) == REFERENCE
    assert padded_length(47_000, 4, 48_000) == 47_568
    assert padded_length(47_900, 4, 48_000) == 48_000
    assert len({padded_length(n, 4, REFERENCE) for n in range(8_000, REFERENCE)}) <= 15
    assert {padded_length(n, 1, REFERENCE) for n in range(8_000, REFERENCE)} == {10_000, 20_000, 40_000, 80_000}


@pytest.mark.parametrize(("layer", "mixed"), [("z", False), ("c", False), ("c", True)])
def test_features_are_those_of_each_file_alone(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: str, mixed: bool
):
    if mixed:  # as on an accelerator: files of 0.4 s are padded as those of 0.5 s are, and some of those as those of 0.6 s
        monkeypatch.setattr(extract_wav2vec, "CPU", Budget(8.0, 2, 4, mixed=True))
    corpus, store, contents = run(table, tmp_path / "cache", layer=layer, max_seconds=0.6)
    frames = load_frames(store, [contents[u.id] for u in corpus.utterances])
    x = np.asarray(frames.x)
    encoder = wav2vec.load("random-nano:0")
    for i in range(0, 48, 7):
        waveform = audio.load(corpus.utterances[i].path, 0.6)
        z, c, count = encoder(waveform[None], np.array([len(waveform)]))
        assert frames.mask[i].sum() == count[0] == NANO.frames(len(waveform))
        np.testing.assert_allclose(x[i][frames.mask[i]], (z if layer == "z" else c)[0], rtol=0, atol=1e-5)
    assert store.rows[contents[corpus.utterances[0].id]].seconds == pytest.approx(0.4)


@dataclass(frozen=True, eq=False)
class Echo(wav2vec.Encoder):
    """Whose frames are the first samples of a waveform, and which notes its batches."""

    batches: list[int] = field(default_factory=list)

    def __call__(self, waveforms: np.ndarray, lengths: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
        self.batches.append(len(waveforms))
        x = jnp.asarray(waveforms[:, :6].reshape(-1, 3, 2))
        return x, x, jnp.asarray(np.where(lengths, 3, 0))


def echo() -> Echo:
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:1]), ("batch",))
    return Echo(NANO, {}, "", "float32", wav2vec.Wav2Vec(NANO), mesh)


def echoed(parts: list[list[tuple[str, np.ndarray]]], encoder: Echo) -> Iterator[list[Entry]]:
    settings = extract_wav2vec.settings(NANO, "", True)
    return extract_wav2vec.compute(iter(parts), 2, False, settings, lambda: encoder)


def test_the_next_part_is_begun_before_the_last_batch_of_one_is_fetched():
    draw, encoder = np.random.default_rng(0), echo()
    parts = [[(f"{part}{i}", draw.normal(0, 0.1, 80_000).astype(np.float32)) for i in range(3)] for part in range(4)]
    begun = []
    for part, entries in zip(parts, echoed(parts, encoder), strict=True):
        begun.append(len(encoder.batches))
        for (content, waveform), entry in zip(part, entries, strict=True):
            assert entry.content == content
            np.testing.assert_array_equal(entry.frames.ravel(), waveform[:6])
    assert begun == [3 + 1, 6 + 1, 9 + 1, 12]  # each file is a batch


@given(st.lists(st.lists(st.sampled_from([0, 100, 465, 9_000, 80_000]), min_size=1, max_size=7), max_size=6))
def test_entries_come_in_the_order_of_files_in_whole_parts(lengths: list[list[int]]):
    # 0 is silence.
    draw = np.random.default_rng(0)
    parts = [
        [(f"{i}-{j}", draw.normal(0, 0.1, count).astype(np.float32) if count else np.zeros(900, np.float32)) for j, count in
         enumerate(part)] for i, part in enumerate(lengths)
    ]  # fmt: skip
    found = list(echoed(parts, echo()))
    assert [[entry.content for entry in part] for part in found] == [[content for content, _ in part] for part in parts]
    for entry, (_, waveform), count in zip(*map(chain.from_iterable, (found, parts, lengths)), strict=True):
        if count < 465:
            assert entry.reason.startswith("100 samples" if count else "silent")
        else:
            np.testing.assert_array_equal(entry.frames.ravel(), waveform[:6])


def test_bad_files_are_named_and_left_out(table: Path, tmp_path: Path):
    (tmp_path / "audio/s0-low-0.wav").write_text("this is no audio")
    soundfile.write(tmp_path / "audio/s0-low-1.wav", np.zeros(8_000), 16_000)
    soundfile.write(tmp_path / "audio/s0-low-2.wav", np.random.default_rng(0).normal(0, 0.1, 464), 16_000)
    soundfile.write(tmp_path / "audio/s0-low-3.wav", np.random.default_rng(0).normal(0, 0.1, 465), 16_000)
    reasons = {
        "audio/s0-low-0": "not readable as audio",
        "audio/s0-low-1": "silent",
        "audio/s0-low-2": "464 samples (29 ms) of sound are shorter than one frame of wav2vec, 465",
    }
    for _ in range(2):  # the second time from the store
        corpus, store, contents = run(table, tmp_path / "cache")
        assert {name for name, _ in corpus.left_out} == set(reasons)
        assert all(reasons[name] in reason for name, reason in corpus.left_out)
        assert store.rows[contents["audio/s0-low-3"]].count == 1
    with pytest.raises(WorkError, match=r"s0-low-0\.wav: not readable.*--strict"):
        run(table, tmp_path / "cache", strict=True)


@pytest.mark.parametrize(
    "change", [{"weights": "random-nano:1"}, {"layer": "z"}, {"crop": "centre"}, {"max_seconds": 0.3}, {"features": "lld"}]
)
def test_settings_and_weights_never_share_a_store(table: Path, tmp_path: Path, change: dict):
    if "features" in change:
        change = change | {"weights": "nano"}  # the default, which descriptors do not look at
    one, other = (extract.sound_extractor(config(table, tmp_path, **c)) for c in ({}, change))
    assert open_store(tmp_path, one.settings).folder != open_store(tmp_path, other.settings).folder


def test_a_store_made_by_other_weights_is_refused(table: Path, tmp_path: Path):
    _, store, _ = run(table, tmp_path / "cache")
    note = store.folder / "provenance.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"weights_sha256": "0" * 64}))
    with pytest.raises(WorkError, match=r"does not describe wav2vec with .*; delete"):
        run(table, tmp_path / "cache")


def save_nano(path: Path, seed: int = 5) -> str:
    wav2vec.save(path, NANO, wav2vec.random_params(NANO, seed), {})
    return str(path)


def test_what_was_away_for_a_moment_ends_the_work_and_is_read_by_the_next(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    away, read = iter([audio.Unreachable("Input/output error")]), audio.read

    def reads(source, *how):
        for error in away:
            raise error
        return read(source, *how)

    monkeypatch.setattr(audio, "read", reads)
    with pytest.raises(WorkError, match=r"\.wav could not be read a moment ago, and now it can: run the same command again$"):
        run(table, tmp_path / "cache")
    corpus, _, _ = run(table, tmp_path / "cache")
    assert (len(corpus.utterances), corpus.left_out) == (48, ())


def test_the_store_is_enough_when_audio_and_weights_are_gone(table: Path, tmp_path: Path):
    weights = save_nano(tmp_path / "weights")
    _, store, contents = run(table, tmp_path / "cache", weights=weights)
    (tmp_path / "audio").rename(tmp_path / "away")
    shutil.rmtree(weights)
    _, again, same = run(table, tmp_path / "cache", weights=weights)
    assert (again.folder, same) == (store.folder, contents)
    save_nano(tmp_path / "weights", seed=6)  # other weights at the same place are other weights
    with pytest.raises(WorkError, match=r"none of 48 utterances can be used; the first one, .*: no such file"):
        run(table, tmp_path / "cache", weights=weights)
    (tmp_path / "away").rename(tmp_path / "audio")  # as with a disk that was not there: nothing of it is remembered
    _, _, contents = run(table, tmp_path / "cache", weights=weights)
    assert len(contents) == 48


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "nowhere"}, "nowhere: no such folder"),
        ({"weights": "random-huge:0"}, "random weights are made for large, base, nano"),
        ({"precision": "bfloat16"}, "bfloat16 is for GPU and TPU"),
        ({"features": "lld"}, "--weights random-nano:0 goes with --features wav2vec"),
        ({"features": "lld", "weights": "nano", "layer": "z"}, "--layer z goes with --features wav2vec"),
        ({"lld_window": 25.0}, "--lld-window 25.0 goes with --features lld"),
    ],
)
def test_wrong_calls(table: Path, tmp_path: Path, changes: dict, message: str):
    with pytest.raises(CallError, match=message):
        run(table, tmp_path / "cache", **changes)


@pytest.mark.parametrize("head", ["mean", "meanmax", "attention", "mlp"])
def test_every_head_runs_and_random_weights_are_marked(
    table: Path, tmp_path: Path, head: str, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    flags = {"corpus": "csv", "root": table, "cache": tmp_path / "cache", "features": "wav2vec", "head": head, "updates": 30}
    cv.main(cv.Config(**flags, weights="random-nano:0", out=out))
    assert "RANDOM WEIGHTS" in capsys.readouterr().out
    for name in ("scores.csv", "predictions.csv", "confusion.csv", "losses.csv"):
        assert {row["weights"] for row in read_csv(out / name)} == {"RANDOM"}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["random_weights"]
    assert "-RANDOM|" in summary["signature"]
    assert json.loads((out / "config.json").read_text())["weights"] == "random-nano:0"
    assert json.loads((out / "protocol.json").read_text())["settings"]["audio"]["weights"] == "RANDOM"
    assert "RANDOM WEIGHTS" in (out / "report.html").read_text()
    # With weights that were converted, nothing says so.
    weights = save_nano(tmp_path / "weights")
    cv.main(cv.Config(**flags, weights=weights, out=tmp_path / "two"))
    assert "RANDOM" not in capsys.readouterr().out + printed_table(tmp_path / "two")
    assert "RANDOM" not in (tmp_path / "two" / "report.html").read_text()
    assert "weights" not in read_csv(tmp_path / "two" / "scores.csv")[0]


SMALL_PARTS = "from jaxser import extract_wav2vec as e; e.CPU = e.CPU._replace(batch_seconds=1.0, batches_a_part=1)"
COMMAND = """
from jaxser.command import run_command
from jaxser.extract import Config, main
run_command("jaxser.extract", Config, main)
"""


def extracting(table: Path, cache: Path) -> list[str]:
    """The command itself, with parts of 4 s in place of 320, so that a short corpus has many."""
    flags = [
        "--corpus",
        "csv",
        "--root",
        str(table),
        "--features",
        "wav2vec",
        "--weights",
        "random-nano:0",
        "--cache",
        str(cache),
    ]
    return [sys.executable, "-c", SMALL_PARTS + COMMAND, *flags]


def contents_of(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.glob("features/*/*") if not path.name.startswith(".")}


def parts_in(cache: Path) -> int:
    return len(list(cache.glob("features/*/part-*.json")))


KILLS = 3
"""test_kills.py has more, of all commands."""


def test_killed_at_random_moments(tmp_path: Path):
    lines = ["path,label,speaker"]
    for i in range(60):
        write_tone(tmp_path / f"{i}.wav", 0.8 + i / 150, 200 + 5 * i, seed=i)
        lines.append(f"{i}.wav,{'ab'[i % 2]},s{i % 5}")
    table = tmp_path / "corpus.csv"
    table.write_text("\n".join(lines))
    subprocess.run(extracting(table, tmp_path / "calm"), check=True, capture_output=True, timeout=300)
    calm = contents_of(tmp_path / "calm")
    whole = parts_in(tmp_path / "calm")
    assert len(calm) > 2 * whole > 2 * 10
    generator = random.Random(0)
    for _ in range(KILLS):
        before = parts_in(tmp_path / "torn")
        nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(extracting(table, tmp_path / "torn"), **nowhere, env=apart())
        while parts_in(tmp_path / "torn") == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.05))  # in the midst of the next part, or of writing it
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert before < parts_in(tmp_path / "torn") < whole
    done = subprocess.run(extracting(table, tmp_path / "torn"), check=True, capture_output=True, text=True, timeout=300)
    assert "60 utterances, 0 left out" in done.stdout
    assert done.stderr == ""
    assert contents_of(tmp_path / "torn") == calm


def test_the_command(table: Path, tmp_path: Path):
    flags = [
        "--corpus",
        "csv",
        "--root",
        table,
        "--features",
        "wav2vec",
        "--weights",
        "random-nano:0",
        "--cache",
        tmp_path / "c",
    ]
    command = [sys.executable, "-m", "jaxser.extract", *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stderr == ""
    for text in ("wav2vec c RANDOM WEIGHTS · 48 utterances, 0 left out", "frames of 128 numbers", str(tmp_path / "c")):
        assert text in done.stdout
    done = subprocess.run([*command[:-2], "--layer", "q"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "invalid choice" in done.stderr
