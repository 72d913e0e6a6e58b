"""Audio files as mono float32 at 16 kHz, in [-1, 1], never normalised in level."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32

from jaxser.errors import CallError

SAMPLE_RATE = 16_000
"""Hz. What wav2vec was trained on; everything here is resampled to it."""

MAX_SECONDS = 5.0
"""At most this much of an utterance is used (the paper, section 3)."""

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
"""Files that corpus readers look for. libsndfile reads no m4a and no webm."""

OTHER_SUFFIXES = (".m4a", ".aac", ".webm", ".wma", ".aif", ".aiff", ".amr", ".mp4", ".mov", ".mkv", ".3gp")
"""Files that hold sound too and are not looked for: most of them libsndfile cannot read."""

SILENCE = 2.0**-15
"""A clip whose samples span less than this, one step of 16-bit audio, holds no sound at all."""

UNKNOWN = 2**62
"""libsndfile's number of samples for a file that does not say: what programs write that stream a flac into a pipe."""

UNREADABLE = (soundfile.LibsndfileError, RuntimeError, OSError, TypeError)
"""What soundfile raises for files that it cannot read; TypeError for those it takes for headerless ones, by their suffix."""

RATES = (1_000, 1_000_000)
"""Hz. Lower and higher ones are headers that are damaged: resampling would take all the memory there is."""

STREAMED = 0x7FFF_0000
"""Bytes. A wav that claims so much sound or more was written into a pipe, by a program that could not know how much would come:
0xFFFFFFFF (ffmpeg), or that without the header; SoX writes 0x7FFFF000, rounded down to whole samples of all channels. Of one
that is really so long, two GiB, nobody would see that it was cut short."""

BLOCK = 2**22
"""Numbers decoded at once."""

HEADER = 4_096
"""Bytes of a file that show what it is."""

NO_SUCH_FILE = "no such file"

LEADS_NOWHERE = f"{NO_SUCH_FILE}: the link leads nowhere"
"""As in a git-annex or DataLad folder whose files have not been fetched."""

UNREACHED = "cannot be reached"
"""How the reason begins where the system refuses a file."""

Crop = Literal["first", "centre"]


@dataclass(frozen=True)
class Span:
    """A part of a file: `samples` from sample `start` on, both at SAMPLE_RATE."""

    path: Path
    start: int
    samples: int


Source = Path | Span | np.ndarray
"""Where sound comes from: a file, a part of one, or mono samples at SAMPLE_RATE that are there already."""


class AudioError(ValueError):
    """One file that cannot be used. The message says what is wrong with it, without the path."""


class Unreachable(AudioError):
    """One that may well be used another time: it is not there just now, or its disk did not give it."""


def absent(path: Path) -> str:
    """Why there is no file to read, in the system's words where it refuses to say; empty where there is one."""
    try:
        if path.is_file():
            return ""
        return LEADS_NOWHERE if path.is_symlink() and not path.exists() else NO_SUCH_FILE
    except OSError as error:
        return f"{UNREACHED}: {_reason(error)}"


def may_pass(reason: str) -> bool:
    """Whether a reason is one of Unreachable's."""
    return reason.startswith((NO_SUCH_FILE, UNREACHED))


def real_name(path: Path) -> str:
    """The one name that a file has however it is reached: absolute, without symbolic links and ".."."""
    try:
        return os.path.realpath(path)
    except ValueError:  # a NUL, which is in no file's name
        return str(path.absolute())


def load(path: str | Path, max_seconds: float = MAX_SECONDS, crop_to: Crop = "first") -> Float32[np.ndarray, " s"]:
    """Read any file that libsndfile reads as a mono 16 kHz waveform of at most `max_seconds` (0: all of it).

    The whole file is decoded even where a crop is asked for, so that a damaged end is found and not passed over.
    Channels are averaged. The paper does not say which 5 s it keeps; the default is the first.

    Raises AudioError for a file that is missing, unreadable, cut short, not finite or silent in the part that is kept.
    An mp3 without a frame count in its header gives no sign of being cut short.
    """
    signal, rate = _decode(Path(path))
    return _usable(resample(signal, rate), max_seconds, crop_to)


def read(source: Source, max_seconds: float = MAX_SECONDS, crop_to: Crop = "first") -> Float32[np.ndarray, " s"]:
    """What `load` gives of a file, of any source. Raises AudioError for what cannot be used."""
    if isinstance(source, Span):
        return _usable(load_part(source.path, source.start, source.samples), max_seconds, crop_to)
    if isinstance(source, np.ndarray):
        return _usable(source, max_seconds, crop_to)
    return load(source, max_seconds, crop_to)


