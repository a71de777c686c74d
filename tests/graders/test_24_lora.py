"""Chapter 24. Oracles: products written out, scipy's Hadamard matrix and normal quantiles, names that are counted."""

import math

import numpy as np
import scipy.linalg
import scipy.stats
import torch
from torch.nn import functional as F

from minillm.adapt.lora import LoraConfig
from minillm.course.grader import Seeded, expect, expect_close, expect_equal, expect_error, normal, task
from minillm.errors import ConfigError, ShapeError
from minillm.models.gpt import GPTConfig

# --- helpers: a layer of the library with branches whose numbers the test knows


def linear_layer(impl, rng, n_in, n_out, bias=True, stretch=1.0):
    """A `LoraLinear` in float64 around a layer with known numbers; and these."""
    make = impl.Linear if stretch == 1.0 else impl.StretchedLinear
    base = make(n_in, n_out, bias) if stretch == 1.0 else make(n_in, n_out, bias, stretch=stretch)
    base = base.double()
    state = {"weight": normal(rng, n_out, n_in)} | ({"bias": normal(rng, n_out)} if bias else {})
    base.load_state_dict(state)
    return impl.LoraLinear(base), state


def add(impl, rng, layer, n_in, config, rows, name="one", dtype=torch.float64):
    """Branches into these rows; returns what they add to the matrix, written out."""
    branches, change = {}, torch.zeros(layer.get("n_rows"), n_in, dtype=torch.float64)
    for number, (begin, end) in enumerate(rows):
        a, b = normal(rng, config.rank, n_in, dtype=dtype), normal(rng, end - begin, config.rank, dtype=dtype)
        branches[f"part{number}"] = impl.Branch(a, b, slice(begin, end))
        for r in range(config.rank):
            change[begin:end] += torch.outer(b[:, r].double(), a[r].double())
    layer.add(name, config, branches)
    return change


def small_gpt(impl, **settings):
    sizes = {"vocab_size": 11, "max_seq_len": 6, "n_layers": 2, "n_heads": 4, "d_model": 16, "n_kv_heads": 2}
    return impl.GPT(GPTConfig(**sizes | settings), Seeded(3))


# --- 24.3 forward


@task("24.3", cases=3)
def test_forward_adds_scaled_branch(impl, rng):
    n_in, n_out, rank = int(rng.integers(5, 9)), int(rng.integers(9, 13)), int(rng.integers(2, 5))
    layer, state = linear_layer(impl, rng, n_in, n_out)
    config = LoraConfig(rank=rank, alpha=float(rng.uniform(3, 9)))
    change = add(impl, rng, layer, n_in, config, [(0, n_out)])
    for shape in ((4, n_in), (2, 3, n_in), (n_in,), (2, 1, 3, n_in)):
        x = normal(rng, *shape)
        expected = F.linear(x, state["weight"] + config.alpha / rank * change, state["bias"])
        expect_close(layer(x), expected, what=f"W x + alpha / rank * B A x for x of shape {shape}")


@task("24.3", cases=2)
def test_forward_with_the_root_of_the_rank_and_several_parts(impl, rng):
    layer, state = linear_layer(impl, rng, 7, 12, bias=False)
    config = LoraConfig(rank=3, alpha=5.0, rank_stabilised=True)
    change = add(impl, rng, layer, 7, config, [(0, 5), (8, 12)])
    x = normal(rng, 2, 4, 7)
    expected = F.linear(x, state["weight"] + 5.0 / math.sqrt(3) * change)
    expect_close(layer(x), expected, what="a fused layer with branches for two of its parts, scale alpha / sqrt(rank)")


@task("24.3")
def test_forward_of_a_stretched_layer(impl, rng):
    layer, state = linear_layer(impl, rng, 5, 9, bias=False, stretch=0.3)
    change = add(impl, rng, layer, 5, LoraConfig(rank=2, alpha=3.0), [(0, 9)])
    x = normal(rng, 4, 5)
    expected = 0.3 * F.linear(x, state["weight"] + 1.5 * change)
    expect_close(layer(x), expected, what="a layer that multiplies its result by 0.3 (the change is multiplied too)")


