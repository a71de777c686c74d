"""The global gradient norm: of a gradient that lies on several ranks, each number counted once."""

import math

import pytest
import torch
from torch import nn

from minillm.errors import ConfigError, TrainingError
from minillm.parallel.clip import clip_global_gradients, global_gradient_norm
from minillm.parallel.mesh import Mesh, MeshSize
from minillm.parallel.threads import launch_threads
from minillm.train.clip import clip_gradients


def with_gradients(*gradients):
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return parameters


def whole(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in ((4, 6), (8,), (3,))]


def shares(comm, dtype=torch.float64):
    """The first two gradients cut over the ranks, the last one on all of them."""
    matrix, vector, copied = whole(dtype)
    return with_gradients(matrix.chunk(comm.size)[comm.rank], vector.chunk(comm.size)[comm.rank], copied)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_norm_and_clipped_gradients_are_those_of_one_process(size):
    single = with_gradients(*whole())
    expected = clip_gradients(single, max_norm=0.7)

    def clip(comm):
        parameters = shares(comm)
        counted = {id(parameter) for parameter in parameters[: None if comm.rank == 0 else 2]}
        norm = clip_global_gradients(parameters, 0.7, [comm], lambda p: id(p) in counted)
        return norm, parameters

    results = launch_threads(clip, size)
    for rank, (norm, parameters) in enumerate(results):
        assert norm.dtype == torch.float64
        assert math.isclose(norm, expected, rel_tol=1e-14)
        assert norm == results[0][0]
        for parameter, of_single in zip(parameters[:2], single[:2], strict=True):
            torch.testing.assert_close(parameter.grad, of_single.grad.chunk(size)[rank], rtol=1e-12, atol=0)
        torch.testing.assert_close(parameters[2].grad, single[2].grad, rtol=1e-12, atol=0)


def test_mutation_copies_counted_on_every_rank_give_a_larger_norm():
    exact = clip_gradients(with_gradients(*whole()), math.inf).item()
    wrong = launch_threads(lambda comm: global_gradient_norm(shares(comm), [comm]).item(), 4)[0]
    copied = whole()[2].square().sum().item()
    assert math.isclose(wrong, math.sqrt(exact**2 + 3 * copied), rel_tol=1e-12)
    assert wrong > 1.02 * exact


def test_mutation_a_norm_of_the_own_part_differs_between_ranks():
    norms = launch_threads(lambda comm: global_gradient_norm(shares(comm)).item(), 2)
    assert abs(norms[0] - norms[1]) > 0.1


def test_two_groups_add_up_one_after_the_other():
    def norm(comm):
        mesh = Mesh(MeshSize(dp=1, pp=2, tp=2), comm)
        parameters = with_gradients(torch.full((2,), comm.rank + 1.0, dtype=torch.float64))
        return global_gradient_norm(parameters, [mesh.tp, mesh.pp]).item()

    expected = math.sqrt(2 * (1 + 4 + 9 + 16))
    assert launch_threads(norm, 4) == pytest.approx([expected] * 4, rel=1e-15)


def test_half_precision_is_summed_in_full_and_mixed_formats_are_scaled():
    def clip(comm):
        parameters = with_gradients(torch.full((1000,), 0.1, dtype=torch.bfloat16), torch.full((10,), 0.1))
        return clip_global_gradients(parameters, 0.5, [comm]), parameters

    norm, parameters = launch_threads(clip, 2)[0]
    value = torch.tensor(0.1).bfloat16().item()
    assert norm.item() == pytest.approx(math.sqrt(2 * (1000 * value**2 + 10 * 0.01)), rel=1e-4)
    assert parameters[0].grad[0].item() == pytest.approx(value * 0.5 / norm.item(), rel=1e-2)
    assert parameters[1].grad[0].item() == pytest.approx(0.1 * 0.5 / norm.item(), rel=1e-5)


def test_a_rank_without_gradients_takes_part_and_small_gradients_stay():
    def clip(comm):
        parameters = with_gradients(torch.tensor([3.0])) if comm.rank else [nn.Parameter(torch.zeros(2))]
        return clip_global_gradients(parameters, 5.0, [comm]).item(), parameters[0].grad

    (first, missing), (second, kept) = launch_threads(clip, 2)
    assert first == second == 3.0
    assert missing is None
    assert kept.item() == 3.0


def test_a_gradient_that_is_not_finite_on_one_rank_stops_all():
    def clip(comm):
        parameters = with_gradients(torch.tensor([math.inf if comm.rank else 1.0]))
        with pytest.raises(TrainingError, match="none was changed"):
            clip_global_gradients(parameters, 1.0, [comm], error_if_nonfinite=True)
        return parameters[0].grad.item()

    assert launch_threads(clip, 2) == [1.0, math.inf]


def test_bad_norm_is_refused():
    with pytest.raises(ConfigError, match="max_norm is 0"):
        clip_global_gradients([], 0)
