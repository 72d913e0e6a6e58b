from dataclasses import replace
from pathlib import Path

from jaxser import cv, folds, protocol
from jaxser.corpora import Corpus, Utterance
from jaxser.extract import Extractor, Features
from jaxser.store import Store

UTTERANCES = tuple(Utterance(f"u{i}", Path("x"), "ab"[i % 2], f"s{i // 4}", f"g{i // 8}") for i in range(16))
CORPUS = Corpus("csv", UTTERANCES, ("a", "b"))
CONTENTS = {u.id: f"digest of {u.id}" for u in UTTERANCES}
CONFIG = cv.Config(corpus="csv", root=Path("x"), updates=10)


def signature(
    config: cv.Config = CONFIG, corpus: Corpus = CORPUS, contents: dict[str, str] = CONTENTS, count=None, reads=("audio",)
) -> str:
    extractors = {
        kind: Extractor(kind, {"extractor": kind}, lambda u: {}, lambda u: "", lambda t, j: [], lambda p, j, b: iter(()))
        for kind in reads
    }
    features = [Features(one, Store(Path(f"{kind}-0"), 3, {}, {}), contents) for kind, one in extractors.items()]
    return protocol.signature(config, corpus, folds.assign(corpus, count), features)


def test_whatever_changes_the_number_changes_the_signature():
    moved = (replace(UTTERANCES[0], label="b"), *UTTERANCES[1:])
    respoken = (replace(UTTERANCES[0], speaker="s1"), *UTTERANCES[1:])
    signatures = [
        signature(),
        signature(corpus=replace(CORPUS, utterances=moved)),
        signature(corpus=replace(CORPUS, utterances=respoken)),
        signature(corpus=replace(CORPUS, utterances=UTTERANCES[1:])),
        signature(corpus=replace(CORPUS, left_out=(("u", "bad"),))),
        signature(contents=CONTENTS | {"u3": "another sound"}),
        signature(count=4),
        signature(reads=("text",)),
        signature(reads=("audio", "text")),
        *(
            signature(config=replace(CONFIG, **change))
            for change in (
                {"head": "mean"}, {"train_size": 4}, {"updates": 11}, {"updates": None, "epochs": 2}, {"seeds": 2},
                {"batch_size": 4}, {"learning_rate": 1e-3}, {"learning_rate": 1.0000004e-4}, {"dropout": 0.1},
                {"validate": True}, {"exclude_repeated_text": True},
            )
        ),
    ]  # fmt: skip
    assert len(set(signatures)) == len(signatures)


def test_the_signature_names_the_weights():
    settings = {"extractor": "wav2vec", "layer": "c", "weights_sha256": "0123456789abcdef"}
    one = Extractor("audio", settings, lambda u: {}, lambda u: "", lambda t, j: [], lambda p, j, b: iter(()), "nano")
    features = [Features(one, Store(Path("wav2vec-0"), 3, {}, {}), CONTENTS)]
    assert "|features:wav2vec-0|weights:nano-01234567|" in protocol.signature(CONFIG, CORPUS, folds.assign(CORPUS), features)


def test_choices_name_what_the_paper_leaves_open():
    for head, flags, wanted in (
        ("mlp", {}, {"frames averaged": "16", "layer": "context vectors (c)", "MLP": "21,508"}),
        ("mean", {"features": "lld"}, {"descriptors": "windows of 50 ms every 25 ms", "part of an utterance": "the first 5 s"}),
        ("aligned", {"text": "bert"}, {"BERT": "bert-base-uncased, second-to-last", "tags": "dropped", "LSTM": "100 states"}),
    ):
        found = protocol.choices(cv.resolve(cv.Config(head=head, **flags)))
        for name, text in (wanted | {"dropout": "0.2", "length": "updates"}).items():
            assert text in next(value for key, value in found.items() if key.startswith(name))


def test_what_changes_no_number_changes_no_signature():
    assert signature(config=replace(CONFIG, cache=Path("y"), out=Path("z"), jobs=3)) == signature()
    assert signature(corpus=replace(CORPUS, utterances=UTTERANCES)) == signature()


def test_the_order_of_utterances_is_signed():
    # Subsets and batches are drawn by row, so another order of a table gives another score.
    assert signature(corpus=replace(CORPUS, utterances=UTTERANCES[::-1])) != signature()


def test_which_rows_make_which_fold_is_signed():
    # The same groups numbered otherwise: random streams derive from a fold's number.
    dealt = folds.assign(CORPUS)
    other = replace(dealt, of=1 - dealt.of, names=dealt.names[::-1])
    assert protocol.signature(CONFIG, CORPUS, dealt, []) != protocol.signature(CONFIG, CORPUS, other, [])


def test_what_is_trained_on_in_words():
    assert protocol.subset_rule(CONFIG).startswith("all rows outside the test fold, as unbalanced")
    assert "the next one, which is scored" in protocol.subset_rule(replace(CONFIG, validate=True))
    assert "whose sentence is also scored" in protocol.subset_rule(replace(CONFIG, exclude_repeated_text=True))
    assert protocol.subset_rule(replace(CONFIG, train_size=8)).startswith("8 rows outside the test fold; equally many")