@task("24.3", cases=2)
def test_gradients_reach_the_branch_and_the_input(impl, rng):
    layer, state = linear_layer(impl, rng, 5, 8, bias=False)
    config = LoraConfig(rank=2, alpha=7.0)
    change = add(impl, rng, layer, 5, config, [(0, 8)])
    x, gradient = normal(rng, 6, 5), normal(rng, 6, 8)
    _, (by_x,), by_name = layer.gradients(x, output_gradient=gradient)
    expect_close(by_x, gradient @ (state["weight"] + 3.5 * change), what="the gradient by x")
    found = {name.rsplit(".", 1)[1]: value for name, value in by_name.items() if "branches" in name}
    a, b = layer.get("branches.one.part0.A"), layer.get("branches.one.part0.B")
    expect_close(found["B"], 3.5 * gradient.T @ x @ a.detach().T, what="the gradient by B")
    expect_close(found["A"], 3.5 * b.detach().T @ gradient.T @ x, what="the gradient by A")


@task("24.3", cases=2)
def test_dropout_is_on_the_branch_alone(impl, rng):
    chance, n_rows = float(rng.uniform(0.3, 0.6)), 600
    layer, state = linear_layer(impl, rng, 6, 4, bias=False)
    config = LoraConfig(rank=2, alpha=3.0, dropout=chance)
    change = add(impl, rng, layer, 6, config, [(0, 4)])
    columns = torch.from_numpy(rng.integers(0, 6, n_rows))
    x = F.one_hot(columns, 6).double() * 2.0                       # one number in each row: dropped, or not
    base, branch = F.linear(x, state["weight"]), F.linear(x, 1.5 * change)
    layer.train()
    factors = (layer(x) - base) / branch
    spread = factors.std(dim=1)
    expect_close(spread, torch.zeros_like(spread), 1e-7, what="the spread of the branch's factors within a row")
    share = (factors[:, 0].abs() < 1e-6).double().mean().item()
    expect(abs(share - chance) < 0.11, f"dropout {chance:.2f} while training: {share:.2f} of the inputs were dropped")
    kept = factors[:, 0][factors[:, 0].abs() > 1e-6]
    expect_close(kept, torch.full_like(kept, 1 / (1 - chance)), 1e-6, what="the factor of inputs that are kept")
    layer.eval()
    expect_close(layer(x), base + branch, what="the result when the layer is not training")


@task("24.3")
def test_nothing_is_added_when_switched_off_or_merged(impl, rng):
    layer, state = linear_layer(impl, rng, 5, 7)
    change = add(impl, rng, layer, 5, LoraConfig(rank=2, alpha=3.0), [(0, 7)])
    x = normal(rng, 3, 5)
    layer.set("active", "")
    expect_equal(layer(x), F.linear(x, state["weight"], state["bias"]), what="the result while no adapter is in use")
    layer.set("active", "one")
    layer.merge()
    merged = F.linear(x, state["weight"] + 1.5 * change, state["bias"])
    expect_close(layer(x), merged, what="the result while the adapter is merged")


@task("24.3")
def test_sixteen_bits_outside_thirty_two_inside(impl, rng):
    layer, state = linear_layer(impl, rng, 64, 48, bias=False)
    layer = layer.bfloat16()
    change = add(impl, rng, layer, 64, LoraConfig(rank=3, alpha=3.0), [(0, 48)], dtype=torch.float32)
    x = normal(rng, 5, 64).bfloat16()
    got, wanted = layer(x), F.linear(x.double(), state["weight"] + change)
    expect_equal(got.dtype, torch.bfloat16, what="the number format of the result for a layer in bfloat16")
    expect_close(got.double(), wanted, 0.02 * float(wanted.abs().max()), what="the result in bfloat16")


# --- 24.1 fresh branches


@task("24.1", cases=2)
def test_fresh_branches_of_parts(impl, rng):
    model, seed = small_gpt(impl), int(rng.integers(100))
    config = LoraConfig(rank=3, parts=("query", "value"))
    branches = impl.make_branches(model, "blocks.0.attention.qkv", config, Seeded(seed))
    expect_equal(sorted(branches), ["query", "value"], what="the parts that get a branch")
    for part, rows in (("query", slice(0, 16)), ("value", slice(24, 32))):
        a, b = branches[part].get("A"), branches[part].get("B")
        expect_equal(branches[part].get("rows"), rows, what=f"the rows of the {part} part")
        expect_equal((tuple(a.shape), tuple(b.shape)), ((3, 16), (rows.stop - rows.start, 3)), what="shapes of A and B")
        expect(not b.any(), "B must be zero: a fresh branch changes nothing")
        expect(bool((a != 0).all()), "A must not be zero: if both are, no gradient reaches either, for ever")
    first, other = branches["query"].get("A"), branches["value"].get("A")
    expect(not torch.equal(first, other), "the parts must not begin with the same A")
    again = impl.make_branches(model, "blocks.0.attention.qkv", config, Seeded(seed))
    expect_equal(again["value"].get("A"), other, what="A drawn again from a generator with the same seed")
    third = impl.make_branches(model, "blocks.0.attention.qkv", config, Seeded(seed + 1))
    expect(not torch.equal(third["query"].get("A"), first), "the numbers must come from the generator that was given")


