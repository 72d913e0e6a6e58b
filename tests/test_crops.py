import itertools
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import write_tone
from hypothesis import given
from hypothesis import strategies as st

from jaxser import audio, crops
from jaxser.crops import Plan, Reader
from jaxser.errors import WorkError
from jaxser.recordings import Recording, find

RATE = audio.SAMPLE_RATE

lengths = st.lists(st.integers(8_000, 200_000), min_size=1, max_size=30)


@given(lengths, st.sampled_from([32_000, 48_000]), st.integers(1, 4), st.integers(0, 3))
def test_an_epoch_hears_of_every_recording_as_many_crops_as_fit(samples: list[int], crop: int, devices: int, seed: int):
    recordings = tuple(Recording(Path(f"{i}.wav"), n) for i, n in enumerate(samples))
    plan = Plan(recordings, crop, 4 * crop, seed, devices)
    for number in (0, 1):
        batches = plan.epoch(number)
        assert len(batches) == plan.updates_an_epoch()
        heard: dict[int, list[tuple[int, int]]] = {}
        for batch in batches:
            assert len(batch.crops) <= batch.rows
            assert batch.rows % devices == 0
            assert batch.length in plan.lengths()
            for place, start, count in batch.crops:
                assert count <= batch.length
                heard.setdefault(place, []).append((start, start + count))
        assert sorted(heard) == list(range(len(samples)))
        for place, parts in heard.items():
            parts = sorted(parts)
            assert len(parts) == max(1, samples[place] // crop)
            assert parts[0][0] >= 0
            assert parts[-1][1] <= samples[place]
            # Side by side; what is passed over is less than a crop.
            assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(parts))
            assert samples[place] - sum(stop - start for start, stop in parts) < crop


@given(lengths, st.integers(0, 40), st.integers(1, 30))
def test_an_update_can_be_repeated_without_those_before_it(samples: list[int], first: int, count: int):
    plan = Plan(tuple(Recording(Path(f"{i}.wav"), n) for i, n in enumerate(samples)), 32_000, 64_000, 7)
    assert list(plan.batches(0, first + count))[first:] == list(plan.batches(first, first + count))
    assert len(list(plan.batches(first, first + count))) == count


def test_epochs_and_seeds_differ():
    recordings = tuple(Recording(Path(f"{i}.wav"), 100_000 + i) for i in range(20))
    one, two = Plan(recordings, 32_000, 128_000, 0), Plan(recordings, 32_000, 128_000, 1)
    assert one.epoch(0) != one.epoch(1)
    assert one.epoch(0) != two.epoch(0)
    assert one.epoch(1) == Plan(recordings, 32_000, 128_000, 0).epoch(1)


def test_crops_are_parts_of_their_recordings(folder: Path):
    found = find([folder], shortest=8_000)
    plan = Plan(found.recordings, RATE, 4 * RATE, 0)
    reader = Reader(found.recordings, jobs=2, gain=(0.5, 2.0))
    batches = list(plan.batches(0, 6))
    for batch, read in zip(batches, reader.read(iter(batches), seed=0), strict=True):
        assert read.waveforms.shape == (batch.rows, batch.length)
        assert read.samples == sum(crop.samples for crop in batch.crops)
        for row in range(batch.rows):
            count = read.lengths[row]
            assert not read.waveforms[row, count:].any()
            if row >= len(batch.crops) or found.recordings[batch.crops[row].recording].path.name == "silent.wav":
                assert count == 0
                continue
            crop = batch.crops[row]
            expected = audio.load(found.recordings[crop.recording].path, 0.0)[crop.start : crop.start + crop.samples]
            gain = np.linalg.norm(read.waveforms[row]) / np.linalg.norm(expected)
            assert 0.5 <= gain <= 2.0
            np.testing.assert_allclose(read.waveforms[row, :count], gain * expected, atol=1e-6)
    assert list(reader.left_out.values()) == ["silent: every sample of it is 0"]


def test_what_is_read_depends_on_nothing_before_it_nor_on_memory(folder: Path):
    found = find([folder], shortest=8_000)
    plan = Plan(found.recordings, RATE, 2 * RATE, 3)
    whole = list(Reader(found.recordings, 2, memory=1.0, gain=(0.3, 1.5)).read(plan.batches(0, 9), 3))
    late = list(Reader(found.recordings, 1, memory=0.0, gain=(0.3, 1.5)).read(plan.batches(4, 9), 3, first=4))
    for one, two in zip(whole[4:], late, strict=True):
        np.testing.assert_array_equal(one.waveforms, two.waveforms)
        np.testing.assert_array_equal(one.lengths, two.lengths)


def test_hosts_share_the_rows(folder: Path):
    found = find([folder], shortest=8_000)
    plan = Plan(found.recordings, RATE, 4 * RATE, 0, devices=2)
    alone = list(Reader(found.recordings, gain=(0.3, 1.5)).read(plan.batches(0, 3), 0))
    shares = [list(Reader(found.recordings, gain=(0.3, 1.5)).read(plan.batches(0, 3), 0, 0, h, 2)) for h in (0, 1)]
    for whole, first, second in zip(alone, *shares, strict=True):
        np.testing.assert_array_equal(whole.waveforms, np.concatenate([first.waveforms, second.waveforms]))
        np.testing.assert_array_equal(whole.lengths, np.concatenate([first.lengths, second.lengths]))


