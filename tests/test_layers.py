"""The import table: who may know whom. Held here, shown in docs/design.md."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "avrec"

COMMON = {"batch", "checked", "errors", "io", "ranking_task"}
"""What every folder may import."""
MODEL = {"content", "data", "towers", "objectives", "training", "evaluation", "report", "export", "retrieval"}
ALLOWED = {
    "batch": set(),
    "errors": set(),
    "checked": {"errors"},
    "io": set(),
    "ranking_task": {"batch"},
    "content": COMMON,
    "data": COMMON | {"content"},
    # An encoder's preprocess says what is to be decoded.
    "towers": COMMON | {"content"},
    "objectives": COMMON,
    "evaluation": COMMON,
    "training": COMMON | {"towers", "objectives"},
    # Thumbnails are decoded as the catalogue was.
    "report": COMMON | {"evaluation", "content"},
    # A raw file of tomorrow is decoded by the code that decoded the catalogue.
    "export": COMMON | {"towers", "content"},
    # Tables of new items, and the histories of a run's users.
    "retrieval": COMMON | {"export", "towers", "content", "data", "training", "evaluation"},
    "run": COMMON | MODEL,
    "sweep": COMMON | {"run"},
    "cli": COMMON | MODEL | {"run", "sweep"},
    # Names alone; nothing is imported before it is asked for.
    "__init__": MODEL | COMMON,
    "__main__": {"cli"},
}
"""By folder, what it may import of avrec besides itself."""
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """Dotted name below avrec."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Names below avrec that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("avrec.") for name in found if name.startswith("avrec.")}


@pytest.mark.parametrize("path", FILES, ids=[module_of(path) for path in FILES])
def test_a_file_imports_only_what_its_folder_may(path: Path) -> None:
    module = module_of(path)
    part = module.split(".")[0]
    found = {name.split(".")[0] for name in imports_of(path)} - {part}
    assert found <= ALLOWED[part], f"{module} imports {sorted(found - ALLOWED[part])}"


def test_no_two_files_import_each_other() -> None:
    """No circle of whatever length, lazy imports and those for types alone included."""
    modules = {module_of(path): path for path in FILES if path.name != "__init__.py"}
    graph = {
        module: {name for name in modules if any(found == name or found.startswith(f"{name}.") for found in names)}
        for module, names in ((module, imports_of(path)) for module, path in modules.items())
    }
    TopologicalSorter(graph).prepare()


def test_every_part_is_in_the_table() -> None:
    assert {module_of(path).split(".")[0] for path in FILES} <= set(ALLOWED)


def test_hydra_and_omegaconf_are_known_to_those_who_compose_alone() -> None:
    for path in FILES:
        nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        known = {name.split(".")[0] for name in names} & {"hydra", "omegaconf"}
        assert not known or module_of(path).split(".")[0] in ("run", "cli", "sweep"), f"{path} imports {known}"


def test_files_are_small() -> None:
    long = {str(path): lines for path in FILES if (lines := len(path.read_text().splitlines())) > 420}
    assert not long, "which concept is missing?"


def test_every_file_is_covered_by_a_test_file() -> None:
    """tests/ mirrors avrec/: each module is named by some test."""
    texts = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    missing = [
        module_of(path)
        for path in FILES
        if path.name not in ("__init__.py", "__main__.py") and f"avrec.{module_of(path)}" not in texts
    ]
    assert not missing
