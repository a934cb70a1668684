"""Optimizer groups: who shares a learning rate and a weight decay, and why."""

import pytest
import torch
from torch import nn

from tests.versions import needs_fsdp_on_cpu, needs_muon
from torch_initpolicy import Plan, apply_policy, plan_policy
from torch_initpolicy.errors import PlanError, PolicyError, UnknownNameError


class Block(nn.Module):
    """A residual block with a norm, a packed projection and a gain."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        """Attend with one head."""
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.gamma * self.proj(mixed)


class Model(nn.Module):
    """Names that say nothing: an embedding called weight, a matrix called bias."""

    def __init__(self, width=16):
        super().__init__()
        self.bias_net = nn.Embedding(11, width)
        self.position = nn.Parameter(torch.zeros(1, 8, width))
        self.block = Block(width)
        self.bias = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.norm_layer = nn.Linear(width, 11, bias=False)

    def forward(self, tokens):
        """Predict tokens."""
        x = self.bias_net(tokens) + self.position
        return self.norm_layer(torch.relu(self.block(x) @ self.bias))


TOKENS = torch.zeros(2, 8, dtype=torch.int64)
MATRICES = {"bias", "block.qkv.weight", "block.proj.weight", "norm_layer.weight"}


def plan(model=None):
    """Plan for the model above."""
    return plan_policy(model or Model(), example_inputs=TOKENS)


def names(groups, keep):
    """Collect the names in the groups that `keep` keeps."""
    return {name for group in groups if keep(group) for name in group["names"]}


class TestDecay:
    """What is decayed follows from roles."""

    def test_matrices_alone(self):
        """Matrices are decayed; norms, biases, gains, positions and embeddings are not."""
        model = Model()
        groups = plan(model).param_groups(lr=1e-3, weight_decay=0.1)

        assert names(groups, lambda group: group["weight_decay"] == 0.1) == MATRICES
        assert names(groups, lambda group: True) == dict(model.named_parameters()).keys()

    def test_parameters_stand_in_one_group_each(self):
        """Every parameter is in one group, beside its name."""
        model = Model()
        groups = plan(model).param_groups(lr=1e-3)
        listed = [p for group in groups for p in group["params"]]

        assert len(listed) == len(set(listed)) == len(list(model.parameters()))
        for group in groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                assert model.get_parameter(name) is parameter

    def test_reason(self):
        """Each group says by which roles it is what it is."""
        reasons = {
            group["weight_decay"]: group["reason"]
            for group in plan().param_groups(lr=1e-3, weight_decay=0.1)
        }

        assert reasons[0.1] == "weight: decayed"
        for role in ("embedding", "position", "norm weight", "norm bias", "bias"):
            assert f"{role}: not decayed" in reasons[0.0]

    def test_name_and_dimensions_would_be_wrong(self):
        """The tests by name and by number of axes that people use err on this model."""
        model = Model()
        by_ndim = {name for name, p in model.named_parameters() if p.ndim >= 2}
        by_name = {
            name
            for name, _ in model.named_parameters()
            if not any(word in name for word in ("bias", "norm"))
        }

        assert by_ndim != MATRICES
        assert by_name != MATRICES


class TestMuon:
    """Hidden matrices are orthogonalised, all else is left to AdamW."""

    def test_hidden_matrices(self):
        """Neither embedding nor head, and nothing that is no matrix."""
        groups = plan().param_groups("muon", lr=0.02, weight_decay=0.1, adamw_lr=3e-4)

        hidden = names(groups, lambda group: group["algorithm"] == "muon")
        assert hidden == MATRICES - {"norm_layer.weight"}
        assert {group["lr"] for group in groups if group["algorithm"] == "adamw"} == {3e-4}

    def test_rate(self):
        """Without a parametrisation every hidden matrix gets the rate that was asked for.

        torch.optim.Muon itself multiplies by the root of a tall matrix' proportions.
        """
        groups = plan().param_groups("muon", lr=0.02, adamw_lr=3e-4)

        assert {group["lr"] for group in groups if group["algorithm"] == "muon"} == {0.02}

    def test_packed(self):
        """What is packed is said along its axis, for an optimizer that takes tensors apart."""
        groups = plan().param_groups("muon", lr=0.02)

        packed = {tuple(g["names"]): g["packed"] for g in groups if "packed" in g}
        assert packed == {("block.qkv.weight",): (0, (16, 16, 16))}

    @needs_muon
    def test_interleaved(self):
        """Where q, k and v alternate by heads no view splits them: the reason says so."""

        class Interleaved(Block):
            def forward(self, x):
                q, k, v = self.qkv(self.norm(x)).unflatten(-1, (2, 3, -1)).transpose(1, 2).unbind(3)
                mixed = nn.functional.scaled_dot_product_attention(q, k, v)
                return x + self.gamma * self.proj(mixed.transpose(1, 2).flatten(2))

        model = Model()
        model.block = Interleaved(16)
        groups = plan(model).param_groups("muon", lr=0.1)
        held = {name: group for group in groups for name in group["names"]}

        assert "packed" not in held["block.qkv.weight"]
        assert "3 interleaved and taken as one" in held["block.qkv.weight"]["reason"]

    def test_steps(self):
        """torch.optim takes both kinds of groups, and moves every parameter."""
        model = Model()
        groups = plan(model).param_groups("muon", lr=0.02, adamw_lr=1e-2)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizers = [
            kind([group for group in groups if group["algorithm"] == name])
            for name, kind in (("muon", torch.optim.Muon), ("adamw", torch.optim.AdamW))
        ]
        model(TOKENS).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()

        assert [n for n, p in model.named_parameters() if torch.equal(p, before[n])] == []

    def test_experts(self):
        """Stacked experts are matrices to Dion; torch's Muon takes two axes alone."""
        model = Experts()
        chosen = {
            name: names(
                plan_policy(model).param_groups(name, lr=0.1),
                lambda group, name=name: group["algorithm"] == name,
            )
            for name in ("muon", "dion")
        }

        assert chosen == {"muon": {"inner.weight"}, "dion": {"inner.weight", "experts"}}

    def test_says_what_is_packed(self):
        """The reason says that a parameter holds several matrices."""
        reasons = [group["reason"] for group in plan().param_groups("muon", lr=0.1)]

        assert any("hidden matrices, 3 packed" in reason for reason in reasons)

    def test_ends(self):
        """The layer that reads the input and the one that makes the output are AdamW's."""
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        model.append(nn.Linear(8, 2))
        groups = plan_policy(model).param_groups("muon", lr=0.1)

        assert names(groups, lambda group: group["algorithm"] == "muon") == {"2.weight"}


