import hashlib
import json
import os
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxser.errors import WorkError
from jaxser.files import begun
from jaxser.store import ALIGNMENT, Entry, aligned, averaged, blocks, folder_of, load_frames, open_store, write_part

SETTINGS = {"extractor": "lld", "width": 3, "window_ms": 50.0}


def entry(content: str, count: int) -> Entry:
    frames = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
    return Entry(content, frames, audio=f"sound of {content}", seconds=count / 10)


def test_round_trip_in_any_order(tmp_path: Path):
    store = open_store(tmp_path, SETTINGS)
    entries = {name: entry(name, count) for name, count in (("a", 4), ("b", 7), ("c", 1))}
    write_part(store, [entries["a"], entries["b"], Entry("bad", None, reason="silent")])
    write_part(store, [entries["c"]])
    store = open_store(tmp_path, SETTINGS)
    assert store.failed == {"bad": "silent"}
    assert store.rows["b"].audio == "sound of b"
    frames = load_frames(store, ["c", "a", "b", "a"])
    assert frames.x.shape == (4, 7, 3)
    assert frames.mask.sum(1).tolist() == [1, 4, 7, 4]
    x = np.asarray(frames.x)
    for i, name in enumerate(["c", "a", "b", "a"]):
        np.testing.assert_array_equal(x[i][frames.mask[i]], entries[name].frames)
        assert not x[i][~frames.mask[i]].any()
    np.testing.assert_array_equal(frames.x[np.array([2, 0])], x[[2, 0]])
    assert frames.x.nbytes == x.nbytes
    assert [len(some.x) for some in blocks(frames, 3)] == [3, 1]
    several = [np.asarray(frames.x) for _ in range(9)]  # one alone could begin there by chance
    assert {each.ctypes.data % ALIGNMENT for each in several} == {0}


def test_more_parts_than_a_process_may_have_open(tmp_path: Path):
    resource = pytest.importorskip("resource", reason="no limits of open files here")
    store, names = open_store(tmp_path, SETTINGS), [f"{i:03}" for i in range(100)]
    for i, name in enumerate(names):
        write_part(store, [entry(name, 1 + i % 5)])
    frames = load_frames(open_store(tmp_path, SETTINGS), names)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 50, hard))
    try:
        x = np.asarray(frames.x)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for i in range(len(names)):
        np.testing.assert_array_equal(x[i][frames.mask[i]], entry("", 1 + i % 5).frames)


def test_what_a_kill_left_long_ago_goes(tmp_path: Path):
    folder = open_store(tmp_path, SETTINGS).folder
    with ExitStack() as writers:
        old, young = (Path(writers.enter_context(begun(folder / name)).name) for name in ("part-1.npy", "part-2.npy"))
        for path, age in ((old, 2 * 24 * 3600), (young, 60)):
            os.utime(path, (time.time() - age,) * 2)
        open_store(tmp_path, SETTINGS)
        assert (old.exists(), young.exists()) == (False, True)
        writers.pop_all()  # killed


def test_a_reason_that_passes_is_not_remembered(tmp_path: Path):
    store = open_store(tmp_path, SETTINGS)
    write_part(store, [entry("a", 2), Entry("b", None, reason="silent"), Entry("c", None, reason="no such file", passing=True)])
    store = open_store(tmp_path, SETTINGS)
    assert (set(store.rows), store.failed) == ({"a"}, {"b": "silent"})


def test_work_that_lacks_something_makes_other_files(tmp_path: Path):
    # As of two processes at once: the disk does not give "b" to one of them.
    store, lacking = open_store(tmp_path, SETTINGS), Entry("b", None, reason="cannot be reached", passing=True)
    write_part(store, [entry("a", 2), lacking, entry("c", 3)])
    before = open_store(tmp_path, SETTINGS)
    write_part(store, [entry("a", 2), entry("b", 4), entry("c", 3)])
    for opened in (before, open_store(tmp_path, SETTINGS)):
        assert not opened.damaged
        np.testing.assert_array_equal(np.asarray(load_frames(opened, ["c"]).x)[0], entry("c", 3).frames)
    names = {"part-" + hashlib.sha256("\n".join(of).encode()).hexdigest()[:16] for of in ("ac", "abc")}
    assert {path.stem for path in store.folder.glob("part-*")} == names
    write_part(store, [lacking])
    assert {path.stem for path in store.folder.glob("part-*")} == names


