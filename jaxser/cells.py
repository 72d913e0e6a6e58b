"""The cells of the paper's tables: calls of jaxser.cv that share a corpus and, where they are of a kind, a program."""

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxser import corpora, cv, experiments, extract, folds, hosts
from jaxser.errors import CallError, WorkError
from jaxser.heads import HEADS
from jaxser.results import Finished, read_finished


@dataclass(frozen=True)
class Cell:
    """One number of a table: what is trained for it, and what stands in its place where that cannot be."""

    config: cv.Config | None
    missing: str = ""
    run: Finished | None = field(default=None, compare=False)


def cell_config(config: Any, **flags: Any) -> cv.Config:
    """The call of jaxser.cv that trains a cell: the corpus of the table, the flags of the cell."""
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(extract.Config)}
    given |= {"folds": config.folds, "seeds": config.seeds, "updates": config.updates}
    given |= {"parallel": config.parallel, "memory": config.memory}
    given |= {"text_model": None, "tags": cv.Config.tags, "weights": flags.get("weights", config.weights)}
    if flags.get("text") == "bert":
        given |= {"text_model": config.text_model, "tags": config.tags}
    elif flags.get("text") == "glove":
        given |= {"text_model": str(config.glove), "tags": config.tags}
    for features, names in extract.FLAGS_OF.items():
        if features != flags["features"]:
            given |= {name: getattr(cv.Config, name) for name in names}
    found = cv.resolve(cv.Config(**(given | flags)))
    return dataclasses.replace(found, out=config.runs / cv.config_hash(found))


@dataclass
class Work:
    """A corpus with the features that cells ask for, each computed once."""

    config: Any
    corpus: corpora.Corpus
    found: dict[str, tuple[corpora.Corpus, list[extract.Features]]] = field(default_factory=dict)

    def features_of(self, cell: cv.Config) -> tuple[corpora.Corpus, list[extract.Features]]:
        """The corpus as far as it can be used, and its features, for the head of this cell."""
        extractors = extract.extractors_of(cell, HEADS[cell.head].inputs)
        key = json.dumps([dict(one.settings) for one in extractors], sort_keys=True)
        if key not in self.found:
            self.found[key] = extract.extract_all(self.corpus, extractors, cell)
        return self.found[key]

    def largest(self, cells: Sequence[cv.Config]) -> int:
        """The largest balanced training set that every fold allows, on the features of all these cells."""
        largest = []
        for cell in cells:
            corpus, _ = self.features_of(cell)
            labels = np.array([corpus.classes.index(u.label) for u in corpus.utterances])
            dealt = folds.assign(corpus, cell.folds)
            splits = folds.splits(dealt)
            folds.check_classes(corpus.utterances, corpus.classes, dealt.names, splits)
            largest.append(folds.largest_balanced(labels, splits, len(corpus.classes)))
        return min(largest)

    def train(self, cells: Sequence[cv.Config]) -> list[Finished]:
        """Train what is not finished, all cells of one head and one kind of features as one program; read all.

        Where the work fails for one program, as with runs that diverge, the others are trained before WorkError tells.
        """
        groups: dict[str, list[experiments.Experiment]] = {}
        said: set[str] = set()
        for cell in cells:
            one = cv.prepare(cell, *self.features_of(cell))
            for remark in one.remarks:
                if remark not in said:
                    hosts.say(remark)
            said |= set(one.remarks)
            if not hosts.of_first(lambda one=one: experiments.finished(one)):
                alike = {n: v for n, v in one.settings.items() if n not in experiments.OF_A_KIND}
                groups.setdefault(json.dumps(alike, sort_keys=True), []).append(one)
        failed: list[str] = []
        for number, group in enumerate(groups.values(), 1):
            sizes = ", ".join(str(one.config.train_size or "all") for one in group)
            what = f"{group[0].config.head} on {' + '.join(f.extractor.name for f in group[0].features)}"
            hosts.say(f"{number} of {len(groups)}: {what}, {sizes} examples")
            try:
                experiments.run(group, time.monotonic())
            except WorkError as error:
                if not hosts.alike(error):
                    raise
                failed.append(str(error))
        if failed:
            raise WorkError("; ".join(failed))
        return [read_finished(cell.out) for cell in cells]


def open_work(config: Any) -> Work:
    """The corpus of a table. Raises CallError as jaxser.cv does, and for one that names neither speakers nor groups."""
    corpus = extract.open_corpus(config)
    if not any(all(getattr(u, name) for u in corpus.utterances) for name in ("speaker", "group")):
        raise CallError(
            "the corpus names neither speakers nor groups, and these tables are of speakers never heard: add a column"
        )
    return Work(config, corpus)
