"""The benchmarks keep what they have measured, count their own work as their own and hold neither side up. That both sides
compute the same is in parity/."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import LITTLE

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[convert]'")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402 (torch is optional)

from benchmarks import pretrain, ragged, systems, timing, torch_heads, torch_loop, train, whole  # noqa: E402
from jaxser import wav2vec  # noqa: E402

SHARES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
"""The two names under which jax hears how much of a GPU is its own; it refuses both at once."""


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch):
    """Benchmarks settle things for the whole process."""
    for name in SHARES:
        monkeypatch.setenv(name, "")  # so that what a benchmark sets goes again
        monkeypatch.delenv(name)
    settled = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.get_num_threads()
    torch.set_num_threads(1)  # where tests share the cores two would wait for each other
    yield
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = settled[:2]
    torch.set_num_threads(settled[2])


@pytest.mark.parametrize("stated", [None, *SHARES])
def test_torch_has_half_of_a_gpu_where_nobody_says(stated: str | None, monkeypatch: pytest.MonkeyPatch):
    if stated:
        monkeypatch.setenv(stated, "0.9")
    systems.side_by_side()
    assert [float(os.environ[name]) for name in SHARES if name in os.environ] == [0.9 if stated else 0.5]


def test_pretraining_is_float32_on_both_sides(twins):
    torch.backends.cudnn.allow_tf32 = True  # torch's own default
    pretrain.main(pretrain.Config(only="fairseq", updates=1, batch_seconds=2.0))
    assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.benchmark


def test_a_cell_that_fails_leaves_those_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(train, "ceiling", lambda *_: {"jax": 100.0})  # which takes seconds
    small = {"rounds": 1, "updates": 2, "runs": (2,), "systems": ("jaxser",)}
    with pytest.raises(KeyError, match="unheard"):
        train.main(train.Config(cells=("mean lld", "unheard lld"), json=tmp_path / "found.json", **small))
    assert torch.backends.cudnn.allow_tf32  # as jax has it
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(row["name"], row["runs"]) for row in found["rows"]] == [("mean lld", 2)]
    assert "| mean lld | jaxser | 2 |" in capsys.readouterr().err


def test_whole_trainings_are_set_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture):
    with suppress(SystemExit):  # 1 where other programs were at work meanwhile
        whole.main(whole.Config(cells=("mean lld",), runs=(1,), json=tmp_path / "found.json"))
    (one,) = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert one["seconds"] > 0
    assert f"| mean lld | jaxser | 1 | {one['seconds']:.1f} |" in capsys.readouterr().out
    rows = [one | {"runs": runs, "seconds": seconds} for runs, seconds in ((1, 2.0), (125, 7.0))]
    assert whole.ratios_of(rows) == {"mean lld, 125 runs beside 1": 3.5}


WAITING = """
import time
from dataclasses import dataclass

from benchmarks.timing import run_benchmark

@dataclass(frozen=True)
class Config:
    "Waits."

def main(config):
    try:
        print("at work", flush=True)
        time.sleep(60)
    finally:
        print("told")

run_benchmark("benchmarks.waiting", Config, main)
"""


def test_who_is_ended_from_outside_tells_what_there_is():
    line, home = [sys.executable, "-c", WAITING], Path(__file__).parents[1]
    with subprocess.Popen(line, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "at work\n"
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "told\n")
    assert err.endswith("benchmarks.waiting: interrupted\n")


BURNING = """
import subprocess, sys, time

while time.process_time() < 0.3:
    pass
if sys.argv[1:]:
    subprocess.run([sys.executable, "-c", sys.argv[1]])
else:
    print("done", flush=True)
    input()
"""


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not tell what processes take")
def test_processes_that_were_started_are_no_other_programs():
    own, line = timing.OtherLoad._own, [sys.executable, "-c", BURNING, BURNING]
    before = own()
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "done\n"
        living = own() - before
        process.communicate("\n")
    ended = own() - before
    assert living >= 0.55, "both have taken 0.3 s"
    assert abs(ended - living) < 0.25, "and are counted once"


class Crossings(TorchDispatchMode):
    """Counts the tensors that are copied from one device to another."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default:
            self.count += found.device != args[0].device
        return found


@pytest.mark.parametrize("head", ["mean", "attention", "mlp"])
def test_updates_wait_for_no_copy(head: str):
    """torch's device `meta` knows shapes alone: who asks it for a number fails, which must be at the end, for the losses."""
    crossings, losses, lengths = [], [], (3, 7, 4, 5)
    for updates in (2, 5):
        model, done = torch_heads.TWINS[head](6, 4, 0.2).to("meta"), []
        utterances = [torch.zeros(length, 6, device="meta") for length in lengths]
        inputs = [torch.zeros(4, 1, 6, device="meta") if head == "mean" else utterances]
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        optimiser.register_step_post_hook(lambda *_, done=done: done.append(1))
        learner = torch_loop.Learner(model, optimiser, inputs, torch.zeros(4, dtype=torch.int64, device="meta"))
        with Crossings() as counted, pytest.raises(RuntimeError, match="meta"):
            torch_loop.advance(learner, np.array([[0, 2], [1, 3], [2, -1], [3, 1], [0, 1]], np.int32)[:updates])
        crossings.append(counted.count)
        losses.append(len(done))
    assert losses == [2, 5]
    assert crossings[0] == crossings[1] > 0


@pytest.mark.parametrize("memory", [None, ragged.PINNED])
def test_features_that_come_back_late_are_the_same(memory: str | None):
    if memory and memory not in {one.kind for one in jax.local_devices()[0].addressable_memories()}:
        pytest.skip(f"there is no {memory} here")
    encoder, draw = wav2vec.make_encoder(LITTLE, wav2vec.random_params(LITTLE, 0)), np.random.default_rng(0)
    batches = [(draw.normal(size=(2, 2_000)).astype(np.float32), np.array([2_000, 900 + 100 * i])) for i in range(3)]
    for late, batch in zip(ragged.features_of(encoder, batches, memory), batches, strict=True):
        np.testing.assert_array_equal(late, encoder(*batch)[1])
