import errno
import os
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
from conftest import write_tone

from jaxser import audio


def strongest(signal: np.ndarray) -> float:
    """Frequency of the highest peak of the spectrum, in Hz at 16 kHz."""
    return np.abs(np.fft.rfft(signal * np.hanning(len(signal)))).argmax() * audio.SAMPLE_RATE / len(signal)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [("wav", "PCM_U8"), ("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "FLOAT"), ("wav", "DOUBLE"), ("flac", "PCM_16"),
     ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")],
)  # fmt: skip
def test_formats_and_rates(tmp_path: Path, rate: int, suffix: str, subtype: str):
    time = np.arange(rate) / rate
    left, right = 0.5 * np.sin(2 * np.pi * 440 * time), 0.1 * np.sin(2 * np.pi * 440 * time)
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.stack([left, right], 1), rate, subtype=subtype)
    signal = audio.load(path)
    assert signal.dtype == np.float32
    assert len(signal) == pytest.approx(audio.SAMPLE_RATE, rel=0.02 if suffix != "mp3" else 0.12)
    assert strongest(signal) == pytest.approx(440, abs=2)
    middle = signal[4_000:12_000]
    assert np.sqrt(2) * middle.std() == pytest.approx(0.3, rel=0.05)  # the mean of both channels, at its own level


def test_opus(tmp_path: Path):
    path = tmp_path / "tone.opus"
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000), 48_000, format="OGG", subtype="OPUS")
    assert strongest(audio.load(path)) == pytest.approx(440, abs=2)


def test_16_khz_samples_are_untouched(tmp_path: Path):
    samples = np.random.default_rng(0).integers(-30_000, 30_000, 5_000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    np.testing.assert_array_equal(audio.load(tmp_path / "a.wav"), samples / np.float32(32_768))


@pytest.mark.parametrize("name", ["a.wav", "a.ogg"])
def test_one_channel_is_its_own_mean_to_the_bit(tmp_path: Path, name: str):
    # A float wav, and Vorbis where there is silence, hold -0, which a mean does not.
    samples = np.r_[np.full(8_000, -0.0), np.random.default_rng(0).normal(0, 0.1, 8_000), 1e-42]
    subtype = {"a.wav": "FLOAT", "a.ogg": "VORBIS"}[name]
    soundfile.write(tmp_path / name, samples, 16_000, subtype=subtype)
    column, _ = soundfile.read(tmp_path / name, dtype="float32", always_2d=True)
    assert np.signbit(column[column == 0]).any()
    twice = np.repeat(column, 2, axis=1)
    for mono in (column.mean(axis=1, dtype=np.float32), twice.mean(axis=1, dtype=np.float32)):
        assert audio.load(tmp_path / name).tobytes() == mono.tobytes()


def test_crop_keeps_first_or_middle(tmp_path: Path):
    ramp = np.linspace(-0.5, 0.5, 8 * 16_000, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", ramp, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(audio.load(tmp_path / "a.wav"), ramp[:80_000])
    np.testing.assert_array_equal(audio.load(tmp_path / "a.wav", 5.0, "centre"), ramp[24_000:104_000])
    np.testing.assert_array_equal(audio.load(tmp_path / "a.wav", 0.0), ramp)


def _cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_files_cut_short_are_found(tmp_path: Path, name: str, share: float):
    path = write_tone(tmp_path / name, 3.0)
    audio.load(path)
    with pytest.raises(audio.AudioError, match=r"cut short|not readable"):
        audio.load(_cut(path, share))


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0xFFFFFFFF - 36, 0x7FFFF000, 0x7FFFF000 // 6 * 6, 0x7FFFF000 // 4096 * 4096])
def test_wav_of_unknown_length_is_read(tmp_path: Path, size: int):
    # Programs that stream a wav into a pipe cannot know its size: they write the largest number, with or without what the
    # header takes, or, as SoX does, 0x7FFFF000 in whole samples of all channels.
    path = write_tone(tmp_path / "a.wav", 1.0)
    data = bytearray(path.read_bytes())
    place = data.find(b"data")
    data[place + 4 : place + 8] = size.to_bytes(4, "little")
    data[4:8] = min(size + 36, 0xFFFFFFFF).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    assert len(audio.load(path)) == 16_000


def test_a_link_that_leads_nowhere_is_told_from_no_file(tmp_path: Path):
    (tmp_path / "a.wav").symlink_to(tmp_path / "b.wav")
    assert audio.absent(tmp_path / "b.wav") == "no such file"
    assert audio.absent(tmp_path / "a.wav") == "no such file: the link leads nowhere"
    assert audio.may_pass(audio.absent(tmp_path / "a.wav"))
    write_tone(tmp_path / "b.wav")
    assert audio.absent(tmp_path / "a.wav") == ""


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(16_000), "silent"),
        (np.full(16_000, 0.25), "silent"),
        (np.r_[0.1, np.full(100, np.nan)], "not finite"),
        (np.r_[0.1, np.inf], "not finite"),
        (np.zeros(0), "no samples"),
    ],
)
def test_useless_samples(tmp_path: Path, samples: np.ndarray, message: str):
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(audio.AudioError, match=message):
        audio.load(tmp_path / "a.wav")


