"""Chapter 25. Oracles: formulas written out with torch, reading real tokens instead of learned rows, lists of names."""

import itertools
import math

import torch
from torch.nn import functional as F

from minillm.adapt.adapter import AdapterConfig
from minillm.adapt.bitfit import BitFitConfig
from minillm.adapt.ia3 import IA3Config
from minillm.adapt.prefix import PrefixConfig
from minillm.adapt.prompt import PromptConfig, PTuningConfig
from minillm.course.grader import Seeded, expect, expect_close, expect_equal, expect_error, normal, task
from minillm.models.bert import bert_config
from minillm.models.gpt import GPTConfig
from minillm.models.t5 import t5_config

V, CONTEXT, WIDTH = 19, 20, 16
KINDS = {
    "learned positions": {"bias": True},
    "rotary positions": {"position": "rotary", "n_kv_heads": 2, "norm": "rms", "feed_forward": "swiglu"},
    "ALiBi": {"position": "alibi", "bias": True},
}


def whole(rng, low, high):
    return int(rng.integers(low, high))


def small_gpt(impl, rng, scale=0.3, **settings):
    """A GPT in float64 with noise on every number, and its numbers."""
    shape = {"n_layers": 2, "n_heads": 4, "d_model": WIDTH} | settings
    model = impl.GPT(GPTConfig(vocab_size=V, max_seq_len=CONTEXT, **shape), Seeded(whole(rng, 0, 1000))).double()
    shake(model, rng, scale)
    return model


def shake(model, rng, scale=0.3):
    """Noise on every number."""
    state = {name: value + scale * normal(rng, *value.shape, dtype=value.dtype) if value.is_floating_point() else value
             for name, value in model.state_dict().items()}  # fmt: skip
    model.load_state_dict(state)
    return state


def ids_of(rng, *shape):
    return torch.from_numpy(rng.integers(0, V, shape))


def padded_left(rng, lengths):
    """Ids, mask and positions of a batch with padding on the left, and its rows alone."""
    longest = max(lengths)
    rows = [ids_of(rng, length) for length in lengths]
    ids = torch.stack([F.pad(row, (longest - len(row), 0), value=3) for row in rows])
    index = torch.arange(longest) - torch.tensor([longest - length for length in lengths])[:, None]
    return ids, index >= 0, index.clamp(min=0), rows


# --- 25.1 the start of an adapter


def bottleneck(impl, rng, **settings):
    width, std = whole(rng, 41, 53), float(rng.uniform(0.02, 0.3))
    config = AdapterConfig(bottleneck=whole(rng, 27, 38), initial_std=std, **settings)
    return impl.Bottleneck(width, config, Seeded(whole(rng, 0, 1000))), width, config


def expect_cut_off_normal(weight, std, what):
    """Numbers of a normal distribution cut off at two standard deviations, which leaves 0.88 of the deviation."""
    found, n = weight.detach().double(), weight.numel()
    expect(bool(found.any()), f"{what} is all zeros, and would never get a gradient beside another zero")
    expect(float(found.abs().max()) <= 2 * std * (1 + 1e-6), f"{what} has numbers beyond twice the standard deviation")
    reaches = float(found.max()) > 1.6 * std and float(found.min()) < -1.6 * std
    expect(reaches, f"{what} must reach almost to twice the standard deviation {std:.3g} on both sides")
    ratio = float(found.std()) / std
    expect(0.80 < ratio < 0.96, f"{what} has {ratio:.2f} of the standard deviation asked for, expected about 0.88")
    expect(abs(float(found.mean())) < 5 * std / math.sqrt(n), f"{what} must have mean 0")


@task("25.1", cases=3)
def test_adapter_starts_near_the_identity(impl, rng):
    network, width, config = bottleneck(impl, rng)
    expect_equal(tuple(network.get("down.weight").shape), (config.bottleneck, width), what="the shape of down.weight")
    expect_equal(tuple(network.get("up.weight").shape), (width, config.bottleneck), what="the shape of up.weight")
    for name, size in (("down", config.bottleneck), ("up", width)):
        expect_cut_off_normal(network.get(f"{name}.weight"), config.initial_std, f"{name}.weight")
        expect_equal(network.get(f"{name}.bias"), torch.zeros(size), what=f"{name}.bias at the start")
    expect_equal(network.get("is_on"), True, what="is_on of a new adapter")


@task("25.1", cases=2)
def test_adapter_with_zero_up(impl, rng):
    network, width, config = bottleneck(impl, rng, zero_up=True)
    expect_equal(network.get("up.weight"), torch.zeros(width, config.bottleneck), what="up.weight with zero_up")
    expect_cut_off_normal(network.get("down.weight"), config.initial_std, "down.weight with zero_up")
    h = normal(rng, 3, width, dtype=torch.float32)
    expect_equal(network(h), torch.zeros(3, width), what="what an adapter with zero_up adds at first")


