import errno
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import LITTLE, apart, demand_going_on, port, write_tone
from test_checkpoint import failing

from jaxser import checkpoint, digests, pretrain, pretraining, results, wav2vec
from jaxser.cards import FILE
from jaxser.crops import Plan
from jaxser.errors import CallError, WorkError
from jaxser.recipes import RECIPES
from jaxser.recordings import Recording

LAYERS = {
    "conv_feature_layers": str(list(LITTLE.conv_feature_layers)),
    "conv_aggregator_layers": str(list(LITTLE.conv_aggregator_layers)),
}


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four recordings of six speakers, and three that are of no use."""
    home = tmp_path_factory.mktemp("speech")
    lines = ["path,speaker"]
    for i in range(24):
        write_tone(home / f"{i}.wav", 0.8 + 0.1 * (i % 12), 150 + 37 * i, seed=i)
        lines.append(f"{i}.wav,s{i % 6}")
    (home / "broken.wav").write_text("no audio")
    soundfile.write(home / "silent.wav", np.zeros(24_000), 16_000)
    write_tone(home / "short.wav", 0.1)
    (home / "index.csv").write_text("\n".join([*lines, "broken.wav,s0", "silent.wav,s1", "short.wav,s2"]) + "\n")
    return home


def config(speech: Path, out: Path, **changes) -> pretrain.Config:
    small = {"updates": 12, "warm_up": 2, "crop_seconds": 1.0, "batch_seconds": 4.0, "look_every": 4, "save_every": 4}
    given = LAYERS | small | {"held_out": 0.15, "cache": out.parent / "cache"} | changes
    return pretrain.Config(audio=(speech / "index.csv",), out=str(out), **given)


def flags(of: pretrain.Config) -> list[str]:
    given = {name: value for name, value in vars(of).items() if value != pretrain.Config.__dataclass_fields__[name].default}
    audio = given.pop("audio")
    return [
        "--audio",
        *map(str, audio),
        *(text for name, value in given.items() for text in ("--" + name.replace("_", "-"), str(value))),
    ]


COMMAND = [sys.executable, "-m", "jaxser.pretrain"]


@pytest.fixture(scope="session")
def finished(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "weights"
    pretrain.main(config(speech, out))
    return out


def arrays(out: Path) -> dict[str, np.ndarray]:
    return dict(checkpoint.named_leaves(checkpoint.load(out, wav2vec.KIND)[0]))


def same(one: Path, other: Path) -> None:
    first, second = arrays(one), arrays(other)
    assert first.keys() == second.keys()
    for name, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[name], err_msg=name)


def test_what_comes_out_is_an_encoder(finished: Path):
    encoder = wav2vec.load(finished)
    z, c, frames = encoder(np.random.default_rng(0).normal(0, 0.1, (1, 16_000)).astype(np.float32), [16_000])
    assert (z.shape, c.shape, frames.tolist()) == ((1, 98, 16), (1, 98, 16), [98])
    assert np.std(c) > 0
    assert {path.name for path in finished.parent.iterdir()} == {"weights", "cache"}


def test_the_card_and_the_curve(finished: Path):
    note = checkpoint.about(finished, wav2vec.KIND)
    assert [row["updates"] for row in note["curve"]] == [4, 8, 12]
    assert all({"loss", "accuracy", "held_out_loss", "held_out_accuracy", "hours_heard"} <= row.keys() for row in note["curve"])
    assert note["updates"] == 12
    reasons = {Path(name).name: reason for name, reason in note["left_out"].items()}
    assert reasons["broken.wav"] == "not readable as audio"
    assert reasons["silent.wav"].startswith("silent")
    assert "shorter than" in reasons["short.wav"]
    card = (finished / FILE).read_text()
    for text in ("index.csv (25 files", "6 speakers", "1 speaker, 0.00 h", "1 silent", note["encoder_digest"], "| 12 | "):
        assert text in card


def test_a_finished_training_is_printed_again(finished: Path, speech: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and path.name != FILE}
    (finished / FILE).unlink()
    pretrain.main(config(speech, finished))
    assert capsys.readouterr().out.startswith("# wav2vec weights")
    assert (finished / FILE).exists()
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(CallError, match=r"holds other weights \(seed: there 0, here 1\)"):
        pretrain.main(config(speech, finished, seed=1))


def test_cut_short_at_random_moments_it_ends_with_the_same_bits(speech: Path, finished: Path, tmp_path: Path):
    call = config(speech, tmp_path / "torn", save_every=1)
    generator, kills = random.Random(0), 0
    while kills < 3:
        before = last_state(call)
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([*COMMAND, *flags(call)], **pipes, env=apart())
        while last_state(call) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.1))  # in the midst of an update, a look or the next state
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        if process.returncode == 0:
            break  # a fast machine: it came to its end before it was killed
        assert process.returncode == -signal.SIGKILL, errors
        assert ("going on after update" in errors) == (before > 0)
        kills += 1
    assert kills
    done = subprocess.run([*COMMAND, *flags(call)], check=True, capture_output=True, text=True, timeout=600)
    assert done.stdout.startswith("# wav2vec weights")
    same(finished, tmp_path / "torn")  # which saved fewer states: that changes nothing
    curves = [checkpoint.about(path, wav2vec.KIND)["curve"] for path in (finished, tmp_path / "torn")]
    for one, other in zip(*curves, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    assert not Path(f"{call.out}.training").exists()


def last_state(call: pretrain.Config) -> int:
    return max((int(path.name) for path in Path(f"{call.out}.training").glob("0*") if path.name.isdigit()), default=0)


def test_it_goes_on_after_ctrl_c(speech: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    # The signal comes from within, once a state is saved: from outside, a fast machine may be at its end before it arrives.
    # Background jobs of a shell ignore it, and so would all that they start.
    program = """
