"""The house stands: a module imports only from lower floors, or from modules listed above it on its own floor."""

import ast
import re
from pathlib import Path

import jaxser

README = Path(__file__).parents[1] / "README.md"
FLOORS = [
    re.findall(r"`(\w+)`", line.split("|")[2])
    for line in README.read_text(encoding="utf-8").partition("| floor | modules |")[2].splitlines()[2:7]
]
"""The README's own table, the lowest floor first."""

NO_JAX = {*FLOORS[0], "lld", "glove", "extract_lld"}  # what the processes that compute descriptors load
PACKAGE = Path(jaxser.__file__).parent


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names} | {node.module}
    return found


def test_every_module_has_its_floor():
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == {name for floor in FLOORS for name in floor}


def test_imports_go_down():
    order = [name for floor in FLOORS for name in floor]
    for number, name in enumerate(order):
        for target in imports_of(PACKAGE / f"{name}.py"):
            first, _, rest = target.partition(".")
            inside = rest.partition(".")[0]
            if first == "jaxser" and inside in order:
                assert order.index(inside) < number, f"{name} imports {inside}, which stands above it"


def test_data_floors_import_no_jax():
    for name in NO_JAX:
        heavy = {target.partition(".")[0] for target in imports_of(PACKAGE / f"{name}.py")} & {"jax", "flax", "optax"}
        assert not heavy, f"{name} imports {heavy}"


def test_one_import_of_each_fragile_library():
    for library, home in {"pyAudioAnalysis": "lld", "soxr": "audio", "transformers": "bert"}.items():
        users = [p.stem for p in PACKAGE.glob("*.py") if any(t.partition(".")[0] == library for t in imports_of(p))]
        assert users == [home]


def test_nothing_needs_torch():
    for path in PACKAGE.rglob("*.py"):
        assert not {t for t in imports_of(path) if t.partition(".")[0] in ("torch", "fairseq")}
