"""What is counted as independent."""

from pathlib import Path

from jaxser import summaries
from jaxser.corpora import Corpus, Utterance


def test_groups_that_hold_speakers():
    def of(*rows: tuple[str | None, str | None]) -> list[str]:
        every = tuple(Utterance(str(i), Path("a.wav"), "a", speaker, group) for i, (speaker, group) in enumerate(rows))
        return summaries.holding_speakers(Corpus("csv", every, ("a",)))

    assert of(("s0", "g0"), ("s1", "g0"), ("s2", "g1")) == ["g0", "g0", "g1"]
    assert of(("s0", "g0"), ("s1", "g1")) == []  # a speaker each
    assert of(("s0", "g0"), ("s0", "g1"), ("s1", "g0"), ("s2", "g1")) == []  # two days: a voice is in both
    assert of(("s0", "g0"), ("s1", "g0")) == []  # one group
    assert of(("s0", None), ("s1", None)) == []
