import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minillm.models.gpt import GPT
from minillm.models.registry import model_config
from minillm.nn import onednn_linear as subject
from minillm.nn.attention import SelfAttention
from minillm.nn.linear import Linear
from minillm.nn.onednn_linear import fits_onednn, onednn_linear, onednn_works, use_onednn
from minillm.nn.recurrent import Recurrent

needs_kernel = pytest.mark.skipif(not onednn_works(), reason="torch has no oneDNN product here")


@pytest.fixture(autouse=True)
def small_products_too(monkeypatch):
    monkeypatch.setattr(subject, "SMALLEST", 0)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def values_and_gradients(linear, *inputs):
    leaves = [None if x is None else x.clone().requires_grad_() for x in inputs]
    result = linear(*leaves)
    result.backward(rand(*result.shape, seed=9).to(result.dtype))
    return [result.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


@needs_kernel
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (5,), (0, 5), (1, 1, 5)])
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_a_linear_map(shape, biased):
    inputs = rand(*shape), rand(4, 5, seed=1), rand(4, seed=2) if biased else None
    exact = values_and_gradients(F.linear, *(None if x is None else x.double() for x in inputs))
    for one, other in zip(values_and_gradients(onednn_linear, *inputs), exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@needs_kernel
def test_inputs_that_do_not_lie_side_by_side():
    x, weight = rand(6, 3, 2).transpose(0, 2), rand(6, 4, seed=1).T
    exact = values_and_gradients(F.linear, x.double(), weight.double())
    for one, other in zip(values_and_gradients(onednn_linear, x, weight), exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@needs_kernel
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_needs_no_gradient_gets_none(frozen):
    leaves = [rand(3, 5), rand(4, 5, seed=1), rand(4, seed=2)]
    for place, leaf in enumerate(leaves):
        leaf.requires_grad_(place != frozen)
    onednn_linear(*leaves).sum().backward()
    assert [leaf.grad is None for leaf in leaves] == [place == frozen for place in range(3)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_number_types_are_left_to_torch(dtype):
    x, weight = rand(3, 5).to(dtype), rand(4, 5, seed=1).to(dtype)
    assert torch.equal(onednn_linear(x, weight), F.linear(x, weight))


def test_autocast_is_left_to_torch():
    with torch.autocast("cpu", torch.bfloat16):
        assert onednn_linear(rand(3, 5), rand(4, 5)).dtype == torch.bfloat16


@needs_kernel
@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral"])
def test_a_decoder_learns_the_same(family):
    config = model_config(family, "nano", 11, 16)
    plain, fast = (GPT(config, torch.Generator().manual_seed(0)) for _ in range(2))
    n_changed = use_onednn(fast, anyway=True)
    assert n_changed == sum(isinstance(m, Linear) for m in fast.modules()) + 1  # and the head of tied vectors
    ids = torch.randint(11, (2, 16), generator=torch.Generator().manual_seed(1))
    for model in (plain, fast):
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    torch.testing.assert_close(fast(ids), plain(ids), rtol=1e-4, atol=1e-5)
    for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)
    assert fast.state_dict().keys() == plain.state_dict().keys()


def test_a_kernel_that_is_wrong_or_missing_is_not_used(monkeypatch):
    layer = SelfAttention(8, 2, 2)
    for broken in (lambda x, weight, bias=None: F.linear(x, weight, bias) + 1e-2 * x.sum(), None):
        monkeypatch.setattr(subject, "product", broken or missing)
        assert use_onednn(layer, anyway=True) == 0 and layer.qkv.product is F.linear
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert use_onednn(layer, anyway=True) == 0


@needs_kernel
@pytest.mark.parametrize(("capability", "n_changed"), [("AVX2", 0), ("DEFAULT", 0), ("AVX512", 1), ("AVX512_VNNI", 1)])
def test_without_wide_instructions_the_maps_are_left_to_torch(capability, n_changed, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    layer = Linear(8, 4)
    assert use_onednn(layer) == n_changed and (layer.product is onednn_linear) == bool(n_changed)


def missing(*arguments):
    raise AttributeError("no such operator")


@needs_kernel
def test_small_products_are_left_to_torch(monkeypatch):
    x, weight = rand(3, 5), rand(4, 5, seed=1)
    assert fits_onednn(x, weight)
    monkeypatch.setattr(subject, "SMALLEST", 3 * 5 * 4 + 1)
    assert not fits_onednn(x, weight) and torch.equal(onednn_linear(x, weight), F.linear(x, weight))


def test_nothing_to_change():
    assert use_onednn(nn.Tanh(), anyway=True) == 0


@needs_kernel
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("n_steps", [1, 12])
def test_recurrent_layers_learn_the_same(kind, n_steps):
    plain, fast = (Recurrent(kind, 5, 6, n_layers=2, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert use_onednn(fast, anyway=True) == 1
    x, starts = rand(3, n_steps, 5), torch.rand(3, n_steps, generator=torch.Generator().manual_seed(2)) < 0.2
    results = []
    for module in (plain, fast):
        leaf = x.clone().requires_grad_()
        outputs, state = module(leaf, starts=starts)
        (outputs.square().sum() + sum(each.sum() for each in state)).backward()
        gradients = [leaf.grad, *(parameter.grad for parameter in module.parameters())]
        results.append([outputs.detach(), *(each.detach() for each in state), *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not torch.equal(results[0][-4], results[1][-4]) or n_steps == 1  # the other product was really used
    double = fast.double()
    assert torch.isfinite(double(x.double())[0]).all()  # other number types go on as before


@needs_kernel
def test_frozen_recurrent_weights_get_no_gradient():
    layer = Recurrent("lstm", 4, 4)
    use_onednn(layer, anyway=True)
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    x = rand(2, 3, 4).requires_grad_()
    layer(x)[0].sum().backward()
    assert x.grad.abs().sum() > 0 and all(parameter.grad is None for parameter in layer.parameters())
