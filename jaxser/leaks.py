"""What could make a score too good: the same voice, sound or sentence on both sides of a fold."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jaxser import transcripts
from jaxser.corpora import Utterance
from jaxser.errors import WorkError
from jaxser.folds import Folds, Split


class Check(NamedTuple):
    """Something that was looked for, and a line for each thing that was found or hinders the search."""

    what: str
    found: list[str]


def speakers_apart(utterances: Sequence[Utterance], folds: Folds) -> Check:
    """That no voice is in training and in test; without names of speakers that cannot be looked for.

    Raises WorkError where a speaker is held out by one fold and trained on by it: a group column that cuts a voice.
    """
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
    what = "speakers on both sides of a fold"
    return Check(what, [] if held_out_by else [f"{what}: not looked for, the corpus names no speakers"])


def groups_apart(utterances: Sequence[Utterance], folds: Folds) -> Check:
    """Which groups (sessions, rooms) the folds cut: speakers were dealt, and who was recorded together is on both sides."""
    of_group = defaultdict(set)
    for utterance, fold in zip(utterances, folds.of, strict=True):
        if utterance.group:
            of_group[utterance.group].add(int(fold))
    cut = sorted(group for group, found in of_group.items() if len(found) > 1)
    what = "groups on both sides of a fold"
    return Check(
        what, [f"{what}: {', '.join(cut)} (their speakers are apart; without --folds each group is held out)"] * bool(cut)
    )


def repeated_audio(utterances: Sequence[Utterance], folds: Folds, audio: Mapping[str, str]) -> Check:
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
    return Check("identical audio (sha256 of the decoded samples)", lines)


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


def repeated_text_in_words(found: Sequence[Mapping[str, Any]]) -> Check:
    """What `repeated_text` found, for people, in one line; none where nothing is repeated."""
    tested, repeated, nearly = (sum(fold[name] for fold in found) for name in ("test", "repeated", "nearly"))
    each = ", ".join(f"{fold['repeated']}+{fold['nearly']} of {fold['test']}" for fold in found)
    line = (
        f"REPEATED TEXT: of {tested} test transcripts {repeated} also stand in training word for word, {nearly} more nearly "
        f"(by fold: {each}); --exclude-repeated-text trains without the first kind"
    )
    return Check("sentences that stand in training and in test", [line] * bool(repeated or nearly))


def without_repeated_text(utterances: Sequence[Utterance], splits: Sequence[Split]) -> list[Split]:
    """The same folds, each without the training rows whose sentence (word for word) also stands in its test part."""
    forms = [transcripts.normal(u.text) for u in utterances]
    kept = []
    for rows in splits:
        tested = {forms[row] for row in rows.test} - {""}
        kept.append(replace(rows, train=np.array([row for row in rows.train if forms[row] not in tested], rows.train.dtype)))
    return kept
