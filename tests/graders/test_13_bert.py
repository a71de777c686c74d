"""Graders of chapter 13: each test names the task it belongs to; `impl` is the library or a learner's file."""

import math

import numpy as np
import torch
from torch import nn

from minillm.course.grader import Seeded, expect, expect_close, expect_equal, expect_error, normal, task
from minillm.data.masking import MaskingConfig
from minillm.data.sentence_pairs import SentencePair
from minillm.models.bert import Bert, bert_config

SIGMAS = 6.0  # how far a count may be from its mean: once in 500 million


def numpy_seed(rng):
    return Seeded(int(rng.integers(2**31)), "numpy")


def expect_count(got, n, share, what):
    """A number of hits among n independent tries."""
    far = SIGMAS * math.sqrt(n * share * (1 - share)) + 1
    expect(abs(got - n * share) <= far, f"{what}: {got} of {n}, expected about {n * share:.0f}")


def oracle_words(allowed, continues):
    """Lists of places, by a loop."""
    words = []
    for place, is_allowed in enumerate(allowed):
        if is_allowed and place and continues[place] and allowed[place - 1]:
            words[-1].append(place)
        elif is_allowed:
            words.append([place])
    return words


def expect_choice(got, allowed):
    """A bool array over the places, True at allowed ones only."""
    expect(isinstance(got, np.ndarray), f"the choice is {got!r}, expected an array")
    what = f"the choice has dtype {got.dtype} and shape {got.shape}, expected bool and {allowed.shape}"
    expect(got.dtype == bool and got.shape == allowed.shape, what)
    wrong = np.flatnonzero(got & ~allowed)
    expect(len(wrong) == 0, f"{len(wrong)} tokens are chosen that are not allowed, the first at {wrong[:1].tolist()}")


# 13.1 which tokens are asked for


@task("13.1", cases=2)
def test_as_many_as_the_rate_says(impl, rng):
    for n_tokens in (1, 2, 3, 7, 13, 50, 211):
        for rate in (0.0412, 0.1513, 0.3712, 1.0):
            allowed = rng.random(n_tokens) < 0.8
            n_allowed = int(allowed.sum())
            got, after = impl.choose_tokens.after(allowed, rate, generator=numpy_seed(rng))
            expect_choice(got, allowed)
            expected = max(1, round(rate * n_allowed)) if n_allowed else 0
            expect_equal(int(got.sum()), expected, what=f"number chosen of {n_allowed} at rate {rate}")
            expect_equal(after[0], allowed, what="`allowed` after the call")


@task("13.1")
def test_every_place_is_equally_likely(impl, rng):
    allowed = np.ones(6000, bool)
    got = impl.choose_tokens(allowed, 0.3, numpy_seed(rng))
    expect_choice(got, allowed)
    for part in range(10):
        expect_count(int(got[part * 600 :][:600].sum()), 600, 0.3, f"chosen in tenth {part + 1} of a long text")
    expect_count(int((got[1:] & got[:-1]).sum()), 1800, 0.3, "chosen tokens whose next token is chosen too")


@task("13.1")
def test_the_choice_comes_from_the_generator(impl, rng):
    allowed, seeds = np.ones(300, bool), (numpy_seed(rng), numpy_seed(rng))
    first, again, other = (impl.choose_tokens(allowed, 0.2, seed) for seed in (seeds[0], seeds[0], seeds[1]))
    expect_equal(again, first, what="the choice with the same generator again")
    expect(bool((first != other).any()), "two generators give the same choice")


@task("13.1", cases=4)
def test_whole_words_or_nothing(impl, rng):
    n_tokens, rate = int(rng.integers(1, 60)), float(rng.choice([0.107, 0.231, 0.413]))
    allowed, continues = rng.random(n_tokens) < 0.85, rng.random(n_tokens) < 0.45
    words = oracle_words(allowed, continues)
    n_wanted = max(1, round(rate * int(allowed.sum())))
    for _ in range(5):
        got = impl.choose_tokens(allowed, rate, numpy_seed(rng), continues)
        expect_choice(got, allowed)
        for word in words:
            expect(len(set(got[word].tolist())) == 1, f"the word at places {word} is chosen in part")
        n_left = n_wanted - int(got.sum())
        expect(n_left >= 0, f"{int(got.sum())} tokens are chosen, expected at most {n_wanted}")
        for word in words:
            what = f"the word at places {word} is left out, but {n_left} more tokens were wanted"
            expect(bool(got[word[0]]) or len(word) > n_left, what)


