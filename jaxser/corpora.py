"""A corpus on disk as a list of utterances: who says what, in which group, with which label.

Every reader returns what lies there under the corpus's own labels; `read` then keeps and merges classes by one table.
What cannot be used is never dropped silently: it is listed with its reason in `Corpus.left_out`.
"""

import re
import unicodedata
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from jaxser.audio import SUFFIXES, absent
from jaxser.command import shortened
from jaxser.errors import CallError, WorkError
from jaxser.files import below, lying_in, read_table


@dataclass(frozen=True)
class Utterance:
    """One recording of one speaker with one label. `speaker`, `group` and `text` are None where the corpus has none."""

    id: str
    path: Path
    label: str
    speaker: str | None = None
    group: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Corpus:
    """What a reader found, after the choice of classes."""

    name: str
    utterances: tuple[Utterance, ...]
    classes: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    """(id or path, reason) of what should have been usable and was not."""
    outside: tuple[tuple[str, int], ...] = ()
    """(label, count) of good utterances whose label is not among the classes."""
    pairs: tuple[tuple[str, ...], ...] = ()
    """Speakers that go to one fold together, in the order of dealing; empty: every speaker goes alone."""
    notes: tuple[str, ...] = ()
    """What the reader of a result should know, such as counts that differ from the published ones."""


PAPER_CLASSES = ("neutral", "happy", "sad", "angry")

# Section 3 of the paper: happy and excited are one class. RAVDESS's calm is the same actors' second neutral.
PAPER_MERGING = {
    "iemocap": {"neutral": "neutral", "happy": "happy", "excited": "happy", "sad": "sad", "angry": "angry"},
    "ravdess": {"neutral": "neutral", "calm": "neutral", "happy": "happy", "sad": "sad", "angry": "angry"},
    "emodb": {"neutral": "neutral", "happy": "happy", "sad": "sad", "angry": "angry"},
    "csv": {"neutral": "neutral", "happy": "happy", "sad": "sad", "angry": "angry"},
}
PAPER_MERGING["synthetic"] = PAPER_MERGING["iemocap"]

IEMOCAP_LABELS = {
    "neu": "neutral", "hap": "happy", "exc": "excited", "sad": "sad", "ang": "angry", "fru": "frustrated",
    "sur": "surprised", "fea": "fearful", "dis": "disgusted", "oth": "other", "xxx": "no majority",
}  # fmt: skip
RAVDESS_LABELS = {
    "01": "neutral", "02": "calm", "03": "happy", "04": "sad", "05": "angry", "06": "fearful", "07": "disgusted",
    "08": "surprised",
}  # fmt: skip
EMODB_LABELS = {
    "N": "neutral", "F": "happy", "T": "sad", "W": "angry", "A": "fearful", "E": "disgusted", "L": "bored",
}  # fmt: skip
EMODB_PAIRS = (("03", "08"), ("10", "09"), ("11", "13"), ("12", "14"), ("15", "16"))  # one man and one woman each

# The full release, per session: (neutral, happy + excited, angry, sad) with a majority of the annotators; 5,531 in all.
IEMOCAP_COUNTS = {
    "Session1": (384, 278, 229, 194),
    "Session2": (362, 327, 137, 197),
    "Session3": (320, 286, 240, 305),
    "Session4": (258, 303, 327, 143),
    "Session5": (384, 442, 170, 245),
}


def read(name: str, root: Path, classes: str) -> Corpus:
    """Read the corpus `name` below `root`; `classes` is `paper`, `all`, or class names separated by commas.

    Raises CallError where the folder is not there or holds another corpus, WorkError where nothing usable is in it.
    """
    readers = {"iemocap": read_iemocap, "synthetic": read_iemocap, "ravdess": read_ravdess, "emodb": read_emodb}
    if name == "csv":
        if not root.is_file():
            raise CallError(f"--root {root}: with --corpus csv this must be a CSV file with the columns path,label")
        corpus = read_csv(root)
    else:
        if not root.is_dir():
            raise CallError(f"--root {root}: no such folder")
        corpus = readers[name](root)
        if not corpus.utterances and not corpus.left_out:
            raise CallError(f"--root {root}: no {name} recordings below it{_looks_like(root, name)}")
        if not corpus.utterances:
            first, reason = corpus.left_out[0]
            raise WorkError(f"none of {len(corpus.left_out)} recordings can be used; the first one, {first}: {reason}")
    corpus = replace(corpus, name=name)
    _demand_unique_ids(corpus.utterances)
    corpus = choose_classes(corpus, classes)
    if name == "iemocap" and classes == "paper":
        corpus = replace(corpus, notes=corpus.notes + iemocap_differences(corpus.utterances))
    return corpus


