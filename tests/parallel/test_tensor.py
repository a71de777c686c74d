"""Regions and layers of tensor parallelism against one process, closed forms and PyTorch's own engine."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minillm.errors import ShapeError
from minillm.nn.embedding import Embedding
from minillm.nn.feedforward import FeedForward
from minillm.nn.linear import Linear
from minillm.parallel import regions
from minillm.parallel.launch import launch
from minillm.parallel.layout import ROWS, Split
from minillm.parallel.sequence import enter_sequence_products
from minillm.parallel.tensor import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from minillm.parallel.threads import launch_threads
from minillm.parallel.vocab_loss import vocab_parallel_cross_entropy


def slope(comm, region, x, weights, *args):
    """Value of a region at x, and the gradient at x of the weighted sum of its values; x and weights per rank."""
    x = x[comm.rank].clone().requires_grad_()
    y = region(x, comm, *args)
    (y * weights[comm.rank]).sum().backward()
    return y.detach(), x.grad


RANKS = torch.arange(1.0, 5.0, dtype=torch.float64)


def test_closed_forms_of_f_and_g():
    """E2: with rank + 1 as value or weight sums over 4 ranks are 10; over each other direction nothing happens."""
    same, ranks = torch.ones(4, 4, 6, dtype=torch.float64), RANKS.view(4, 1, 1).expand(4, 4, 6)
    for value, gradient in launch_threads(slope, 4, regions.copy_to_tensor_model_parallel_region, same, ranks):
        assert torch.equal(value, same[0]) and torch.equal(gradient, 10 * same[0])
    for value, gradient in launch_threads(slope, 4, regions.reduce_from_tensor_model_parallel_region, ranks, same):
        assert torch.equal(value, 10 * same[0]) and torch.equal(gradient, same[0])


@pytest.mark.parametrize("dim", [-1, 1])
def test_scatter_and_gather_undo_each_other(dim):
    last = dim == -1
    scatter = regions.scatter_to_tensor_model_parallel_region if last else regions.scatter_to_sequence_parallel_region
    gather = regions.gather_from_tensor_model_parallel_region if last else regions.gather_from_sequence_parallel_region
    add = () if last else (False,)
    whole = torch.arange(2 * 4 * 8, dtype=torch.float64).view(2, 4, 8)
    weights = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts, cut_weights = whole.chunk(4, dim), weights.chunk(4, dim)
    results = launch_threads(slope, 4, scatter, [whole] * 4, cut_weights)
    for rank, (value, gradient) in enumerate(results):
        assert torch.equal(value, parts[rank]) and torch.equal(gradient, weights)
    results = launch_threads(slope, 4, gather, parts, [weights] * 4, *add)
    for rank, (value, gradient) in enumerate(results):
        assert torch.equal(value, whole) and torch.equal(gradient, cut_weights[rank])


def test_sequence_regions_add_where_the_others_do_not():
    """Gather adds gradients up on the way back, reduce-scatter values on the way out; ranks come with rank + 1."""
    ranks, same = RANKS.view(4, 1, 1, 1).expand(4, 2, 4, 3), torch.ones(4, 2, 4, 3, dtype=torch.float64)
    for value, gradient in launch_threads(
        slope, 4, regions.gather_from_sequence_parallel_region, same[:, :, :1], ranks
    ):
        assert torch.equal(value, same[0]) and torch.equal(gradient, 10 * same[0, :, :1])
    for value, gradient in launch_threads(
        slope, 4, regions.reduce_scatter_to_sequence_parallel_region, ranks, same[:, :, :1]
    ):
        assert torch.equal(value, 10 * same[0, :, :1]) and torch.equal(gradient, same[0])


def test_regions_leave_their_inputs_alone():
    """A gradient may belong to two branches at once: adding to it in place would change the other's."""

    def run(comm):
        x = torch.full((3,), comm.rank + 1.0, requires_grad=True)
        y = x * 1.0
        total = regions.reduce_from_tensor_model_parallel_region(y, comm)
        other = torch.ones(3, requires_grad=True)
        z = regions.copy_to_tensor_model_parallel_region(total, comm) + other
        z.backward(torch.full((3,), comm.rank + 1.0))
        return y.tolist(), other.grad.tolist(), x.grad.tolist()

    assert launch_threads(run, 2) == [([rank] * 3, [rank] * 3, [3.0] * 3) for rank in (1.0, 2.0)]