def test_files_that_are_no_audio(tmp_path: Path):
    with pytest.raises(audio.AudioError, match="no such file"):
        audio.load(tmp_path / "missing.wav")
    (tmp_path / "empty.wav").touch()
    with pytest.raises(audio.AudioError, match="0 bytes"):
        audio.load(tmp_path / "empty.wav")
    (tmp_path / "text.wav").write_text("not audio at all, but long enough for a header" * 10)
    with pytest.raises(audio.AudioError, match="not readable"):
        audio.load(tmp_path / "text.wav")
    with pytest.raises(audio.AudioError, match="no such file"):
        audio.load(tmp_path)  # a folder


@pytest.mark.skipif(os.name == "nt", reason="names and errors are others there")
def test_a_file_that_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_tone(tmp_path / "a.wav")
    with pytest.raises(audio.Unreachable, match=r"^cannot be reached: File name too long$"):
        audio.load(tmp_path / f"{'x' * 300}.wav")
    for home, step, number in [
        (Path, "is_file", errno.ESTALE),
        (Path, "open", errno.EMFILE),
        (audio, "_ends_early", errno.EIO),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(home, step, Mock(side_effect=OSError(number, os.strerror(number), str(path))))
            with pytest.raises(audio.Unreachable) as refused:
                audio.load(path)
        assert str(refused.value) == f"cannot be reached: {os.strerror(number)}"
        assert audio.may_pass(str(refused.value))
    assert len(audio.load(path)) == 8_000


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here whose disk is sure to fail")
def test_a_file_that_its_disk_does_not_give(tmp_path: Path):
    # It opens, and its first read fails: to libsndfile a format that it does not recognise.
    path = tmp_path / "a.wav"
    path.symlink_to("/proc/self/mem")
    for read in (lambda: audio.load(path), lambda: audio.load_part(path, 0, 100)):
        with pytest.raises(audio.Unreachable, match=r"^cannot be reached: Input/output error$"):
            read()
    assert audio.samples_promised(path) == 0
    with pytest.raises(OSError, match="Input/output error"):
        audio.samples_of_header(path)


def test_reasons_that_may_pass(tmp_path: Path):
    (tmp_path / "text.wav").write_text("not audio at all, but long enough for a header" * 10)
    for path in (tmp_path / "gone.wav", tmp_path / "text.wav"):
        with pytest.raises(audio.AudioError) as unusable:
            audio.load(path)
        assert audio.may_pass(str(unusable.value)) == isinstance(unusable.value, audio.Unreachable) == (not path.exists())


def test_a_part_of_a_resampled_file(tmp_path: Path):
    path = write_tone(tmp_path / "long.wav", 5.0, rate=44_100)
    part, whole = audio.load_part(path, 20_000, 30_000), audio.load(path, 0.0)[20_000:50_000]
    assert len(part) == 30_000
    np.testing.assert_allclose(part[500:-500], whole[500:-500], atol=0.02)  # a sample of 44.1 kHz apart at the most
    with pytest.raises(audio.AudioError, match=r"cut short: 0 of 16000 samples from 6\.00 s on"):
        audio.load_part(path, 96_000, 16_000)


def test_a_flac_that_does_not_say_how_long_it_is(tmp_path: Path):
    # As ffmpeg writes one into a pipe: the number of samples in its header (36 bits, from byte 21) is 0.
    path = tmp_path / "piped.flac"
    sound = np.random.default_rng(0).normal(0, 0.1, 40_000)
    soundfile.write(path, sound, 16_000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(audio.AudioError, match="its header does not say how long it is"):
        audio.load(path, 0.0)
    assert audio.samples_promised(path) == 0


def test_a_file_without_a_header(tmp_path: Path):
    path = tmp_path / "x.raw"
    path.write_bytes(bytes(1_000))
    assert audio.samples_promised(path) == 0
    for read in (lambda: audio.load(path), lambda: audio.load_part(path, 0, 100)):
        with pytest.raises(audio.AudioError, match="not readable as audio"):
            read()


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_name_that_is_not_utf_8(tmp_path: Path):
    path = write_tone(tmp_path / "a.wav").rename(tmp_path / os.fsdecode(b"caf\xe9.wav"))
    signal = audio.load(path)
    np.testing.assert_array_equal(audio.load_part(path, 0, 100), signal[:100])
    assert audio.samples_promised(path) == len(signal)
