"""tinyworld: exact probabilities proved by enumeration; state tracking checked by a reader that shares no code."""

import hashlib
import itertools
import math
import re
from collections import Counter
from random import Random

import numpy as np
import pytest
from scipy.stats import chisquare

from minillm.data.tinyworld import (
    Fact,
    World,
    WorldConfig,
    bits_per_byte,
    recall_distances,
    recall_share,
    sampled_bits_per_byte,
    world_config,
)
from minillm.data.tinyworld.choices import drawing_chooser, every_run
from minillm.errors import ConfigError, DataError

LANGUAGES = ("english", "chinese")
COUNTABLE = {
    "two events": {"n_events": 2, "min_count": 2, "n_questions": 0},
    "articles": {"n_colours": 2, "min_count": 2, "n_events": 0},
    "classifiers": {"n_things": 2, "n_thing_kinds": 4, "min_count": 2, "n_events": 0, "n_questions": 0},
    "three people": {"n_people": 3, "n_names": 3, "n_items": 3, "n_things": 0, "min_count": 2, "n_events": 0},
    "gifts": {
        "n_events": 2, "n_questions": 0, "n_things": 0, "min_count": 2, "max_count": 3, "event_weights": (1, 1, 5, 9),
    },
    "evening": {"n_events": 0, "n_questions": 3, "min_count": 2},
}  # fmt: skip


def countable(name):
    return World(world_config("tiny", **COUNTABLE.get(name, {})))


BUSY = {"n_people": 4, "n_things": 1, "n_events": 5, "n_questions": 4, "n_places": 8}


def some_stories(preset, n, seed=0, **overrides):
    return itertools.islice(World(world_config(preset, **overrides)).stories(seed), n)


@pytest.fixture(scope="module", params=["tiny", *COUNTABLE])
def whole_world(request):
    world = countable(request.param)
    return world, list(world.enumerate())


def test_probabilities_of_all_stories_sum_to_one(whole_world):
    _, stories = whole_world
    assert len(stories) > 100
    assert math.fsum(math.exp(story.log_probability) for story in stories) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_has_exactly_one_derivation(whole_world, language):
    world, stories = whole_world
    texts = {getattr(story, language).text for story in stories}
    assert len(texts) == len(stories) == len({story.derivation for story in stories})
    parse = getattr(world, f"parse_{language}")
    assert all(parse(getattr(story, language).text) == story.derivation for story in stories[::17])


def test_entropy_is_the_expected_surprisal_of_the_enumeration(whole_world):
    world, stories = whole_world
    by_hand = -math.fsum(math.exp(story.log_probability) * story.log_probability for story in stories)
    assert world.entropy() == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_piece_has_the_probability_of_its_text_given_the_text_before(whole_world, language):
    _, stories = whole_world
    mass = Counter()
    renderings = [getattr(story, language) for story in stories]
    for story, rendering in zip(stories, renderings, strict=True):
        words = tuple(piece.text for piece in rendering.pieces)
        for n_pieces in range(len(words) + 1):
            mass[words[:n_pieces]] += math.exp(story.log_probability)
    for rendering in renderings:
        words = tuple(piece.text for piece in rendering.pieces)
        for number, piece in enumerate(rendering.pieces):
            expected = math.log(mass[words[: number + 1]] / mass[words[:number]])
            assert abs(piece.log_probability - expected) < 1e-9, (rendering.text, piece)


@pytest.mark.parametrize("preset", ["demo", "full"])
def test_parsers_recover_the_derivation_and_its_probability(preset):
    world = World(world_config(preset))
    for story in some_stories(preset, 500):
        assert world.parse_english(story.english.text) == story.derivation
        assert world.parse_chinese(story.chinese.text) == story.derivation
        assert world.log_probability(story.derivation) == story.log_probability


