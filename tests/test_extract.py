import multiprocessing
import shutil
import subprocess
import sys
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Barrier, Event, Lock, Thread
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile
from conftest import apart, write_tone

from jaxser import audio, corpora, digests, extract, extract_lld, extractor, lld
from jaxser.errors import WorkError
from jaxser.store import Entry, load_frames, open_store, write_part


def run(table: Path, cache: Path, **changes):
    strict = changes.pop("strict", False)
    config = extract.Config(corpus="csv", root=table, features="lld", cache=cache, **changes)
    corpus, features = extract.extract(corpora.read("csv", table, "all"), extract.sound_extractor(config), cache, 2, strict)
    return corpus, features.store, features.contents, corpus.left_out


@pytest.mark.parametrize("alone", [0, np.inf], ids=["in other processes", "in this one"])
def test_features_are_the_descriptors_of_each_file(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: float):
    monkeypatch.setattr(extract_lld, "ALONE", alone)
    corpus, store, contents, left_out = run(table, tmp_path / "cache")
    assert not left_out
    frames = load_frames(store, [contents[u.id] for u in corpus.utterances])
    x = np.asarray(frames.x)
    for i in (0, 7, 30):
        expected = lld.lld(audio.load(corpus.utterances[i].path)).astype(np.float32)
        np.testing.assert_array_equal(x[i][frames.mask[i]], expected)