@task("13.1")
def test_long_words_are_as_likely_as_short_ones(impl, rng):
    continues = np.tile([False, False, True, True], 1500)
    allowed = np.ones(6000, bool)
    got = impl.choose_tokens(allowed, 0.3, numpy_seed(rng), continues_word=continues)
    expect_count(int(got[0::4].sum()), 1500, 0.3, "short words chosen")
    expect_count(int(got[1::4].sum()), 1500, 0.3, "long words chosen")
    got = impl.choose_tokens(np.ones(4, bool), 0.3, numpy_seed(rng), np.array([False, True, False, True]))
    expect_equal(got, np.zeros(4, bool), what="the choice where every word is too long")


@task("13.1")
def test_runs_of_words(impl, rng):
    allowed = np.ones(9000, bool)
    got = impl.choose_tokens(allowed, 0.1, numpy_seed(rng), None, 3)
    expect_choice(got, allowed)
    expect_equal(int(got.sum()), 900, what="number chosen in runs of up to three")
    # of 6 + 3 + 2 runs with 18 tokens, 7 are followed by one of the same run, and the 11 last ones by chance
    inside = 7 / 18 + 11 / 18 * 0.1
    expect_count(int((got[1:] & got[:-1]).sum()), 900, inside, "chosen tokens whose next token is chosen, in runs")


@task("13.1")
def test_texts_of_which_nothing_can_be_chosen(impl, rng):
    for allowed in (np.zeros(0, bool), np.zeros(5, bool)):
        got = impl.choose_tokens(allowed, 0.5, numpy_seed(rng), continues_word=np.zeros(len(allowed), bool))
        expect_equal(got, np.zeros(len(allowed), bool), what="the choice where nothing is allowed")
    for continues in (np.ones(4, bool), np.ones(3, int)):
        with expect_error(ValueError):
            impl.choose_tokens(np.ones(3, bool), 0.5, numpy_seed(rng), continues)


# 13.2 what stands in their place


def masked(impl, ids, config, seed, continues=None):
    """Inputs and targets, checked for what must hold for every setting."""
    inputs, targets = impl.mask_tokens(ids, config, seed, continues)
    ids = np.asarray(ids)
    for name, got in (("inputs", inputs), ("targets", targets)):
        expect(isinstance(got, np.ndarray), f"{name} are {got!r}, expected an array")
        what = f"{name} have dtype {got.dtype} and shape {got.shape}, expected int64 and {ids.shape}"
        expect(got.dtype == np.int64 and got.shape == ids.shape, what)
    asked = targets != -100
    expect_equal(inputs[~asked], ids[~asked].astype(np.int64), what="the inputs where nothing is asked")
    expect_equal(targets[asked], ids[asked].astype(np.int64), what="the targets where something is asked")
    special = np.isin(ids, config.special_ids)
    expect(not (asked & special).any(), "a special token is asked for")
    return inputs, targets, asked


@task("13.2")
def test_a_small_text_by_hand(impl, rng):
    settings = {"vocab_size": 9, "mask_id": 8, "special_ids": (0,), "rate": 0.5}
    config = MaskingConfig(**settings, mask_share=1.0, random_share=0.0)
    inputs, targets, asked = masked(impl, [0, 5, 5, 0], config, numpy_seed(rng))
    expect_equal(sorted(inputs.tolist()), [0, 0, 5, 8], what="the sorted inputs of [0, 5, 5, 0], one of two masked")
    expect_equal(sorted(targets.tolist()), [-100, -100, -100, 5], what="its sorted targets")
    config = MaskingConfig(**settings, mask_share=0.0, random_share=0.0)
    inputs, targets, asked = masked(impl, [0, 5, 5, 0], config, numpy_seed(rng))
    expect_equal(inputs.tolist(), [0, 5, 5, 0], what="the inputs if both shares are 0")
    expect_equal(int(asked.sum()), 1, what="the number asked for if both shares are 0")


