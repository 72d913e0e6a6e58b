"""python -m jaxser.predict: labels and calibrated probabilities for recordings, from a model that jaxser.cv --save wrote."""

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from platformdirs import user_cache_path

from jaxser import audio, devices, labels, models, timelines
from jaxser.command import demand_at_least, run_command, workers
from jaxser.digests import text_digest
from jaxser.errors import CallError, WorkError
from jaxser.files import below, read_table
from jaxser.labels import Row, Span
from jaxser.recogniser import Item, Prediction, Recogniser

SHORTEST = 0.2
"""Seconds. There is no emotion to be heard in less."""


@dataclass(frozen=True)
class Config:
    """Label recordings with a trained model. Rows are printed as they are ready."""

    model: tyro.conf.Positional[str]
    """What `jaxser.cv --save` wrote: a run folder, or the model in it."""
    files: tyro.conf.Positional[tuple[str, ...]] = ()
    """Recordings, and folders, searched whole. `-` reads paths from standard input, one a line."""
    text: tuple[str, ...] = ()
    """For heads that read words: what is said, one text for each file; or one CSV file with the columns path and text."""
    format: Literal["table", "csv", "jsonl"] = "table"
    """`csv` and `jsonl` for programs: probabilities there are fractions from 0 to 1."""
    segments: float = 0.0
    """Label windows of this many seconds, one after the other, in place of the beginning of each recording."""
    out: Path | None = None
    """Write to this file, .csv or .jsonl, in place of standard output. After an interruption the same command goes on."""
    pictures: Path | None = None
    """With --segments: a folder for a picture of each recording, its classes over time."""
    uncalibrated: bool = False
    """Probabilities as they were scored, without temperatures."""
    fold: int | None = None
    """With --seed: the head of one fold and seed alone, in place of the mean of all."""
    seed: int | None = None
    final: bool = False
    """The head that was trained on all data (jaxser.cv --final), in place of the mean of the folds' heads."""
    weights: str | None = None
    """Where the model's wav2vec weights lie today, if they have moved."""
    text_model: str | None = None
    """Where the model's BERT, or file of word vectors, lies today, if it has moved."""
    jobs: int = 0
    """Processes or threads that read files; 0: one a core."""
    cache: Annotated[Path, tyro.conf.arg(help_behavior_hint="(default: the user's cache folder)")] = user_cache_path("jaxser")
    """Where compiled programs are kept."""

    @property
    def keeps(self) -> bool:
        """Whether what is done is there for the same command to go on with."""
        return self.out is not None


def main(config: Config) -> None:
    """The whole command. Labels go to stdout or to --out, everything else to stderr."""
    config = check(config)
    others: Counter[str] = Counter()
    paths = [path for given in config.files for path in found(given, others)]
    if others:
        _say(_passed_over(others))
    texts = texts_of(config, paths)
    devices.prepare(config.cache)
    places = {"weights": config.weights, "text_model": config.text_model, "cache": config.cache}
    model = chosen(models.load(config.model, final=config.final, **places), config)
    work = work_of(model, config, paths, texts)
    settings = settings_of(model, config, texts)
    with labels.opened(config.out, config.format, model.classes, settings, work.spans) as (rows, write):
        labelled = [row.prediction is not None for row in rows]
        for row in rows_of(model, work, config.jobs, len(rows)):
            write(row)
            labelled.append(row.prediction is not None)
            if config.pictures:
                rows.append(row)
    if config.pictures:
        timelines.draw_all(config.pictures, rows, model.classes)
    if work.longer:
        seconds, part = (model.about["config"][name] for name in ("max_seconds", "crop"))
        _say(f"of {work.longer} of {len(paths)} recordings the {part} {seconds:g} s were heard, as in training; "
             f"--segments {seconds:g} labels all of them")  # fmt: skip
    if bad := labelled.count(False):
        _say(f"{bad} of {len(labelled)} could not be labelled: the reasons stand beside them")
    if not any(labelled):
        raise WorkError(f"none of {bad} could be labelled")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def check(config: Config) -> Config:
    """The configuration with its defaults filled in. Raises CallError for what contradicts itself."""
    demand_at_least(config, {"segments": 0, "jobs": 0, "fold": 0, "seed": 0})
    if not config.files and not config.text:
        raise CallError("no recordings: name files or folders, or - for paths on standard input")
    if (config.fold is None) != (config.seed is None):
        raise CallError("--fold and --seed go together: they name one head")
    if config.final and config.fold is not None:
        raise CallError("--final is a head without a fold: leave --fold and --seed out")
    if config.pictures and not config.segments:
        raise CallError("--pictures shows classes over time: say --segments SECONDS")
    if config.segments and config.text:
        raise CallError("--segments cuts the sound, and nobody knows which words belong to which window: leave --text out")
    if config.out is None:
        return config
    if config.out.suffix not in (".csv", ".jsonl"):
        raise CallError(f"--out {config.out}: a file that ends in .csv or .jsonl")
    if config.format not in ("table", config.out.suffix[1:]):
        raise CallError(f"--format {config.format} and --out {config.out} contradict each other")
    return dataclasses.replace(config, format=config.out.suffix[1:])