def test_of_a_long_recording_only_the_crop_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_tone(tmp_path / "long.flac", 90.0, seed=5)
    whole = audio.load(path, 0.0)
    np.testing.assert_array_equal(audio.load_part(path, 1_000, 16_000), whole[1_000:17_000])
    monkeypatch.setattr(audio, "load", lambda *_, **__: pytest.fail("the whole file was decoded"))
    found = find([path.parent], 8_000)
    plan = Plan(found.recordings, 2 * RATE, 8 * RATE, 0)
    (batch, *_) = plan.epoch(0)
    (read,) = Reader(found.recordings).read(iter([batch]), 0)
    start = batch.crops[0].start
    np.testing.assert_array_equal(read.waveforms[0], whole[start : start + 2 * RATE])


def test_silence_within_a_recording_is_passed_over_and_the_rest_heard(tmp_path: Path):
    for name, seconds in (("short", 10), ("long", 80)):
        sound = np.random.default_rng(0).normal(0, 0.1, seconds * RATE)
        sound[4 * RATE : 8 * RATE] = 0
        soundfile.write(tmp_path / f"{name}.wav", sound, RATE)
    found = find([tmp_path], 8_000)
    plan = Plan(found.recordings, RATE, 8 * RATE, 0)
    reader, silent, heard = Reader(found.recordings, 1), set(), set()
    for batch, read in zip(plan.epoch(0), reader.read(iter(plan.epoch(0)), 0), strict=True):
        for crop, count in zip(batch.crops, read.lengths, strict=False):
            (heard if count else silent).add((crop.recording, crop.start // RATE))
    assert {second for _, second in silent} <= {3, 4, 5, 6, 7}
    assert {place for place, _ in silent} == {0, 1}
    assert len(heard) == 90 - len(silent)
    assert not reader.left_out


def test_of_a_long_recording_only_what_is_damaged_is_not_heard(tmp_path: Path):
    sound = np.random.default_rng(0).normal(0, 0.1, 80 * RATE).astype(np.float32)
    sound[20 * RATE : 50 * RATE] = np.nan
    soundfile.write(tmp_path / "long.wav", sound, RATE, "FLOAT")
    found = find([tmp_path], 8_000)
    plan = Plan(found.recordings, RATE, 8 * RATE, 0)
    reader = Reader(found.recordings, 2)
    whole = list(reader.read(plan.batches(0, 20), 0))
    for batch, read in zip(plan.batches(0, 20), whole, strict=True):
        for crop, count in zip(batch.crops, read.lengths, strict=False):
            assert bool(count) == (crop.start + crop.samples <= 20 * RATE or crop.start >= 50 * RATE)
    late = Reader(found.recordings, 1).read(plan.batches(7, 20), 0, first=7)
    for one, two in zip(whole[7:], late, strict=True):
        np.testing.assert_array_equal(one.waveforms, two.waveforms)
    reason = "in part it holds samples that are not finite numbers (NaN or infinity)"
    assert reader.left_out == {str(tmp_path / "long.wav"): reason}


def test_the_reason_is_that_of_the_first_crop_whichever_thread_is_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_tone(tmp_path / "long.flac", 80.0)
    found = find([tmp_path], 8_000)
    plan = Plan(found.recordings, RATE, 4 * RATE, 0)
    batches = plan.epoch(0)[:2]
    first = batches[0].crops[0].start

    def damaged(_: Path, start: int, samples: int) -> np.ndarray:
        time.sleep(0.3 * (start == first))
        raise audio.AudioError(f"bad at {start}")

    monkeypatch.setattr(audio, "load_part", damaged)
    reader = Reader(found.recordings, 4)
    list(reader.read(iter(batches), 0))
    assert reader.left_out == {str(path): f"in part bad at {first}"}


@pytest.mark.parametrize(("seconds", "reads"), [(2.0, "load"), (80.0, "load_part")])
def test_a_file_that_its_disk_does_not_give_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, reads: str
):
    path = write_tone(tmp_path / "one.flac", seconds)
    found = find([tmp_path], 8_000)
    plan = Plan(found.recordings, RATE, 2 * RATE, 0)
    (expected, *_) = Reader(found.recordings).read(plan.batches(0, 1), 0)
    tries, read = itertools.count(1), getattr(audio, reads)

    def away(*given, **named):
        if next(tries) < 4:
            raise audio.Unreachable("Input/output error")
        return read(*given, **named)

    monkeypatch.setattr(audio, reads, away)
    monkeypatch.setattr(crops, "PAUSES", (0, 0, 0, 0))
    reader = Reader(found.recordings)
    (heard, *_) = reader.read(plan.batches(0, 1), 0)
    assert heard.lengths.any()
    np.testing.assert_array_equal(heard.waveforms, expected.waveforms)
    assert not reader.left_out
    monkeypatch.setattr(crops, "PAUSES", (0,))
    tries = itertools.count(-10)
    reader = Reader(found.recordings)
    with pytest.raises(WorkError, match=rf"{path} could not be read in 2 tries \(Input/output error\): .*the same command"):
        list(reader.read(plan.batches(0, 1), 0))
    assert not reader.left_out


def test_a_long_recording_without_any_sound_is_counted(tmp_path: Path):
    soundfile.write(tmp_path / "long.wav", np.zeros(130 * RATE), RATE)
    found = find([tmp_path], 8_000)
    plan = Plan(found.recordings, 2 * RATE, 8 * RATE, 0)
    reader = Reader(found.recordings, 2)
    assert not any(read.lengths.any() for read in reader.read(plan.epoch(0), 0))
    assert reader.left_out == {str(tmp_path / "long.wav"): "silent: no part of it holds a sound"}