@task("25.1")
def test_adapter_draws_from_its_generator(impl, rng):
    own = impl.default_generators()["torch"]
    before = own.get_state()
    config = AdapterConfig(bottleneck=3)
    first, same, other = (impl.Bottleneck(5, config, Seeded(seed)).state_dict() for seed in (4, 4, 5))
    expect_equal(own.get_state(), before, what="torch's own generator, beside the one that was passed in")
    for name in ("down.weight", "up.weight"):
        expect_equal(first[name], same[name], what=f"{name} of two adapters from the same seed")
        expect(not torch.equal(first[name], other[name]), f"{name} is the same for another seed")
    impl.Bottleneck(5, config)
    expect(not torch.equal(own.get_state(), before), "without a generator torch's own is meant")


@task("25.1", cases=2)
def test_adapter_has_its_activation(impl, rng):
    functions = {"relu": F.relu, "silu": F.silu, "tanh": torch.tanh, "identity": lambda x: x}
    for name, function in functions.items():
        network = impl.Bottleneck(4, AdapterConfig(bottleneck=3, activation=name), Seeded(1)).double()
        state, h = shake(network, rng, 1.0), normal(rng, 2, 4)
        waist = function(F.linear(h, state["down.weight"], state["down.bias"]))
        expect_close(network(h), F.linear(waist, state["up.weight"], state["up.bias"]), what=f"an adapter with {name}")


# --- 25.2 what an adapter adds


def adapter_formula(state, name, h):
    waist = F.relu(F.linear(h, state[f"{name}.down.weight"], state[f"{name}.down.bias"]))
    return h + F.linear(waist, state[f"{name}.up.weight"], state[f"{name}.up.bias"])


@task("25.2", cases=2, needs=("25.1",))
def test_adapter_adds_to_what_the_part_made(impl, rng):
    model, x = small_gpt(impl, rng, **KINDS["learned positions"]), normal(rng, 2, 3, WIDTH)
    parts = ("blocks.0.feed_forward", "blocks.1.attention.output")
    plain = {name: model.get(name)(x) for name in parts}
    config = AdapterConfig(bottleneck=5, activation="relu", initial_std=0.4)
    adapted = impl.adapt(model, config, generator=Seeded(whole(rng, 0, 1000)))
    state = shake(model, rng)
    for name in parts:
        own = {key: value for key, value in state.items() if key.startswith(name) and ".adapter." not in key}
        expect(bool(own), f"{name} has lost its own numbers")
    adapted.delta.switch(False)
    plain = {name: model.get(name)(x) for name in parts}
    adapted.delta.switch(True)
    for name in parts:
        expected = adapter_formula(state, f"{name}.adapter", plain[name])
        expect_close(model.get(name)(x), expected, what=f"{name} with an adapter behind it")


@task("25.2", needs=("25.1",))
def test_adapter_switched_off_is_the_base(impl, rng):
    model, ids = small_gpt(impl, rng, **KINDS["learned positions"]), ids_of(rng, 2, 6)
    base = model(ids)
    adapted = impl.adapt(model, AdapterConfig(bottleneck=3, initial_std=0.8), generator=Seeded(1))
    expect(float((model(ids) - base).abs().max()) > 1e-6, "with an adapter switched on the logits must change")
    adapted.delta.switch(False)
    expect_close(model(ids), base, what="the logits with the adapters switched off")


@task("25.2", cases=2, needs=("25.1",))
def test_adapter_starts_as_the_base(impl, rng):
    for placement in ("houlsby", "pfeiffer"):
        model, ids = small_gpt(impl, rng, **KINDS["rotary positions"]), ids_of(rng, 2, 6)
        base = model(ids)
        impl.adapt(model, AdapterConfig(bottleneck=3, placement=placement, zero_up=True), generator=Seeded(2))
        expect_equal(model(ids), base, what=f"the logits with fresh {placement} adapters whose W_up is 0")


@task("25.2", needs=("25.1",))
def test_adapter_behind_a_whole_layer_passes_everything_on(impl, rng):
    """Pfeiffer's stands behind a block, which is called with mask, cache and positions."""
    model = small_gpt(impl, rng, **KINDS["learned positions"])
    impl.adapt(model, AdapterConfig(bottleneck=4, placement="pfeiffer", initial_std=0.5), generator=Seeded(3))
    ids, mask, positions, rows = padded_left(rng, (6, 3, 5))
    together = model(ids, None, mask, positions)
    for number, row in enumerate(rows):
        expect_close(together[number, -len(row) :], model(row[None])[0], what="a text in a batch of unequal lengths")
    cache, text = model.make_cache(2), ids_of(rng, 2, 7)
    found = torch.cat([model(part, cache) for part in text.split((4, 1, 2), dim=1)], dim=1)
    expect_close(found, model(text), what="logits piece by piece from a cache")


