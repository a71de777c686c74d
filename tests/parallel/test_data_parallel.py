"""Data parallel against one process on the whole batch, in float64, and against torch's own engine."""

import copy
import time
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel as TorchDataParallel

from minillm.errors import CommError, ConfigError
from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel.buckets import GradientBuckets, Launch, assign_buckets
from minillm.parallel.comm import CommCounter, SlowLink
from minillm.parallel.data_parallel import (
    DistributedDataParallel,
    FlatDataParallel,
    NaiveDataParallel,
    broadcast_module,
    global_token_count,
    reduce_gradients,
)
from minillm.parallel.launch import launch
from minillm.parallel.threads import launch_threads

V, T = 11, 5
WAYS = {
    "naive": NaiveDataParallel,
    "flat": FlatDataParallel,
    "one bucket": DistributedDataParallel,
    "small buckets": lambda module, comm: DistributedDataParallel(module, comm, bucket_bytes=1000),
    "after backward": lambda module, comm: DistributedDataParallel(module, comm, bucket_bytes=1000, overlap=False),
}
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}


def on_ranks(function, world_size, *args, **settings):
    return launch(function, world_size, *args, show_output=False, timeout_seconds=20, limit_seconds=60, **settings)


def gpt(seed):
    """One layer, tied embeddings."""
    config = GPTConfig(vocab_size=V, max_seq_len=T, n_layers=1, n_heads=2, d_model=8, bias=True)
    return GPT(config, torch.Generator().manual_seed(seed)).double()


def batch(step, n_rows=6, ignored=0.0):
    """Rows of all ranks together; `ignored` of the targets do not count, more of them in the first rows."""
    generator = torch.Generator().manual_seed(100 + step)
    inputs, targets = torch.randint(V, (2, n_rows, T), generator=generator)
    share = torch.linspace(2 * ignored, 0.0, n_rows)[:, None]
    return inputs, targets.masked_fill(torch.rand(n_rows, T, generator=generator) < share, -100)


def mean_loss(model, inputs, targets):
    return functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=-100)


def sum_loss(model, inputs, targets):
    return functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")


def alone(optimizer_name, n_steps=10, **settings):
    """One process, whole batches: losses and weights at the end."""
    model = gpt(0)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    losses = []
    for step in range(n_steps):
        optimizer.zero_grad()
        loss = mean_loss(model, *batch(step, **settings))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, flat(model.parameters())


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def far(found, expected):
    return (found - expected).abs().max().item()


# ways, optimizers and torch's own engine


def train_all_ways(comm, ways):
    """Equal shares; ranks begin with different weights, torch's engine too."""
    found = {}
    for optimizer_name in OPTIMIZERS:
        for way, wrap in ways.items():
            wrapped = TorchDataParallel(gpt(comm.rank)) if wrap is None else wrap(gpt(comm.rank), comm)
            optimizer = OPTIMIZERS[optimizer_name](wrapped.parameters())
            losses = []
            for step in range(10):
                optimizer.zero_grad()
                inputs, targets = (half.chunk(comm.size)[comm.rank] for half in batch(step))
                loss = mean_loss(wrapped, inputs, targets)
                loss.backward()
                if wrap is not None:
                    wrapped.finish_gradient_synchronization()
                optimizer.step()
                losses.append(comm.all_numbers(loss.item(), "mean"))
            found[optimizer_name, way] = losses, flat(wrapped.module.parameters())
    return found


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_all_ways_equal_one_process_and_torch(world_size):
    ways = {"small buckets": WAYS["small buckets"]} if world_size == 3 else {**WAYS, "torch": None}
    expected = {name: alone(name) for name in OPTIMIZERS}  # first: what torch imports at the first step is there then
    results = on_ranks(train_all_ways, world_size, ways)
    for optimizer_name, (losses, weights) in expected.items():
        for way in ways:
            for rank in range(world_size):
                found_losses, found_weights = results[rank][optimizer_name, way]
                assert far(torch.tensor(found_losses), torch.tensor(losses)) < 1e-12, (optimizer_name, way)
                assert far(found_weights, weights) < 1e-12, (optimizer_name, way)
                assert torch.equal(found_weights, results[0][optimizer_name, way][1]), "ranks differ"


# wrong implementations, which the comparison above must notice


def broken_training(comm, fault):
    model = gpt(comm.rank)
    if fault != "no broadcast":
        broadcast_module(model, comm)
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    parameters = list(model.parameters())
    for step in range(10):
        optimizer.zero_grad()
        mean_loss(model, *(half.chunk(comm.size)[comm.rank] for half in batch(step))).backward()
        if fault == "averages the weights":  # a hook gets the parameter, and takes it for the gradient
            for parameter in parameters:
                comm.all_reduce(parameter.data, "mean")
        elif fault != "no averaging":
            reduce_gradients(parameters, comm, 1.0 if fault == "no division" else 1 / comm.size)
        if fault == "reduced twice":
            reduce_gradients(parameters, comm, 1.0)
        optimizer.step()
    return flat(parameters)


