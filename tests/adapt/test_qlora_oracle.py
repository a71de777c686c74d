"""QLoRA as its authors run it, peft on bitsandbytes' Linear4bit: the same bytes, the same sums, the same steps."""

import copy

import pytest
import torch
from torch import nn

from minillm import surgery
from minillm.adapt.adapted import adapt
from minillm.adapt.lora import LoraConfig
from minillm.compress.packed_linear import pack_model

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore"),  # theirs are not our concern
]
ALPHA, RANK = 5.0, 3


def full_model():
    """Two layers in fp32; their rows are whole blocks of 64, since bitsandbytes' product on CPUs wants that."""
    layers = nn.Sequential(nn.Linear(128, 192), nn.GELU(), nn.Linear(192, 64, bias=False))
    generator = torch.Generator().manual_seed(0)
    for parameter in layers.parameters():
        parameter.data.normal_(0.0, 0.05, generator=generator)
    return layers


def numbers(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_their_hands(model, double):
    """peft's LoRA on the layers as bitsandbytes packs them."""
    peft, nn4 = pytest.importorskip("peft"), pytest.importorskip("bitsandbytes.nn")
    packed = copy.deepcopy(model)
    for place in ("0", "2"):
        layer = model.get_submodule(place)
        theirs = nn4.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=torch.float32,
            compress_statistics=double, quant_type="nf4",
        )  # fmt: skip
        theirs.load_state_dict(layer.state_dict())
        packed[int(place)] = theirs.to("cpu")                      # this packs
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0", "2"], lora_dropout=0.0)
    return peft.get_peft_model(packed, config)


def both(double):
    """Ours and theirs with the same A and B, of which B is not zero."""
    ours, hosted = full_model(), in_their_hands(full_model(), double)
    pack_model(ours, double=double)
    adapted = adapt(ours, LoraConfig(rank=RANK, alpha=ALPHA, targets=("0", "2")))
    pairs = []
    for place in ("0", "2"):
        layer, branch = hosted.base_model.model.get_submodule(place), ours.get_submodule(place).branches["default"]
        for name, theirs in (("A", layer.lora_A), ("B", layer.lora_B)):
            mine, other = getattr(branch["whole"], name), theirs["default"].weight
            value = numbers(mine.shape, len(pairs)) * 0.1
            mine.data.copy_(value)
            other.data.copy_(value)
            pairs.append((mine, other))
    return adapted, hosted, pairs


@pytest.mark.parametrize("double", [False, True])
def test_the_packed_bytes_are_the_same(double):
    adapted, hosted, _ = both(double)
    for place in ("0", "2"):
        theirs = hosted.base_model.model.get_submodule(place).base_layer.weight
        ours = surgery.unwrapped(adapted.model.get_submodule(place))
        assert torch.equal(ours.packed, theirs.data.view(-1))
        if not double:
            assert torch.equal(ours.absmax, theirs.quant_state.absmax)
            continue
        state, largest = theirs.quant_state, float(ours.largest.max())
        small = ours.codes.int() - state.absmax.int()              # (n,)
        assert (small != 0).float().mean() < 0.05, "theirs looks levels up in a table of 2^16 steps, see test_nf4"
        blocks = state.state2.absmax.repeat_interleave(256)[: len(small)]
        scales = state.state2.code[state.absmax.int()] * blocks + state.offset
        torch.testing.assert_close(ours.scales(), scales, rtol=0.0, atol=6e-3 * largest)


@pytest.mark.parametrize("double", [False, True])
def test_outputs_and_gradients_are_equal(double):
    adapted, hosted, pairs = both(double)
    x = numbers((5, 128), 9)
    for model in (adapted.model, hosted):
        model(x).square().sum().backward()
    torch.testing.assert_close(adapted.model(x), hosted(x), rtol=1e-5, atol=2e-4 if double else 2e-5)
    for mine, other in pairs:
        largest = float(other.grad.abs().max())
        assert largest > 0
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=(4e-4 if double else 4e-5) * largest)
    trained = {id(parameter) for parameter in hosted.parameters() if parameter.requires_grad}
    assert trained == {id(other) for _, other in pairs}


def test_ten_steps_of_training_end_at_the_same_numbers():
    adapted, hosted, pairs = both(True)
    x, y = numbers((40, 128), 10), numbers((40, 64), 11)
    before = {name: value.clone() for name, value in hosted.state_dict().items() if value.dtype == torch.uint8}
    ours, theirs = zip(*pairs, strict=True)
    for model, parameters in ((adapted.model, ours), (hosted, theirs)):
        optimizer = torch.optim.SGD(parameters, lr=0.05)
        for _ in range(10):
            loss = (model(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    after = hosted.state_dict()
    assert before and all(torch.equal(after[name], value) for name, value in before.items()), "nor are theirs trained"
