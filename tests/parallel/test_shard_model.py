"""A decoder on several tensor-parallel ranks is the decoder on one: loss, gradients, norm, training, what is sent."""

import copy
import math

import pytest
import torch

from minillm.errors import ConfigError, DataError, ShapeError
from minillm.models.gpt import GPT, GPTConfig
from minillm.nn.onednn_linear import use_onednn
from minillm.parallel.comm import CommCounter
from minillm.parallel.launch import launch
from minillm.parallel.layout import GPT_PLAN, join_slices, slice_of, tensor_layout
from minillm.parallel.mesh import Mesh, MeshSize
from minillm.parallel.shard_model import finish_tensor_gradients, shard_model
from minillm.parallel.threads import launch_threads
from minillm.parallel.vocab_loss import VocabParallelLoss, vocab_parallel_cross_entropy
from minillm.train.loss import next_token_loss

SMALL = {"vocab_size": 24, "max_seq_len": 12, "n_layers": 2, "n_heads": 4, "d_model": 16}
KINDS = {
    "gpt2": GPTConfig(**SMALL, bias=True),
    "llama": GPTConfig(
        **SMALL, n_kv_heads=4, norm="rms", position="rotary", feed_forward="swiglu", d_ff=32, tie_embeddings=False
    ),
    "modern": GPTConfig(
        **SMALL | {"n_heads": 8}, n_kv_heads=4, norm="rms", norm_weight=False, position="rotary", feed_forward="relu2",
        qk_norm=True, token_shift=True, max_score=6.0, logit_cap=15.0, embedding_norm=True, tie_embeddings=False,
    ),
    "falcon": GPTConfig(**SMALL, position="alibi", parallel_block=True, norm_bias=True, window=5, kernels="naive"),
    "sines": GPTConfig(**SMALL, position="sinusoidal", norm="rms", feed_forward="geglu", d_ff=32, bias=True),
}


def whole_model(kind: str) -> GPT:
    """A decoder in float64 whose norms and biases are away from where they start, so that their gradients matter."""
    generator = torch.Generator().manual_seed(3)
    model = GPT(KINDS[kind], generator).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).mul(0.2))
    return model


