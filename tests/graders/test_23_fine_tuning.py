"""Chapter 23. Oracles: names of layers, softmax regression in closed form, sums over every answer, counted draws."""

import math

import numpy as np
import torch

from minillm.adapt.continual import Anchor
from minillm.adapt.task_scores import TaskScores
from minillm.course.grader import Seeded, expect, expect_close, expect_equal, expect_error, normal, task
from minillm.errors import DataError
from minillm.models.bert import bert_config
from minillm.models.gpt import GPTConfig

SIGMAS = 6.0  # how far a count may be from its mean: once in 500 million


def uniform(rng, low, high):
    return float(rng.uniform(low, high))


def seeded(rng, library="torch"):
    return Seeded(int(rng.integers(2**31)), library)


def decoder(impl, rng, n_layers=2, **settings):
    shape = {"vocab_size": 7, "max_seq_len": 6, "n_heads": 2, "d_model": 8, "bias": True, "tie_embeddings": False}
    return impl.GPT(GPTConfig(n_layers=n_layers, **shape | settings), seeded(rng))


def encoder_judge(impl, rng, n_layers=2):
    config = bert_config("bert", vocab_size=7, max_seq_len=6, n_layers=n_layers, n_heads=2, d_model=8)
    return impl.TextClassifier(impl.Bert(config, seeded(rng)), 3)


def names_of(model):
    return [name for name, _ in model.named_parameters()]


def place(name, n_layers):
    """Depth of a parameter of these two models, from its name alone."""
    words = name.removeprefix("body.").split(".")
    if words[0] in ("blocks", "layers"):
        return 1 + int(words[1])
    return 0 if "embedding" in words[0] else n_layers + 1


# --- 23.1 rates that fall towards the input


def expect_groups(groups, expected, what):
    """Groups with these parameters: name -> (rate, weight decay)."""
    expect(isinstance(groups, list) and all(group.get("params") for group in groups), f"{what}: a group is empty")
    found = {
        name: (group["lr"], group["weight_decay"], parameter)
        for group in groups
        for name, parameter in group["params"]
    }
    n_found = sum(len(group["params"]) for group in groups)
    expect(n_found == len(found), f"{what}: a parameter stands in two groups")
    expect_equal(sorted(found), sorted(expected), what=f"{what}: names of all grouped parameters")
    for name, (rate, weight_decay) in expected.items():
        expect_close(found[name][0], rate, what=f"{what}: learning rate of {name}")
        expect_close(found[name][1], weight_decay, what=f"{what}: weight decay of {name}")
    rates = [group["lr"] for group in groups]
    expect(rates == sorted(rates, reverse=True), f"{what}: the groups' rates are {rates}, expected the largest first")


@task("23.1", cases=2)
def test_each_layer_has_its_rate(impl, rng):
    for make, n_layers in ((decoder, 3), (encoder_judge, 2)):
        model, decay = make(impl, rng, n_layers), uniform(rng, 0.2, 0.9)
        rate, weight_decay = uniform(rng, 0.1, 3.0), uniform(rng, 0.05, 0.5)
        groups = impl.layer_groups(model, rate, decay, weight_decay)
        parameters = {name: parameter for name, parameter in model.named_parameters()}
        expected = {
            name: (rate * decay ** (n_layers + 1 - place(name, n_layers)), weight_decay if parameter.dim() > 1 else 0.0)
            for name, parameter in parameters.items()
        }
        expect_groups(groups, expected, f"{make.__name__} of {n_layers} layers, decay {decay:.3f}")
        for group in groups:
            for name, parameter in group["params"]:
                expect_equal(parameter, parameters[name], what=f"the parameter that is called {name}")


@task("23.1")
def test_defaults_and_a_decay_of_one(impl, rng):
    model = decoder(impl, rng)
    names = names_of(model)
    expected = {name: (0.4 / 2.6 ** (3 - place(name, 2)), 0.0) for name in names}
    expect_groups(impl.layer_groups(model, 0.4), expected, "the default decay")
    same = {name: (0.4, 0.0) for name in names}
    expect_groups(impl.layer_groups(model, 0.4, 1.0), same, "a decay of 1")
    expect_groups(impl.layer_groups(model, 0.0, 0.5), {name: (0.0, 0.0) for name in names}, "a rate of 0")


