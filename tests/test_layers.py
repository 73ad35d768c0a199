"""The import table: who may know whom. Held here, shown in docs/design.md."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "avrec"

# What each part may import of avrec, besides itself and batch.
ALLOWED = {
    "batch": set(),
    "data": set(),
    "towers": set(),
    "objective": set(),
    "evaluation": set(),
    "training": {"towers", "objective"},
    # A stranger's raw file must be decoded by the very code that decoded the catalogue.
    "export": {"towers", "data.media"},
    "retrieval": {"towers"},
    # Thumbnails are decoded as the catalogue was.
    "report": {"evaluation", "data.media", "data.limits"},
    # Those that put the pieces together.
    "hints": set(),
    "secrets": set(),
    "arguments": set(),
    "config": {"data", "towers", "training", "hints", "secrets", "sweep", "sweeper"},
    "sweep": {"secrets"},
    "sweeper": {"sweep", "hints", "secrets"},
    "tracking": {"evaluation", "config"},
    "measuring": {"data", "evaluation", "training", "pipeline"},
    "pipeline": {"data", "towers", "evaluation", "training", "report", "config", "measuring"},
    "exporting": {"export", "evaluation", "pipeline"},
    # A whole catalogue through an exported tower, and a run that answers.
    "embed": {"data", "towers", "export", "config", "arguments", "hints"},
    "recommend": {"data", "towers", "export", "retrieval", "config", "arguments", "hints", "pipeline", "embed"},
    # Names alone; nothing is imported before it is asked for.
    "__init__": {"data", "towers", "objective", "training", "evaluation", "export", "retrieval"},
}
# Run as commands, so they are entry scripts as train.py and evaluate.py are.
ENTRIES = {"data.check", "data.prepare", "export.__main__"}
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
def test_a_file_imports_only_what_its_part_may(path: Path) -> None:
    module = module_of(path)
    part = module.split(".")[0]
    if module in ENTRIES:
        return
    allowed = {"batch", part, *ALLOWED[part]}
    wrong = {
        name for name in imports_of(path) if not any(name == good or name.startswith(f"{good}.") for good in allowed)
    }
    assert not wrong, f"{module} imports {sorted(wrong)}; it may import {sorted(allowed)}"


def test_every_part_is_in_the_table() -> None:
    assert {module_of(path).split(".")[0] for path in FILES} <= set(ALLOWED)


def test_only_config_knows_hydra_and_omegaconf() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        runtime = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {
            alias.name if isinstance(node, ast.Import) else node.module or ""
            for node in runtime
            for alias in node.names
        }
        known = {name.split(".")[0] for name in names} & {"hydra", "omegaconf"}
        assert not known or path.name in ("config.py", "sweeper.py"), f"{path} imports {known}"


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
