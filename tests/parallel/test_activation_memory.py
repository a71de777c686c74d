"""Activation memory: the published formulas as exact fractions, and what autograd really keeps, to the byte."""

from fractions import Fraction

import pytest
import torch

from minillm.errors import ConfigError
from minillm.parallel.activation_memory import (
    ReferenceLayer,
    activation_bytes,
    activation_terms,
    norm_statistics_bytes,
    saved_activation_bytes,
)
from minillm.parallel.launch import launch
from minillm.parallel.threads import launch_threads

B, T, C, H = 2, 64, 64, 8


def published(b, s, h, a, t, sequence_parallel, recompute):
    """Table 2 of arXiv:2205.05198; the row that has no name there, selective without sequence parallel, follows."""
    square = 0 if recompute == "selective" else Fraction(5 * a * s, h)
    if recompute == "full":
        return Fraction(2 * s * b * h, t if sequence_parallel else 1)
    if sequence_parallel or t == 1:
        return Fraction(s * b * h, t) * (34 + square)
    return s * b * h * (10 + Fraction(24, t) + square / t)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("sizes", [(B, T, C, H), (1, 2048, 12288, 96), (4, 96, 48, 12)])
def test_terms_add_up_to_the_published_formulas(sizes, recompute):
    for t in (1, 2, 4):
        for sequence_parallel in (False, True):
            ours = activation_bytes(*sizes, t, sequence_parallel, recompute)
            assert ours == published(*sizes, t, sequence_parallel, recompute)


def test_the_share_of_the_square_in_gpt_3():
    """5 a s / h = 80 of 114 parts: what the paper gives for GPT-3, and why selective recomputation saves 70 %."""
    terms = activation_terms(1, 2048, 12288, 96)
    square = sum(terms[name] for name in terms if "weights" in name or name == "their dropout mask")
    assert Fraction(square, sum(terms.values())) == Fraction(80, 114)


def test_bytes_of_published_measurements():
    """The figures of our notes, s=64, b=2, h=64, a=8, in the order of the table."""
    assert activation_bytes(B, T, C, H) == 606_208
    assert [activation_bytes(B, T, C, H, t) for t in (2, 4)] == [344_064, 212_992]
    assert [activation_bytes(B, T, C, H, t, True) for t in (2, 4)] == [303_104, 151_552]


def layer_of(comm=None, sequence_parallel=False, recompute="none", dropout=0.1, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    return ReferenceLayer(C, H, dropout, generator, comm, sequence_parallel, recompute).to(dtype)


def example(dtype=torch.bfloat16):
    return torch.randn(B, T, C, generator=torch.Generator().manual_seed(1)).to(dtype)


def share_of(x, comm, sequence_parallel):
    return (x.chunk(comm.size, 1)[comm.rank] if sequence_parallel else x).clone().requires_grad_()


def test_one_process_keeps_what_the_formula_says_to_the_byte():
    statistics = norm_statistics_bytes(B, T)
    assert statistics == 8 * B * T
    for recompute, extra in (("none", statistics), ("selective", statistics), ("full", 0)):
        kept = saved_activation_bytes(layer_of(recompute=recompute), example().requires_grad_())
        assert kept == activation_bytes(B, T, C, H, recompute=recompute) + extra


def measured(comm):
    found = {}
    for sequence_parallel in (False, True):
        for recompute in ("none", "selective", "full"):
            layer = layer_of(comm, sequence_parallel, recompute)
            x = share_of(example(), comm, sequence_parallel)
            found[sequence_parallel, recompute] = saved_activation_bytes(layer, x)
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_each_rank_keeps_what_the_formula_says_to_the_byte(size):
    for found in launch(measured, size, timeout_seconds=20, show_output=False):
        for (sequence_parallel, recompute), kept in found.items():
            extra = norm_statistics_bytes(B, T, size if sequence_parallel else 1) if recompute != "full" else 0
            assert kept == activation_bytes(B, T, C, H, size, sequence_parallel, recompute) + extra


def test_a_mask_of_wider_numbers_would_be_noticed():
    """`F.dropout` on a processor keeps a mask in the dtype of its input."""
    layer = layer_of()
    layer.drop = lambda x: torch.nn.functional.dropout(x, 0.1)
    kept = saved_activation_bytes(layer, example().requires_grad_())
    masks = 2 * B * T * C + B * H * T * T  # one byte more for each number of three masks
    assert kept == activation_bytes(B, T, C, H) + norm_statistics_bytes(B, T) + masks


def gradients(layer, x, upstream):
    torch.manual_seed(3)  # for dropout
    layer(x).backward(upstream)
    return [x.grad, *(parameter.grad for parameter in layer.parameters())]


def test_recomputing_changes_no_gradient():
    x, upstream = example(torch.float64), example(torch.float64).flip(1)
    expected = gradients(layer_of(dtype=torch.float64), x.clone().requires_grad_(), upstream)
    for recompute in ("selective", "full"):
        found = gradients(layer_of(recompute=recompute, dtype=torch.float64), x.clone().requires_grad_(), upstream)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)


def test_ranks_compute_what_one_process_does():
    """The layer that is measured is the layer: values and the gradient of its input, without dropout."""

    def run(comm):
        found = []
        for sequence_parallel in (False, True):
            for recompute in ("none", "full"):
                layer = layer_of(comm, sequence_parallel, recompute, 0.0, torch.float64)
                x = share_of(example(torch.float64), comm, sequence_parallel)
                y = layer(x)
                y.backward(share_of(example(torch.float64).flip(1), comm, sequence_parallel).detach())
                found.append((sequence_parallel, y.detach(), x.grad))
        return found

    whole, x = layer_of(dropout=0.0, dtype=torch.float64), example(torch.float64).requires_grad_()
    y = whole(x)
    y.backward(example(torch.float64).flip(1))
    for results in zip(*launch_threads(run, 2), strict=True):
        sequence_parallel = results[0][0]
        for i, expected in ((1, y.detach()), (2, x.grad)):
            parts = [result[i] for result in results]
            found = torch.cat(parts, 1) if sequence_parallel else parts[1]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_bad_input():
    for wrong in (
        {"recompute": "some"}, {"tensor_parallel": 3}, {"tensor_parallel": 0}, {"n_heads": 7},
        {"n_positions": 65, "tensor_parallel": 2, "sequence_parallel": True},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            activation_bytes(**{"batch_size": B, "n_positions": T, "d_model": C, "n_heads": H, **wrong})
