"""Which classical initialisations learn, and why constants do not.

One small network, 64 - 64 - 64 - 64 - 10 with ReLU, on scikit-learn's handwritten digits, trained
with plain SGD from seven different starts. Beside the accuracy stands what explains it: how many
*different* units the first hidden layer has before and after training, how large the signal is that
reaches the last layer, and whether `apply_policy` warned of it.
"""

import warnings
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from torch_initpolicy import InitPolicy, apply_policy, presets
from torch_initpolicy.errors import SymmetricInitWarning

EPOCHS, BATCH, RATE = 15, 64, 0.05

POLICIES: dict[str, InitPolicy] = {
    "zeros": presets.zeros(),
    "ones": presets.ones(),
    "constant 0.03": presets.constant(0.03),
    "uniform [0, 1]": presets.uniform(0.0, 1.0),
    "normal, std 0.01": presets.normal(0.01),
    "Xavier": presets.xavier(),
    "He": presets.he(),
}


@dataclass(frozen=True)
class Result:
    """What one start led to."""

    warned: bool
    before: int
    signal: float
    after: int
    loss: float
    accuracy: float


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Load 8 x 8 images of digits: 1,437 for training, 360 for testing, standardised."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images).float(), torch.from_numpy(labels)
    x = (x - x.mean()) / x.std()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return x[train], y[train], x[test], y[test]


def network() -> nn.Sequential:
    """Build the network; its constructor's own weights do not matter."""
    hidden = [layer for _ in range(3) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(64, 10))


def distinct_units(model: nn.Sequential) -> int:
    """Count the different units of the first hidden layer: rows of its weight, to 7 digits."""
    weight = model[0].weight.detach()
    return len(torch.unique(weight, dim=0)) if weight.isfinite().all() else 0


def train(policy: InitPolicy, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> Result:
    """Initialise by `policy`, train, and report both ends."""
    x, y, x_test, y_test = data
    model = network()
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        apply_policy(model, policy, seed=0)
    warned = any(issubclass(warning.category, SymmetricInitWarning) for warning in given)
    before, signal = distinct_units(model), model[:-1](x).square().mean().item()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    shuffle = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x), generator=shuffle).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    loss = nn.functional.cross_entropy(model(x), y).item()
    accuracy = (model(x_test).argmax(1) == y_test).float().mean().item()
    return Result(warned, before, signal, distinct_units(model), loss, accuracy)


def main() -> dict[str, Result]:
    """Train from every start and print the table."""
    data = digits()
    results = {name: train(policy, data) for name, policy in POLICIES.items()}
    print(f"{'start':16}  warned  units    signal  after     loss  accuracy")
    for name, result in results.items():
        warned = "yes" if result.warned else "-"
        print(
            f"{name:16}{warned:>8}{result.before:>7}{result.signal:>10.1e}{result.after:>7}"
            f"{result.loss:>9.3f}{result.accuracy:>10.1%}"
        )
    print(WHY)
    return results


WHY = """
warned: whether apply_policy warned that hidden units are identical and stay so
units:  different units among the 64 of the first hidden layer, before and after training
signal: mean square of what reaches the last layer at the start

Constant starts give every unit of a layer the same weights. Equal units compute equal outputs and
get equal gradients, so no step of the training can tell them apart: 64 units stay one, and one
unit cannot tell ten digits apart, even where its signal has a good size (0.03). Zeros are worse
still: all gradients but those of the last bias are products with a zero.
Random starts break the tie; then the scale decides. Values in [0, 1] let the signal explode, a
standard deviation of 0.01 lets it vanish. He keeps its size through every ReLU; Xavier loses half
of it at each, which a network of three hidden layers survives and one of thirty does not."""


if __name__ == "__main__":
    main()
