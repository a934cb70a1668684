"""Apply: what is written where, that nothing else changes, and that errors change nothing."""

import math
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.writing.helpers import EACH, fill, layer, pairs, same, state
from torch_initpolicy.errors import ApplyError
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.initializers import (
    Blocks,
    Constant,
    Dirac,
    From,
    Keep,
    Normal,
    Ones,
    Orthogonal,
    Zeros,
    he_normal,
    xavier_normal,
)
from torch_initpolicy.writing import apply as applying
from torch_initpolicy.writing.apply import apply_steps
from torch_initpolicy.writing.drawing import Drawing
from torch_initpolicy.writing.shards import multiply_, whole


def tied():
    """Two names for one tensor, and a tensor of its own."""
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 8)})
    model["b"].weight = model["a"].weight
    return model


def grown():
    """A model with a bit of everything: norms, embeddings, recurrence, packed projections."""
    return nn.ModuleDict(
        {
            "embedding": nn.Embedding(50, 16, padding_idx=3),
            "convolution": nn.Conv2d(3, 8, 3, groups=1),
            "norm": nn.BatchNorm2d(8),
            "lstm": nn.LSTM(16, 8),
            "attention": nn.MultiheadAttention(16, 2),
            "head": nn.Linear(16, 4),
        }
    )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize(
    "initializer", [Normal(0.05), Constant(0.3), Orthogonal(), xavier_normal()], ids=str
)
def test_floats_of_one_byte(dtype, initializer):
    """They hold what is drawn in single precision, rounded, and multiplied where a step says so."""
    from torch_initpolicy import plan_policy

    wide, narrow = layer(40, 30), layer(40, 30).to(dtype)
    for model in (wide, narrow):
        plan = plan_policy(model, initializer, only=["weight"], keep="nothing")
        apply_steps(plan.pairs(), Drawing(0), model=model)
    assert torch.equal(narrow.weight.float(), wide.weight.to(dtype).float())

    with torch.no_grad():
        multiply_([whole(narrow.weight)], (2.0, 0.5))
    expected = wide.weight.to(dtype).float() * torch.tensor([2.0] * 20 + [0.5] * 20)[:, None]
    assert torch.equal(narrow.weight.float(), expected.to(dtype).float())


