"""Packed linear maps give the numbers of plain ones."""

import copy

import pytest
import torch

from minillm.infer.generate import generate
from minillm.infer.packed import PackedLinear, kernel_works_for, pack_linears
from minillm.infer.sampling import GREEDY
from minillm.models.gpt import GPT
from minillm.models.registry import model_config
from minillm.nn.linear import Linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "modern"])
def test_packed_model_gives_the_same_scores(family, dtype):
    config = model_config(family, "nano", vocab_size=11, max_seq_len=32, embedding_std=0.5, zero_outputs=False)
    model = GPT(config, torch.Generator().manual_seed(0)).to(dtype).eval()
    packed = copy.deepcopy(model)
    n_linears = sum(isinstance(module, Linear) for module in model.blocks.modules())
    if not all(kernel_works_for(module) for module in model.blocks.modules() if isinstance(module, Linear)):
        pytest.skip("this build of torch has no packed product")
    assert pack_linears(packed) == n_linears > 0
    assert not any(isinstance(module, Linear) for module in packed.blocks.modules())
    ids = torch.arange(10)[None]
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    with torch.inference_mode():
        difference, expected = (packed(ids) - model(ids)).float().norm(), model(ids).float().norm()
    assert difference <= tolerance * expected
    if dtype == torch.float32:
        assert generate(packed, [[1, 2], [3]], 12, GREEDY) == generate(model, [[1, 2], [3]], 12, GREEDY)


def test_a_bias_is_added():
    linear = Linear(8, 4, bias=True, std=1.0, generator=torch.Generator().manual_seed(0))
    torch.nn.init.constant_(linear.bias, 3.0)
    if not kernel_works_for(linear):
        pytest.skip("this build of torch has no packed product")
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(PackedLinear(linear)(x), linear(x).detach())


def test_a_model_it_cannot_pack_stays_as_it_is(monkeypatch):
    model = GPT(model_config("gpt2", "nano", vocab_size=11, max_seq_len=32))
    names = list(model.state_dict())
    monkeypatch.setattr(PackedLinear, "forward", lambda self, x: torch.zeros(*x.shape[:-1], 1))
    assert pack_linears(model) == 0
    assert list(model.state_dict()) == names