def batch(seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(24, (3, 12), generator=generator)
    targets = torch.randint(24, (3, 12), generator=generator)
    targets[0, 3:7] = -100
    return inputs, targets


def reference(kind: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one process."""
    model = whole_model(kind)
    loss = next_token_loss(model, *batch()) / 32
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def parallel_gradients(comm, kind: str, sequence_parallel: bool, finish: bool = True) -> tuple:
    model = whole_model(kind)
    sharding = shard_model(model, GPT_PLAN, comm, sequence_parallel)
    loss = VocabParallelLoss(comm)(model, *batch()) / 32
    loss.backward()
    if finish:
        finish_tensor_gradients(model, sharding)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    squares = sum(g.square().sum().item() for name, g in gradients.items() if sharding.is_counted(name))
    return loss.item(), gradients, math.sqrt(comm.all_numbers(squares))


def joined(results: list[tuple], kind: str) -> dict[str, torch.Tensor]:
    """Whole gradients; what all ranks hold whole must be equal on all of them to the last bit but rounding."""
    layout = tensor_layout(KINDS[kind])
    whole = {}
    for name, split in layout.items():
        parts = [gradients[name] for _, gradients, *_ in results]
        if split is None:
            for part in parts[1:]:
                torch.testing.assert_close(part, parts[0], rtol=0, atol=1e-14, msg=name)
        whole[name] = join_slices(parts, split)
    return whole


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_loss_gradients_and_norm_are_those_of_one_process(kind, world_size, sequence_parallel):
    loss, gradients = reference(kind)
    results = launch_threads(parallel_gradients, world_size, kind, sequence_parallel)
    found = joined(results, kind)
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm().item()
    for one_loss, _, one_norm in results:
        assert one_loss == pytest.approx(loss, abs=1e-13)
        assert one_norm == pytest.approx(norm, rel=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-12, msg=name)


def train_steps(comm_or_none, kind: str, sequence_parallel: bool) -> list[float]:
    """Losses of six steps of AdamW with clipping; with or without ranks."""
    model = whole_model(kind)
    loss_sum, sharding = next_token_loss, None
    if comm_or_none is not None:
        sharding = shard_model(model, GPT_PLAN, comm_or_none, sequence_parallel)
        loss_sum = VocabParallelLoss(comm_or_none)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(6):
        inputs, targets = batch(step)
        optimizer.zero_grad()
        loss = loss_sum(model, inputs, targets) / 32
        loss.backward()
        squares = [(name, p.grad.square().sum().item()) for name, p in model.named_parameters()]
        if sharding is not None:
            finish_tensor_gradients(model, sharding)
            squares = [(name, p.grad.square().sum().item()) for name, p in model.named_parameters()]
            total = comm_or_none.all_numbers(sum(square for name, square in squares if sharding.is_counted(name)))
        else:
            total = sum(square for _, square in squares)
        for parameter in model.parameters():
            parameter.grad.mul_(min(1.0, 0.5 / math.sqrt(total)))
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", ["gpt2", "modern"])
def test_training_in_processes_is_training_in_one(kind):
    """Six clipped steps of AdamW over gloo, plain and sequence-parallel, on a mesh of which this is one axis."""
    expected = train_steps(None, kind, False)

    def run(comm):
        return train_steps(comm, kind, False), train_steps(comm, kind, True)

    for plain, sequence in launch(run, 2, timeout_seconds=30, show_output=False):
        assert plain == pytest.approx(expected, abs=1e-12)
        assert sequence == pytest.approx(expected, abs=1e-12)


def with_dropout(comm_or_none) -> tuple[float, dict[str, torch.Tensor]]:
    config = GPTConfig(**{**vars_of(KINDS["gpt2"]), "dropout": 0.2})
    model = GPT(config, torch.Generator().manual_seed(3)).double()
    loss_sum = next_token_loss
    if comm_or_none is not None:
        shard_model(model, GPT_PLAN, comm_or_none)
        loss_sum = VocabParallelLoss(comm_or_none)
    torch.manual_seed(11)
    loss = loss_sum(model, *batch())
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def test_dropout_with_one_seed_on_all_ranks_is_that_of_one_process():
    loss, gradients = with_dropout(None)
    results = launch(with_dropout, 2, timeout_seconds=20, show_output=False)
    assert all(result[0] == pytest.approx(loss, abs=1e-11) for result in results)
    for name, gradient in joined(results, "gpt2").items():
        torch.testing.assert_close(gradient, gradients[name], rtol=0, atol=1e-11, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_with_a_cache_of_this_ranks_heads(kind):
    """Token by token, each the most probable; modern has a vector of the token before, falcon a window."""
    model = whole_model(kind)

    def continued(model: GPT) -> list[int]:
        ids, cache = batch()[0][:1, :5], model.make_cache(1)
        found = []
        with torch.no_grad():
            for _ in range(6):
                ids = model(ids, cache)[:, -1].argmax(-1, keepdim=True)
                found.append(ids.item())
        return found

    def run(comm):
        part = whole_model(kind)
        shard_model(part, GPT_PLAN, comm, gather_logits=True)
        assert part.make_cache(1).keys.shape[2] * comm.size == model.make_cache(1).keys.shape[2]
        return continued(part)

    assert launch_threads(run, 2) == [continued(model)] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_slices_of_the_model_that_one_process_would_make(kind):
    """E6, bit by bit."""
    whole = GPT(KINDS[kind], torch.Generator().manual_seed(7))
    layout = tensor_layout(whole)

    def parts(comm):
        model = GPT(KINDS[kind], torch.Generator().manual_seed(7))
        shard_model(model, GPT_PLAN, comm)
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    results = launch_threads(parts, 4)
    for rank, mine in enumerate(results):
        assert list(mine) == list(layout)
        for name, parameter in whole.named_parameters():
            assert torch.equal(mine[name], slice_of(parameter, layout[name], rank, 4)), name


def test_gathered_logits_are_those_of_one_process():
    inputs, targets = batch()
    for kind in KINDS:
        model = whole_model(kind)
        expected = model(inputs)
        next_token_loss(model, inputs, targets).backward()

        def run(comm, kind=kind):
            part = whole_model(kind)
            sharding = shard_model(part, GPT_PLAN, comm, gather_logits=True)
            logits = part(inputs)
            next_token_loss(part, inputs, targets).backward()      # the usual loss works on whole logits
            sharding.head.gather_logits = False
            return logits.detach(), part(inputs).detach(), part.token_embedding.weight.grad

        results = launch_threads(run, 2)
        torch.testing.assert_close(results[0][0], expected.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(torch.cat([r[1] for r in results], -1), expected.detach(), rtol=0, atol=1e-12)
        gradient = torch.cat([result[2] for result in results])
        torch.testing.assert_close(gradient, model.token_embedding.weight.grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_collectives_of_a_step(kind):
    """E3: per layer 2 all-reduces forward, 2 backward, of B T C numbers; with sequence parallelism 2 all-gathers and 2
    reduce-scatters forward, 4 and 2 backward, however many products read one input."""
    numbers = 3 * 12 * 16
    for n_layers, sequence_parallel in ((1, False), (2, False), (1, True), (2, True)):
        config = GPTConfig(**{**vars_of(KINDS[kind]), "n_layers": n_layers})
        counters = [CommCounter(), CommCounter()]

        def run(comm, config=config, sequence_parallel=sequence_parallel):
            model = GPT(config, torch.Generator().manual_seed(0))
            shard_model(model, GPT_PLAN, comm, sequence_parallel)
            comm.counter.clear()
            logits = model(batch()[0])
            forward = copy.deepcopy(comm.counter)
            comm.counter.clear()
            logits.sum().backward()
            return forward, comm.counter

        forward, backward = launch_threads(run, 2, counters=counters)[0]
        sizes = {transfer.n_bytes for transfer in forward.transfers + backward.transfers}
        assert sizes == {4 * numbers}
        embedding, head = 1, 1
        if sequence_parallel:
            assert forward.count("all_reduce") == embedding and backward.count("all_reduce") == 0
            assert forward.count("all_gather") == 2 * n_layers + head
            assert forward.count("reduce_scatter") == 2 * n_layers
            # behind the blocks one more: the gradient of the positions that were scattered before the first block
            assert backward.count("all_gather") == 4 * n_layers + head + 1
            assert backward.count("reduce_scatter") == 2 * n_layers + head
        else:
            assert forward.count("all_reduce") == len(forward.transfers) == 2 * n_layers + embedding
            assert backward.count("all_reduce") == len(backward.transfers) == 2 * n_layers + head


def vars_of(config: GPTConfig) -> dict:
    return {name: getattr(config, name) for name in GPTConfig.__dataclass_fields__}


def test_without_the_extra_sum_gradients_of_norms_and_biases_are_wrong():
    """E5 and its mutation: other gradients stay right, so the loss alone would not show it."""
    _, gradients = reference("gpt2")
    results = launch_threads(parallel_gradients, 2, "gpt2", True, False)
    layout = tensor_layout(KINDS["gpt2"])
    wrong = {
        name
        for name, gradient in gradients.items()
        if layout[name] is None and (results[0][1][name] - gradient).abs().max() > 1e-3 * gradient.abs().max()
    }
    expected = {
        name for name in layout
        if ("attention_norm" in name or "feed_forward_norm" in name or "final_norm" in name)
        or name.endswith(("output.bias", "down.bias"))
    }  # fmt: skip
    assert wrong == expected
    whole = {name: g for name, g in gradients.items() if name not in expected}
    for name, gradient in whole.items():
        parts = [result[1][name] for result in results]
        torch.testing.assert_close(join_slices(parts, layout[name]), gradient, rtol=0, atol=1e-12, msg=name)


def test_a_replicated_parameter_counted_on_each_rank_makes_the_norm_too_large():
    """E7's mutation."""
    loss, gradients = reference("gpt2")
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm().item()
    results = launch_threads(parallel_gradients, 4, "gpt2", False)
    everything = sum(g.square().sum().item() for _, gradients, _ in results for g in gradients.values())
    assert math.sqrt(everything) > 1.05 * norm


def test_a_shared_norm_of_queries_and_keys_is_summed():
    """Its weight is whole on all ranks, and each sees its own heads only."""

    def model_with_gains() -> GPT:
        model = whole_model("modern")
        for block in model.blocks:
            block.attention.qk_norm.weight = torch.nn.Parameter(torch.linspace(0.5, 1.5, 2, dtype=torch.float64))
        return model

    single = model_with_gains()
    next_token_loss(single, *batch()).backward()
    expected = single.blocks[0].attention.qk_norm.weight.grad

    def run(comm):
        model = model_with_gains()
        sharding = shard_model(model, GPT_PLAN, comm)
        VocabParallelLoss(comm)(model, *batch()).backward()
        before = model.blocks[0].attention.qk_norm.weight.grad.clone()
        finish_tensor_gradients(model, sharding)
        return before, model.blocks[0].attention.qk_norm.weight.grad

    for before, after in launch_threads(run, 2):
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-11)
        assert (before - expected).abs().max() > 1e-3 * expected.abs().max()


def test_frozen_parameters_stay_without_gradient():
    def run(comm):
        model = whole_model("gpt2")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" not in name and "qkv" not in name)
        sharding = shard_model(model, GPT_PLAN, comm, sequence_parallel=True)
        VocabParallelLoss(comm)(model, *batch()).backward()
        finish_tensor_gradients(model, sharding)
        return {name for name, parameter in model.named_parameters() if parameter.grad is None}

    for names in launch_threads(run, 2):
        assert names == {name for name in tensor_layout(KINDS["gpt2"]) if "norm" in name or "qkv" in name}


def test_another_product_put_in_afterwards_keeps_the_regions():
    """`use_onednn` exchanges what multiplies; gradients of both stay those of one process."""
    model = whole_model("llama").float()
    next_token_loss(model, *batch()).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}

    def run(comm, sequence_parallel, before):
        part = whole_model("llama").float()
        if before:
            use_onednn(part, anyway=True)
        sharding = shard_model(part, GPT_PLAN, comm, sequence_parallel)
        if not before:
            use_onednn(part, anyway=True)
        loss = VocabParallelLoss(comm)(part, *batch())
        loss.backward()
        finish_tensor_gradients(part, sharding)
        return loss.item(), {name: parameter.grad for name, parameter in part.named_parameters()}

    for settings in ((False, True), (False, False), (True, True), (True, False)):
        found = joined_loosely(launch_threads(run, 2, *settings))
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), (name, settings)