class Experts(nn.Module):
    """Four experts in one tensor, between two layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Embedding(9, 16)
        self.inner = nn.Linear(16, 16)
        self.experts = nn.Parameter(torch.randn(4, 16, 16))
        self.head = nn.Linear(16, 5)
        self.example_input_array = torch.zeros(2, 8, dtype=torch.int64)

    def forward(self, x):
        """Let every expert answer for its own part of the batch."""
        hidden = torch.relu(self.inner(self.first(x))).reshape(4, -1, 16)
        return self.head(torch.relu(torch.bmm(hidden, self.experts)))


class TestModels:
    """Models that are not plain."""

    def test_frozen(self):
        """A frozen parameter is in no group."""
        model = Model()
        model.block.requires_grad_(requires_grad=False)
        listed = names(plan(model).param_groups(lr=1e-3), lambda group: True)

        assert listed == {"bias_net.weight", "position", "bias", "norm_layer.weight"}

    def test_tied(self):
        """A tied parameter stands in one group, under its canonical name."""
        model = Model()
        model.norm_layer.weight = model.bias_net.weight
        groups = plan(model).param_groups(lr=1e-3, weight_decay=0.1)
        held = [name for group in groups for name in group["names"]]

        assert held.count("bias_net.weight") == 1
        assert "norm_layer.weight" not in held
        torch.optim.AdamW(groups)

    def test_parametrised(self):
        """What stands behind a parametrisation is trained; as no plain matrix it goes to AdamW."""
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
        nn.utils.parametrizations.weight_norm(model[2])
        groups = plan_policy(model).param_groups("muon", lr=0.1)
        parts = list(model[2].parametrizations.weight.parameters())
        others = [p for group in groups if group["algorithm"] == "adamw" for p in group["params"]]

        assert all(any(part is p for p in others) for part in parts)

    def test_receipt(self):
        """A receipt knows the groups of its plan."""
        model = Model()
        receipt = apply_policy(model, seed=0, example_inputs=TOKENS)

        assert receipt.param_groups("sgd", lr=0.1) == receipt.plan.param_groups("sgd", lr=0.1)

    def test_plan_from_a_file(self):
        """A plan that was read from a file needs to be told the model, and is right about it."""
        model = Model()
        made = plan(model)
        read = Plan.from_json(made.to_json())

        with pytest.raises(PlanError, match="for which model"):
            read.param_groups(lr=0.1)
        assert read.param_groups(lr=0.1, model=model) == made.param_groups(lr=0.1)

    @pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}])
    def test_fused_and_foreach(self, options):
        """Fused and foreach optimizers take the groups, and their state survives a round trip."""
        model = Model()
        optimizer = torch.optim.AdamW(plan(model).param_groups(lr=1e-2), **options)
        model(TOKENS).sum().backward()
        optimizer.step()
        other = torch.optim.AdamW(plan(model).param_groups(lr=1e-2), **options)
        other.load_state_dict(optimizer.state_dict())

        assert [g["lr"] for g in other.param_groups] == [g["lr"] for g in optimizer.param_groups]


class TestErrors:
    """What cannot be asked."""

    def test_unknown_optimizer(self):
        """The message lists the optimizers that are known."""
        with pytest.raises(UnknownNameError, match="adamw"):
            plan().param_groups("shampo", lr=0.1)

    @pytest.mark.parametrize("name", ["lr", "weight_decay", "eps", "adamw_lr"])
    def test_negative(self, name):
        """A negative number is refused by name."""
        with pytest.raises(PolicyError, match=name):
            plan().param_groups(**{"lr": 0.1, name: -1.0})


class TestTrainers:
    """Those who make and drive optimizers take the groups."""

    @pytest.mark.filterwarnings("ignore")  # of Lightning's own, about torch
    def test_lightning(self):
        """Lightning's trainer trains by them."""
        lightning = pytest.importorskip("lightning")

        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = Model()

            def training_step(self, batch):
                return self.net(batch).square().mean()

            def configure_optimizers(self):
                return torch.optim.AdamW(plan(self.net).param_groups(lr=1e-2))

        module = Module()
        before = module.net.bias.detach().clone()
        trainer = lightning.Trainer(
            max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader([TOKENS[0]] * 2, batch_size=2))

        assert not torch.equal(module.net.bias, before)

    def test_transformers(self, tmp_path):
        """So does that of transformers, which takes the optimizer ready made."""
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=11, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0,
                eos_token_id=0,
            )
        )  # fmt: skip
        before = model.transformer.wpe.weight.detach().clone()
        optimizer = torch.optim.AdamW(plan_policy(model).param_groups(lr=1e-2))
        arguments = transformers.TrainingArguments(
            tmp_path, max_steps=1, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True
        )
        data = [{"input_ids": TOKENS[0], "labels": TOKENS[0]}] * 8
        transformers.Trainer(
            model, arguments, train_dataset=data, optimizers=(optimizer, None)
        ).train()

        assert not torch.equal(model.transformer.wpe.weight, before)

    @needs_fsdp_on_cpu
    def test_fsdp2(self):
        """Sharded parameters are handed out as they are held."""
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            mesh = torch.distributed.init_device_mesh("cpu", (1,))
            model = Model()
            made = plan(model)
            for module in (model.block, model):
                torch.distributed.fsdp.fully_shard(module, mesh=mesh)
            groups = made.param_groups(lr=1e-2, weight_decay=0.1)
            optimizer = torch.optim.AdamW(groups)
            model(TOKENS).square().mean().backward()
            optimizer.step()

            kinds = {type(p) for group in groups for p in group["params"]}
            assert kinds == {torch.distributed.tensor.DTensor}
            assert names(groups, lambda group: group["weight_decay"] > 0) == MATRICES
        finally:
            torch.distributed.destroy_process_group()