def from_array(signal: Any, sampling_rate: int) -> Float32[np.ndarray, " s"]:
    """Samples of any rate and kind as mono float32 at SAMPLE_RATE: [s], or stereo, [2, s] or [s, 2], which is averaged.

    Whole numbers are taken as PCM and brought to [-1, 1]. Raises CallError for what is no signal: more than two rows might be
    several signals.
    """
    signal = np.asarray(signal)
    if signal.ndim == 2 and min(signal.shape) <= 2:
        signal = signal if signal.shape[0] <= 2 else signal.T
    elif signal.ndim != 1:
        raise CallError(f"a signal of shape {signal.shape}: one of [samples], or stereo; for several of them give a list")
    if not signal.size:
        raise CallError("a signal without a sample")
    if not RATES[0] <= sampling_rate <= RATES[1] or signal.dtype.kind not in "fiu":
        raise CallError(f"a signal of {signal.dtype} at {sampling_rate} Hz: numbers, and how many of them make a second")
    if signal.dtype.kind in "iu":
        steps = 2.0 ** (8 * signal.dtype.itemsize - 1)
        signal = (signal - steps * (signal.dtype.kind == "u")) / steps
    signal = signal.astype(np.float32)
    return resample(signal if signal.ndim == 1 else signal.mean(0, dtype=np.float32), int(sampling_rate))


def _usable(signal: Float32[np.ndarray, " s"], max_seconds: float, crop_to: Crop) -> Float32[np.ndarray, " s2"]:
    signal = crop(signal, max_seconds, crop_to)
    _demand_finite(signal)
    if not signal.size:
        raise AudioError("it holds no samples")
    if silent(signal):
        part = f"the {crop_to} {max_seconds:g} s" if max_seconds else "it"
        raise AudioError(f"silent: every sample of {part} is {signal[0]:g}")
    return signal


def load_part(path: str | Path, start: int, samples: int) -> Float32[np.ndarray, " s"]:
    """Read `samples` of a file from sample `start` on, both counted at 16 kHz, without decoding the rest.

    For long recordings. Near its two ends a part that had to be resampled differs a little from the same samples of the
    whole, for the filter sees silence there. Raises AudioError for a part that is unreadable, cut short or not finite; one
    that is silent is a part like others, and a damage elsewhere in the file is not seen.
    """
    try:
        _begin_of(Path(path))
        with soundfile.SoundFile(_name(path)) as file:
            rate = file.samplerate
            _demand_rate(rate)
            file.seek(min(round(start * rate / SAMPLE_RATE), file.frames))
            signal = file.read(round(samples * rate / SAMPLE_RATE), dtype="float32", always_2d=True)
    except UNREADABLE as error:
        raise _refused(error) from None
    signal = resample(_mono(signal), rate)[:samples]
    if len(signal) < samples - 1:
        raise AudioError(f"cut short: {len(signal)} of {samples} samples from {start / SAMPLE_RATE:.2f} s on")
    _demand_finite(signal)
    return signal


def silent(signal: Float32[np.ndarray, " s"]) -> bool:
    """Whether it holds no sound at all: every sample is the same, to half a step of 16-bit audio."""
    return bool(signal.size) and float(np.ptp(signal)) < SILENCE


def _demand_finite(signal: Float32[np.ndarray, " s"]) -> None:
    if not np.isfinite(signal).all():
        raise AudioError("it holds samples that are not finite numbers (NaN or infinity)")


def _begin_of(path: Path) -> bytes:
    # Where the system refuses it, it says why. libsndfile takes a first read that fails for a file that is no audio.
    with path.open("rb") as file:
        return file.read(HEADER)


def _refused(error: Exception) -> AudioError:
    if _by_system(error):
        return Unreachable(f"{UNREACHED}: {_reason(error)}")
    return AudioError(f"not readable as audio: {_reason(error)}")


def _by_system(error: Exception) -> bool:
    # libsndfile's error 2 is one of the system's, which has nothing to do with what is in the file.
    return isinstance(error, OSError) or getattr(error, "code", None) == 2


def _reason(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error).partition(": ")[2] or str(error)
    return reason.strip().rstrip(".")


def samples_promised(path: Path) -> int:
    """How many samples at SAMPLE_RATE a file's header promises, 0 where it cannot be read: for planning, never for belief."""
    try:
        return samples_of_header(path)
    except (OSError, ValueError):  # ValueError for a NUL, which is in no file's name
        return 0


