import os
from collections import Counter
from pathlib import Path

import pytest
from conftest import unreadable, write_tone

from jaxser import corpora
from jaxser.errors import CallError, WorkError


def write_iemocap(root: Path) -> Path:
    """One session with everything that trips a reader of IEMOCAP."""
    session = root / "IEMOCAP_full_release" / "Session1"
    evaluations, transcripts = session / "dialog" / "EmoEvaluation", session / "dialog" / "transcriptions"
    for folder in (
        evaluations / "Attribute",
        evaluations / "Categorical",
        evaluations / "Self-evaluation",
        transcripts,
    ):
        folder.mkdir(parents=True)
    header = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\r\n\r\n"

    def block(turn: str, label: str) -> str:
        return (
            f"[6.2901 - 8.2357]\t{turn}\t{label}\t[2.5000, 2.5000, 2.5000]\r\n"
            "C-E2:\tNeutral;\t()\r\nC-F1:\tAnger;\t()\r\nA-E3:\tval 3; act 2; dom  2;\t()\r\n\r\n"
        )

    def dialog(name: str, turns: list[tuple[str, str]]) -> None:
        text = header + "".join(block(f"{name}_{turn}", label) for turn, label in turns)
        (evaluations / f"{name}.txt").write_bytes(text.encode())
        for turn, _ in turns:
            write_tone(session / "sentences" / "wav" / name / f"{name}_{turn}.wav")

    dialog("Ses01F_impro01", [("F000", "neu"), ("M003", "exc"), ("M004", "hap"), ("F001", "xxx"), ("F002", "zzz")])
    dialog("Ses01M_script01_1", [("M000", "ang"), ("F000", "fru")])
    dialog("Ses01M_script01_1b", [("M000", "sad"), ("F000", "neu")])
    # What single annotators said must not be read as turns, nor macOS's companions of the files.
    (evaluations / "Attribute" / "Ses01F_impro01_atr.txt").write_text(block("Ses01F_impro01_F000", "ang"))
    (evaluations / "Categorical" / "Ses01F_impro01_e1_cat.txt").write_text(block("Ses01F_impro01_F000", "sad"))
    (evaluations / "._Ses01F_impro01.txt").write_bytes(b"\x00\x05\x16\x07\xff\xfe\xa3")
    (transcripts / "Ses01F_impro01.txt").write_bytes(
        b"Ses01F_impro01_M003 [009.0000-010.0000]: He said: no: never. [LAUGHTER]\r\n"
        b"Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.\r\n"
        b"M: Sure.\r\nSes01F_impro01_MXX0 [008.0000-009.0000]: Mhm.\r\nSes01F_impro01_F001 [1-2]: caf\xe9\r\n"
    )
    (transcripts / "Ses01M_script01_1.txt").write_text("Ses01M_script01_1_M000 [1-2]: One.\n")
    (transcripts / "Ses01M_script01_1b.txt").write_text("Ses01M_script01_1b_M000 [1-2]: Two.\n")
    return root


def test_iemocap_traps(tmp_path: Path):
    corpus = corpora.read("iemocap", write_iemocap(tmp_path), "paper")
    found = {u.id: (u.label, u.speaker, u.group, u.text) for u in corpus.utterances}
    assert found == {
        "Ses01F_impro01_F000": ("neutral", "Ses01F", "Ses01", "Excuse me."),
        "Ses01F_impro01_M003": ("happy", "Ses01M", "Ses01", "He said: no: never. [LAUGHTER]"),  # excited is happy
        "Ses01F_impro01_M004": ("happy", "Ses01M", "Ses01", None),
        "Ses01M_script01_1_M000": ("angry", "Ses01M", "Ses01", "One."),
        "Ses01M_script01_1b_M000": ("sad", "Ses01M", "Ses01", "Two."),
        "Ses01M_script01_1b_F000": ("neutral", "Ses01F", "Ses01", None),
    }
    assert all(u.path.is_file() for u in corpus.utterances)
    assert dict(corpus.outside) == {"frustrated": 1, "no majority": 1}
    assert [name for name, _ in corpus.left_out] == ["Ses01F_impro01_F002"]
    assert "'zzz'" in corpus.left_out[0][1]


def test_iemocap_counts_are_held_against_the_release(tmp_path: Path):
    notes = corpora.read("iemocap", write_iemocap(tmp_path), "paper").notes
    assert "IEMOCAP Session1: 2 neutral where the full release has 384" in notes
    assert len(notes) == 20
    exact = [
        corpora.Utterance(f"{session}{label}{i}", Path("x"), label, None, f"Ses0{session[-1]}")
        for session, counts in corpora.IEMOCAP_COUNTS.items()
        for label, count in zip(("neutral", "happy", "angry", "sad"), counts, strict=True)
        for i in range(count)
    ]
    assert len(exact) == 5531
    assert corpora.iemocap_differences(tuple(exact)) == ()


def test_iemocap_flac_and_all_classes(tmp_path: Path):
    root = write_iemocap(tmp_path)
    corpus = corpora.read("iemocap", root, "all")
    assert corpus.classes == ("angry", "excited", "frustrated", "happy", "neutral", "sad")
    wav = corpus.utterances[0].path
    write_tone(wav.with_suffix(".flac"))
    wav.unlink()
    assert corpora.read("iemocap", root, "all").utterances[0].path == wav.with_suffix(".flac")


