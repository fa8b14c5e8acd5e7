"""The loss in a training loop of your own: a small network on scikit-learn's digits, in plain torch.

python examples/plain_loop.py
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from schane_cli import SchaneLoss

CONTRASTIVE_WEIGHT = 0.5  # lambda
VIEWS = 2


class Network(nn.Module):
    """An embedding with two heads: class logits for cross-entropy, a projection for the contrastive term."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.classifier = nn.Linear(64, 10)
        self.projection = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = self.backbone(images)
        return self.classifier(embedding), self.projection(embedding)


def random_view(images: torch.Tensor) -> torch.Tensor:
    """Images (..., 8, 8), all shifted by up to one pixel and with a little noise."""
    rows, columns = torch.randint(-1, 2, (2,)).tolist()
    return images.roll((rows, columns), dims=(-2, -1)) + 0.1 * torch.randn_like(images)


def load_splits() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Train and test, each images (n, 8, 8) from 0 to 1 and labels (n,)."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images.reshape(-1, 8, 8) / 16, labels, test_size=0.2, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = (torch.as_tensor(part) for part in parts)
    return (train_images.float(), train_labels), (test_images.float(), test_labels)


def main(epochs: int = 30) -> float:
    """Train, print the test accuracy and return it."""
    torch.manual_seed(0)
    (train_images, train_labels), (test_images, test_labels) = load_splits()
    network, criterion = Network(), SchaneLoss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(train_images)).split(128):
            views = torch.cat([random_view(train_images[batch]) for _ in range(VIEWS)])  # view after view
            targets = train_labels[batch].repeat(VIEWS)
            logits, projection = network(views)
            cross_entropy = nn.functional.cross_entropy(logits, targets)
            loss = CONTRASTIVE_WEIGHT * criterion(projection, targets) + (1 - CONTRASTIVE_WEIGHT) * cross_entropy
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    with torch.no_grad():
        accuracy = (network(test_images)[0].argmax(1) == test_labels).float().mean().item()
    print(f"test accuracy {100 * accuracy:.2f} % (n = {len(test_labels)})")
    return accuracy


if __name__ == "__main__":
    main()