def samples_of_header(path: Path) -> int:
    """The samples at SAMPLE_RATE that a file's header promises, 0 where it is no audio. Raises OSError where the system refuses
    it."""
    _begin_of(path)
    try:
        header = soundfile.info(_name(path))
    except UNREADABLE as error:
        if _by_system(error):
            raise OSError(errno.EIO, _reason(error), str(path)) from None
        return 0
    known = header.frames < UNKNOWN and RATES[0] <= header.samplerate <= RATES[1]
    return round(header.frames * SAMPLE_RATE / header.samplerate) if known else 0


def samples_in(source: Source) -> int:
    """How many samples a source promises; 0 where a file's header cannot be read."""
    if isinstance(source, Span):
        return source.samples
    return len(source) if isinstance(source, np.ndarray) else samples_promised(source)


def resample(signal: Float32[np.ndarray, " s"], rate: int) -> Float32[np.ndarray, " s2"]:
    """Bring a mono signal from `rate` Hz to SAMPLE_RATE; at SAMPLE_RATE the samples come back untouched."""
    if rate == SAMPLE_RATE:
        return signal
    return soxr.resample(signal, rate, SAMPLE_RATE, quality="HQ").astype(np.float32, copy=False)


def crop(signal: Float32[np.ndarray, " s"], max_seconds: float, crop_to: Crop) -> Float32[np.ndarray, " s2"]:
    """Keep the first or the middle `max_seconds` of a 16 kHz signal; 0 keeps everything."""
    keep = round(max_seconds * SAMPLE_RATE)
    if not keep or len(signal) <= keep:
        return signal
    start = 0 if crop_to == "first" else (len(signal) - keep) // 2
    return signal[start : start + keep]


def _decode(path: Path) -> tuple[Float32[np.ndarray, " s"], int]:
    if reason := absent(path):
        raise Unreachable(reason)
    try:
        if not _begin_of(path):
            raise AudioError("the file is empty (0 bytes)")
        with soundfile.SoundFile(_name(path)) as file:
            rate, promised = file.samplerate, file.frames
            if promised >= UNKNOWN:
                raise AudioError(
                    "its header does not say how long it is, as of one that was written into a pipe: write it anew"
                )
            _demand_rate(rate)
            samples = _all_of(file)
        cut_short = len(samples) < promised or _ends_early(path)
    except UNREADABLE as error:
        raise _refused(error) from None
    if cut_short:
        raise AudioError(f"cut short: it ends after {len(samples) / rate:.2f} s, before the end that its header gives")
    if len(samples) == 0:
        raise AudioError("it holds no samples")
    return _mono(samples), rate


def _name(path: str | Path) -> str | bytes:
    # soundfile takes names that are not UTF-8 as bytes alone, and on Windows, where there are none, as text.
    return str(path) if os.name == "nt" else os.fsencode(path)


def _mono(samples: Float32[np.ndarray, "s channels"]) -> Float32[np.ndarray, " s"]:
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told in our own words
        if samples.shape[1] == 1:
            return samples[:, 0] + np.float32(0)  # the mean to the bit, which makes 0 of -0, in a fifth of the time
        return samples.mean(axis=1, dtype=np.float32)


def _all_of(file: soundfile.SoundFile) -> Float32[np.ndarray, "s channels"]:
    # In blocks: a header may promise far more than there is, and memory would be asked for all of it.
    size, blocks = max(1, BLOCK // file.channels), []
    while not blocks or len(blocks[-1]) == size:
        blocks.append(file.read(size, dtype="float32", always_2d=True))
    return np.concatenate(blocks) if len(blocks) > 1 else blocks[0]


def _demand_rate(rate: int) -> None:
    low, high = RATES
    if not low <= rate <= high:
        raise AudioError(f"its header says {rate} Hz: between {low:,} and {high:,} is speech")


def _ends_early(path: Path) -> bool:
    """Whether a wav's data chunk or an Ogg stream stops before its own end, which libsndfile passes over in silence."""
    with path.open("rb") as file:
        magic = file.read(12)
        if magic[:4] == b"RIFF" and magic[8:] == b"WAVE":
            while len(header := file.read(8)) == 8:
                size = int.from_bytes(header[4:], "little")
                if header[:4] == b"data":
                    # 0 stands for "unknown" too.
                    return 0 < size < STREAMED and path.stat().st_size - file.tell() < size
                file.seek(size + size % 2, 1)
        if magic[:4] == b"OggS":
            file.seek(max(0, path.stat().st_size - 65_536))  # no Ogg page is longer than 65,307 bytes
            tail = file.read()
            last = tail.rfind(b"OggS")
            return last < 0 or len(tail) < last + 6 or not tail[last + 5] & 4  # bit 4: end of stream
    return False
