"""Several hosts, as processes on this machine that join each other: the same files as from one, and one end for all."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import LITTLE, port, write_table, write_tone
from hypothesis import given
from hypothesis import strategies as st

from jaxser import checkpoint, cv, extract, extract_lld, extractor, hosts, models, paper, pretraining, wav2vec
from jaxser.devices import dealt
from jaxser.errors import CallError, WorkError
from jaxser.report import table as printed_table
from jaxser.store import load_frames, open_store
from jaxser.turns import course_of, places_for, seatings

TABLES = ("scores.csv", "predictions.csv", "confusion.csv", "losses.csv")

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from dataclasses import replace
from jaxser import cells, command, cv, ensemble, extract, extract_lld, extractor, heads, hosts
from jaxser.errors import WorkError
extract_lld.PART = 8  # so that a small corpus has several
hosts.PIECE = 1 << 12  # so that what is exchanged goes in several too
extractor.PATIENCE = 0.0
me, keep = sys.argv[-1], extractor.write_part
def write_part(store, part):
    keep(store, part)
    with open(os.environ["WRITTEN"] + me, "a") as file:
        file.writelines(entry.content + chr(10) for entry in part)
    if os.environ.get("KILLED") == me:
        os.kill(os.getpid(), signal.SIGKILL)
    if "KILLED" in os.environ:
        time.sleep(100)  # in the midst of work when the other is gone
extractor.write_part = write_part
if "KILLED" in os.environ:
    extractor.WRITERS = 1  # or parts are whole that nobody has noted yet
if os.environ.get("FAILS") == me:
    def train_runs(model, tx, inputs, labels, runs, *rest, **more):
        raise WorkError(f"the loss of seed {runs[0].seed}, fold {runs[0].fold} is nan")
    ensemble.train_runs = train_runs
if os.environ.get("BUSY") == me:
    train_when_let = ensemble.train_runs
    def train_runs(*given, **more):
        began = time.monotonic()
        while not os.path.exists(os.environ["WRITTEN"] + "let"):
            if time.monotonic() > began + 40:
                os._exit(3)
            time.sleep(0.1)
        return train_when_let(*given, **more)
    ensemble.train_runs = train_runs
if os.environ.get("DIVERGES") == me:
    train_all = ensemble.train_runs
    def train_runs(model, *rest, **more):
        found = train_all(model, *rest, **more)
        mean = type(model) is type(heads.HEADS["mean"].module(2, 0.0))
        return replace(found, losses=[loss * float("nan") for loss in found.losses]) if mean else found
    ensemble.train_runs = train_runs
if os.environ.get("INTERRUPTED") == me:
    to_keep, saved = ensemble._to_keep, []
    def _to_keep(*work):
        saved.append(1)
        if len(saved) == 3:
            raise WorkError("interrupted")
        return to_keep(*work)
    ensemble._to_keep = _to_keep
"""
RUN = {name: f"command.run_command('jaxser.{name}', {name}.Config, {name}.main)\n" for name in ("cv", "extract")}
RUN["states"] = """
import resource
import numpy as np
from jaxser import pretraining
def main(config):
    with hosts.joined(config):
        state = [np.arange(100_000)]
        for full, updates in ((1, 4), (0, 8)):
            size = 100_000 if hosts.index() == full else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            pretraining._save(str(config.out), state, {"updates": updates})
command.run_command("states", cv.Config, main)
"""
RUN["cells"] = """
def main(config):
    with hosts.joined(config):
        work = cells.Work(config, extract.open_corpus(config))
        work.train([cv.resolve(replace(config, head=head, out=config.out / head)) for head in ("mean", "attention")])
command.run_command("cells", cv.Config, main)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, and what one process makes of it: run and cache."""
    home = tmp_path_factory.mktemp("hosts")
    write_table(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract_lld, "PART", 8)
        cv.main(config(home, home / "cache", out=home / "run"))
    return home


def config(home: Path, cache: Path, **changes) -> cv.Config:
    flags = {"head": "mean", "features": "lld", "updates": 300, "learning_rate": 1e-2, "seeds": 3} | changes
    return cv.Config(corpus="csv", root=home / "corpus.csv", cache=cache, jobs=1, **flags)


