"""Graders of chapter 04: each test names the task it belongs to; `impl` is the library or a learner's file.

The oracles enumerate: every sequence of states, every way to cut a sentence, every way to place the gaps.
"""

import itertools
import math

import numpy as np

from minillm.course.grader import expect, expect_close, expect_equal, task

# 4.1 reflection

TABLE = {"i am": "you are", "i": "you", "am": "are", "my": "your", "you": "I", "you are": "I am", "to you": "to me"}


def oracle_reflect(words, table):
    phrases = sorted(table, key=lambda phrase: -len(phrase.split()))
    found = []
    rest = list(words)
    while rest:
        for phrase in phrases:
            length = len(phrase.split())
            if rest[:length] == phrase.split():
                found.extend(table[phrase].split())
                del rest[:length]
                break
        else:
            found.append(rest.pop(0))
    return found


@task("4.1")
def test_reflect_by_hand(impl, rng):
    for said, heard in (
        ("my hat", "your hat"),
        ("i gave my hat to you", "you gave your hat to me"),
        ("you are late", "I am late"),
        ("i am sure you are", "you are sure I am"),
        ("the lamp is green", "the lamp is green"),
        ("am i my own master", "are you your own master"),
        ("you", "I"),
    ):
        got = impl.reflect(said.split(), TABLE)
        expect_equal(got, heard.split(), what=f"{said!r} from the other side")
    expect_equal(impl.reflect([], TABLE), [], what="nothing, reflected")
    expect_equal(impl.reflect(["my", "hat"], {}), ["my", "hat"], what="'my hat' without a table")


@task("4.1", cases=6)
def test_reflect_with_any_table(impl, rng):
    letters = list("abcd")
    table = {}
    for _ in range(int(rng.integers(1, 7))):
        phrase = rng.choice(letters, size=int(rng.integers(1, 4)))
        table[" ".join(phrase)] = " ".join(rng.choice([*letters, "E", "F"], size=int(rng.integers(1, 4))))
    words = [str(word) for word in rng.choice(letters, size=int(rng.integers(1, 12)))]
    got, unchanged = impl.reflect.after(words, table)
    expect_equal(got, oracle_reflect(words, table), what=f"{' '.join(words)!r} with the table {table}")
    expect_equal(unchanged, [words, table], what="the arguments afterwards")


# 4.2 taking a sentence apart


def oracle_decompose(pattern, words):
    """Try all lengths of the gaps in the order of the lexicon: the first gap as short as possible."""
    n_gaps = pattern.count("*")
    spare = len(words) - (len(pattern) - n_gaps)
    for lengths in itertools.product(range(max(spare, 0) + 1), repeat=n_gaps):
        if sum(lengths) != spare:
            continue
        place, parts, sizes = 0, [], iter(lengths)
        for entry in pattern:
            size = next(sizes) if entry == "*" else 1
            piece = words[place : place + size]
            if entry == "*":
                parts.append(piece)
            elif piece[0] not in entry.split("|"):
                break
            place += size
        else:
            return parts
    return None


@task("4.2")
def test_decompose_by_hand(impl, rng):
    for pattern, sentence, parts in (
        ("* lost|mislaid my *", "i think i lost my red hat", ["i think i", "red hat"]),
        ("* lost my *", "lost my hat", ["", "hat"]),
        ("* lost my", "i lost my hat", None),
        ("* a *", "a b a", ["", "b a"]),
        ("* a * a *", "b a a a", ["b", "", "a"]),
        ("*", "", [""]),
        ("a", "a", []),
        ("a", "b", None),
        ("a", "", None),
        ("hat|cap", "cap", []),
        ("hat|cap", "hat|cap", None),
        ("cap", "ca", None),
        ("* * a", "b c a", ["", "b c"]),
        ("* a b", "a c a b", ["a c"]),
        ("* a b *", "a c b a b c", ["a c b", "c"]),
    ):
        got = impl.decompose(pattern.split(), sentence.split())
        expected = None if parts is None else [part.split() for part in parts]
        expect_equal(got, expected, what=f"{sentence!r} taken apart by {pattern!r}")
    expect_equal(impl.decompose([], []), [], what="nothing taken apart by nothing")
    expect_equal(impl.decompose([], ["a"]), None, what="'a' taken apart by the empty pattern")


