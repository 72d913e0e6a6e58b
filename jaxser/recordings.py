"""Unlabelled speech for pretraining: what lies in folders and CSV files, and who is held out."""

import errno
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxser import audio
from jaxser.errors import CallError, WorkError
from jaxser.files import below, read_table

_HELD_OUT = 11
"""Purpose of a random stream; those of `folds` and `crops` are other numbers."""

LASTING = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ENOENT)
"""What the system says of a name or of who asks, and would say again; whatever else it says is of a disk, and passes."""


@dataclass(frozen=True)
class Recording:
    """One file. `samples` are those its header promises, at 16 kHz; `speaker` is None where nobody says who speaks."""

    path: Path
    samples: int
    speaker: str | None = None
    source: int = 0
    """Which of the sources named it first."""


@dataclass(frozen=True)
class Found:
    """What was found: usable by its header, and not."""

    recordings: tuple[Recording, ...]
    left_out: tuple[tuple[str, str], ...]
    """(path, reason)"""


def find(sources: Sequence[Path], shortest: int, jobs: int = 1) -> Found:
    """All recordings of folders (searched whole) and CSV files (a column `path`, relative to the CSV, and perhaps `speaker`).

    Their order is that of the sources, then that of their paths below the source, so that it does not depend on where it
    lies. Those whose header cannot be read, or promises fewer than `shortest` samples, are left out with the reason. A file
    that is named twice counts once. Raises CallError for a source that is not there or names no recording, and where none can
    be used; WorkError where a disk does not give a file just now, for without it training would be another.
    """
    # By real names: one file has one, or it could be trained on under one name and held out under another.
    paths: dict[str, Path] = {}
    speakers: dict[str, str | None] = {}
    sources_of: dict[str, int] = {}
    for number, source in enumerate(sources):
        listed = _listed(source)
        if not listed:
            raise CallError(f"--audio {source}: no recordings ({', '.join(audio.SUFFIXES)}) there")
        for path, speaker in listed:
            name = audio.real_name(path)
            paths.setdefault(name, path)
            # Another source may call another person by the same name.
            speakers[name] = speakers.get(name) or (f"{number}:{speaker}" if speaker else None)
            sources_of.setdefault(name, number)
    with ThreadPoolExecutor(jobs) as pool:
        promised = list(pool.map(_promised, paths.values()))
    recordings, left_out = [], []
    for (name, path), (samples, unreadable) in zip(paths.items(), promised, strict=True):
        if samples >= shortest:
            recordings.append(Recording(path, samples, speakers[name], sources_of[name]))
            continue
        short = (
            f"{samples / audio.SAMPLE_RATE:.2f} s, shorter than the {shortest / audio.SAMPLE_RATE:.2f} s that training needs"
        )
        left_out.append((str(path), short if samples else unreadable))
    if not recordings:
        raise CallError(f"none of {len(left_out)} recordings can be used; the first one, {left_out[0][0]}: {left_out[0][1]}")
    return Found(tuple(recordings), tuple(left_out))


def _promised(path: Path) -> tuple[int, str]:
    # How many samples a recording's header promises, and why where there are none.
    if (reason := audio.absent(path)).startswith(audio.NO_SUCH_FILE):
        return 0, reason
    try:
        return audio.samples_of_header(path), "not readable as audio"
    except OSError as error:
        if error.errno not in LASTING:
            raise WorkError(f"{path} cannot be read now: {error.strerror}: run again") from None
        return 0, f"{audio.UNREACHED}: {error.strerror}"


def _listed(source: Path) -> list[tuple[Path, str | None]]:
    try:
        is_folder, is_file = source.is_dir(), source.is_file()
    except OSError as error:
        raise CallError(f"--audio {source}: {audio.UNREACHED}: {error.strerror}") from None
    if is_folder:
        found = (p for p in below(source) if p.suffix.lower() in audio.SUFFIXES and not p.name.startswith("."))
        return [(path.absolute(), None) for path in sorted(found) if audio.absent(path) != audio.NO_SUCH_FILE]
    if not is_file:
        raise CallError(f"--audio {source}: no such folder or CSV file")
    if source.suffix.lower() != ".csv":
        raise CallError(f"--audio {source}: neither a folder nor a CSV file with the column path")
    _, rows = read_table(source, f"--audio {source}", ("path",))
    found = sorted(((row["path"] or "").strip(), _speaker(row)) for _, row in rows)
    return [((source.parent / path).absolute(), speaker or None) for path, speaker in found if path]


def _speaker(row: Mapping[str, str | None]) -> str:
    # In one form, or one person, written in two ways, could be held out and trained on.
    return unicodedata.normalize("NFC", (row.get("speaker") or "").strip())


def hold_out(
    recordings: Sequence[Recording], share: float, seed: int
) -> tuple[tuple[Recording, ...], tuple[Recording, ...], str]:
    """Recordings to train on, those held out (`share` of the sound or a little more), and what was held out in words.

    Where speakers are known, only known speakers are held out, each with all that they say, and fewer than asked where they
    say less: a file without a name might be a voice heard in training. Where none is known, single files. Raises CallError
    where nothing would be left to train on.
    """
    if not share:
        return tuple(recordings), (), "nothing"
    by_speaker: dict[str, list[Recording]] = defaultdict(list)
    for recording in recordings:
        if recording.speaker:
            by_speaker[recording.speaker].append(recording)
    units = [by_speaker[name] for name in sorted(by_speaker)] or [[recording] for recording in recordings]
    wanted, order = share * sum(r.samples for r in recordings), np.random.default_rng([_HELD_OUT, seed]).permutation(len(units))
    count, held, samples = 0, [], 0
    while count < len(units) and samples < wanted:
        held += units[order[count]]
        samples += sum(r.samples for r in units[order[count]])
        count += 1
    if len(held) == len(recordings):
        raise CallError(f"--held-out {share:g} takes every {'speaker' if by_speaker else 'file'}: ask for less, or 0")
    names = f"{count} {'speaker' if by_speaker else 'file'}{'s' * (count > 1)}"
    out = set(held)
    return tuple(r for r in recordings if r not in out), tuple(r for r in recordings if r in out), names


def hours(recordings: Sequence[Recording]) -> float:
    """How long they are in all."""
    return sum(r.samples for r in recordings) / audio.SAMPLE_RATE / 3600


def counted(left_out: Mapping[str, str] | Sequence[tuple[str, str]]) -> str:
    """How many files were left out, by reason, in one line."""
    reasons: dict[str, int] = defaultdict(int)
    for reason in dict(left_out).values():
        reasons[reason.split(":")[0].split(",")[-1].strip()] += 1
    return "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
