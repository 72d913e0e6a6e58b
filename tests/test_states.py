"""Training that was cut short goes on from its last saved state, to the bit; what is of other work is not mixed in."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from conftest import demand_going_on
from etils import epath
from test_checkpoint import failing
from test_train import TIMES, assert_same_bits, few_rooms, problem, run_on_devices, runs_of

from jaxser import ensemble, states
from jaxser.errors import WorkError
from jaxser.heads import HEADS
from jaxser.standards import moments, standardisation


@pytest.fixture(autouse=True)
def _of_few_rooms() -> Iterator[None]:
    with few_rooms():
        yield


class Killed(Exception):
    """In place of a kill, which test_kills.py has."""


def work(head: str = "mlp", updates: int = 30) -> tuple:
    frames, labels = problem(times=TIMES.get(head, 1))
    read, runs = HEADS[head].summarise(frames), [replace(run, updates=updates + i) for i, run in enumerate(runs_of(3))]
    standards = [(standardisation(moments(frames), run.train),) for run in runs]
    return HEADS[head].module(3, 0.2), optax.adam(1e-2), (read,), labels, runs, standards, 6


def kept(folder: Path, **settings) -> states.Keep:
    return states.Keep(epath.Path(folder), "a test", 0.0, {"corpus": "a", **settings})


def cut_short(after: int, **options):
    """Raises in the middle of the work."""
    looks = []

    def progress(updates: int, loss: float) -> None:
        looks.append(updates)
        if len(looks) > after:
            raise Killed

    with pytest.raises(Killed):
        ensemble.train_runs(*work(), chunk=5, progress=progress, **options)


def everything(trained: ensemble.Trained):
    return trained.params, trained.standards, trained.logits, trained.losses


@pytest.mark.parametrize("after", [1, 4])
def test_it_goes_on_to_the_same_bits(tmp_path: Path, after: int, capsys: pytest.CaptureFixture[str]):
    whole = ensemble.train_runs(*work(), chunk=5)
    cut_short(after, keep=kept(tmp_path))
    assert len(list(tmp_path.iterdir())) <= 2  # those before them are gone
    capsys.readouterr()
    again = ensemble.train_runs(*work(), chunk=5, keep=kept(tmp_path))
    demand_going_on(capsys.readouterr().err, 93)
    assert_same_bits(everything(whole), everything(again))


def test_what_a_kill_in_mid_writing_leaves_goes_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    half = tmp_path / "00000005.orbax-checkpoint-tmp"
    (half / "params").mkdir(parents=True)
    (half / "params" / "part").write_bytes(b"half")
    whole = ensemble.train_runs(*work(), chunk=5)
    again = ensemble.train_runs(*work(), chunk=5, keep=kept(tmp_path))
    assert_same_bits(everything(whole), everything(again))
    assert not half.exists()
    assert not [record for record in caplog.records if "orbax" in record.getMessage()]


def test_another_chunk_goes_on_from_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    whole = ensemble.train_runs(*work(), chunk=5)
    cut_short(2, keep=kept(tmp_path))
    again = ensemble.train_runs(*work(), chunk=7, keep=kept(tmp_path))
    demand_going_on(capsys.readouterr().err, 93)
    assert_same_bits(everything(whole), everything(again))


FOUR = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from test_states import cut_short, few_rooms, kept
with few_rooms():
    cut_short(3, keep=kept(Path({folder!r})))
"""