def test_ravdess(ravdess: Path):
    corpus = corpora.read("ravdess", ravdess, "paper")
    assert Counter(u.label for u in corpus.utterances) == {"neutral": 288, "happy": 192, "sad": 192, "angry": 192}
    assert corpus.pairs[:2] == (("01", "02"), ("03", "04"))
    assert len(corpus.pairs) == 12
    assert corpus.utterances[0].id == "Actor_01/03-01-01-01-01-01-01"
    assert len(corpora.read("ravdess", ravdess, "all").classes) == 8


def test_emodb(emodb: Path):
    corpus = corpora.read("emodb", emodb, "paper")
    assert Counter(u.label for u in corpus.utterances) == {"angry": 127, "happy": 71, "neutral": 79, "sad": 62}
    assert corpus.pairs == (("03", "08"), ("10", "09"), ("11", "13"), ("12", "14"), ("15", "16"))


def test_ravdess_odd_copies(tmp_path: Path):
    for name in ("Actor_01/03-01-03-01-01-01-01.wav", "again/Actor_01/03-01-03-01-01-01-01.wav"):
        write_tone(tmp_path / name)
    write_tone(tmp_path / "Actor_02/03-02-03-01-01-01-02.wav")  # a song
    write_tone(tmp_path / "Actor_02/03-01-09-01-01-01-02.wav")  # no such emotion
    write_tone(tmp_path / "Actor_02/03-01-05-01-01-01-02.WAV")
    (tmp_path / "Actor_02/._03-01-05-01-01-01-02.wav").write_bytes(b"\x00")
    corpus = corpora.read("ravdess", tmp_path, "happy,angry")
    assert [u.label for u in corpus.utterances] == ["happy", "angry"]
    reasons = dict(corpus.left_out)
    assert "same recording" in reasons["again/Actor_01/03-01-03-01-01-01-01"]
    assert "'09'" in reasons["Actor_02/03-01-09-01-01-01-02"]


def test_csv(tmp_path: Path):
    table = tmp_path / "t.csv"
    table.write_text('\ufeffpath,label,speaker,text,notes\n"a b/ä.wav",glad,1,"Yes, we can",x\nsub/c.wav,low,2,,\n', "utf-8")
    corpus = corpora.read("csv", table, "all")
    first, second = corpus.utterances
    assert (first.id, first.path, first.text) == ("a b/ä", tmp_path / "a b/ä.wav", "Yes, we can")
    assert (second.speaker, second.group, second.text) == ("2", None, None)
    assert corpus.classes == ("glad", "low")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,speaker\na.wav,1\n", "no column label"),
        ("path;label\na.wav;x\n", "no column path, label"),
        ("path,label\n", "no rows"),
        ("", "no column"),
        ("path,label\na.wav,\n", "line 2: no label"),
        ("path,label\na.wav,x\n.,y\n", r"line 3: the path '\.' names no file"),
        ("path,label,id\n/,y,b\n", "line 2: the path '/' names no file"),
        ("path,label,speaker\na.wav,x,1\nb.wav,y,\n", "line 3: no speaker"),
        ('path,label\n"a.wav,x\n', "not a CSV"),
        (
            "path,label,text,speaker\na.wav,x,Yes,1\nb.wav,y,Yes, we can,2\n",
            r"t\.csv, line 3: more cells than the header has columns \(5 and 4\): quote a text that holds commas",
        ),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(CallError, match=message):
        corpora.read("csv", tmp_path / "t.csv", "all")


def test_table_that_is_no_text(tmp_path: Path):
    (tmp_path / "t.csv").write_bytes(b"path,label\n\xff\xfe\x00,x\n")
    with pytest.raises(CallError, match="not a CSV in UTF-8"):
        corpora.read("csv", tmp_path / "t.csv", "all")


def test_two_rows_with_one_id(tmp_path: Path):
    (tmp_path / "t.csv").write_text("path,label\na.wav,x\nb.wav,y\na.flac,y\n")
    with pytest.raises(WorkError, match=r"id 'a'.*a\.wav.*a\.flac"):
        corpora.read("csv", tmp_path / "t.csv", "all")


def test_wrong_or_empty_folders(tmp_path: Path):
    with pytest.raises(CallError, match="no such folder"):
        corpora.read("ravdess", tmp_path / "nothing", "paper")
    with pytest.raises(CallError, match="expected files such as"):
        corpora.read("iemocap", tmp_path, "paper")
    write_tone(tmp_path / "wav/03a01Wa.wav")
    with pytest.raises(CallError, match="looks like emodb"):
        corpora.read("ravdess", tmp_path, "paper")
    with pytest.raises(CallError, match="must be a CSV file"):
        corpora.read("csv", tmp_path, "all")