def test_sizes_that_do_not_divide_are_refused():
    for region in (
        regions.scatter_to_sequence_parallel_region,
        regions.reduce_scatter_to_sequence_parallel_region,
        regions.scatter_to_tensor_model_parallel_region,
    ):
        with pytest.raises(ShapeError, match="cannot be cut into 2 equal parts"):
            launch_threads(lambda comm, region=region: region(torch.zeros(2, 3, 5), comm), 2)


def column_then_row(generator: torch.Generator) -> tuple[Linear, Linear, torch.Tensor]:
    column = Linear(6, 8, bias=True, std=1.0, generator=generator)
    row = Linear(8, 6, bias=True, std=1.0, generator=generator)
    for layer in (column, row):
        layer.double()
        nn.init.normal_(layer.bias, generator=generator)
    return column, row, torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("world_size", [2, 4])
def test_column_and_row_are_the_two_layers(world_size, sequence_parallel):
    """E1: outputs, gradients by the input and by each part of the weights."""
    column, row, x = column_then_row(torch.Generator().manual_seed(1))
    x.requires_grad_()
    y = row(torch.tanh(column(x)))
    y.square().sum().backward()

    def run(comm):
        first, second = column_then_row(torch.Generator().manual_seed(1))[:2]
        first = ColumnParallelLinear(first, comm, sequence_parallel=sequence_parallel)
        second = RowParallelLinear(second, comm, sequence_parallel=sequence_parallel)
        mine = x.detach().chunk(comm.size, 1)[comm.rank] if sequence_parallel else x.detach()
        mine = mine.clone().requires_grad_()
        out = second(torch.tanh(first(mine)))
        out.square().sum().backward()
        if sequence_parallel:
            comm.all_reduce(second.bias.grad)
        return out.detach(), mine.grad, first.weight.grad, first.bias.grad, second.weight.grad, second.bias.grad

    results = launch_threads(run, world_size)
    out, by_x, *parts, bias = zip(*results, strict=True)
    join = (lambda pieces: torch.cat(pieces, 1)) if sequence_parallel else (lambda pieces: pieces[0])
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(join(out), y.detach(), **close)
    torch.testing.assert_close(join(by_x), x.grad, **close)
    expected = (column.weight.grad, column.bias.grad)
    for found, gradient in zip(parts[:2], expected, strict=True):
        torch.testing.assert_close(torch.cat(found), gradient, **close)
    torch.testing.assert_close(torch.cat(parts[2], 1), row.weight.grad, **close)
    for found in bias:
        torch.testing.assert_close(found, row.bias.grad, **close)


def test_swapped_f_and_g_are_noticed():
    """The mutation: g where f belongs and f where g belongs; and f left out, which no value shows."""
    column, row, x = column_then_row(torch.Generator().manual_seed(1))
    x.requires_grad_()
    y = row(torch.tanh(column(x)))
    y.square().sum().backward()

    def differences(comm, enter, leave):
        first, second, mine = column_then_row(torch.Generator().manual_seed(1))
        first, second = ColumnParallelLinear(first, comm, enter=False), RowParallelLinear(second, comm)
        mine.requires_grad_()
        product = second.product(torch.tanh(first(enter(mine, comm))), second.weight)
        out = leave(product, comm) + second.bias
        out.square().sum().backward()
        return (out - y).abs().max().item(), (mine.grad - x.grad).abs().max().item()

    f, g = regions.copy_to_tensor_model_parallel_region, regions.reduce_from_tensor_model_parallel_region
    for value, gradient in launch_threads(differences, 2, f, g):
        assert value < 1e-12 and gradient < 1e-10
    for value, gradient in launch_threads(differences, 2, g, f):
        assert value > 0.1 and gradient > 0.1
    for value, gradient in launch_threads(differences, 2, lambda x, comm: x, g):
        assert value < 1e-12 and gradient > 0.1