class TestPlaces:
    """Where values land."""

    def test_constants_need_no_stream(self):
        """What is one value everywhere is filled without drawing a block."""
        model = grown()
        written = apply_steps(pairs(model, lambda site: Constant(0.25)), Drawing(0))

        assert written.blocks == 0
        assert model["head"].weight.eq(0.25).all()

    def test_packed(self):
        """Packed blocks have their own initializers, drawn in one stream or none."""
        model = nn.LSTM(4, 8)
        gates = Blocks((Zeros(), Ones(), Zeros(), Normal(1.0)))
        fill(model, gates, "bias_ih_l0")
        blocks = model.bias_ih_l0.view(4, 8)

        assert blocks[:3].tolist() == [[0.0] * 8, [1.0] * 8, [0.0] * 8]
        assert blocks[3].std() > 0.3

    def test_unequal_packs(self):
        """Packed matrices of different size have the standard deviation of their own fans."""
        model = layer(800, 512)
        (site, step), *_ = pairs(model, lambda site: xavier_normal())
        axes = Axes((1,), (0,), blocks=(512, 144, 144))
        apply_steps([(site, replace(step, facts=replace(step.facts, axes=axes)))], Drawing(0))
        found = [part.std().item() for part in model.weight.split([512, 144, 144])]
        expected = [math.sqrt(2 / (512 + rows)) for rows in (512, 144, 144)]

        assert found == pytest.approx(expected, rel=0.01)

    def test_padding(self):
        """The padding row of an embedding is zero, whatever fills the others."""
        for initializer in (Normal(1.0), Constant(2.0), Orthogonal(), From(nn.init.normal_)):
            model = nn.Embedding(50, 16, padding_idx=3)
            fill(model, initializer)

            assert model.weight[3].eq(0).all()
            assert model.weight.ne(0).any(1).sum() == 49

    def test_ties(self):
        """A tied tensor is one site, written once, and stays tied."""
        model = tied()
        written = fill(model, Normal(1.0))

        assert written.names == ("a.weight", "a.bias", "b.bias", "c.weight", "c.bias")
        assert model["a"].weight is model["b"].weight

    def test_keep(self):
        """What is kept is not touched."""
        model = grown()
        before = state(model)
        written = fill(model, Keep())

        assert written.names == ()
        assert same(before, state(model))

    def test_statistics(self):
        """New weights of a norm reset its running statistics; kept ones keep them."""
        model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
        for _ in range(3):
            model(torch.randn(8, 4))
        kept = state(model[1])
        fill(model, Ones(), "0.weight", "0.bias")

        assert same(state(nn.BatchNorm1d(4)) | {"bias": torch.ones(4)}, state(model[0]))
        assert same(kept, state(model[1]))

    @pytest.mark.parametrize(("written", "reset"), [("0.weight", True), ("2.weight", False)])
    def test_statistics_without_weights(self, written, reset):
        """A norm without weights is reset together with the weights before it."""
        model = nn.Sequential(layer(4, 4), nn.BatchNorm1d(4, affine=False), layer(4, 4))
        model(torch.randn(8, 4))
        fill(model, Normal(1.0), written, model=model)

        assert same(state(nn.BatchNorm1d(4, affine=False)), state(model[1])) == reset

    @pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0,)], ids=str)
    def test_empty(self, shape):
        """Tensors without elements are written without complaint."""
        model = nn.Module()
        model.weight = nn.Parameter(torch.empty(shape))

        assert fill(model, Normal(1.0)).names == ("weight",)

    def test_scalar(self):
        """A tensor without axes is one element."""
        model = nn.Module()
        model.scale = nn.Parameter(torch.tensor(0.0))
        fill(model, Normal(1.0))

        assert model.scale != 0

    def test_dirac(self):
        """A structured initializer is written as it is built."""
        model = nn.Conv2d(3, 3, 3, bias=False)
        fill(model, Dirac())

        assert torch.equal(nn.init.dirac_(torch.empty(3, 3, 3, 3)), model.weight)

    @pytest.mark.parametrize("threads", [1, 2])
    def test_within_modes(self, threads):
        """Inference mode, a default device and gradients around the call change nothing."""
        models = [layer(700, 700) for _ in range(2)]
        fill(models[0], Normal(1.0), threads=threads)
        with torch.inference_mode(), torch.device("meta"):
            fill(models[1], Normal(1.0), threads=threads)

        assert same(state(models[0]), state(models[1]))

    def test_graph(self):
        """A parameter used in a graph may be written; it stays a leaf that requires gradients."""
        model = layer(5, 5)
        loss = model(torch.ones(1, 5)).sum()
        fill(model, Normal(1.0))

        assert model.weight.is_leaf
        assert model.weight.requires_grad
        assert loss.requires_grad


class TestCallables:
    """Code of the user runs first, aside, and with generators of its own."""

    @pytest.mark.parametrize("module", [torch, nn.init], ids=["torch", "init"])
    def test_global_generator(self, module):
        """A function that draws from the global generator draws from a stream, and it stays."""
        draw = {torch: lambda t: t.copy_(torch.randn_like(t)), nn.init: nn.init.normal_}[module]
        models = [layer(30, 30) for _ in range(2)]
        for model in models:
            before = torch.random.get_rng_state()
            fill(model, From(draw))
            assert torch.equal(before, torch.random.get_rng_state())
            torch.rand(1)

        assert same(state(models[0]), state(models[1]))

    def test_sees_values(self):
        """A function gets what the tensor holds now, and changes a copy until all is well."""
        model = layer(3, 4)
        before = model.weight.detach().clone()
        fill(model, From(lambda tensor: tensor.mul_(2)))

        assert torch.equal(2 * before, model.weight)

    def test_half(self):
        """A function that knows no half precision works on float32, which is rounded."""
        model = layer(8, 8, dtype=torch.bfloat16)
        fill(model, From(nn.init.orthogonal_))

        torch.testing.assert_close(
            model.weight.float() @ model.weight.float().t(), torch.eye(8), rtol=0, atol=0.02
        )

    def test_own_class(self):
        """An initializer class of the user is called with axes and a generator."""

        class Mine:
            def __call__(self, tensor, axes=None, *, generator=None):
                assert axes == Axes((1,), (0,))
                tensor.normal_(generator=generator)

        models = [layer(8, 8) for _ in range(2)]
        for model in models:
            fill(model, From(Mine()))

        assert same(state(models[0]), state(models[1]))


