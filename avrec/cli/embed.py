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
        tower = Path(cfg.run) / "item_tower" if one_of(cfg, "tower", "run") == "run" else Path(cfg.tower)
        items, out, options = cfg["items"], cfg.out, plain(cfg)
        embed(
            tower,
            items,
            out,
            classes=import_classes(options["classes"]),
            **{key: options[key] for key in ("executor", "shard_size", "workers", "device", "columns")},
        )


def main() -> int:
    """The command; its exit status."""
    return command(run, "embed")