@pytest.mark.parametrize(
    "fault", ["none", "no division", "reduced twice", "no broadcast", "no averaging", "averages the weights"]
)
def test_faults_are_seen(fault):
    _, weights = alone("SGD")
    worst = max(far(found, weights) for found in launch_threads(broken_training, 2, fault))
    assert worst < 1e-12 if fault == "none" else worst > 1e-3


# unequal parts


def uneven(comm):
    """5 rows on 2 or 3 ranks, a short last batch where some ranks have none, targets that do not count."""
    found = {}
    for way, wrap in WAYS.items():
        wrapped = wrap(gpt(comm.rank), comm)
        optimizer = OPTIMIZERS["AdamW"](wrapped.parameters())
        for step in range(4):
            optimizer.zero_grad()
            inputs, targets = (part.tensor_split(comm.size)[comm.rank] for part in batch(step, 5, 0.4))
            if step == 3:
                inputs, targets = (part[: 2 if comm.rank == 0 else 0] for part in batch(step, 5, 0.4))
            n_tokens = global_token_count((targets != -100).sum().item(), comm)  # before backward sends its buckets
            if len(inputs):
                sum_loss(wrapped, inputs, targets).backward()
            wrapped.finish_gradient_synchronization(1 / n_tokens)
            optimizer.step()
        found[way] = flat(wrapped.module.parameters())
    return found


def uneven_alone():
    model = gpt(0)
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    for step in range(4):
        optimizer.zero_grad()
        inputs, targets = batch(step, 5, 0.4)
        rows = slice(0, 2) if step == 3 else slice(None)
        mean_loss(model, inputs[rows], targets[rows]).backward()
        optimizer.step()
    return flat(model.parameters())