@task("25.2", needs=("25.1",))
def test_adapter_gradients_go_both_ways(impl, rng):
    model, x = small_gpt(impl, rng, **KINDS["learned positions"]), normal(rng, 1, 2, WIDTH)
    impl.adapt(model, AdapterConfig(bottleneck=4, activation="tanh", initial_std=0.5), generator=Seeded(3))
    gradient, name = normal(rng, 1, 2, WIDTH), "blocks.0.attention.output"
    state = model.state_dict()
    leaf = x.clone().requires_grad_()
    h = F.linear(leaf, state[f"{name}.weight"], state[f"{name}.bias"])
    waist = torch.tanh(F.linear(h, state[f"{name}.adapter.down.weight"], state[f"{name}.adapter.down.bias"]))
    out = h + F.linear(waist, state[f"{name}.adapter.up.weight"], state[f"{name}.adapter.up.bias"])
    (expected,) = torch.autograd.grad(out, leaf, gradient)
    _, (found,), _ = model.get(name).gradients(x, output_gradient=gradient)
    expect_close(found, expected, what="the gradient by what the part reads")


# --- 25.4 a prefix's keys and values


def written_out(row, layer, n_kv_heads, d_head):
    """Keys and values of one layer, number by number."""
    key, value = (torch.zeros(n_kv_heads, len(row), d_head, dtype=row.dtype) for _ in range(2))
    for p, g, d in itertools.product(range(len(row)), range(n_kv_heads), range(d_head)):
        key[g, p, d] = row[p][(2 * layer * n_kv_heads + g) * d_head + d]
        value[g, p, d] = row[p][((2 * layer + 1) * n_kv_heads + g) * d_head + d]
    return key, value


@task("25.4", cases=3)
def test_prefix_rows_of_a_table(impl, rng):
    n_layers, n_heads, d_head, n_virtual = whole(rng, 2, 5), whole(rng, 2, 4), whole(rng, 4, 6), whole(rng, 6, 9)
    prefix = impl.Prefix(n_layers, n_heads, d_head, PrefixConfig(n_virtual=n_virtual), Seeded(1)).double()
    table = shake(prefix, rng)["table"]
    for layer in range(n_layers):
        expected = written_out(table, layer, n_heads, d_head)
        found = prefix.keys_and_values(layer)
        expect_close(found, expected, what=f"keys and values of layer {layer} of {n_layers}")


@task("25.4", cases=3)
def test_prefix_rows_from_a_network(impl, rng):
    n_layers, n_heads, d_head, n_virtual = whole(rng, 2, 4), whole(rng, 2, 4), 5, whole(rng, 3, 6)
    config = PrefixConfig(n_virtual=n_virtual, reparametrised=True, d_hidden=7)
    prefix = impl.Prefix(n_layers, n_heads, d_head, config, Seeded(1)).double()
    state = shake(prefix, rng, 0.5)
    hidden = torch.tanh(state["start"] @ state["widen.weight"].T + state["widen.bias"])
    rows = hidden @ state["output.weight"].T + state["output.bias"]
    for layer in range(n_layers):
        expected = written_out(rows, layer, n_heads, d_head)
        found = prefix.keys_and_values(layer)
        expect_close(found, expected, what=f"keys and values of layer {layer} that the network makes")


@task("25.4", cases=2)
def test_prefix_gradients(impl, rng):
    for reparametrised in (False, True):
        config = PrefixConfig(n_virtual=3, reparametrised=reparametrised, d_hidden=6)
        prefix = impl.Prefix(3, 2, 4, config, Seeded(1)).double()
        state = {name: value.requires_grad_() for name, value in shake(prefix, rng, 0.5).items()}
        rows = state.get("table")
        if reparametrised:
            hidden = torch.tanh(state["start"] @ state["widen.weight"].T + state["widen.bias"])
            rows = hidden @ state["output.weight"].T + state["output.bias"]
        weights = [normal(rng, 2, 3, 4), normal(rng, 2, 3, 4)]
        outs = written_out(rows, 1, 2, 4)
        expected = torch.autograd.grad(outs, list(state.values()), weights)
        _, _, found = prefix.keys_and_values.gradients(1, output_gradient=weights)
        for name, gradient in zip(state, expected, strict=True):
            expect_close(found[name], gradient, what=f"the gradient of {name} through one layer's keys and values")


@task("25.4", cases=2, needs=("25.3", "25.5"))
def test_a_prefix_of_real_tokens_is_reading_them(impl, rng):
    first = tuple(int(x) for x in rng.integers(0, V, 3))
    for kind, settings in KINDS.items():
        model, ids = small_gpt(impl, rng, **settings), ids_of(rng, 2, 5)
        expected = model(torch.cat((torch.tensor(first).expand(2, -1), ids), dim=1))[:, 3:]
        impl.adapt(model, PrefixConfig(n_virtual=3, initial_ids=first))
        expect_close(model(ids), expected, what=f"logits behind a prefix of three real tokens ({kind})")


# --- 25.5 places behind a prefix


