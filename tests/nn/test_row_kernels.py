import pytest
import torch
from torch.nn import functional as F

from minillm.nn import functional, row_kernels
from minillm.nn.attention import SelfAttention
from minillm.nn.position import rotary_angles, rotate
from minillm.nn.row_kernels import RMSRows, Rotation, blocks


@pytest.fixture(params=[1 << 17, 40, 1], ids=["one block", "several blocks", "a row each"])
def block(request, monkeypatch):
    monkeypatch.setattr(row_kernels, "BLOCK", request.param)


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def values_and_gradients(function, *inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    result = function(*leaves)
    result.backward(rand(*result.shape, seed=99).to(result.dtype))
    return [result.detach(), *(leaf.grad for leaf in leaves)]


def assert_same(got, expected, **tolerance):
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, **(tolerance or {"rtol": 1e-12, "atol": 1e-13}))


@pytest.mark.parametrize("shape", [(5,), (3, 6), (2, 3, 4, 5), (0, 4)])
@pytest.mark.parametrize("weighted", [False, True])
def test_norm_of_rows(block, shape, weighted):
    inputs = [rand(*shape), *([rand(shape[-1], seed=1)] if weighted else [])]
    got = values_and_gradients(lambda x, w=None: RMSRows.apply(x, w, 1e-3), *inputs)
    assert_same(got, values_and_gradients(lambda x, w=None: functional.rms_norm(x, w, 1e-3), *inputs))


def test_norm_of_rows_that_do_not_lie_side_by_side(block):
    x = rand(4, 2, 6, 3).transpose(1, 3)
    assert_same(
        values_and_gradients(lambda x: RMSRows.apply(x, None, 1e-5), x),
        values_and_gradients(lambda x: F.rms_norm(x, (2,), eps=1e-5), x),
    )


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_norm_of_rows_in_16_bits(dtypes):
    x, weight = rand(6, 8).to(dtypes[0]), rand(8, seed=1).to(dtypes[1])
    got = values_and_gradients(lambda x, w: RMSRows.apply(x, w, 1e-5), x, weight)
    expected = values_and_gradients(lambda x, w: F.rms_norm(x, (8,), w, 1e-5), x.double(), weight.double())
    for one, other, dtype in zip(got, expected, (torch.promote_types(*dtypes), *dtypes), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=0.03, atol=0.03)


def test_norm_of_rows_by_finite_differences(block):
    inputs = (rand(3, 5).requires_grad_(), rand(5, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(lambda x, w: RMSRows.apply(x, w, 1e-5), inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("own_places", [False, True])
def test_rotation_to_the_last_bit(block, dtype, own_places):
    x = rand(3, 5, 2, 8).to(dtype).transpose(1, 2)                 # (B, H, T, D), as heads come from one product
    places = torch.randint(50, (3, 1, 5), generator=torch.Generator().manual_seed(2)) if own_places else torch.arange(5)
    angles = rotary_angles(places, 8)
    tables = angles.cos().float(), angles.sin().float()
    got = values_and_gradients(lambda x: Rotation.apply(x, *tables), x)
    expected = values_and_gradients(lambda x: rotate(x, *tables), x)
    assert_same(got, expected, rtol=0, atol=0)
    assert got[0].is_contiguous()


def test_blocks_cover_every_row_once():
    for n_rows, width in ((0, 3), (1, 1 << 20), (10, 1 << 16), (7, 1)):
        covered = [row for block in blocks(n_rows, width) for row in range(n_rows)[block]]
        assert covered == list(range(n_rows))


def test_attention_agrees_with_the_readable_one():
    x, rotation = rand(2, 6, 16), (rotary_angles(torch.arange(6), 8).cos(), rotary_angles(torch.arange(6), 8).sin())
    fast, readable = (
        SelfAttention(16, 2, 1, std=0.3, output_std=0.3, kernels=kernels).double() for kernels in ("torch", "naive")
    )
    readable.load_state_dict(fast.state_dict())
    results = [
        values_and_gradients(lambda x, m=module: m(x, causal=True, rotation=rotation), x) for module in (fast, readable)
    ]
    assert_same(*results, rtol=1e-10, atol=1e-12)
    for one, other in zip(fast.parameters(), readable.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-12)
