"""python -m jaxser.compare RUN_A RUN_B: from run folders alone, whether B is better than A on the same speakers."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from jaxser import metrics, wording
from jaxser.command import run_command
from jaxser.errors import CallError
from jaxser.results import Finished, read_finished
from jaxser.wording import percent, points


@dataclass(frozen=True)
class Config:
    """Compare two finished runs on the same utterances, paired by speaker.

    The 95 % interval of the difference in UA decides the last line. It is over speakers, and takes in what other seeds would
    change. Where groups hold several speakers, and over groups zero lies inside, that line says so.
    """

    a: tyro.conf.Positional[Path]
    """The run folder of A, such as runs/0123456789ab."""
    b: tyro.conf.Positional[Path]
    """The run folder of B."""
    common: bool = False
    """Score both on the utterances that both have, where one of them left some out (those without words, say)."""


@dataclass(frozen=True)
class Comparison:
    """What two runs show beside each other; differences are B minus A, fractions."""

    ua: metrics.Estimate
    wa: metrics.Estimate
    over_groups: metrics.Estimate | None
    """UA with groups as what is independent, where some hold several speakers."""
    groups: int
    """How many these are; 0 where there are none."""
    by_fold: np.ndarray
    """UA of A and of B in each fold, averaged over seeds: f64[folds, 2]."""
    t_test: metrics.TTest
    units: int
    utterances: int


def main(config: Config) -> None:
    """The whole command."""
    a, b = read_finished(config.a), read_finished(config.b)
    if config.common:
        a, b = in_common(a, b)
    demand_comparable(a, b)
    for line in in_words(a, b, compared(a, b)):
        print(line)


def compared(a: Finished, b: Finished) -> Comparison:
    """The paired statistics of two comparable runs."""
    counts = [one.counts() for one in (a, b)]
    by_group = [one.counts("group") for one in (a, b)] if a.summary["groups_as_units"] else []
    by_fold = np.stack([metrics.fold_scores(one.sum(0)).mean(0) for one in counts], 1)
    return Comparison(
        ua=metrics.estimate(counts, (-1.0, 1.0)),
        wa=metrics.estimate(counts, (-1.0, 1.0), metrics.WA),
        over_groups=metrics.estimate(by_group, (-1.0, 1.0)) if by_group else None,
        groups=len(by_group[0]) if by_group else 0,
        by_fold=by_fold,
        t_test=metrics.corrected_t_test(by_fold[:, 1] - by_fold[:, 0], max(map(_test_over_train, (a, b)))),
        units=len(counts[0]),
        utterances=len(a.predictions),
    )


def _test_over_train(one: Finished) -> float:
    # Of all that is not tested on, also where less was trained on: smaller sets overlap less, and are not to be corrected more.
    n = one.summary["utterances"]
    return float(np.mean([fold["test"] / (n - fold["test"]) for fold in one.card["folds"]]))


def in_common(a: Finished, b: Finished) -> tuple[Finished, Finished]:
    """Both runs with the utterances that both have. Raises CallError where there are none."""
    ids = sorted(a.predictions.keys() & b.predictions.keys())
    if not ids:
        raise CallError(f"{a.folder} and {b.folder} have no utterance in common")
    return tuple(replace(one, predictions={name: one.predictions[name] for name in ids}) for one in (a, b))


def demand_comparable(a: Finished, b: Finished) -> None:
    """Raise CallError, with the reason, for runs whose difference would say nothing: other utterances, labels, folds."""
    both = f"{a.folder} and {b.folder} cannot be compared"
    if a.folder.resolve() == b.folder.resolve():
        raise CallError(f"{a.folder} is named twice: give two run folders")
    for what, of in {
        "corpora": lambda one: one.card["corpus"],
        "classes": lambda one: ", ".join(one.classes),
        "speakers that were scored (--validate)": lambda one: f"--validate {one.summary['validate']}",
        "independent units": lambda one: one.summary["interval_unit"],
    }.items():
        if of(a) != of(b):
            raise CallError(f"{both}: they have other {what}, {of(a)} and {of(b)}")
    missing = [(one, sorted(other.predictions.keys() - one.predictions.keys())) for one, other in ((a, b), (b, a))]
    for one, names in missing:
        if names:
            raise CallError(
                f"{both}: {one.folder} has no prediction for {len(names)} utterance(s) of the other, {names[0]} first; "
                "--common scores both on those that both have"
            )
    for name, mine in a.predictions.items():
        other = b.predictions[name]
        for what in ("label", "speaker", "group", "fold"):
            here, there = getattr(mine, what), getattr(other, what)
            if here != there:
                raise CallError(f"{both}: {name} has another {what} in each, {here!r} and {there!r}")
    if _read_alike(a, b):
        here, there = (_signed(one).get("corpus") for one in (a, b))
        if here != there:
            raise CallError(f"{both}: the same ids stand for other recordings or words, {here} and {there}")


def _read_alike(a: Finished, b: Finished) -> bool:
    # Whether the digests of their corpora are of the same things: all utterances, the same of sound and words.
    whole = all(len(one.predictions) == one.summary["utterances"] for one in (a, b))
    tags = [one.card["settings"].get("text", {}).get("tags") for one in (a, b)]
    return whole and a.card["settings"].keys() == b.card["settings"].keys() and tags[0] == tags[1]


def _signed(one: Finished) -> dict[str, str]:
    return dict(part.partition(":")[::2] for part in one.summary["signature"].split("|"))


def in_words(a: Finished, b: Finished, found: Comparison) -> list[str]:
    """The comparison for people; its last line is the verdict."""
    mine, other = _signed(a), _signed(b)
    differing = [name for name in {**mine, **other} if mine.get(name) != other.get(name) and name != "corpus"]
    unit = a.summary["interval_unit"]
    units = f"{found.units} {unit}{'s' * (found.units != 1)}"
    seeds = " and ".join(wording.seeds_in_words(one.summary) for one in (a, b))
    lines = [
        *(
            f"{letter}  {wording.title(one.summary, one.card)}\n   {one.folder}\n   {one.summary['signature']}"
            for letter, one in (("A", a), ("B", b))
        ),
        "they differ in " + ("; ".join(f"{n}: {mine.get(n, 'none')} | {other.get(n, 'none')}" for n in differing) or "nothing"),
        f"{found.utterances} utterances of {units} in {len(found.by_fold)} folds, the same in both; {seeds}, averaged first",
        "",
        "fold  A UA %  B UA %  B - A",
        "----  ------  ------  -----",
        *(
            f"{fold:4}  {percent(one):>6}  {percent(two):>6}  {points(two - one):>5}"
            for fold, (one, two) in enumerate(found.by_fold)
        ),
        "",
        *(f"{letter}: {mark}" for letter, one in (("A", a), ("B", b)) for mark in wording.marks_against(one.summary, one.card)),
    ]
    for name, estimate in (("UA", found.ua), ("WA", found.wa)):
        text = f"{name}: B - A = {points(estimate.value)} points"
        if estimate.low is not None:
            low, high = map(points, (estimate.low, estimate.high))
            text += f", 95 % interval {low} to {high}, paired over {units}"
            if name == "UA" and found.over_groups and found.over_groups.low is not None:
                low, high = map(points, (found.over_groups.low, found.over_groups.high))
                text += f" ({low} to {high} over their {found.groups} groups)"
        lines.append(text)
    lines.append(_t_test(found.t_test))
    if not _read_alike(a, b):
        lines.append("they read other kinds of things, or not all: that ids stand for the same recordings is taken on trust")
    spread = " and ".join("unknown" if (s := one.summary["ua_std"]) is None else percent(s) for one in (a, b))
    once = " and ".join(letter for letter, one in (("A", a), ("B", b)) if one.summary["seeds"] == 1)
    others, where = (f"other seeds of {once}", "not in") if once else ("other seeds", "in")
    lines.append(f"what {others} would change is {where} the intervals: deviation of UA over seeds {spread}")
    last, over = verdict(found.ua, unit, bool(once)), found.over_groups
    if found.ua.excludes_zero and over and not over.excludes_zero:
        last += f"; with the {found.groups} groups as what is independent it could be chance"
    return [*lines, last]


def _t_test(found: metrics.TTest) -> str:
    name = f"corrected t-test on the folds' differences (Nadeau and Bengio, 2003; {found.degrees + 1} folds)"
    if found.p is None:
        return f"{name}: not to be had, the folds' differences do not vary"
    return f"{name}: t = {found.t:.2f}, {found.degrees} degrees of freedom, p = {found.p:.3f}"


def verdict(difference: metrics.Estimate, unit: str = "speaker", once: bool = False) -> str:
    """What the interval of a difference in UA, B minus A, allows to say. `once`: one of them was trained with a single seed."""
    if difference.low is None:
        return f"these folds cannot tell them apart: too few {unit}s, or all differ by as much, so there is no interval"
    if difference.excludes_zero:
        better, sign = ("B", 1) if difference.value > 0 else ("A", -1)
        low, high = sorted((sign * difference.low, sign * difference.high))
        by, low, high = (points(value).lstrip("+") for value in (sign * difference.value, low, high))
        return f"{better} is better by {by} points, 95 % interval {low} to {high}" + ", as far as one seed can tell" * once
    return (
        f"these folds cannot tell them apart: B - A is {points(difference.value)} points, 95 % interval "
        f"{points(difference.low)} to {points(difference.high)}"
    )


if __name__ == "__main__":
    run_command("jaxser.compare", Config, main)
