"""Model cards: of pretrained weights, what they heard and how well they predict; of a trained recogniser, its score and how
that was made; of both, what they are not for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxser import recordings, wording
from jaxser.recordings import Recording

FILE = "MODEL_CARD.md"

ROWS = 16
"""Looks at the held-out speech that the card lists at most; the checkpoint has them all."""


def source_of(number: int, source: Path, found: Sequence[Recording]) -> dict[str, Any]:
    """One folder or CSV as the card names it: its last two names, files, hours, speakers."""
    home = (source if source.is_dir() else source.parent).absolute()
    mine = [r for r in found if r.source == number]
    speakers = len({r.speaker for r in mine if r.speaker})
    name = home.name if source.is_dir() else f"{home.name}/{source.name}"
    return {"name": name, "files": len(mine), "hours": round(recordings.hours(mine), 2), "speakers": speakers}


def pretraining(note: Mapping[str, Any]) -> str:
    """The card as Markdown, from what a checkpoint says of itself."""
    settings, curve = note["settings"], note["curve"]
    config = note["config"]
    layers = {name: ", ".join(f"{c}x{k}/{s}" for c, k, s in config[name]) for name in config if name.startswith("conv_")}
    facts = {
        "recordings": "; ".join(_source(source) for source in note["sources"]),
        "trained on": f"{note['train_hours']:.2f} h",
        "held out": note["held_out"],
        "left out": recordings.counted(note["left_out"]) or "nothing",
        "heard": f"{note['hours_heard']:.1f} h in {note['updates']:,} updates "
        f"({note['updates'] / note['updates_an_epoch']:.1f} epochs)",
        "machine": note["machine"],
        "time": f"{note['seconds'] / 3600:.2f} h",
        "encoder": f"{layers['conv_feature_layers']} (channels x kernel / stride)",
        "context": layers["conv_aggregator_layers"],
        "flags": ", ".join(f"{name} {value}" for name, value in config.items() if not name.startswith("conv_")),
        "objective": ", ".join(f"{name} {value}" for name, value in settings["recipe"]["objective"].items()),
        "training": ", ".join(f"{name} {value}" for name, value in settings["recipe"].items() if not isinstance(value, dict))
        + f", seed {settings['seed']}",
        "sha256 of the encoder": note["encoder_digest"],
        "sha256 of all arrays": note["digest"],
        "sha256 of the recordings": settings["recordings"],
        "versions": ", ".join(f"{name} {value}" for name, value in note["versions"].items()),
    }
    listed = "\n".join(f"- **{name}**: {text}" for name, text in facts.items())
    step = max(1, -(-len(curve) // ROWS))
    shown = curve[::-1][::step][::-1]  # the last one is always there
    lines = "\n".join(
        f"| {row['updates']:,} | {row['hours_heard']:.1f} | {row['loss']:.3f} | {100 * row['accuracy']:.1f} | "
        + (f"{row['held_out_loss']:.3f} | {100 * row['held_out_accuracy']:.1f} |" if "held_out_loss" in row else "| |")
        for row in shown
    )
    notes = f"\n{note['notes'].strip()}\n" if note.get("notes") else ""
    return f"""# wav2vec weights, pretrained with jaxser

A wav2vec (Schneider et al., 2019) trained on unlabelled speech, for features of 16 kHz speech: `--weights` of jaxser's
commands, `--initial` of its pretraining. No emotion label was used.

{listed}
{notes}
## How well it tells what comes next

Loss of a prediction (natural logarithm), and the share of predictions that scored the true frame above all its
negatives, in training since the line before and on held-out speech.

| updates | hours heard | loss | right % | held-out loss | held-out right % |
| ---: | ---: | ---: | ---: | ---: | ---: |
{lines}
"""


def _source(source: Mapping[str, Any]) -> str:
    people = f", {source['speakers']} speakers" if source["speakers"] else ", speakers not named"
    return f"{source['name']} ({source['files']:,} files, {source['hours']:.2f} h{people})"


def recogniser(about: Mapping[str, Any]) -> str:
    """The card of a trained recogniser as Markdown, from what its checkpoint says of itself."""
    summary, card, heads = about["summary"], about["card"], len(about["members"])
    found = summary["calibration"]
    scores = [*wording.scores_in_words(summary), *wording.marks_against(summary, card)]
    recalls = "\n".join(
        f"| {name} | {wording.percent(recall['mean'])} | {wording.interval(recall)} |"
        for name, recall in summary["recalls"].items()
    )
    known = wording.protocol_in_words(summary, card)
    protocol = "\n".join(
        f"- **{name}**: {value if isinstance(value, str) else '; '.join(value)}" for name, value in known.items() if any(value)
    )
    final = "\nBeside them it has one head trained on all data (`--final`), which nothing was held out from to score.\n"
    encoders = "\n".join(
        f"- {one['name']}" + "".join(f", sha256 {one['settings'][name]}" for name in SHA256 if name in one["settings"])
        for one in about["inputs"]
    )
    return f"""# {wording.title(summary, card)}

A recogniser of emotion in speech, made by jaxser. It labels recordings as one of {", ".join(about["classes"])}:

    python -m jaxser.predict PATH/TO/THIS/FOLDER RECORDING ...

It holds {heads} heads, one for each fold and seed, whose mean it gives.
{final if about["final"] else ""}
## How well it does, on speakers it has never heard

{chr(10).join(f"- {line}" for line in scores)}
- {wording.calibration_in_words(summary)}

| class | recall % | 95 % interval |
| --- | ---: | --- |
{recalls}

These are scores of single heads, each on the speakers that were held out from it. No recording of the corpus is new to all
heads, so the mean of them has no score of its own.

Its logits are divided by {found["temperature"]:.3f}, which was fitted on what each head said of its held-out speakers.
The logarithm of the heads' mean is divided by {found["temperature_of_mean"]:.3f}, fitted on the mean of each fold's seeds over
speakers that those heads never heard. Heads of all folds together are somewhat more cautious than that, and what is left errs
on the side of too little confidence; with one seed nothing is known of means.

## What it reads

{encoders}

Frames made otherwise, or by other weights (whose sha256 it is; they are not in this folder), are refused.

## Protocol

{protocol}

To repeat it: `{card["command"]} {"--final" if about["final"] else "--save"}`

## What it is not for

The score holds for speakers, recordings and ways of speaking like those of the corpus above; acted speech is no evidence for
any other. A label is what a listener might call the sound of a voice, not what a person feels: it is no ground for a decision
about anyone.
"""


SHA256 = ("weights_sha256", "model_sha256", "file_sha256")
"""What names an encoder, or a file of word vectors, in the settings of its features."""