@task("13.2", cases=2)
def test_shares_of_the_three_kinds(impl, rng):
    for mask_share, random_share in ((0.8, 0.1), (0.5, 0.3), (0.0, 0.6), (0.3, 0.0)):
        config = MaskingConfig(
            vocab_size=50, mask_id=4, special_ids=(0, 1, 2), rate=0.5, mask_share=mask_share, random_share=random_share
        )
        ids = np.full(8000, 9)
        inputs, _, asked = masked(impl, ids, config, numpy_seed(rng))
        expect_equal(int(asked.sum()), 4000, what="number asked for of 8,000 at rate 0.5")
        what = f"at shares of {mask_share} and {random_share}: tokens that became"
        expect_count(int((inputs[asked] == 4).sum()), 4000, mask_share, f"{what} the mask")
        other = ~np.isin(inputs[asked], (4, 9))
        expect_count(int(other.sum()), 4000, random_share * 45 / 46, f"{what} another token")


@task("13.2")
def test_kinds_are_drawn_token_by_token(impl, rng):
    config = MaskingConfig(vocab_size=50, mask_id=4, rate=0.5, mask_share=0.5, random_share=0.0)
    inputs, _, asked = masked(impl, np.full(8000, 9), config, numpy_seed(rng))
    hidden = inputs[asked] == 4
    expect_count(int((hidden[1:] & hidden[:-1]).sum()), 3999, 0.25, "pairs of asked tokens that are both masked")
    for part in range(4):
        expect_count(int(asked[part * 2000 :][:2000].sum()), 2000, 0.5, f"asked for in quarter {part + 1}")


@task("13.2")
def test_random_tokens_are_any_ordinary_ones(impl, rng):
    config = MaskingConfig(vocab_size=12, mask_id=4, special_ids=(0, 11), rate=1.0, mask_share=0.0, random_share=1.0)
    inputs, _, _ = masked(impl, np.full(9000, 9), config, numpy_seed(rng))
    counts = np.bincount(inputs, minlength=12)
    expect(not counts[[0, 4, 11]].any(), f"special ids are drawn as random tokens: counts {counts.tolist()}")
    for token_id in (1, 2, 3, 5, 6, 7, 8, 9, 10):
        expect_count(int(counts[token_id]), 9000, 1 / 9, f"random tokens that are id {token_id}")


@task("13.2")
def test_rate_words_and_runs_are_handed_on(impl, rng):
    continues = np.zeros(50, bool)
    continues[30:] = True
    for longest in (1, 3):
        config = MaskingConfig(vocab_size=50, mask_id=4, special_ids=(0, 1), rate=0.2, longest_ngram=longest)
        ids = rng.integers(5, 50, 4000)
        _, _, asked = masked(impl, ids, config, numpy_seed(rng), continues)
        expect_equal(int(asked.sum()), 800, what="number asked for of 4,000 at rate 0.2")
        for word in oracle_words(np.ones(4000, bool), continues[ids]):
            expect(len(set(asked[word].tolist())) == 1, f"the word at places {word} is asked for in part")
        _, _, asked = masked(impl, ids, config, numpy_seed(rng))
        together = 0.2 if longest == 1 else 7 / 18 + 11 / 18 * 0.2
        what = f"asked tokens whose next one is asked for, runs of up to {longest}"
        expect_count(int((asked[1:] & asked[:-1]).sum()), 800, together, what)