import os, signal
from jaxser import command, pretrain, pretraining
signal.signal(signal.SIGINT, signal.default_int_handler)
keep = pretraining._save
def save(*arguments):
    keep(*arguments)
    os.kill(os.getpid(), signal.SIGINT)
pretraining._save = save
command.run_command("jaxser.pretrain", pretrain.Config, pretrain.main)
"""
    call = config(speech, tmp_path / "out", save_every=1)
    done = subprocess.run(
        [sys.executable, "-c", program, *flags(call)], capture_output=True, text=True, timeout=300, check=False, env=apart()
    )
    assert done.returncode == 130, done.stderr
    assert "interrupted; what is done is kept" in done.stderr
    assert 0 < last_state(call) < 12
    pretrain.main(call)
    demand_going_on(capsys.readouterr().err, 12)
    same(finished, tmp_path / "out")


def stopped(call: pretrain.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until the first state is saved, and no further."""
    keep = pretraining._save

    def save_and_stop(*arguments):
        keep(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "_save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain.main(call)


def test_one_command_at_a_time(speech: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    call = config(speech, tmp_path / "out")
    keep, refused = pretraining._save, []

    def save_beside_another(*arguments):
        monkeypatch.setattr(pretraining, "_save", keep)
        with pytest.raises(WorkError, match=rf"out\.training is being written by process {os.getpid()} of .*: wait for it"):
            pretrain.main(call)
        refused.append(True)
        keep(*arguments)

    monkeypatch.setattr(pretraining, "_save", save_beside_another)
    pretrain.main(call)
    assert refused
    same(finished, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "cache"}


def test_weights_that_another_command_has_just_written_are_printed(
    speech: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def claimed_late(folder: Path):
        shutil.copytree(finished, tmp_path / "out")
        return results.claimed(folder)

    monkeypatch.setattr(pretrain, "claimed", claimed_late)
    pretrain.main(config(speech, tmp_path / "out"))
    said = capsys.readouterr()
    assert said.out.startswith("# wav2vec weights")
    assert "update" not in said.err
    assert {path.name for path in tmp_path.iterdir()} == {"out", "cache"}


def harm(state: Path, **changes) -> None:
    note = state / "about" / "metadata"
    note.write_text(json.dumps(json.loads(note.read_text()) | changes))


def test_a_damaged_state_is_passed_over(
    speech: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    call = config(speech, tmp_path / "out")
    stopped(call, monkeypatch)
    sound, later, last = (Path(f"{call.out}.training/{number:08}") for number in (4, 8, 12))
    for state in (later, last):
        shutil.copytree(sound, state)
    harm(later, digest="0" * 64)
    harm(last, format="jaxser-0")
    capsys.readouterr()
    pretrain.main(call)
    said = capsys.readouterr().err
    assert f"{last} is a checkpoint of another version of jaxser" in said
    assert f"{later} is damaged: its arrays are not those that were written (their sha256 differs): it goes, for the" in said
    assert "going on after update 4\n" in said
    same(finished, tmp_path / "out")


def test_where_no_state_is_sound_nothing_is_lost(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    call = config(speech, tmp_path / "out")
    stopped(call, monkeypatch)
    state = Path(f"{call.out}.training/00000004")
    harm(state, digest="0" * 64)
    with pytest.raises(WorkError, match=rf"{state} is damaged: .*: delete {state.parent} to begin anew"):
        pretrain.main(call)
    assert [path.name for path in state.parent.iterdir()] == [state.name]


def test_a_state_that_cannot_be_read_now_stays(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    call = config(speech, tmp_path / "out")
    stopped(call, monkeypatch)
    before, last = (Path(f"{call.out}.training/{number:08}") for number in (4, 8))
    shutil.copytree(before, last)
    with (
        failing(last / "about" / "metadata"),
        pytest.raises(WorkError, match=rf"^{last} cannot be read now: Input/output error: run again$"),
    ):
        pretrain.main(call)
    assert sorted(last.parent.iterdir()) == [before, last]


def test_a_recording_that_cannot_be_read_now_ends_the_work(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read = digests.file_digest

    def fails(path: Path) -> str:
        if path.name == "3.wav":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path)

    monkeypatch.setattr(digests, "file_digest", fails)
    with pytest.raises(WorkError, match=rf"^{speech / '3.wav'} cannot be read now: run again$"):
        pretrain.main(config(speech, tmp_path / "out"))
    assert not list(tmp_path.glob("out*"))


def test_a_source_need_not_be_named_in_utf_8(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # As from a folder of the last century; the note of a checkpoint is ASCII, whatever the name.
    out = tmp_path / "weights"
    shutil.copytree(finished, out)
    sources = checkpoint.about(out, wav2vec.KIND)["sources"]
    harm(out, sources=[source | {"name": os.fsdecode(b"Stimmbeispiele f\xfcr alle")} for source in sources])
    with redirect_stdout(io.StringIO()):
        pretrain.finish(str(out))
    assert r"recordings**: Stimmbeispiele f\udcfcr alle" in (out / FILE).read_text(encoding="utf-8")


def test_cut_short_with_a_damaged_recording_it_ends_with_the_same_bits(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    sound = np.random.default_rng(0).normal(0, 0.1, 90 * 16_000).astype(np.float32)
    sound[20 * 16_000 : 50 * 16_000] = np.nan
    soundfile.write(tmp_path / "long.wav", sound, 16_000, "FLOAT")
    calls = [replace(config(speech, tmp_path / name), audio=(speech / "index.csv", tmp_path)) for name in ("whole", "torn")]
    calls = [replace(call, held_out=0.0) for call in calls]
    pretrain.main(calls[0])
    stopped(calls[1], monkeypatch)
    pretrain.main(calls[1])
    demand_going_on(capsys.readouterr().err, 12)
    same(tmp_path / "whole", tmp_path / "torn")
    notes = [checkpoint.about(tmp_path / name, wav2vec.KIND)["left_out"] for name in ("whole", "torn")]
    assert notes[0] == notes[1]
    assert notes[0][str(tmp_path / "long.wav")].startswith("in part it holds samples that are not finite")


def test_other_settings_are_refused(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    call = config(speech, tmp_path / "out")
    stopped(call, monkeypatch)
    with pytest.raises(CallError, match=r"\(learning_rate: there 0\.001, here 0\.002\)"):
        pretrain.main(replace(call, learning_rate=0.002))
    other = tmp_path / "speech"
    shutil.copytree(speech, other)
    write_tone(other / "3.wav", 1.0, seed=99)
    with pytest.raises(CallError, match="recordings: there '"):
        pretrain.main(replace(call, audio=(other / "index.csv",)))
    shutil.copy(speech / "3.wav", other / "3.wav")
    pretrain.main(replace(call, audio=(other / "index.csv",)))  # the same recordings at another place


def test_a_loss_that_is_no_number(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    call = config(speech, tmp_path / "out")
    stopped(call, monkeypatch)
    state = Path(f"{call.out}.training/00000004")
    leaves, note = checkpoint.load(state, pretraining.KIND)
    shutil.rmtree(state)
    leaves["0000"] = np.full_like(leaves["0000"], np.nan)
    checkpoint.save(state, pretraining.KIND, leaves, {k: v for k, v in note.items() if k not in ("format", "kind", "digest")})
    with pytest.raises(
        WorkError, match=r"loss is nan .* update 5: .* lower --learning-rate .*--initial .*out.training/00000004"
    ):
        pretrain.main(call)
    assert [path.name for path in Path(f"{call.out}.training").iterdir()] == ["00000004"]
    assert not Path(call.out).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_seconds": 400.0},
            r"give 2[0-9] crops of at most 1 s, fewer than a batch of 400: lower --batch-seconds \(now 400\)",
        ),
        ({"crop_seconds": 0.3}, "too short for these predictions: --crop-seconds 0.68"),
        ({"crop_seconds": 0.0}, "--crop-seconds 0: above 0"),
        ({"updates": 0}, "--updates 0: at least 1"),
        ({"warm_up": 12}, "--warm-up 12: fewer than the 12 updates"),
        ({"held_out": 1.0}, "--held-out 1: a share below 1"),
        ({"held_out": 0.95}, "--held-out 0.95 takes every speaker"),
        ({"precision": "bfloat16"}, "bfloat16 is for GPU and TPU"),
        ({"balanced_classes": True}, "--balanced-classes True changes nothing with infonce: add --infonce False"),
        ({"conv_feature_layers": "[(8, 10)]"}, "each layer is"),
        (dict.fromkeys(LAYERS) | {"initial": "nowhere"}, "nowhere: no such folder"),
        ({"notes": Path("nowhere.md")}, "--notes nowhere.md: No such file"),
        ({"coordinator": "localhost:1"}, "how many there are, and which one this is"),
        ({"coordinator": "localhost", "processes": 2, "process": 0}, "--coordinator localhost .*: HOST:PORT"),
        ({"coordinator": "localhost:1", "processes": 2, "process": 2}, "--process 2: HOST:PORT"),
        ({"coordinator": "auto"}, "--coordinator auto: "),
        ({"batch_seconds": 0.5}, r"--batch-seconds 0.5 is less than one crop for each of 2 .*: --batch-seconds 2"),
        ({"crop_seconds": 1e-5}, "too short for these predictions"),
        ({"seed": 2**31}, "--seed 2147483648: below"),
        ({"out": "nano"}, r"--out nano: .* \./nano"),
        ({"processes": 2, "process": 0}, "need --coordinator"),
        ({"learning_rate": float("nan")}, "--learning-rate nan: above 0"),
    ],
)
def test_wrong_calls(speech: Path, tmp_path: Path, changes: dict, message: str):
    with pytest.raises(CallError, match=message):
        pretrain.main(replace(config(speech, tmp_path / "out"), **changes))
    assert not list(tmp_path.glob("out*"))


def test_balanced_classes_without_infonce(speech: Path, tmp_path: Path):
    given = config(speech, tmp_path / "out", balanced_classes=True)
    for call in (replace(given, infonce=False), replace(given, recipe="base", prediction_steps=None)):
        objective = pretrain.resolve(call)[0].objective
        assert (objective.balanced_classes, objective.infonce) == (True, False)
    assert not pretrain.resolve(replace(given, balanced_classes=False))[0].objective.balanced_classes


def held_plan(recipe: str, seconds: np.ndarray, devices: int) -> Plan:
    """As `pretrain.prepare` makes it."""
    found = RECIPES[recipe]
    recordings = tuple(Recording(Path(f"{i}.wav"), round(16_000 * s)) for i, s in enumerate(seconds))
    return Plan(recordings, round(16_000 * found.crop_seconds), round(16_000 * found.batch_seconds), 0, devices)


@pytest.mark.parametrize("devices", [1, 2, 8, 64])
@pytest.mark.parametrize("recipe", ["base", "large"])
def test_a_look_hears_all_lengths_of_the_published_recipes(recipe: str, devices: int):
    # Nearly all are longer than a crop, as in books that are read out.
    generator = np.random.default_rng(0)
    short = [generator.uniform(low, high, 60) for low, high in itertools.pairwise((1, 2.3, 3.2, 4.6, 6.5, 9.3))]
    seconds = generator.permutation(np.concatenate([generator.uniform(10, 20, 2_000), *short]))
    plan = held_plan(recipe, seconds, devices)
    look = pretraining.batches_of_a_look(plan)
    assert {batch.length for batch in look} == set(plan.lengths())
    heard = [crop for batch in look for crop in batch.crops]
    assert len(set(heard)) == len(heard)
    # The last batch goes past the end; 64 rows of whole crops, one for each device, are 600 s by themselves.
    assert 600 <= sum(crop.samples for crop in heard) / 16_000 < (700 if devices < 64 else 1_500)
    assert all(batch.rows % devices == 0 for batch in look)
    few = pretraining.batches_of_a_look(replace(plan, recordings=plan.recordings[:20]))
    assert sum(len(batch.crops) for batch in few) == sum(max(1, int(s // 9.375)) for s in seconds[:20])
    assert pretraining.batches_of_a_look(replace(plan, recordings=())) == []


@pytest.mark.parametrize("devices", [1, 2])
def test_a_look_of_nano_hears_what_its_card_was_made_from(devices: int):
    plan = held_plan("nano", np.random.default_rng(0).uniform(0.3, 12, 400), devices)
    assert len(plan.epoch(0)) > 38
    assert pretraining.batches_of_a_look(plan) == plan.epoch(0)[:38]  # the nearest to 600 s of batches of 16 s


def test_a_bad_file_among_those_held_out_is_counted(speech: Path, tmp_path: Path):
    one = tmp_path / "speech"
    shutil.copytree(speech, one)
    lines = (one / "index.csv").read_text().splitlines()
    # All is said by two voices; the one that this seed holds out says the silence.
    halves = [line.rsplit(",", 1)[0] + (",b" if "silent" in line or line.startswith("3.wav") else ",a") for line in lines[1:]]
    (one / "index.csv").write_text("\n".join(["path,speaker", *halves]))
    pretrain.main(config(one, tmp_path / "out", held_out=0.06, seed=0, updates=4))
    note = checkpoint.about(tmp_path / "out", wav2vec.KIND)
    assert note["held_out"].startswith("1 speaker, ")
    assert str(one / "silent.wav") in note["left_out"]


def test_training_goes_on_from_weights(speech: Path, finished: Path, tmp_path: Path):
    call = config(speech, tmp_path / "out", conv_feature_layers=None, conv_aggregator_layers=None, initial=str(finished))
    pretrain.main(replace(call, updates=3, warm_up=1, learning_rate=1e-9))
    for name, leaf in arrays(finished).items():
        np.testing.assert_allclose(arrays(tmp_path / "out")[name], leaf, atol=1e-7)
    with pytest.raises(CallError, match="predicts 12 steps and not 5"):
        pretrain.main(replace(call, out=str(tmp_path / "two"), prediction_steps=5))
    with pytest.raises(CallError, match="--conv-feature-layers does not go with --initial"):
        pretrain.main(replace(call, out=str(tmp_path / "two"), conv_feature_layers=LAYERS["conv_feature_layers"]))


def test_training_goes_on_from_a_saved_state(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    call = config(speech, tmp_path / "out")
    stopped(call, monkeypatch)
    state = f"{call.out}.training/00000004"
    leaves, _ = checkpoint.load(state, pretraining.KIND)
    architecture, params = pretraining.initial(state)
    found = dict(checkpoint.named_leaves(params))
    for number, (name, leaf) in enumerate(found.items()):  # parameters come first in a state, in order of their names
        np.testing.assert_array_equal(leaf, leaves[f"{number:04}"], err_msg=name)
    shapes = {name: leaf.shape for name, leaf in found.items()}
    assert shapes["encoder_0/kernel"] == (10, 1, 8)
    assert shapes["predictions/kernel"] == (12, 16, 16)
    small = {"conv_feature_layers": None, "conv_aggregator_layers": None, "out": str(tmp_path / "two")}
    pretrain.main(replace(call, **small, initial=state, updates=3, warm_up=1))
    assert checkpoint.about(tmp_path / "two", wav2vec.KIND)["config"] == checkpoint.plain(architecture.to_json())


def test_a_place_that_cannot_be_written_is_found_first(speech: Path, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    call = config(speech, tmp_path / "file" / "weights")
    done = subprocess.run(
        [*COMMAND, *flags(replace(call, cache=tmp_path / "c"))], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"jaxser.pretrain: {tmp_path / 'file'}")
    assert "Traceback" not in done.stderr


def test_half_precision_on_disk(speech: Path, finished: Path, tmp_path: Path):
    pretrain.main(config(speech, tmp_path / "half", dtype="float16"))
    assert {leaf.dtype for leaf in arrays(tmp_path / "half").values()} == {np.dtype(np.float16)}
    for name, leaf in arrays(finished).items():
        np.testing.assert_array_equal(arrays(tmp_path / "half")[name], leaf.astype(np.float16), err_msg=name)
    assert wav2vec.load(tmp_path / "half").digest == wav2vec.identify(tmp_path / "half")[1] != wav2vec.identify(finished)[1]


NOTED = """
import sys
from jaxser import checkpoint, command, digests, pretrain

noted = open(sys.argv.pop(1), "a", buffering=1)

def note(module, name):
    work = getattr(module, name)

    def told(path, *rest):
        noted.write(f"{name} {path}\\n")
        return work(path, *rest)

    setattr(module, name, told)

note(digests, "file_digest")
note(checkpoint, "about")
command.run_command("jaxser.pretrain", pretrain.Config, pretrain.main)
"""
"""The command, which notes what it reads whole, and which checkpoints it asks what they are."""


def test_two_hosts(speech: Path, finished: Path, tmp_path: Path):
    """Two processes, each with a device of its own, against one process with two devices."""
    alone = config(speech, tmp_path / "alone")
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    subprocess.run([*COMMAND, *flags(alone)], check=True, capture_output=True, env=environment, timeout=600)
    meeting = f"localhost:{port()}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    processes = []
    for number in (0, 1):
        call = config(speech, tmp_path / "two", coordinator=meeting, processes=2, process=number)
        call = replace(call, cache=tmp_path / "shared")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        line = [sys.executable, "-c", NOTED, str(tmp_path / f"noted{number}"), *flags(call)]
        processes.append(subprocess.Popen(line, env=environment, **pipes))
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    # The library that carries what hosts exchange says on stdout that it is connected.
    assert "# wav2vec weights" in outputs[0][0]
    assert "# wav2vec weights" not in outputs[1][0]
    note, other = (checkpoint.about(tmp_path / name, wav2vec.KIND) for name in ("two", "alone"))
    assert note["left_out"] == other["left_out"]
    assert note["machine"].startswith("2 hosts, 2 x ")
    assert note["settings"] == other["settings"]
    # The same rows and the same negatives; only the sums over devices may come in another order.
    for one, two in zip(note["curve"], other["curve"], strict=True):
        assert one["held_out_loss"] == pytest.approx(two["held_out_loss"], abs=1e-4)
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4)
    # Every recording is read whole once, and only by the first. Another host may for some seconds not see what has just come.
    first, second = (Counter((tmp_path / f"noted{number}").read_text().splitlines()) for number in (0, 1))
    assert first == {f"file_digest {speech / f'{i}.wav'}": 1 for i in range(24)} | {
        f"file_digest {speech / 'silent.wav'}": 1,
        f"about {tmp_path / 'two'}": 1,
    }
    assert not second


def test_what_is_wrong_on_one_host_is_said_on_both(speech: Path, tmp_path: Path):
    meeting = f"localhost:{port()}"
    processes = []
    for number in (0, 1):
        call = config(speech, tmp_path / "out", coordinator=meeting, processes=2, process=number)
        call = replace(call, audio=(tmp_path / "nowhere",)) if number else call
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
        processes.append(subprocess.Popen([*COMMAND, *flags(call)], env=environment, **pipes))
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    for text in errors:
        assert text.endswith(f"jaxser.pretrain: --audio {tmp_path / 'nowhere'}: no such folder or CSV file\n")
    assert not list(tmp_path.glob("out*"))


def test_the_command_says_where_it_stands(speech: Path, tmp_path: Path):
    done = subprocess.run(
        [*COMMAND, *flags(config(speech, tmp_path / "out"))], capture_output=True, text=True, check=True, timeout=300
    )
    lines = done.stderr.splitlines()
    assert lines[0].startswith("0.01 h to train on")
    assert [line.partition(":")[0] for line in lines[1:]] == ["update 4 of 12", "update 8 of 12", "update 12 of 12"]
    assert "held out" in lines[1]
    assert "h an hour" in lines[1]
    assert json.loads((tmp_path / "out" / "about" / "metadata").read_text())["kind"] == wav2vec.KIND
    bad = subprocess.run(
        [*COMMAND, "--audio", str(tmp_path / "no"), "--out", "x"], capture_output=True, text=True, check=False, timeout=300
    )
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == f"jaxser.pretrain: --audio {tmp_path / 'no'}: no such folder or CSV file\n"