@task("25.5", cases=2, needs=("25.3", "25.4"))
def test_places_behind_a_prefix(impl, rng):
    n_virtual = whole(rng, 2, 6)
    model = small_gpt(impl, rng)
    adapted = impl.adapt(model, PrefixConfig(n_virtual=n_virtual), generator=Seeded(1))
    here, places = slice(whole(rng, 0, 4), whole(rng, 5, 9)), torch.from_numpy(rng.integers(0, 9, (2, 3)))
    moved = slice(here.start + n_virtual, here.stop + n_virtual)
    expect_equal(model.moved(here), moved, what=f"{here} behind a prefix of {n_virtual}")
    expect_equal(model.moved(places), places + n_virtual, what=f"{places.tolist()} behind a prefix of {n_virtual}")
    adapted.delta.switch(False)
    expect_equal(model.moved(here), here, what=f"{here} with the prefix switched off")
    expect_equal(model.moved(places), places, what=f"{places.tolist()} with the prefix switched off")


@task("25.5", needs=("25.3", "25.4"))
def test_places_in_a_model(impl, rng):
    first = (7, 2)
    for kind in ("learned positions", "rotary positions"):
        model, text = small_gpt(impl, rng, **KINDS[kind]), ids_of(rng, 2, 7)
        expected = model(torch.cat((torch.tensor(first).expand(2, -1), text), dim=1))[:, 2:]
        impl.adapt(model, PrefixConfig(n_virtual=2, initial_ids=first))
        cache = model.make_cache(2)
        found = torch.cat([model(part, cache) for part in text.split((3, 1, 3), dim=1)], dim=1)
        expect_close(found, expected, what=f"logits behind two real tokens, in pieces from a cache ({kind})")
        ids, mask, positions, rows = padded_left(rng, (5, 2))
        together = model(ids, None, mask, positions)
        for number, row in enumerate(rows):
            expect_close(together[number, -len(row) :], model(row[None])[0], what=f"a text behind padding ({kind})")


# --- 25.3 the network folded into rows


def a_network(impl, kind, rng):
    if kind == "prefix":
        config = PrefixConfig(n_virtual=3, reparametrised=True, d_hidden=6)
        return impl.Prefix(2, 2, 4, config, Seeded(whole(rng, 0, 1000)))
    config = PTuningConfig(n_virtual=3, encoder=kind, d_hidden=5)
    return impl.PromptEncoder(6, config, Seeded(whole(rng, 0, 1000)))


@task("25.3", cases=2)
def test_fold_keeps_the_rows_and_nothing_else(impl, rng):
    for kind in ("prefix", "mlp", "lstm"):
        network = a_network(impl, kind, rng).double()
        shake(network, rng)
        rows = network.folded()
        network.fold(rows)
        expect_equal(sorted(network.state_dict()), ["table"], what=f"names of the numbers after folding ({kind})")
        expect_equal(network.get("table"), rows, what=f"the table after folding ({kind})")
        expect_equal(network.rows(), rows, what=f"the rows after folding ({kind})")
        other = normal(rng, *rows.shape)
        network.fold(other)
        expect_equal(network.rows(), other, what=f"the rows after folding others into the table ({kind})")


@task("25.3")
def test_fold_keeps_format_and_whether_it_is_trained(impl, rng):
    for dtype in (torch.float64, torch.float32):
        for trained in (True, False):
            network = a_network(impl, "prefix", rng).to(dtype).requires_grad_(trained)
            rows = normal(rng, 3, 32, dtype=torch.float32 if dtype == torch.float64 else torch.float64)
            network.fold(rows)
            expect(network.get("table").dtype == dtype, f"a network of {dtype} must become a table of {dtype}")
            expect_close(network.get("table"), rows.to(dtype), what="the table")
            expect_equal(network.get("table.requires_grad"), trained, what="whether the table is trained")


@task("25.3", cases=2)
def test_fold_writes_into_a_table_that_an_optimizer_knows(impl, rng):
    prefix = impl.Prefix(2, 2, 4, PrefixConfig(n_virtual=3), Seeded(1)).double()
    optimizer = impl.AdamW(prefix.parameters(), lr=0.5, weight_decay=0.0)
    rows = normal(rng, 3, 32)
    prefix.fold(rows)
    expect_equal(prefix.get("table"), rows, what="the table")
    expect_equal(prefix.get("table.requires_grad"), True, what="whether the table is trained")
    prefix.set("table.grad", torch.ones(3, 32, dtype=torch.float64))
    optimizer.step()
    expect_close(prefix.get("table"), rows - 0.5 / (1 + 1e-8), what="the table after a step")


@task("25.3", needs=("25.4", "25.5", "25.7"))
def test_fold_in_a_model(impl, rng):
    for config in (PrefixConfig(n_virtual=3, reparametrised=True, d_hidden=6), PTuningConfig(n_virtual=3, d_hidden=5)):
        model, ids = small_gpt(impl, rng), ids_of(rng, 2, 5)
        adapted = impl.adapt(model, config, generator=Seeded(1))
        shake(model, rng, 0.1)
        before = model(ids)
        adapted.delta.fold()
        expect_close(model(ids), before, what=f"the logits after folding ({config.method})")
        expect_equal(len(adapted.trainable_parameters()), 1, what="the number of tensors trained after folding")