def found(given: str, others: Counter[str] | None = None) -> list[Path]:
    """The recordings that an argument names. Raises CallError for a folder without any, WorkError for one that cannot be read.

    Files in folders that may hold sound too, in formats that are not looked for, are counted in `others` by their suffix.
    """
    others = Counter() if others is None else others
    if given == "-":
        lines = (line.rstrip("\r\n") for line in sys.stdin)
        return [path for line in lines if line for path in found(line if line != "-" else "./-", others)]
    path = Path(given)
    try:
        is_folder = path.is_dir()
    except OSError:
        is_folder = False
    if not is_folder:
        return [path]  # one that is not there, or is refused, gets its row, with the reason
    files = [p for p in below(path) if not p.name.startswith(".")]
    here = Counter(p.suffix.lower() for p in files if p.suffix.lower() in audio.OTHER_SUFFIXES)
    others += here
    if there := sorted(p for p in files if p.suffix.lower() in audio.SUFFIXES):
        return there
    raise CallError(f"{given}: no recordings ({', '.join(audio.SUFFIXES)}) there" + (f"; {_passed_over(here)}" if here else ""))


def _passed_over(others: Counter[str]) -> str:
    count, suffixes = others.total(), sorted(others)
    what = f"{count} files of other formats" if count > 1 else "1 file of another format"
    were = f"{what} ({', '.join(suffixes)}) {'were' if count > 1 else 'was'} passed over"
    return f"{were}: convert {'them' if count > 1 else 'it'}, e.g. ffmpeg -i x{suffixes[0]} x.wav"


def texts_of(config: Config, paths: Sequence[Path]) -> list[str | None]:
    """What is said in each recording; None where nothing says so. Raises CallError where texts and files do not match."""
    if not config.text:
        return [None] * len(paths)
    if len(config.text) == 1 and config.text[0].lower().endswith(".csv"):
        return _texts_in(Path(config.text[0]), paths)
    if paths and len(paths) != len(config.text):
        raise CallError(f"{len(config.text)} texts for {len(paths)} recordings: --text takes one for each, or a CSV file")
    return list(config.text)


def _texts_in(table: Path, paths: Sequence[Path]) -> list[str | None]:
    try:
        _, rows = read_table(table, f"--text {table}", ("path", "text"))
    except OSError as error:
        raise CallError(f"--text {table}: {error.strerror}") from None
    if not rows:
        raise CallError(f"--text {table}: a CSV with the columns path and text, and a line for each recording")
    known = {audio.real_name(table.parent / (row["path"] or "")): row["text"] for _, row in rows}
    return [known.get(audio.real_name(path)) for path in paths]


def chosen(model: Recogniser, config: Config) -> Recogniser:
    """The heads that the flags ask for."""
    if config.fold is not None:
        alone = model.member(config.fold, config.seed)
        return alone if config.uncalibrated else dataclasses.replace(alone, temperature=model.temperature)
    return dataclasses.replace(model, temperature=1.0, temperature_of_mean=1.0) if config.uncalibrated else model