def test_classes_that_are_not_there(tmp_path: Path):
    write_tone(tmp_path / "wav/03a01Wa.wav")
    write_tone(tmp_path / "wav/03a01Na.wav")
    with pytest.raises(CallError, match=r"labelled happy, sad.*this corpus has angry, neutral"):
        corpora.read("emodb", tmp_path, "paper")
    with pytest.raises(CallError, match="labelled cross"):
        corpora.read("emodb", tmp_path, "angry,cross")
    with pytest.raises(CallError, match="two different classes"):
        corpora.read("emodb", tmp_path, "angry")


def test_a_comma_at_the_end_of_a_line_shifts_nothing(tmp_path: Path):
    (tmp_path / "t.csv").write_text("path,label,speaker\na.wav,x,1,\nb.wav,y,2, ,\n")
    assert [u.speaker for u in corpora.read("csv", tmp_path / "t.csv", "all").utterances] == ["1", "2"]


def test_two_ways_to_write_a_name_are_one_name(tmp_path: Path):
    one, other = "\u00e9.wav,fr\u00f6hlich,J\u00fcrgen,\u00e0", "e\u0301.wav,fro\u0308hlich,Ju\u0308rgen,a\u0300"
    (tmp_path / "t.csv").write_text(f"path,label,speaker,group\n{one}\n{other}\nc.wav,x,x,x\n", encoding="utf-8")
    corpus = corpora.read("csv", tmp_path / "t.csv", "x,fro\u0308hlich")
    assert corpus.classes == ("x", "fr\u00f6hlich")
    found = {(u.label, u.speaker, u.group) for u in corpus.utterances}
    assert found == {("fr\u00f6hlich", "J\u00fcrgen", "\u00e0"), ("x", "x", "x")}
    assert [u.path.name for u in corpus.utterances][:2] == ["\u00e9.wav", "e\u0301.wav"]  # a disk may know them as two
    assert [u.id for u in corpus.utterances][:2] == ["\u00e9", "e\u0301"]


NAMES = {
    "ravdess": ("Actor_{:02}/03-01-05-01-01-01-{:02}.wav", "Actor_{:02}/03-01-03-01-01-01-{:02}.wav"),
    "emodb": ("{:02}/{:02}a01Wa.wav", "{:02}/{:02}a01Fa.wav"),
}


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
@pytest.mark.parametrize("name", NAMES)
def test_linked_folders_and_links_that_lead_nowhere(tmp_path: Path, name: str):
    home = tmp_path / "home"
    for actor in (1, 2, 3):
        for pattern in NAMES[name]:
            path = write_tone(home / pattern.format(actor, actor))
    path.parent.rename(tmp_path / "other disk")
    path.parent.symlink_to(tmp_path / "other disk")
    gone = home / NAMES[name][0].format(1, 1)
    gone.unlink()
    gone.symlink_to(home / ".git" / "annex" / "objects" / "not fetched.wav")
    corpus = corpora.read(name, home, "angry,happy")
    expected = [
        pattern.format(a, a) for a in (1, 2, 3) for pattern in sorted(NAMES[name]) if home / pattern.format(a, a) != gone
    ]
    assert [u.path.relative_to(home).as_posix() for u in corpus.utterances] == expected
    left_out = (gone.relative_to(home).with_suffix("").as_posix(), "no such file: the link leads nowhere")
    assert corpus.left_out == (left_out,)
    with unreadable(home / NAMES[name][0].format(2, 2).partition("/")[0]), pytest.raises(WorkError, match="Permission denied"):
        corpora.read(name, home, "angry,happy")


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights there")
def test_a_corpus_of_which_nothing_was_fetched(tmp_path: Path):
    for name in NAMES["emodb"]:
        (tmp_path / "03").mkdir(exist_ok=True)
        (tmp_path / name.format(3, 3)).symlink_to("nowhere")
    with pytest.raises(WorkError, match=r"none of 2 recordings can be used; the first one, 03/03a01Fa: no such file: the link"):
        corpora.read("emodb", tmp_path, "paper")


@pytest.mark.parametrize("folder", ["", "dialog/EmoEvaluation", "dialog/transcriptions"])
def test_iemocap_folders_that_cannot_be_read(tmp_path: Path, folder: str):
    root = write_iemocap(tmp_path) / "IEMOCAP_full_release"
    locked = root / "Session1" / folder if folder else root
    with unreadable(locked), pytest.raises(WorkError, match=f"^{locked}: Permission denied"):
        corpora.read("iemocap", root, "paper")


def test_named_classes_say_what_the_paper_would_merge(tmp_path: Path):
    root = write_iemocap(tmp_path / "iemocap")
    notes = ("happy is taken without excited (1 utterance), which the paper merges with it",)
    assert corpora.read("iemocap", root, "neutral,happy").notes == notes
    for classes in ("all", "neutral,angry", "happy,excited"):
        assert corpora.read("iemocap", root, classes).notes == ()
    for actor in (1, 2):
        for emotion in ("01", "02", "05"):
            write_tone(tmp_path / "ravdess" / f"03-01-{emotion}-01-01-01-0{actor}.wav")
    corpus = corpora.read("ravdess", tmp_path / "ravdess", "neutral,angry")
    assert corpus.notes == ("neutral is taken without calm (2 utterances), which the paper merges with it",)