# --- 25.6 the first vectors of a prompt


@task("25.6", cases=3)
def test_prompt_from_a_text(impl, rng):
    words = normal(rng, 9, 5)
    for n_virtual, n_ids in ((3, 5), (5, 2), (4, 4), (1, 3)):
        ids = [int(x) for x in rng.permutation(9)[:n_ids]]
        config = PromptConfig(n_virtual=n_virtual, initial="text", initial_ids=tuple(ids))
        expected = words[torch.tensor((ids * n_virtual)[:n_virtual])]
        expect_equal(impl.first_vectors(config, words), expected, what=f"{n_virtual} vectors from the ids {ids}")


def rows_in(vectors, words):
    """For each vector, the number of the word that it is, or -1."""
    return [next((number for number, word in enumerate(words) if torch.equal(word, vector)), -1) for vector in vectors]


@task("25.6", cases=2)
def test_prompt_from_the_vocabulary(impl, rng):
    words, seed = normal(rng, 7, 5), whole(rng, 0, 1000)
    config = PromptConfig(n_virtual=90, initial="vocabulary")
    vectors = impl.first_vectors(config, words, Seeded(seed))
    expect_equal(set(rows_in(vectors, words)), set(range(7)), what="the words among 90 drawn from a vocabulary of 7")
    expect_equal(impl.first_vectors(config, words, Seeded(seed)), vectors, what="the same draw again")
    other = impl.first_vectors(config, words, Seeded(seed + 1))
    expect(not torch.equal(other, vectors), "another seed must draw other words")
    among = (5, 2, 6)
    few = PromptConfig(n_virtual=60, initial="vocabulary", initial_ids=among)
    drawn = set(rows_in(impl.first_vectors(few, words, Seeded(seed)), words))
    expect_equal(drawn, set(among), what="the words among 60 drawn from 5, 2 and 6")


@task("25.6", cases=2)
def test_random_prompt(impl, rng):
    words = 0.3 * normal(rng, 50, 30) + 1.0
    for std in (0.0, 0.8):
        config = PromptConfig(n_virtual=60, std=std)
        vectors = impl.first_vectors(config, words, Seeded(whole(rng, 0, 1000)))
        expect_equal(tuple(vectors.shape), (60, 30), what="the shape")
        expect(vectors.dtype == torch.float64, f"vectors are {vectors.dtype}, the vocabulary is float64")
        asked, found = std or float(words.std()), float(vectors.std())
        expect(abs(found / asked - 1) < 0.1, f"the standard deviation is {found:.3f}, expected about {asked:.3f}")
        expect(abs(float(vectors.mean())) < 0.1 * asked, "random vectors have mean 0")
    same = [impl.first_vectors(config, words, Seeded(3)) for _ in range(2)]
    expect_equal(same[0], same[1], what="random vectors from the same seed")
    small = impl.first_vectors(PromptConfig(n_virtual=2), words.float(), Seeded(3))
    expect(small.dtype == torch.float32, f"vectors are {small.dtype}, the vocabulary is float32")


@task("25.6")
def test_random_prompt_in_a_narrow_format(impl, rng):
    """Half of the last digit of bfloat16 is 0.4 percent: the standard deviation must be taken in a wider format."""
    words = normal(rng, 50, 30, dtype=torch.float32)
    words = (words * (1 + 2**-8) / words.std()).to(torch.bfloat16)
    unit = impl.first_vectors(PromptConfig(n_virtual=60, std=1.0), words.float(), Seeded(3)).double()
    found = impl.first_vectors(PromptConfig(n_virtual=60), words, Seeded(3))
    expect(found.dtype == torch.bfloat16, f"vectors are {found.dtype}, the vocabulary is bfloat16")
    asked, std = float(words.double().std()), float((found.double() * unit).sum() / unit.square().sum())
    expect(abs(std / asked - 1) < 1e-3, f"the standard deviation is {std:.4f}, that of the vocabulary {asked:.4f}")


@task("25.6")
def test_prompt_stands_alone(impl, rng):
    """Without a generator torch's own is meant; and no gradient leads back to the vocabulary."""
    words = normal(rng, 7, 5)
    for initial in ("random", "vocabulary"):
        config = PromptConfig(n_virtual=8, initial=initial)
        first, second = impl.first_vectors(config, words), impl.first_vectors(config, words)
        expect_equal(tuple(first.shape), (8, 5), what=f"the shape without a generator ({initial})")
        expect(not torch.equal(first, second), f"two draws from torch's own generator are the same ({initial})")
        _, (_, by_words) = impl.first_vectors.gradients(config, words, output_gradient=torch.ones(8, 5).double())
        expect(by_words is None, f"a gradient leads from the first vectors back to the vocabulary ({initial})")


