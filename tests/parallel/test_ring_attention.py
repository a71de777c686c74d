"""Attention round a ring against one process in float64: values, gradients, training, bytes, memory, balance."""

import copy
import itertools

import pytest
import torch
from torch.nn import functional as F

from minillm.errors import ConfigError, ShapeError
from minillm.models.gpt import GPT, GPTConfig
from minillm.nn.attention import attention, causal_mask
from minillm.parallel import ring_attention as ring
from minillm.parallel import zigzag as zigzag_module
from minillm.parallel.launch import launch
from minillm.parallel.ring_attention import merge_parts, ring_attention, ring_attention_bytes
from minillm.parallel.ring_model import use_ring_attention
from minillm.parallel.threads import launch_threads
from minillm.parallel.traffic import CommCounter
from minillm.parallel.zigzag import cut_sequence, join_sequence, positions_of, scores_per_round
from minillm.train.recompute import kept_bytes


def inputs(n_positions, n_heads=4, n_kv_heads=2, dtype=torch.float64):
    """Query, key, value and the gradient that comes back, of the whole sequence."""
    generator = torch.Generator().manual_seed(n_positions)
    heads = (n_heads, n_kv_heads, n_kv_heads, n_heads)
    return [torch.randn(2, h, n_positions, 6, generator=generator, dtype=torch.float64).to(dtype) for h in heads]


def of_one(whole, causal):
    """The same by the readable function of chapter 8, in one process."""
    query, key, value = (x.clone().requires_grad_() for x in whole[:3])
    mask = causal_mask(query.shape[2], query.shape[2]) if causal else None
    output = attention(query, key, value, mask)
    output.backward(whole[3])
    return [output.detach(), query.grad, key.grad, value.grad]


def of_share(comm, whole, causal, zigzag, attend=ring_attention):
    query, key, value, gradient = (cut_sequence(x, comm.rank, comm.size, zigzag, dim=2) for x in whole)
    for x in (query, key, value):
        x.requires_grad_()
    output = attend(query, key, value, comm, causal, zigzag)
    output.backward(gradient)
    return [output.detach(), query.grad, key.grad, value.grad]


def difference(shares, expected, zigzag):
    joined = [join_sequence(list(parts), zigzag, dim=2) for parts in zip(*shares, strict=True)]
    return max((found - wanted).abs().max().item() for found, wanted in zip(joined, expected, strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_values_and_gradients_are_those_of_one_process(size):
    cases = list(itertools.product((True, False), (True, False)))

    def run(comm):
        return [of_share(comm, inputs(24), causal, zigzag) for causal, zigzag in cases]

    of_rank = launch(run, size, timeout_seconds=20, show_output=False)
    for case, (causal, zigzag) in enumerate(cases):
        assert difference([found[case] for found in of_rank], of_one(inputs(24), causal), zigzag) < 1e-12


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (6, 2), (4, 1)])
def test_shared_heads(heads):
    whole = inputs(24, *heads)
    shares = launch_threads(of_share, 3, whole, True, True)
    assert difference(shares, of_one(whole, True), True) < 1e-12


def test_pieces_longer_than_a_tile():
    whole = [x[:1] for x in inputs(4 * 270, 2, 1)]
    shares = launch_threads(of_share, 2, whole, True, True)
    assert difference(shares, of_one(whole, True), True) < 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_narrow_numbers_are_added_up_in_wide_ones(dtype, tolerance):
    whole = inputs(48, dtype=dtype)
    expected = of_one([x.double() for x in whole], True)
    shares = launch_threads(of_share, 4, whole, True, True)
    assert all(x.dtype == dtype for share in shares for x in share)
    assert difference(shares, expected, True) < tolerance


