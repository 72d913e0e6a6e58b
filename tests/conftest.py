"""Shapes are checked in every test: the hook must be in place before jaxser is imported."""

import argparse
import ctypes
import dataclasses
import errno
import filecmp
import gc
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html.parser import HTMLParser
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import soundfile
from jaxtyping import install_import_hook

install_import_hook("jaxser", "beartype.beartype")

# Two devices, as commands have on a CPU with two cores, also in the processes that tests start; and what one of all these has
# compiled, the others need not. With a most size jax locks the folder, so that nobody reads what is still being written.
os.environ["JAX_NUM_CPU_DEVICES"] = "2"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "PYTEST_XDIST_WORKER" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="jaxser-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**33)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax  # noqa: E402 (after what it reads from the environment)

from jaxser.architecture import NANO  # noqa: E402 (after the hook)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Processes that tests start must run the code that is tested here, and not what was once installed."""
    if hasattr(session.config, "workerinput"):
        return  # of xdist: the session that started it has looked
    look = "from importlib.util import find_spec; print(*getattr(find_spec('jaxser'), 'submodule_search_locations', ()))"
    with tempfile.TemporaryDirectory() as elsewhere:
        call = subprocess.run([sys.executable, "-c", look], cwd=elsewhere, capture_output=True, text=True, check=True)
    found = call.stdout.strip()
    there, here = Path(found), Path(__file__).parents[1] / "jaxser"
    names = {path.name for folder in (here, there) for path in folder.glob("*.py")}
    _, other, absent = filecmp.cmpfiles(here, there, sorted(names), shallow=False)
    if found and (differing := ", ".join([*other, *absent])):
        wrong = f"processes that tests start find jaxser in {there}, and {differing} there is not as in {here}"
        pytest.exit(f"{wrong}: install again, pip install -e '.[test,convert]'", pytest.ExitCode.USAGE_ERROR)


# How long a drawn example takes says more of the machine than of the code.
hypothesis.settings.register_profile("jaxser", deadline=None)
hypothesis.settings.load_profile("jaxser")

LITTLE = dataclasses.replace(
    NANO,
    conv_feature_layers=((8, 10, 5), (16, 92, 32)),
    conv_aggregator_layers=((16, 2, 1), (16, 3, 1)),
)
"""A wav2vec that compiles in a second and sees what all do: 465 samples a frame, one each 160."""


def apart() -> dict[str, str]:
    """The environment of processes that are killed or find their disk full: half a program, where they keep theirs, is read by
    nobody else, and without jax's account of sizes it keeps nobody from writing."""
    ours = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_MAX_SIZE"}
    return ours | {"JAX_COMPILATION_CACHE_DIR": os.path.join(ours["JAX_COMPILATION_CACHE_DIR"], "apart")}


def _ports() -> Iterator[int]:
    # Below those that systems give away by themselves; for each session of tests, and each worker in it, a block of its own.
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    session, number = (os.getppid(), int(worker.removeprefix("gw"))) if worker else (os.getpid(), 0)
    first = 10_000 + session % 20 * 1_000 + number % 20 * 50
    for port in itertools.cycle(range(first, first + 50)):
        with socket.socket() as tried:
            try:
                tried.bind(("", port))
            except OSError:
                continue  # somebody listens there
        yield port


_PORTS = _ports()


def port() -> int:
    """A port at which processes that a test starts can meet."""
    return next(_PORTS)


def demand_going_on(said: str, total: int) -> None:
    """Work that was cut short has said that it goes on, once, neither from its beginning nor from its end."""
    (behind,) = re.findall(r"going on after (?:update )?([\d,]+)", said)
    assert 0 < int(behind.replace(",", "")) < total


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file() -> Iterator[None]:
    """What the tests of a file have compiled goes with them. jax keeps every program, and the C library what was freed: all
    tests together would fill a machine of 8 GB."""
    yield
    jax.clear_caches()
    gc.collect()
    with suppress(OSError, AttributeError):  # other C libraries than glibc give it back by themselves, or never
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and nothing that was fetched before. What the environment says is read when huggingface_hub is imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


DATA = Path(os.environ.get("JAXSER_DATA", Path(__file__).parents[2] / "shared" / "data"))