@task("25.6")
def test_prompt_refuses_ids_outside_the_vocabulary(impl, rng):
    words = normal(rng, 6, 3)
    for initial in ("text", "vocabulary"):
        for wrong in (6, -1, 100):
            config = PromptConfig(n_virtual=2, initial=initial, initial_ids=(0, wrong))
            with expect_error(ValueError, match=str(wrong)):
                impl.first_vectors(config, words, Seeded(1))
        last = PromptConfig(n_virtual=1, initial=initial, initial_ids=(5,))
        expect_equal(impl.first_vectors(last, words, Seeded(1)), words[5:], what="the vector of the last word")


# --- 25.7 a prompt in front of a text


@task("25.7", cases=2, needs=("25.6",))
def test_prompt_of_real_words_is_reading_them(impl, rng):
    first = tuple(int(x) for x in rng.integers(0, V, 3))
    for kind, settings in KINDS.items():
        model, ids = small_gpt(impl, rng, **settings), ids_of(rng, 2, 5)
        expected = model(torch.cat((torch.tensor(first).expand(2, -1), ids), dim=1))[:, 3:]
        adapted = impl.adapt(model, PromptConfig(n_virtual=3, initial="text", initial_ids=first))
        found = model(ids)
        expect_equal(tuple(found.shape), (2, 5, V), what="the shape of the logits: the text's positions alone")
        expect_close(found, expected, what=f"logits behind three real words ({kind})")
        texts, mask, positions, rows = padded_left(rng, (4, 2, 6))
        together = model(texts, None, mask, positions)
        for number, row in enumerate(rows):
            alone = model(row[None])[0]
            expect_close(together[number, -len(row) :], alone, what=f"a text behind padding ({kind})")
        right = torch.stack([F.pad(row, (0, 6 - len(row)), value=1) for row in rows])
        mask = torch.arange(6) < torch.tensor([len(row) for row in rows])[:, None]
        together = model(right, mask=mask)
        for number, row in enumerate(rows):
            alone = model(row[None])[0]
            expect_close(together[number, : len(row)], alone, what=f"a text before padding ({kind})")
        adapted.delta.switch(False)
        plain = model(torch.cat((torch.tensor(first).expand(2, -1), ids), dim=1))[:, 3:]
        expect_close(plain, expected, what="the logits with the prompt switched off")
        texts, mask, positions, rows = padded_left(rng, (3, 5))
        together = model(texts, None, mask, positions)
        for number, row in enumerate(rows):
            what = f"a text behind padding, with the prompt switched off ({kind})"
            expect_close(together[number, -len(row) :], model(row[None])[0], what=what)


@task("25.7", cases=2, needs=("25.6",))
def test_prompt_and_cache(impl, rng):
    for kind, settings in KINDS.items():
        model, ids = small_gpt(impl, rng, **settings), ids_of(rng, 2, 8)
        impl.adapt(model, PromptConfig(n_virtual=3, std=0.5), generator=Seeded(2))
        expected, cache = model(ids), model.make_cache(2)
        for turn in ("first", "second"):
            found = torch.cat([model(part, cache) for part in ids.split((4, 1, 3), dim=1)], dim=1)
            expect_close(found, expected, what=f"logits in pieces from a cache, {turn} use of it ({kind})")
            expect_equal(cache.get("length"), 8, what="the number of tokens that the cache says it holds")
            cache.reset()


@task("25.7", needs=("25.6",))
def test_prompt_cache_and_padding(impl, rng):
    for kind, settings in KINDS.items():
        model = small_gpt(impl, rng, **settings)
        impl.adapt(model, PromptConfig(n_virtual=2, std=0.5), generator=Seeded(2))
        texts, mask, positions, rows = padded_left(rng, (7, 4, 5))
        cache, found = model.make_cache(3), []
        for begin, end in ((0, 4), (4, 5), (5, 7)):
            found.append(model(texts[:, begin:end], cache, mask[:, :end], positions[:, begin:end]))
        together = torch.cat(found, dim=1)
        for number, row in enumerate(rows):
            what = f"a text behind padding, in pieces from a cache ({kind})"
            expect_close(together[number, -len(row) :], model(row[None])[0], what=what)


@task("25.7", needs=("25.6",))
def test_prompt_and_a_cache_that_begins_anew(impl, rng):
    """A cache whose length is set to 0 has forgotten the text; the words in front are read again."""
    model, ids = small_gpt(impl, rng), ids_of(rng, 1, 5)
    impl.adapt(model, PromptConfig(n_virtual=2, std=0.5), generator=Seeded(2))
    cache = model.make_cache(1)
    model(ids_of(rng, 1, 6), cache)
    cache.get("inner").set("length", 1)                            # as after going back into the prompt
    expect_close(model(ids, cache), model(ids), what="logits from a cache that holds no token of the text")