@task("24.1")
def test_initial_values_of_code_and_paper(impl, rng):
    model = small_gpt(impl, d_model=64)
    for initial, std in (("code", 1 / math.sqrt(3 * 64)), ("paper", 1 / 12)):
        config = LoraConfig(rank=12, initial=initial, parts=())
        branches = impl.make_branches(model, "blocks.1.attention.qkv", config, Seeded(7))
        expect_equal(list(branches), ["whole"], what="the parts when none are asked for")
        a, b = branches["whole"].get("A"), branches["whole"].get("B")
        expect_equal(tuple(b.shape), (128, 12), what="the shape of B for a whole fused layer")
        found = a.std().item()
        expect(abs(found / std - 1) < 0.1, f"initial {initial!r}: A's standard deviation is {found:.4f}, not {std:.4f}")
        if initial == "code":
            expect(a.abs().max() <= 1 / 8, "initial 'code' is uniform between -1/sqrt(I) and 1/sqrt(I)")
        else:
            expect(a.abs().max() > 2.5 / 12, "initial 'paper' is normal: some numbers are far from zero")


@task("24.1")
def test_fresh_branch_of_an_unfused_layer_and_of_a_table(impl, rng):
    model = small_gpt(impl, d_ff=40, bias=True).double()
    branch = impl.make_branches(model, "blocks.1.feed_forward.down", LoraConfig(rank=4), Seeded(1))["whole"]
    a, b = branch.get("A"), branch.get("B")
    expect_equal((tuple(a.shape), tuple(b.shape)), ((4, 40), (16, 4)), what="shapes of A and B, 40 in, 16 out")
    expect_equal((a.dtype, b.dtype), (torch.float64, torch.float64), what="the number format in a model of float64")
    expect(bool(a.any()) and not b.any(), "A is drawn and B zero")
    branches = impl.make_branches(model, "token_embedding", LoraConfig(rank=9), Seeded(1))
    expect_equal(list(branches), ["whole"], what="the parts of a table")
    a, b = branches["whole"].get("A"), branches["whole"].get("B")
    expect_equal((tuple(a.shape), tuple(b.shape)), ((9, 11), (16, 9)), what="shapes of A and B for a table of 11 rows")
    expect_equal(branches["whole"].get("rows"), slice(0, 16), what="the rows that a table's branch changes")
    expect(not a.any(), "for a table A is zero")
    expect(0.8 < b.std().item() < 1.2, f"for a table B is normal with standard deviation 1, not {b.std().item():.3f}")
    again = impl.make_branches(model, "token_embedding", LoraConfig(rank=9), Seeded(1))["whole"]
    expect_equal(again.get("B"), b, what="a table's B drawn again from a generator with the same seed")
    half = impl.make_branches(model.bfloat16(), "blocks.0.attention.output", LoraConfig(rank=2), Seeded(1))["whole"]
    expect_equal(half.get("A").dtype, torch.float32, what="the number format of A in a model of bfloat16")


@task("24.1", needs=("24.5",))
def test_fresh_branch_beside_another(impl, rng):
    model = small_gpt(impl)
    impl.adapt(model, LoraConfig(rank=2), "one", Seeded(0))
    branches = impl.make_branches(model, "blocks.1.attention.qkv", LoraConfig(rank=3), Seeded(1))
    shapes = [tuple(branches[part].get("B").shape) for part in ("query", "value")]
    expect_equal(shapes, [(16, 3), (8, 3)], what="shapes of B where the layer has a branch of another adapter already")