def _raises(tensor):
    tensor.fill_(7.0)
    raise ZeroDivisionError("no luck")


def _widens(tensor):
    tensor.data = tensor.double()


def _spoils(tensor):
    tensor.fill_(1.0)
    tensor[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])


def _outside(tensor):
    return torch.zeros_like(tensor)


class TestErrors:
    """On any error the model is exactly as before, and the error names every case."""

    @pytest.mark.parametrize(
        ("broken", "words"),
        [
            pytest.param(From(_raises), "no luck", id="raises"),
            pytest.param(From(_outside), "must fill its argument in place", id="not in place"),
            pytest.param(
                From(lambda tensor: tensor.resize_(2, 2)),
                r"made of shape \(2, 2\), float32, on cpu of a tensor of shape \(4, 16\)",
                id="resizes",
            ),
            pytest.param(
                From(_widens), r"made of shape \(4, 16\), float64, on cpu of a", id="other dtype"
            ),
            pytest.param(
                From(_spoils),
                r"\(Linear, \(4, 16\)\): From\(\S+_spoils\) gives 3 of 64 elements that are not",
                id="not finite",
            ),
            pytest.param(he_normal(gain="meets"), "is known in a plan", id="unresolved"),
            pytest.param(Blocks((Zeros(), Ones())), "2 initializers for 0", id="no blocks"),
        ],
    )
    def test_atomic(self, broken, words):
        """One site that fails, the last one, keeps all others from being written."""
        model = grown()
        before = state(model)
        chosen = pairs(model, lambda site: broken if site.name == "head.weight" else Normal(1.0))

        with pytest.raises(ApplyError, match=words) as error:
            apply_steps(chosen, Drawing(0))

        assert "'head.weight'" in str(error.value)
        assert same(before, state(model))

    @pytest.mark.parametrize(
        "initializer",
        [
            pytest.param(Constant(1e5), id="elementwise"),
            pytest.param(Normal(3e4), id="the tails of a distribution"),
            pytest.param(Orthogonal(1e6), id="structured"),
            pytest.param(From(nn.init.constant_, val=1e5), id="function"),
        ],
    )
    def test_beyond_the_dtype(self, initializer):
        """What a half precision tensor cannot hold is refused, though float32 can."""
        model = layer(30, 40, dtype=torch.float16)
        before = state(model)

        with pytest.raises(ApplyError, match=r"'weight'.*float16"):
            fill(model, initializer)

        assert same(before, state(model))
        fill(layer(30, 40), initializer)

    def test_cause(self):
        """The exception of a user's function is the cause of the cause."""
        with pytest.raises(ApplyError) as error:
            fill(layer(3, 3), From(_raises))

        assert isinstance(error.value.__cause__.__cause__, ZeroDivisionError)

    def test_all_cases(self):
        """Every site that fails is listed."""
        with pytest.raises(ApplyError) as error:
            fill(grown(), From(_raises))

        assert str(error.value).count("no luck") == 10
        assert "... and 5 more" in str(error.value)

    def test_meta(self):
        """A model without memory is told what to call instead."""
        with pytest.raises(ApplyError, match="materialize"):
            fill(layer(device="meta"), Normal(1.0))

    def test_inference(self):
        """A model made in inference mode cannot be written, and says so."""
        with torch.inference_mode():
            model = grown()

        with pytest.raises(ApplyError, match="make the model outside it"):
            fill(model, Normal(1.0))

    def test_other_shape(self):
        """A step for another shape asks for a new plan."""
        (site, step), *_ = pairs(layer(3, 4), lambda site: Normal(1.0))

        with pytest.raises(ApplyError, match="make a new plan"):
            apply_steps([(site, replace(step, shape=(4, 3)))], Drawing(0))

    def test_integers(self):
        """Integer parameters hold nothing that could be drawn."""
        model = nn.Module()
        model.table = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)

        with pytest.raises(ApplyError, match="holds no real or complex numbers"):
            fill(model, Zeros())

    @pytest.mark.parametrize("threads", [0, -1, 1.5, "two", True], ids=repr)
    def test_threads(self, threads):
        """What is no number of threads is refused before anything is written."""
        model = layer(3, 4)
        before = state(model)

        with pytest.raises(ApplyError, match="threads is a number from 1 on"):
            fill(model, Normal(1.0), threads=threads)

        assert same(before, state(model))

    @pytest.mark.parametrize("device", ["cuda:99", "meta", "nonsense", 2.5], ids=repr)
    def test_devices(self, device):
        """A device that is not there, or holds no numbers, is refused before the first write."""
        model = layer(3, 4)
        before = state(model)

        with pytest.raises(ApplyError, match=r"draw_on='\S+' is no device that can draw here"):
            fill(model, Normal(1.0), draw_on=device)

        assert same(before, state(model))

    def test_seed(self):
        """A seed that does not fit is refused before anything is written."""
        model = layer(3, 4)
        before = state(model)

        with pytest.raises(ApplyError, match="64 bits"):
            fill(model, Normal(1.0), seed=2**64)

        assert same(before, state(model))