def test_an_all_reduce_in_both_directions_counts_the_gradient_twice():
    """Torch's functional all-reduce adds the gradients up, too: P times too much for a replicated loss."""

    class Both(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, comm):
            ctx.comm = comm
            return regions.sum_of(x, comm)

        @staticmethod
        def backward(ctx, gradient):
            return regions.sum_of(gradient, ctx.comm), None

    def run(comm):
        x = torch.ones(1, requires_grad=True)
        Both.apply(x, comm).sum().backward()
        y = torch.ones(1, requires_grad=True)
        regions.reduce_from_tensor_model_parallel_region(y, comm).sum().backward()
        return x.grad.item(), y.grad.item()

    assert launch_threads(run, 4) == [(4.0, 1.0)] * 4


def test_gathered_output_and_whole_input():
    layer = Linear(4, 6, bias=True, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))

    def run(comm):
        gathered = ColumnParallelLinear(layer, comm, gather_output=True)(x)
        return gathered, RowParallelLinear(layer, comm, input_is_parallel=False)(x)

    for gathered, summed in launch_threads(run, 2):
        torch.testing.assert_close(gathered, layer(x))
        torch.testing.assert_close(summed, layer(x))


def test_a_column_cut_with_sections_keeps_each_section_whole():
    layer = Linear(3, 8, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    query, key, value = layer(x).split((4, 2, 2), -1)

    def run(comm):
        part = ColumnParallelLinear(layer, comm, Split(0, (4, 2, 2)))(x)
        return part.split((2, 1, 1), -1)

    parts = launch_threads(run, 2)
    for place, section in enumerate((query, key, value)):
        torch.testing.assert_close(torch.cat([part[place] for part in parts], -1), section)


def test_the_embedding_looks_up_what_one_table_has():
    table = Embedding(8, 3, std=1.0, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[0, 7, 3, 4], [4, 4, 1, 2]])
    (table(ids) * torch.arange(24.0).view(2, 4, 3)).sum().backward()

    def run(comm):
        layer = VocabParallelEmbedding(table, comm)
        vectors = layer(ids)
        (vectors * torch.arange(24.0).view(2, 4, 3)).sum().backward()
        return vectors.detach(), layer.weight.grad

    results = launch_threads(run, 4)
    for vectors, _ in results:
        assert torch.equal(vectors, table(ids).detach())
    assert torch.equal(torch.cat([gradient for _, gradient in results]), table.weight.grad)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_loss_from_parts_of_the_vocabulary(reduction, dtype):
    generator = torch.Generator().manual_seed(2)
    logits = (30.0 * torch.randn(3, 5, 12, generator=generator)).to(dtype)
    logits[0, 0] += 1e4                                            # beyond what exp can take
    targets = torch.randint(12, (3, 5), generator=generator)
    targets[1, :3] = -100
    whole = logits.clone().requires_grad_()
    expected = F.cross_entropy(
        whole.float().flatten(0, 1) if dtype == torch.bfloat16 else whole.flatten(0, 1), targets.flatten(),
        reduction=reduction,
    )  # fmt: skip
    expected.sum().backward()

    def run(comm):
        part = logits.chunk(comm.size, -1)[comm.rank].clone().requires_grad_()
        loss = vocab_parallel_cross_entropy(part, targets, comm, reduction=reduction)
        loss.sum().backward()
        return loss.detach(), part.grad

    results = launch_threads(run, 4)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 2e-6}
    for loss, _ in results:
        torch.testing.assert_close(loss.flatten(), expected.detach().flatten(), **tolerance)
    loose = tolerance if dtype != torch.bfloat16 else {"rtol": 1e-2, "atol": 1e-4}
    torch.testing.assert_close(torch.cat([gradient for _, gradient in results], -1), whole.grad, **loose)