@pytest.mark.parametrize("world_size", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_unequal_token_counts(world_size):
    weights = uneven_alone()
    for found in on_ranks(uneven, world_size):
        for way in WAYS:
            assert far(found[way], weights) < 1e-12, way


def test_a_mean_of_means_is_another_gradient():
    def means(comm):
        model = gpt(0)
        mean_loss(model, *(part.tensor_split(2)[comm.rank] for part in batch(0, 5, 0.4))).backward()
        reduce_gradients(list(model.parameters()), comm, 0.5)
        return flat(parameter.grad for parameter in model.parameters())

    model = gpt(0)
    mean_loss(model, *batch(0, 5, 0.4)).backward()
    expected = flat(parameter.grad for parameter in model.parameters())
    assert far(launch_threads(means, 2)[0], expected) > 0.02 * expected.abs().max()


# accumulation


def accumulate(comm):
    found = {}
    for way, wrap in WAYS.items():
        counter = comm.counter
        wrapped = wrap(gpt(comm.rank), comm)
        inputs, targets = (part.tensor_split(comm.size)[comm.rank] for part in batch(0, 7, 0.3))
        n_tokens = global_token_count((targets != -100).sum().item(), comm)
        counter.clear()
        first, last = slice(0, 2), slice(2, None)
        with wrapped.no_sync():
            sum_loss(wrapped, inputs[first], targets[first]).backward()
        assert counter.count() == 0, "something was sent inside no_sync"
        own = flat(parameter.grad for parameter in wrapped.module.parameters())
        if wrap is DistributedDataParallel:
            everyones = comm.all_objects(own)
            assert not torch.equal(everyones[0], everyones[1]), "gradients must differ before they are summed"
        sum_loss(wrapped, inputs[last], targets[last]).backward()
        wrapped.finish_gradient_synchronization(1 / n_tokens)
        found[way] = flat(parameter.grad for parameter in wrapped.module.parameters())
    return found


def test_accumulation_without_messages():
    model = gpt(0)
    mean_loss(model, *batch(0, 7, 0.3)).backward()
    expected = flat(parameter.grad for parameter in model.parameters())
    for found in on_ranks(accumulate, 2, counters=[CommCounter(), CommCounter()]):
        for way in WAYS:
            assert far(found[way], expected) < 1e-12, way


def test_two_backward_passes_without_finish():
    def twice(comm):
        wrapped = DistributedDataParallel(gpt(0), comm)
        mean_loss(wrapped, *batch(0)).backward()
        mean_loss(wrapped, *batch(0)).backward()

    with pytest.raises(CommError, match="no_sync"):
        launch_threads(twice, 2)


# parameters that are frozen, tied, unused


class Branching(nn.Module):
    """Uses one of two layers, never a third, never trains a fourth; has a buffer and numbers of two dtypes."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.left, self.right, self.never, self.frozen = (nn.Linear(3, 3).double() for _ in range(5))
        self.frozen.requires_grad_(False)
        self.gain = nn.Parameter(torch.rand(3))
        self.register_buffer("offset", torch.rand(()).double())
        self.register_buffer("switch", torch.tensor(seed == 0))

    def forward(self, x, side):
        x = self.frozen(self.stem(x)) + self.offset * self.switch
        return torch.cat([(self.left if side == "left" else self.right)(x).flatten(), self.gain.double()])


SIDES = (("left", "right"), ("left", "left"), ("right", "left"), ("right", "right"))


def points(step):
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def branch(comm, find_unused):
    found = {}
    for way, wrap in WAYS.items():
        if isinstance(wrap, type) and wrap is DistributedDataParallel:
            wrapped = DistributedDataParallel(Branching(comm.rank), comm, find_unused=find_unused)
        else:
            wrapped = wrap(Branching(comm.rank), comm)
        optimizer = OPTIMIZERS["AdamW"](wrapped.parameters())
        for step, sides in enumerate(SIDES):
            optimizer.zero_grad()
            wrapped(points(step).chunk(2)[comm.rank], sides[comm.rank]).square().mean().backward()
            wrapped.finish_gradient_synchronization()
            optimizer.step()
        found[way] = wrapped.module.state_dict(), wrapped.module.never.weight.grad
    return found


def branch_alone():
    model = Branching(0)
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    for step, sides in enumerate(SIDES):
        optimizer.zero_grad()
        for rows, side in zip(points(step).chunk(2), sides, strict=True):
            (0.5 * model(rows, side).square().mean()).backward()
        optimizer.step()
    return model.state_dict()


def test_unused_and_frozen_parameters_and_buffers():
    expected = branch_alone()
    for found in on_ranks(branch, 2, True):
        for way in WAYS:
            state, gradient = found[way]
            assert gradient is None, way
            for name, tensor in expected.items():
                bound = 1e-6 if tensor.dtype == torch.float32 else 1e-12
                assert far(state[name].double(), tensor.double()) < bound, (way, name)


def test_without_the_question_an_unused_gradient_is_zero():
    for found in on_ranks(branch, 2, False):
        state, gradient = found["one bucket"]
        assert torch.equal(gradient, torch.zeros_like(gradient))


def tied(comm):
    wrapped = DistributedDataParallel(gpt(comm.rank), comm, bucket_bytes=1000)
    assert wrapped.module.logits(torch.zeros(1, 1, 8).double()).shape == (1, 1, V)
    return sum(len(bucket.parameters) for bucket in wrapped.buckets.buckets), wrapped.buckets.launches


def test_tied_weights_have_one_place():
    n_parameters = len(list(gpt(0).parameters()))
    assert launch_threads(tied, 2)[0][0] == n_parameters
    names = [name for name, _ in gpt(0).named_parameters(remove_duplicate=False)]
    assert len(names) >= n_parameters


def test_different_modules_are_refused():
    def frozen_on_one(comm):
        module = nn.Linear(2, 2)
        module.bias.requires_grad_(comm.rank == 0)
        DistributedDataParallel(module, comm)

    def longer_on_one(comm):
        NaiveDataParallel(nn.Sequential(*[nn.Linear(2, 2)] * (1 + comm.rank), nn.Linear(2, 1)), comm)

    for build, says in ((frozen_on_one, "bias .* trainable"), (longer_on_one, "rank 1")):
        with pytest.raises(CommError, match=says):
            launch_threads(build, 2)


def test_a_module_without_parameters():
    def nothing(comm):
        for wrap in WAYS.values():
            wrap(nn.ReLU(), comm).finish_gradient_synchronization()

    launch_threads(nothing, 2)


# buckets


def test_assignment_of_buckets():
    assert assign_buckets([], 10) == []
    assert assign_buckets([5, 5, 5], 10) == [[2, 1], [0]]
    assert assign_buckets([5, 5, 5], 1) == [[2], [1], [0]]
    assert assign_buckets([1, 100, 1], 10) == [[2], [1], [0]]
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        sizes = torch.randint(1, 20, (12,), generator=generator).tolist()
        buckets = assign_buckets(sizes, 25)
        assert [index for bucket in buckets for index in bucket] == list(range(11, -1, -1))
        assert all(sum(sizes[index] for index in bucket) <= 25 for bucket in buckets)
        for bucket, following in zip(buckets, buckets[1:], strict=False):
            assert sum(sizes[index] for index in bucket) + sizes[following[0]] > 25
    with pytest.raises(ConfigError, match="bucket_bytes"):
        assign_buckets([1], 0)


class Chain(nn.Module):
    """Layers whose backward takes `seconds` each without using the processor."""

    def __init__(self, n_layers, width, seconds=0.0):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False).double() for _ in range(n_layers))
        self.seconds = seconds

    def forward(self, x):
        for layer in self.layers:
            x = Pause.apply(layer(x), self.seconds)
        return x


class Pause(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, seconds):
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.seconds)
        return gradient, None


def test_buckets_leave_during_backward_in_reverse_order():
    def log(comm):
        wrapped = DistributedDataParallel(Chain(6, 4), comm, bucket_bytes=2 * 4 * 4 * 8)
        with wrapped.no_sync():
            wrapped(torch.ones(1, 4).double()).sum().backward()
        wrapped(torch.ones(1, 4).double()).sum().backward()
        during = list(wrapped.launches)
        wrapped.finish_gradient_synchronization()
        layers = list(wrapped.module.layers)
        place = {layer.weight: number for number, layer in enumerate(layers)}
        order = [[place[parameter] for parameter in bucket.parameters] for bucket in wrapped.buckets.buckets]
        return during, wrapped.launches, order

    expected = [Launch(0, 2, 4), Launch(1, 4, 2), Launch(2, 6, 0)]
    for during, after, order in launch_threads(log, 2):
        assert during == after == expected
        assert order == [[5, 4], [3, 2], [1, 0]]


def test_ranks_that_finish_in_different_orders_send_in_the_same():
    def reversed_on_one(comm):
        parameters = [nn.Parameter(torch.zeros(2).double()) for _ in range(4)]
        buckets = GradientBuckets(parameters, comm, bucket_bytes=16)
        for parameter in parameters if comm.rank else reversed(parameters):
            parameter.grad = torch.full((2,), comm.rank + 1.0).double()
            buckets.ready(parameter)
        buckets.finish(0.5)
        return [launch.bucket for launch in buckets.launches], [p.grad.tolist() for p in parameters]

    for order, gradients in on_ranks(reversed_on_one, 2, checked=True):
        assert order == [0, 1, 2, 3]
        assert gradients == [[1.5, 1.5]] * 4


def test_bytes_are_two_messages_of_the_model():
    def count(comm):
        sent = {}
        for way, wrap in WAYS.items():
            wrapped = wrap(gpt(0), comm)
            mean_loss(wrapped, *batch(0)).backward() if way == "naive" else None
            comm.counter.clear()
            if way != "naive":
                mean_loss(wrapped, *batch(0)).backward()
            wrapped.finish_gradient_synchronization()
            gradients = [t for t in comm.counter.chosen("all_reduce") if t.n_bytes % 8 == 0 and t.n_bytes > 30]
            sent[way] = len(gradients), sum(t.sent_bytes for t in gradients), comm.counter.count()
        return sent

    model = gpt(0)
    n_bytes, n_parameters = sum(p.nbytes for p in model.parameters()), len(list(model.parameters()))
    for sent in launch_threads(count, 4, counters=[CommCounter() for _ in range(4)]):
        for way in WAYS:
            assert sent[way][1] == 2 * 3 / 4 * n_bytes, way
        assert sent["naive"][0] == n_parameters and sent["flat"][0] == sent["one bucket"][0] == 1
        assert 1 < sent["small buckets"][0] < n_parameters
        assert all(n_messages == n_gradients + 1 for n_gradients, _, n_messages in sent.values())  # who uses what


# overlap on a slow wire


def slow_step(comm, overlap):
    """Seconds of one backward and synchronisation; 8 layers of 15 ms each, and of 15 ms on the wire each."""
    wrapped = DistributedDataParallel(Chain(8, 16, 0.015), comm, bucket_bytes=16 * 16 * 8, overlap=overlap)
    comm.barrier()
    loss = wrapped(torch.ones(1, 16).double()).sum()
    start = time.perf_counter()
    loss.backward()
    wrapped.finish_gradient_synchronization()
    return time.perf_counter() - start


@pytest.mark.slow
def test_overlap_hides_the_wire():
    rate = 16 * 16 * 8 / 0.015  # a ring of two sends the tensor once

    def both(comm):
        return [slow_step(comm, overlap) for overlap in (True, False)]

    for overlapped, serial in on_ranks(both, 2, links=[SlowLink(rate), SlowLink(rate)]):
        assert serial > 0.23  # 120 ms of sleep, then 120 ms of wire: no machine is faster than that
        assert overlapped < 0.85 * serial


# a wrapper is transparent


def test_the_module_is_the_users_own():
    def wrap(comm):
        module = gpt(0)
        names = list(module.state_dict())
        wrapped = DistributedDataParallel(module, comm)
        assert wrapped.module is module and list(wrapped.module.state_dict()) == names
        inputs, _ = batch(0)
        assert torch.equal(wrapped(inputs), module(inputs))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            copy.deepcopy(module.state_dict())

    launch_threads(wrap, 1)
