"""Graders of chapter 11: each test names the task it belongs to; `impl` is the library or a learner's file.

The oracles keep all scores: torch's softmax and automatic derivatives, lists of positions, and counting one by one.
"""

import math

import torch

from minillm.course.grader import Wrong, expect, expect_close, expect_equal, expect_error, normal, task
from minillm.models.registry import model_config

LN_2 = math.log(2.0)
LOWEST = torch.finfo(torch.float64).min


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


# 11.1 the running softmax


def oracle_state(scores, value):
    """Maximum, sum of powers and mixture over all keys at once; scores (N, R, K) in units of ln 2."""
    highest = scores.amax(dim=-1, keepdim=True) if scores.shape[-1] else scores.new_full((*scores.shape[:2], 1), LOWEST)
    highest = highest.clamp(min=LOWEST)
    powers = torch.exp((scores - highest) * LN_2)
    return highest, powers.sum(dim=-1, keepdim=True), powers @ value


def fresh_state(scores, value):
    """What stands before the first step."""
    highest = scores.new_full((*scores.shape[:2], 1), torch.finfo(scores.dtype).min)
    return highest, torch.zeros_like(highest), scores.new_zeros(*scores.shape[:2], value.shape[-1])


def expect_state(got, expected, what, tolerance=1e-10):
    expect(isinstance(got, tuple) and len(got) == 3, f"{what}: expected a tuple of highest, total and mixed")
    for name, ours, theirs in zip(("highest", "total", "mixed"), got, expected, strict=True):
        expect_close(ours, theirs, tolerance=tolerance, what=f"{name} {what}")


@task("11.1")
def test_three_scores_one_at_a_time(impl, rng):
    state = tensor([[[LOWEST]]]), tensor([[[0]]]), tensor([[[0]]])
    steps = ((1, 8, (1, 1, 8)), (3, 4, (3, 1.25, 6)), (2, 6, (3, 1.75, 9)))
    for score, value, expected in steps:
        state = impl.running_softmax(tensor([[[score]]]), tensor([[[value]]]), *state)
        expect_state(state, [tensor([[[number]]]) for number in expected], f"after a score of {score}, value {value}")


@task("11.1", cases=3)
def test_any_cut_of_the_keys_gives_the_softmax_of_all(impl, rng):
    n_keys = int(rng.integers(3, 12))
    scores, value = 8 * normal(rng, 2, 5, n_keys), normal(rng, 2, n_keys, 3)
    cuts = sorted({0, n_keys, *rng.integers(1, n_keys, 3).tolist()})
    state = fresh_state(scores, value)
    for first, last in zip(cuts, cuts[1:], strict=False):
        state = impl.running_softmax(scores[..., first:last].clone(), value[:, first:last], *state)
        expect_state(state, oracle_state(scores[..., :last], value[:, :last]), f"after {last} of {n_keys} keys")
    whole = (scores * LN_2).softmax(dim=-1) @ value
    expect_close(state[2] / state[1], whole, what="mixed / total after the last step")


@task("11.1")
def test_rising_and_falling_scores_of_any_size(impl, rng):
    for size in (1.0, 500.0, 1e5):
        for order in ("up", "down"):
            steps = torch.arange(6, dtype=torch.float64)
            scores = size * (steps if order == "up" else 5 - steps).expand(1, 2, 6)
            value = normal(rng, 1, 6, 2)
            state = fresh_state(scores, value)
            for place in range(0, 6, 2):
                part = slice(place, place + 2)
                state = impl.running_softmax(scores[..., part].clone(), value[:, part], *state)
            expect_state(state, oracle_state(scores, value), f"for scores that go {order} by {size:g}")


@task("11.1")
def test_hidden_keys_change_nothing(impl, rng):
    scores, value = normal(rng, 2, 4, 9), normal(rng, 2, 9, 3)
    scores[0, 1] = -math.inf                                       # a query that sees nothing at all
    scores[..., 3:6] = -math.inf                                   # and a step in which nobody sees anything
    scores[1, 2, :5] = -math.inf
    state = fresh_state(scores, value)
    for part in (slice(0, 3), slice(3, 6), slice(6, 9)):
        state = impl.running_softmax(scores[..., part].clone(), value[:, part], *state)
        expected = oracle_state(scores[..., : part.stop], value[:, : part.stop])
        expect_state(state, expected, f"after {part.stop} keys of which some are hidden")


