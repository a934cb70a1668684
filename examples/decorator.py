"""A model class that initialises its own objects.

The policy runs once, after the outermost constructor: a subclass is first built completely, and
where it names a policy of its own, that one runs and no other. Copies keep their weights.
"""

import copy

import torch
from torch import Tensor, nn

from torch_initpolicy import init_policy


@init_policy("he", seed=0)
class Encoder(nn.Module):
    """Two layers with a functional activation, which the policy finds in the data flow."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.enter = nn.Linear(32, width)
        self.leave = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, 32)` to `(batch, width)`."""
        return torch.relu(self.leave(torch.relu(self.enter(x))))


class Classifier(Encoder):
    """A subclass without a policy: its parent's covers the layer it adds, too."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, 32)` to `(batch, classes)`."""
        return self.head(super().forward(x))


@init_policy("orthogonal", seed=0)
class OrthogonalClassifier(Classifier):
    """A subclass with a policy of its own, which replaces its parent's."""


def orthogonality_error(weight: Tensor) -> float:
    """Measure how far the rows of a weight are from being orthogonal, relative to their length."""
    gram = weight @ weight.T
    return (gram / gram.diagonal().mean() - torch.eye(len(gram))).abs().max().item()


def main() -> dict[str, float]:
    """Build one of each and print what its constructor left behind."""
    errors = {}
    for model in (Encoder(), Classifier(10), OrthogonalClassifier(10)):
        name = type(model).__name__
        errors[name] = orthogonality_error(model.leave.weight.detach())
        biases = sum(layer.bias.abs().sum().item() for layer in model.children())
        print(
            f"{name:22} std of leave.weight {model.leave.weight.std().item():.4f}"
            f"   orthogonality error {errors[name]:.1e}   biases {biases}"
        )
    trained = Classifier(10)
    nn.init.ones_(trained.head.weight)
    assert torch.equal(copy.deepcopy(trained).head.weight, trained.head.weight)
    print("a deepcopy keeps its weights: the policy runs when an object is built, not when copied")
    return errors


if __name__ == "__main__":
    main()