@task("4.2", cases=8)
def test_decompose(impl, rng):
    entries = ["*", "*", "a", "b", "a|b", "b|c|d"]
    pattern = [str(entry) for entry in rng.choice(entries, size=int(rng.integers(1, 6)))]
    for _ in range(6):
        words = [str(word) for word in rng.choice(list("abcd"), size=int(rng.integers(0, 7)))]
        got, unchanged = impl.decompose.after(pattern, words)
        expect_equal(got, oracle_decompose(pattern, words), what=f"{' '.join(words)!r} by {' '.join(pattern)!r}")
        expect_equal(unchanged, [pattern, words], what="the arguments afterwards")


# 4.3 inside probabilities


def oracle_inside(lexical, rules, start, stop, symbol):
    """All derivations of words start .. stop-1 from a symbol, one after another."""
    if stop == start + 1:
        return lexical[start][symbol]
    total = 0.0
    for parent, left, right, probability in rules:
        for middle in range(start + 1, stop) if parent == symbol else ():
            first = oracle_inside(lexical, rules, start, middle, left)
            if first > 0:
                total += probability * first * oracle_inside(lexical, rules, middle, stop, right)
    return total


def random_grammar(rng, n_words, n_symbols, n_rules):
    lexical = rng.random((n_words, n_symbols)) * rng.choice([0, 1, 1], size=(n_words, n_symbols))
    parents, lefts, rights = (rng.integers(n_symbols, size=n_rules) for _ in range(3))
    return lexical, parents, lefts, rights, rng.random(n_rules)


def full_chart(lexical, parents, lefts, rights, probabilities):
    n_words, n_symbols = lexical.shape
    rules = list(zip(parents.tolist(), lefts.tolist(), rights.tolist(), probabilities.tolist(), strict=True))
    chart = np.zeros((n_words, n_words + 1, n_symbols))
    for start in range(n_words):
        for stop in range(start + 1, n_words + 1):
            for symbol in range(n_symbols):
                chart[start, stop, symbol] = oracle_inside(lexical.tolist(), rules, start, stop, symbol)
    return chart


@task("4.3")
def test_inside_by_hand(impl, rng):
    one = np.array([0])
    chart = impl.inside(np.full((4, 1), 0.5), one, one, one, np.array([0.5]))
    expect(np.shape(chart) == (4, 5, 1), f"the chart of four words and one symbol has shape {np.shape(chart)}")
    shares = [0.0, 0.5, 0.125, 0.0625, 5 / 128]                # 1, 1, 2 and 5 binary trees
    expect_close(chart[0, :, 0], np.array(shares), what="S -> S S [0.5] | a [0.5]: of nothing, a, aa, aaa, aaaa")
    # S -> A B [1], A -> a [0.75], B -> b [0.5]; the words a b
    lexical = np.array([[0.0, 0.75, 0.0], [0.0, 0.0, 0.5]])
    chart = impl.inside(lexical, np.array([0]), np.array([1]), np.array([2]), np.array([1.0]))
    expect_close(chart[0, 2], np.array([0.375, 0.0, 0.0]), what="S, A, B over 'a b'")
    chart = impl.inside(lexical[::-1].copy(), np.array([0]), np.array([1]), np.array([2]), np.array([1.0]))
    expect_close(chart[0, 2], np.zeros(3), what="S, A, B over 'b a'")