@task("11.1")
def test_what_must_stay_stays(impl, rng):
    scores, value = normal(rng, 1, 3, 4), normal(rng, 1, 4, 2)
    state = oracle_state(normal(rng, 1, 3, 4), normal(rng, 1, 4, 2))
    given = [scores.clone(), value, *(part.clone() for part in state)]
    _, after = impl.running_softmax.after(*given)
    for name, place, before in (("value", 1, value), ("highest", 2, state[0]), ("total", 3, state[1])):
        expect_equal(after[place], before, what=f"{name} after the call (only scores and mixed may be overwritten)")
    single = [x.float() for x in (scores, value)]
    got = impl.running_softmax(single[0].clone(), single[1], *fresh_state(*single))
    expect_state(got, [x.float() for x in oracle_state(scores, value)], "in float32", tolerance=1e-5)


# 11.3 a block of queries


def sight_of(impl, n_queries, n_keys, n_columns, n_rows=64, causal=False, window=0, mask=None, slopes=None):
    return impl.Sight(n_queries, n_keys, n_rows, n_columns, causal or window > 0, window, mask, slopes)


def allowed_pairs(n_queries, n_keys, causal=False, window=0, mask=None):
    """(H or 1, T, S) bool, pair by pair."""
    past = n_keys - n_queries
    rows = [
        [(not (causal or window) or s <= t + past) and (not window or s > t + past - window) for s in range(n_keys)]
        for t in range(n_queries)
    ]
    pairs = torch.tensor(rows, dtype=torch.bool).view(1, n_queries, n_keys)
    return pairs if mask is None else pairs & mask[0]


def oracle_rows(wanted, keys, values, rows, allowed, bias=None):
    """All scores of some queries at once; wanted (N, R, D), allowed and bias (H or 1, T, S) of all queries."""
    n_rows = rows.stop - rows.start
    n_groups, n_sharing = len(wanted), wanted.shape[1] // n_rows
    shape = (n_groups * n_sharing, n_rows, keys.shape[1])
    scores = (wanted @ keys.mT).view(shape) * LN_2                 # (H, T, S), natural
    if bias is not None:
        scores = scores + bias.expand(shape[0], -1, -1)[:, rows]
    scores = scores.masked_fill(~allowed.expand(shape[0], -1, -1)[:, rows], -math.inf).view(*wanted.shape[:2], -1)
    log_sums = torch.logsumexp(scores, dim=-1, keepdim=True) / LN_2
    return scores.softmax(dim=-1).nan_to_num(0.0) @ values, log_sums.masked_fill(log_sums == -math.inf, 0.0)


def expect_rows(impl, rng, n_rows, n_keys, tile, what, n_groups=2, n_sharing=1, n_queries=6, size=1.0, **settings):
    """Compare a block of queries in the middle of all."""
    rows = slice(n_queries - n_rows, n_queries) if settings.pop("last", False) else slice(1, 1 + n_rows)
    bias, slopes = settings.pop("bias", None), settings.get("slopes")
    wanted = size * normal(rng, n_groups, n_sharing * n_rows, 4)
    keys, values = normal(rng, n_groups, n_keys, 4), normal(rng, n_groups, n_keys, 4)
    sight = sight_of(impl, n_queries, n_keys, tile, **settings)
    allowed = allowed_pairs(n_queries, n_keys, settings.get("causal"), settings.get("window"), settings.get("mask"))
    added = None if bias is None else bias[0]
    if slopes is not None:
        distances = torch.arange(n_keys) - torch.arange(n_keys - n_queries, n_keys)[:, None]
        falling = -slopes[:, None, None] * distances.abs()
        added = falling if added is None else added + falling
    expected = oracle_rows(wanted, keys, values, rows, allowed, added)
    room = wanted.new_full((wanted.shape[0] * wanted.shape[1] * min(tile, n_keys),), math.nan)
    got = impl.mix_rows(wanted.clone(), keys, values, bias, sight, rows, room)
    expect(isinstance(got, tuple) and len(got) == 2, f"{what}: expected the mixed values and the logarithms")
    for name, ours, theirs in zip(("the mixed values", "the logarithms"), got, expected, strict=True):
        expect_close(ours, theirs, what=f"{name}, {what}")