def test_other_settings_are_another_store(tmp_path: Path):
    write_part(open_store(tmp_path, SETTINGS), [entry("a", 2)])
    for other in ({"window_ms": 25.0}, {"extractor": "wav2vec"}, {"width": 4}):
        assert not open_store(tmp_path, SETTINGS | other).rows
    assert folder_of(tmp_path, SETTINGS) == folder_of(tmp_path, dict(reversed(SETTINGS.items())))


def test_a_store_that_is_not_what_it_says_is_refused(tmp_path: Path):
    store = open_store(tmp_path, SETTINGS)
    (store.folder / "provenance.json").write_text(json.dumps(SETTINGS | {"window_ms": 25.0}))
    with pytest.raises(WorkError, match="does not describe"):
        open_store(tmp_path, SETTINGS)


@pytest.mark.parametrize("left", [b"", b'{"extractor": "l', b"[]"])
def test_a_damaged_description_is_written_anew(tmp_path: Path, left: bytes):
    store = open_store(tmp_path, SETTINGS)
    write_part(store, [entry("a", 2)])
    note = store.folder / "provenance.json"
    whole = note.read_bytes()
    note.write_bytes(left)
    assert set(open_store(tmp_path, SETTINGS).rows) == {"a"}
    assert note.read_bytes() == whole


def test_what_a_kill_leaves_is_not_read(tmp_path: Path):
    store = open_store(tmp_path, SETTINGS)
    write_part(store, [entry("a", 2)])
    write_part(store, [entry("b", 3)])
    (note,) = (p for p in store.folder.glob("part-*.json") if "b" in json.loads(p.read_text())["rows"])
    note.unlink()  # killed between the frames and the note that makes them count
    (store.folder / ".part-x.1.npy").write_bytes(b"half")
    (store.folder / ".part-x.json.1").write_text("{")
    store = open_store(tmp_path, SETTINGS)
    assert list(store.rows) == ["a"]
    with pytest.raises(WorkError, match="1 of 2 utterances"):
        load_frames(store, ["a", "b"])


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "note"])
def test_damaged_parts_are_seen(tmp_path: Path, damage: str):
    store = open_store(tmp_path, SETTINGS)
    write_part(store, [entry("a", 2)])
    write_part(store, [entry("b", 3)])
    path = open_store(tmp_path, SETTINGS).rows["b"].part
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        path.write_bytes(bytes(data))
    elif damage == "cut":
        path.write_bytes(bytes(data[:-4]))
    elif damage == "gone":
        path.unlink()
    else:
        path.with_suffix(".json").write_text("{ half a note")
    store = open_store(tmp_path, SETTINGS)
    assert list(store.rows) == ["a"]
    assert store.damaged == (path.stem,)
    write_part(store, [entry("b", 3)])
    assert set(open_store(tmp_path, SETTINGS).rows) == {"a", "b"}


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here whose disk is sure to fail")
@pytest.mark.parametrize("kind", [".npy", ".json"])
def test_what_a_disk_does_not_give_is_no_damage(tmp_path: Path, kind: str):
    store = open_store(tmp_path, SETTINGS)
    for name in "ab":
        write_part(store, [entry(name, 3)])
    path = open_store(tmp_path, SETTINGS).rows["b"].part.with_suffix(kind)
    kept = path.rename(tmp_path / "kept")
    path.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="Input/output error") as raised:
        open_store(tmp_path, SETTINGS)
    assert raised.value.filename == str(path)
    kept.replace(path)
    assert set(open_store(tmp_path, SETTINGS).rows) == {"a", "b"}


