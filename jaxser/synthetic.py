"""A small corpus of an artificial voice in IEMOCAP's own folder layout, made on the spot: nobody needs a licence to see the
whole pipeline work, and the default command exercises the real IEMOCAP reader.

The voice is a source and a filter: pulses of a glottis (pitch, jitter, spectral tilt) through the formants of the vowels that
the words are spelled with. Each of ten speakers has a pitch and a vocal tract; each emotion moves pitch, its range, loudness,
rate, tilt and jitter, by an amount that differs from utterance to utterance, and angry and happy sound much alike. The words
tell what the voice leaves open, but not always: some utterances say nothing of the emotion, and angry and sad share their
complaints. No number from this corpus says anything about people.
"""

import io
import itertools
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float64

from jaxser.audio import SAMPLE_RATE
from jaxser.files import write_bytes

VERSION = 2
"""Any change of a sample or a word below is another corpus: raise this."""

# Turns of each speaker by label as IEMOCAP writes it; the last three are there to be left out by the reader.
TURNS = {"neu": 14, "hap": 6, "exc": 7, "ang": 11, "sad": 10, "fru": 4, "xxx": 3, "sur": 1}
DIALOGS = ("impro01", "impro02", "script01_1", "script02_2b")


@dataclass(frozen=True)
class Manner:
    """How an emotion is spoken, as factors of or differences from the speaker's own way."""

    pitch: float
    """Factor of the mean pitch."""
    range: float
    """Factor of how far pitch moves."""
    level: float
    """dB."""
    rate: float
    """Factor of syllables a second."""
    tilt: float
    """Pole of the source's low-pass, 0 bright to 1 dull; added to the speaker's."""
    jitter: float
    """Deviation of one period's length from the next, as a fraction."""


NEUTRAL = Manner(1.00, 1.0, 0.0, 1.00, 0.00, 0.008)
MANNERS = {
    "neu": NEUTRAL,
    "hap": Manner(1.24, 1.7, 4.0, 1.10, -0.10, 0.010),
    "exc": Manner(1.32, 2.0, 6.0, 1.16, -0.12, 0.012),
    "ang": Manner(1.20, 1.5, 8.0, 1.08, -0.22, 0.028),
    "sad": Manner(0.92, 0.5, -6.0, 0.78, 0.12, 0.016),
    "fru": Manner(1.08, 1.2, 3.0, 0.95, -0.10, 0.018),
    "xxx": NEUTRAL,
    "sur": Manner(1.40, 2.2, 4.0, 1.05, -0.05, 0.010),
}

# First, second and third formant of a man's vowels in Hz (after Peterson and Barney, JASA 24, 1952, rounded).
FORMANTS = {
    "a": (730, 1090, 2440), "e": (530, 1840, 2480), "i": (270, 2290, 3010), "o": (570, 840, 2410), "u": (300, 870, 2240),
    "y": (390, 1990, 2550),
}  # fmt: skip

# Sentences are made of one piece of each column. Bland ones are said in every mood, complaints by the angry and the sad.
BLAND = (
    ("I will be at", "We can meet at", "They are waiting at", "She went over to", "You should look for it at"),
    ("the station", "the office", "the corner shop", "the library", "my place", "the other building"),
    ("around noon.", "on Tuesday.", "with the papers.", "before the meeting.", "as we said.", "when the bus comes."),
)
WORDS = {
    "neu": (
        ("The form says that", "As far as I know,", "According to the list,", "They told me that", "I think that"),
        ("the line is", "the desk is", "this number is", "the second page is", "the address is"),
        ("over there.", "on the left.", "the usual one.", "open until five.", "still the same."),
    ),
    "hap": (
        ("This is wonderful,", "I am so glad,", "Oh that is great,", "I love it,", "What a lovely surprise,"),
        ("we are getting", "she said yes to", "you won", "they gave us", "I finally have"),
        ("the house!", "the tickets!", "a baby!", "the job!", "the best seats!"),
    ),
    "ang": (
        ("Get out of here,", "Do not touch me,", "Shut up,", "I hate this,", "How dare you,"),
        ("you ruined", "you broke", "you lied about", "nobody asked for", "I am sick of"),
        ("the whole thing!", "my car!", "that stupid deal!", "your excuses!", "everything!"),
    ),
    "sad": (
        ("I miss her,", "I feel so alone,", "I keep crying,", "It hurts,", "I have lost him,"),
        ("there is nothing left of", "I cannot forget", "we never talked about", "I still dream of", "he is gone with"),
        ("those days.", "the old house.", "our life.", "the funeral.", "her voice."),
    ),
    "complaint": (
        ("I cannot believe it,", "Why does it always happen,", "It is not fair,", "After all these years,"),
        ("they took away", "you forgot", "nobody cares about", "he left me with", "I should have known about"),
        ("my work.", "the children.", "my birthday.", "what I need.", "the money."),
    ),
}  # fmt: skip
COMPLAINING = 0.4
"""Share of the telling utterances of the angry and the sad that are complaints, which either of them could say."""

