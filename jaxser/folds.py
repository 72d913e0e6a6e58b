"""Who is trained on and who is held out: folds, balanced subsets, and the order in which batches see the rows.

Everything random here derives from (seed, fold), never from a position in a list, so that a run alone draws what it
draws among others.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32, Int64

from jaxser.corpora import Corpus, Utterance
from jaxser.errors import CallError, WorkError

DEFAULT_FOLDS = 5

# Purposes of a random stream, so that no two share their numbers.
_SUBSET, _BATCHES, _RANDOM_FOLDS = 1, 2, 3


@dataclass(frozen=True)
class Folds:
    """`of[i]` is the fold that holds utterance i out; `names[f]` says whom fold f holds out; `rule` is one line."""

    of: np.ndarray
    names: tuple[str, ...]
    rule: str
    speaker_independent: bool


def assign(corpus: Corpus, count: int | None = None, random: bool = False) -> Folds:
    """Deal the utterances of a corpus to folds so that nobody is heard in training and in test.

    With groups and no `count`, one fold a group. Otherwise speakers (groups where there are no speakers) are dealt to
    `count` folds: a corpus's pairs in turn, other speakers one by one, the one with most utterances first, to the fold
    that has fewest. `random` deals single utterances and is for corpora that name no speakers.

    Raises CallError where folds without a common speaker are impossible or fewer than two.
    """
    utterances = corpus.utterances
    speakers, groups = (all(getattr(u, name) for u in utterances) for name in ("speaker", "group"))
    if count is not None and count < 2:
        raise CallError(f"--folds {count}: at least two folds are needed, one to train on and one to test on")
    if random:
        if speakers or groups:
            raise CallError(
                "--random-folds is for a corpus without speakers and groups; this one has them, and random folds would "
                "test on voices heard in training: leave the flag out"
            )
        return _random_folds(corpus, count or DEFAULT_FOLDS)
    if not speakers and not groups:
        raise CallError(
            "speaker-independent folds are impossible: the corpus names neither speakers nor groups, so the same voice may "
            "stand in training and in test. Add a column speaker (or group); or say --random-folds, and every score will "
            "be marked as not speaker-independent"
        )
    if groups and count is None:
        names = sorted({u.group for u in utterances})
        if len(names) > 1:
            of = np.array([names.index(u.group) for u in utterances], np.int32)
            rule = f"each of {len(names)} groups held out once ({', '.join(names)})"
            return Folds(of, tuple(names), rule, True)
        if speakers:
            raise CallError(f"only one group, {names[0]!r}: nothing is left to train on. Give --folds to deal speakers")
    return _deal(corpus, "speaker" if speakers else "group", count or DEFAULT_FOLDS)


def _deal(corpus: Corpus, unit: str, count: int) -> Folds:
    sizes = Counter(getattr(u, unit) for u in corpus.utterances)
    pairs = [tuple(s for s in pair if s in sizes) for pair in corpus.pairs] if unit == "speaker" else []
    pairs = [pair for pair in pairs if pair]
    single = sorted(sizes.keys() - {s for pair in pairs for s in pair}, key=lambda name: (-sizes[name], name))
    one, many = ("pair of speakers", "pairs of speakers") if any(len(p) > 1 for p in pairs) else (unit, f"{unit}s")
    if len(pairs) + len(single) < 2:
        raise CallError(
            f"speaker-independent folds are impossible with one {one} ({', '.join(sorted(sizes))}): nobody is left to train "
            f"on. Add other {unit}s; or leave the columns speaker and group out of a CSV and say --random-folds, and every "
            "score will be marked as not speaker-independent"
        )
    if len(pairs) + len(single) < count:
        raise CallError(f"--folds {count}: only {len(pairs) + len(single)} {many} to deal; ask for at most that many folds")
    dealt: list[list[str]] = [[] for _ in range(count)]
    for i, pair in enumerate(pairs):
        dealt[i % count] += pair
    for name in single:
        fewest = min(range(count), key=lambda fold: (sum(sizes[s] for s in dealt[fold]), fold))
        dealt[fewest].append(name)
    fold_of = {name: fold for fold, names in enumerate(dealt) for name in names}
    of = np.array([fold_of[getattr(u, unit)] for u in corpus.utterances], np.int32)
    how = "pairs in turn" if pairs else "largest first, to the smallest fold"
    rule = f"{len(sizes)} {unit}s dealt to {count} folds ({how}); no {unit} in training and in test"
    return Folds(of, tuple(", ".join(sorted(names)) for names in dealt), rule, True)


def _random_folds(corpus: Corpus, count: int) -> Folds:
    of = np.zeros(len(corpus.utterances), np.int32)
    labels = np.array([u.label for u in corpus.utterances])
    for i, label in enumerate(corpus.classes):
        rows = np.random.default_rng([_RANDOM_FOLDS, i]).permutation(np.flatnonzero(labels == label))
        of[rows] = (np.arange(len(rows)) + i) % count
    rule = f"{count} RANDOM folds of single utterances: NOT speaker-independent, the same voice may be on both sides"
    return Folds(of, tuple(f"random {i + 1}" for i in range(count)), rule, False)


@dataclass(frozen=True)
class Split:
    """One fold's rows: those to train on, and those to score."""

    train: np.ndarray
    test: np.ndarray
    scored: str = ""
    """Whose rows are scored, where that is not whom the fold holds out."""


