"""The loss in PyTorch Lightning: the network and digits of plain_loop.py as a LightningModule.

python examples/lightning_module.py        (pip install pytorch-lightning)
"""

import logging

import pytorch_lightning as lightning
import torch
from plain_loop import CONTRASTIVE_WEIGHT, VIEWS, Network, load_splits, random_view
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from schane_cli import SchaneLoss


class FineTuning(lightning.LightningModule):
    """Cross-entropy and the contrastive term on two views of every image."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.criterion = Network(), SchaneLoss()

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        views = torch.cat([random_view(images) for _ in range(VIEWS)])  # view after view
        targets = labels.repeat(VIEWS)
        logits, projection = self.network(views)
        cross_entropy = nn.functional.cross_entropy(logits, targets)
        return CONTRASTIVE_WEIGHT * self.criterion(projection, targets) + (1 - CONTRASTIVE_WEIGHT) * cross_entropy

    def test_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("accuracy", (self.network(images)[0].argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(epochs: int = 30) -> float:
    """Train, print the test accuracy and return it."""
    lightning.seed_everything(0, verbose=False)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    train, test = (TensorDataset(*split) for split in load_splits())
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = FineTuning()
    trainer.fit(module, DataLoader(train, batch_size=128, shuffle=True))
    accuracy = trainer.test(module, DataLoader(test, batch_size=len(test)), verbose=False)[0]["accuracy"]
    print(f"test accuracy {100 * accuracy:.2f} % (n = {len(test)})")
    return accuracy


if __name__ == "__main__":
    main()