@task("11.3")
def test_one_query_and_three_keys_by_hand(impl, rng):
    wanted, keys, values = tensor([[[1]]]), tensor([[[1], [3], [2]]]), tensor([[[8], [4], [6]]])
    for tile in (1, 2, 3, 5):
        got = impl.mix_rows(wanted, keys, values, None, sight_of(impl, 1, 3, tile), slice(0, 1), tensor([0.0] * 3))
        expected = tensor([[[72 / 14]]]), tensor([[[math.log2(14)]]])  # powers 2, 8 and 4
        for name, ours, theirs in zip(("the mixed value", "the logarithm"), got, expected, strict=True):
            expect_close(ours, theirs, what=f"{name} of scores 1, 3, 2, values 8, 4, 6, {tile} keys at a time")


@task("11.3", cases=2, needs=("11.2",))
def test_blocks_of_queries_under_every_rule(impl, rng):
    n_keys = int(rng.integers(6, 13))
    for tile in (1, 3, 4, 20):
        for n_sharing in (1, 3):
            words = f"{n_sharing} heads share keys, {tile} keys at a time"
            shared = {"n_sharing": n_sharing}
            expect_rows(impl, rng, 2, n_keys, tile, f"everything is seen, {words}", **shared)
            expect_rows(impl, rng, 3, n_keys, tile, f"causal, {words}", causal=True, **shared)
            expect_rows(impl, rng, 3, n_keys, tile, f"a window of 3, {words}", window=3, last=True, **shared)


@task("11.3", needs=("11.2",))
def test_masks_biases_and_slopes(impl, rng):
    for tile in (2, 3, 9):
        mask = torch.from_numpy(rng.random((1, 4, 6, 9)) < 0.5)
        mask[:, :, 2], mask[:, 1, 3] = False, False                # queries that may see nothing
        bias, slopes = normal(rng, 1, 4, 6, 9), tensor([0.5, 0.25, 0.125, 1.0])
        shared = {"n_sharing": 2}
        expect_rows(impl, rng, 3, 9, tile, f"a mask, {tile} keys at a time", mask=mask, **shared)
        expect_rows(impl, rng, 3, 9, tile, f"a bias, {tile} keys at a time", bias=bias, **shared)
        falling = {"slopes": slopes, "causal": True}
        expect_rows(impl, rng, 3, 9, tile, f"slopes and causal, {tile} keys at a time", **falling, **shared)
        everything = {"mask": mask, "bias": bias, "slopes": slopes, "window": 4}
        expect_rows(impl, rng, 3, 9, tile, f"all together, {tile} keys at a time", **everything, **shared)


@task("11.3", needs=("11.2",))
def test_queries_that_see_nothing_give_zeros(impl, rng):
    mask = torch.zeros(1, 1, 6, 7, dtype=torch.bool)
    mask[..., 2, 4] = True
    expect_rows(impl, rng, 3, 7, 2, "one pair of all is allowed", mask=mask)
    expect_rows(impl, rng, 2, 7, 2, "no pair is allowed", mask=torch.zeros_like(mask))


@task("11.3", needs=("11.2",))
def test_scores_of_any_size_and_float32(impl, rng):
    for size in (1e-3, 1e3, 1e6):
        expect_rows(impl, rng, 3, 9, 2, f"scores of size {size:g}", size=size, causal=True)
    low = torch.full((1, 1, 6, 9), -5000.0, dtype=torch.float64)
    expect_rows(impl, rng, 3, 9, 2, "a bias of -5000 on every score", bias=low)
    wanted, keys, values = (normal(rng, 1, n, 4).float() for n in (2, 5, 5))
    rows, room, mask = slice(0, 2), torch.zeros(8), torch.tensor([[[[True] * 4 + [False]]]])
    got = impl.mix_rows(wanted, keys, values, None, sight_of(impl, 2, 5, 4, mask=mask), rows, room)
    allowed = mask[0].expand(1, 2, 5)
    expected = oracle_rows(wanted.double(), keys.double(), values.double(), rows, allowed)
    for name, ours, theirs in zip(("mixed values", "logarithms"), got, expected, strict=True):
        expect_close(ours, theirs.float(), tolerance=1e-5, what=f"float32 {name}")


