"""avrec embed: embed items with an exported item tower (conf/embed.yaml)."""

from typing import TYPE_CHECKING

from avrec.cli.main import command, user_errors_as_exit_codes

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(cfg: "DictConfig") -> None:
    """Embed."""
    from pathlib import Path

    from avrec.retrieval.embed import embed
    from avrec.run.config import import_classes, one_of, plain

    with user_errors_as_exit_codes():
        given = plain(cfg)
        tower = one_of(given, "tower", "run")
        embed(
            Path(given["run"]) / "item_tower" if tower == "run" else given["tower"],
            given["items"],
            given["out"],
            classes=import_classes(given["classes"]),
            **{key: given[key] for key in ("executor", "shard_size", "workers", "device", "columns")},
        )


def main() -> int:
    """The command; its exit status."""
    return command(run, "embed")