@task("4.3", cases=5)
def test_inside(impl, rng):
    arguments = random_grammar(rng, int(rng.integers(3, 6)), int(rng.integers(2, 4)), int(rng.integers(2, 6)))
    got, unchanged = impl.inside.after(*arguments)
    expect_close(got, full_chart(*arguments), what="the chart")
    for one, before in zip(unchanged, arguments, strict=True):
        expect_equal(one, before, what="an argument afterwards")


@task("4.3")
def test_inside_of_one_word_and_without_rules(impl, rng):
    arguments = random_grammar(rng, 1, 3, 4)
    expect_close(impl.inside(*arguments), full_chart(*arguments), what="the chart of one word")
    arguments = random_grammar(rng, 3, 2, 0)
    expect_close(impl.inside(*arguments), full_chart(*arguments), what="the chart without rules of two symbols")


@task("4.3", cases=2)
def test_rules_of_the_same_parent_add_up(impl, rng):
    lexical = rng.random((3, 4))
    parents = np.array([2, 2, 2, 0])
    lefts, rights = np.array([1, 1, 2, 2]), np.array([3, 3, 1, 2])
    arguments = lexical, parents, lefts, rights, rng.random(4)
    expect_close(impl.inside(*arguments), full_chart(*arguments), what="the chart, three rules of one symbol")


# Chains small enough for every sequence of states


def random_chain(rng, n_places, n_states, zeros=False):
    """log_initial, log_transitions, log_scores; with zeros some are -inf, but one way through stays open."""
    initial, transitions = rng.dirichlet(np.ones(n_states)), rng.dirichlet(np.ones(n_states), size=n_states)
    scores = rng.random((n_places, n_states))
    if zeros:
        open_way = rng.integers(n_states, size=n_places)
        kept = rng.random(transitions.shape) < 0.6
        kept[open_way[:-1], open_way[1:]] = True
        transitions = transitions * kept
        kept = rng.random(scores.shape) < 0.7
        kept[np.arange(n_places), open_way] = True
        scores = scores * kept
        initial = initial * (np.arange(n_states) == open_way[0])
    with np.errstate(divide="ignore"):
        return np.log(initial), np.log(transitions), np.log(scores)


def every_way(log_initial, log_transitions, log_scores):
    """(states, log-probability of states and ids together) for every sequence of states."""
    n_places, n_states = log_scores.shape
    for states in itertools.product(range(n_states), repeat=n_places):
        total = log_initial[states[0]] + log_scores[0, states[0]]
        for t in range(1, n_places):
            total += log_transitions[states[t - 1], states[t]] + log_scores[t, states[t]]
        yield states, float(total)


def log_of(number):
    return math.log(number) if number > 0 else -math.inf


def oracle_forward(chain):
    log_initial, log_transitions, log_scores = chain
    found = np.zeros(log_scores.shape)
    for t in range(len(log_scores)):
        for states, total in every_way(log_initial, log_transitions, log_scores[: t + 1]):
            found[t, states[-1]] += math.exp(total)
    return np.array([[log_of(number) for number in row] for row in found.tolist()])


def oracle_backward(chain):
    _, log_transitions, log_scores = chain
    n_places, n_states = log_scores.shape
    found = np.zeros((n_places, n_states))
    found[-1] = 1.0
    for t in range(n_places - 1):
        for state in range(n_states):
            for _, total in every_way(log_transitions[state], log_transitions, log_scores[t + 1 :]):
                found[t, state] += math.exp(total)
    return np.array([[log_of(number) for number in row] for row in found.tolist()])


def sizes(rng):
    n_states = int(rng.integers(1, 5))
    return int(rng.integers(1, 6 if n_states < 4 else 5)), n_states


# 4.4 forward


