"""The paper's tables and its figure: which cells they are made of, and what those look like together."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxser import compare, curves, cv, metrics, page, published, wording
from jaxser.cells import Cell, Work, cell_config, open_work
from jaxser.errors import CallError, WorkError
from jaxser.results import Finished
from jaxser.wording import percent, points


@dataclass(frozen=True)
class Made:
    """A table or figure with its cells: as text, as blocks of a page, and as a picture where it is one."""

    title: str
    text: list[str]
    blocks: list[str]
    cells: Mapping[str, Cell]
    picture: bytes | None = None


def columns_of(config: Any) -> dict[str, dict[str, str]]:
    """The kinds of features that stand beside each other, by name, with the flags of their cells."""
    columns = {"descriptors": {"features": "lld"}, "wav2vec": {"features": "wav2vec"}}
    if config.control != "none":
        columns["untrained"] = {"features": "wav2vec", "weights": config.control}
    return columns


# Table 1


def table_1(config: Any) -> Made:
    """Four heads on each kind of features, few examples."""
    work, columns = open_work(config), columns_of(config)
    wanted = {(h, c): {"head": h, **flags} for c, flags in columns.items() for h in published.TABLE_1}
    largest = work.largest([cell_config(config, head="mean", **flags) for flags in columns.values()])
    classes = len(work.corpus.classes)
    size = min(config.train_size - config.train_size % classes, largest)
    if size < classes:
        raise CallError(f"--train-size {config.train_size}: at least one example of each of {classes} classes")
    cells = {key: cell_config(config, train_size=size, **flags) for key, flags in wanted.items()}
    runs = dict(zip(cells, work.train(list(cells.values())), strict=True))

    first = runs["mlp", "wav2vec"]
    title = f"Table 1 on {_corpus(first)}: UA in per cent, {size} examples ({size // classes} a class)"
    header = ["head", *(f"paper: {name}" for name in ("LLD", "wav2vec", "gain")), "LLD", first.card["features"], "gain"]
    header += ["untrained"] * ("untrained" in columns)
    rows = []
    for head, (lld, wav2vec) in published.TABLE_1.items():
        gain = _gain(runs[head, "descriptors"], runs[head, "wav2vec"])
        ours = [scored(runs[head, "descriptors"]), scored(runs[head, "wav2vec"]), gain]
        control = [scored(runs[head, "untrained"])] if "untrained" in columns else []
        paper = [percent(lld), percent(wav2vec), points(wav2vec - lld)]
        rows.append([published.HEAD_NAMES[head], *paper, *ours, *control])
    notes = [f"the paper: IEMOCAP, wav2vec-large, {published.TABLE_1_SIZE} examples, no intervals; here: {_design(first)}"]
    if size != published.TABLE_1_SIZE:
        why = "asked for" if size == config.train_size else f"a multiple of {classes} classes"
        why = f"this corpus allows {largest} in balance" if largest < config.train_size else why
        notes.append(f"{size} examples in place of {published.TABLE_1_SIZE}: {why}")
    if "untrained" in columns:
        notes.append(_control(config))
    notes.append("LLD: the 34 low-level descriptors; gain: wav2vec over them in points, paired by speaker")
    return Made(
        title,
        [title, "", *wording.text_table([header, *rows], words=(0,)), "", *notes],
        [page.section("UA in per cent", page.table(header, rows), *(page.paragraph(note, "soft") for note in notes))],
        {f"{column} · {head}": Cell(cell, run=runs[head, column]) for (head, column), cell in cells.items()},
    )


# Table 2


def table_2(config: Any) -> Made:
    """All data: the rows that can be trained beside every number that the paper quotes."""
    work = open_work(config)
    cells: dict[int, Cell] = {}
    for number, row in enumerate(published.TABLE_2):
        if row.cell is None:
            continue
        cells[number] = _trainable(config, work, row)
    trained = {number: cell for number, cell in cells.items() if cell.config}
    runs = dict(zip(trained, work.train([cell.config for cell in trained.values()]), strict=True))
    cells |= {number: dataclasses.replace(cell, run=runs[number]) for number, cell in trained.items()}

    some = next(iter(runs.values()), None)
    title = f"Table 2 on {_corpus(some) if some else config.corpus}: UA in per cent, all data"
    rows = []
    for number, row in enumerate(published.TABLE_2):
        cell = cells.get(number)
        here = "" if cell is None else scored(cell.run) if cell.run else f"not trained: {cell.missing}"
        rows.append([row.name, row.reads, percent(row.ua), here])
    header = ["model", "reads", "the paper", "here"]
    notes = [
        "the paper: IEMOCAP, wav2vec-large and BERT-base, no intervals; rows without a number here are of other work",
        *(f"here, {published.TABLE_2[n].reads}: {_design(run)}, {run.card['features']}" for n, run in runs.items()),
        *(
            f"{published.TABLE_2[n].reads}: {line}"
            for n, run in runs.items()
            for line in run.card["leaks"]
            if "REPEATED" in line
        ),
    ]
    return Made(
        title,
        [title, "", *wording.text_table([header, *rows], words=(0, 1, 3)), "", *notes],
        [
            page.section(
                "UA in per cent", page.table(header, rows, words=(0, 1, 3)), *(page.paragraph(n, "soft") for n in notes)
            )
        ],
        {f"{published.TABLE_2[n].name} ({published.TABLE_2[n].reads})": cell for n, cell in cells.items()},
    )


def _trainable(config: Any, work: Work, row: published.Row) -> Cell:
    text = row.cell.get("text")
    if text == "glove" and config.glove is None:
        return Cell(None, "no word vectors, say --glove FILE")
    if text and not any(u.text for u in work.corpus.utterances):
        return Cell(None, "the corpus has no transcripts")
    try:
        cell = cell_config(config, **row.cell)
        cv.prepare(cell, *work.features_of(cell))
    except (CallError, WorkError) as error:
        if not text:
            raise
        return Cell(None, str(error))
    return Cell(cell)


# Figure 2


def figure_2(config: Any) -> Made:
    """UA against the number of examples, balanced up to where the corpus allows it, and with all rows."""
    work, columns = open_work(config), columns_of(config)
    plain = {c: {"head": config.head, **flags} for c, flags in columns.items()}
    largest = work.largest([cell_config(config, **flags) for flags in plain.values()])
    sizes = curves.sizes_of(len(work.corpus.classes), largest)
    cells = {(c, n): cell_config(config, train_size=n, **flags) for c, flags in plain.items() for n in [*sizes, 0]}
    runs = dict(zip(cells, work.train(list(cells.values())), strict=True))

    found = []
    for column in columns:
        name = "descriptors" if column == "descriptors" else runs[column, 0].card["features"]
        found.append(curves.curve(name, {n: runs[column, n] for n in sizes}, runs[column, 0]))
    first = runs["wav2vec", 0]
    title = f"Figure 2 on {_corpus(first)}: UA of {published.HEAD_NAMES[config.head]} against labelled examples"
    header = ["examples", "the paper", *(one.name for one in found)]
    rows = []
    for n in [*sizes, 0]:
        name = f"{n:,}" if n else f"{found[0].all_in_words} ({found[0].everything.size:,})"
        paper = published.FIGURE_2.get(n or max(published.FIGURE_2), None) if config.head == "mlp" else None
        rows.append([name, percent(paper) if paper else "", *(scored(runs[column, n]) for column in columns)])
    words = [line for one in found for line in curves.in_words(one)]
    notes = [
        f"here: {_design(first)}; for one seed smaller sets lie inside larger ones",
        f"balanced sets end at {largest:,} examples here; all data are no part of the fitted lines",
        "the paper: IEMOCAP, wav2vec-large, MLP; it states two points, 58.5 with 500 examples and 64.3 with 4,290 to 4,508",
        *([_control(config)] if "untrained" in columns else []),
    ]
    picture = curves.picture(found, published.FIGURE_2 if config.head == "mlp" else {}, title)
    return Made(
        title,
        [title, "", *wording.text_table([header, *rows], words=(0,)), "", *words, *notes],
        [
            page.section("UA against labels", page.image(picture, title, whole=True)),
            page.section("In words", *map(page.paragraph, words)),
            page.section("UA in per cent", page.table(header, rows), *(page.paragraph(note, "soft") for note in notes)),
        ],
        {f"{column} · {n or 'all'} examples": Cell(cell, run=runs[column, n]) for (column, n), cell in cells.items()},
        picture,
    )


def scored(run: Finished) -> str:
    """UA in per cent with its interval."""
    return wording.scored(run.summary, "ua")


def _gain(one: Finished, other: Finished) -> str:
    # Paired by speaker; where the kinds of features cannot be read from the same files, on those that both can.
    if one.predictions.keys() != other.predictions.keys():
        one, other = compare.in_common(one, other)
    try:
        compare.demand_comparable(one, other)
    except CallError:
        return "not comparable: other folds"
    gain = metrics.estimate([one.counts(), other.counts()], (-1.0, 1.0))
    return points(gain.value) + ("" if gain.low is None else f" ({points(gain.low)} to {points(gain.high)})")


def _control(config: Any) -> str:
    return f"untrained: {config.control}, a control"


def _corpus(run: Finished) -> str:
    return wording.corpus_name(run.card)


def _design(run: Finished) -> str:
    summary = run.summary
    counts = f"{summary['utterances']} utterances, {summary['folds']} folds, {wording.seeds_in_words(summary)}"
    luck = "what others would change is in no interval" if summary["seeds"] == 1 else "those of differences over seeds too"
    return f"{counts}, 95 % intervals over {wording.units_in_words(summary)}, {luck}"


MAKERS = {"table-1": table_1, "table-2": table_2, "figure-2": figure_2}
