"""The callback for Lightning; skipped where Lightning is not installed."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torch_initpolicy import apply_policy, audit_signal

lightning = pytest.importorskip("lightning", reason="the extra lightning is not part of dev")

pytestmark = pytest.mark.filterwarnings("default")  # Lightning's own advice on workers and loggers


class Module(lightning.LightningModule):
    """A module that learns nothing: its steps have no size."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return self(batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.fixture
def fit(tmp_path):
    """Fit a module for one step, with a callback, from scratch or from a checkpoint."""

    def fit(module, callback, checkpoint=None, logger=False):
        trainer = lightning.Trainer(
            max_steps=1,
            accelerator="cpu",
            logger=logger,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[callback],
        )
        data = DataLoader(TensorDataset(torch.zeros(2, 4)))
        trainer.fit(module, data, ckpt_path=checkpoint)
        return trainer

    return fit


@pytest.fixture
def callback():
    """A callback that has not been used."""
    from torch_initpolicy.integrations.lightning import ApplyPolicy

    return ApplyPolicy("he", seed=0)


def is_same(ours, theirs):
    """Say whether two modules have the same weights."""
    return all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_a_fit_starts_from_the_policy(fit, callback):
    """The first fit starts from the policy's weights."""
    module, expected = Module(), Module()
    fit(module, callback)
    apply_policy(expected, "he", seed=0)

    assert callback.receipt.seed == 0
    assert is_same(module, expected)


def test_a_second_fit_goes_on(fit, callback):
    """A second fit with the same callback keeps what the first has learnt."""
    module, trained = Module(), Module()
    fit(module, callback)
    module.load_state_dict(trained.state_dict())

    fit(module, callback)

    assert is_same(module, trained)


def test_a_checkpoint_has_the_last_word(fit, callback, tmp_path):
    """A fit that resumes goes on from the checkpoint's weights."""
    trained, resumed = Module(), Module()
    trainer = fit(trained, lightning.Callback())
    trainer.save_checkpoint(tmp_path / "trained.ckpt")

    fit(resumed, callback, checkpoint=str(tmp_path / "trained.ckpt"))

    assert is_same(resumed, trained)


def test_groups_of_the_optimizer(fit, callback):
    """The receipt is there, with its groups, when a module is asked for its optimizers."""

    class Grouped(Module):
        def configure_optimizers(self):
            return torch.optim.AdamW(callback.receipt.param_groups(lr=0.1, weight_decay=0.5))

    module = Grouped()
    trainer = fit(module, callback)

    decays = [group["weight_decay"] for group in trainer.optimizers[0].param_groups]
    assert decays == [0.5, 0.0]


def test_the_audit_is_logged(fit, callback, tmp_path):
    """What a trainer logs to takes the figures of an audit."""
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Audited(Module):
        def on_fit_start(self):
            signal = audit_signal(self.net, torch.randn(8, 4))
            signal.log_to(self.logger.experiment, self.global_step)

    logger = TensorBoardLogger(tmp_path)
    fit(Audited(), callback, logger=logger)

    logged = EventAccumulator(logger.log_dir).Reload()
    assert logged.Scalars("signal/second/0.weight")[0].value > 0
    assert logged.Scalars("signal/gradient/2.weight")[0].step == 0