@task("4.4")
def test_forward_by_hand(impl, rng):
    half = np.log([0.5, 0.5])
    chain = half, np.log([[0.75, 0.25], [0.5, 0.5]]), np.log([[0.5, 0.25], [0.25, 1.0]])
    got = impl.log_forward(*chain)
    expect(np.shape(got) == (2, 2), f"two places and two states give an array of shape {np.shape(got)}")
    expected = np.log([[0.25, 0.125], [0.0625, 0.125]])            # 1/4 * (3/4 * 1/4 + 1/2 * 1/8) = 1/16, and so on
    expect_close(got, expected, what="forward of two places")


@task("4.4", cases=5)
def test_forward(impl, rng):
    chain = random_chain(rng, *sizes(rng))
    got, unchanged = impl.log_forward.after(*chain)
    expect_close(got, oracle_forward(chain), what="forward")
    for one, before in zip(unchanged, chain, strict=True):
        expect_equal(one, before, what="an argument afterwards")


@task("4.4", cases=4)
def test_forward_with_impossible_states(impl, rng):
    chain = random_chain(rng, int(rng.integers(3, 6)), 3, zeros=True)
    expect_close(impl.log_forward(*chain), oracle_forward(chain), what="forward, some ways being impossible")


@task("4.4")
def test_forward_does_not_underflow(impl, rng):
    log_transitions = np.log(np.full((2, 2), 0.5))
    got = impl.log_forward(np.log([0.5, 0.5]), log_transitions, np.full((3000, 2), -5.0))
    expected = -5.0 * np.arange(1, 3001) + math.log(0.5)
    expect_close(got[:, 1], expected, tolerance=1e-9, what="forward of 3,000 ids, each exp(-5) probable")


@task("4.4")
def test_forward_where_nothing_is_possible(impl, rng):
    scores = np.array([[0.0, -1.0], [-math.inf, -math.inf], [-1.0, -2.0]])
    got = impl.log_forward(np.log([0.5, 0.5]), np.log(np.full((2, 2), 0.5)), scores)
    expect_close(got[1:], np.full((2, 2), -math.inf), what="forward from an impossible id on")


# 4.5 Viterbi


def oracle_viterbi(chain):
    states, score = max(every_way(*chain), key=lambda way: way[1])
    return np.array(states, np.int64), score


@task("4.5")
def test_viterbi_by_hand(impl, rng):
    stay = np.log([[0.9, 0.1], [0.1, 0.9]])
    path, score = impl.viterbi(np.log([0.5, 0.5]), stay, np.log([[0.2, 0.8], [0.5, 0.5]]))
    expect_equal(path, np.array([1, 1]), what="the best sequence of states")
    expect_close(score, math.log(0.18), what="their log-probability")
    # Three places; the second looks like state 1, but not enough to pay for two changes.
    path, score = impl.viterbi(np.log([0.5, 0.5]), stay, np.log([[0.9, 0.1], [0.3, 0.7], [0.9, 0.1]]))
    expect_equal(path, np.array([0, 0, 0]), what="the best sequence of states, three places")
    expect_close(score, math.log(0.5 * 0.9 * 0.9 * 0.3 * 0.9 * 0.9), what="their log-probability")


@task("4.5", cases=6)
def test_viterbi(impl, rng):
    chain = random_chain(rng, *sizes(rng))
    path, score = oracle_viterbi(chain)
    got, unchanged = impl.viterbi.after(*chain)
    expect(isinstance(got, tuple) and len(got) == 2, "the answer must be a pair: the states, their log-probability")
    expect_equal(got[0], path, what="the best sequence of states")
    expect_close(got[1], score, what="their log-probability")
    for one, before in zip(unchanged, chain, strict=True):
        expect_equal(one, before, what="an argument afterwards")


@task("4.5", cases=4)
def test_viterbi_with_impossible_states(impl, rng):
    chain = random_chain(rng, int(rng.integers(3, 6)), 3, zeros=True)
    path, score = oracle_viterbi(chain)
    got = impl.viterbi(*chain)
    expect_equal(got[0], path, what="the best sequence of states, some ways being impossible")
    expect_close(got[1], score, what="their log-probability")