# 11.4 the gradients of a tile


def random_rows(rng, n_groups=2, n_rows=5, n_keys=9, width=4, hidden=0.2, size=1.0):
    """Queries, keys, values and upstream gradients, and which pairs are hidden; the first key never is."""
    query, upstream = size * normal(rng, n_groups, n_rows, width), normal(rng, n_groups, n_rows, width)
    key, value = normal(rng, n_groups, n_keys, width), normal(rng, n_groups, n_keys, width)
    hide = torch.from_numpy(rng.random((n_groups, n_rows, n_keys)) < hidden)
    hide[..., 0] = False
    return query, key, value, upstream, hide


def tile_of(rows, part=slice(None)):
    """What `tile_gradients` is given for some of the keys, and what autograd says about it with all scores kept."""
    query, key, value, upstream, hide = rows
    scores = (query @ key.mT).masked_fill(hide, -math.inf)         # (N, R, S), over ln 2
    natural, leaf = (scores * LN_2).requires_grad_(), value.clone().requires_grad_()
    result = natural.softmax(dim=-1) @ leaf
    for_scores, for_value = torch.autograd.grad(result, [natural, leaf], upstream)
    log_sums = torch.logsumexp(natural.detach(), dim=-1, keepdim=True) / LN_2
    common = (result.detach() * upstream).sum(dim=-1, keepdim=True)
    tile, keys = for_scores[..., part], key[:, part]
    room = torch.full((tile.numel(),), math.nan, dtype=torch.float64)
    given = scores[..., part].clone(), query, keys, value[:, part], upstream, log_sums, common, room
    return given, (tile, tile @ keys, tile.mT @ query, for_value[:, part])


NAMES = (
    "the gradient of the scores",
    "its product with the keys",
    "its product with the queries",
    "the gradient of the values",
)


def expect_gradients(got, expected, what, tolerance=1e-10):
    expect(isinstance(got, tuple) and len(got) == 4, f"{what}: expected four gradients, got {type(got).__name__}")
    for name, ours, theirs in zip(NAMES, got, expected, strict=True):
        expect_close(ours, theirs, tolerance=tolerance, what=f"{name}, {what}")


@task("11.4")
def test_one_query_and_two_keys_by_hand(impl, rng):
    scores, query, key, value = tensor([[[1, 0]]]), tensor([[[1]]]), tensor([[[1], [0]]]), tensor([[[6], [3]]])
    upstream, log_sums, common = tensor([[[2]]]), tensor([[[math.log2(3)]]]), tensor([[[10]]])  # shares 2/3 and 1/3
    got = impl.tile_gradients(scores, query, key, value, upstream, log_sums, common, tensor([0, 0]))
    expected = [[[4 / 3, -4 / 3]]], [[[4 / 3]]], [[[4 / 3], [-4 / 3]]], [[[4 / 3], [2 / 3]]]
    expect_gradients(got, [tensor(x) for x in expected], "shares of 2/3 and 1/3, values 6 and 3, upstream 2")


@task("11.4", cases=3)
def test_tiles_against_automatic_derivatives(impl, rng):
    rows = random_rows(rng)
    for part in (slice(0, 9), slice(0, 1), slice(3, 7), slice(8, 9)):
        given, expected = tile_of(rows, part)
        expect_gradients(impl.tile_gradients(*given), expected, f"keys {part.start} to {part.stop - 1} of 9")


@task("11.4")
def test_tiles_of_all_shapes(impl, rng):
    for n_groups, n_rows, n_keys, width in ((1, 1, 1, 1), (1, 4, 4, 4), (3, 1, 6, 2), (2, 7, 3, 5)):
        given, expected = tile_of(random_rows(rng, n_groups, n_rows, n_keys, width))
        what = f"{n_rows} queries, {n_keys} keys of width {width}"
        expect_gradients(impl.tile_gradients(*given), expected, what)


