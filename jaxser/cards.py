"""The model card of pretrained weights: what they heard, how they were made, how well they predict, what they are not for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxser import recordings
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

A wav2vec (Schneider et al., 2019) trained on unlabelled speech, for features of 16 kHz speech: `--weights` of every jaxser
command. No emotion label was used.

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