TELLING = 2 / 3
"""Share of utterances whose words belong to their emotion; the others are bland. Chosen so that the words, read perfectly, tell
as much as the voice does, of which a head makes about 68 %: whoever knows the lists above and otherwise guesses has all of
neutral and happy right and four fifths of angry and sad (of a complaint one half) where the words tell, a quarter where they do
not: 2/3 x 0.9 + 1/3 x 0.25 = 68 %. Neither half then carries the other, and what both gain together is what fusion is worth."""


def make(cache: Path) -> Path:
    """The corpus folder below `cache`, made if it is not there. It appears under its name only when whole."""
    root = cache / f"synthetic-{VERSION}"
    if root.is_dir():
        return root
    cache.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=cache))
    try:
        for session in range(1, 6):
            _write_session(part / f"Session{session}", session)
        try:
            os.rename(part, root)
        except OSError:
            if not root.is_dir():  # else another process was first, with the same bytes
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return root


def _write_session(folder: Path, session: int) -> None:
    random = np.random.default_rng([VERSION, session])
    voices = {sex: _Voice.draw(random, sex) for sex in "FM"}
    turns = [(sex, label) for sex in "FM" for label, count in TURNS.items() for _ in range(count)]
    order = [turns[i] for i in random.permutation(len(turns))]
    for number, name in enumerate(DIALOGS):
        dialog = f"Ses{session:02d}{'FM'[number % 2]}_{name}"
        evaluation, transcript, clock = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n"], [], 0.0
        counts = {"F": itertools.count(), "M": itertools.count()}
        for sex, label in order[number :: len(DIALOGS)]:
            turn = f"{dialog}_{sex}{next(counts[sex]):03d}"
            text = _sentence(random, label)
            sound = voices[sex].say(random, text, label)
            path = folder / "sentences" / "wav" / dialog / f"{turn}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            memory = io.BytesIO()  # libsndfile would not say that a disk is full
            soundfile.write(memory, sound, SAMPLE_RATE, subtype="PCM_16", format="WAV")
            write_bytes(path, memory.getvalue())
            end = clock + len(sound) / SAMPLE_RATE
            evaluation.append(
                f"[{clock:.4f} - {end:.4f}]\t{turn}\t{label}\t[2.5000, 2.5000, 2.5000]\n"
                "C-E1:\tNeutral;\t()\nA-E1:\tval 3; act 2;\t()\n"
            )
            transcript.append(f"{turn} [{clock:08.4f}-{end:08.4f}]: {text}\n")
            clock = end + 0.5
        transcript.insert(1, "M: All right.\n")  # IEMOCAP's transcripts have such lines too
        for kind, lines in (("EmoEvaluation", evaluation), ("transcriptions", transcript)):
            path = folder / "dialog" / kind / f"{dialog}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, ("\n".join(lines) if kind == "EmoEvaluation" else "".join(lines)).encode())


def _sentence(random: np.random.Generator, label: str) -> str:
    label = {"exc": "hap", "fru": "ang"}.get(label, label)
    columns = BLAND
    if label in WORDS and random.random() < TELLING:
        shared = label in ("ang", "sad") and random.random() < COMPLAINING
        columns = WORDS["complaint" if shared else label]
    text = " ".join(column[random.integers(len(column))] for column in columns)
    if random.random() < 0.12:
        text += " " + " ".join(column[random.integers(len(column))] for column in BLAND)
    elif random.random() < 0.15:
        text = text.partition(",")[0].rstrip(".!") + "."  # short turns: the first words alone
    return text


def _syllables(word: str) -> list[str]:
    # One syllable for each run of vowels, spoken as its first; a lone e at the end is silent.
    runs = re.findall("[aeiouy]+", re.sub(r"(?<=[^aeiouy])e\W*$", "", word)) or ["e"]
    return [run[0] for run in runs]


def _filtered(feedforward: list[float], feedback: list[float], source: Float64[np.ndarray, " s"]) -> Float64[np.ndarray, " s"]:
    from scipy.signal import lfilter  # only here: it takes a second, and the corpus is made once

    return lfilter(feedforward, feedback, source)