def test_merging_is_attention_over_both():
    generator = torch.Generator().manual_seed(0)
    scores = 5 * torch.randn(3, 10, generator=generator, dtype=torch.float64)
    value = torch.randn(10, 4, generator=generator, dtype=torch.float64)

    def part(begin, end):
        return scores[:, begin:end].softmax(-1) @ value[begin:end], scores[:, begin:end].logsumexp(-1, True) * ring_log2

    ring_log2 = torch.tensor(2.0, dtype=torch.float64).log().reciprocal()
    whole, found = part(0, 10), merge_parts(*part(0, 3), *part(3, 10))
    for ours, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-14)
    nothing = torch.zeros(3, 4, dtype=torch.float64), torch.full((3, 1), -torch.inf, dtype=torch.float64)
    assert torch.equal(merge_parts(*nothing, *whole)[0], whole[0])


def plain_mean(output, log_sum, other, other_log_sum):
    weight = (log_sum > -torch.inf).double() / 2  # forgets how much each part weighs
    return output * weight + other * (1 - weight), torch.logaddexp2(log_sum, other_log_sum)


def natural_logarithm(output, log_sum, other, other_log_sum):
    total = torch.logaddexp(log_sum, other_log_sum)
    return output * (log_sum - total).exp() + other * (other_log_sum - total).exp(), total


def sees_all(queries, keys, causal=True):
    return [(i, j, False) for i in range(len(queries)) for j in range(len(keys))]


def sees_no_diagonal(queries, keys, causal=True):
    pairs = [(i, j) for i in range(len(queries)) for j in range(len(keys))]
    return [(i, j, False) for i, j in pairs if keys[j] <= queries[i]]


class StaysBehind(ring.Passing):
    """The gradients of keys and values do not travel home."""

    def __init__(self, tensor, comm, tag):
        super().__init__(tensor, comm, tag)
        self.mine = tensor if tag == ring.GRADIENTS else None

    def wait(self):
        return super().wait() if self.mine is None else super().wait().copy_(self.mine)


class OtherWay(ring.Passing):
    """Visitors come from the rank after, but are taken for those of the rank before."""

    def __init__(self, tensor, comm, tag):
        self.incoming = torch.empty_like(tensor)
        after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        self.pending = comm.exchange(tensor, before, self.incoming, after, tag, async_op=True)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("merge_parts", plain_mean),
        ("merge_parts", natural_logarithm),
        ("visible_pairs", sees_all),
        ("visible_pairs", sees_no_diagonal),
        ("Passing", StaysBehind),
        ("Passing", OtherWay),
    ],
)
def test_the_comparison_notices_wrong_rings(monkeypatch, name, wrong):
    monkeypatch.setattr(ring, name, wrong)
    shares = launch_threads(of_share, 3, inputs(24), True, True)
    assert not difference(shares, of_one(inputs(24), True), True) < 1e-3


def test_a_wrong_cut_is_noticed():
    """Zigzag shares that are taken for consecutive ones see the wrong past."""

    def run(comm):
        whole = inputs(24)
        query, key, value, gradient = (cut_sequence(x, comm.rank, comm.size, True, dim=2) for x in whole)
        return [ring_attention(query, key, value, comm, True, zigzag=False)]

    assert difference(launch_threads(run, 3), of_one(inputs(24), True)[:1], True) > 0.1


def counted(comm, n_positions):
    of_share(comm, inputs(n_positions, dtype=torch.float32), True, True)
    backward = comm.counter.sent_bytes()
    comm.counter.clear()
    with torch.no_grad():
        query, key, value, _ = (cut_sequence(x, comm.rank, comm.size, dim=2) for x in inputs(n_positions))
        ring_attention(query.float(), key.float(), value.float(), comm)
    forward = comm.counter.sent_bytes()
    return forward, backward - forward


@pytest.mark.parametrize("size", [1, 2, 4])
def test_bytes_sent_are_those_of_the_formula(size):
    n_positions = 48
    n_bytes = 2 * (2 * 2 * n_positions * 6) * 4 // size  # keys and values of 2 rows, 2 heads, width 6 in float32
    found = launch_threads(counted, size, n_positions, counters=[CommCounter() for _ in range(size)])
    assert found == [ring_attention_bytes(size, n_bytes, n_bytes)] * size