def choose_classes(corpus: Corpus, classes: str) -> Corpus:
    """Keep and merge the labels that `classes` names; what lies outside is counted, not listed.

    `all` takes every label of the corpus as it is, but IEMOCAP's "no majority", which is no label. Names take those
    labels as they are; what the paper would have merged into one of them is said in the notes.
    """
    present = {u.label for u in corpus.utterances} - {"no majority"}
    if classes == "paper":
        order, merging = PAPER_CLASSES, PAPER_MERGING[corpus.name]
    elif classes == "all":
        order, merging = tuple(sorted(present)), {label: label for label in present}
    else:
        order = tuple(unicodedata.normalize("NFC", name.strip()) for name in classes.split(","))
        merging = {label: label for label in order}
    if missing := [name for name in order if name not in {merging[label] for label in present if label in merging}]:
        raise CallError(
            f"--classes {classes}: no utterance is labelled {_listed(missing)}; "
            f"this corpus has {_listed(sorted(present)) or 'no labels'}"
        )
    if len(order) < 2 or len(set(order)) < len(order):
        raise CallError(f"--classes {classes}: at least two different classes are needed, got {_listed(order)}")
    kept = tuple(replace(u, label=merging[u.label]) for u in corpus.utterances if u.label in merging)
    outside = Counter(u.label for u in corpus.utterances if u.label not in merging)
    notes = corpus.notes if classes in ("paper", "all") else corpus.notes + _unmerged(corpus.name, order, outside)
    return replace(corpus, utterances=kept, classes=order, outside=tuple(sorted(outside.items())), notes=notes)


def _unmerged(name: str, classes: tuple[str, ...], outside: Counter[str]) -> tuple[str, ...]:
    # What a class is without, though the paper has it there.
    counted = {label: f"{count} utterance{'s' * (count > 1)}" for label, count in outside.items()}
    return tuple(
        f"{into} is taken without {label} ({counted[label]}), which the paper merges with it"
        for label, into in PAPER_MERGING[name].items()
        if into in classes and label in counted
    )


def read_iemocap(root: Path) -> Corpus:
    """The IEMOCAP release: Session*/dialog/EmoEvaluation/*.txt gives turns and labels, sentences/wav the audio.

    The speaker is the session and the *last* letter of the turn's name: in Ses01F_impro01_M003 the man of session 1
    speaks; the first letter says only who wore the markers. Sub-folders of EmoEvaluation (single annotators) are not
    entered. `root` may also be the folder that holds IEMOCAP_full_release.
    """
    if (root / "IEMOCAP_full_release").is_dir():
        root = root / "IEMOCAP_full_release"
    utterances, left_out = [], []
    for session in lying_in(root, "Session[0-9]*"):
        texts = _iemocap_transcripts(session)
        for evaluation in lying_in(session / "dialog" / "EmoEvaluation", "Ses*.txt"):
            for turn, code in _iemocap_turns(evaluation):
                if code not in IEMOCAP_LABELS:
                    left_out.append((turn, f"label {code!r} of {evaluation.name} is none of {_listed(IEMOCAP_LABELS)}"))
                    continue
                utterances.append(
                    Utterance(
                        id=turn,
                        path=_with_suffix(session / "sentences" / "wav" / evaluation.stem / turn),
                        label=IEMOCAP_LABELS[code],
                        speaker=turn[:5] + turn.rpartition("_")[2][0],
                        group=turn[:5],
                        text=texts.get(turn),
                    )
                )
    return Corpus("iemocap", tuple(utterances), (), tuple(left_out))


