"""The weights that ship: they are there, small, whole, described, and what the command in the README makes."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from jaxser import checkpoint, cv, extract, wav2vec
from jaxser.architecture import NANO
from jaxser.cards import FILE, pretraining
from jaxser.recipes import RECIPES

NOTE = checkpoint.about(wav2vec.path_of("nano"), wav2vec.KIND)
FOLDER = Path(wav2vec.path_of("nano"))


def test_they_are_small_and_in_half_precision():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 10e6
    params, _ = checkpoint.load(FOLDER, wav2vec.KIND)
    assert {leaf.dtype for _, leaf in checkpoint.named_leaves(params)} == {np.dtype(np.float16)}


def test_they_are_an_encoder_by_name():
    encoder = wav2vec.load("nano")
    assert encoder.config == NANO
    assert encoder.digest == NOTE["encoder_digest"] == wav2vec.identify("nano")[1]
    assert not wav2vec.identify("nano")[2]
    assert {leaf.dtype for _, leaf in checkpoint.named_leaves(encoder.params)} == {np.dtype(np.float32)}


def test_they_are_what_the_recipe_makes():
    assert NOTE["settings"]["recipe"] == checkpoint.plain(asdict(RECIPES["nano"]))
    assert (NOTE["settings"]["seed"], NOTE["settings"]["initial"]) == (0, None)
    assert NOTE["updates"] == RECIPES["nano"].updates


def test_nothing_that_we_evaluate_on_was_heard():
    heard = " ".join(source["name"] for source in NOTE["sources"]).lower()
    assert heard.split() == ["speechocean762/index.csv", "picovoice_speech_to_intent/index.csv"]


def test_the_card_is_the_checkpoints_own():
    card = (FOLDER / FILE).read_text()
    assert card == pretraining(NOTE)
    notes = (FOLDER.parent / "nano-notes.md").read_text()
    assert notes.strip() in card
    assert "`--weights` of jaxser's commands, `--initial` of its pretraining." in " ".join(card.split())
    for text in ("Apache-2.0", "half of the readers are children", "16 kHz", NOTE["encoder_digest"], NOTE["machine"]):
        assert text in card


def test_they_tell_what_comes_next_in_voices_they_never_heard():
    first, last = NOTE["curve"][0], NOTE["curve"][-1]
    assert last["held_out_accuracy"] > 0.35 > 3 / 11  # one of eleven is chance
    assert last["held_out_loss"] < first["held_out_loss"] < np.log(11)


def test_they_are_the_default(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert (extract.Config().features, extract.Config().weights) == ("wav2vec", "nano")
    cv.main(cv.Config(corpus="csv", root=table, cache=tmp_path / "c", out=tmp_path / "r", head="mean", updates=5))
    assert "csv · wav2vec nano c · mean" in capsys.readouterr().out
    card = json.loads((tmp_path / "r" / "protocol.json").read_text())
    assert card["settings"]["audio"]["weights_sha256"] == NOTE["encoder_digest"]