@task("13.2", cases=2)
def test_inputs_stay_and_seeds_repeat(impl, rng):
    config = MaskingConfig(vocab_size=30, mask_id=3, special_ids=(0, 1, 2))
    ids = rng.integers(0, 30, 300).astype(np.int32)
    seeds = numpy_seed(rng), numpy_seed(rng)
    first, after = impl.mask_tokens.after(ids, config, generator=seeds[0])
    expect_equal(after[0], ids, what="the ids after the call")
    again, other = (impl.mask_tokens(ids, config, seed) for seed in seeds)
    expect_equal(again, first, what="inputs and targets with the same generator again")
    expect(bool((first[0] != other[0]).any()), "two generators give the same inputs")
    for specials in ([], [0, 3, 2]):
        inputs, targets, _ = masked(impl, np.array(specials, np.int64), config, seeds[0])
        expect_equal(inputs, np.array(specials, np.int64), what="the inputs of a text without ordinary tokens")
        expect_equal(targets, np.full(len(specials), -100), what="its targets")


@task("13.2")
def test_ids_outside_the_vocabulary_are_refused(impl, rng):
    config = MaskingConfig(vocab_size=9, mask_id=8)
    for ids in ([9], [-1], [[1, 2]], [0.5]):
        with expect_error(ValueError):
            impl.mask_tokens(ids, config, numpy_seed(rng))


# 13.3 the loss


def encoders(impl, rng, **settings):
    """The learner's and our own encoder with the same weights in float64."""
    shape = {"vocab_size": 17, "max_seq_len": 12, "n_layers": 1, "n_heads": 2, "d_model": 8} | settings
    config = bert_config(**shape)
    ours = Bert(config, torch.Generator().manual_seed(0)).double().eval()
    weights = {name: normal(rng, *value.shape) * 0.6 for name, value in ours.state_dict().items()}
    ours.load_state_dict(weights)
    theirs = impl.Bert(config, Seeded(0))
    theirs.double()
    theirs.load_state_dict(weights)
    return theirs, ours


def oracle_loss(model, hidden, targets):
    """One asked place after the other."""
    total = torch.zeros((), dtype=hidden.dtype)
    for row, place in (targets != -100).nonzero().tolist():
        scores = model.logits(hidden[row, place])
        total = total + torch.logsumexp(scores, dim=0) - scores[targets[row, place]]
    return total


@task("13.3", cases=2)
def test_only_hidden_tokens_count(impl, rng):
    theirs, ours = encoders(impl, rng)
    for shape in ((1, 1), (3, 5), (2, 9)):
        hidden = normal(rng, *shape, 8)
        targets = torch.from_numpy(rng.integers(0, 17, shape))
        targets[torch.from_numpy(rng.random(shape) < 0.6)] = -100
        targets[0, 0] = 0
        got, after = impl.hidden_token_loss.after(theirs, hidden, targets)
        with torch.no_grad():
            expected = oracle_loss(ours, hidden, targets)
        expect_close(got, expected, what=f"the loss of {int((targets != -100).sum())} hidden tokens")
        expect_equal(after[1:], [hidden, targets], what="vectors and targets after the call")


@task("13.3")
def test_nothing_asked_costs_nothing(impl, rng):
    theirs, _ = encoders(impl, rng)
    got = impl.hidden_token_loss(theirs, normal(rng, 2, 3, 8), torch.full((2, 3), -100))
    expect_close(got, torch.zeros((), dtype=torch.float64), what="the loss where nothing is asked")


@task("13.3")
def test_gradients_reach_the_asked_places_only(impl, rng):
    theirs, ours = encoders(impl, rng)
    hidden, targets = normal(rng, 2, 4, 8), torch.tensor([[-100, 3, -100, 5], [-100, -100, 0, -100]])
    one = torch.tensor(1.0, dtype=torch.float64)
    _, got = impl.hidden_token_loss.gradients(theirs, hidden, targets, output_gradient=one)
    leaf = hidden.clone().requires_grad_()
    expected = torch.autograd.grad(oracle_loss(ours, leaf, targets), leaf)[0]
    expect_close(got[1], expected, what="gradient of the last vectors")


# 13.4 pairs of sentences


