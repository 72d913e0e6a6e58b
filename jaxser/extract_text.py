"""What the words of a corpus look like to a text model: transcripts -> one vector a word, into a store of their own.

The store is keyed by the model's content and the way tags are treated; in it each text, as the model reads it, stands once.
Words are those of the whole utterance, also where only a part of its sound is heard (--max-seconds): no corpus says which words
fall into that part.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxser import audio, bert, glove, transcripts
from jaxser.corpora import Utterance
from jaxser.digests import digests, recalled, text_digest
from jaxser.store import Entry

Task = tuple[str, str]
"""The content of a text, and the text itself."""

PART = 2_048
"""Texts a part, and those that share a batch with the last of them: what a kill can lose, some seconds of work."""


def contents(utterances: Sequence[Utterance], tags: transcripts.Tags) -> dict[str, Task]:
    """By id, the digest of each utterance's text as a model reads it, and that text; without those that have none."""
    found = {u.id: transcripts.cleaned(u.text, tags) for u in utterances}
    return {name: (text_digest(text), text) for name, text in found.items() if text}


def why_none(utterance: Utterance) -> str:
    """Why an utterance has no text to read."""
    if not (utterance.text or "").strip():
        return "no text"
    return f"nothing but tags in its text, {utterance.text!r} (--tags keep takes them as words)"


def of_bert(name: str, tags: transcripts.Tags, cache: Path) -> tuple[dict[str, Any], bert.Model]:
    """The key of the store of a BERT's vectors, and the model."""

    def look() -> dict[str, Any]:
        found = bert.find(name, cache / "digests.json")
        return found._asdict() | {"folder": str(found.folder.absolute())}

    # A folder by where it is, as the same words from elsewhere name another; and a name of the hub as one.
    place, of_hub = str(Path(name).absolute()), f"hub:{name}"
    names = (place,) if Path(name).is_dir() else (of_hub, place)
    found = recalled(cache / "text-models.json", names[0], look, names[1:])
    model = bert.Model(Path(found["folder"]), found["digest"], found["width"], found.get("letters", {}))
    return {"extractor": "bert", "width": model.width, "model_sha256": model.digest, "layer": bert.LAYER, "tags": tags}, model


def capitals(model: bert.Model) -> dict[str, str]:
    """Whether a BERT is cased, for people; empty where its files do not say."""
    lowered = model.letters.get("do_lower_case")
    return {} if lowered is None else {"capitals": "lowered (uncased)" if lowered else "kept (cased)"}


def plan(tasks: Sequence[Task], jobs: int) -> list[list[Task]]:
    """All texts together, so that of several hosts the first one takes them all. `jobs` is not used.

    Words cost little beside sound, and a BERT sorts them by lengths that it alone knows.
    """
    return [list(tasks)] if tasks else []


def bert_compute(parts: Iterable[list[Task]], jobs: int, bar: bool, load: Callable[[], bert.Encoder]) -> Iterator[list[Entry]]:
    """The pieces and vectors of texts, those of each part longest first, a part of the store at a time.

    `jobs` is not used: the devices do the work. `bar` is whether there is to be a bar.
    """
    hidden = not (bar and sys.stderr.isatty())
    encoder = None
    for part in parts:
        encoder = encoder or load()
        with tqdm(total=len(part), desc="bert", unit="text", disable=hidden, leave=False) as shown:
            yield from _in_parts(_of_bert(encoder, part, shown))


def _of_bert(encoder: bert.Encoder, part: list[Task], bar: tqdm) -> Iterator[list[Entry]]:
    for batch in encoder([text for _, text in part]):
        bar.update(len(batch))
        yield [_entry(part[number][0], pieces.words, pieces.vectors, pieces.cut) for number, pieces in batch]


def of_glove(path: Path, tags: transcripts.Tags, cache: Path) -> dict[str, Any]:
    """The key of the store of word vectors from a text file."""

    def look() -> dict[str, Any]:
        return {"width": glove.width_of(path), "digest": digests([path], cache / "digests.json")[path]}

    found = recalled(cache / "text-models.json", str(path.absolute()), look)
    return {"extractor": "glove", "width": found["width"], "file_sha256": found["digest"], "tags": tags}


def glove_compute(parts: Iterable[list[Task]], jobs: int, bar: bool, path: Path, width: int) -> Iterator[list[Entry]]:
    """The tokens and vectors of texts, a part of the store at a time; the file is gone through once, for all parts.

    `jobs` and `bar` are not used.
    """
    of = [[(content, glove.tokens(text)) for content, text in part] for part in parts]
    if not of:
        return
    every = [token for part in of for _, tokens in part for token in tokens]
    vectors = glove.vectors(path, {part for token in every for part in (token, *token.split("-"))})
    if unknown := glove.unknown(vectors, every):
        names = ", ".join(sorted(set(unknown))[:5])
        print(
            f"{path.name}: {len(unknown)} of {len(every)} words are not in it and become zeros ({names}, ...)", file=sys.stderr
        )
    for part in of:
        yield from _in_parts(
            [_entry(content, tuple(tokens), glove.embedded(vectors, tokens, width))] for content, tokens in part
        )


def _in_parts(batches: Iterable[list[Entry]]) -> Iterator[list[Entry]]:
    # Never a part of a batch: after a kill the texts that are left would make other batches, padded to other lengths, and their
    # vectors would differ by rounding from those of work that was not cut short.
    part: list[Entry] = []
    for batch in batches:
        part += batch
        if len(part) >= PART:
            yield part
            part = []
    if part:
        yield part


def _entry(content: str, words: tuple[str, ...], vectors: np.ndarray, cut: int = 0) -> Entry:
    if not words:
        return Entry(content, None, reason="no word in its text")
    return Entry(content, vectors, words=words, cut=cut)


def cut_texts(rows: Mapping[str, Any], used: Mapping[str, str]) -> str:
    """One line on texts that were longer than the model takes; empty where there are none. `used`: content by id."""
    cut = sorted(name for name, content in used.items() if rows[content].cut)
    if not cut:
        return ""
    return f"longer than the text model takes, and cut there: {len(cut)} texts ({', '.join(cut[:3])}{', ...' * (len(cut) > 3)})"


def heard_in_part(seconds: Sequence[float], max_seconds: float, crop: audio.Crop) -> str:
    """One line on utterances whose words are read beside the part of their sound that is heard; empty where there are none.

    `seconds`: what is heard of each. A store does not say how much longer one was, if at all.
    """
    full = sum(round(each * audio.SAMPLE_RATE) >= round(max_seconds * audio.SAMPLE_RATE) for each in seconds)
    if not (max_seconds and full):
        return ""
    return (
        f"{full} of {len(seconds)} utterances last {max_seconds:g} s or longer: of their sound the {crop} {max_seconds:g} s "
        "are heard, of their words all are read"
    )
