"""A conversation: ranks, turns, memory, reflection; and that our own script has no dead rule."""

import pytest

from minillm.errors import ConfigError
from minillm.statistical.eliza import Eliza, Keyword, Rule, Script, clauses, decompose, reflect, script_from_toml
from minillm.statistical.eliza_script import SCRIPT


def a_script(**changes):
    mine = Rule("* my hat *", ("One.", "Two {2}."), ("So, {1} and the hat.",))
    hat = Keyword("hat", 1, (mine, Rule("*", ("A hat?",))))
    rain = Keyword("rain", 5, (Rule("* rain", ("Rain.",)),))
    settings = {"greeting": "Hello.", "keywords": (hat, rain), "reflections": {"my": "your", "i": "you"},
                "fallbacks": ("Yes?", "And?")}  # fmt: skip
    return Script(**settings | changes)


def test_the_highest_rank_answers_and_a_rule_that_does_not_fit_passes_on():
    eliza = Eliza(a_script())
    assert eliza.reply("The hat was in the rain.") == "Rain."
    assert eliza.reply("Rain fell on a hat.") == "A hat?"           # no pattern of "rain" fits, nor the first of "hat"


def test_replies_take_turns_and_come_round():
    eliza = Eliza(a_script())
    replies = [eliza.reply("I see my hat there") for _ in range(3)]
    assert replies == ["One.", "Two there.", "One."]


def test_memory_comes_back_first_in_first_out_and_only_when_nothing_is_known():
    eliza = Eliza(a_script())
    eliza.reply("I lost my hat")
    eliza.reply("Tom has my hat")
    assert eliza.reply("a hat") == "A hat?"
    assert [eliza.reply("Blue.") for _ in range(5)] == [
        "So, you lost and the hat.", "So, tom has and the hat.", "Yes?", "And?", "Yes?",
    ]  # fmt: skip


def test_two_conversations_share_nothing():
    script = a_script()
    first, second = Eliza(script), Eliza(script)
    first.reply("I lost my hat")
    assert second.reply("Blue.") == "Yes?" and second.reply("i lost my hat") == "One."


def test_empty_parts_leave_no_holes():
    eliza = Eliza(a_script())
    eliza.reply("my hat")
    assert eliza.reply("my hat") == "Two."
    assert eliza.reply("") == "So, and the hat."


def test_clauses():
    assert clauses("Well, I’ve lost it! (Twice)") == [["well"], ["i've", "lost", "it"], ["twice"]]
    assert clauses(" ... ") == []


def test_a_script_from_a_file_talks_like_the_same_script(tmp_path):
    path = tmp_path / "script.toml"
    path.write_text(
        """
        greeting = "Hello."
        fallbacks = ["Yes?", "And?"]
        reflections = { my = "your", i = "you" }
        [[keyword]]
        word = "hat"
        rank = 1
        [[keyword.rule]]
        pattern = "* my hat *"
        replies = ["One.", "Two {2}."]
        memories = ["So, {1} and the hat."]
        [[keyword.rule]]
        pattern = "*"
        replies = ["A hat?"]
        [[keyword]]
        word = "rain"
        rank = 5
        rule = [{ pattern = "* rain", replies = ["Rain."] }]
        """
    )
    assert script_from_toml(path) == a_script()


HEAD = 'greeting = "a"\nfallbacks = ["b"]\nreflections = {}\n'


@pytest.mark.parametrize(
    "text",
    [
        None,
        "greeting = ",
        HEAD,
        HEAD + 'keyword = []\nmood = "c"',
        HEAD + '[[keyword]]\nword = "c"\nrank = 1\nrule = []\ncolour = 2',
        HEAD + '[[keyword]]\nword = "c"\nrank = 1\nrule = [{pattern = "*"}]',
    ],
    ids=["missing", "no TOML", "no keywords", "unknown entry", "unknown entry of a keyword", "no replies"],
)
def test_files_that_are_no_script(tmp_path, text):
    path = tmp_path / "script.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match="is no script"):
        script_from_toml(path)


def test_bad_scripts():
    with pytest.raises(ConfigError, match="one for each"):
        Rule("* hat", ("What is {2}?",))
    with pytest.raises(ConfigError, match="needs a reply"):
        Rule("* hat", ())
    with pytest.raises(ConfigError, match="fallback"):
        a_script(fallbacks=())
    with pytest.raises(ConfigError, match="each keyword once"):
        a_script(keywords=a_script().keywords * 2)


def test_every_rule_of_our_script_can_answer():
    """Each pattern, its gaps filled with a word, is answered by its own rule: no rule before it takes it away."""
    for keyword in SCRIPT.keywords:
        for rule in keyword.rules:
            words = [entry.split("|")[0] for entry in rule.pattern.replace("*", "stone").split()]
            words = words if keyword.word in words else [keyword.word]
            alone = Script("", (keyword,), SCRIPT.reflections, SCRIPT.fallbacks)
            first = next(r for r in keyword.rules if decompose(r.pattern.split(), words) is not None)
            assert first is rule, (keyword.word, rule.pattern)
            assert Eliza(alone).reply(" ".join(words)) not in SCRIPT.fallbacks


def test_reflections_of_our_script():
    for said, heard in (
        ("i am afraid of you", "you are afraid of I"),                # what a table of phrases cannot know
        ("you said i was late", "I said you were late"),
        ("my hat is mine", "your hat is yours"),
        ("give it to you", "give it to me"),
    ):
        assert reflect(said.split(), SCRIPT.reflections) == heard.split()


def test_a_whole_conversation():
    eliza = Eliza(SCRIPT)
    said = ["I have lost my umbrella.", "I left it on the train.", "Somebody stole it from me!", "Blue.", "Goodbye."]
    assert [eliza.reply(text) for text in said] == [
        "Your umbrella, I see. Where did you last have it in your hand?",
        "People leave many things in the train. Did you go back to it?",
        "Why would somebody need it from you?",
        "Let us come back to your umbrella. Who else has touched it?",
        "Come back on Thursday. Most things come on Thursdays.",
    ]