def splits(folds: Folds, validate: bool = False) -> list[Split]:
    """The rows of every fold.

    With `validate` the fold's own rows are put away altogether: the next fold is scored and the others train, so that
    settings can be chosen on speakers held out inside the training part. Raises CallError where that leaves none to train.
    """
    count = len(folds.names)
    if validate and count < 3:
        raise CallError("--validate needs at least three folds: one put away, one to score, one to train on")
    scored = [(fold + 1) % count if validate else fold for fold in range(count)]
    return [
        Split(
            np.flatnonzero((folds.of != fold) & (folds.of != other)),
            np.flatnonzero(folds.of == other),
            folds.names[other] if validate else "",
        )
        for fold, other in enumerate(scored)
    ]


def check_classes(
    utterances: Sequence[Utterance], classes: Sequence[str], names: Sequence[str], splits: Sequence[Split], way_out: str = ""
) -> None:
    """Raise WorkError where a fold trains on no example of a class, or has none to test: its UA would not be defined.

    `names` says whom each fold holds out; `way_out` is what else a user may change.
    """
    labels = np.array([u.label for u in utterances])
    for fold, (name, rows) in enumerate(zip(names, splits, strict=True)):
        for some, role in ((rows.train, "train on"), (rows.test, "test")):
            for label in classes:
                if not (labels[some] == label).any():
                    who = f"{name} put away, {rows.scored} scored" if rows.scored else f"{name} held out"
                    left = [c for c in classes if c != label]
                    ways = [way_out] * bool(way_out)
                    ways += ["use fewer --folds"] * (len(splits) > 2)
                    ways += [f"leave the class out with --classes {','.join(left)}"] * (len(left) > 1)
                    ways = ways or ["have it said by more speakers"]
                    raise WorkError(f"fold {fold} ({who}) has no example of {label!r} to {role}: {', or '.join(ways)}")


def largest_balanced(labels: Int[np.ndarray, " n"], splits: Sequence[Split], classes: int) -> int:
    """The largest training set with equally many of each class that can be drawn in every fold."""
    return classes * int(min(np.bincount(labels[rows.train], minlength=classes).min() for rows in splits))


def check_train_size(labels: Int32[np.ndarray, " n"], splits: Sequence[Split], size: int, classes: int) -> None:
    """Raise CallError where a balanced training set of `size` cannot be drawn in every fold; the message names the
    largest that can."""
    if size == 0:
        return
    largest = largest_balanced(labels, splits, classes)
    smallest = largest // classes
    if size < 0 or size % classes or size > largest:
        raise CallError(
            f"--train-size {size}: it must be a multiple of the {classes} classes and at most {largest} here, for the "
            f"rarest class has {smallest} examples in one fold's training part (0 takes all, unbalanced)"
        )


def subset(
    labels: Int32[np.ndarray, " n"], rows: Int64[np.ndarray, " k"], size: int, classes: int, seed: int, fold: int
) -> Int64[np.ndarray, " m"]:
    """Draw `size / classes` of the rows of each class; 0 keeps all rows. For one seed and fold the smaller subset lies
    inside the larger, so that a learning curve adds examples and never swaps them."""
    if size == 0:
        return rows
    kept = []
    for label in range(classes):
        own = rows[labels[rows] == label]
        order = np.random.default_rng([_SUBSET, seed, fold, label]).permutation(own)
        kept.append(order[: size // classes])
    return np.sort(np.concatenate(kept))


def batches(
    rows: Int64[np.ndarray, " n"], batch_size: int, start: int, stop: int, seed: int, fold: int, size: int
) -> Int32[np.ndarray, "steps b"]:
    """The rows of updates `start` to `stop`: epoch after epoch, each in its own random order, the last batch of an epoch
    short and filled with -1."""
    per_epoch = -(-len(rows) // batch_size)
    first, last = start // per_epoch, -(-stop // per_epoch)
    plan = np.full((last - first, per_epoch * batch_size), -1, np.int32)
    plan[:, : len(rows)] = rows
    # As an array a key is read in half the time: many runs of a small head on a GPU use most of a million batches a second.
    key = np.array([_BATCHES, seed, fold, size, 0], np.uint32)
    for order, epoch in zip(plan, range(first, last), strict=True):
        key[-1] = epoch
        np.random.default_rng(key).shuffle(order[: len(rows)])
    return plan.reshape(-1, batch_size)[start - first * per_epoch : stop - first * per_epoch]