@task("24.1")
def test_ranks_that_are_too_high(impl, rng):
    model = small_gpt(impl, d_ff=40)
    for place, config in (
        ("blocks.0.attention.qkv", LoraConfig(rank=9, parts=("key",))),  # keys are 8 numbers
        ("blocks.0.feed_forward.up", LoraConfig(rank=17)),
        ("token_embedding", LoraConfig(rank=12)),
    ):
        with expect_error(ConfigError):
            impl.make_branches(model, place, config, Seeded(0))
    impl.make_branches(model, "blocks.0.attention.qkv", LoraConfig(rank=9, parts=("query",)), Seeded(0))
    impl.make_branches(model, "token_embedding", LoraConfig(rank=11), Seeded(0))


# --- 24.4 one A and one B


@task("24.4", cases=3)
def test_matrices_of_parts(impl, rng):
    n_in, n_out = 6, 14
    layer, _ = linear_layer(impl, rng, n_in, n_out)
    rank = int(rng.integers(2, 4))
    for name, rows in (("two", [(0, 5), (9, 14)]), ("three", [(0, 5), (5, 9), (9, 14)]), ("middle", [(5, 9)])):
        change = add(impl, rng, layer, n_in, LoraConfig(rank=rank, alpha=5.0), rows, name)
        a, b = layer.matrices()
        shapes = (tuple(a.shape), tuple(b.shape))
        expect_equal(shapes, ((len(rows) * rank, n_in), (n_out, len(rows) * rank)), what=f"shapes with parts {rows}")
        expect_close(b @ a, change, what=f"B A with branches for the rows {rows} (not yet scaled)")


@task("24.4")
def test_matrices_of_a_whole_layer(impl, rng):
    layer, _ = linear_layer(impl, rng, 5, 7)
    change = add(impl, rng, layer, 5, LoraConfig(rank=2, alpha=9.0), [(0, 7)])
    a, b = layer.matrices()
    expect_equal(a, layer.get("branches.one.part0.A"), what="A of a single branch")
    expect_equal(b, layer.get("branches.one.part0.B"), what="B of a single branch for all rows")
    expect_close(b @ a, change, what="B A of a single branch")


@task("24.4", needs=("24.3",))
def test_gradients_pass_through_the_matrices(impl, rng):
    layer, state = linear_layer(impl, rng, 5, 9, bias=False)
    add(impl, rng, layer, 5, LoraConfig(rank=2, alpha=2.0), [(0, 4), (6, 9)])
    x, gradient = normal(rng, 6, 5), normal(rng, 6, 9)
    _, _, by_name = layer.gradients(x, output_gradient=gradient)
    for part, rows in (("part0", slice(0, 4)), ("part1", slice(6, 9))):
        a = layer.get(f"branches.one.{part}.A").detach()
        expected = gradient[:, rows].T @ x @ a.T
        expect_close(by_name[f"branches.one.{part}.B"], expected, what=f"the gradient by B of the rows {rows}")


# --- 24.2 merge


@task("24.2", cases=2)
def test_merge_and_back_and_again(impl, rng):
    layer, state = linear_layer(impl, rng, 6, 9)
    config = LoraConfig(rank=2, alpha=5.0)
    change = add(impl, rng, layer, 6, config, [(0, 4), (5, 9)])
    x = normal(rng, 4, 6)
    expected = F.linear(x, state["weight"] + 2.5 * change, state["bias"])
    for time in ("", ", merged a second time"):
        layer.merge()
        weight = layer.get("base.weight")
        expect_close(weight, state["weight"] + 2.5 * change, what=f"the base's weight, merged{time}")
        expect_close(layer(x), expected, what=f"the result, merged{time} (the change counts once)")
        expect(not layer.get("base.weight.requires_grad"), "the merged weight must not be trained")
        expect_equal(layer.get("base.bias"), state["bias"], what="the bias, which stays")
        layer.unmerge()
        expect_equal(layer.get("base.weight"), state["weight"], what="the base's weight, unmerged: every bit as before")
        expect_close(layer(x), expected, what="the result, unmerged")


@task("24.2")
def test_the_old_weight_is_kept_and_not_changed(impl, rng):
    layer, state = linear_layer(impl, rng, 6, 4, bias=False)
    layer = layer.float()
    add(impl, rng, layer, 6, LoraConfig(rank=2, alpha=5.0), [(0, 4)], dtype=torch.float32)
    before = layer.get("base.weight").detach()
    layer.merge()
    kept = layer.get("unmerged")
    expect_equal(len(kept), 1, what="how many things are kept")
    expect_equal(kept[0].detach(), before, what="the weight that is kept for the way back")
    layer.unmerge()
    expect_equal(layer.get("base.weight").detach(), before, what="the weight after the way back, in float32")