@task("11.4")
def test_the_gradients_of_all_tiles_sum_to_zero_in_each_row(impl, rng):
    rows, parts = random_rows(rng), (slice(0, 4), slice(4, 9))
    got = [impl.tile_gradients(*tile_of(rows, part)[0])[0] for part in parts]
    for part, found in zip(parts, got, strict=True):
        expect_close(found, tile_of(rows, part)[1][0], what=f"{NAMES[0]}, keys {part.start} to {part.stop - 1}")
    sums = sum(found.sum(dim=-1) for found in got)
    expect_close(sums, torch.zeros_like(sums), what="row sums of the gradients of the scores over both tiles")


@task("11.4")
def test_huge_scores_hidden_keys_and_float32(impl, rng):
    for size in (100.0, 1e5):
        given, expected = tile_of(random_rows(rng, size=size))
        expect_gradients(impl.tile_gradients(*given), expected, f"scores of size {size:g}", tolerance=1e-7)
    given, expected = tile_of(random_rows(rng, hidden=1.0))
    expect_gradients(impl.tile_gradients(*given), expected, "everything hidden but the first key")
    given, expected = tile_of(random_rows(rng))
    got = impl.tile_gradients(*(x.float() for x in given))
    expect_gradients(got, [x.float() for x in expected], "float32", tolerance=1e-4)


@task("11.4")
def test_what_a_tile_must_not_change(impl, rng):
    given, _ = tile_of(random_rows(rng))
    _, after = impl.tile_gradients.after(*(x.clone() for x in given))
    names = ("query", "key", "value", "upstream", "log_sums", "common")
    for name, before, left in zip(names, given[1:], after[1:], strict=False):
        expect_equal(left, before, what=f"{name} after the call (other tiles of the row need it)")


# 11.2 which blocks of keys


def oracle_blocks(n_queries, n_keys, n_columns, rows, causal, window, mask):
    """By the pairs that causal and window allow: from the first key to the last, cut, hidden blocks left out."""
    allowed = allowed_pairs(n_queries, n_keys, causal, window)[0, rows]
    seen = [s for s in range(n_keys) if bool(allowed[:, s].any())]
    blocks = []
    for start in range(seen[0], seen[-1] + 1, n_columns):
        stop = min(start + n_columns, seen[-1] + 1)
        whole = None if mask is None else mask.expand(*mask.shape[:2], n_queries, n_keys)
        if whole is None or bool(whole[:, :, rows, start:stop].any()):
            blocks.append((start, stop))
    return blocks


def expect_blocks(impl, n_queries, n_keys, n_columns, rows, causal=False, window=0, mask=None):
    sight = sight_of(impl, n_queries, n_keys, n_columns, causal=causal, window=window, mask=mask)
    got = list(impl.Sight.column_blocks(sight, rows))  # a dataclass travels by value: its methods here are not theirs
    rule = f"window {window}" if window else "causal" if causal else "everything seen"
    what = f"blocks of {n_columns} for queries {rows.start} to {rows.stop - 1} of {n_queries}, {n_keys} keys, {rule}"
    if mask is not None:
        what += f", a mask of shape {tuple(mask.shape)}"
    if not all(isinstance(each, slice) and each.step in (None, 1) for each in got):
        raise Wrong(f"{what}: expected slices, got {got}")
    found = [(each.start, each.stop) for each in got]
    expect_equal(found, oracle_blocks(n_queries, n_keys, n_columns, rows, causal, window, mask), what=what)


@task("11.2")
def test_every_block_where_all_is_seen(impl, rng):
    for n_keys, n_columns in ((8, 2), (8, 3), (7, 7), (5, 9), (6, 1)):
        expect_blocks(impl, 4, n_keys, n_columns, slice(0, 4))
        expect_blocks(impl, 9, n_keys, n_columns, slice(3, 5))


