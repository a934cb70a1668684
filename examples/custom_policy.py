"""A policy of one's own: rules, presets for the rest, saved as a file and read back."""

import tempfile
from pathlib import Path

from torch import Tensor, nn

from torch_initpolicy import InitPolicy, Rule, apply_policy, initializers, match, presets


class Detector(nn.Module):
    """A backbone with two heads, one of which must start with rare positives."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 64, 3, padding=1), nn.SiLU()
        )
        self.boxes = nn.Conv2d(64, 4, 1)
        self.scores = nn.Conv2d(64, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images `(batch, 3, height, width)` to boxes and scores at every position."""
        features = self.backbone(x)
        return self.boxes(features), self.scores(features)


PRIOR = -4.595  # log(0.01 / 0.99): one position in a hundred holds something

POLICY = InitPolicy(
    [
        # Lin et al., Focal Loss for Dense Object Detection, 2017, arXiv:1708.02002, section 3.3
        Rule(match.name("scores.bias"), initializers.Constant(PRIOR)),
        Rule(match.name("boxes.*") & match.role("weight"), initializers.Normal(0.01)),
        Rule(
            match.kind(nn.Conv2d) & match.meets("silu") & match.role("weight"),
            initializers.VarianceScaling(2.8, "fan_in", "truncated_normal"),
        ),
    ]
).otherwise(presets.auto())


def main() -> nn.Module:
    """Save the policy, read it back, apply it and print the receipt's plan."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "detector.json"
        file.write_text(POLICY.to_json())
        policy = InitPolicy.load(file)
    assert policy == POLICY

    model = Detector()
    receipt = apply_policy(model, policy, seed=0)
    print(receipt.plan)
    print(f"scores start at a probability of {model.scores.bias.sigmoid().item():.3f}")
    return model


if __name__ == "__main__":
    main()
