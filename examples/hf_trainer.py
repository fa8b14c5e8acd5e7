"""The loss in the Hugging Face Trainer: `compute_loss` adds the contrastive term on the pooled features.

python examples/hf_trainer.py              (pip install transformers accelerate)
"""

import tempfile

import torch
import transformers
from plain_loop import CONTRASTIVE_WEIGHT, VIEWS, load_splits, random_view
from torch import nn

from schane_cli import SchaneLoss


class Digits(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Digits with three equal channels, as image models want them."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images[:, None].expand(-1, 3, -1, -1), labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


class ContrastiveTrainer(transformers.Trainer):
    """A Trainer whose loss is lambda times the contrastive term plus (1 - lambda) times cross-entropy."""

    criterion = SchaneLoss()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        views = torch.cat([random_view(inputs["pixel_values"]) for _ in range(VIEWS)])  # view after view
        targets = inputs["labels"].repeat(VIEWS)
        outputs = model(pixel_values=views, output_hidden_states=True)
        projection = model.projection(outputs.hidden_states[-1].mean((2, 3)))
        cross_entropy = nn.functional.cross_entropy(outputs.logits, targets)
        loss = CONTRASTIVE_WEIGHT * self.criterion(projection, targets) + (1 - CONTRASTIVE_WEIGHT) * cross_entropy
        return (loss, outputs) if return_outputs else loss


def main(epochs: int = 15) -> float:
    """Train a small ResNet from random weights, print the test accuracy and return it."""
    transformers.set_seed(0)
    train, test = (Digits(*split) for split in load_splits())
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic", num_labels=10
    )
    model = transformers.ResNetForImageClassification(config)
    model.projection = nn.Linear(config.hidden_sizes[-1], 32)  # trained with the rest
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=128,
            learning_rate=3e-3,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = ContrastiveTrainer(model=model, args=arguments, train_dataset=train)
        trainer.train()
        logits = torch.as_tensor(trainer.predict(test).predictions)
    accuracy = (logits.argmax(1) == test.labels).float().mean().item()
    print(f"test accuracy {100 * accuracy:.2f} % (n = {len(test)})")
    return accuracy


if __name__ == "__main__":
    main()
