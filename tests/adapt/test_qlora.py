"""QLoRA: branches beside packed layers train as beside the rounded matrix, whose bytes stay; merging says its price."""

import copy
import math
import warnings

import pytest
import torch
from helpers.adapt_models import disturb, ids_of, small_bert, small_gpt, small_t5
from torch import nn
from torch.nn import functional as F

from minillm import surgery
from minillm.adapt.adapted import adapt, load_delta
from minillm.adapt.lora import LoraConfig
from minillm.compress.nf4 import stored_bits
from minillm.compress.packed_linear import pack_model, stored_bytes
from minillm.errors import CheckpointError, ConfigError

EVERY = ("qkv", "output", "up", "down")
IDS = ids_of((3, 9))
MODELS = {
    "gpt": (small_gpt, lambda model: model(IDS), EVERY),
    "llama": (lambda: small_gpt(norm="rms", position="rotary", feed_forward="swiglu", n_kv_heads=2, bias=False),
              lambda model: model(IDS), (*EVERY, "gate")),
    "bert": (small_bert, lambda model: model(IDS), EVERY),
    "t5": (small_t5, lambda model: model(IDS, IDS[:, :5]), (*EVERY, "query", "key_value")),
}  # fmt: skip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def packed_and_rounded(make):
    """A model in NF4, and one with the same numbers in ordinary matrices."""
    packed, rounded = make().eval(), make().eval()
    names = surgery.find(rounded, kinds=surgery.is_linear, exclude="head")
    pack_model(packed)
    for name in names:
        rounded.get_submodule(name).weight.data = packed.get_submodule(name).weight
    return packed, rounded


@pytest.mark.parametrize("name", MODELS)
def test_results_and_gradients_are_those_beside_the_rounded_matrices(name):
    make, run, targets = MODELS[name]
    config = LoraConfig(rank=2, targets=targets)
    handles = [adapt(model, config, generator=seeded()) for model in packed_and_rounded(make)]
    for adapted in handles:
        disturb(adapted)
        run(adapted.model).square().sum().backward()
    torch.testing.assert_close(*(run(adapted.model) for adapted in handles), rtol=1e-11, atol=1e-12)
    ours, theirs = (adapted.trainable_parameters() for adapted in handles)
    assert list(ours) == list(theirs)
    for key, parameter in ours.items():
        assert parameter.grad.abs().max() > 0
        torch.testing.assert_close(parameter.grad, theirs[key].grad, rtol=1e-9, atol=1e-9)
    assert all(p.grad is None for p in handles[0].model.parameters() if not p.requires_grad)


