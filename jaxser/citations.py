"""What to cite, as BibTeX, and scores as LaTeX takes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxser import __version__, wording

PAPERS = {
    "": (
        "boigne2020recognizing",
        "misc",
        {
            "author": 'Boigne, Jonathan and Liyanage, Biman and {\\"O}strem, Ted',
            "title": "Recognizing More Emotions with Less Data Using Self-supervised Transfer Learning",
            "year": "2020",
            "note": "arXiv:2011.05585",
        },
    ),
    "|features:wav2vec": (
        "schneider2019wav2vec",
        "inproceedings",
        {
            "author": "Schneider, Steffen and Baevski, Alexei and Collobert, Ronan and Auli, Michael",
            "title": "wav2vec: Unsupervised Pre-Training for Speech Recognition",
            "booktitle": "Interspeech",
            "year": "2019",
        },
    ),
    "|features:lld": (
        "giannakopoulos2015pyaudioanalysis",
        "article",
        {
            "author": "Giannakopoulos, Theodoros",
            "title": "{pyAudioAnalysis}: An Open-Source {Python} Library for Audio Signal Analysis",
            "journal": "PLOS ONE",
            "volume": "10",
            "number": "12",
            "year": "2015",
        },
    ),
    "|text:bert": (
        "devlin2019bert",
        "inproceedings",
        {
            "author": "Devlin, Jacob and Chang, Ming-Wei and Lee, Kenton and Toutanova, Kristina",
            "title": "{BERT}: Pre-training of Deep Bidirectional Transformers for Language Understanding",
            "booktitle": "NAACL",
            "year": "2019",
        },
    ),
    "|text:glove": (
        "pennington2014glove",
        "inproceedings",
        {
            "author": "Pennington, Jeffrey and Socher, Richard and Manning, Christopher",
            "title": "{GloVe}: Global Vectors for Word Representation",
            "booktitle": "EMNLP",
            "year": "2014",
        },
    ),
    "|head:aligned": (
        "xu2019alignment",
        "inproceedings",
        {
            "author": "Xu, Haiyang and Zhang, Hui and Han, Kun and Wang, Yun and Peng, Yiping and Li, Xiangang",
            "title": "Learning Alignment for Multimodal Emotion Recognition from Speech",
            "booktitle": "Interspeech",
            "year": "2019",
        },
    ),
}
"""By what stands in the signature of a run that uses it; the first one is what jaxser reimplements."""

_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_SPECIAL |= {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}"}
_SPECIAL |= {letter: "\\" + letter for letter in "&%$#_{}"}


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def latex_row(summary: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """Head, features, UA and WA with their intervals, as a row of a LaTeX table."""
    scores = []
    for name in ("ua", "wa"):
        low, high = summary[f"{name}_low"], summary[f"{name}_high"]
        beside = "" if low is None else f" ({wording.percent(low)}--{wording.percent(high)})"
        scores.append(wording.percent(summary[f"{name}_mean"]) + beside)
    return " & ".join([escaped(summary["head"]), escaped(card["features"]), *scores]) + r" \\"


def bibtex(signatures: Sequence[str]) -> str:
    """Entries for jaxser, with the signature where there is one number, for the paper, and for what else the runs used."""
    software = {
        "author": "{jaxser authors}",
        "title": "{jaxser}: emotion recognition in speech with {JAX}",
        "version": __version__,
    }
    if len(signatures) == 1:
        software["note"] = "Signature: " + escaped(signatures[0].replace("|", " | "))
    used = [entry for mark, entry in PAPERS.items() if any(mark in signature for signature in signatures)]
    return "\n\n".join(_entry(*entry) for entry in [("jaxser", "software", software), *used])


def _entry(key: str, kind: str, fields: dict[str, str]) -> str:
    lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}}}"
