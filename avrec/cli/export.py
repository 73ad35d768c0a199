"""avrec export: write the towers of a run as files (conf/export.yaml)."""

from pathlib import Path
from typing import TYPE_CHECKING

from avrec.cli.main import command, user_errors_as_exit_codes

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(cfg: "DictConfig") -> None:
    """Bring the run back, export."""
    from avrec.run import export
    from avrec.run.config import checkpoint_of
    from avrec.run.restore import of_checkpoint

    with user_errors_as_exit_codes():
        export.check(cfg.target, cfg.format, cfg.int8, cfg.users)
        ckpt = Path(checkpoint_of(cfg))
        restored = of_checkpoint(ckpt, cfg.data.root)
        run_dir = ckpt.resolve().parent.parent
        if cfg.target == "both":
            out = {kind: Path(cfg.out or run_dir) / kind for kind in ("item_tower", "user_tower")}
        else:
            out = {cfg.target: Path(cfg.out or run_dir / cfg.target)}
        # The results in metrics.json are those of the best weights.
        results = export.results_of(run_dir) if ckpt.name == "best.ckpt" else []
        export.export_run(restored, out, cfg.format, cfg.int8, cfg.users, results)
        print(*out.values(), sep="\n")


def main() -> int:
    """The command; its exit status."""
    return command(run, "export")
