import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import demand_well_formed

from jaxser import citations, cv, page, report, wording
from jaxser.files import read_csv, write_json


@pytest.fixture
def run(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    # A class and a speaker whose names would break a page that does not escape them.
    text = table.read_text().replace(",low,", ",<b>low&,").replace(",s0,", ",</td>s0,")
    table.write_text(text)
    flags = {"features": "lld", "head": "mean", "updates": 5, "folds": 3}
    cv.main(cv.Config(corpus="csv", root=table, cache=tmp_path / "c", out=tmp_path / "r", **flags))
    capsys.readouterr()
    return tmp_path / "r"


def test_page_is_well_formed_and_self_contained(run: Path):
    page = (run / "report.html").read_text()
    demand_well_formed(page)
    assert "&lt;b&gt;low&amp;" in page
    assert "<b>low" not in page
    assert "&lt;/td&gt;s0" in page


def test_page_has_all_that_a_reader_needs(run: Path):
    page, card = (run / "report.html").read_text(), json.loads((run / "protocol.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    for heading in ("Protocol", "Folds", "Classes", "Confusion", "Training loss", "To repeat it", "To cite it"):
        assert f"<h2>{heading}</h2>" in page
    assert page.index("<h2>Protocol") < page.index("<h2>Folds")
    for name in ("speakers on both sides of a fold", "identical audio", "Left open by the paper", "parameters", "processor"):
        assert name.replace("processor", card["processor"]) in page
    for name, recall in summary["recalls"].items():
        assert recall["low"] <= recall["mean"] <= recall["high"]
        assert html.escape(name) in page
    assert np.mean([recall["mean"] for recall in summary["recalls"].values()]) == pytest.approx(summary["ua_mean"])
    assert html.escape(summary["signature"]) in page
    assert "@software{jaxser," in page
    assert "@misc{boigne2020recognizing," in page
    assert "@article{giannakopoulos2015pyaudioanalysis," in page
    assert "wav2vec: Unsupervised" not in page  # not used by this run
    ua, low, high = (f"{100 * summary[f'ua_{what}']:.1f}" for what in ("mean", "low", "high"))
    assert html.escape(rf"mean &amp; lld &amp; {ua} ({low}--{high}) &amp;").replace("&amp;amp;", "&amp;") in page


def test_confusion_is_there_in_numbers(run: Path):
    page = (run / "report.html").read_text()
    part = page.partition("<h2>Confusion</h2>")[2].partition("<h2>")[0]
    found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in re.findall(r"<tr>(.*?)</tr>", part)]
    rows = read_csv(run / "confusion.csv")
    assert found == [["labelled as", *map(html.escape, list(rows[0])[1:])]] + [
        [html.escape(row["label"]), *list(row.values())[1:]] for row in rows
    ]
    assert sum(int(cell) for row in found[1:] for cell in row[1:]) == 48


def test_cells_of_a_header_say_what_they_are_of():
    table = page.table(("class", "n"), [["low", "3"], ["high", "4"]])
    assert '<th scope="col" class="text">class</th><th scope="col">n</th>' in table
    assert table.count('<th scope="row" class="text">') == 2
    assert table.count("<td>") == 2
    assert 'scope="row"' not in page.table(("fold", "of"), [["0", "s1"]], words=(1,))


def test_small_differences_do_not_look_like_none():
    assert [wording.points(x) for x in (0.0712, -0.0004, 0.0, -1e-17)] == ["+7.1", "-0.04", "+0.0", "+0.0"]


def test_latex_is_escaped():
    assert citations.escaped("50 % of a_b & c#d") == r"50 \% of a\_b \& c\#d"
    assert citations.escaped("a|b<c>") == r"a\textbar{}b\textless{}c\textgreater{}"
    assert citations.escaped("{x}~^\\") == r"\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}"


def test_table_shows_each_fold_and_the_mean(run: Path):
    lines = report.table(run).splitlines()
    folds = [line for line in lines if re.match(r" +\d  ", line)]
    assert len(folds) == 3
    means = [float(x) for x in next(line for line in lines if line.startswith("mean")).split()[2:]]
    uas = [float(re.split(r"  +", line.strip())[4]) for line in folds]
    assert means[0] == pytest.approx(sum(uas) / 3, abs=0.1)


def test_what_could_not_be_estimated_is_said(run: Path):
    summary, card = (json.loads((run / name).read_text()) for name in ("summary.json", "protocol.json"))
    assert wording.marks_against(summary, card) == []
    assert "no interval: too few speakers" in wording.scores_in_words(summary | {"ua_low": None, "ua_high": None})[0]
    assert "too narrow" in wording.marks_against(summary | {"interval_unit": "utterance"}, card)[0]
    assert "not a result" in wording.marks_against(summary | {"validate": True}, card)[0]


def test_calibration_is_said_beside_what_chance_would_show(run: Path):
    summary = json.loads((run / "summary.json").read_text())
    found = summary["calibration"] | {"by_chance": 0.028, "by_chance_high": 0.044}
    said = wording.calibration_in_words(summary | {"calibration": found})
    assert said.startswith("calibration: binned confidence and accuracy differ by ")
    assert said.endswith("; true probabilities would show 2.8 by chance, at most 4.4 in 95 of 100 cases")
    without = found | {"by_chance": None, "by_chance_high": None}
    assert wording.calibration_in_words(summary | {"calibration": without}) == said.partition(";")[0]


def test_synthetic_is_said_wherever_a_number_stands(run: Path):
    card = json.loads((run / "protocol.json").read_text())
    write_json(run / "protocol.json", card | {"synthetic": True})
    report.draw(run, json.loads((run / "summary.json").read_text()))
    assert report.table(run).startswith("SYNTHETIC corpus (not real speech)")
    assert "<h1>SYNTHETIC corpus" in (run / "report.html").read_text()


def test_pictures_are_the_same_bytes_again(run: Path):
    picture = (run / "confusion.png").read_bytes()
    report.draw(run, json.loads((run / "summary.json").read_text()))
    assert (run / "confusion.png").read_bytes() == picture
