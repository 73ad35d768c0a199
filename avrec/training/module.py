"""The LightningModule: two towers, one objective, one pass over each distinct item."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from avrec.batch import ItemBatch, TrainBatch, UserBatch
from avrec.errors import UserError
from avrec.objectives.pairs import Pairs, pairs_of
from avrec.towers.item_tower import ItemTower
from avrec.towers.score import Score
from avrec.towers.user_tower import UserTowerBase


class TwoTowerModule(pl.LightningModule):
    """Trains both towers, through the encoders.

    Validation and test first embed the catalogue (data loader 0), then the users' queries (data loader 1).

    Args:
        item_tower: what an item is.
        user_tower: what a person did.
        score: couples them.
        objective: takes ``Pairs``, returns a scalar.
        optimizer: makes the optimizer of this module.
        scheduler: makes the schedule of (optimizer, total steps).
        validate: what to log of (queries, item embeddings) of the validation task, by full name.
    """

    def __init__(
        self,
        item_tower: ItemTower,
        user_tower: UserTowerBase,
        score: Score,
        objective: torch.nn.Module,
        optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
        validate: Callable[[Tensor, Tensor], dict[str, float]] | None = None,
    ) -> None:
        super().__init__()
        self.item_tower = item_tower
        self.user_tower = user_tower
        self.score = score
        self.objective = objective
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.validate = validate
        self.item_ND: Tensor = torch.zeros(0)
        self.query_ED: Tensor = torch.zeros(0)
        self._item_parts: list[Tensor] = []
        self._query_parts: list[Tensor] = []
        self._generators: dict[str, Any] | None = None

    # ---- training

    def on_fit_start(self) -> None:
        """Measure what the encoders give before they have learned anything, in a run that is not resumed."""
        if self._generators is None and self.global_step == 0:
            self.item_tower.standardise(self.trainer.datamodule.sample_items().to(self.device))  # type: ignore[attr-defined]

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """The objective on one batch.

        Raises:
            UserError: the loss is not finite.
        """
        pairs = self.pairs(batch)
        loss = self.objective(pairs) if len(pairs.target_P) else pairs.query_PD.sum() * 0
        if not torch.isfinite(loss):
            raise UserError(self._diverged(loss, pairs, batch))
        size = len(batch.users)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=size)
        self.log_dict(self._health(pairs), batch_size=size)
        return loss

    def pairs(self, batch: TrainBatch) -> Pairs:
        """Both towers on one batch; every distinct item is encoded once."""
        item_UD = self.item_tower(batch.items)
        query_BQD = self.score.scale(self.user_tower(batch.users, item_UD))
        return pairs_of(batch, query_BQD, item_UD, self.score.bias)

    @torch.no_grad()
    def _health(self, pairs: Pairs) -> dict[str, Tensor]:
        return {
            "health/temperature": self.score.temperature.detach(),
            "health/bias": self.score.bias.detach(),
            "health/item_norm": pairs.item_UD.float().norm(dim=1).mean(),
            # 1 where all items point the same way: collapse.
            "health/item_alikeness": torch.nn.functional.normalize(pairs.item_UD.float(), dim=1).mean(0).norm(),
        }

    def _diverged(self, loss: Tensor, pairs: Pairs, batch: TrainBatch) -> str:
        score_PU, _ = pairs.scores()
        finite = score_PU[torch.isfinite(score_PU)]
        largest = finite.abs().flatten().topk(min(3, finite.numel())).values.tolist()
        broken = int(score_PU.numel() - finite.numel())
        users = ", ".join(batch.users_named[:8]) + (", …" if len(batch.users_named) > 8 else "")
        return (
            f"The loss is {loss.item()} at step {self.global_step}. "
            f"{broken} of {score_PU.numel()} scores are not finite; largest finite |score|: "
            f"{', '.join(f'{value:.4g}' for value in largest) or 'none'}. Users of the batch: {users}. "
            "Lower optimizer.lr, give trainer.gradient_clip_val=1, or look at these users' R_ui."
        )

    # ---- validation and test: the catalogue, then the queries

    def on_validation_epoch_start(self) -> None:
        """Forget the last run's embeddings."""
        self._item_parts, self._query_parts = [], []

    def validation_step(self, batch: ItemBatch | UserBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Embed items or users."""
        # Full precision, so that an exported tower gives the same vectors on any machine.
        with torch.autocast(self.device.type, enabled=False):
            if isinstance(batch, ItemBatch):
                self._item_parts.append(self.item_tower(batch))
                return
            if not self._query_parts:
                self.item_ND = torch.cat(self._item_parts)
            self._query_parts.append(self.score.scale(self.user_tower.last(batch, self.item_ND)))

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Full-catalogue metrics of the validation task."""
        self.query_ED = torch.cat(self._query_parts)
        if self.validate is not None:
            self.log_dict(self.validate(self.query_ED, self.item_ND), prog_bar=False)

    def on_test_epoch_end(self) -> None:
        """Leave ``item_ND`` and ``query_ED`` for whoever ranks."""
        self.query_ED = torch.cat(self._query_parts)

    # ---- optimizer, checkpoints

    def configure_optimizers(self) -> Any:
        """Optimizer and a schedule over the optimizer steps."""
        assert self.make_optimizer is not None
        optimizer = self.make_optimizer(self)
        if self.make_scheduler is None:
            return optimizer
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = self.make_scheduler(optimizer, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the generators' states beside the weights, so that a resumed run draws what this one would."""
        name, keys, *rest = np.random.get_state()
        version, state, gauss = random.getstate()
        checkpoint["generators"] = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
            "python": [version, list(state), gauss],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the generators' states until training goes on."""
        self._generators = checkpoint.get("generators")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Restore the generators before the first step of a resumed run: whatever came before may have drawn."""
        if self._generators is None:
            return
        states, self._generators = self._generators, None
        torch.set_rng_state(states["torch"].cpu())
        if states["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
        name, keys, *rest = states["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        version, state, gauss = states["python"]
        random.setstate((version, tuple(state), gauss))