def checked_pairs(impl, documents, seed):
    pairs = impl.next_sentence_pairs(documents, seed)
    expect(isinstance(pairs, list), f"the result is {pairs!r}, expected a list")
    for pair in pairs:
        expect(isinstance(pair, SentencePair), f"a pair is {pair!r}, expected a SentencePair")
        kinds = type(pair.first), type(pair.second), type(pair.label)
        names = ", ".join(kind.__name__ for kind in kinds)
        expect(kinds == (tuple, tuple, int), f"a pair holds {names}; expected tuple, tuple, int")
    return pairs


def numbered_documents(lengths):
    """Sentence s of document d is [100000 d + s]: each id is told from all others."""
    return [[[100_000 * number + place] for place in range(length)] for number, length in enumerate(lengths)]


@task("13.4", cases=2)
def test_one_pair_for_each_two_neighbours(impl, rng):
    lengths = rng.integers(1, 6, 60).tolist()
    documents = numbered_documents(lengths)
    pairs = checked_pairs(impl, documents, numpy_seed(rng))
    firsts = [tuple(sentence) for document in documents for sentence in document[:-1]]
    expect_equal([pair.first for pair in pairs], firsts, what="the first segments, in the order of the text")
    for pair in pairs:
        first, second = pair.first[0], pair.second[0]
        expect(pair.label in (0, 1), f"a label is {pair.label}, expected 0 or 1")
        if pair.label == 0:
            expect_equal(second, first + 1, what=f"the second segment of a true pair that begins with {first}")
        else:
            what = f"a false pair takes {second} from the document of {first}"
            expect(second // 100_000 != first // 100_000, what)
            expect(second % 100_000 < lengths[second // 100_000], f"there is no sentence {second}")


@task("13.4")
def test_half_of_the_pairs_are_false(impl, rng):
    pairs = checked_pairs(impl, numbered_documents([1001, 900]), numpy_seed(rng))
    labels = np.array([pair.label for pair in pairs])
    expect_equal(len(pairs), 1899, what="number of pairs")
    expect_count(int(labels.sum()), 1899, 0.5, "false pairs")
    expect_count(int((labels[1:] & labels[:-1]).sum()), 1898, 0.25, "two false pairs in a row")


@task("13.4")
def test_false_sentences_come_from_anywhere(impl, rng):
    for own in (0, 2):
        lengths = [3, 1, 6, 4]
        lengths[own] = 3000
        pairs = checked_pairs(impl, numbered_documents(lengths), numpy_seed(rng))
        false = [pair.second[0] for pair in pairs if pair.label and pair.first[0] // 100_000 == own]
        for number in set(range(4)) - {own}:
            here = [second % 100_000 for second in false if second // 100_000 == number]
            expect_count(len(here), len(false), 1 / 3, f"false sentences from a document of {lengths[number]}")
            for place in range(lengths[number]):
                what = f"sentence {place + 1} of the {lengths[number]} of another document"
                expect_count(here.count(place), len(here), 1 / lengths[number], what)


@task("13.4")
def test_segments_of_several_tokens(impl, rng):
    documents = [[[5, 6], [7]], [[8, 9, 10]], [(1,), [2, 3]]]
    sentences = {tuple(sentence) for document in documents for sentence in document}
    seed = numpy_seed(rng)
    pairs = checked_pairs(impl, documents, seed)
    expect_equal([pair.first for pair in pairs], [(5, 6), (1,)], what="the first segments")
    for pair in pairs:
        expect(pair.second in sentences, f"the second segment {pair.second} is none of the sentences")
    again = checked_pairs(impl, documents, seed)
    expect(again == pairs, "the same generator gives other pairs")
    many = numbered_documents([40, 40])
    expect(checked_pairs(impl, many, numpy_seed(rng)) != checked_pairs(impl, many, numpy_seed(rng)),
           "two generators give the same pairs")  # fmt: skip
    expect_equal(checked_pairs(impl, [[[1]], [[2]]], seed), [], what="pairs of documents of one sentence")


@task("13.4")
def test_too_few_documents_are_refused(impl, rng):
    for documents in ([[[1], [2]]], [], [[[1]], [[2]], []]):
        with expect_error(ValueError):
            impl.next_sentence_pairs(documents, numpy_seed(rng))


# 13.5 parameter counts


def count(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def oracle_parts(config):
    """The same parts made of torch's own layers."""
    width, narrow = config.d_model, config.d_embedding
    tables = (config.vocab_size, config.position_offset + config.max_seq_len, config.n_segments)
    embeddings = [*(nn.Embedding(n_rows, narrow) for n_rows in tables), nn.LayerNorm(narrow)]
    if narrow != width:
        embeddings.append(nn.Linear(narrow, width))
    layers = [nn.TransformerEncoderLayer(width, config.n_heads, config.d_ff) for _ in range(config.n_layers)]
    pair_head = [nn.Linear(width, width), nn.Linear(width, 2)] if config.pair_head else []
    return {
        "embeddings": count(*embeddings),
        "layers": count(layers[0]) if config.share_layers else count(*layers),
        "token head": count(nn.Linear(width, narrow), nn.LayerNorm(narrow)) + config.vocab_size,
        "pair head": count(*pair_head),
    }


@task("13.5")
def test_published_models_by_hand(impl, rng):
    shape = {"max_seq_len": 512, "n_layers": 12, "n_heads": 12, "d_model": 768}
    got = impl.encoder_parameters_by_part(bert_config("bert", vocab_size=30522, **shape))
    layer = 4 * (768 * 768 + 768) + 768 * 3072 + 3072 + 3072 * 768 + 768 + 4 * 768
    expected = {
        "embeddings": (30522 + 512 + 2) * 768 + 2 * 768,
        "layers": 12 * layer,
        "token head": 768 * 768 + 768 + 2 * 768 + 30522,
        "pair head": 768 * 768 + 768 + 2 * 768 + 2,
    }
    expect_equal(got, expected, what="the parts of BERT base")
    expect_equal(sum(got.values()), 110_106_428, what="all numbers of BERT base")
    got = impl.encoder_parameters_by_part(bert_config("albert", vocab_size=30000, **shape, d_embedding=128))
    expected = {
        "embeddings": (30000 + 512 + 2) * 128 + 2 * 128 + 128 * 768 + 768,
        "layers": layer,
        "token head": 768 * 128 + 128 + 2 * 128 + 30000,
        "pair head": 768 * 768 + 768 + 2 * 768 + 2,
    }
    expect_equal(got, expected, what="the parts of ALBERT base")


@task("13.5", cases=3)
def test_parts_of_any_encoder(impl, rng):
    for _ in range(12):
        n_heads = int(rng.choice([1, 2, 4]))
        config = bert_config(
            str(rng.choice(["bert", "roberta", "albert"])),
            vocab_size=int(rng.integers(3, 40)),
            max_seq_len=int(rng.integers(2, 30)),
            n_layers=int(rng.integers(1, 4)),
            n_heads=n_heads,
            d_model=n_heads * int(rng.choice([2, 3, 6])),
            d_ff=int(rng.choice([0, 5, 24])),
            d_embedding=int(rng.choice([0, 3, 12])),
        )
        expect_equal(impl.encoder_parameters_by_part(config), oracle_parts(config), what=f"the parts of {config}")


@task("13.5")
def test_each_setting_changes_its_own_part(impl, rng):
    base = {"vocab_size": 11, "max_seq_len": 7, "n_layers": 3, "n_heads": 2, "d_model": 8}
    changes = (
        {}, {"n_segments": 5}, {"position_offset": 3}, {"pair_head": False}, {"share_layers": True}, {"d_embedding": 3},
        {"d_embedding": 8}, {"d_embedding": 13}, {"d_ff": 9}, {"max_seq_len": 20}, {"n_layers": 1}, {"vocab_size": 30},
    )  # fmt: skip
    for change in changes:
        config = bert_config(**base | change)
        expect_equal(impl.encoder_parameters_by_part(config), oracle_parts(config), what=f"the parts with {change}")


# 13.6 filling in


MASK = 4


def oracle_filled(model, text, forbidden, surest_first):
    """One row, one candidate after the other; the filled row and the log-probability."""
    text, total = list(text), 0.0
    while MASK in text:
        with torch.no_grad():
            scores = model(torch.tensor([text]))[0]
        options = [
            ((scores[place, token_id] - scores[place].logsumexp(0)).item(), -place, -token_id)
            for place in range(len(text))
            for token_id in range(scores.shape[1])
            if text[place] == MASK and token_id != MASK and token_id not in forbidden
        ]
        if not surest_first:
            options = [option for option in options if -option[1] == text.index(MASK)]
        logarithm, place, token_id = max(options)
        text[-place], total = -token_id, total + logarithm
    return text, total


def expect_filled(impl, theirs, ours, ids, forbidden, surest_first, what, **more):
    got, totals = impl.fill_masks(theirs, ids, MASK, forbidden, surest_first, **more)
    expected = [oracle_filled(ours, text, forbidden, surest_first) for text in ids.tolist()]
    expect_equal(got, torch.tensor([text for text, _ in expected], dtype=torch.int64), what=f"the ids, {what}")
    logs = torch.tensor([total for _, total in expected], dtype=torch.float32)
    expect_close(totals, logs, tolerance=1e-5, what=f"the log-probabilities, {what}")


def masked_texts(rng, n_texts, n_tokens, share):
    ids = torch.from_numpy(rng.integers(5, 17, (n_texts, n_tokens)))
    ids[torch.from_numpy(rng.random((n_texts, n_tokens)) < share)] = MASK
    return ids


@task("13.6", cases=3)
def test_one_mask_after_the_other(impl, rng):
    theirs, ours = encoders(impl, rng)
    ids = masked_texts(rng, 4, 7, 0.45)
    ids[0] = 9  # nothing to fill
    ids[1] = MASK  # nothing given
    for surest_first in (True, False):
        what = "the surest first" if surest_first else "from left to right"
        expect_filled(impl, theirs, ours, ids, (), surest_first, what)
        expect_filled(impl, theirs, ours, ids, (0, 1, 11), surest_first, f"{what}, some ids forbidden")


@task("13.6")
def test_defaults_and_what_is_left_alone(impl, rng):
    theirs, ours = encoders(impl, rng)
    ids = masked_texts(rng, 3, 6, 0.6)
    (got, totals), after = impl.fill_masks.after(theirs, ids, MASK)
    expect_equal(after[1], ids, what="the ids after the call")
    expected = [oracle_filled(ours, text, (), True) for text in ids.tolist()]
    expect_equal(got, torch.tensor([text for text, _ in expected]), what="the ids without further arguments")
    logs = torch.tensor([total for _, total in expected], dtype=torch.float32)
    expect_close(totals, logs, tolerance=1e-5, what="the log-probabilities without further arguments")


@task("13.6")
def test_forbidden_ids_and_the_mask_are_never_put_in(impl, rng):
    theirs, ours = encoders(impl, rng)
    bias = torch.zeros(17, dtype=torch.float64)
    bias[[MASK, 2, 7]] = 30.0  # the model loves what it may not say
    for model in (theirs, ours):
        model.load_state_dict({"head_bias": bias}, strict=False)
    ids = masked_texts(rng, 3, 5, 0.7)
    expect_filled(impl, theirs, ours, ids, (2, 7), True, "with ids that are likely and forbidden")
    expect_filled(impl, theirs, ours, ids, (2,), False, "with an id that is likely and forbidden")


@task("13.6")
def test_a_model_in_training_is_used_without_dropout(impl, rng):
    theirs, ours = encoders(impl, rng, dropout=0.4)
    theirs.train()
    expect_filled(impl, theirs, ours, masked_texts(rng, 3, 6, 0.5), (0,), True, "by a model in training mode")
    expect_equal(theirs.get("training"), True, what="whether the model is still in training mode")


@task("13.6")
def test_batches_without_rows_or_masks(impl, rng):
    theirs, ours = encoders(impl, rng)
    for n_texts, n_tokens in ((0, 5), (2, 0), (0, 0)):
        ids = torch.zeros(n_texts, n_tokens, dtype=torch.int64)
        got, totals = impl.fill_masks(theirs, ids, MASK)
        expect_equal(got, ids, what=f"the ids of shape {(n_texts, n_tokens)}")
        expect_equal(totals, torch.zeros(n_texts), what="their log-probabilities")
    expect_filled(impl, theirs, ours, masked_texts(rng, 3, 6, 0.0), (), True, "nothing to fill")


@task("13.6")
def test_something_must_be_left_to_put_in(impl, rng):
    theirs, ours = encoders(impl, rng)
    ids = torch.tensor([[5, MASK, 6]])
    with expect_error(ValueError):
        impl.fill_masks(theirs, ids, MASK, tuple(range(17)))
    with expect_error(ValueError):
        impl.fill_masks(theirs, ids, MASK, tuple(sorted(set(range(17)) - {MASK})))
    expect_filled(impl, theirs, ours, ids, tuple(sorted(set(range(17)) - {3})), True, "with a single id left")


# 13.7 spans


def oracle_span(first, last, allowed, max_length):
    options = [
        (first[begin] + last[end], begin, end)
        for begin in range(len(first))
        for end in range(begin, len(last))
        if allowed[begin] and allowed[end] and (max_length == 0 or end - begin < max_length)
    ]
    return list(max(options)[1:])


@task("13.7", cases=3)
def test_the_best_span_of_all(impl, rng):
    for n_positions in (1, 2, 5, 11):
        first, last = normal(rng, 4, n_positions), normal(rng, 4, n_positions)
        for max_length in (0, 1, 2, 5, 40):
            expected = [oracle_span(*scores, [True] * n_positions, max_length)
                        for scores in zip(first.tolist(), last.tolist(), strict=True)]  # fmt: skip
            got = impl.best_spans(first, last, None, max_length)
            expect_equal(got, torch.tensor(expected), what=f"spans of at most {max_length or 'any'} tokens")
        expect_equal(impl.best_spans(first, last), impl.best_spans(first, last, max_length=n_positions),
                     what="spans of any length, against those of at most all tokens")  # fmt: skip


@task("13.7", cases=2)
def test_answers_begin_and_end_where_they_may(impl, rng):
    first, last = normal(rng, 5, 8) - 1e5, normal(rng, 5, 8) - 1e5
    allowed = torch.from_numpy(rng.random((5, 8)) < 0.5)
    allowed[torch.arange(5), torch.from_numpy(rng.integers(0, 8, 5))] = True
    for max_length in (0, 3):
        expected = [oracle_span(*row, max_length)
                    for row in zip(first.tolist(), last.tolist(), allowed.tolist(), strict=True)]  # fmt: skip
        got, after = impl.best_spans.after(first, last, allowed, max_length)
        expect_equal(got, torch.tensor(expected), what=f"allowed spans of at most {max_length or 'any'} tokens")
        for name, given, left in zip(("first", "last", "allowed"), (first, last, allowed), after[:3], strict=True):
            expect_equal(left, given, what=f"{name} after the call")


@task("13.7")
def test_a_span_never_ends_before_it_begins(impl, rng):
    first = torch.tensor([[0.0, 1.0, 5.0, 0.0]])
    last = torch.tensor([[0.0, 9.0, 1.0, 2.0]])
    expect_equal(impl.best_spans(first, last), torch.tensor([[1, 1]]), what="the span where the best last is before")
    expect_equal(impl.best_spans(first, last - torch.tensor([0.0, 4.0, 0.0, 0.0])), torch.tensor([[2, 3]]),
                 what="the span where both best ones do not fit")  # fmt: skip
    expect_equal(impl.best_spans(first[:0], last[:0]), torch.zeros(0, 2, dtype=torch.int64), what="no rows at all")


@task("13.7")
def test_scores_that_do_not_fit_are_refused(impl, rng):
    for first, last in (((2, 3), (2, 4)), ((3,), (3,)), ((2, 3), (3,)), ((1, 2, 3), (1, 2, 3))):
        with expect_error(ValueError):
            impl.best_spans(normal(rng, *first), normal(rng, *last))