def _real(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"no {name} below {DATA}: set JAXSER_DATA to the folder that has it")
    return DATA / name


@pytest.fixture(scope="session")
def ravdess() -> Path:
    return _real("ravdess")


@pytest.fixture(scope="session")
def emodb() -> Path:
    return _real("emodb")


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes, which is what a full disk looks like to who writes."""
    resource = pytest.importorskip("resource", reason="no limits of file sizes here")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores the signal, so that writing raises
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def unreadable(folder: Path) -> Iterator[None]:
    """Nobody may list this folder: whoever runs the tests as root could."""

    def refusing(listed):
        def refused(path="."):
            if Path(os.fsdecode(path)) == folder:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
            return listed(path)

        return refused

    with pytest.MonkeyPatch.context() as patch:
        for name in ("scandir", "listdir"):
            patch.setattr(os, name, refusing(getattr(os, name)))
        yield


def write_tone(path: Path, seconds: float = 0.5, hertz: float = 220, seed: int = 0, rate: int = 16_000) -> Path:
    """A noisy tone; another seed is another sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.02, len(time))
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * time) + noise, rate)
    return path


def write_table(home: Path) -> Path:
    """A CSV corpus of six speakers, two groups each of whose speakers say four utterances of each of two classes; the
    classes differ in pitch, so that a head can learn them."""
    lines = ["path,label,speaker,group"]
    for speaker in range(6):
        for label, hertz in (("low", 150), ("high", 600)):
            for i in range(4):
                name = f"audio/s{speaker}-{label}-{i}.wav"
                seed = 100 * speaker + 10 * i + (label == "low")
                write_tone(home / name, 0.4 + 0.1 * i, hertz + 20 * speaker, seed)
                lines.append(f"{name},{label},s{speaker},g{speaker % 3}")
    path = home / "corpus.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The corpus of `write_table`, for one test to change as it likes."""
    return write_table(tmp_path)


@pytest.fixture(scope="session")
def twins():
    """benchmarks/torch_twins.py: fairseq's own wav2vec, and the masked twin that the benchmarks time."""
    pytest.importorskip("torch", reason="torch is not installed: pip install '.[convert]'")
    from benchmarks import torch_twins

    if torch_twins.installed() is None:
        pytest.skip("fairseq is not installed: READTHEDOCS=1 pip install --no-deps fairseq==0.12.2")
    return torch_twins


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good files of several formats and rates, one below, and files that no training can use."""
    home = tmp_path / "speech"
    write_tone(home / "a.wav", 2.0, seed=1)
    write_tone(home / "deep" / "b.flac", 1.0, seed=2)
    write_tone(home / "deep" / "c.ogg", 3.0, seed=3, rate=48_000)
    (home / "broken.wav").write_text("this is no audio")
    (home / "notes.txt").write_text("nor is this")
    (home / "._a.wav").write_text("a shadow that another system leaves")
    write_tone(home / "short.wav", 0.1)
    soundfile.write(home / "silent.wav", np.zeros(16_000), 16_000)
    return home


def demand_well_formed(page: str) -> None:
    """Every tag is closed in its order, and nothing points anywhere but into the page."""
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
    assert "<script" not in page
    assert "url(" not in page


def save_as_of_2019(path: Path, model, args: argparse.Namespace, **changes) -> Path:
    """A checkpoint as fairseq wrote them in 2019: options in an argparse.Namespace beside the weights."""
    import torch

    later = ("activation", "vq_type", "infonce")  # options that fairseq did not have then
    stated = {name: value for name, value in vars(args).items() if name not in later}
    content = {
        "args": argparse.Namespace(arch="wav2vec", task="speech_pretraining", **stated),
        "model": model.state_dict(),
        "optimizer_history": [{"criterion_name": "BinaryCrossEntropyCriterion", "num_updates": 400_000}],
        "extra_state": {"epoch": 15, "val_loss": 1.25},
        "last_optimizer_state": {"state": {}, "param_groups": []},
    }
    torch.save({**content, **changes}, path)
    return path


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Processes that a test starts hear Ctrl-C: a shell that runs the tests in the background has them ignore it, and they
    would pass that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