@task("25.7", needs=("25.6",))
def test_hidden_of_ids_alone(impl, rng):
    model, ids = small_gpt(impl, rng), ids_of(rng, 2, 5)
    impl.adapt(model, PromptConfig(n_virtual=2, std=0.5), generator=Seeded(2))
    found = model.hidden(ids)
    expect_equal(tuple(found.shape), (2, 5, WIDTH), what="the shape of what `hidden` gives")
    everywhere = torch.ones(2, 5, dtype=torch.bool)
    expect_close(found, model.hidden(ids, None, everywhere), what="`hidden` without a mask, and with one that is true")


@task("25.7", needs=("25.6",))
def test_prompt_refuses(impl, rng):
    model = small_gpt(impl, rng)
    impl.adapt(model, PromptConfig(n_virtual=3), generator=Seeded(2))
    expect_equal(tuple(model(ids_of(rng, 1, CONTEXT - 3)).shape), (1, CONTEXT - 3, V), what="the longest text's logits")
    with expect_error(ValueError, match=f"{CONTEXT - 2} positions do not fit"):
        model(ids_of(rng, 1, CONTEXT - 2))
    for wrong in (V, V + 2):
        with expect_error(ValueError):
            model(torch.tensor([[1, wrong, 2]]))
    with expect_error(ValueError, match="mask"):
        model(ids_of(rng, 2, 4), None, torch.ones(2, 7, dtype=torch.bool))
    cache = model.make_cache(2)
    model(ids_of(rng, 2, CONTEXT - 5), cache)
    with expect_error(ValueError, match="positions do not fit"):
        model(ids_of(rng, 2, 3), cache)


# --- 25.8 factors


@task("25.8", cases=2)
def test_outputs_are_multiplied_with_their_bias(impl, rng):
    model, x = small_gpt(impl, rng, **KINDS["learned positions"]), normal(rng, 2, 3, WIDTH)
    impl.adapt(model, IA3Config())
    state = shake(model, rng)
    name = "blocks.1.attention.qkv"
    factors = torch.ones(3 * WIDTH, dtype=torch.float64)
    factors[WIDTH : 2 * WIDTH], factors[2 * WIDTH :] = state[f"{name}.ia3.key"], state[f"{name}.ia3.value"]
    plain = F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
    expect_close(model.get(name)(x), plain * factors, what="queries, keys and values, of which the first stay")
    wide, name = normal(rng, 2, 3, 4 * WIDTH), "blocks.0.feed_forward.down"
    inputs = wide * state[f"{name}.ia3.input"]
    expected = F.linear(inputs, state[f"{name}.weight"], state[f"{name}.bias"])
    expect_close(model.get(name)(wide), expected, what="the second map of the feed-forward layer")


@task("25.8", cases=2)
def test_inputs_and_outputs_of_one_layer(impl, rng):
    model, name = small_gpt(impl, rng, **KINDS["learned positions"]), "blocks.0.attention.output"
    x = normal(rng, 2, 3, WIDTH)
    adapted = impl.adapt(model, IA3Config(outputs=("attention.output",), inputs=("attention.output",)))
    state = shake(model, rng)
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    expected = F.linear(x * state[f"{name}.ia3.input"], weight, bias) * state[f"{name}.ia3.whole"]
    expect_close(model.get(name)(x), expected, what="a layer whose inputs and outputs are multiplied")
    adapted.delta.merge()
    expect_close(model.get(name)(x), expected, what="the same after merging (the factors count once)")
    adapted.delta.unmerge()
    expect_close(model.get(name)(x), expected, what="the same after unmerging")
    adapted.delta.switch(False)
    expect_equal(model.get(name)(x), F.linear(x, weight, bias), what="the layer with the factors switched off")


@task("25.8")
def test_factors_keep_the_number_format(impl, rng):
    model, ids = small_gpt(impl, rng, **KINDS["learned positions"]).to(torch.bfloat16), ids_of(rng, 2, 4)
    impl.adapt(model, IA3Config(outputs=("attention.output", "qkv"), parts=("value",)))
    for name, width in (("blocks.0.attention.output", WIDTH), ("blocks.0.feed_forward.down", 4 * WIDTH)):
        out = model.get(name)(normal(rng, 1, 2, width, dtype=torch.bfloat16))
        expect(out.dtype == torch.bfloat16, f"{name} gives {out.dtype} in a model of bfloat16")
    expect(model(ids).dtype == torch.bfloat16, "logits of a model of bfloat16 must be bfloat16")


@task("25.8")
def test_gradients_of_factors(impl, rng):
    model, name = small_gpt(impl, rng, **KINDS["learned positions"]), "blocks.0.attention.output"
    x = normal(rng, 2, 2, WIDTH)
    impl.adapt(model, IA3Config(outputs=("attention.output",), inputs=("attention.output",)))
    state, gradient = shake(model, rng), normal(rng, 2, 2, WIDTH)
    leaves = [x.clone(), state[f"{name}.ia3.input"], state[f"{name}.ia3.whole"]]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    out = F.linear(leaves[0] * leaves[1], state[f"{name}.weight"], state[f"{name}.bias"]) * leaves[2]
    expected = torch.autograd.grad(out, leaves, gradient)
    _, (by_x,), by_name = model.get(name).gradients(x, output_gradient=gradient)
    expect_close((by_x, by_name["ia3.input"], by_name["ia3.whole"]), expected, what="gradients of input and factors")


