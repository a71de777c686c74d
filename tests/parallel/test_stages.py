"""Parts of a decoder: together they are the whole, name by name and number by number."""

import itertools

import pytest
import torch

from minillm.errors import ConfigError
from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel.schedules import make_schedule
from minillm.parallel.stages import (
    PipelineStage,
    chunks_of_rank,
    end_costs,
    partition_layers,
)

SIZES = {"vocab_size": 11, "max_seq_len": 8, "n_layers": 4, "n_heads": 4, "d_model": 16}
KINDS = {
    "gpt2": {"bias": True, "position": "learned", "tie_embeddings": True},
    "llama": {
        "norm": "rms", "position": "rotary", "feed_forward": "swiglu", "n_kv_heads": 2, "tie_embeddings": False
    },
    "modern": {
        "norm": "rms", "position": "rotary", "feed_forward": "relu2", "qk_norm": True, "max_score": 8.0,
        "token_shift": True, "embedding_norm": True, "logit_cap": 15.0, "n_kv_heads": 2,
    },
    "alibi": {"position": "alibi", "window": 3, "parallel_block": True},
    "sinusoidal": {"position": "sinusoidal", "norm_bias": True, "embedding_norm": True, "tie_embeddings": False},
}  # fmt: skip


def whole(kind="gpt2", **changes):
    config = GPTConfig(**{**SIZES, **KINDS[kind], **changes})
    return GPT(config, torch.Generator().manual_seed(0)).double()


def token_ids(n_rows=3, n_positions=8):
    return torch.randint(11, (n_rows, n_positions), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("n_layers", range(1, 9))
def test_no_other_cut_has_a_lighter_slowest_stage(n_layers):
    for n_stages in range(1, n_layers + 1):
        for first, last in itertools.product((0.0, 0.5, 2.0), (0.0, 1.0, 3.5)):
            stages = partition_layers(n_layers, n_stages, first, last)
            assert [layer for stage in stages for layer in stage] == list(range(n_layers))
            extra = [0.0] * n_stages
            extra[0] += first
            extra[-1] += last
            slowest = max(len(stage) + more for stage, more in zip(stages, extra, strict=True))
            cuts = itertools.combinations(range(1, n_layers), n_stages - 1)
            counts = [[b - a for a, b in itertools.pairwise([0, *cut, n_layers])] for cut in cuts]
            best = min(max(n + more for n, more in zip(count, extra, strict=True)) for count in counts)
            assert slowest == best


def test_the_head_is_counted_by_its_multiplications():
    model = whole("llama", vocab_size=48)
    in_block = sum(p.numel() for name, p in model.blocks[0].named_parameters() if p.dim() == 2)
    assert end_costs(model.config) == (0.0, model.head.weight.numel() / in_block)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_ranks", "n_chunks"), [(1, 1), (2, 1), (4, 1), (2, 2)])
def test_stages_one_after_another_are_the_whole_model(kind, n_ranks, n_chunks):
    model, ids = whole(kind), token_ids()
    expected = model(ids)
    stages = [PipelineStage(model, rank, n_ranks, n_chunks) for rank in range(n_ranks)]
    schedule = make_schedule("interleaved" if n_chunks > 1 else "gpipe", n_ranks, n_ranks, n_chunks)
    x = ids
    for number in range(schedule.n_stages):
        rank, chunk = schedule.place(number)
        x = stages[rank](x, chunk)
        if number < schedule.n_stages - 1:
            assert x.shape == stages[rank].boundary_shape(*ids.shape)
    torch.testing.assert_close(x, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_keeps_its_name_and_is_on_one_rank_except_a_tied_table(kind):
    model = whole(kind)
    names = []
    for rank in range(3):
        part = PipelineStage(model, rank, 3)
        for name, parameter in part.named_parameters():
            assert torch.equal(parameter, model.get_parameter(name))
            names.append(name)
    is_tied = model.config.tie_embeddings
    twice = ["token_embedding.weight"] if is_tied else []
    assert sorted(names) == sorted([name for name, _ in model.named_parameters()] + twice)


def test_the_copy_of_a_tied_table_has_its_own_memory():
    model = whole("gpt2")
    first, last = (PipelineStage(model, rank, 2) for rank in range(2))
    assert last.holds_tied_copy and not first.holds_tied_copy
    assert first.token_embedding.weight.data_ptr() != last.token_embedding.weight.data_ptr()
    assert not PipelineStage(model, 0, 1).holds_tied_copy


def test_a_stage_is_in_the_mode_of_its_model():
    assert not PipelineStage(whole().eval(), 0, 2).training


@pytest.mark.parametrize(
    ("n_ranks", "n_chunks", "changes", "message"),
    [
        (5, 1, {}, "pp=5 with 1 chunk.* needs 5 layers or more, the model has n_layers 4"),
        (2, 3, {}, "needs 6 layers"),
        (1, 2, {}, "2 chunks on one rank"),
        (2, 1, {"n_experts": 2, "n_active_experts": 1}, "mixture of 2 experts cannot be cut into stages"),
    ],
)
def test_what_does_not_fit_is_refused(n_ranks, n_chunks, changes, message):
    with pytest.raises(ConfigError, match=message):
        chunks_of_rank(GPTConfig(**{**SIZES, **changes}), 0, n_ranks, n_chunks)


def test_too_many_stages_for_the_layers():
    with pytest.raises(ConfigError, match="2 layers cannot be cut into 3 stages"):
        partition_layers(2, 3)