@pytest.fixture
def trained():
    """A small language model learns one text by heart through branches beside its packed layers."""
    model = small_gpt(dtype=torch.float32)
    pack_model(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = LoraConfig(rank=8, alpha=16, targets=EVERY, parts=("query", "key", "value"))
    adapted = adapt(model, config, generator=seeded())
    optimizer = torch.optim.AdamW(adapted.trainable_parameters().values(), lr=2e-2, weight_decay=0.0)
    losses = []
    for _ in range(80):
        loss = F.cross_entropy(model(IDS[:, :-1]).flatten(0, 1), IDS[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return adapted, optimizer, before, losses


def test_training_works_and_leaves_the_base_s_bytes(trained):
    adapted, _, before, losses = trained
    assert losses[0] > 2.5 and losses[-1] < 0.4 * losses[0]
    model = adapted.remove()
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_switched_off_the_model_is_the_packed_base(trained):
    adapted, _, _, _ = trained
    model, base = adapted.model, small_gpt(dtype=torch.float32)
    pack_model(base)
    with torch.no_grad():
        with adapted.disable():
            assert torch.equal(model(IDS), base(IDS))
        assert not torch.equal(model(IDS), base(IDS))


def test_memory_is_as_predicted(trained):
    """Base: 4.127 bits a weight and a little; gradients and two moments only for the branches."""
    adapted, optimizer, _, _ = trained
    full, n_trained = small_gpt(dtype=torch.float32), sum(p.numel() for p in adapted.trainable_parameters().values())
    linear = [layer.weight.numel() for layer in surgery.find(full, kinds=surgery.is_linear).values()]
    predicted = stored_bytes(full) - sum(4 * n - stored_bits(n) // 8 for n in linear) + 4 * n_trained
    assert stored_bytes(adapted.model) == predicted
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert sum(4 * moment.numel() for moment in moments) == 8 * n_trained
    assert sum(p.grad.numel() for p in adapted.model.parameters() if p.grad is not None) == n_trained


def test_merging_unpacks_with_a_warning_and_can_be_undone(trained):
    adapted, _, _, _ = trained
    model, size = adapted.model, stored_bytes(adapted.model)
    out, bits = model(IDS), {k: v.clone() for k, v in model.state_dict().items() if v.dtype == torch.uint8}
    with pytest.warns(UserWarning, match="full matrices of 8 packed layers"):
        adapted.merge()
    torch.testing.assert_close(model(IDS), out, rtol=1e-4, atol=1e-4)
    assert stored_bytes(model) > size and not any(surgery.is_packed(module) for module in model.modules())
    with pytest.raises(ConfigError, match="unmerge"):
        adapted.merge()
    with pytest.warns(UserWarning, match="packed layers"), adapted.disable():
        assert any(surgery.is_packed(module) for module in model.modules())
    adapted.unmerge()
    assert torch.equal(model(IDS), out) and stored_bytes(model) == size
    assert all(torch.equal(model.state_dict()[name], value) for name, value in bits.items())


@pytest.mark.parametrize("name", MODELS)
def test_a_merged_model_computes_what_the_branches_did(name):
    make, run, targets = MODELS[name]
    model, _ = packed_and_rounded(make)
    adapted = adapt(model, LoraConfig(rank=2, targets=targets), generator=seeded())
    disturb(adapted)
    out = run(model)
    with pytest.warns(UserWarning, match="packed layers"):
        adapted.merge()
    torch.testing.assert_close(run(model), out, rtol=1e-10, atol=1e-11)


def test_an_ordinary_base_is_merged_without_a_warning():
    adapted = adapt(small_gpt(), LoraConfig(rank=2), generator=seeded())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapted.merge()


def test_packing_what_was_merged_rounds_the_change_too(trained):
    """Why merging warns: four bits hold the sum less well than the base alone with the branches in full beside it."""
    adapted, _, _, _ = trained
    model = adapted.model
    with pytest.warns(UserWarning, match="packed layers"):
        adapted.merge()
    merged = small_gpt(dtype=torch.float32)
    for place, layer in adapted.delta.layers.items():
        merged.get_submodule(place).weight.data = layer.base.weight.detach().clone()
    out = merged(IDS)
    torch.testing.assert_close(out, model(IDS), rtol=1e-5, atol=1e-5)
    pack_model(merged)
    assert (merged(IDS) - out).abs().max() > 0.05


def test_the_delta_is_small_and_knows_its_packed_base(tmp_path, trained):
    adapted, _, _, _ = trained
    out, n_trained = adapted.model(IDS), sum(p.numel() for p in adapted.trainable_parameters().values())
    adapted.save(tmp_path)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert 4 * n_trained < size < 4 * n_trained + 5000
    base = small_gpt(dtype=torch.float32)
    with pytest.raises(CheckpointError, match="another base"):
        load_delta(copy.deepcopy(base), tmp_path)
    pack_model(base)
    assert torch.equal(load_delta(base, tmp_path).model(IDS), out)


def test_several_adapters_share_one_packed_base():
    model, _ = packed_and_rounded(small_gpt)
    adapted = adapt(model, LoraConfig(rank=2), "first", seeded())
    disturb(adapted)
    first = model(IDS)
    adapted.add(LoraConfig(rank=3), "second", seeded(1))
    disturb(adapted, 4)
    assert not torch.equal(model(IDS), first)
    adapted.use("first")
    assert torch.equal(model(IDS), first)


def test_the_branch_takes_up_some_of_the_rounding_error():
    """With the rounded base fixed, branches fitted to the full-precision layer reach the best rank-R correction."""
    x = torch.randn(60, 12, generator=seeded(1), dtype=torch.float64)
    full = nn.Linear(12, 8, bias=False).double()
    full.weight.data.normal_(generator=seeded(4))
    model = nn.Sequential(copy.deepcopy(full))
    pack_model(model)
    with torch.no_grad():
        target, start = full(x), model(x)
    values, vectors = torch.linalg.eigh(x.T @ x)
    root = vectors @ values.sqrt().diag() @ vectors.T
    error = (full.weight.detach() - model[0].weight) @ root
    optimum = float(torch.linalg.svdvals(error)[2:].square().sum())
    adapted = adapt(model, LoraConfig(rank=2, alpha=4, targets="0"), generator=seeded())
    optimizer = torch.optim.LBFGS(
        adapted.trainable_parameters().values(), max_iter=1000, tolerance_change=0, tolerance_grad=1e-9,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss():
        optimizer.zero_grad()
        value = (model(x) - target).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert optimum < 0.9 * float((start - target).square().sum())
    assert math.isclose(float(loss().detach()), optimum, rel_tol=1e-6)
