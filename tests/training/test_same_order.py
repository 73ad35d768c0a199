"""avrec.training.monitoring.SameOrder: with it, every epoch has the batches of the first."""

import pytorch_lightning as pl
import torch

from avrec.training.monitoring import SameOrder


class Shifted(torch.utils.data.Sampler[int]):
    """Begins with the number of the epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        yield from ((self.epoch + place) % 5 for place in range(5))

    def __len__(self) -> int:
        return 5


class Watcher(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
        self.seen.append(batch.item())
        return (self.weight * batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def seen(*callbacks: pl.Callback) -> list[float]:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    loader = torch.utils.data.DataLoader(torch.arange(5.0), batch_size=None, sampler=Shifted())
    module = Watcher()
    trainer = pl.Trainer(max_epochs=3, limit_train_batches=1, accelerator="cpu", callbacks=[*callbacks], **quiet)
    trainer.fit(module, loader)
    return module.seen


def test_every_epoch_has_the_first_one_s_batches() -> None:
    assert seen() == [0, 1, 2]
    assert seen(SameOrder()) == [0, 0, 0]
