"""A recogniser on disk: written by cross-validation, read again wherever it is needed.

It is one Orbax checkpoint: every run's parameters and standardisation, the configuration, the settings of its features with the
sha256 of the encoder behind them, the temperatures, the score and the protocol card. The encoder's own weights stay where
they are.
"""

import dataclasses
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from platformdirs import user_cache_path

from jaxser import cards, checkpoint, extract, results, wav2vec
from jaxser.command import differences
from jaxser.ensemble import Trained
from jaxser.errors import CallError, WorkError
from jaxser.files import json_of, write_bytes
from jaxser.heads import HEADS
from jaxser.kinds import misfit
from jaxser.recogniser import Members, Recogniser
from jaxser.standards import Standard
from jaxser.train import Run

KIND = "a trained recogniser"
"""What its checkpoints say that they hold."""

ABOUT_KINDS = {
    "config": {
        **dict.fromkeys(("head", "features", "weights", "layer", "precision", "text", "tags", "crop"), str),
        **dict.fromkeys(("dropout", "max_seconds", "lld_window", "lld_hop"), float | int),
        "average_frames": int, "text_model": str | None,
    },
    "classes": [str], "members": [{"fold": int, "seed": int}], "final": bool,
    "temperature": float, "temperature_of_mean": float,
    "longest": [int], "inputs": [{"of": str, "name": str, "random": bool, "settings": dict}], "weights_at": str | None,
    "summary": {"signature": str}, "card": dict,
}  # fmt: skip
"""What a model must say of itself to be read again."""

TEMPERATURES = ("temperature", "temperature_of_mean")
"""Of each head, and of the mean of several."""

MOST_FRAMES = 2**23
"""More frames than a day of speech has: of an utterance, a number that is damaged."""


def save(
    path: Path,
    config: Mapping[str, Any],
    features: Sequence[extract.Features],
    longest: Sequence[int],
    runs: Sequence[Run],
    trained: Trained,
    final: Trained | None,
    summary: Mapping[str, Any],
    card: Mapping[str, Any],
) -> None:
    """Write a model with its card, in place of one that was there.

    `longest` has the frames of the longest utterance for each of `features`; `final` is the head on all data, if there is one.
    """
    params = {"folds": _members(trained)} | ({"all": _members(final)} if final else {})
    about = {
        "config": dict(config),
        "classes": list(summary["classes"]),
        "members": [{"fold": run.fold, "seed": run.seed} for run in runs],
        "final": final is not None,
        **{name: summary["calibration"][name] for name in TEMPERATURES},
        "longest": [int(frames) for frames in longest],
        "inputs": [
            {"of": one.of, "name": one.extractor.name, "random": one.extractor.random, "settings": dict(one.extractor.settings)}
            for one in features
        ],
        "weights_at": _place(config),
        "summary": dict(summary),
        "card": dict(card),
    }
    if path.exists():
        shutil.rmtree(path)
    checkpoint.save(path, KIND, params, about, one_host=True)
    write_bytes(path / cards.FILE, cards.recogniser(about).encode(errors="backslashreplace"))


def _members(trained: Trained) -> dict[str, Any]:
    standards = {f"{i}": {"mean": one.mean, "scale": one.scale} for i, one in enumerate(trained.standards)}
    return {"params": trained.params, "standards": standards}


def _place(config: Mapping[str, Any]) -> str | None:
    # Where the encoder lay, for those who move the model alone.
    weights = config["weights"]
    own = config["features"] != "wav2vec" or weights in wav2vec.SHIPPED_NAMES or weights.startswith("random")
    return None if own else str(checkpoint.absolute(weights))


def is_there(path: Path, final: bool) -> bool:
    """Whether a whole model of this version lies there, with a head on all data where that is asked for.

    Raises checkpoint.DiskError where that cannot be read now: a model that is there would be made again, and go.
    """
    try:
        about = checkpoint.about(path, KIND)
    except CallError:
        return False
    return not misfit(about, ABOUT_KINDS) and (about["final"] or not final)