@dataclass(frozen=True)
class _Voice:
    pitch: float  # Hz
    tract: float  # factor of the formants: shorter tracts have higher ones
    rate: float  # syllables a second
    tilt: float
    breath: float

    @classmethod
    def draw(cls, random: np.random.Generator, sex: str) -> "_Voice":
        woman = sex == "F"
        return cls(
            pitch=(205 if woman else 118) * np.exp(random.normal(0, 0.10)),
            tract=(1.16 if woman else 1.0) * np.exp(random.normal(0, 0.04)),
            rate=5.2 * np.exp(random.normal(0, 0.08)),
            tilt=0.72 + random.normal(0, 0.05),
            breath=0.02 * np.exp(random.normal(0, 0.3)),
        )

    def say(self, random: np.random.Generator, text: str, label: str) -> Float64[np.ndarray, " s"]:
        """A waveform of 0.8 to 8 s, each vowel of the text one syllable, in the manner of the label."""
        # How much of the manner comes through differs from utterance to utterance, down to nothing.
        share = random.beta(1.5, 1.0)
        target = MANNERS[label]

        def blend(name: str, spread: float) -> float:
            value = getattr(NEUTRAL, name) + share * (getattr(target, name) - getattr(NEUTRAL, name))
            return value + random.normal(0, spread)

        pitch = self.pitch * blend("pitch", 0.07)
        movement = 0.16 * max(0.1, blend("range", 0.25))
        rate = self.rate * max(0.5, blend("rate", 0.07))
        tilt = float(np.clip(self.tilt + blend("tilt", 0.05), 0.2, 0.95))
        jitter = max(0.002, blend("jitter", 0.004))
        level = 10 ** ((-26 + blend("level", 2.0)) / 20)

        vowels = [c for word in text.lower().split() for c in [*_syllables(word), " "]]
        pieces, gap = [], [np.zeros(int(0.08 * SAMPLE_RATE))]
        spoken = [c for c in vowels if c != " "]
        place = 0
        for c in vowels:
            if c == " ":
                if random.random() < 0.2:
                    pieces.append(np.zeros(int(random.uniform(0.03, 0.15) / rate * self.rate * SAMPLE_RATE)))
                continue
            fall = 1.08 - 0.16 * place / max(1, len(spoken) - 1)  # pitch declines over a sentence
            accent = np.exp(random.normal(0, movement))
            seconds = random.uniform(0.6, 1.3) / rate
            pieces += [self._consonant(random), self._syllable(random, c, pitch * fall * accent, seconds, tilt, jitter)]
            place += 1
        sound = np.concatenate([*gap, *pieces, *gap])
        sound = sound[: 8 * SAMPLE_RATE]
        sound = np.pad(sound, (0, max(0, int(0.8 * SAMPLE_RATE) - len(sound))))
        sound = sound / np.sqrt(np.mean(sound**2)) * level + random.normal(0, 4e-4, len(sound))
        return np.clip(sound, -1, 1)

    def _syllable(
        self, random: np.random.Generator, vowel: str, pitch: float, seconds: float, tilt: float, jitter: float
    ) -> Float64[np.ndarray, " s"]:
        n = int(seconds * SAMPLE_RATE)
        periods = int(seconds * pitch * 1.3) + 3
        lengths = SAMPLE_RATE / pitch * (1 + jitter * random.normal(size=periods))
        starts = np.cumsum(lengths).astype(int)
        source = np.zeros(n)
        source[starts[starts < n]] = 1.0
        source = _filtered([1 - tilt], [1.0, -tilt], source) + self.breath * random.normal(size=n) * 0.1
        for formant, bandwidth in zip((*FORMANTS[vowel], 3500), (80, 100, 140, 200), strict=True):
            radius = np.exp(-np.pi * bandwidth / SAMPLE_RATE)
            angle = 2 * np.pi * min(formant * self.tract, 7500) / SAMPLE_RATE
            poles = [1.0, -2 * radius * np.cos(angle), radius**2]
            source = _filtered([sum(poles)], poles, source)
        ramp = int(0.02 * SAMPLE_RATE)
        envelope = np.minimum(1, np.minimum(np.arange(n), np.arange(n)[::-1]) / ramp)
        return source * envelope

    def _consonant(self, random: np.random.Generator) -> Float64[np.ndarray, " s"]:
        n = int(random.uniform(0.015, 0.06) * SAMPLE_RATE)
        return _filtered([1.0, -0.9], [1.0], random.normal(size=n)) * 0.004 * np.hanning(n)