@pytest.mark.parametrize("preset", ["demo", "full"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_pieces_add_up_to_the_text_and_its_probability(preset, language):
    for story in some_stories(preset, 50):
        rendering = getattr(story, language)
        assert "".join(piece.text for piece in rendering.pieces) == rendering.text
        assert rendering.log_probability == pytest.approx(story.log_probability, rel=1e-12)
        assert all(piece.log_probability == 0.0 for piece in rendering.pieces if piece.kind != "chosen")


@pytest.mark.parametrize("language", LANGUAGES)
def test_sampled_surprisal_agrees_with_the_exact_entropy(language):
    world = World(WorldConfig())
    surprisals = np.array([-story.log_probability for story in some_stories("demo", 1000)])
    assert abs(surprisals.mean() - world.entropy()) < 4 * surprisals.std(ddof=1) / math.sqrt(len(surprisals))
    exact = bits_per_byte(world, language, 200, seed=1)
    sampled = sampled_bits_per_byte(world, language, 200, seed=2)
    assert abs(exact.value - sampled.value) < 4 * math.hypot(exact.standard_error, sampled.standard_error)
    assert 0 < sampled.standard_error < 0.01 * sampled.value


def test_bits_per_byte_of_a_whole_world():
    world = countable("two events")
    stories = list(world.enumerate())
    n_bytes = math.fsum(math.exp(s.log_probability) * len(s.chinese.text.encode()) for s in stories)
    found = bits_per_byte(world, "chinese", 1000)
    assert abs(found.value - world.entropy() / math.log(2) / n_bytes) < 4 * found.standard_error


def test_drawn_choices_follow_the_weights():
    choose = drawing_chooser(Random(0))
    drawn = Counter(choose("kind", ("a", "b", "c"), (3.0, 1.0, 2.0)).value for _ in range(12000))
    assert chisquare([drawn[kind] for kind in "abc"], [6000, 2000, 4000]).pvalue > 0.01
    drawn = Counter(choose("kind", ("a", "b", "c", "d")).value for _ in range(12000))
    assert chisquare([drawn[kind] for kind in "abcd"]).pvalue > 0.01


def test_drawn_stories_follow_their_probabilities():
    world = countable("two events")
    expected = {story.derivation: math.exp(story.log_probability) for story in world.enumerate()}
    n_drawn, by_last_event = 3000, Counter()
    drawn = Counter(story.derivation[-1] for story in itertools.islice(world.stories(5), n_drawn))
    for derivation, probability in expected.items():
        by_last_event[derivation[-1]] += probability
    assert drawn.keys() == by_last_event.keys()
    events = sorted(by_last_event, key=str)
    assert chisquare([drawn[e] for e in events], [n_drawn * by_last_event[e] for e in events]).pvalue > 0.01


def test_every_run_visits_dependent_choices_once():
    def tell(choose):
        first = choose("first", (1, 2)).value
        return first, tuple(choose("later", ("x", "y")).value for _ in range(first))

    runs = list(every_run(tell))
    pairs = [(2, pair) for pair in itertools.product("xy", repeat=2)]
    assert [run.told for run in runs] == [(1, ("x",)), (1, ("y",)), *pairs]
    assert [run.probability for run in runs] == pytest.approx([1 / 4] * 2 + [1 / 8] * 4)
    merged = list(every_run(tell, frozenset({"later"})))
    assert sum(run.probability * run.surprisal for run in merged) == pytest.approx(math.log(2) * 2.5)


NUMBERS = "no one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()
PERSON = re.compile(r"(\w+) is at the (\w+)\. (\w+) has an? (\w+) (\w+) and (\w+) (\w+)\.")
THING = re.compile(r"An? (\w+) (\w+) stands at the (\w+)\.")
EVENT = re.compile(
    r"(?P<goes>\w+) goes to the (?P<to>\w+)\."
    r"|(?P<carries>\w+) carries the (?P<load>\w+) from the (?P<source>\w+) to the (?P<goal>\w+)\."
    r"|(?P<swaps>\w+) swaps with (?P<other>\w+)\."
    r"|(?P<gives>\w+) gives (?P<taker>\w+) (?P<amount>\w+) of (?P<whose>her|his) \w+s\."
    r"|(?:Now )?(?P<has>\w+) has the (?P<colour>\w+) (?P<item>\w+) and (?P<count>\w+) \w+\."
)
ASKED = re.compile(
    r"(?P<name>[A-Z]\w+) is at the (?P<place>\w+)\. (?P<again>\w+) has the (?P<colour>\w+) (?P<item>\w+)"
    r" and (?P<count>\w+) \w+\."
    r"|The (?P<item2>\w+) is (?P<colour2>\w+) and belongs to (?P<owner>\w+)\."
    r" (?P<same>\w+) is at the (?P<place2>\w+)\."
    r"|The (?P<thing>\w+) is (?P<colour3>\w+) and stands at the (?P<place3>\w+)\."
)
WOMEN = {"Ana", "Rosalind", "Mei", "Clara", "Ivy", "Johanna", "Xiu", "Penelope", "Nadia"}


def live_through(text):
    """Read an English story with regular expressions only, and check each sentence against the world as it then is."""
    day, _, evening = text.partition(" Evening comes. ")
    people, things = {}, {}
    for name, place, again, colour, item, count, _ in PERSON.findall(day):
        assert name == again
        people[name] = {"place": place, "item": item, "count": NUMBERS.index(count)}
        things[item] = {"colour": colour}
    for colour, thing, place in THING.findall(day):
        things[thing] = {"colour": colour, "place": place}
    n_events = n_stated = 0
    for match in EVENT.finditer(day):
        found = match.groupdict()
        if person := found["has"]:
            assert people[person]["item"] == found["item"] and people[person]["count"] == NUMBERS.index(found["count"])
            assert things[found["item"]]["colour"] == found["colour"]
            n_stated += 1
            continue
        n_events += 1
        if found["goes"]:
            assert people[found["goes"]]["place"] != found["to"]
            people[found["goes"]]["place"] = found["to"]
        elif found["carries"]:
            assert things[found["load"]]["place"] == found["source"] != found["goal"]
            things[found["load"]]["place"] = people[found["carries"]]["place"] = found["goal"]
        elif found["gives"]:
            people[found["gives"]]["count"] -= NUMBERS.index(found["amount"])
            people[found["taker"]]["count"] += NUMBERS.index(found["amount"])
            assert found["whose"] == ("her" if found["gives"] in WOMEN else "his")
        else:
            actor, other = people[found["swaps"]], people[found["other"]]
            actor["item"], other["item"] = other["item"], actor["item"]
    assert n_stated == 2 * len(re.findall(" swaps with | gives ", day))
    questions = [match.groupdict() for match in ASKED.finditer(evening)]
    for found in questions:
        if thing := found["thing"]:
            assert things[thing] == {"colour": found["colour3"], "place": found["place3"]}
        elif name := found["name"]:
            count = NUMBERS.index(found["count"])
            assert people[name] == {"place": found["place"], "item": found["item"], "count": count}
            assert found["again"] == name and things[found["item"]]["colour"] == found["colour"]
        else:
            owner = people[found["owner"]]
            assert (owner["item"], owner["place"]) == (found["item2"], found["place2"])
            assert things[found["item2"]]["colour"] == found["colour2"]
            assert found["same"] == found["owner"]
    return len(people), n_events, len(questions)


def test_the_text_is_true_of_the_world_it_tells_of():
    for story in some_stories("demo", 300):
        assert live_through(story.english.text) == (3, 3, 3)
    for story in some_stories("demo", 300, **BUSY):
        assert live_through(story.english.text) == (4, 5, 4)


def test_the_reader_notices_a_lie():
    lies = 0
    for story in some_stories("demo", 100):
        for recall in story.english.recalls:
            if recall.kind == "count":
                lie = "seven" if recall.word != "seven" else "eight"
                with pytest.raises(AssertionError):
                    live_through(story.english.text[: recall.start] + lie + story.english.text[recall.stop :])
                lies += 1
    assert lies > 200


def test_english_agrees_in_number_and_article():
    text = " ".join(story.english.text for story in some_stories("full", 300))
    assert re.search(r"\bone (plum|peach|pear|cherry|chestnut|apple)\b", text)
    assert not re.search(r"\bone \w+s\b", text)
    assert not re.search(r"\b(two|three|four|five|six) (plum|peach|pear|cherry|chestnut|apple)\b", text)
    assert re.search(r"\b[Aa]n orange\b", text) and not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text)


def test_chinese_is_written_without_spaces_in_full_width():
    for story in some_stories("full", 100):
        assert re.fullmatch(r"[\u4e00-\u9fff，。]+", story.chinese.text)
        assert len(re.findall("有一[只面本条盏顶把个支张件枚辆]", story.chinese.text)) >= 5
        assert "二个" not in story.chinese.text


@pytest.mark.parametrize("language", LANGUAGES)
def test_recalled_words_are_where_the_spans_say(language):
    for story in some_stories("demo", 100):
        rendering = getattr(story, language)
        assert len(rendering.recalls) > 10
        for recall in rendering.recalls:
            assert rendering.text[recall.start : recall.stop] == recall.word
            assert recall.log_probability == 0.0
            if recall.kind in ("name", "object", "place", "colour"):
                assert recall.word in rendering.text[: recall.start]
                assert recall.distance > 0


def test_recall_distances_by_hand():
    world = World(world_config("tiny", n_people=2, n_events=1, n_questions=2))
    story = world.from_derivation(
        (
            Fact("opening", ("plum",)),
            Fact("person", ("Bo", "mill", "red", "drum", 1)),
            Fact("person", ("Ana", "harbour", "red", "kite", 2)),
            Fact("thing", ("red", "box", "mill")),
            Fact("swap", ("Bo", "Ana")),
            Fact("evening", ()),
            Fact("ask_item", ("drum",)),
            Fact("ask_thing", ("box",)),
        )
    )
    assert story.english.text == (
        "The plums are ripe. Bo is at the mill. Bo has a red drum and one plum. Ana is at the harbour. Ana has a red"
        " kite and two plums. A red box stands at the mill. Bo swaps with Ana. Now Bo has the red kite and one plum."
        " Ana has the red drum and two plums. Evening comes. The drum is red and belongs to Ana. Ana is at the harbour."
        " The box is red and stands at the mill."
    )
    assert story.chinese.text == (
        "李子熟了。阿波在磨坊。阿波有一面红色的鼓和一个李子。安娜在港口。安娜有一只红色的风筝和两个李子。"
        "有一个红色的箱子放在磨坊。阿波和安娜交换。现在阿波有红色的风筝和一个李子。安娜有红色的鼓和两个李子。"
        "天黑了。鼓是红色的，属于安娜。安娜在港口。箱子是红色的，放在磨坊。"
    )
    found = [(r.word, r.kind, r.distance) for r in story.english.recalls if r.kind != "agreement"]
    assert found == [
        ("red", "colour", 45 - 25), ("kite", "object", 46 - 26), ("one", "count", 48 - 15),
        ("red", "colour", 53 - 12), ("drum", "object", 54 - 13), ("two", "count", 56 - 28),
        ("red", "colour", 63 - 53), ("Ana", "name", 67 - 54), ("harbour", "place", 72 - 21),
        ("red", "colour", 76 - 31), ("mill", "place", 81 - 36),
    ]  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_token_floors_sum_to_the_surprisal_for_any_tokens(language):
    story = next(some_stories("demo", 1, seed=3))
    rendering = getattr(story, language)
    n_bytes, generator = len(rendering.text.encode()), np.random.default_rng(0)
    cuts = np.sort(generator.choice(np.arange(1, n_bytes), size=n_bytes // 3, replace=False))
    for token_bytes in ([1] * n_bytes, [n_bytes], np.diff([0, *cuts, n_bytes]).tolist()):
        floors, recalls = rendering.token_floors(token_bytes)
        assert len(floors) == len(recalls) == len(token_bytes)
        assert floors.sum() == pytest.approx(-story.log_probability)
        assert floors.min() >= 0.0
    assert any(recalls) and not all(recalls)


def test_token_floors_of_words():
    rendering = next(some_stories("demo", 1)).english
    words = re.findall(r" ?\w+|[.,]", rendering.text)
    floors, recalls = rendering.token_floors([len(word) for word in words])
    marked = [word.strip() for word, recall in zip(words, recalls, strict=True) if recall]
    assert marked == [recall.word for recall in rendering.recalls]
    assert all(floor == 0.0 for floor, recall in zip(floors, recalls, strict=True) if recall)
    assert floors[words.index(" is") - 1] == pytest.approx(math.log(8))
    article = words.index(" has") + 1
    assert floors[article : article + 2].sum() == pytest.approx(math.log(6))
    with pytest.raises(DataError):
        rendering.token_floors([len(word) for word in words[:-1]])


def test_recall_is_frequent_and_set_by_the_number_of_questions():
    shares = [recall_share(World(world_config("demo", n_questions=n)), "english", 150).value for n in (0, 1, 3)]
    assert 0.04 < shares[0] < shares[1] - 0.015 < shares[2] - 0.03
    assert recall_share(World(WorldConfig()), "english", 300, varying=True).value == pytest.approx(0.33, abs=0.02)


def test_some_facts_are_recalled_more_than_60_words_later_and_a_busier_world_has_more_of_them():
    demo, busy = (recall_distances(World(world_config("demo", **more)), "english", 150) for more in ({}, BUSY))
    for kind in ("name", "object"):
        assert 0.08 < (demo[kind] > 60).mean() < (busy[kind] > 60).mean() - 0.1


def test_recall_has_several_candidates():
    for story in some_stories("demo", 100):
        people = [fact.values for fact in story.derivation if fact.kind == "person"]
        assert len({name for name, *_ in people}) == len({item for *_, item, _ in people}) == 3
    facts = itertools.chain.from_iterable(story.derivation for story in some_stories("demo", 500))
    pairs = Counter(fact.values[::3] for fact in facts if fact.kind == "person")
    assert len(pairs) == 8 * 8 and max(pairs.values()) < 60


def test_stories_are_the_same_everywhere():
    told = "".join(story.english.text + story.chinese.text for story in some_stories("demo", 3, seed=7))
    digest = hashlib.sha256(told.encode()).hexdigest()
    assert digest == "18b1e0b2b5b06733eaaea6fb3c7986a8c25e70c686adc6d7576e2610d77ef7c9"


def test_any_part_of_a_series_can_be_told_alone():
    world = World(WorldConfig())
    series = [story.derivation for story in itertools.islice(world.stories(4), 6)]
    assert [story.derivation for story in itertools.islice(world.stories(4, start=3), 3)] == series[3:]
    assert world.story(4, 5).derivation == series[5]
    assert world.story(5, 5).derivation != series[5]
    assert len(set(series)) == 6
    assert world.sample(Random(1)).derivation == world.sample(Random(1)).derivation


def test_text_that_the_world_cannot_tell_is_refused():
    world = World(WorldConfig())
    story = world.story(0, 0)
    text = story.english.text
    recall = next(r for r in story.english.recalls if r.kind == "place")
    wrong_place = "school" if recall.word != "school" else "mill"
    with pytest.raises(DataError, match=rf"character {recall.start}"):
        world.parse_english(text[: recall.start] + wrong_place + text[recall.stop :])
    for wrong in ["", "Once upon a time.", text + " The end.", text[:-1], text.replace("Tom", "Kofi"), " " + text]:
        with pytest.raises(DataError):
            world.parse_english(wrong)
    with pytest.raises(DataError):
        world.parse_chinese(story.chinese.text + "完。")
    with pytest.raises(DataError, match="name"):
        world.log_probability((story.derivation[0], Fact("person", ("Zoe", "mill", "red", "kite", 3))))
    with pytest.raises(DataError):
        world.log_probability((*story.derivation, story.derivation[-1]))
    with pytest.raises(DataError):
        world.story(-1, 0)
    with pytest.raises(DataError):
        bits_per_byte(world, "latin")


@pytest.mark.parametrize(
    "overrides",
    [{"n_people": 13}, {"n_people": 1}, {"n_questions": 6}, {"max_count": 15}, {"min_count": 6}, {"n_colours": 0},
     {"n_items": 2}, {"n_events": 5.0}, {"event_weights": (1, 1, 1)}, {"event_weights": (1, 1, 0, 1)}, {"n_cats": 1}],
)  # fmt: skip
def test_sizes_out_of_range_are_refused(overrides):
    with pytest.raises(ConfigError):
        world_config("demo", **overrides)


def test_unknown_world_is_refused_by_name():
    with pytest.raises(ConfigError, match="demo.*full.*tiny"):
        world_config("large")