_TURN = re.compile(r"Ses\d\d[FM]_\w+_[FM]\d+")
_TRANSCRIPT = re.compile(rf"({_TURN.pattern})\s*\[[^]]*\]:(.*)")


def _iemocap_turns(evaluation: Path) -> list[tuple[str, str]]:
    # Turn lines start with "[" and have four tab fields; the header has brackets too but starts with "%", and the
    # single annotators' lines start with "C-" or "A-". Real copies hold carriage returns and stray bytes.
    turns = []
    for line in evaluation.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.strip().split("\t")
        if line.startswith("[") and len(fields) == 4 and _TURN.fullmatch(fields[1].strip()):
            turns.append((fields[1].strip(), fields[2].strip()))
    return turns


def _iemocap_transcripts(session: Path) -> dict[str, str]:
    # Lines such as "M: ..." belong to no turn; the text itself may hold colons. Ids that end in XX and a digit have no
    # audio and do not match. Dialog files are matched by turn, for one dialog's name can be a prefix of another's.
    texts = {}
    for path in lying_in(session / "dialog" / "transcriptions", "Ses*.txt"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if match := _TRANSCRIPT.match(line.strip()):
                texts[match[1]] = match[2].strip()
    return texts


def iemocap_differences(utterances: tuple[Utterance, ...]) -> tuple[str, ...]:
    """How the counts of a copy, in the paper's four classes, differ from the full release's; empty where they agree."""
    found = Counter((f"Session{int(u.group[3:5])}", u.label) for u in utterances)
    order = ("neutral", "happy", "angry", "sad")
    return tuple(
        f"IEMOCAP {session}: {found[session, label]} {label} where the full release has {count}"
        for session, counts in IEMOCAP_COUNTS.items()
        for label, count in zip(order, counts, strict=True)
        if found[session, label] != count
    )


def read_ravdess(root: Path) -> Corpus:
    """RAVDESS's speech recordings, named modality-channel-emotion-intensity-sentence-repetition-actor.

    Odd actors are men, even ones women; actors (1, 2), (3, 4), ... are dealt to folds as pairs. Songs (channel 02) are
    no speech and are not listed. Some archives hold every file twice, in a second folder: the first one counts.
    """
    utterances, left_out, seen = [], [], {}
    for path in _recordings(root):
        fields = path.stem.split("-")
        if len(fields) != 7 or fields[0] != "03" or fields[1] != "01":
            continue
        name = path.relative_to(root).with_suffix("").as_posix()
        if path.stem in seen:
            left_out.append((name, f"the same recording as {seen[path.stem]}"))
        elif fields[2] not in RAVDESS_LABELS:
            left_out.append((name, f"emotion {fields[2]!r} in its name is none of {_listed(RAVDESS_LABELS)}"))
        elif reason := absent(path):
            left_out.append((name, reason))
        else:
            seen[path.stem] = name
            sentence = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}.get(fields[4])
            utterances.append(Utterance(name, path, RAVDESS_LABELS[fields[2]], fields[6], None, sentence))
    actors = sorted({u.speaker for u in utterances})
    pairs = {}
    for actor in actors:
        pairs.setdefault((int(actor) - 1) // 2 if actor.isdigit() else actor, []).append(actor)
    return Corpus("ravdess", tuple(utterances), (), tuple(left_out), pairs=tuple(map(tuple, pairs.values())))


def read_emodb(root: Path) -> Corpus:
    """The Berlin database: names are speaker (2), sentence (3), emotion (1), version (1); five pairs of man and woman."""
    utterances, left_out, seen = [], [], {}
    for path in _recordings(root):
        if not (match := re.fullmatch(r"(\d\d)([ab]\d\d)([A-Z])[a-z]?", path.stem)):
            continue
        name = path.relative_to(root).with_suffix("").as_posix()
        if path.stem in seen:
            left_out.append((name, f"the same recording as {seen[path.stem]}"))
        elif match[3] not in EMODB_LABELS:
            left_out.append((name, f"emotion {match[3]!r} in its name is none of {_listed(EMODB_LABELS)}"))
        elif reason := absent(path):
            left_out.append((name, reason))
        else:
            seen[path.stem] = name
            utterances.append(Utterance(name, path, EMODB_LABELS[match[3]], match[1]))
    speakers = {u.speaker for u in utterances}
    pairs = [tuple(s for s in pair if s in speakers) for pair in EMODB_PAIRS]
    others = sorted(speakers - {s for pair in EMODB_PAIRS for s in pair})
    pairs = tuple(pair for pair in pairs if pair) + tuple((s,) for s in others)
    return Corpus("emodb", tuple(utterances), (), tuple(left_out), pairs=pairs)


CSV_COLUMNS = ("path", "label", "speaker", "group", "text", "id")


def read_csv(table: Path) -> Corpus:
    """A table with the header `path,label` and, where there are any, `speaker,group,text,id`; other columns are ignored.

    Paths are relative to the table. An id not given is the path as written, without its suffix. An optional column must
    be filled in every row or in none (`text` may have gaps). Labels, speakers and groups are compared in Unicode's form NFC.
    """
    header, rows = read_table(table, str(table), ("path", "label"))
    if not rows:
        raise CallError(f"{table}: a header and no rows")
    utterances = []
    for line, row in rows:
        value = {name: (row.get(name) or "").strip() or None for name in CSV_COLUMNS}
        for name in ("path", "label"):
            if not value[name]:
                raise CallError(f"{table}, line {line}: no {name}")
        path = Path(value["path"])
        if not path.name:
            raise CallError(f"{table}, line {line}: the path {value['path']!r} names no file")
        for name in ("label", "speaker", "group"):  # or one person, written in two ways, could stand on both sides of a fold
            value[name] = value[name] and unicodedata.normalize("NFC", value[name])
        value["id"] = value["id"] or path.with_suffix("").as_posix()
        utterances.append(Utterance(**(value | {"path": table.parent / path})))
    for name in ("speaker", "group", "id"):
        lines = [line for line, row in rows if not (row.get(name) or "").strip()]
        if name in header and 0 < len(lines) < len(rows):
            raise CallError(f"{table}, line {lines[0]}: no {name}, though other rows have one; fill it in all or none")
    return Corpus("csv", tuple(utterances), ())


def _recordings(root: Path) -> list[Path]:
    # "._name" files are what macOS leaves in archives; they end in .wav and hold no sound.
    found = (p for p in below(root) if p.suffix.lower() in SUFFIXES and not p.name.startswith("._"))
    return sorted(p for p in found if p.is_file() or p.is_symlink())  # a link that leads nowhere is left out by name


def _with_suffix(path: Path) -> Path:
    # Turn names hold no dot of their own; a copy kept as FLAC is as good as the release's wav.
    flac = path.with_name(path.name + ".flac")
    return flac if flac.is_file() else path.with_name(path.name + ".wav")


def _demand_unique_ids(utterances: tuple[Utterance, ...]) -> None:
    paths = {}
    for utterance in utterances:
        if utterance.id in paths:
            raise WorkError(
                f"two utterances have the id {shortened(utterance.id)!r}: {paths[utterance.id]} and {utterance.path}; "
                "give each its own (a CSV may have a column id)"
            )
        paths[utterance.id] = utterance.path


def _looks_like(root: Path, name: str) -> str:
    others = {"iemocap": read_iemocap, "ravdess": read_ravdess, "emodb": read_emodb}
    with suppress(WorkError):  # a folder that cannot be read, which this corpus would not have had
        if found := [other for other, reader in others.items() if other != name and reader(root).utterances]:
            return f"; it looks like {found[0]}: --corpus {found[0]}"
    expected = {
        "iemocap": "Session1/dialog/EmoEvaluation/*.txt",
        "ravdess": "Actor_01/03-01-05-01-01-01-01.wav",
        "emodb": "wav/03a01Wa.wav",
    }
    return f"; expected files such as {expected.get(name, expected['iemocap'])}"


def _listed(names) -> str:
    return shortened(", ".join(map(shortened, names)), 1_000)
