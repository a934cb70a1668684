"""Input from outside: whatever a file holds, it is read, or refused by an error of ours."""

import copy
import json
import random
import time
import tracemalloc

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from torch_initpolicy import InitPolicy, Rule, apply_policy, initializers, match, presets
from torch_initpolicy.errors import InitPolicyError
from torch_initpolicy.integrations.safetensors import load, receipt_in
from torch_initpolicy.planning.plan import Plan, Receipt

HOSTILE = [
    None, True, 0, -1, 10**400, 1.5, -1e308, "", "x" * 1000, "\ud800", "Normal", "(a+)+$", "[", "*",
    [], {}, [[]], {"class": "Normal"}, {"class": "Not"}, {"class": []}, {"float": "inf"},
    {"dtype": "float99"}, {"function": "os.system"}, {"preset": "constant"}, {"class": "Rule"},
]  # fmt: skip

LETTERS = '{}[]",:\0\ud800'


def documents():
    """What may be read, with texts to start from."""
    policy = InitPolicy(
        [
            Rule(match.name("a.*", regex="a(b|c)+") & ~match.role("bias"), initializers.Zeros()),
            Rule(
                match.meets("relu") | match.kind("Conv2d"), initializers.Normal(0.02), note="note"
            ),
        ]
    ).otherwise(presets.auto())
    receipt = apply_policy(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), seed=0)
    return {
        "policy": (InitPolicy.from_json, policy.to_json()),
        "plan": (Plan.from_json, receipt.plan.to_json()),
        "receipt": (Receipt.from_json, receipt.to_json()),
    }


def places(data):
    """Every place in nested data, as a container and a key."""
    found, left = [], [data]
    while left:
        holder = left.pop()
        keys = range(len(holder)) if isinstance(holder, list) else list(holder)
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], (list, dict)):
                left.append(holder[key])
    return found


def changed(data, rng):
    """Data with some places changed at random."""
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, 3)):
        holder, key = rng.choice(places(data))
        what = rng.random()
        if what < 0.6:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE))
        elif what < 0.8:
            del holder[key]
        elif isinstance(holder, dict):
            holder[rng.choice(["class", "extra", "std", "format"])] = rng.choice(HOSTILE)
        if not data:
            break
    return data


def assert_refused_or_read(read, text):
    """Read a document that may be wrong: it is refused shortly, or what is read can be printed."""
    try:
        value = read(text)
    except InitPolicyError as error:
        assert len(str(error)) < 5000  # noqa: PT017 - either outcome is right
    else:
        assert repr(value)


@pytest.mark.parametrize("kind", ["policy", "plan", "receipt"])
def test_changed_documents(tries, kind):
    """A document with wrong values anywhere is read, or refused; what is read can be printed."""
    rng = random.Random(kind)
    read, text = documents()[kind]
    data = json.loads(text)
    for _ in tries(150):
        assert_refused_or_read(read, json.dumps(changed(data, rng)))


@pytest.mark.parametrize("kind", ["policy", "plan", "receipt"])
def test_torn_documents(tries, kind):
    """A document that ends early, or has other characters in places, is refused or read."""
    rng = random.Random(kind)
    read, text = documents()[kind]
    for _ in tries(100):
        at = rng.randrange(len(text))
        torn = text[:at] if rng.random() < 0.5 else text[:at] + rng.choice(LETTERS) + text[at:]
        assert_refused_or_read(read, torn)


NESTED = {
    "lists": ("[", "]"),
    "objects": ('{"class":"Not","inner":', "}"),
    "steps": ('{"class":"Blocks","initializers":[', "]}"),
}


@pytest.mark.parametrize("kind", ["policy", "plan", "receipt"])
@pytest.mark.parametrize("shape", NESTED)
@pytest.mark.parametrize("depth", [70, 500, 5000, 100_000])
def test_nesting(kind, shape, depth):
    """Nesting of any depth is an error of ours."""
    read, _ = documents()[kind]
    opening, closing = NESTED[shape]
    with pytest.raises(InitPolicyError):
        read('{"format":1,"rules":' + opening * depth + '"x"' + closing * depth + "}")


def test_large_documents():
    """A word of 50 MB is refused within a second and 100 MB; so is a policy of as many objects."""
    for text in (
        '{"format":1,"otherwise":{"class":"' + "x" * 50_000_000 + '"}}',
        '{"format":1,"rules":[' + "[]," * 10_000_000 + "[]]}",
    ):
        tracemalloc.start()
        started = time.process_time()
        with pytest.raises(InitPolicyError):
            InitPolicy.from_json(text)
        took, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert peak < 100e6
        assert took < 5


def test_large_receipts():
    """A word of 50 MB in a receipt costs itself and no more."""
    text = json.dumps({"format": 2, "seed": 0, "plan": {"format": 2, "steps": ["x" * 10_000_000]}})
    tracemalloc.start()
    with pytest.raises(InitPolicyError) as error:
        Receipt.from_json(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 30e6
    assert len(str(error.value)) < 1000


def test_metadata(tmp_path, tries):
    """A safetensors file with any metadata, or torn anywhere, is read or refused."""
    rng = random.Random(0)
    model = nn.Linear(4, 4)
    receipt = apply_policy(model, seed=0)
    path = tmp_path / "model.safetensors"
    for number in tries(30):
        text = receipt.to_json()
        torn = text[: rng.randrange(len(text))]
        save_file(dict(model.state_dict()), path, metadata={"torch_initpolicy.receipt": torn})
        if number % 2:
            content = path.read_bytes()
            path.write_bytes(content[: rng.randrange(len(content))])
        before = [parameter.clone() for parameter in model.parameters()]
        with pytest.raises(InitPolicyError):
            receipt_in(path)
        try:
            load(model, path)
        except InitPolicyError:
            assert all(map(torch.equal, before, model.parameters()))