def flags_of(of: extract.Config, command: str) -> list[str]:
    known = {"cv": cv.Config, "cells": cv.Config, "states": cv.Config, "extract": extract.Config}[command].__dataclass_fields__
    given = {name: value for name, value in vars(of).items() if name in known and value != known[name].default}
    words = (["--" + name.replace("_", "-"), *([] if value is True else [str(value)])] for name, value in given.items())
    return [word for some in words for word in some]


def started(
    of: extract.Config, command: str, place: Path, changes: tuple[dict, dict] = ({}, {}), **environment: str
) -> list[subprocess.Popen[str]]:
    """The command on two hosts of two devices each, with each one's `changes`; what each wrote into the store is noted in
    `place`."""
    meeting = f"localhost:{port()}"
    known = os.environ | environment | {"WRITTEN": str(place / "written-")}
    known["JAX_NUM_CPU_DEVICES"] = "2"
    processes = []
    for number in (0, 1):
        one = replace(of, **changes[number])
        joined = ["--coordinator", meeting, "--processes", "2", "--process", str(number)]
        call = [sys.executable, "-c", PROGRAM + RUN[command], *flags_of(one, command), *joined]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(call, env=known, **pipes))
    return processes


def ended(processes: list[subprocess.Popen[str]]) -> list[subprocess.CompletedProcess[str]]:
    """How they ended, with what they wrote that was not yet read."""
    try:
        outputs = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [subprocess.CompletedProcess([], p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]


def on_two(*given, **more) -> list[subprocess.CompletedProcess[str]]:
    """What `started` began, when it has ended."""
    return ended(started(*given, **more))


def written(place: Path, number: int) -> list[str]:
    """The contents that one host wrote into the store."""
    note = place / f"written-{number}"
    return note.read_text().split() if note.exists() else []


def store_of(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.glob("features/*/*")}


def test_two_hosts_give_what_one_gives(home: Path, tmp_path: Path):
    out = tmp_path / "run"
    ends = on_two(config(home, tmp_path / "cache", out=out), "cv", tmp_path)
    assert [end.returncode for end in ends] == [0, 0], ends
    assert ends[0].stdout == printed_table(out) + "\n"
    assert [ends[1].stdout, ends[0].stderr, ends[1].stderr] == ["", "", ""]
    for name in (*TABLES, "config.json"):
        assert (out / name).read_bytes() == (home / "run" / name).read_bytes(), name
    one, two = (json.loads((folder / "summary.json").read_text()) for folder in (home / "run", out))
    assert sum(one.pop("runs_per_device")) == 9
    assert one.pop("devices") == min(9, jax.local_device_count())
    assert (two.pop("devices"), two.pop("runs_per_device")) == (4, [3, 2, 2, 2])
    assert one | {"seconds": 0} == two | {"seconds": 0}
    one, two = (json.loads((folder / "protocol.json").read_text()) for folder in (home / "run", out))
    assert two.pop("device") == one.pop("device").replace(f"{jax.local_device_count()} x", "4 x") + " on 2 hosts"
    assert one == two
    assert store_of(tmp_path / "cache") == store_of(home / "cache")
    both = Counter(written(tmp_path, 0) + written(tmp_path, 1))
    assert len(written(tmp_path, 0)) == len(written(tmp_path, 1)) == 24
    assert len(both) == both.total() == 48


def test_a_host_that_is_killed_ends_the_others_and_the_same_command_goes_on(home: Path, tmp_path: Path):
    call = config(home, tmp_path / "cache")
    killed, other = on_two(call, "extract", tmp_path, KILLED="0")
    assert killed.returncode == -signal.SIGKILL
    # It hears that the connection is gone, with no wait for a heartbeat. On a busy machine jax can be the first to say so, and
    # then aborts us in words of its own.
    lines = {
        1: "jaxser: another host was lost: run the same command again on all of them",
        -signal.SIGABRT: "another task died",
    }
    assert lines[other.returncode] in other.stderr
    before = [*written(tmp_path, 0), *written(tmp_path, 1)]
    assert written(tmp_path, 0)
    assert len(before) < 48
    ends = on_two(call, "extract", tmp_path)
    assert [end.returncode for end in ends] == [0, 0], ends
    assert "48 utterances, 0 left out" in ends[0].stdout
    assert ends[1].stdout == ""
    both = Counter(written(tmp_path, 0) + written(tmp_path, 1))
    assert len(both) == both.total() == 48
    assert store_of(tmp_path / "cache") == store_of(home / "cache")
    stores = [extract.fill(cache, extract.sound_extractor(call), {}, 1) for cache in (tmp_path / "cache", home / "cache")]
    one, two = (load_frames(store, sorted(both)) for store in stores)
    every = np.arange(len(both))
    assert (one.x[every] == two.x[every]).all()


def test_an_error_on_one_host_is_said_there_at_once_and_ends_both_with_its_line(home: Path, tmp_path: Path):
    # The other is busy, and has hours of training before it when it next looks at the losses.
    long = config(home, home / "cache", out=tmp_path / "run", updates=3_000_000)
    both = started(long, "cv", tmp_path, FAILS="1", BUSY="0")
    assert both[1].stderr.readline() == "jaxser: the loss of seed 0, fold 1 is nan (told to the other hosts)\n"
    assert [process.poll() for process in both] == [None, None]
    (tmp_path / "written-let").touch()
    ends = ended(both)
    assert [end.returncode for end in ends] == [1, 1], ends
    assert [end.stderr for end in ends] == ["jaxser.cv: the loss of seed 0, fold 1 is nan\n"] * 2
    assert [end.stdout for end in ends] == ["", ""]
    assert not (tmp_path / "run" / "summary.json").exists()


def test_runs_that_diverge_on_one_host_leave_the_other_cells_to_both(home: Path, tmp_path: Path):
    ends = on_two(config(home, home / "cache", out=tmp_path / "runs", updates=6), "cells", tmp_path, DIVERGES="1")
    assert [end.returncode for end in ends] == [1, 1], ends
    assert {end.stderr.splitlines()[-1].partition(" is no finite number")[0] for end in ends} == {
        "cells: the loss of seed 0, fold 1"
    }
    assert [(tmp_path / "runs" / head / "summary.json").exists() for head in ("mean", "attention")] == [False, True]


@pytest.mark.parametrize(
    ("errors", "awaited", "alike"),
    [
        ((WorkError("nan"), None), True, True),
        ((WorkError("nan"), None), False, False),  # at its own share
        ((WorkError("nan"), WorkError("nan")), True, True),
        ((CallError("flag"), WorkError("nan")), True, False),
        ((None, TypeError("bug")), True, False),
        ((WorkError("nan"), TypeError("bug")), True, False),
        ((OSError(28, "No space left"), None), True, False),
    ],
)
def test_only_what_every_host_raises_in_the_same_way_is_alike(
    errors: tuple, awaited: bool, alike: bool, monkeypatch: pytest.MonkeyPatch
):
    # Each host in its turn, once to hear what it says and once to hear both.
    monkeypatch.setattr(hosts, "count", lambda: 2)
    monkeypatch.setattr(hosts, "index", lambda: 0)
    said: list[bytes] = []
    monkeypatch.setattr(hosts, "_exchanged", lambda message: said.append(message) or [message])
    for error in errors:
        with suppress(Exception):
            hosts._told(error, awaited=awaited)
    assert len(said) == 2
    monkeypatch.setattr(hosts, "_exchanged", lambda message: said)
    for error in errors:
        with pytest.raises((CallError, WorkError, TypeError)) as raised:
            hosts._told(error, awaited=awaited)
        assert hosts.alike(raised.value) == alike


def test_hosts_that_were_told_different_things_do_not_begin(home: Path, tmp_path: Path):
    of = config(home, home / "cache", out=tmp_path / "run")
    ends = on_two(of, "cv", tmp_path, ({}, {"learning_rate": 2e-2}))
    said = "jaxser.cv: the hosts were given different commands, or find different corpora: all must be the same\n"
    assert [(end.returncode, end.stderr) for end in ends] == [(2, said)] * 2
    assert not (tmp_path / "run" / "scores.csv").exists()


def test_a_cache_that_is_not_shared_is_named(home: Path, tmp_path: Path):
    ends = on_two(config(home, home), "extract", tmp_path, ({"cache": tmp_path / "one"}, {"cache": tmp_path / "two"}))
    assert [end.returncode for end in ends] == [2, 2], ends
    (line,) = {end.stderr for end in ends}
    assert "24 of 48 new features, by other hosts, are not in " in line
    assert line.endswith("--root and --cache must lie on a disk that all of them share\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coordinator": "localhost:1"}, "how many there are, and which one this is"),
        ({"coordinator": "localhost", "processes": 2, "process": 0}, "--coordinator localhost .*: HOST:PORT"),
        ({"coordinator": "localhost:1", "processes": 2, "process": 2}, "--process 2: HOST:PORT"),
        ({"processes": 2, "process": 0}, "need --coordinator"),
        ({"coordinator": "auto", "process": 0}, "need --coordinator"),
        ({"coordinator": "auto"}, "--coordinator auto: "),
    ],
)
def test_wrong_flags(home: Path, tmp_path: Path, changes: dict, message: str):
    call = config(home, tmp_path / "cache", out=tmp_path / "run", **changes)
    with pytest.raises(CallError, match=message):
        cv.main(call)
    with pytest.raises(CallError, match=message):
        extract.main(extract.Config(corpus="csv", root=call.root, cache=call.cache, **changes))
    with pytest.raises(CallError, match=message):
        paper.main(paper.Config(table=1, corpus="csv", root=call.root, cache=call.cache, **changes))
    assert not list(tmp_path.iterdir())


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 5))
def test_runs_are_dealt_evenly(runs: int, many: int, devices: int):
    placed = dealt(runs, many, devices)
    counts = [placed.count(device) for device in range(many * devices)]
    assert sum(counts) == runs
    assert max(counts) - min(counts) <= 1
    for host in range(many):
        # Where train_runs has them first.
        mine = [*range(runs)][host::many]
        if mine:
            blocks = min(devices, max(2, len(mine)))
            course = course_of([9] * len(mine), blocks, places_for(len(mine), blocks, 1))
            for place, run in enumerate(next(seatings([9] * len(mine), blocks, course))):
                assert run is None or placed[mine[run]] == host * devices + place // course.places


