"""The whole tree: no merge conflicts, plain words, correct spelling."""

import ast
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import avrec

ROOT = Path(__file__).resolve().parent.parent
PROSE = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "conf"]
PHRASES = re.compile(r"is not possible|\bGive |do without|\bis said\b| apart\b")


def tracked() -> list[Path]:
    """The files under version control."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def messages(source: str) -> str:
    """The strings of a module that are not docstrings.

    >>> messages('def f():\\n    "Doc."\\n    return "shown"')
    'shown'
    """
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented) and node.body]
    docstrings = {id(body[0].value) for body in bodies if isinstance(body[0], ast.Expr)}
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings)
    return "\n".join(node.value for node in strings if isinstance(node.value, str))


def test_no_file_holds_a_merge_conflict() -> None:
    marker = re.compile(rb"^(<{7}|={7}|>{7})( |$)", re.M)
    assert [str(path.relative_to(ROOT)) for path in tracked() if marker.search(path.read_bytes())] == []


def test_user_facing_text_avoids_phrases_that_read_as_translated() -> None:
    found: Counter[str] = Counter()
    for path in sorted((ROOT / "avrec").rglob("*.py")):
        found[str(path.parent.relative_to(ROOT))] += len(PHRASES.findall(messages(path.read_text("utf-8"))))
    pages = [path for name in PROSE for path in [ROOT / name, *(ROOT / name).rglob("*")]]
    for path in (path for path in [*pages, ROOT / "Makefile"] if path.is_file()):
        found[str(path.relative_to(ROOT))] += len(PHRASES.findall(path.read_text("utf-8")))
    assert {name: number for name, number in found.items() if number} == {}


@pytest.mark.skipif(find_spec("codespell_lib") is None, reason="codespell is not installed")
def test_prose_is_spelt_correctly() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", *PROSE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_version_is_the_same_everywhere() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == avrec.__version__
    assert f"## {avrec.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_wheel_carries_every_file_of_the_package_and_of_conf(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    build = ["egg_info", "--egg-base", str(tmp_path), "build", "--build-base", str(tmp_path)]
    subprocess.run([sys.executable, "setup.py", "-q", *build], cwd=ROOT, capture_output=True, check=True)
    built = tmp_path / "lib" / "avrec"
    for folder, place in ((ROOT / "avrec", built), (ROOT / "conf", built / "conf")):
        there = {path.relative_to(folder) for path in tracked() if path.is_relative_to(folder)}
        assert {path for path in there if not (place / path).is_file()} == set()