@task("11.2")
def test_nothing_after_the_last_query(impl, rng):
    for n_queries, n_keys in ((8, 8), (4, 9), (1, 6)):
        for n_columns in (1, 2, 3, 20):
            for start in range(0, n_queries, 2):
                expect_blocks(impl, n_queries, n_keys, n_columns, slice(start, min(start + 2, n_queries)), causal=True)


@task("11.2")
def test_nothing_before_the_first_window(impl, rng):
    for n_queries, n_keys in ((12, 12), (4, 11), (1, 9)):
        for window in (1, 2, 4, 5, 30):
            for n_columns in (1, 2, 3, 20):
                for start in range(0, n_queries, 3):
                    rows = slice(start, min(start + 3, n_queries))
                    expect_blocks(impl, n_queries, n_keys, n_columns, rows, window=window)


@task("11.2", cases=2)
def test_blocks_that_the_mask_hides_are_left_out(impl, rng):
    for shape in ((1, 1, 6, 9), (2, 1, 1, 9), (1, 3, 6, 9), (1, 2, 6, 1), (1, 1, 1, 1)):
        for share in (0.0, 0.1, 0.5, 1.0):
            mask = torch.from_numpy(rng.random(shape) < share)
            for rows in (slice(0, 2), slice(3, 6)):
                for rule in ({}, {"causal": True}, {"window": 4}):
                    expect_blocks(impl, 6, 9, 2, rows, mask=mask, **rule)


# 11.5 the ring


def new_ring(impl, window, n_layers=2, batch_size=2, n_heads=2, room=30, width=3):
    return impl.RingCache(n_layers, batch_size, n_heads, room, width, window=window, dtype=torch.float64)


@task("11.5")
def test_five_positions_in_three_slots(impl, rng):
    cache = new_ring(impl, 3, n_layers=1, batch_size=1, n_heads=1, width=1)
    for position in range(5):
        new = tensor([[[[position]]]])
        keys, values = cache.update(0, new, new + 10)
        cache.advance(1)
        seen = [float(place) for place in range(max(0, position - 2), position + 1)]
        expect_equal(keys.flatten().tolist(), seen, what=f"keys that position {position} sees in a window of 3")
        expect_equal(values.flatten().tolist(), [10 + place for place in seen], what=f"values at position {position}")
    expect_equal(cache.get("keys").flatten().tolist(), [3.0, 4.0, 2.0], what="the three slots after positions 0 to 4")


@task("11.5", cases=3)
def test_any_pieces_through_any_window(impl, rng):
    for window in (1, 2, 3, 7, 40):
        cache, written = new_ring(impl, window), []
        for n_new in (int(rng.integers(1, 9)), 1, 1, int(rng.integers(0, 12)), 1):
            length = sum(part[0][0].shape[2] for part in written)
            layers = [(normal(rng, 2, 2, n_new, 3), normal(rng, 2, 2, n_new, 3)) for _ in range(2)]
            written.append(layers)
            for layer, (key, value) in enumerate(layers):
                got = cache.update(layer, key, value)
                n_past = min(length, window - 1)
                for kind, ours in enumerate(got):
                    whole = torch.cat([part[layer][kind] for part in written], dim=2)
                    name = ("keys", "values")[kind]
                    what = f"{name} of layer {layer}, {n_new} new after {length}, window {window}"
                    expect_equal(ours, whole[:, :, length - n_past :], what=what)
            cache.advance(n_new)
        expect_slots(cache, written, min(window, 30))


def expect_slots(cache, written, n_slots):
    """Position p must lie in slot p % n_slots."""
    for kind, name in enumerate(("keys", "values")):
        stored = cache.get(name)
        for layer in range(2):
            whole = torch.cat([part[layer][kind] for part in written], dim=2)
            n_positions = whole.shape[2]
            for position in range(max(0, n_positions - n_slots), n_positions):
                slot = position % n_slots
                what = f"{name} of position {position} in slot {slot}"
                expect_equal(stored[layer, :, :, slot], whole[:, :, position], what=what)
        expect_equal(tuple(stored.shape), (2, 2, 2, n_slots, 3), what=f"shape of the stored {name}")


