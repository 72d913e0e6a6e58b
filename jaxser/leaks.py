"""What could make a score too good: the same voice, group or sound on both sides of a fold."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from jaxser.corpora import Utterance
from jaxser.errors import WorkError
from jaxser.folds import Folds


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
