"""Packed layers: the product and its gradient, nothing kept, bytes, saving, other number formats, whole models."""

import copy
import io

import pytest
import torch
from helpers.adapt_models import ids_of, small_bert, small_gpt, small_t5
from torch import nn
from torch.nn import functional as F

from minillm import surgery
from minillm.compress.nf4 import dequantize_nf4, quantize_nf4, stored_bits
from minillm.compress.packed_linear import NF4Linear, pack_model, stored_bytes
from minillm.errors import ConfigError, ShapeError
from minillm.nn.attention import StretchedLinear
from minillm.nn.linear import Linear
from minillm.nn.onednn_linear import use_onednn

SHAPES = [(64, 128), (48, 40), (7, 9), (1, 1)]


class Conv1D(nn.Module):
    """As in transformers: the weight is (in, out)."""

    def __init__(self, n_out, n_in):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out, generator=seeded(n_in)))
        self.bias = nn.Parameter(torch.randn(n_out, generator=seeded(n_out)))

    def forward(self, x):
        return x @ self.weight + self.bias


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_layer(d_out=64, d_in=128, bias=False):
    layer = nn.Linear(d_in, d_out, bias=bias)
    for parameter in layer.parameters():
        parameter.data.normal_(generator=seeded(d_out + d_in))
    return layer


def rounded(layer):
    """The layer with its weights through NF4 and back, by the readable functions."""
    plain = copy.deepcopy(layer)
    matrix = surgery.matrix_of(layer).detach()
    surgery.matrix_of(plain).data.copy_(dequantize_nf4(*quantize_nf4(matrix), matrix.shape))
    return plain


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("double", [False, True])
def test_product_and_gradient_are_those_of_the_rounded_matrix(shape, bias, double):
    layer = random_layer(*shape, bias=bias).double()
    packed = NF4Linear(layer, double)
    expected = copy.deepcopy(layer)
    expected.weight.data = packed.weight
    if not double:
        assert torch.equal(packed.weight, rounded(layer).weight)
    x = torch.randn(3, 5, shape[1], generator=seeded(1), dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 5, shape[0], generator=seeded(2), dtype=torch.float64)
    outs = packed(x), expected(x)
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-13, atol=1e-13)
    gradients = [torch.autograd.grad((out * weights).sum(), x)[0] for out in outs]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-13)