@task("4.5")
def test_the_best_way_is_not_the_best_state_of_each_place(impl, rng):
    # State 0 begins with 0.6 and scatters; state 1 begins with 0.4 and goes to 2 for sure.
    transitions = np.log([[0.4, 0.3, 0.3], [1e-9, 1e-9, 1 - 2e-9], [0.3, 0.3, 0.4]])
    path, _ = impl.viterbi(np.log([0.6, 0.4, 1e-9]), transitions, np.zeros((2, 3)))
    expect_equal(path, np.array([1, 2]), what="the best sequence of states")


@task("4.5")
def test_viterbi_takes_the_smaller_of_equal_states(impl, rng):
    even = np.log(np.full((4, 4), 0.25))
    path, score = impl.viterbi(even[0], even, np.zeros((5, 4)))
    expect_equal(path, np.zeros(5, np.int64), what="five places, all states alike")
    expect_close(score, 5 * math.log(0.25), what="their log-probability")
    path, _ = impl.viterbi(even[0], even, np.array([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 2.0, 2.0], [3.0, 0.0, 0.0, 3.0]]))
    expect_equal(path, np.array([1, 2, 0]), what="two equally good states at each place")


# 4.6 expected counts of steps


def oracle_steps(chain):
    n_states = len(chain[0])
    steps, total = np.zeros((n_states, n_states)), 0.0
    for states, log_probability in every_way(*chain):
        probability = math.exp(log_probability)
        total += probability
        for one, other in itertools.pairwise(states):
            steps[one, other] += probability
    return steps / total


def steps_arguments(chain):
    return oracle_forward(chain), oracle_backward(chain), chain[1], chain[2]


@task("4.6")
def test_steps_by_hand(impl, rng):
    chain = np.log([0.5, 0.5]), np.log([[0.5, 0.5], [0.5, 0.5]]), np.log([[1.0, 1.0], [0.75, 0.25]])
    got = impl.expected_transitions(*steps_arguments(chain))
    expect_close(got, np.array([[0.375, 0.125], [0.375, 0.125]]), what="expected steps of two places")


@task("4.6", cases=5)
def test_steps(impl, rng):
    n_places, n_states = sizes(rng)
    chain = random_chain(rng, n_places + 1, min(n_states + 1, 4) if n_places < 5 else 3)
    arguments = steps_arguments(chain)
    got, unchanged = impl.expected_transitions.after(*arguments)
    expect_close(got, oracle_steps(chain), what="expected steps")
    for one, before in zip(unchanged, arguments, strict=True):
        expect_equal(one, before, what="an argument afterwards")


@task("4.6", cases=3)
def test_steps_with_impossible_states(impl, rng):
    chain = random_chain(rng, int(rng.integers(3, 6)), 3, zeros=True)
    got = impl.expected_transitions(*steps_arguments(chain))
    expect_close(got, oracle_steps(chain), what="expected steps, some ways being impossible")


@task("4.6", cases=2)
def test_steps_of_very_improbable_ids(impl, rng):
    log_initial, log_transitions, log_scores = random_chain(rng, 4, 3)
    forward, backward, _, _ = steps_arguments((log_initial, log_transitions, log_scores))
    lower = np.array([-2000.0, -4000.0, -6000.0, -8000.0])[:, None]
    got = impl.expected_transitions(forward + lower, backward + lower[::-1] - lower[:1], log_transitions,
                                    log_scores - 2000.0)
    expected = oracle_steps((log_initial, log_transitions, log_scores))
    expect_close(got, expected, tolerance=1e-8, what="expected steps of ids that are exp(-2000) probable")


@task("4.6")
def test_one_place_has_no_step(impl, rng):
    chain = random_chain(rng, 1, 3)
    got = impl.expected_transitions(*steps_arguments(chain))
    expect_close(got, np.zeros((3, 3)), what="expected steps of one place")