@task("11.5")
def test_what_was_returned_is_not_overwritten_later(impl, rng):
    cache = new_ring(impl, 2, n_layers=1, batch_size=1, n_heads=1, width=1)
    given = [tensor([[[[number]]]]) for number in (1, 2, 3)]
    first, after = cache.update.after(0, given[0], given[0])
    expect_equal(after[1], given[0], what="key after the call")
    cache.advance(1)
    for new in given[1:]:
        cache.update(0, new, new)
        cache.advance(1)
    expect_equal(cache.get("keys").flatten().tolist(), [3.0, 2.0], what="the two slots after three positions")
    expect_equal(cache.get("length"), 3, what="length (advance counts, update does not)")


@task("11.5")
def test_numbers_of_another_width_are_stored_in_that_of_the_cache(impl, rng):
    cache, key, value = new_ring(impl, 4), normal(rng, 2, 2, 3, 3).float(), normal(rng, 2, 2, 3, 3).float()
    cache.update(1, key, value)
    expect_equal(cache.get("keys")[1, :, :, :3], key.double(), what="float32 keys in a float64 cache")
    expect_equal(cache.get("values")[1, :, :, :3], value.double(), what="float32 values in a float64 cache")


@task("11.5")
def test_too_many_positions_and_other_shapes_are_refused_before_anything_is_written(impl, rng):
    cache = new_ring(impl, 4, room=9)
    cache.advance(8)
    bad = [((2, 2, 2, 3),) * 2, ((2, 2, 1, 4),) * 2, ((1, 2, 1, 3),) * 2, ((2, 2, 1, 3), (2, 2, 0, 3))]
    for key_shape, value_shape in bad:
        with expect_error(ValueError):
            cache.update(0, normal(rng, *key_shape), normal(rng, *value_shape))
        expect(not cache.get("keys").any(), f"keys of shape {key_shape} were refused, and yet something was written")
    cache.update(0, normal(rng, 2, 2, 1, 3), normal(rng, 2, 2, 1, 3))
    expect(bool(cache.get("keys").any()), "one position fits into a room of 9 after 8, and was not written")


# 11.6 bytes


@task("11.6")
def test_bytes_of_known_shapes(impl, rng):
    llama = {"n_layers": 32, "n_heads": 32, "d_model": 4096}
    known = {
        "GPT-2 small": ("gpt2", {"n_layers": 12, "n_heads": 12, "d_model": 768}, 1024, 36_864 * 1024),
        "LLaMA 7B": ("llama", llama, 4096, 2 * 2**30),
        "the same with 8 heads of keys and values": ("llama", llama | {"n_kv_heads": 8}, 4096, 2**29),
        "the same with one": ("llama", llama | {"n_kv_heads": 1}, 4096, 2**26),
    }
    for name, (family, shape, n_positions, expected) in known.items():
        config = model_config(family, "tiny", 1000, n_positions, **shape)
        expect_equal(impl.cache_bytes(config, 1), expected, what=f"bytes of {name} for {n_positions} positions in bf16")
        of_three = 3 * 5 * expected // n_positions
        expect_equal(impl.cache_bytes(config, 3, 5), of_three, what=f"bytes of {name} for 3 texts of 5 positions")


@task("11.6", cases=3)
def test_bytes_counted_one_number_at_a_time(impl, rng):
    n_layers, n_groups, width, batch_size = (int(rng.integers(1, 5)) for _ in range(4))
    shape = {"n_layers": n_layers, "n_heads": 2 * n_groups, "n_kv_heads": n_groups, "d_model": 4 * width * n_groups}
    for window in (0, 1, 6, 50):
        config = model_config("llama", "tiny", 1000, 20, window=window, **shape)
        for n_positions in (0, 1, 5, 6, 7, 20):
            for n_bytes in (2, 4):
                kept = [p for p in range(n_positions or 20) if not window or p >= (n_positions or 20) - window]
                expected = sum(n_bytes * n_groups * 2 * width for _ in kept) * 2 * n_layers * batch_size
                got = impl.cache_bytes(config, batch_size, n_positions, n_bytes)
                what = f"{n_layers} layers, {n_groups} heads of {2 * width}, {n_positions} positions, window {window}"
                expect_equal(got, expected, what=what)