@task("24.2", needs=("24.1", "24.5"))
def test_merge_of_a_table(impl, rng):
    model = small_gpt(impl).double()
    before = model.get("token_embedding.weight").detach()
    adapted = impl.adapt(model, LoraConfig(rank=2, alpha=3.0, targets=("token_embedding",)), "one", Seeded(0))
    layer = model.get("token_embedding")
    a, b = normal(rng, 2, 11), normal(rng, 16, 2)
    layer.get("branches.one.whole").load_state_dict({"A": a, "B": b})
    layer.merge()
    expect_close(layer.get("base.weight"), before + 1.5 * (b @ a).T, what="a table with its change, (rows, width)")
    layer.unmerge()
    expect_equal(layer.get("base.weight").detach(), before, what="the table again")
    expect(adapted.get("name") == "one", "the adapter is still in use")


@task("24.2", needs=("24.8",))
def test_merge_into_a_packed_layer(impl, rng):
    packed = impl.NF4Linear(impl.Linear(64, 10, True, 0.5, Seeded(int(rng.integers(100)))))
    layer = impl.LoraLinear(packed)
    rounded, bits = packed.get("weight"), packed.get("packed")
    change = add(impl, rng, layer, 64, LoraConfig(rank=2, alpha=3.0), [(0, 10)], dtype=torch.float32)
    layer.merge()
    expect_close(layer.get("base.weight").double(), rounded.double() + 1.5 * change, 1e-5,
                 what="the full matrix that stands in for a packed one")  # fmt: skip
    x = normal(rng, 3, 64).float()
    expected = F.linear(x.double(), rounded.double() + 1.5 * change)
    expect_close(layer(x).double(), expected, 1e-4, what="the result of the merged layer")
    layer.unmerge()
    expect_equal(layer.get("base.packed"), bits, what="the packed bytes after the way back")


# --- 24.5 who is trained


def trained_names(impl, model):
    return sorted(impl.trainable(model))


@task("24.5", needs=("24.1",))
def test_only_the_adapter_in_use_is_trained(impl, rng):
    model = small_gpt(impl)
    config = LoraConfig(rank=2, parts=("query",))
    adapted = impl.adapt(model, config, "one", Seeded(0))
    names = {
        each: [f"blocks.{i}.attention.qkv.branches.{each}.query.{x}" for i in range(2) for x in "AB"]
        for each in ("one", "two")
    }
    expect_equal(trained_names(impl, model), names["one"], what="what is trained with one adapter")
    adapted.add(config, "two", Seeded(1))
    expect_equal(trained_names(impl, model), names["two"], what="what is trained when a second one was added")
    adapted.activate("one")
    expect_equal(trained_names(impl, model), names["one"], what="what is trained after activate('one')")
    expect_equal(adapted.get("name"), "one", what="the name of the adapter in use")
    adapted.use("two")
    expect_equal(trained_names(impl, model), names["two"], what="what is trained after use('two')")


@task("24.5", needs=("24.1",))
def test_heads_are_trained_with_their_adapter(impl, rng):
    model = small_gpt(impl, tie_embeddings=False)
    settings = {"rank": 2, "targets": ("up",)}
    adapted = impl.adapt(model, LoraConfig(**settings), "plain", Seeded(0))
    adapted.add(LoraConfig(**settings, heads=("head",)), "headed", Seeded(1))
    expect("head.weight" in trained_names(impl, model), "the head belongs to the adapter 'headed' and must be trained")
    adapted.activate("plain")
    expect("head.weight" not in trained_names(impl, model), "the head of another adapter must not be trained")
    expect(all(".plain." in name for name in trained_names(impl, model)), "only the adapter 'plain' is to be trained")


# --- 24.6 the transform


@task("24.6", cases=3)
def test_transform_is_hadamards_matrix(impl, rng):
    for size in (1, 2, 8, 32, 64):
        x = normal(rng, size)
        expected = torch.from_numpy(scipy.linalg.hadamard(size).astype(float)) @ x
        expect_close(impl.walsh_hadamard(x), expected, what=f"H x for {size} numbers")
    x = normal(rng, 3, 2, 16)
    expected = x @ torch.from_numpy(scipy.linalg.hadamard(16).astype(float))
    expect_close(impl.walsh_hadamard(x), expected, what="H x along the last dimension of (3, 2, 16)")


