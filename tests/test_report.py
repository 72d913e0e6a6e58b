import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jaxser import cv, report
from jaxser.digests import write_json


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

    open_tags = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            sources = dict(attrs)
            assert not sources.get("src", "data:").startswith(("http", "/", "file"))
            assert "href" not in sources
            if tag not in ("meta", "img", "br"):
                open_tags.append(tag)

        def handle_startendtag(self, tag, attrs):
            pass  # <line/>

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Reader().feed(page)
    assert open_tags == []
    assert "&lt;b&gt;low&amp;" in page
    assert "<b>low" not in page
    assert "&lt;/td&gt;s0" in page


def test_table_shows_each_fold_and_the_mean(run: Path):
    lines = report.table(run).splitlines()
    folds = [line for line in lines if re.match(r" +\d  ", line)]
    assert len(folds) == 3
    means = [float(x) for x in next(line for line in lines if line.startswith("mean")).split()[2:]]
    uas = [float(re.split(r"  +", line.strip())[4]) for line in folds]
    assert means[0] == pytest.approx(sum(uas) / 3, abs=0.1)


def test_what_could_not_be_estimated_is_said(run: Path):
    summary = json.loads((run / "summary.json").read_text())
    assert report.marks_against(summary) == []
    assert "no interval: only one speaker" in report.scores_in_words(summary | {"ua_low": None, "ua_high": None})[0]
    assert "too narrow" in report.marks_against(summary | {"interval_unit": "utterance"})[0]
    assert "not a result" in report.marks_against(summary | {"validate": True})[0]


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
