"""What could make a score too good: the same voice, sound or sentence on both sides of a fold."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxser import transcripts
from jaxser.corpora import Utterance
from jaxser.errors import WorkError
from jaxser.folds import Folds, Split


def demand_disjoint_speakers(utterances: Sequence[Utterance], folds: Folds) -> None:
    """Raise WorkError where a speaker is held out by one fold and trained on by it: a group column that cuts a voice."""
    held_out_by = defaultdict(dict)
    for utterance, fold in zip(utterances, folds.of, strict=True):
        if utterance.speaker:
            held_out_by[utterance.speaker].setdefault(int(fold), utterance.id)
    for speaker, by in sorted(held_out_by.items()):
        if len(by) > 1 and folds.speaker_independent:
            (one, first), (other, second), *_ = sorted(by.items())
            raise WorkError(
                f"speaker {speaker!r} stands in folds {one} ({first}) and {other} ({second}), so training would hear the "
                "test's voice: mend the groups, or deal speakers with --folds"
            )


def repeated_audio(utterances: Sequence[Utterance], folds: Folds, audio: Mapping[str, str]) -> list[str]:
    """One line for every sound that several utterances share across folds, under several speakers or with several labels.

    `audio` has the digest of each utterance's decoded samples, so that the same sound in another file format is found too.
    """
    same = defaultdict(list)
    for utterance, fold in zip(utterances, folds.of, strict=True):
        same[audio[utterance.id]].append((utterance, int(fold)))
    lines = []
    for found in same.values():
        names = ", ".join(u.id for u, _ in found)
        if len({fold for _, fold in found}) > 1:
            where = sorted({fold for _, fold in found})
            lines.append(f"LEAK: identical audio in folds {', '.join(map(str, where))}: {names}")
        elif len({u.label for u, _ in found}) > 1:
            lines.append(f"identical audio with different labels: {names}")
        elif len({u.speaker for u, _ in found}) > 1:
            lines.append(f"identical audio under different speakers: {names}")
        elif len(found) > 1:
            lines.append(f"identical audio within a fold (no leak): {names}")
    return lines


def repeated_text(utterances: Sequence[Utterance], splits: Sequence[Split]) -> list[dict[str, Any]]:
    """How many test transcripts of each fold also stand in its training part: word for word, and otherwise nearly.

    Word for word is without regard to capitals, punctuation and tags; nearly is what `transcripts.NEARLY` says. One
    `{"fold", "test", "repeated", "nearly"}` for each fold, its rows as they are given here.
    """
    forms = np.array([transcripts.normal(u.text) for u in utterances], object)
    found = []
    for fold, rows in enumerate(splits):
        same, near = transcripts.occurring(forms[rows.test].tolist(), forms[rows.train].tolist())
        found.append({"fold": fold, "test": len(rows.test), "repeated": int(same.sum()), "nearly": int(near.sum())})
    return found


def repeated_text_in_words(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for people on what `repeated_text` found; none where nothing is repeated."""
    tested, repeated, nearly = (sum(fold[name] for fold in found) for name in ("test", "repeated", "nearly"))
    if not repeated and not nearly:
        return []
    each = ", ".join(f"{fold['repeated']}+{fold['nearly']} of {fold['test']}" for fold in found)
    return [
        f"REPEATED TEXT: of {tested} test transcripts {repeated} also stand in training word for word, {nearly} more nearly "
        f"(by fold: {each}); --exclude-repeated-text trains without the first kind"
    ]


def without_repeated_text(utterances: Sequence[Utterance], splits: Sequence[Split]) -> list[Split]:
    """The same folds, each without the training rows whose sentence (word for word) also stands in its test part."""
    forms = [transcripts.normal(u.text) for u in utterances]
    kept = []
    for rows in splits:
        tested = {forms[row] for row in rows.test} - {""}
        kept.append(replace(rows, train=np.array([row for row in rows.train if forms[row] not in tested], rows.train.dtype)))
    return kept