def test_a_known_case_of_dealing():
    assert Counter(dealt(7, 2, 2)) == {0: 2, 1: 2, 2: 2, 3: 1}


def test_alone_nothing_is_exchanged(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hosts, "_exchanged", lambda message: pytest.fail("exchanged"))
    assert (hosts.count(), hosts.index(), hosts.first(), hosts.share("abc")) == (1, 0, True, "abc")
    assert hosts.tell(lambda: {"a": 1}) == [{"a": 1}]
    assert hosts.of_first(lambda: 3) == hosts.after_first(lambda: 3) == 3
    hosts.demand_agreement([1], "no")
    hosts.barrier()
    hosts.check_others()
    assert hosts.alike(WorkError("the loss is nan"))


def test_the_first_host_asks_for_room_and_all_hear_that_there_is_none(home: Path, tmp_path: Path):
    # For the other the disk is full before that: it writes nothing, and need not know.
    pytest.importorskip("resource", reason="no limits of file sizes here")
    ends = on_two(config(home, home / "cache", out=tmp_path / "weights"), "states", tmp_path)
    full = tmp_path / "weights.training" / "00000008"
    assert [(end.returncode, end.stderr) for end in ends] == [(1, f"states: {full} could not be written: File too large\n")] * 2
    assert [path.name for path in full.parent.iterdir()] == ["00000004"]
    leaves, _ = checkpoint.load(full.parent / "00000004", pretraining.KIND)
    np.testing.assert_array_equal(leaves["0000"], np.arange(100_000))