def test_another_number_of_devices_goes_on_from_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    # Three runs on three devices have a place each; on two they take turns.
    run_on_devices(4, FOUR.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    again = ensemble.train_runs(*work(), chunk=5, keep=kept(tmp_path))
    demand_going_on(capsys.readouterr().err, 93)
    assert_same_bits(everything(ensemble.train_runs(*work(), chunk=5)), everything(again))


def test_the_last_state_only_predicts(tmp_path: Path):
    keep = replace(kept(tmp_path), at_end=True, seconds=1e9)
    whole = ensemble.train_runs(*work(), chunk=5, keep=keep)
    looks = []
    again = ensemble.train_runs(*work(), chunk=5, keep=keep, progress=lambda updates, loss: looks.append(updates))
    assert_same_bits(everything(whole), everything(again))
    assert len(looks) == 1  # of what was done before


def test_streamed_runs_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    frames, labels = problem(n=1400)
    random = np.random.default_rng(1)
    runs = [replace(runs_of(1)[0], fold=i, updates=20, train=random.permutation(1400)[:300]) for i in range(4)]
    standards = [(standardisation(moments(frames), run.train),) for run in runs]
    rest = (HEADS["mean"].module(3, 0.2), optax.adam(1e-2), (HEADS["mean"].summarise(frames),), labels, runs, standards, 6, 1)
    memory = rest[2][0].x.nbytes / 10 / 2**30
    whole, looks = ensemble.train_runs(*rest, memory), []

    def progress(updates: int, loss: float) -> None:
        looks.append(updates)
        if len(looks) == 3:  # when the first two of four runs have given up their places
            raise Killed

    keep = kept(tmp_path)
    with pytest.raises(Killed):
        ensemble.train_runs(*rest, memory, progress=progress, keep=keep)
    again = ensemble.train_runs(*rest, memory, keep=keep)
    demand_going_on(capsys.readouterr().err, 80)
    assert_same_bits(everything(whole), everything(again))


@pytest.mark.parametrize("change", ["corpus", "runs", "kind"])
def test_a_state_of_other_work_is_refused(tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]):
    cut_short(3, keep=kept(tmp_path))
    module, tx, frames, labels, runs, standards, size = work()
    keep = kept(tmp_path, corpus="b") if change == "corpus" else kept(tmp_path)
    if change == "runs":
        runs = [replace(run, seed=7) for run in runs]
    if change == "kind":
        keep = replace(keep, kind="something else")
    found = ensemble.train_runs(module, tx, frames, labels, runs, standards, size, chunk=5, keep=keep)
    assert "is not gone on from" in capsys.readouterr().err
    alone = ensemble.train_runs(module, tx, frames, labels, runs, standards, size, chunk=5)
    assert_same_bits(everything(alone), everything(found))


def test_a_state_of_other_work_stays_until_there_is_one_of_this(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    here, there = kept(tmp_path), kept(tmp_path, corpus="b")
    cut_short(4, keep=there)
    theirs = {path.name for path in tmp_path.iterdir()}
    whole = ensemble.train_runs(*work(), chunk=5, keep=replace(here, seconds=1e9))  # it saves no state
    assert {path.name for path in tmp_path.iterdir()} == theirs
    cut_short(1, keep=here)  # a state of less work
    capsys.readouterr()
    again = ensemble.train_runs(*work(), chunk=5, keep=here)
    demand_going_on(capsys.readouterr().err, 93)
    assert_same_bits(everything(whole), everything(again))
    assert not theirs & {path.name for path in tmp_path.iterdir()}


def test_a_state_that_cannot_be_read_now_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cut_short(3, keep=kept(tmp_path))
    note = Path(states.found(epath.Path(tmp_path))[-1]) / "about" / "metadata"
    with failing(note), pytest.raises(WorkError, match="cannot be read now: Input/output error: run again"):
        ensemble.train_runs(*work(), chunk=5, keep=kept(tmp_path))
    ensemble.train_runs(*work(), chunk=5, keep=kept(tmp_path))
    demand_going_on(capsys.readouterr().err, 93)


def test_a_damaged_state_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cut_short(3, keep=kept(tmp_path))
    for path in (p for p in tmp_path.rglob("*") if p.is_file() and "params" in str(p) and p.stat().st_size > 1_000):
        content = bytearray(path.read_bytes())  # Orbax has them twice
        content[len(content) // 2] ^= 255
        path.write_bytes(bytes(content))
    again = ensemble.train_runs(*work(), chunk=5, keep=kept(tmp_path))
    assert "is not gone on from" in capsys.readouterr().err
    assert_same_bits(everything(ensemble.train_runs(*work(), chunk=5)), everything(again))


def test_a_run_that_diverges_is_named_and_the_others_finish(capsys: pytest.CaptureFixture[str]):
    module, tx, frames, labels, runs, standards, size = work()
    wild = [(jax.tree.map(lambda x: x * np.float32(np.nan), standards[1][0]),)]
    found = ensemble.train_runs(module, tx, frames, labels, runs, [standards[0], *wild, standards[2]], size, chunk=5)
    assert found.diverged == {1: 1}
    assert capsys.readouterr().err.count("seed 0, fold 1: the loss is nan at update 1; the other runs go on") == 1
    whole = ensemble.train_runs(module, tx, frames, labels, runs, standards, size, chunk=5)
    assert_same_bits(everything(whole.of([0, 2])), everything(found.of([0, 2])))