class TestUntouched:
    """Everything that is not asked for stays as it is."""

    def test_model(self):
        """Hooks, training flags, gradients, `requires_grad` and memory stay; only values change."""
        model = grown()
        model["norm"].eval()
        model["head"].weight.requires_grad_(requires_grad=False)
        model["head"].bias.grad = torch.ones(4)
        model["norm"].register_forward_hook(lambda *_: None)

        def facts():
            return [
                [(m.training, len(m._forward_hooks)) for m in model.modules()],
                [(id(p), p.data_ptr(), p.requires_grad, p.grad) for p in model.parameters()],
            ]

        before = facts()
        fill(model, Normal(1.0))

        assert before == facts()

    def test_cores(self):
        """Torch computes on as many cores as before, in this thread and in new ones."""
        before = torch.get_num_threads()
        fill(layer(2000, 2000), Normal(1.0), threads=3)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()

        assert [before, before] == [torch.get_num_threads(), *seen]

    def test_cores_after_an_error(self, monkeypatch):
        """Also where a task raises."""
        before = torch.get_num_threads()

        def broken(job):
            raise MemoryError

        monkeypatch.setattr(applying, "tasks_of", broken)
        with pytest.raises(ApplyError, match="nothing was written"):
            fill(layer(2000, 2000), Normal(1.0), threads=3)

        assert before == torch.get_num_threads()

    @EACH
    def test_generators(self, initializer):
        """Torch's global generator stays where it is."""
        model = layer()
        before = torch.random.get_rng_state()
        fill(model, initializer)

        assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestDevices:
    """The same code on CUDA."""

    @EACH
    def test_same_bits_from_the_cpu(self, initializer):
        """`draw_on="cpu"` gives a model on CUDA the bits of one on the CPU."""
        model, there = layer(), layer(device="cuda")
        fill(model, initializer)
        fill(there, initializer, draw_on="cpu")

        assert torch.equal(model.weight, there.weight.cpu())

    @EACH
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_repeats(self, initializer, dtype):
        """Drawn on CUDA, the same seed gives the same bits."""
        models = [layer(device="cuda", dtype=dtype) for _ in range(2)]
        for model in models:
            fill(model, initializer)

        assert same(state(models[0]), state(models[1]))

    def test_moments(self):
        """What CUDA draws has the moments that were asked for."""
        model = layer(2000, 2000, device="cuda")
        written = fill(model, Normal(0.5))

        assert written.devices == ("cuda",)
        assert model.weight.std().item() == pytest.approx(0.5, rel=5e-3)