def test_the_gradient_is_that_of_finite_differences_and_can_be_differentiated_again():
    packed = NF4Linear(random_layer(6, 10).double())
    x = torch.randn(4, 10, generator=seeded(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(packed, (x,)) and torch.autograd.gradgradcheck(packed, (x,))


def test_no_gradient_goes_to_the_weights():
    packed = NF4Linear(random_layer(bias=True))
    packed(torch.ones(2, 128, requires_grad=True)).sum().backward()
    assert [name for name, _ in packed.named_parameters()] == ["bias"] and packed.bias.grad is not None
    assert not packed.weight.requires_grad


def test_nothing_of_the_size_of_the_matrix_is_kept_for_the_backward_pass():
    packed, x = NF4Linear(random_layer()), torch.ones(3, 128, requires_grad=True)

    def kept_by(compute):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            compute()
        return sizes

    assert max(kept_by(lambda: packed(x)), default=0) == 0
    assert 64 * 128 in kept_by(lambda: F.linear(x, packed.weight)), "the careless way does keep it"


@pytest.mark.parametrize("shape", [*SHAPES, (256, 300)], ids=str)
@pytest.mark.parametrize("double", [False, True])
def test_stored_bytes_are_exact(shape, double, tmp_path):
    packed = NF4Linear(random_layer(*shape), double)
    bits = stored_bits(shape[0] * shape[1], double)
    assert 8 * stored_bytes(packed) == bits
    numbers = {name: tensor for name, tensor in packed.state_dict().items()}
    assert 8 * sum(tensor.untyped_storage().nbytes() for tensor in numbers.values()) == bits
    assert "like" not in numbers and "weight" not in numbers


def test_saved_and_loaded_it_is_the_same_to_the_bit():
    packed = NF4Linear(random_layer(bias=True))
    file = io.BytesIO()
    torch.save(packed.state_dict(), file)
    other = NF4Linear(nn.Linear(128, 64))
    assert not torch.equal(other.weight, packed.weight)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(4, 128, generator=seeded())
    assert torch.equal(other.weight, packed.weight) and torch.equal(other(x), packed(x))
    with pytest.raises(RuntimeError, match="Missing key"):
        NF4Linear(nn.Linear(128, 64), double=False).load_state_dict(packed.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_stored_numbers_outlive_changes_of_the_model_s_format(dtype):
    packed = NF4Linear(random_layer(bias=True))
    before = {name: value.clone() for name, value in packed.state_dict().items() if name != "bias"}
    matrix = packed.matrix()
    packed.to(dtype)
    assert packed.weight.dtype == dtype and packed.bias.dtype == dtype
    for name, value in before.items():
        now = packed.state_dict()[name]
        assert now.dtype == value.dtype and torch.equal(now, value)
    assert torch.equal(packed.matrix(), matrix)
    assert packed(torch.ones(2, 128, dtype=dtype)).dtype == dtype


def test_under_autocast_the_product_is_in_sixteen_bits():
    packed = NF4Linear(random_layer())
    with torch.autocast("cpu", torch.bfloat16):
        out = packed(torch.ones(2, 128))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), packed(torch.ones(2, 128)), rtol=0.02, atol=0.5)


def test_transposed_and_stretched_layers():
    x = torch.randn(2, 16, generator=seeded())
    layers = [Conv1D(48, 16), StretchedLinear(16, 24, False, 1.0, seeded(), stretch=3.0), Linear(16, 8, True, 1.0)]
    for layer in layers:
        packed = NF4Linear(layer, double=False)
        torch.testing.assert_close(packed(x), rounded(layer)(x))
        torch.testing.assert_close(packed.unpacked()(x), packed(x))


def test_misuse_is_named():
    packed = NF4Linear(random_layer())
    with pytest.raises(ConfigError, match="packed already"):
        NF4Linear(packed)
    with pytest.raises(ShapeError, match="width 5, the packed layer"):
        packed(torch.ones(2, 5))
    with pytest.raises(ConfigError, match="no linear layer"):
        NF4Linear(nn.LayerNorm(3))
    broken = random_layer()
    broken.weight.data[3, 4] = torch.nan
    with pytest.raises(ConfigError, match=r"first nan at \[3, 4\]"):
        NF4Linear(broken)


MODELS = {
    "gpt": (lambda: small_gpt(), lambda model: model(ids_of((2, 7)))),
    "llama": (lambda: small_gpt(norm="rms", position="rotary", feed_forward="swiglu", tie_embeddings=False),
              lambda model: model(ids_of((2, 7)))),
    "bert": (lambda: small_bert(), lambda model: model(ids_of((2, 7)))),
    "t5": (lambda: small_t5(), lambda model: model(ids_of((2, 7)), ids_of((2, 5), 1))),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_whole_models(name):
    make, run = MODELS[name]
    model = make().eval()
    out, before = run(model), {key: value.clone() for key, value in model.state_dict().items()}
    expected = copy.deepcopy(model)
    names = surgery.find(model, kinds=surgery.is_linear, exclude="head")
    for layer in names:
        expected.get_submodule(layer).weight.data = NF4Linear(model.get_submodule(layer)).weight
    size = stored_bytes(model)
    operation = pack_model(model)
    assert all(surgery.is_packed(model.get_submodule(layer)) for layer in names)
    torch.testing.assert_close(run(model), run(expected), rtol=1e-12, atol=1e-12)
    assert (run(model) - out).abs().max() > 1e-4
    saved = sum(layer.weight.numel() * 8 - stored_bits(layer.weight.numel()) // 8 for layer in names.values())
    assert stored_bytes(model) == size - saved
    operation.restore()
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(run(model), out)


def test_surgery_sees_a_packed_model():
    model = small_gpt()
    names = list(surgery.find(model, kinds=surgery.is_linear))
    sections = {name: surgery.sections_of(model, name) for name in names}
    pack_model(model)
    assert list(surgery.find(model, kinds=surgery.is_linear)) == names
    assert {name: surgery.sections_of(model, name) for name in names} == sections


def test_the_head_is_left_alone_unless_it_is_named():
    model = small_gpt(tie_embeddings=False)
    pack_model(model)
    assert not surgery.is_packed(model.head)
    other = small_gpt(tie_embeddings=False)
    pack_model(other, "head", exclude=())
    x = ids_of((1, 4))
    assert surgery.is_packed(other.head) and other(x).shape == model(x).shape


def test_a_model_that_cannot_be_packed_is_left_as_it_was():
    model = small_gpt()
    list(surgery.find(model, "down").values())[-1].weight.data[0, 0] = torch.inf
    before = [type(module) for module in model.modules()]
    with pytest.raises(ConfigError, match="not finite"):
        pack_model(model)
    assert [type(module) for module in model.modules()] == before
    with pytest.raises(ConfigError, match="candidates are"):
        pack_model(model, "queries")
    tied = nn.ModuleDict({"table": nn.Embedding(4, 3), "out": nn.Linear(3, 4, bias=False)})
    tied["out"].weight = tied["table"].weight
    with pytest.raises(ConfigError, match="out shares its matrix"):
        pack_model(tied)
    packed = small_gpt()
    pack_model(packed)
    with pytest.raises(ConfigError, match="packed already"):
        pack_model(packed)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_product_and_gradient_are_those_of_bitsandbytes():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = random_layer(64, 128, bias=True)
    theirs = bitsandbytes.nn.Linear4bit(
        128, 64, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4"
    )
    theirs.load_state_dict(layer.state_dict())
    theirs = theirs.to("cpu")
    x = torch.randn(4, 128, generator=seeded(), requires_grad=True)
    outs = theirs(x), NF4Linear(layer)(x)
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(out.square().sum(), x)[0] for out in outs]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_packed_layers_stay_as_they_are_when_the_rest_gets_a_faster_product():
    model = small_gpt(tie_embeddings=False).float()
    pack_model(model)
    ids = ids_of((2, 5))
    expected = model(ids)
    use_onednn(model, anyway=True)
    assert torch.allclose(model(ids), expected, atol=1e-4)
