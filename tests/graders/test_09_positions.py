"""Graders of chapter 09: each test names the task it belongs to; `impl` is the library or a learner's file.

The oracles are sines of single numbers, complex multiplication, lists of row numbers, and exact whole numbers.
"""

import cmath
import math

import torch

from minillm.course.grader import expect_close, expect_equal, expect_error, normal, task
from minillm.errors import ConfigError

LAYOUTS = ("halves", "interleaved")


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


# 9.1 sinusoidal vectors


def oracle_sinusoids(positions, d_model, base):
    """Number by number: even places have sines, the place behind each the cosine of the same angle."""
    rows = []
    for position in positions:
        angles = [position / base ** (2 * pair / d_model) for pair in range(d_model // 2)]
        rows.append([wave(angle) for angle in angles for wave in (math.sin, math.cos)])
    return tensor(rows)


@task("9.1")
def test_sines_and_cosines_by_hand(impl, rng):
    expected = tensor([[0, 1, 0, 1], [math.sin(3), math.cos(3), math.sin(0.3), math.cos(0.3)]])
    got = impl.sinusoidal_positions(torch.tensor([0, 3]), d_model=4, base=100.0)
    expect_close(got, expected, what="positions 0 and 3, width 4, base 100")


@task("9.1", cases=3)
def test_vectors_of_any_positions(impl, rng):
    positions = rng.integers(0, 5000, 6).tolist()
    for d_model in (2, 6, 16):
        got = impl.sinusoidal_positions(torch.tensor(positions), d_model)
        expect_close(got, oracle_sinusoids(positions, d_model, 10000.0), what=f"positions {positions}, width {d_model}")
        base = float(rng.uniform(2, 500))
        got = impl.sinusoidal_positions(torch.tensor(positions), d_model, base)
        expect_close(got, oracle_sinusoids(positions, d_model, base), what=f"width {d_model}, base {base:.2f}")


@task("9.1")
def test_leading_sizes_and_the_input_are_kept(impl, rng):
    positions = torch.from_numpy(rng.integers(0, 100, (2, 3, 4)))
    got, after = impl.sinusoidal_positions.after(positions, 6)
    expected = oracle_sinusoids(positions.flatten().tolist(), 6, 10000.0).view(2, 3, 4, 6)
    expect_close(got, expected, what="positions of shape (2, 3, 4)")
    expect_equal(after[0], positions, what="positions after the call")
    got = impl.sinusoidal_positions(torch.tensor(7), 4)
    expect_close(got, oracle_sinusoids([7], 4, 10000.0)[0], what="one single position")
    got = impl.sinusoidal_positions(torch.zeros(0, dtype=torch.int64), 4)
    expect_close(got, torch.zeros(0, 4, dtype=torch.float64), what="no position at all")


@task("9.1")
def test_odd_widths_and_bad_bases_are_refused(impl, rng):
    for d_model, base in ((5, 10000.0), (1, 10.0), (4, 0.0), (4, -1.0)):
        with expect_error(ValueError):
            impl.sinusoidal_positions(torch.arange(3), d_model, base)


# 9.2 rotation


def pairs_of(width, layout):
    """The places of the two numbers of each pair."""
    half = width // 2
    return [(pair, pair + half) if layout == "halves" else (2 * pair, 2 * pair + 1) for pair in range(half)]


def oracle_rotation(x, angles, layout):
    """Each pair is a complex number, multiplied by e^(i * angle)."""
    turned = [None] * x.shape[-1]
    for pair, (first, second) in enumerate(pairs_of(x.shape[-1], layout)):
        number = torch.complex(x[..., first], x[..., second]) * torch.exp(1j * angles[..., pair])
        turned[first], turned[second] = number.real, number.imag
    return torch.stack(turned, dim=-1)


@task("9.2")
def test_turns_by_hand(impl, rng):
    x, angles = tensor([[1, 2, 3, 4]]), tensor([[math.pi / 2, math.pi]])
    for layout, expected in (("halves", [[-3, -2, 1, -4]]), ("interleaved", [[-2, 1, -3, -4]])):
        got = impl.rotate(x, angles.cos(), angles.sin(), layout)
        expect_close(got, tensor(expected), what=f"a quarter and a half turn of (1, 2, 3, 4), {layout}")
    got = impl.rotate(x, angles.cos(), angles.sin())
    expect_close(got, tensor([[-3, -2, 1, -4]]), what="the same without naming the layout, which means halves")
    number = cmath.rect(1, 0.5) * (3 + 4j)
    got = impl.rotate(tensor([[3, 4]]), tensor([[math.cos(0.5)]]), tensor([[math.sin(0.5)]]), layout="interleaved")
    expect_close(got, tensor([[number.real, number.imag]]), what="the pair (3, 4) turned by 0.5")


@task("9.2", cases=2)
def test_rotation_is_complex_multiplication(impl, rng):
    for layout in LAYOUTS:
        for width in (2, 6, 8):
            for leading in ((), (2,), (2, 3)):
                x, angles = normal(rng, *leading, 5, width), 3 * normal(rng, 5, width // 2)
                got = impl.rotate(x, angles.cos(), angles.sin(), layout)
                expect_close(got, oracle_rotation(x, angles, layout), what=f"{layout}, shape {tuple(x.shape)}")


@task("9.2")
def test_every_row_of_a_batch_may_have_its_own_angles(impl, rng):
    x, angles = normal(rng, 2, 3, 4, 6), 3 * normal(rng, 2, 1, 4, 3)
    for layout in LAYOUTS:
        got = impl.rotate(x, angles.cos(), angles.sin(), layout)
        expect_close(got, oracle_rotation(x, angles, layout), what=f"{layout}, angles of shape (2, 1, 4, 3)")


@task("9.2")
def test_dtype_input_and_empty_sizes_are_kept(impl, rng):
    x, angles = normal(rng, 3, 4, dtype=torch.float32), normal(rng, 3, 2)
    for layout in LAYOUTS:
        got, after = impl.rotate.after(x, angles.cos(), angles.sin(), layout)
        expected = oracle_rotation(x.double(), angles, layout).float()
        expect_close(got, expected, tolerance=1e-5, what=f"{layout}, float32 vectors, float64 angles")
        for name, given, left in zip(("x", "cosine", "sine"), (x, angles.cos(), angles.sin()), after, strict=False):
            expect_equal(left, given, what=f"{name} after the call")
        got = impl.rotate(x[:0].double(), angles[:0].cos(), angles[:0].sin(), layout)
        expect_close(got, torch.zeros(0, 4, dtype=torch.float64), what=f"{layout}, no position at all")


@task("9.2")
def test_gradients_turn_back(impl, rng):
    x, angles, gradient = normal(rng, 2, 3, 6), 3 * normal(rng, 3, 3), normal(rng, 2, 3, 6)
    for layout in LAYOUTS:
        _, got = impl.rotate.gradients(x, angles.cos(), angles.sin(), layout, output_gradient=gradient)
        expect_close(got[0], oracle_rotation(gradient, -angles, layout), what=f"{layout}, gradient of x")


@task("9.2")
def test_unknown_layouts_are_refused(impl, rng):
    for layout in ("half", "pairs", ""):
        with expect_error(ValueError):
            impl.rotate(normal(rng, 3, 4), torch.ones(3, 2), torch.zeros(3, 2), layout)


# 9.3 one layout's rows for the other


def oracle_order(n_heads, d_head, layout):
    """Row r of the result is row order[r] of the weight, which is written for the other layout."""
    other = LAYOUTS[1 - LAYOUTS.index(layout)]
    order = [None] * (n_heads * d_head)
    for head in range(n_heads):
        pairs = zip(pairs_of(d_head, layout), pairs_of(d_head, other), strict=True)
        for to, source in pairs:
            for one, another in zip(to, source, strict=True):
                order[head * d_head + one] = head * d_head + another
    return order


@task("9.3", cases=2)
def test_rows_of_every_head_in_the_other_order(impl, rng):
    for layout in LAYOUTS:
        for n_heads, d_head in ((1, 2), (1, 6), (3, 4), (2, 8)):
            weight = normal(rng, n_heads * d_head, 5)
            expected = weight[oracle_order(n_heads, d_head, layout)]
            got = impl.rotary_rows(weight, d_head, layout)
            expect_equal(got, expected, what=f"{n_heads} heads of width {d_head} for {layout}")


@task("9.3")
def test_biases_further_dimensions_and_the_input(impl, rng):
    for layout in LAYOUTS:
        order = oracle_order(2, 6, layout)
        bias = torch.arange(12)
        got, after = impl.rotary_rows.after(bias, d_head=6, layout=layout)
        expect_equal(got, torch.tensor(order), what=f"a bias of 12 numbers in 2 heads for {layout}")
        expect_equal(after[0], bias, what="weight after the call")
        weight = normal(rng, 12, 2, 3, dtype=torch.float32)
        expect_equal(impl.rotary_rows(weight, 6, layout), weight[order], what=f"rows of shape (2, 3) for {layout}")


@task("9.3")
def test_scores_are_the_same_in_the_other_layout(impl, rng):
    x, angles = normal(rng, 5, 7), 3 * normal(rng, 5, 3)
    query, key = normal(rng, 6, 7), normal(rng, 6, 7)

    def scores(query, key, layout):
        return oracle_rotation(x @ query.T, angles, layout) @ oracle_rotation(x @ key.T, angles, layout).T

    for layout in LAYOUTS:
        other = LAYOUTS[1 - LAYOUTS.index(layout)]
        moved = [impl.rotary_rows(weight, 6, layout) for weight in (query, key)]
        for name, given, got in zip(("query", "key"), (query, key), moved, strict=True):
            expect_equal(got, given[oracle_order(1, 6, layout)], what=f"{name} rows for {layout}")
        expect_close(scores(*moved, layout), scores(query, key, other), what=f"scores in layout {layout}")


@task("9.3")
def test_rows_that_are_no_heads_are_refused(impl, rng):
    bad = ((6, 3, "halves"), (6, 4, "halves"), (4, 0, "halves"), (4, -2, "halves"), (4, 4, "x"))
    for n_rows, d_head, layout in bad:
        with expect_error(ValueError):
            impl.rotary_rows(normal(rng, n_rows, 3), d_head, layout)


# 9.4 buckets of distances


def oracle_bucket(distance, n_buckets, max_distance, bidirectional):
    """In whole numbers only: bucket N/2 + k begins where (far / (N/2))^m reaches (max / (N/2))^k, m = N - N/2."""
    n_each = n_buckets // 2 if bidirectional else n_buckets
    n_exact = n_each // 2
    n_shared = n_each - n_exact
    direction = n_each if bidirectional and distance > 0 else 0
    far = abs(distance) if bidirectional else max(-distance, 0)
    if far < n_exact:
        return direction + far
    step = 1
    while step < n_shared and far**n_shared * n_exact**step >= max_distance**step * n_exact**n_shared:
        step += 1
    return direction + n_exact + step - 1


def expect_each(got, expected, distances, n_buckets, max_distance, bidirectional):
    """Distance by distance, so that the message names the first that is in a wrong bucket."""
    words = "both directions" if bidirectional else "earlier keys only"
    what = f"{n_buckets} buckets up to {max_distance}, {words}"
    if not isinstance(got, torch.Tensor) or (got.shape, got.dtype) != (expected.shape, expected.dtype):
        expect_equal(got, expected, what=what)
    for distance, ours, theirs in zip(distances, got, expected, strict=True):
        expect_equal(ours, theirs, what=f"bucket of distance {distance} ({what})")


def expect_buckets(impl, distances, *settings):
    """settings are n_buckets, max_distance, bidirectional."""
    expected = torch.tensor([oracle_bucket(distance, *settings) for distance in distances])
    expect_each(impl.relative_buckets(torch.tensor(distances), *settings), expected, distances, *settings)


@task("9.4")
def test_buckets_by_hand(impl, rng):
    distances = [0, -1, -7, -8, -11, -12, -16, -32, -64, -90, -128, -999, 1, 7, 8, 999]
    expected = torch.tensor([0, 1, 7, 8, 8, 9, 10, 12, 14, 14, 15, 15, 17, 23, 24, 31])
    expect_each(impl.relative_buckets(torch.tensor(distances)), expected, distances, 32, 128, True)
    expected = torch.tensor([0, 1, 7, 8, 11, 12, 16, 21, 26, 29, 31, 31, 0, 0, 0, 0])
    got = impl.relative_buckets(torch.tensor(distances), bidirectional=False)
    expect_each(got, expected, distances, 32, 128, False)


@task("9.4", cases=2)
def test_every_distance_in_its_bucket(impl, rng):
    for bidirectional in (True, False):
        for n_buckets, max_distance in ((32, 128), (8, 20), (12, 50), (32, 100)):
            distances = [*range(-24, 25), *rng.integers(-400, 400, 40).tolist()]
            expect_buckets(impl, distances, n_buckets, max_distance, bidirectional)


@task("9.4")
def test_the_smallest_numbers_of_buckets(impl, rng):
    for n_buckets, max_distance, bidirectional in ((4, 2, True), (2, 2, False), (3, 3, False), (5, 7, False)):
        expect_buckets(impl, list(range(-12, 13)), n_buckets, max_distance, bidirectional)


@task("9.4")
def test_shape_dtype_and_input(impl, rng):
    distances = torch.arange(4, dtype=torch.int32)[None, :] - torch.arange(3, dtype=torch.int32)[:, None]
    for bidirectional in (True, False):
        got, after = impl.relative_buckets.after(distances, 8, 20, bidirectional)
        rows = [[oracle_bucket(distance, 8, 20, bidirectional) for distance in row] for row in distances.tolist()]
        expect_equal(got, torch.tensor(rows), what="a table of int32 distances")
        expect_equal(after[0], distances, what="distances after the call")
    got = impl.relative_buckets(torch.zeros(0, 3, dtype=torch.int64))
    expect_equal(got, torch.zeros(0, 3, dtype=torch.int64), what="no distance at all")


@task("9.4")
def test_bad_buckets_and_distances_are_refused(impl, rng):
    bad = ((31, 128, True), (2, 128, True), (1, 128, False), (0, 9, True), (32, 8, True), (32, 16, False))
    for settings in bad:
        with expect_error(ValueError):
            impl.relative_buckets(torch.arange(3), *settings)
    for distances in (torch.ones(3), torch.tensor([True, False])):
        with expect_error(ValueError):
            impl.relative_buckets(distances)


# 9.5 slopes of ALiBi


def oracle_slopes(n_heads):
    """2^(-8 i / p) for the largest power of two p up to H, then 2^(-8 (2 j - 1) / (2 p)) for j = 1, 2, ..."""
    power = 1
    while 2 * power <= n_heads:
        power *= 2
    exponents = [8 * i / power for i in range(1, power + 1)]
    exponents += [4 * (2 * j - 1) / power for j in range(1, n_heads - power + 1)]
    return tensor([2.0**-exponent for exponent in exponents])


@task("9.5")
def test_slopes_of_powers_of_two(impl, rng):
    expect_equal(impl.alibi_slopes(8), tensor([2.0**-i for i in range(1, 9)]), what="slopes of 8 heads")
    for n_heads in (1, 2, 4, 16, 64):
        expect_close(impl.alibi_slopes(n_heads), oracle_slopes(n_heads), what=f"slopes of {n_heads} heads")


@task("9.5")
def test_slopes_of_other_numbers(impl, rng):
    for n_heads in (3, 5, 6, 7, 9, 12, 15, 20, 31):
        expect_close(impl.alibi_slopes(n_heads), oracle_slopes(n_heads), what=f"slopes of {n_heads} heads")


@task("9.5")
def test_no_heads_are_refused(impl, rng):
    for n_heads in (0, -1, -4):
        with expect_error(ConfigError):
            impl.alibi_slopes(n_heads)


# 9.6 rotary frequencies for longer texts


def oracle_frequencies(d_head, base, scaling="none", factor=1.0, trained_len=0):
    """Pair by pair."""
    found = []
    for pair in range(d_head // 2):
        own = 1 / base ** (2 * pair / d_head)
        if scaling == "linear":
            own /= factor
        if scaling == "ntk":
            own *= factor ** (-2 * pair / (d_head - 2))
        if scaling == "llama3":
            kept = min(max((trained_len * own / (2 * math.pi) - 1) / 3, 0), 1)
            own *= kept + (1 - kept) / factor
        found.append(own)
    return tensor(found)


@task("9.6")
def test_frequencies_by_hand(impl, rng):
    for scaling, factor, expected in (("none", 1.0, [1, 0.1]), ("linear", 2.0, [0.5, 0.05]), ("ntk", 2.0, [1, 0.05])):
        got = impl.scaled_frequencies(4, 100.0, scaling, factor)
        expect_close(got, tensor(expected), what=f"2 pairs, base 100, {scaling} by {factor}")
    expect_close(impl.scaled_frequencies(4), tensor([1, 0.01]), what="2 pairs, nothing else given")


@task("9.6", cases=3)
def test_frequencies_of_every_scaling(impl, rng):
    base, factor, trained_len = float(rng.uniform(50, 5000)), float(rng.uniform(1, 9)), int(rng.integers(8, 200))
    for d_head in (4, 6, 32):
        for scaling in ("linear", "ntk", "llama3"):
            got = impl.scaled_frequencies(d_head, base, scaling, factor, trained_len)
            expected = oracle_frequencies(d_head, base, scaling, factor, trained_len)
            expect_close(got, expected, what=f"width {d_head}, {scaling} by {factor:.2f}, trained on {trained_len}")
        got = impl.scaled_frequencies(d_head, base=base)
        expect_close(got, oracle_frequencies(d_head, base), what=f"width {d_head}, no scaling")


@task("9.6")
def test_settings_out_of_range_are_refused(impl, rng):
    bad = ((4, 100.0, "yarn", 2.0, 8), (4, 100.0, "linear", 0.5, 8), (4, 100.0, "none", 2.0, 8))
    bad += ((4, 100.0, "llama3", 2.0), (2, 100.0, "ntk", 2.0, 8), (5, 100.0, "linear", 2.0, 8), (4, 0.0, "none"))
    for arguments in bad:
        with expect_error(ValueError):
            impl.scaled_frequencies(*arguments)