def test_a_rank_keeps_its_share_and_nothing_else():
    def kept(comm):
        query, key, value, _ = (
            cut_sequence(x, comm.rank, comm.size, dim=2).requires_grad_() for x in inputs(96, dtype=torch.float32)
        )
        return kept_bytes(lambda: ring_attention(query, key, value, comm))

    whole = launch_threads(kept, 1)[0]
    # query and output of 4 heads, keys and values of 2, width 6, one logarithm per query: 2 rows, float32
    assert whole == 2 * 96 * (2 * 4 * 6 + 2 * 2 * 6 + 4) * 4
    for size in (2, 4):
        assert launch(kept, size, timeout_seconds=20, show_output=False) == [whole // size] * size


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_zigzag_gives_all_ranks_the_same_work_in_every_round(size):
    n = 6 * size
    zigzag, plain = (scores_per_round(size, 2 * n, zigzag=choice) for choice in (True, False))
    for rounds in (zigzag, plain):
        assert sum(map(sum, rounds)) == 2 * n * (2 * n + 1) // 2  # every past position once
    assert all(rounds == zigzag[0] for rounds in zigzag)
    share = 2 * n // size
    own = share * (share + 1) // 2
    assert [sum(rounds) for rounds in plain] == [share * share * rank + own for rank in range(size)]
    slowest = [sum(max(rounds[step] for rounds in found) for step in range(size)) for found in (zigzag, plain)]
    assert slowest[1] == (size - 1) * share**2 + own  # nearly twice as long as need be
    assert slowest[0] == zigzag[0][0] + (size - 1) * share**2 // 2


def test_scores_are_really_counted(monkeypatch):
    """The formula against the tiles that are computed: positions seen through the masks of `Sight`."""
    seen = []
    attend = ring.attend

    def counting(query, key, value, sight):
        n = query.shape[2]
        seen.append(n * (n + 1) // 2 if sight.causal else n * n)
        return attend(query, key, value, sight)

    monkeypatch.setattr(ring, "attend", counting)

    def run(comm):
        seen.clear()
        query, key, value, _ = (cut_sequence(x, comm.rank, comm.size, dim=2) for x in inputs(48))
        ring_attention(query, key, value, comm)
        return list(seen)

    for rank, found in enumerate(launch(run, 4, timeout_seconds=20, show_output=False)):
        expected = scores_per_round(4, 48)[rank]
        assert len(found) == 3 + 2 * 3
        assert [sum(found[:3])] + [sum(found[i : i + 2]) for i in (3, 5, 7)] == expected


def test_cutting_and_joining():
    x = torch.arange(2 * 24 * 3).view(2, 24, 3)
    for size, zigzag in itertools.product((1, 2, 3, 4), (True, False)):
        shares = [cut_sequence(x, rank, size, zigzag) for rank in range(size)]
        assert torch.equal(join_sequence(shares, zigzag), x)
        places = torch.cat([positions_of(rank, size, 24, zigzag) for rank in range(size)])
        assert sorted(places.tolist()) == list(range(24))


CONFIGS = {
    "learned": {"position": "learned", "bias": True},
    "rotary": {"position": "rotary", "n_kv_heads": 2, "norm": "rms", "feed_forward": "swiglu", "tie_embeddings": False},
    "sinusoidal": {"position": "sinusoidal", "qk_norm": True, "parallel_block": True},
}


def new_model(name):
    config = GPTConfig(vocab_size=13, max_seq_len=32, n_layers=2, n_heads=4, d_model=16, **CONFIGS[name])
    model = GPT(config, torch.Generator().manual_seed(0)).double()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data *= 8.0  # so that it matters who looks where
    return model


def trained(model, tokens, n_targets, comm=None):
    """A few steps; `comm` adds gradients and losses up over its ranks."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    losses = []
    for ids, targets in tokens:
        loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), reduction="sum") / n_targets
        optimizer.zero_grad()
        loss.backward()
        if comm is not None:
            together = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
            comm.all_reduce(together)
            parts = together.split([parameter.numel() for parameter in model.parameters()])
            for parameter, part in zip(model.parameters(), parts, strict=True):
                parameter.grad.copy_(part.view_as(parameter))
        optimizer.step()
        losses.append(loss.item() if comm is None else comm.all_numbers(loss.item()))
    return losses, [parameter.detach() for parameter in model.parameters()]


def batches():
    ids = torch.randint(13, (2, 25), generator=torch.Generator().manual_seed(1))
    return [(ids[:, :-1], ids[:, 1:])] * 3


def train_share(comm, names, zigzag):
    found = []
    for name in names:
        model = new_model(name)
        use_ring_attention(model, comm, zigzag)
        tokens = [[cut_sequence(x, comm.rank, comm.size, zigzag) for x in pair] for pair in batches()]
        found.append(trained(model, tokens, 48, comm))
    return found


RUNS = [
    (launch, 2, True),
    pytest.param(launch_threads, 3, True, marks=pytest.mark.slow),
    pytest.param(launch, 4, False, marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize(("start", "size", "zigzag"), RUNS)
def test_a_decoder_trains_as_on_one_process(start, size, zigzag):
    expected_of = [trained(new_model(name), batches(), 48) for name in CONFIGS]
    of_rank = start(train_share, size, list(CONFIGS), zigzag, timeout_seconds=20)
    for case, (losses, weights) in enumerate(expected_of):
        assert losses[0] - losses[-1] > 0.1
        for found in of_rank:
            torch.testing.assert_close(found[case][0], losses, rtol=0, atol=1e-12)
            for ours, expected in zip(found[case][1], weights, strict=True):
                torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_without_positions_of_its_own_a_rank_is_wrong():
    """What `use_ring_attention` tells the model matters: each rank counting from 0 is another model."""

    def run(comm, name):
        model = new_model(name)
        use_ring_attention(model, comm)
        ids = cut_sequence(batches()[0][0], comm.rank, comm.size)
        from_zero = torch.arange(ids.shape[1]).expand_as(ids)
        return model(ids), model(ids, positions=from_zero)

    for name in ("learned", "rotary"):
        right, wrong = ([pair[i].detach() for pair in launch_threads(run, 2, name)] for i in (0, 1))
        expected = new_model(name)(batches()[0][0]).detach()
        assert (join_sequence(right) - expected).abs().max() < 1e-12
        assert (join_sequence(wrong) - expected).abs().max() > 1e-2


def test_bad_input():
    def run(comm):
        x = torch.zeros(1, 3, 4, 2)
        for wrong, text in (
            ((x, x[:, :2], x[:, :2]), "cannot share 2"),
            ((x[:, :, :3], x[:, :, :3], x[:, :, :3]), "two equal pieces"),
            ((x, x[:, :, :2], x), "key"),
            ((x[0], x[0], x[0]), "query"),
        ):
            with pytest.raises(ShapeError, match=text):
                ring_attention(*wrong, comm)
        model = new_model("rotary")
        use_ring_attention(model, comm)
        ids = torch.zeros(1, 4, dtype=torch.long)
        with pytest.raises(ShapeError, match="takes no cache"):
            model(ids, model.make_cache(1))
        with pytest.raises(ShapeError, match="takes no mask"):
            model(ids, mask=torch.ones(1, 4, dtype=torch.bool))
        with pytest.raises(ShapeError, match="36 positions do not fit"):
            model(torch.zeros(1, 36, dtype=torch.long))
        return True

    assert launch_threads(run, 1) == [True]
    with pytest.raises(ShapeError, match="take a multiple of 6"):
        zigzag_module.positions_of(0, 3, 9)
    config = GPTConfig(vocab_size=5, max_seq_len=8, n_layers=1, n_heads=2, d_model=8)
    for change in ({"position": "alibi"}, {"window": 3}, {"token_shift": True}):
        settings = {**copy.copy(config.__dict__), **change}
        with pytest.raises(ConfigError, match="ring attention cannot cut it"):
            use_ring_attention(GPT(GPTConfig(**settings)), None)