def load(
    path: str | os.PathLike,
    *,
    final: bool = False,
    weights: str | None = None,
    text_model: str | None = None,
    cache: Path | None = None,
) -> Recogniser:
    """A model that `jaxser.cv --save` wrote, from its folder or from the run folder around it. Paths may be remote (gs://).

    Its prediction is the mean of all folds' and seeds' heads; with `final` that of the one trained on all data. `weights` and
    `text_model` say where the encoders lie today; other ones than it was trained with are refused, and those of a kind that it
    does not read. Raises CallError for what is no model, WorkError for a damaged one.
    """
    folder = checkpoint.absolute(path)
    if (folder / "model").exists():
        folder = folder / "model"
    else:
        _refuse_run_without_model(Path(path).expanduser())
    params, about = checkpoint.load(folder, KIND)
    if odd := misfit(about, ABOUT_KINDS):
        raise WorkError(f"{path} is damaged or of another version, {odd}: repeat its command, with --save")
    try:
        config = extract.Config(**_of_features(about["config"]))
        reads = HEADS[about["config"]["head"]].inputs
        if weights is not None and ("audio" not in reads or config.features != "wav2vec"):
            raise CallError(f"--weights {weights}: {path} reads no wav2vec; leave it out")
        if text_model is not None and "text" not in reads:
            raise CallError(f"--text-model {text_model}: {path} reads no words; leave it out")
        changes = {name: value for name, value in (("weights", weights), ("text_model", text_model)) if value is not None}
        if weights is None and about["weights_at"]:
            changes["weights"] = about["weights_at"]
        config = dataclasses.replace(config, cache=cache or user_cache_path("jaxser"), **changes)
        head = HEADS[about["config"]["head"]]
        module = head.module(len(about["classes"]), about["config"]["dropout"])
        names = tuple({"fold": one["fold"], "seed": one["seed"]} for one in about["members"])
        members = {"folds": names, "all": ({"fold": None, "seed": 0},)}
        longest, temperatures = tuple(about["longest"]), {name: float(about[name]) for name in TEMPERATURES}
        if final and "all" not in params:
            raise CallError(f"{path} has no head trained on all data: train it with jaxser.cv --final")
        which = "all" if final else "folds"
        mine = _loaded(members[which], params[which], len(about["inputs"]))
        average = about["config"]["average_frames"] if head.average else 1
        if not min(temperatures.values()) > 0 or not all(0 < frames < MOST_FRAMES for frames in longest):
            raise ValueError(f"{temperatures}, longest {longest}")
        if not [one["of"] for one in about["inputs"]] == list(head.inputs) or len(longest) != len(head.inputs):
            raise ValueError(f"a {about['config']['head']} of {len(longest)} inputs")
    except CallError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WorkError(f"{path} is damaged: what it says of itself is not whole ({str(error)[:300]!r})") from None
    extractors = tuple(extract.extractors_of(config, head.inputs, keep=True))
    for extractor, known in zip(extractors, about["inputs"], strict=True):
        if differing := differences(known["settings"], extractor.settings):
            flag = "--weights" if known["of"] == "audio" else "--text-model"
            raise CallError(f"the features at hand are not those that {path} was trained on ({differing}): give {flag}")
    model = Recogniser(
        classes=tuple(about["classes"]),
        members=mine,
        **temperatures,
        head=about["config"]["head"],
        module=module,
        longest=longest,
        average=average,
        extractors=extractors,
        about=about,
    )
    if odd := model.misfit():
        raise WorkError(f"{path} is damaged: {odd}")
    return model


def _refuse_run_without_model(run: Path) -> None:
    # With the command that gives it one. cv trains a finished run anew for a model, and ends with the same scores.
    config = card = None
    with suppress(OSError):  # whatever a disk does not say now is told where the model is read
        config, card = json_of(run / "config.json"), json_of(run / "protocol.json")
        results.refuse_table(run)
    if not config or not {"head", "seeds", "updates"} <= set(config):
        return
    if not (run / "summary.json").is_file():
        raise CallError(f"{run} is not finished and has no model: repeat the command that began it, with --save")
    command = f"{(card or {}).get('command') or 'python -m jaxser.cv ...'} --out {shlex.quote(str(run))} --save"
    raise CallError(
        f"{run} has no model, for it was run without --save: the same command with it trains the same heads anew and keeps "
        f"them: {command}"
    )


def _of_features(config: Mapping[str, Any]) -> dict[str, Any]:
    # What of a run's configuration says how features are made; its corpus stays behind.
    left = {"corpus", "root", "classes", "strict", "jobs", "cache", "coordinator", "processes", "process"}
    return {f.name: config[f.name] for f in dataclasses.fields(extract.Config) if f.name not in left}


def _loaded(names: tuple[Mapping[str, Any], ...], tree: Mapping[str, Any], inputs: int) -> Members:
    standards = tuple(Standard(**tree["standards"][f"{i}"]) for i in range(inputs))
    params, standards = jax.tree.map(jnp.asarray, (tree["params"], standards))
    return Members(names, params, standards)