@task("24.6")
def test_transform_twice_and_of_units(impl, rng):
    x = normal(rng, 5, 32)
    expect_close(impl.walsh_hadamard(impl.walsh_hadamard(x)), 32 * x, what="H applied twice: n times x")
    unit = torch.zeros(4, dtype=torch.float64)
    unit[1] = 1.0
    expect_equal(impl.walsh_hadamard(unit), torch.tensor([1.0, -1.0, 1.0, -1.0]).double(), what="H's second column")
    expect_equal(impl.walsh_hadamard(x.float()).dtype, torch.float32, what="the number format of H x")


@task("24.6")
def test_transform_leaves_its_input_and_refuses_other_sizes(impl, rng):
    x = normal(rng, 8)
    before = x.clone()
    _, (after,) = impl.walsh_hadamard.after(x)
    expect_equal(after, before, what="x after the call")
    for size in (3, 12, 0):
        with expect_error(ShapeError):
            impl.walsh_hadamard(torch.zeros(size))


# --- 24.7 Fastfood


def dense(projection):
    """P written down: H normal Pi H signs, its first d columns and D rows."""
    signs, order, factors = (projection.get(name).double().numpy() for name in ("signs", "order", "normal"))
    n, n_in, n_out = len(order), projection.get("n_in"), projection.get("n_out")
    h = scipy.linalg.hadamard(n).astype(float)
    permute = np.eye(n)[order.astype(int)]
    b = np.zeros((n, n_in))
    b[np.arange(n_in), np.arange(n_in)] = signs[:n_in]
    return torch.from_numpy((h @ np.diag(factors) @ permute @ h @ b)[:n_out])


@task("24.7", cases=3)
def test_fastfood_is_the_product_of_its_factors(impl, rng):
    for n_out, n_in in ((6, 2), (40, 7), (64, 64), (33, 1), (100, 16)):
        projection = impl.Fastfood(n_out, n_in, int(rng.integers(1000))).double()
        x = normal(rng, n_in)
        expected = dense(projection) @ x
        expect_close(projection(x), expected, 1e-9, what=f"P x for {n_in} numbers in and {n_out} out")


@task("24.7")
def test_fastfood_keeps_lengths_on_average(impl, rng):
    ratios = []
    for seed in range(40):
        x = normal(rng, 12)
        ratios.append((impl.Fastfood(200, 12, seed).double()(x).norm() / x.norm()).item())
    mean = sum(ratios) / len(ratios)
    expect(abs(mean - 1) < 0.1, f"|P x| / |x| should be 1 on average, it is {mean:.3f}")


@task("24.7")
def test_fastfood_and_its_transpose(impl, rng):
    projection = impl.Fastfood(50, 9, 5).double()
    x, y = normal(rng, 9), normal(rng, 50)
    expect_close(projection(x) @ y, x @ projection.transposed(y), 1e-9, what="(P x) y against x (P^T y)")
    _, (by_x,), _ = projection.gradients(x, output_gradient=y)
    expect_close(by_x, projection.transposed(y), 1e-9, what="the gradient by x")


# --- 24.8 NF4


@task("24.8")
def test_code_has_the_quantiles(impl, rng):
    code = impl.nf4_code().double()
    expect_equal(tuple(code.shape), (16,), what="the shape of the code")
    tail = 1 - (1 / 32 + 1 / 30) / 2
    positive = scipy.stats.norm.ppf(np.linspace(tail, 0.5, 9)[:-1])
    negative = -scipy.stats.norm.ppf(np.linspace(tail, 0.5, 8)[:-1])
    expected = np.sort(np.concatenate([positive, [0.0], negative])) / positive.max()
    expect_close(code, torch.from_numpy(expected), 1e-6, what="the sixteen levels")


@task("24.8")
def test_code_is_ordered_and_has_zero_and_both_ends(impl, rng):
    code = impl.nf4_code()
    expect(bool((code[1:] > code[:-1]).all()), "the levels must rise")
    expect_equal([code[0].item(), code[7].item(), code[15].item()], [-1.0, 0.0, 1.0], what="levels 0, 7 and 15")
    expect_equal(code.dtype, torch.float32, what="the number format of the code")


@task("24.8")
def test_published_levels(impl, rng):
    published = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379,
                 0.4407, 0.5626, 0.7230, 1.0]  # fmt: skip
    expect_close(impl.nf4_code(), torch.tensor(published), 1e-4, what="the levels as they were published")
