"""avrec recommend: the best items for a user, or the users for new items (conf/recommend.yaml)."""

from typing import TYPE_CHECKING

from avrec.cli.main import command, user_errors_as_exit_codes

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(cfg: "DictConfig") -> None:
    """Recommend, print."""
    from avrec.cli.console import console
    from avrec.errors import UserError
    from avrec.retrieval.recommend import Recommender, audience_table, recommended_table
    from avrec.run.config import as_given, checkpoint_of, one_of
    from avrec.run.restore import of_checkpoint

    with user_errors_as_exit_codes():
        asked = one_of(cfg, "user", "history", "items")
        if not isinstance(cfg.k, int) or cfg.k < 1:
            raise UserError(f"k must be a whole number from 1; got {cfg.k}.")
        out = console()
        restored = of_checkpoint(checkpoint_of(cfg), cfg.data.root)
        recommender = Recommender(restored.data, restored.module, restored.cfg.data.get("columns"))
        if asked == "items":
            audiences, told = recommender.audiences(str(cfg["items"]), cfg.k)
            out.print(audience_table(audiences, cfg.k))
            for reason in told:
                print(reason)
        elif asked == "user":
            out.print(recommended_table(recommender.for_user(as_given(cfg, "user"), cfg.k)))
        else:
            history = as_given(cfg, "history").strip("[]").split(",")
            out.print(recommended_table(recommender.for_history([item.strip() for item in history], cfg.k)))


def main() -> int:
    """The command; its exit status."""
    return command(run, "recommend")