def test_loss_without_the_largest_of_all_ranks_overflows():
    """Each rank's own largest is not enough: the sums of exponentials must be in one unit."""
    logits = torch.tensor([[0.0, 1.0, 50.0, 3.0]], dtype=torch.float64)

    def run(comm):
        part = logits.chunk(2, -1)[comm.rank]
        right = vocab_parallel_cross_entropy(part, torch.tensor([0]), comm).item()
        sums = (part - part.amax(-1, keepdim=True)).exp().sum(-1)
        comm.all_reduce(sums)
        return right, sums.log().item()

    for right, wrong in launch_threads(run, 2):
        assert right == pytest.approx(F.cross_entropy(logits, torch.tensor([0])).item(), abs=1e-12)
        assert abs(right - wrong) > 10


def test_positions_are_gathered_once_more_in_backward_for_all_products_together():
    """Of a gathered input only the rank's share is saved; two products of one input gather it once."""

    def run(comm):
        generator = torch.Generator().manual_seed(0)
        layers = [
            ColumnParallelLinear(Linear(4, 8, generator=generator).double(), comm, enter=False, sequence_parallel=True)
            for _ in range(2)
        ]
        x = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
            whole = enter_sequence_products(x, comm)
            y = sum(layer(whole) for layer in layers)
        gathers = comm.counter.count("all_gather")
        y.square().sum().backward()
        return saved, gathers, comm.counter.count("all_gather")

    from minillm.parallel.comm import CommCounter

    for saved, before, after in launch_threads(run, 2, counters=[CommCounter(), CommCounter()]):
        assert (before, after) == (1, 2)
        assert (2, 6, 4) not in saved and saved.count((2, 3, 4)) == 2


def our_layers(comm, x: torch.Tensor) -> dict[str, torch.Tensor]:
    whole = FeedForward(8, 16, "swiglu", std=0.5, output_std=0.5, generator=torch.Generator().manual_seed(0)).double()
    gate, up = (ColumnParallelLinear(layer, comm, ROWS, enter=False) for layer in (whole.gate, whole.up))
    down = RowParallelLinear(whole.down, comm)
    x = x.clone().requires_grad_()
    entered = regions.copy_to_tensor_model_parallel_region(x, comm)
    y = down(F.silu(gate(entered)) * up(entered))
    y.square().sum().backward()
    return {"y": y.detach(), "x": x.grad, "gate": gate.weight.grad, "up": up.weight.grad, "down": down.weight.grad}


class TorchFeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        whole = FeedForward(8, 16, "swiglu", std=0.5, output_std=0.5, generator=torch.Generator().manual_seed(0))
        for name in ("gate", "up", "down"):
            weight = getattr(whole, name).weight.detach()
            layer = nn.Linear(*reversed(weight.shape), bias=False)
            layer.weight.data = weight.clone()
            setattr(self, name, layer)
        self.double()

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


def torch_layers(comm, x: torch.Tensor) -> dict[str, torch.Tensor]:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = DeviceMesh("cpu", list(range(comm.size)))
    plan = {"gate": ColwiseParallel(), "up": ColwiseParallel(), "down": RowwiseParallel()}
    model = parallelize_module(TorchFeedForward(), mesh, plan)
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    gradients = {name: parameter.grad.to_local() for name, parameter in model.named_parameters()}
    return {"y": y.detach(), "x": x.grad} | {name.removesuffix(".weight"): g for name, g in gradients.items()}


def test_layers_are_those_of_torchs_own_engine():
    """Over gloo in processes: values and each rank's gradients equal `parallelize_module`'s."""
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def run(comm):
        return our_layers(comm, x), torch_layers(comm, x)

    for ours, theirs in launch(run, 2, timeout_seconds=30, show_output=False):
        assert set(ours) == set(theirs)
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-12, msg=name)