def joined_loosely(results: list[tuple]) -> dict[str, torch.Tensor]:
    layout = tensor_layout(KINDS["llama"])
    return {name: join_slices([gradients[name] for _, gradients in results], split) for name, split in layout.items()}


def test_autocast_to_16_bits_stays_close():
    inputs, targets = batch()
    loss = next_token_loss(whole_model("llama").float(), inputs, targets).item()

    def run(comm, sequence_parallel):
        model = whole_model("llama").float()
        shard_model(model, GPT_PLAN, comm, sequence_parallel)
        with torch.autocast("cpu", torch.bfloat16):
            value = VocabParallelLoss(comm)(model, inputs, targets)
        value.backward()
        assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
        return value.item()

    for sequence_parallel in (False, True):
        for value in launch_threads(run, 2, sequence_parallel):
            assert value == pytest.approx(loss, rel=0.01)


def test_refusals():
    def refuse(comm, config, **settings):
        shard_model(GPT(config), GPT_PLAN, comm, **settings)

    with pytest.raises(ConfigError, match="tp=3 does not divide n_heads 4"):
        launch_threads(refuse, 3, KINDS["gpt2"])
    with pytest.raises(ConfigError, match="mixture of 4 experts"):
        launch_threads(refuse, 2, GPTConfig(**SMALL, n_experts=4, n_active_experts=2))

    def twice(comm):
        model = GPT(KINDS["gpt2"])
        shard_model(model, GPT_PLAN, comm)
        shard_model(model, GPT_PLAN, comm)

    with pytest.raises(ConfigError, match="cut before"):
        launch_threads(twice, 2)

    def odd_length(comm):
        model = GPT(KINDS["gpt2"])
        shard_model(model, GPT_PLAN, comm, sequence_parallel=True)
        model(torch.zeros(1, 5, dtype=torch.int64))

    with pytest.raises(ShapeError, match="cannot be cut into 2 equal parts"):
        launch_threads(odd_length, 2)

    def unknown_id(comm, ids, targets):
        model = GPT(KINDS["gpt2"])
        shard_model(model, GPT_PLAN, comm)
        vocab_parallel_cross_entropy(model(ids), targets, comm)

    good, bad = torch.zeros(1, 4, dtype=torch.int64), torch.full((1, 4), 24)
    with pytest.raises(DataError, match="vocabulary has ids 0 to 23"):
        launch_threads(unknown_id, 2, bad, good)
    with pytest.raises(DataError, match="target id 24"):
        launch_threads(unknown_id, 2, good, bad)
    with pytest.raises(ShapeError, match="expected targets"):
        launch_threads(unknown_id, 2, good, good[:, :3])


def test_a_mesh_gives_its_axis():
    def run(world):
        model = GPT(KINDS["gpt2"])
        return shard_model(model, GPT_PLAN, Mesh(MeshSize(tp=2), world)).comm.name, model.blocks[0].attention.n_heads

    assert launch_threads(run, 2) == [("tp", 2), ("tp", 2)]