def test_audio_is_read_once(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(table, tmp_path / "cache")
    monkeypatch.setattr(extractor, "write_part", lambda *work: pytest.fail("extracted again"))
    monkeypatch.setattr("jaxser.digests.file_digest", lambda path: pytest.fail(f"{path} read again"))
    run(table, tmp_path / "cache")
    shutil.rmtree(tmp_path / "audio")
    _, _, contents, left_out = run(table, tmp_path / "cache")  # the store is enough
    assert len(contents) == 48
    assert not left_out


def test_only_what_is_new_is_computed(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(table, tmp_path / "cache")
    write_tone(tmp_path / "audio/new.wav", seed=999)
    with table.open("a") as file:
        file.write("audio/new.wav,low,s9,g1\n")
    seen = []
    original = extractor.write_part
    monkeypatch.setattr(extractor, "write_part", lambda store, part: (seen.extend(part), original(store, part)))
    run(table, tmp_path / "cache")
    assert len(seen) == 1


def test_what_is_there_already_leaves_a_gap_in_its_part(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extract_lld, "PART", 8)
    monkeypatch.setattr(extractor, "WRITERS", 1)  # in turn
    lines = table.read_text().splitlines()
    some = table.with_name("some.csv")
    some.write_text("\n".join(lines[number] for number in (0, 1, 21, 48)))
    run(some, tmp_path / "cache")
    sizes, original = [], extractor.write_part
    monkeypatch.setattr(extractor, "write_part", lambda store, part: (sizes.append(len(part)), original(store, part)))
    run(table, tmp_path / "cache")
    assert sizes == [7, 8, 7, 8, 8, 7]


def test_a_part_is_written_while_the_next_is_computed(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extract_lld, "PART", 8)
    monkeypatch.setattr(extract_lld, "ALONE", np.inf)
    of_the_next, computed, in_time = Event(), [], []
    compute, write = extract_lld._lld_of, extractor.write_part

    def computes(*work, **settings):
        computed.append(work)
        if len(computed) > 8:
            of_the_next.set()
        return compute(*work, **settings)

    def writes(store, part):
        in_time.append(of_the_next.wait(60))
        write(store, part)

    monkeypatch.setattr(extract_lld, "_lld_of", computes)
    monkeypatch.setattr(extractor, "write_part", writes)
    run(table, tmp_path / "cache")
    assert in_time == [True] * 6


def test_some_parts_are_written_side_by_side_and_no_more_than_those_wait(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(extract_lld, "PART", 8)
    monkeypatch.setattr(extract_lld, "ALONE", np.inf)
    monkeypatch.setattr(extractor, "WRITERS", 3)
    together, fifth, computed, written = Barrier(3), Event(), [], []
    compute, write = extract_lld._lld_of, extractor.write_part

    def computes(*work, **settings):
        computed.append(work)
        if len(computed) > 4 * 8:
            fifth.set()
        return compute(*work, **settings)

    def writes(store, part):
        together.wait(30)
        if not written:  # three are being written, one is whole and waits
            waits.append(not fifth.wait(1))
        write(store, part)
        written.append(part)

    waits: list[bool] = []

    monkeypatch.setattr(extract_lld, "_lld_of", computes)
    monkeypatch.setattr(extractor, "write_part", writes)
    run(table, tmp_path / "cache")
    assert len(written) == 6
    assert waits
    assert all(waits)


def test_parts_that_are_done_out_of_turn_are_kept_when_one_before_them_fails(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def contents_of(cache: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in cache.glob("features/*/*")}

    monkeypatch.setattr(extract_lld, "PART", 8)
    run(table, tmp_path / "calm")
    begun, others, write, one = [], [Event(), Event()], extractor.write_part, Lock()

    def writes(store, part):
        with one:
            begun.append(part)
            number = len(begun) - 1
        if number == 0:
            assert [other.wait(30) for other in others] == [True, True]
            raise OSError(28, "No space left on device")
        write(store, part)
        if number <= len(others):
            others[number - 1].set()

    with monkeypatch.context() as full:
        full.setattr(extractor, "write_part", writes)
        with pytest.raises(OSError, match="No space left"):
            run(table, tmp_path / "torn")
    assert 2 <= len(list(tmp_path.glob("torn/features/*/part-*.json"))) < 6
    made = []
    monkeypatch.setattr(extractor, "write_part", lambda store, part: (made.append(part), write(store, part)))
    run(table, tmp_path / "torn")
    assert [entry.content for entry in begun[0]] in [[entry.content for entry in part] for part in made]
    assert contents_of(tmp_path / "torn") == contents_of(tmp_path / "calm")


def test_a_part_that_cannot_be_written_ends_the_work(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extract_lld, "PART", 8)
    written, write, one = [], extractor.write_part, Lock()

    def writes(store, part):
        with one:
            if len(written) == 2:
                raise OSError(28, "No space left on device")
            written.append([entry.content for entry in part])
        write(store, part)

    with monkeypatch.context() as full:
        full.setattr(extractor, "write_part", writes)
        with pytest.raises(OSError, match="No space left"):
            run(table, tmp_path / "cache")
    assert len(written) == 2
    _, store, contents, _ = run(table, tmp_path / "cache")
    assert {content for part in written for content in part} < set(store.rows) == set(contents.values())


@pytest.mark.parametrize("change", [{"lld_window": 25.0}, {"lld_hop": 10.0}, {"crop": "centre"}, {"max_seconds": 0.3}])
def test_settings_never_share_a_store(table: Path, tmp_path: Path, change: dict):
    _, store, *_ = run(table, tmp_path / "cache")
    _, other, *_ = run(table, tmp_path / "cache", **change)
    assert store.folder != other.folder


def test_bad_files_are_named_and_left_out(table: Path, tmp_path: Path):
    (tmp_path / "audio/s0-low-0.wav").write_text("this is no audio")
    (tmp_path / "audio/s0-low-1.wav").unlink()
    soundfile.write(tmp_path / "audio/s0-low-2.wav", np.zeros(8_000), 16_000)
    soundfile.write(tmp_path / "audio/s0-low-3.wav", np.random.default_rng(0).normal(0, 0.1, 700), 16_000)
    reasons = {
        "audio/s0-low-0": "not readable as audio",
        "audio/s0-low-1": "no such file",
        "audio/s0-low-2": "silent",
        "audio/s0-low-3": "shorter than one window",
    }
    for _ in range(2):  # the second time from the store
        _, _, contents, left_out = run(table, tmp_path / "cache")
        assert {name for name, _ in left_out} == set(reasons)
        assert all(reasons[name] in reason for name, reason in left_out)
        assert len(contents) == 44
    with pytest.raises(WorkError, match=r"s0-low-0\.wav: not readable.*--strict"):
        run(table, tmp_path / "cache", strict=True)


def test_few_files_start_no_process_and_many_do(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock, before = iter(range(100)), extract_lld._lld_of
    started, there = [], []
    monkeypatch.setattr(extract_lld, "time", SimpleNamespace(monotonic=lambda: next(clock) / 10))
    monkeypatch.setattr(extract_lld, "_lld_of", lambda *work, **settings: (there.append(1), before(*work, **settings))[1])

    @contextmanager
    def workers(count: int):
        started.append((count, len(there)))
        yield ThreadPoolExecutor(1)

    monkeypatch.setattr(extract_lld, "_workers", workers)
    few = table.with_name("few.csv")
    few.write_text("\n".join(table.read_text().splitlines()[:20]))
    run(few, tmp_path / "few")
    assert (started, len(there)) == ([], 19)
    there.clear()
    run(table, tmp_path / "many")
    assert (started, len(there)) == ([(2, 19)], 48)  # 19 are begun before two seconds are over


OTHERS_AT_ONCE = "from jaxser import extract_lld; extract_lld.ALONE = 0; "


WATCHED = """
import multiprocessing, os, sys
from pathlib import Path
from jaxser import extract_lld
compute = extract_lld._lld_of
def watched(task, settings):
    entry = compute(task, settings)
    Path("loaded", f"{multiprocessing.current_process().name}.{os.getpid()}").write_text(" ".join(sys.modules))
    return entry
"""
IN_WATCHED_ONES = "extract_lld._lld_of = __import__('watched').watched; "


def test_other_processes_load_nothing_of_the_command(table: Path, tmp_path: Path):
    (tmp_path / "watched.py").write_text(WATCHED)
    (tmp_path / "loaded").mkdir()
    as_command = "import runpy; runpy.run_module('jaxser.extract', run_name='__main__', alter_sys=True)"  # what python -m does
    flags = ["--corpus", "csv", "--root", table, "--features", "lld", "--cache", tmp_path / "cache", "--jobs", "2"]
    line = [sys.executable, "-c", OTHERS_AT_ONCE + IN_WATCHED_ONES + as_command, *map(str, flags)]
    subprocess.run(line, check=True, cwd=tmp_path, timeout=120)
    loaded = {path.name: set(path.read_text().split()) for path in (tmp_path / "loaded").iterdir()}
    assert loaded
    for name, modules in loaded.items():
        assert name.startswith("SpawnProcess")
        assert "jaxser.extract_lld" in modules
        assert not modules & {"jax", "flax", "optax", "jaxser.extract"}


@pytest.mark.parametrize("there", [{"__spec__": 1, "__file__": "a.py"}, {"__spec__": None}], ids=["a file", "no file"])
def test_the_main_module_is_as_before_also_where_no_process_could_start(monkeypatch: pytest.MonkeyPatch, there: dict):
    main, seen = ModuleType("__main__"), []
    vars(main).update(there)
    before = dict(vars(main))
    monkeypatch.setitem(sys.modules, "__main__", main)

    class Pool(Executor):
        def submit(self, *work):
            seen.append((main.__spec__, getattr(main, "__file__", None)))
            raise OSError(11, "Resource temporarily unavailable")

    with pytest.raises(OSError, match="unavailable"):
        list(extract_lld._in_turn(Pool(), extract_lld._lld_of, [("a", Path("a.wav"))]))
    assert seen == [(None, None)]
    assert vars(main) == before


INTERRUPTED = """
import os, signal
from jaxser import command, cv, extract_lld
extract_lld.ALONE, extract_lld.PART = {alone}, 8
signal.signal(signal.SIGINT, signal.default_int_handler)
counted = extract_lld._counted
def interrupted(entries, bar):
    for number, entry in enumerate(counted(entries, bar), 1):
        yield entry
        if number == 20:
            os.kill(os.getpid(), signal.SIGINT)
extract_lld._counted = interrupted
command.run_command("jaxser.cv", cv.Config, cv.main)
"""
"""The command, which has Ctrl-C come when it has the third part's fourth file: from outside a fast machine may be at its end
before it arrives."""


@pytest.mark.parametrize("alone", [0, 1e9], ids=["in other processes", "in this one"])
def test_an_interrupted_extraction_ends_at_once_and_goes_on(table: Path, tmp_path: Path, alone: float):
    flags = ["--corpus", "csv", "--root", table, "--features", "lld", "--cache", tmp_path / "cache", "--jobs", "2"]
    line = [sys.executable, "-c", INTERRUPTED.format(alone=alone), *map(str, flags)]
    done = subprocess.run(line, cwd=tmp_path, env=apart(), capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "jaxser.cv: interrupted; what is done is kept, the same command goes on\n"
    assert len(list(tmp_path.glob("cache/features/*/part-*.json"))) == 2
    _, _, contents, left_out = run(table, tmp_path / "cache")
    assert len(contents) == 48
    assert not left_out


@pytest.mark.parametrize("busy", [True, False])
def test_a_worker_that_dies_ends_the_work_and_not_the_waiting(tmp_path: Path, busy: bool):
    # As when the system kills it for its memory, in the midst of a file or before it has one.
    work = partial(extract_lld._lld_of, settings=extract_lld.settings())
    tasks = [("a", write_tone(tmp_path / "a.wav"))] * 5_000

    def kill_one() -> None:
        while not (there := multiprocessing.active_children()):
            time.sleep(0.01)
        there[0].kill()

    with extract_lld._workers(2) as pool:
        entries = extract_lld._in_turn(pool, work, tasks)
        if busy:
            next(entries)
        Thread(target=kill_one).start()
        with pytest.raises(WorkError, match="a worker process died"):
            list(entries)


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_what_was_written_and_is_not_there_is_told(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str):
    (tmp_path / "audio/s0-low-0.wav").write_text("this is no audio")  # has a reason of its own
    (tmp_path / "audio/s0-low-1.wav").unlink()
    monkeypatch.setattr(extract_lld, "PART", 8)
    write = extractor.write_part

    def writes(store, part):
        write(store, part)
        if any(entry.content == last for entry in part):
            (frames,) = (note.with_suffix(".npy") for note in store.folder.glob("part-*.json") if last in note.read_text())
            frames.unlink() if harm == "gone" else frames.write_bytes(frames.read_bytes()[:-1])

    last = digests.file_digest(tmp_path / "audio/s5-high-3.wav")
    with monkeypatch.context() as harmed:
        harmed.setattr(extractor, "write_part", writes)
        with pytest.raises(WorkError, match=r"^7 of 47 features just written are not whole in .*/lld-\w+: run again$"):
            run(table, tmp_path / "cache")
    _, _, contents, left_out = run(table, tmp_path / "cache")
    assert (len(contents), len(left_out)) == (46, 2)


@pytest.mark.parametrize("new", [True, False], ids=["of now", "of before"])
def test_a_host_waits_for_what_it_does_not_see_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool):
    # As the second of two hosts, on a disk that takes long to read and shows late what the first has written.
    lld_of = extract.sound_extractor(extract.Config(features="lld", cache=tmp_path))
    store, now = open_store(tmp_path, lld_of.settings), [0.0]

    def slow(*given):
        now[0] += 10 * extractor.PATIENCE
        return open_store(*given)

    def shown_after(seconds: float) -> None:
        now[0] += seconds
        write_part(store, [Entry("a", np.ones((2, 34), np.float32), "sound", 0.1)])

    second = {
        "after_first": lambda work: work(),
        "of_first": lambda work: [["a"]] if new else [],
        "demand_agreement": lambda *_: None,
        "share": lambda parts: [],
        "tell": lambda work: [work()],
        "count": lambda: 2,
        "first": lambda: False,
    }
    monkeypatch.setattr(extractor, "hosts", SimpleNamespace(**second))
    monkeypatch.setattr(extractor, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=shown_after))
    monkeypatch.setattr(extractor, "open_store", slow)
    assert set(extractor.fill(tmp_path, lld_of, {"one": ("a", tmp_path)}, 1).rows) == {"a"}


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here whose disk is sure to fail")
def test_a_part_that_its_disk_does_not_give_ends_the_work(table: Path, tmp_path: Path):
    _, store, *_ = run(table, tmp_path / "cache")
    shutil.rmtree(tmp_path / "audio")  # so that nothing could be made anew
    part = next(store.folder.glob("*.npy"))
    kept = part.rename(tmp_path / "kept")
    part.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="Input/output error"):
        run(table, tmp_path / "cache")
    kept.replace(part)
    _, _, contents, left_out = run(table, tmp_path / "cache")
    assert (len(contents), left_out) == (48, ())


def test_a_path_that_no_file_can_have_is_left_out(table: Path, tmp_path: Path):
    with table.open("a") as file:
        file.write("audio/a\0b.wav,low,s9,g1\n")
    _, _, contents, left_out = run(table, tmp_path / "cache")
    assert (len(contents), [reason for _, reason in left_out]) == (48, ["no such file"])


def test_nothing_usable(tmp_path: Path):
    (tmp_path / "t.csv").write_text("path,label,speaker\na.wav,x,1\nb.wav,y,2\n")
    with pytest.raises(WorkError, match=r"none of 2 utterances can be used.*no such file"):
        run(tmp_path / "t.csv", tmp_path / "cache")


def test_a_damaged_part_is_made_anew(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    _, store, *_ = run(table, tmp_path / "cache")
    part = next(store.folder.glob("*.npy"))
    whole = part.read_bytes()
    part.write_bytes(whole[:-10])
    _, _, contents, _ = run(table, tmp_path / "cache")
    assert part.read_bytes() == whole
    assert len(contents) == 48
    assert "1 damaged parts are made anew, as far as this corpus still has them" in capsys.readouterr().err