def settings_of(model: Recogniser, config: Config, texts: Sequence[str | None]) -> dict[str, Any]:
    """What fixes a label besides its recording."""
    flags = {name: getattr(config, name) for name in ("segments", "uncalibrated", "fold", "seed", "final")}
    flags["texts"] = text_digest("\n".join(map(str, texts))) if config.text else None
    return {"model": model.about["digest"], "signature": model.about["summary"]["signature"], **flags}


@dataclass(frozen=True)
class Work:
    """What is to be labelled, in order."""

    items: Sequence[Item]
    spans: Sequence[Span]
    longer: int = 0
    """Recordings of which a part is heard, and the rest is not."""


def work_of(model: Recogniser, config: Config, paths: Sequence[Path], texts: Sequence[str | None]) -> Work:
    """What is to be labelled. Raises CallError for flags that this model cannot follow.

    Windows are of one length: the last one ends where the recording does, and overlaps the one before it.
    """
    demand_readable(model, config, paths)
    if not paths:
        return Work([Item(text, text=text) for text in texts], [(text, 0.0, None) for text in texts])
    heard, crop = (model.about["config"][name] for name in ("max_seconds", "crop"))
    items: list[Item] = []
    spans: list[Span] = []
    longer, window = 0, round(config.segments * audio.SAMPLE_RATE)
    with ThreadPoolExecutor(workers(config.jobs), thread_name_prefix="header") as pool:
        lengths = list(pool.map(_samples_promised, paths))
    for path, text, whole in zip(paths, texts, lengths, strict=True):
        if not window or whole <= window:
            kept = min(whole, round(heard * audio.SAMPLE_RATE) or whole)
            start = (whole - kept) // 2 if crop == "centre" else 0
            longer += kept < whole
            items.append(Item(str(path), path, text))
            spans.append((str(path), *_in_seconds(start, kept)))
            continue
        for start in (*range(0, whole - window, window), whole - window):
            items.append(Item(str(path), audio.Span(path, start, window)))
            spans.append((str(path), *_in_seconds(start, window)))
    reads_sound = "audio" in {extractor.of for extractor in model.extractors}
    return Work(items, spans, longer if reads_sound else 0)


def _samples_promised(path: Path) -> int:
    return 0 if audio.absent(path) else audio.samples_promised(path)


def _in_seconds(start: int, samples: int) -> tuple[float, float | None]:
    return start / audio.SAMPLE_RATE, (start + samples) / audio.SAMPLE_RATE if samples else None


def demand_readable(model: Recogniser, config: Config, paths: Sequence[Path]) -> None:
    """Raise CallError where the model's head does not read what there is."""
    reads = {extractor.of for extractor in model.extractors}
    if "text" not in reads and config.text:
        raise CallError(f"--text: this model's head, {model.head}, reads no words")
    if "text" in reads and not config.text:
        raise CallError(f"this model's head, {model.head}, reads words: give --text")
    if not paths and (reads != {"text"} or not config.text):
        raise CallError("no recordings: name files or folders, or - for paths on standard input")
    if config.segments and "audio" not in reads:
        raise CallError("--segments cuts sound, and this model reads none")
    heard = model.about["config"]["max_seconds"]
    if heard and config.segments > heard:
        raise CallError(f"--segments {config.segments:g}: this model hears at most {heard:g} s at once")
    if config.segments and config.segments < SHORTEST:
        raise CallError(f"--segments {config.segments:g}: windows of {SHORTEST:g} s or more")


def rows_of(model: Recogniser, work: Work, jobs: int, skip: int = 0) -> Iterator[Row]:
    """A row for each thing to label but the first `skip`, as soon as it is known."""
    found = model.stream(work.items, jobs, not sys.stdout.isatty(), skip)
    for span, prediction in zip(work.spans[skip:], found, strict=True):
        labelled = isinstance(prediction, Prediction)
        yield Row(*span, prediction if labelled else None, "" if labelled else prediction)


if __name__ == "__main__":
    run_command("jaxser.predict", Config, main)