def test_hosts_wait_for_each_other_for_years(monkeypatch: pytest.MonkeyPatch):
    waited = []
    monkeypatch.setattr(hosts.ocp.multihost, "get_barrier_sync_fn", lambda: lambda key, timeout_ms: waited.append(timeout_ms))
    monkeypatch.setattr(hosts, "_exchanges", 0)
    assert hosts._exchanged(b"alone") == [b"alone"]
    monkeypatch.setattr(hosts.atexit, "register", lambda end: None)
    hosts._watch()
    for thread in threading.enumerate():
        if thread.name == "watch":
            thread.join()
    assert len(waited) == 2
    assert min(waited) / 1000 / 3600 / 24 > 5 * 365


def test_hosts_of_other_numbers_of_devices_are_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    call = config(home, tmp_path, coordinator="localhost:1", processes=2, process=0)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **more: None)
    monkeypatch.setattr(hosts, "count", lambda: 2)
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(process_index=host) for host in (0, 0, 0, 1, 1)])
    with pytest.raises(CallError, match="the hosts have 3, 2 devices: each must have as many"):
        hosts.join(call)


class Said(Exception):
    """In place of what the hosts would do next."""


@pytest.mark.parametrize("gone", [True, False])
def test_hosts_that_do_not_find_the_same_files_do_not_begin(gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Each host in its turn, once to hear what it says and once to hear both.
    lld_of = extract.sound_extractor(extract.Config(features="lld", cache=tmp_path))
    store, said = open_store(tmp_path, lld_of.settings), []
    write_tone(tmp_path / "one" / "a.wav")
    if not gone:
        write_tone(tmp_path / "two" / "a.wav")

    def begin(place: Path) -> None:
        extractor._compute(store, lld_of, [["a"]], {"a": place / "a.wav"}, 1)

    def saying(message: bytes) -> None:
        said.append(message)
        raise Said

    monkeypatch.setattr(hosts, "count", lambda: 2)
    monkeypatch.setattr(hosts, "index", lambda: 0)
    monkeypatch.setattr(hosts, "_exchanged", saying)
    for host in ("one", "two"):
        with pytest.raises(Said):
            begin(tmp_path / host)
    monkeypatch.setattr(hosts, "_exchanged", lambda message: said[:2])
    monkeypatch.setattr(hosts, "share", saying)
    for host in ("one", "two"):
        with pytest.raises(CallError if gone else Said) as raised:
            begin(tmp_path / host)
        if gone:
            assert str(raised.value).startswith("the hosts do not find the same files: --root and --cache must lie on a disk")


def test_two_hosts_give_what_one_gives_of_wav2vec_and_a_head_that_computes_no_padding(home: Path, tmp_path: Path):
    wav2vec.save(tmp_path / "weights", LITTLE, wav2vec.random_params(LITTLE, 0), {})
    flags = {"features": "wav2vec", "weights": str(tmp_path / "weights"), "head": "mlp", "updates": 40, "seeds": 1}
    alone, both = (config(home, tmp_path / name / "cache", **flags, out=tmp_path / name / "run") for name in ("one", "two"))
    cv.main(alone)
    ends = on_two(both, "cv", tmp_path)
    assert [end.returncode for end in ends] == [0, 0], ends
    for name in TABLES:
        assert (both.out / name).read_bytes() == (alone.out / name).read_bytes(), name
    assert store_of(both.cache) == store_of(alone.cache)


def test_two_hosts_go_on_and_keep_a_model(home: Path, tmp_path: Path):
    # The first attempt ends by an error on one host, after both have saved states of their own.
    one = config(home, home / "cache", out=tmp_path / "one", save=True, final=True)
    cv.main(one)
    two = replace(one, out=tmp_path / "two", state_seconds=1e-9, updates=900)
    cv.main(replace(one, out=tmp_path / "longer", updates=900))
    ended = on_two(two, "cv", tmp_path, INTERRUPTED="1")
    assert all(one.returncode for one in ended), ended
    states = {path.parts[-3] for path in (tmp_path / "two" / "training").glob("*/runs/0*")}
    assert states == {"0-of-2", "1-of-2"}
    again = on_two(two, "cv", tmp_path)
    assert [one.returncode for one in again] == [0, 0], again
    assert "going on after" in again[0].stderr
    for name in TABLES:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "longer" / name).read_bytes()
    kept = [
        models.load(tmp_path / name, cache=home / "cache", final=final) for name in ("two", "longer") for final in (False, True)
    ]
    for mine, theirs in zip(kept[:2], kept[2:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, mine.members.params, theirs.members.params)
    assert not (tmp_path / "two" / "training").exists()