@task("23.1")
def test_frozen_parameters_are_left_out_and_tied_ones_have_the_lower_place(impl, rng):
    model = decoder(impl, rng, tie_embeddings=True)
    model.blocks.requires_grad_(False)
    left = [name for name in names_of(model) if not name.startswith("blocks")]
    expect("head.weight" not in left, "the head of this model is its token embedding")
    expected = {name: (0.3 * 0.5 ** (3 - place(name, 2)), 0.0) for name in left}
    expect_groups(impl.layer_groups(model, 0.3, 0.5), expected, "tied embeddings, frozen blocks")


@task("23.1")
def test_rates_out_of_range_are_refused(impl, rng):
    model = decoder(impl, rng)
    for arguments in ((-0.1, 0.5, 0.0), (0.1, 0.0, 0.0), (0.1, 1.5, 0.0), (0.1, 0.5, -1.0), (math.nan, 0.5, 0.0)):
        with expect_error(ValueError):
            impl.layer_groups(model, *arguments)
            expect(False, f"layer_groups(model, {arguments}) must be refused")


# --- 23.2 gradual unfreezing


def learning(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@task("23.2", cases=2)
def test_depths_join_from_the_top(impl, rng):
    for make, n_layers in ((decoder, 3), (encoder_judge, 2)):
        model, pause = make(impl, rng, n_layers), int(rng.integers(2, 6))
        names = names_of(model)
        unfreezing = impl.GradualUnfreezing(model, pause)
        for step in (0, pause - 1, pause, 2 * pause - 1, 2 * pause, (n_layers + 1) * pause, 50 * pause, 1, 0):
            unfreezing.let_learn(step)
            lowest = max(0, n_layers + 1 - step // pause)
            expected = {name for name in names if place(name, n_layers) >= lowest}
            what = f"{make.__name__}, {n_layers} layers, one depth more every {pause} steps: what learns in step {step}"
            expect_equal(sorted(learning(model)), sorted(expected), what=what)


@task("23.2")
def test_what_does_not_take_part_stays_frozen_and_makes_no_pause(impl, rng):
    model = decoder(impl, rng, 3)
    for name in ("final_norm", "head", "blocks.1", "blocks.0.attention"):  # the top, a layer, and half of another
        model.get(name).requires_grad_(False)
    part = learning(model)
    unfreezing = impl.GradualUnfreezing(model, 4)
    for step, joined in ((3, {3}), (4, {3, 1}), (8, {3, 1, 0}), (99, {3, 1, 0})):
        unfreezing.let_learn(step)
        expected = {name for name in part if place(name, 3) in joined}
        what = f"layer 2, half of layer 1 and the head are frozen from the beginning: what learns in step {step}"
        expect_equal(sorted(learning(model)), sorted(expected), what=what)


@task("23.2")
def test_gradients_of_what_is_frozen_are_dropped_and_no_others(impl, rng):
    model = decoder(impl, rng)
    unfreezing = impl.GradualUnfreezing(model, 5)
    for name, parameter in model.named_parameters():
        model.set(f"{name}.grad", torch.full_like(parameter.detach(), 2.0))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    unfreezing.let_learn(5)
    for name, parameter in model.named_parameters():
        learns = place(name, 2) >= 2
        has = parameter.grad is not None
        expect(has == learns, f"{name} {'lost its' if learns else 'is frozen and has a'} gradient in step 5")
        expect_equal(parameter.detach(), before[name], what=f"{name} (nothing but who learns may change)")


# --- 23.3 texts and their classes


@task("23.3", cases=3)
def test_a_batch_of_texts_and_classes(impl, rng):
    texts = [rng.integers(1, 30, int(n)).tolist() for n in rng.permutation([1, 2, 5, 9])]
    classes, pad_id = rng.integers(0, 4, 4).tolist(), int(rng.choice([0, 3, 40]))
    inputs, targets = impl.class_batch(texts, classes, pad_id)
    longest = 9
    for what, found in (("inputs", inputs), ("targets", targets)):
        expect(isinstance(found, np.ndarray) and found.dtype == np.int64, f"{what}: expected an array of int64")
        expect_equal(found.shape, (4, longest), what=f"the shape of {what}")
    for row, (text, label) in enumerate(zip(texts, classes, strict=True)):
        n = len(text)
        expect_equal(inputs[row].tolist(), text + [pad_id] * (longest - n), what=f"inputs of text {row} ({n} tokens)")
        wanted = [-100] * (n - 1) + [label] + [-100] * (longest - n)
        expect_equal(targets[row].tolist(), wanted, what=f"targets of text {row} ({n} tokens, class {label})")


@task("23.3")
def test_classes_that_do_not_fit_are_refused(impl, rng):
    for texts, classes in (([], []), ([[5]], [0, 1]), ([[5], []], [0, 1]), ([[5], [6]], [0, -1])):
        with expect_error(DataError):
            impl.class_batch(texts, classes, 0)
            expect(False, f"texts {texts} with classes {classes} must be refused")
    arrays = np.array([[3, 4], [5, 6], [7, 3]])
    found = [part.tolist() for part in impl.class_batch(arrays, np.array([1, 0, 2]), 0)]
    expect_equal(found, [arrays.tolist(), [[-100, 1], [-100, 0], [-100, 2]]], what="a batch of texts given as an array")
    alone = impl.class_batch([[8, 8]], [0], 8)
    expect_equal([part.tolist() for part in alone], [[[8, 8]], [[-100, 0]]], what="one text of padding ids")


# --- 23.4 and 23.5 the Fisher information


def regression(impl, rng, n_inputs=4, n_classes=3):
    model = impl.Linear(n_inputs, n_classes, True).double()
    model.set("weight.data", normal(rng, n_classes, n_inputs))
    model.set("bias.data", normal(rng, n_classes))
    return model


def exact_fisher(model, x):
    """Of softmax regression: the mean of p (1 - p) x^2."""
    shares = torch.softmax(x @ model.get("weight").detach().T + model.get("bias").detach(), dim=-1)
    spread = shares * (1 - shares)
    return {"weight": torch.einsum("nk,ni->ki", spread, x.square()) / len(x), "bias": spread.mean(0)}


def expect_fisher(found, expected, what):
    expect(isinstance(found, dict), f"{what}: expected a dictionary of tensors")
    expect_equal(sorted(found), sorted(expected), what=f"{what}: names")
    for name, right in expected.items():
        expect_close(found[name], right, what=f"{what}: entry of {name}")


def of_classes(rng, n, n_classes=3):
    return torch.from_numpy(rng.integers(0, n_classes, n))


@task("23.4", cases=2)
def test_fisher_of_softmax_regression(impl, rng):
    model, x, y = regression(impl, rng), normal(rng, 11, 4), of_classes(rng, 11)
    expected = exact_fisher(model, x)
    for parts in ((11,), (4, 7), (1, 2, 8)):
        batches = list(zip(x.split(parts), y.split(parts), strict=True))
        found = impl.fisher_diagonal(model, None, batches, "all")
        expect_fisher(found, expected, f"11 examples in batches of {parts}")


@task("23.4")
def test_fisher_of_the_parameters_that_learn(impl, rng):
    model, x, y = regression(impl, rng), normal(rng, 5, 4), of_classes(rng, 5)
    expected = exact_fisher(model, x)
    model.get("bias")
    model.set("bias.requires_grad", False)
    found = impl.fisher_diagonal(model, None, [(x, y)], "all")
    expect_fisher(found, {"weight": expected["weight"]}, "a model whose bias is frozen")
    frozen = {"weight": torch.nn.Parameter(normal(rng, 2), requires_grad=False)}
    for settings in ((None, [], "all"), (None, [(x, y)], "some"), (frozen, [(x, y)], "all")):
        with expect_error(ValueError):
            impl.fisher_diagonal(model, *settings)
            expect(False, "no example, an unknown kind of labels, or a frozen parameter must be refused")


@task("23.4")
def test_fisher_with_data_and_with_drawn_answers(impl, rng):
    model, x, y = regression(impl, rng), normal(rng, 7, 4), of_classes(rng, 7)
    shares = torch.softmax(x @ model.get("weight").detach().T + model.get("bias").detach(), dim=-1)
    score = torch.nn.functional.one_hot(y, 3).double() - shares
    of_data = {"weight": torch.einsum("nk,ni->ki", score**2, x**2) / 7, "bias": (score**2).mean(0)}
    found = impl.fisher_diagonal(model, None, [(x[:3], y[:3]), (x[3:], y[3:])], "data")
    expect_fisher(found, of_data, "the empirical Fisher")
    same, x, y = seeded(rng), normal(rng, 200, 4), of_classes(rng, 200)
    first, again, other = (
        impl.fisher_diagonal(model, None, [(x, y)], "model", generator) for generator in (same, same, seeded(rng))
    )
    expect_fisher(again, first, "the same generator again")
    expect(bool((first["weight"] != other["weight"]).any()), "two generators draw the same answers")
    by_default = impl.fisher_diagonal(model, None, [(x, y)], generator=same)
    expect_fisher(by_default, first, 'the default, labels="model"')


@task("23.4")
def test_fisher_of_a_decoder_is_the_mean_over_its_texts(impl, rng):
    """What belongs to one text alone is asked of the model in batches of one text."""
    model = decoder(impl, rng, 1).double().eval()
    ids, targets = (torch.from_numpy(rng.integers(0, 7, (3, 4))) for _ in range(2))
    alone = []
    for row in range(3):
        one = slice(row, row + 1)
        shares = torch.softmax(model(ids[one]).detach(), dim=-1)
        slope_of_logits = torch.nn.functional.one_hot(targets[one], 7) - shares
        _, _, slopes = model.gradients(ids[one], output_gradient=slope_of_logits)
        alone.append({name: slope.square() for name, slope in slopes.items()})
    expected = {name: sum(each[name] for each in alone) / 3 for name in alone[0]}
    found = impl.fisher_diagonal(model, None, [(ids, targets)], "data")
    expect_fisher(found, expected, "a decoder, three texts")
    drawn = impl.fisher_diagonal(model, None, [(ids, targets)])
    expect(min(float(value.min()) for value in drawn.values()) >= 0, "an entry of the Fisher information is negative")


def table_batch(rng, n_rows=5, n_positions=4, n_tokens=6):
    inputs, targets = (torch.from_numpy(rng.integers(0, n_tokens, (n_rows, n_positions))) for _ in range(2))
    targets[0, 1:] = -100
    targets[1, :2] = -100
    return inputs, targets


def table(impl, rng, n_tokens=6):
    model = impl.Embedding(n_tokens, n_tokens, std=1.0, generator=seeded(rng)).double()
    return model, torch.softmax(model.get("weight").detach(), dim=-1)


@task("23.5", cases=2, needs=("23.4",))
def test_all_answers_of_several_positions(impl, rng):
    """A table of logits: every counted position adds p (1 - p) to the row of its token."""
    (model, shares), (inputs, targets) = table(impl, rng), table_batch(rng)
    expected = torch.zeros_like(shares)
    for token in inputs[targets != -100].tolist():
        expected[token] += shares[token] * (1 - shares[token]) / len(inputs)
    found = impl.fisher_diagonal(model, None, [(inputs, targets)], "all")
    expect_fisher(found, {"weight": expected}, "5 texts, some positions not counted, all answers")
    other = torch.where(targets == -100, targets, (targets + 1) % 6)
    again = impl.fisher_diagonal(model, None, [(inputs, other)], "all")
    expect_fisher(again, {"weight": expected}, "the same with other targets, which must not matter")


@task("23.5", cases=2, needs=("23.4",))
def test_positions_of_one_text_are_one_answer(impl, rng):
    """The empirical Fisher: the scores of a text's positions are added, and the sum is squared."""
    (model, shares), (inputs, targets) = table(impl, rng), table_batch(rng)
    inputs[2] = inputs[2, 0]
    expected = torch.zeros_like(shares)
    for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
        score = torch.zeros_like(shares)
        for token, answer in zip(row, wanted, strict=True):
            if answer != -100:
                score[token] -= shares[token]
                score[token, answer] += 1
        expected += score**2 / len(inputs)
    found = impl.fisher_diagonal(model, None, [(inputs, targets)], "data")
    expect_fisher(found, {"weight": expected}, "5 texts of several positions, the true answers")


@task("23.5", needs=("23.4",))
def test_drawn_answers_have_the_models_probabilities(impl, rng):
    n = 900
    model, share = regression(impl, rng, 1, 3), None
    x, y = torch.ones(n, 1, dtype=torch.float64), torch.zeros(n, dtype=torch.int64)
    share = torch.softmax(model.get("weight").detach()[:, 0] + model.get("bias").detach(), dim=-1)
    found = impl.fisher_diagonal(model, None, [(x, y)], "model", seeded(rng))["bias"]
    for k in range(3):
        p = float(share[k])
        mean, deviation = p * (1 - p), abs(1 - 2 * p) * math.sqrt(p * (1 - p) / n)  # of (1 or 0 - p)^2
        far = abs(float(found[k]) - mean)
        what = f"{n} drawn answers of chance {p:.3f}: mean squared score {float(found[k]):.4f}, expected {mean:.4f}"
        expect(far <= SIGMAS * deviation + 1e-9, what)


@task("23.5", needs=("23.4",))
def test_a_text_without_a_question_adds_nothing(impl, rng):
    (model, _), (inputs, targets) = table(impl, rng), table_batch(rng)
    for labels in ("all", "model", "data"):
        some = impl.fisher_diagonal(model, None, [(inputs[2:3], targets[2:3])], labels, Seeded(1))["weight"]
        both = [(inputs[2:3], targets[2:3]), (inputs[:1], torch.full_like(targets[:1], -100))]
        halved = impl.fisher_diagonal(model, None, both, labels, Seeded(1))["weight"]
        expect_close(halved, some / 2, what=f'labels="{labels}": a second text in which nothing is counted')


# --- 23.6 springs


def springs(rng, shapes):
    values = {name: normal(rng, *shape) for name, shape in shapes.items()}
    return Anchor(values, {name: normal(rng, *shape).square() for name, shape in shapes.items()})


@task("23.6", cases=2)
def test_the_energy_of_the_springs(impl, rng):
    shapes = {"a.weight": (2, 3), "b": (5,), "c": ()}
    parameters = {name: normal(rng, *shape) for name, shape in shapes.items()}
    anchors = [springs(rng, shapes) for _ in range(3)]
    for n in (1, 2, 3):
        strength = uniform(rng, 0.2, 4.0)
        expected = 0.0
        for anchor in anchors[:n]:
            for name, parameter in parameters.items():
                stretched = (parameter - anchor.values[name]).numpy()
                expected += strength * 0.5 * float(np.sum(anchor.importance[name].numpy() * stretched**2))
        found, (after, *_) = impl.elastic_penalty.after(parameters, anchors[:n], strength)
        expect(found.dim() == 0, f"the energy has shape {tuple(found.shape)}, expected a scalar")
        expect_close(float(found), expected, what=f"the energy of {n} anchors at strength {strength:.3f}")
        for name, parameter in parameters.items():
            expect_equal(after[name], parameter, what=f"parameter {name} after the call")


@task("23.6")
def test_springs_at_rest_and_springs_that_do_not_fit(impl, rng):
    shapes = {"a": (2, 3), "b": (4,)}
    anchor = springs(rng, shapes)
    expect_close(float(impl.elastic_penalty(anchor.values, [anchor], 3.0)), 0.0, what="springs that are at rest")
    moved = {name: value + 1 for name, value in anchor.values.items()}
    expect_close(float(impl.elastic_penalty(moved, [anchor], 0.0)), 0.0, what="springs of strength 0")
    other = springs(rng, {"a": (2, 3), "c": (4,)})
    for anchors, strength in (([], 1.0), ([anchor], -1.0), ([anchor, other], 1.0), ([anchor], math.nan)):
        with expect_error(ValueError):
            impl.elastic_penalty(moved, anchors, strength)
            expect(False, f"{len(anchors)} anchors and strength {strength} must be refused")


# --- 23.7 a memory of fixed size


@task("23.7", cases=2)
def test_each_item_is_kept_with_the_same_chance(impl, rng):
    n_seen, n_kept, n_tries = int(rng.integers(7, 12)), int(rng.integers(2, 5)), 1500
    counts, together = np.zeros(n_seen), 0
    for _ in range(n_tries):
        kept = impl.keep(range(n_seen), n_kept, seeded(rng, "numpy"))
        expect(len(kept) == n_kept and len(set(kept)) == n_kept, f"{n_kept} different items, expected; got {kept}")
        counts[kept] += 1
        together += 0 in kept and n_seen - 1 in kept
    share = n_kept / n_seen
    pair = share * (n_kept - 1) / (n_seen - 1)
    for item, count in [*enumerate(counts.tolist()), ("the first and the last", together)]:
        p = share if isinstance(item, int) else pair
        far = SIGMAS * math.sqrt(n_tries * p * (1 - p)) + 1
        what = f"{n_seen} items, {n_kept} places, {n_tries} tries: item {item} was kept {count:.0f} times"
        expect(abs(count - n_tries * p) <= far, f"{what}, expected about {n_tries * p:.0f}")


@task("23.7")
def test_short_streams_and_one_pass(impl, rng):
    items = [(1, "a"), (2, "b"), (3, "c")]
    for n_kept in (3, 4, 50):
        expect_equal(impl.keep(items, n_kept, seeded(rng, "numpy")), items, what=f"3 items in {n_kept} places")
    expect_equal(impl.keep([], 2, seeded(rng, "numpy")), [], what="an empty stream")
    same = seeded(rng, "numpy")
    first, again = (impl.keep(range(40), 5, same) for _ in range(2))
    expect_equal(again, first, what="the same stream with the same generator again")
    longer = impl.keep(range(90), 5, same)
    stayed = [place for place, item in enumerate(longer) if item < 40]
    what = "of a longer stream with the same generator, the items of its beginning, and their places"
    expect_equal([longer[place] for place in stayed], [first[place] for place in stayed], what=what)


# --- 23.8 what is forgotten


@task("23.8", cases=2)
def test_what_is_forgotten(impl, rng):
    for n in (2, 4):
        tasks, rows = tuple("abcd"[:n]), rng.uniform(0, 1, (n + 1, n))
        for larger in (True, False):
            scores = TaskScores(tasks, tuple(map(tuple, rows)), larger)
            expected = {}
            for number, name in enumerate(tasks[:-1]):
                since = rows[number + 1 :, number]
                expected[name] = float(since.max() - since[-1] if larger else since[-1] - since.min())
            found = impl.TaskScores.forgotten(scores)
            expect_equal(list(found), list(expected), what="names of the tasks, all but the last")
            kind = "accuracies" if larger else "losses"
            for name, right in expected.items():
                what = f"what is forgotten of task {name} ({kind} {rows.round(3).tolist()})"
                expect_close(found[name], right, what=what)


@task("23.8")
def test_nothing_forgotten(impl):
    better = TaskScores(("a", "b", "c"), ((0.9, 0.8, 0.1), (0.5, 0.1, 0.1), (0.6, 0.7, 0.2), (0.7, 0.8, 0.9)))
    what = "scores that only rise since they were learned"
    expect_equal(impl.TaskScores.forgotten(better), {"a": 0.0, "b": 0.0}, what=what)
    alone = TaskScores(("a",), ((0.9,), (0.1,)))
    expect_equal(impl.TaskScores.forgotten(alone), {}, what="one task alone")