# --- 25.9 which biases


def gpt_biases(n_layers=2):
    """The biases of the GPT of these tests, by name."""
    parts = {"attention": ("qkv", "output"), "feed_forward": ("up", "down")}
    ends = {f"{part}.{layer}.bias" for part, layers in parts.items() for layer in layers}
    ends |= {f"{part}_norm.bias" for part in parts}
    return {f"blocks.{layer}.{end}" for layer in range(n_layers) for end in ends} | {"final_norm.bias"}


@task("25.9", cases=2)
def test_all_biases_of_layers_and_norms(impl, rng):
    n_layers = whole(rng, 1, 4)
    model = small_gpt(impl, rng, bias=True, n_layers=n_layers)
    found = impl.biases_of(model, BitFitConfig())
    expect_equal(sorted(found), sorted(gpt_biases(n_layers)), what=f"biases of a GPT of {n_layers} layers")
    sizes = {"vocab_size": V, "max_seq_len": CONTEXT, "n_layers": 1, "n_heads": 2, "d_model": 8}
    bert = impl.Bert(bert_config("bert", **sizes), Seeded(1))
    names = set(bert.state_dict())
    expected = sorted(name for name in names if name.endswith(".bias"))
    expect("head_bias" in names and "head_bias" not in expected, "the test's BERT has a head_bias of another kind")
    expect_equal(sorted(impl.biases_of(bert, BitFitConfig())), expected, what="biases of a BERT, head_bias left out")


@task("25.9")
def test_chosen_biases(impl, rng):
    model = small_gpt(impl, rng, bias=True)
    found = impl.biases_of(model, BitFitConfig(targets=("qkv", "blocks.1.feed_forward.up")))
    expected = ["blocks.0.attention.qkv.bias", "blocks.1.attention.qkv.bias", "blocks.1.feed_forward.up.bias"]
    expect_equal(sorted(found), expected, what="biases of qkv and of one layer's up")
    found = impl.biases_of(model, BitFitConfig(targets=("final_norm",)))
    expect_equal(found, ["final_norm.bias"], what="the bias of a target outside of the layers, asked for by name")
    layer = model.get("blocks.0.feed_forward.up")
    expect_equal(impl.biases_of(layer, BitFitConfig()), ["bias"], what="the bias of a layer that is a model by itself")
    with expect_error(ValueError, match="token_embedding"):
        impl.biases_of(model, BitFitConfig(targets=("token_embedding",)))
    with expect_error(ValueError):
        impl.biases_of(model, BitFitConfig(targets=("no_such_layer",)))


@task("25.9")
def test_a_head_keeps_its_bias_to_itself(impl, rng):
    judge = impl.LastTokenClassifier(small_gpt(impl, rng, bias=True), 3)
    found = impl.biases_of(judge, BitFitConfig(heads=("head",)))
    expect_equal(sorted(found), sorted(f"body.{name}" for name in gpt_biases()), what="biases beside a head")
    found = impl.biases_of(judge, BitFitConfig())
    expected = sorted(["head.bias", *(f"body.{name}" for name in gpt_biases())])
    expect_equal(sorted(found), expected, what="biases where nothing is called a head")


@task("25.9")
def test_models_without_biases_are_refused(impl, rng):
    llama = small_gpt(impl, rng, **KINDS["rotary positions"])
    sizes = {"vocab_size": V, "max_seq_len": CONTEXT, "n_layers": 1, "n_heads": 2, "d_model": 8}
    t5 = impl.T5(t5_config("1.1", **sizes), Seeded(1))
    for name, model in (("LLaMA", llama), ("T5", t5)):
        with expect_error(ValueError, match="biases"):
            impl.biases_of(model, BitFitConfig())
        with expect_error(ValueError, match="biases"):
            impl.adapt(model, BitFitConfig())
        expect(bool(model.state_dict()), f"the {name} is gone")
    judge = impl.LastTokenClassifier(llama, 3)
    for heads in ((), ("head",)):
        with expect_error(ValueError, match="biases"):
            impl.biases_of(judge, BitFitConfig(heads=heads))


@task("25.9")
def test_training_biases_leaves_everything_else(impl, rng):
    model, ids = small_gpt(impl, rng, bias=True), ids_of(rng, 3, 6)
    before = model.state_dict()
    adapted = impl.adapt(model, BitFitConfig())
    parameters = adapted.trainable_parameters()
    expect_equal(sorted(parameters), sorted(gpt_biases()), what="names of what is trained")
    _, _, gradients = model.gradients(ids, output_gradient=normal(rng, 3, 6, V))
    trained = {name for name, gradient in gradients.items() if gradient is not None and bool(gradient.any())}
    expect_equal(sorted(trained), sorted(gpt_biases()), what="what gets a gradient")
    expect_equal(model.state_dict(), before, what="all numbers before the first step")