def test_a_part_that_was_opened_before_is_read_again_only_where_it_has_changed(tmp_path: Path):
    store = open_store(tmp_path, SETTINGS)
    for name in "ab":
        write_part(store, [entry(name, 3)])
    before = open_store(tmp_path, SETTINGS)
    path = before.rows["b"].part
    times, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # a change that only reading finds
    write_part(store, [entry("c", 3)])
    assert open_store(tmp_path, SETTINGS).damaged == (path.stem,)
    again = open_store(tmp_path, SETTINGS, before)
    assert (set(again.rows), again.damaged) == ({"a", "b", "c"}, ())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
    again = open_store(tmp_path, SETTINGS, again)
    assert (set(again.rows), again.damaged) == ({"a", "c"}, (path.stem,))
    again.rows["a"].part.unlink()
    assert set(open_store(tmp_path, SETTINGS, again).rows) == {"c"}


HARMS = [{"rows": []}, {"rows": {"b": [0, 9, "", 0.1]}}, {"rows": {"b": [0]}}, {"failed": {"c": 1}}, []]


@pytest.mark.parametrize("harm", HARMS)
def test_a_part_whose_note_is_of_another_shape_counts_as_damaged(tmp_path: Path, harm: dict | list):
    store = open_store(tmp_path, SETTINGS)
    write_part(store, [entry("b", 3)])
    (note,) = store.folder.glob("part-*.json")
    note.write_text(json.dumps(json.loads(note.read_text()) | harm if harm else harm))
    store = open_store(tmp_path, SETTINGS)
    assert store.damaged == (note.stem,)
    assert not store.rows


def test_same_work_same_bytes(tmp_path: Path):
    for cache in ("one", "two"):
        write_part(open_store(tmp_path / cache, SETTINGS), [entry("a", 2), entry("b", 3)])
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / c).rglob("*.*")} for c in ("one", "two"))
    assert one == two


def test_averaged_frames_worked_by_hand(tmp_path: Path):
    store = open_store(tmp_path, SETTINGS | {"width": 1})
    frames = {"a": [1, 3, 5, 7, 9], "b": [2, 4, 6]}
    write_part(store, [Entry(name, np.array(x, np.float32)[:, None]) for name, x in frames.items()])
    found = load_frames(open_store(tmp_path, SETTINGS | {"width": 1}), ["a", "b"], average=2)
    np.testing.assert_array_equal(found.mask, [[1, 1, 1], [1, 1, 0]])
    np.testing.assert_array_equal(np.asarray(found.x)[..., 0], [[2, 6, 9], [3, 6, 0]])


@given(st.lists(st.integers(1, 9), max_size=3), st.sampled_from([np.bool_, np.int32, np.float32, np.float64]))
def test_aligned_arrays_are_zeros_that_begin_where_jax_takes_them(shape: list[int], kind: type):
    some = [aligned(shape, kind) for _ in range(3)]
    for x in some:
        assert (x.shape, x.dtype, x.ctypes.data % ALIGNMENT) == (tuple(shape), kind, 0)
        assert x.flags.c_contiguous
        assert not x.any()
        x[...] = 1  # and they can be written to, each by itself


@given(st.integers(1, 7), st.integers(1, 23))
def test_averaging_keeps_the_mean_of_whole_blocks(count: int, length: int):
    x = np.random.default_rng(length).normal(size=(length, 3)).astype(np.float32)
    found, whole = averaged(x, count), length // count
    assert found.dtype == np.float32
    assert len(found) == -(-length // count)
    np.testing.assert_allclose(found[:whole].sum(0) * count, x[: whole * count].sum(0), atol=1e-4)
    np.testing.assert_allclose(found[whole:].sum(0), x[whole * count :].mean(0) if length % count else 0, atol=1e-5)
