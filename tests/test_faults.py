"""What goes wrong from outside: full disks, read-only folders, two at once, damaged parts, NaN, no memory, Ctrl-C."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import LITTLE, apart, write_table, write_tone

from jaxser import cv, extract, extract_wav2vec, files, models, results, wav2vec
from jaxser.command import run_command
from jaxser.errors import WorkError

QUICK = ("--features", "lld", "--head", "mean", "--updates", "120", "--learning-rate", "1e-2")


FULL_DISK = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
"""No file may grow beyond so many bytes, which is what a full disk looks like to who writes."""

FULL_OUTPUT = """
import os, sys
os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
os.environ.pop("PYTHONUNBUFFERED", None)  # with it each line is written when it is printed
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""What is printed cannot be written."""

NO_PRIVILEGES = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Root, too, is refused what the modes of a folder refuse."""


def command(module: str, *flags: object, folder: Path, under: Sequence[object] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command of the package; `under` a launcher with its arguments."""
    first = ["-c", *under] if under else []
    line = [sys.executable, *first, "-m", module, *flags]
    where = {"cwd": folder, "env": apart() | {"PYTHONPATH": str(Path(__file__).parents[1])}}  # `convert` is not installed
    return subprocess.run(list(map(str, line)), **where, capture_output=True, text=True, timeout=240, check=False)


def one_line(done: subprocess.CompletedProcess[str], module: str, *words: str) -> None:
    """It failed with 1, and the last line says why."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"{module}: ")
    for word in words:
        assert word in last


@pytest.mark.parametrize("size", [0, 20_000])
def test_a_full_disk_costs_nothing_but_time(tmp_path: Path, size: int):
    table = write_table(tmp_path / "corpus")
    flags = ("--corpus", "csv", "--root", table, *QUICK, "--cache", tmp_path / "cache", "--out", tmp_path / "run", "--save")
    done = command("jaxser.cv", *flags, folder=tmp_path, under=(FULL_DISK, size))
    one_line(done, "jaxser.cv")
    assert not (tmp_path / "run" / "summary.json").exists()
    done = command("jaxser.cv", *flags, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert models.load(tmp_path / "run", cache=tmp_path / "cache").member(0, 0)


def test_a_disk_that_fills_up_while_the_model_is_written(tmp_path: Path):
    table = write_table(tmp_path / "corpus")
    flags = (
        "--corpus",
        "csv",
        "--root",
        table,
        "--features",
        "lld",
        "--updates",
        50,
        "--seeds",
        3,
        "--cache",
        tmp_path / "cache",
    )
    assert command("jaxser.cv", *flags, "--out", tmp_path / "plain", folder=tmp_path).returncode == 0
    largest = max(path.stat().st_size for path in (tmp_path / "plain").iterdir())
    flags = (*flags, "--out", tmp_path / "run", "--save")
    done = command("jaxser.cv", *flags, folder=tmp_path, under=(FULL_DISK, largest + 4_096))
    one_line(done, "jaxser.cv", "could not be written")
    assert not (tmp_path / "run" / "summary.json").exists()
    assert command("jaxser.cv", *flags, folder=tmp_path).returncode == 0
    assert models.load(tmp_path / "run", cache=tmp_path / "cache").member(0, 0)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, list[object]]]:
    """The other commands, which write below `out` and `cache` of the folder they are started in."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[convert]'")
    from test_convert import ARGS, TENSORS

    home = tmp_path_factory.mktemp("given")
    corpus = ["--corpus", "csv", "--root", write_table(home / "corpus")]
    wav2vec.save(home / "weights", LITTLE, wav2vec.random_params(LITTLE, 0), {})
    torch.save({**ARGS, "model": TENSORS}, home / "given.pt")
    config = cv.Config(
        corpus="csv", root=corpus[-1], weights=str(home / "weights"), head="mean", updates=20, cache=home / "cache", save=True
    )
    cv.main(dataclasses.replace(config, out=home / "model"))
    figure = [*corpus, "--figure", "2", "--head", "mean", "--weights", home / "weights", "--control", "none"]
    training = ["--updates", 12, "--warm-up", 2, "--batch-seconds", 4, "--crop-seconds", 1, "--save-every", 4]
    return {
        "synthetic": ("jaxser.extract", ["--features", "lld", "--cache", "cache"]),  # the corpus itself is made there
        "extract": ("jaxser.extract", [*corpus, "--features", "lld", "--cache", "cache"]),
        "paper": ("jaxser.paper", [*figure, "--seeds", 1, "--updates", 20, "--cache", "cache", "--out", "out/paper"]),
        "predict": ("jaxser.predict", [home / "model", home / "corpus", "--cache", "cache", "--out", "out/labels.csv"]),
        "pictures": ("jaxser.predict", [home / "model", home / "corpus", "--cache", "cache", "--segments", 0.4,
                                        "--pictures", "out/pictures"]),
        "pretrain": ("jaxser.pretrain", ["--audio", home / "corpus", "--out", "out/weights", *training]),
        "convert": ("convert.wav2vec", [home / "given.pt", "out/weights"]),
    }  # fmt: skip


NAMED = {
    "synthetic": "cache/",
    "extract": "cache/",
    "predict": "out/labels.csv",
    "pictures": "out/pictures/",
    "convert": "out/weights",
}
"""What cannot be written first where no file may be longer than a hundred bytes."""


@pytest.mark.parametrize("name", NAMED)
def test_other_commands_on_a_full_disk(others: dict[str, tuple[str, list[object]]], name: str, tmp_path: Path):
    module, flags = others[name]
    (tmp_path / "out").mkdir()
    done = command(module, *flags, folder=tmp_path, under=(FULL_DISK, 100))
    one_line(done, module, NAMED[name], "File too large")
    if name != "synthetic":  # which takes longer
        again = command(module, *flags, folder=tmp_path)
        assert again.returncode == 0, again.stderr


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there are no modes of folders here")
@pytest.mark.parametrize(
    ("name", "what"),
    [("extract", "cache"), ("paper", "out"), ("predict", "out"), ("pictures", "out"), ("pretrain", "out"), ("convert", "out")],
)
def test_other_commands_name_a_read_only_folder(
    others: dict[str, tuple[str, list[object]]], name: str, what: str, tmp_path: Path
):
    module, flags = others[name]
    (tmp_path / what).mkdir(mode=0o555)
    done = command(module, *flags, folder=tmp_path, under=(NO_PRIVILEGES,))
    (tmp_path / what).chmod(0o755)
    one_line(done, module, "Permission denied", what)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there are no modes of folders here")
def test_labels_need_no_cache(others: dict[str, tuple[str, list[object]]], tmp_path: Path):
    (tmp_path / "cache").mkdir(mode=0o555)
    done = command("jaxser.predict", *others["predict"][1], folder=tmp_path, under=(NO_PRIVILEGES,))
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out" / "labels.csv").read_text().splitlines()) == 49
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there are no modes of folders here")
@pytest.mark.parametrize("what", ["cache", "run"])
def test_a_read_only_folder_is_named(tmp_path: Path, what: str):
    table = write_table(tmp_path / "corpus")
    (tmp_path / what).mkdir(mode=0o555)
    flags = ("--corpus", "csv", "--root", table, *QUICK, "--cache", tmp_path / "cache", "--out", tmp_path / "run")
    done = command("jaxser.cv", *flags, folder=tmp_path, under=(NO_PRIVILEGES,))
    (tmp_path / what).chmod(0o755)
    one_line(done, "jaxser.cv", "Permission denied", str(tmp_path / what))


def test_two_on_one_store_and_run_folder(tmp_path: Path):
    table = write_table(tmp_path / "corpus")
    alone, shared = tmp_path / "alone", tmp_path / "shared"

    def start(cache: Path, out: Path) -> subprocess.Popen:
        flags = ("--corpus", "csv", "--root", table, *QUICK, "--seeds", 8, "--cache", cache, "--out", out)
        line = [sys.executable, "-m", "jaxser.cv", *map(str, flags)]
        return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    first = start(alone / "cache", alone / "run")
    assert first.communicate(timeout=240)[1] is not None
    assert first.returncode == 0
    several = [start(shared / "cache", shared / "run") for _ in range(2)]
    said = [process.communicate(timeout=240)[1] for process in several]
    codes = [process.returncode for process in several]
    assert 0 in codes
    assert set(codes) <= {0, 1}
    for code, text in zip(codes, said, strict=True):
        assert "Traceback" not in text
        if code:
            assert "is being written by process" in text
    for name in ("scores.csv", "predictions.csv", "confusion.csv", "losses.csv"):
        assert (alone / "run" / name).read_bytes() == (shared / "run" / name).read_bytes()
    parts = [{p.name: p.read_bytes() for p in (one / "cache" / "features").rglob("part-*")} for one in (alone, shared)]
    assert parts[0] == parts[1]
    assert not (shared / "run" / ".lock").exists()


def test_a_claim_goes_with_its_process(tmp_path: Path):
    code = (
        f"from jaxser import results; from pathlib import Path; import time\nwith results.claimed(Path({str(tmp_path)!r})):\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code + "    print('mine', flush=True); time.sleep(60)"], stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"mine\n"
    with pytest.raises(WorkError, match=f"is being written by process {other.pid} of "), results.claimed(tmp_path):
        pass
    other.kill()
    other.communicate()
    with results.claimed(tmp_path):
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()


def test_a_damaged_part_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table = write_table(tmp_path / "corpus")
    config = cv.Config(corpus="csv", root=table, features="lld", head="mean", updates=20, cache=tmp_path / "cache")
    cv.main(dataclasses.replace(config, out=tmp_path / "one"))
    (part,) = (tmp_path / "cache" / "features").rglob("part-*.npy")
    note = part.with_suffix(".json")
    whole = {path: path.read_bytes() for path in (part, note)}
    harms = {
        part: [lambda b: b[:-5], lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:], lambda b: b""],
        note: [lambda b: b[:-9], lambda b: b"[]", lambda b: b'{"crc32": 0}', lambda b: b"\xff\xfe", lambda b: b"null"],
    }
    for path, several in harms.items():
        for i, harm in enumerate(several):
            path.write_bytes(harm(whole[path]))
            cv.main(dataclasses.replace(config, out=tmp_path / f"{path.suffix}{i}"))
            assert "1 damaged parts are made anew" in capsys.readouterr().err
            assert {path: path.read_bytes() for path in (part, note)} == whole
            same = (tmp_path / f"{path.suffix}{i}" / "predictions.csv").read_bytes()
            assert same == (tmp_path / "one" / "predictions.csv").read_bytes()


def test_results_that_nobody_can_take_are_told(tmp_path: Path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    table = write_table(tmp_path / "corpus")
    flags = ("--corpus", "csv", "--root", table, "--features", "lld", "--cache", tmp_path / "cache")
    done = command("jaxser.extract", *flags, folder=tmp_path, under=(FULL_OUTPUT,))
    one_line(done, "jaxser.extract", "No space left on device")


def test_runs_that_diverge_are_named_and_the_others_kept(tmp_path: Path):
    # At this rate Adam's steps overflow float32 in some updates.
    table = write_table(tmp_path / "corpus")
    flags = ("--corpus", "csv", "--root", table, "--features", "lld", "--head", "mlp", "--updates", 40)
    done = command(
        "jaxser.cv",
        *flags,
        "--learning-rate",
        "1e37",
        "--cache",
        tmp_path / "cache",
        "--out",
        tmp_path / "run",
        folder=tmp_path,
    )
    one_line(done, "jaxser.cv", "lower --learning-rate")
    assert not (tmp_path / "run" / "summary.json").exists()


def sound_and_spoilt(home: Path, monkeypatch: pytest.MonkeyPatch, spoils: Callable[[np.ndarray], bool]) -> cv.Config:
    """A configuration that has run well, into `home / "sound"`; from now on runs whose training rows `spoils` picks out see
    nothing but NaN."""
    from jaxser import experiments

    table = write_table(home / "corpus")
    config = cv.Config(corpus="csv", root=table, features="lld", head="mean", updates=20, cache=home / "cache")
    cv.main(dataclasses.replace(config, out=home / "sound"))
    made = experiments.standardisation

    def spoilt(of, rows):
        standard = made(of, rows)
        return standard._replace(mean=standard.mean * np.float32(np.nan)) if spoils(rows) else standard

    monkeypatch.setattr(experiments, "standardisation", spoilt)
    return dataclasses.replace(config, out=home / "one")


def test_a_head_on_all_data_that_diverges_costs_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = sound_and_spoilt(tmp_path, monkeypatch, lambda rows: len(rows) == 48)
    with pytest.raises(WorkError, match=r"the loss of the head on all data is no finite number from update 1 on \(the 3 other"):
        cv.main(dataclasses.replace(config, save=True, final=True))
    assert (tmp_path / "one" / "scores.csv").read_bytes() == (tmp_path / "sound" / "scores.csv").read_bytes()
    assert not (tmp_path / "one" / "summary.json").exists()


def test_one_run_that_diverges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = sound_and_spoilt(tmp_path, monkeypatch, lambda rows: 8 not in rows.tolist())
    with pytest.raises(
        WorkError, match=r"the loss of seed 0, fold 1 is no finite number from update 1 on \(the 2 other runs stand"
    ):
        cv.main(config)
    kept = files.read_csv(tmp_path / "one" / "scores.csv")
    assert kept == [row for row in files.read_csv(tmp_path / "sound" / "scores.csv") if row["fold"] != "1"]
    assert not (tmp_path / "one" / "summary.json").exists()
    assert not (tmp_path / "one" / "training").exists()


def test_a_finished_run_of_which_a_repeat_diverges_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = sound_and_spoilt(tmp_path, monkeypatch, lambda rows: 8 not in rows.tolist())
    with pytest.raises(WorkError, match="the loss of seed 0, fold 1 is no finite number"):
        cv.main(dataclasses.replace(config, out=tmp_path / "sound", save=True))
    assert {row["fold"] for row in files.read_csv(tmp_path / "sound" / "scores.csv")} == {"0", "2"}
    assert not (tmp_path / "sound" / "summary.json").exists()


@dataclasses.dataclass(frozen=True)
class Large:
    memory: float = 0.0
    parallel: int = 0


def test_out_of_memory_names_the_flags(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    import jax.numpy as jnp

    monkeypatch.setattr(sys, "argv", ["x"])
    for work in (lambda config: jnp.zeros(1 << 50).block_until_ready(), lambda config: np.zeros(1 << 50)):
        with pytest.raises(SystemExit) as left:
            run_command("jaxser.cv", Large, work)
        assert left.value.code == 1
        said = capsys.readouterr().err
        assert said.startswith("jaxser.cv: out of memory: --memory GIB")
        assert "--parallel 1" in said
        assert len(said.splitlines()) == 1


def test_out_of_memory_for_a_recording_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    import jax.numpy as jnp

    files = [write_tone(tmp_path / f"{name}.wav", seconds) for name, seconds in (("short", 0.9), ("long", 1.0))]
    encoder = wav2vec.make_encoder(LITTLE, wav2vec.random_params(LITTLE, 0))
    monkeypatch.setattr(wav2vec, "_apply", lambda *given: jnp.zeros(1 << 50))  # more than any device has
    monkeypatch.setattr(sys, "argv", ["x"])

    def work(config: extract.Config) -> None:
        settings = extract_wav2vec.settings(LITTLE, "", True, max_seconds=0.0)
        list(extract_wav2vec.compute([[(path.name, path) for path in files]], 1, False, settings, lambda: encoder))

    with pytest.raises(SystemExit) as left:
        run_command("jaxser.extract", extract.Config, work)
    assert left.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith(f"jaxser.extract: out of memory, busy with {files[1]} of 1 s, the longest in its batch: ")
    assert "--max-seconds SECONDS hears at most so much of a recording" in said
    assert len(said.splitlines()) == 1


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_training_is_one_line_and_it_goes_on(tmp_path: Path):
    table = write_table(tmp_path / "corpus")
    flags = ["--corpus", "csv", "--root", table, "--features", "lld", "--head", "mlp", "--updates", 2_000]
    flags += ["--state-seconds", 0.01, "--cache", tmp_path / "cache"]
    line = [sys.executable, "-m", "jaxser.cv", *map(str, flags)]
    process = subprocess.Popen(
        [*line, "--out", str(tmp_path / "run")], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=apart()
    )
    while not list((tmp_path / "run" / "training").glob("*/runs/" + "[0-9]" * 8)):  # a whole state, not one being written
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == "jaxser.cv: interrupted; what is done is kept, the same command goes on"
    again = command("jaxser.cv", *flags, "--out", tmp_path / "run", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "going on after" in again.stderr
    whole = command("jaxser.cv", *flags, "--out", tmp_path / "whole", folder=tmp_path)
    assert whole.returncode == 0
    for name in ("scores.csv", "predictions.csv", "losses.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "run" / "training").exists()


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("where", ["gc.callbacks.append(lambda phase, info: interrupted())", "dropped = Dropped()"])
def test_ctrl_c_is_heard_where_python_drops_what_is_raised(tmp_path: Path, where: str, busy: bool):
    script = tmp_path / "command.py"
    script.write_text(
        f"""
import gc, os, signal, threading, time
from dataclasses import dataclass
from jaxser.command import run_command

@dataclass(frozen=True)
class Config:
    "No flags."

class Dropped:
    def __del__(self):
        interrupted()

left = [signal.SIGINT]

start = threading.Thread.start

def start_slowly(thread):
    "On a busy machine, who starts a thread may wait for its turn while that thread has had its own."
    start(thread)
    time.sleep(0.3)

if {busy}:
    threading.Thread.start = start_slowly

def interrupted():
    if left:
        os.kill(os.getpid(), left.pop())

def main(config):
    {where}
    dropped = None
    gc.collect()
    time.sleep(60)

run_command("a command", Config, main)
"""
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=50)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "a command: interrupted; what is done is kept, the same command goes on\n"
