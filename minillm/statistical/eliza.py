"""A program that talks without a model of anything: rules that take a sentence apart and put it together again.

A script is data: keywords with a rank, patterns for the words around them, replies with gaps. The engine finds the most
important keyword, takes the sentence apart by the first pattern that fits, turns "my" into "your" in the parts, and
fills them into the next reply of that pattern. Where nothing is known it comes back to what it kept in mind, or says
something that is never wrong.

Source:
    Weizenbaum 1966, "ELIZA, a computer program for the study of natural language communication between man and
    machine", Communications of the ACM 9(1). The engine follows his description in simplified form; our script
    (`minillm.statistical.eliza_script`) is our own.
"""

import re
import tomllib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minillm.errors import ConfigError

WORD = re.compile(r"[\w'-]+|[.,;:!?]")
CLAUSE_ENDS = frozenset(".,;:!?")
GAP = re.compile(r"\{(\d+)\}")
SPACES = re.compile(r" +([.,?!])?")


@dataclass(frozen=True)
class Rule:
    """A pattern and the replies that take turns when it fits.

    Args:
        pattern: words and "*", separated by spaces, as `decompose` wants them.
        replies: texts with gaps {1}, {2}, ... for what the first, second, ... "*" stands for; at least one.
        memories: replies to keep in mind for later, when nothing better is known.
    """

    pattern: str
    replies: tuple[str, ...]
    memories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n_gaps = self.pattern.split().count("*")
        gaps = {int(gap) for text in (*self.replies, *self.memories) for gap in GAP.findall(text)}
        if not self.replies or not gaps <= set(range(1, n_gaps + 1)):
            raise ConfigError(
                f"the rule {self.pattern!r} needs a reply, and gaps {{1}} to {{{n_gaps}}} only, one for each *; "
                f"its replies are {self.replies + self.memories}"
            )


@dataclass(frozen=True)
class Keyword:
    """A word that calls for its rules.

    Args:
        word: in lower case.
        rank: of several keywords in a sentence that with the highest rank answers, of equal ones the first.
        rules: tried in this order.
    """

    word: str
    rank: int
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Script:
    """All that an `Eliza` knows.

    Args:
        greeting: what it says first.
        keywords: all different.
        reflections: words or short phrases in lower case -> how they sound from the other side (`reflect`).
        fallbacks: replies for when no keyword fits and nothing is kept in mind; at least one.

    Raises:
        ConfigError: if a keyword is there twice or there is no fallback.
    """

    greeting: str
    keywords: tuple[Keyword, ...]
    reflections: Mapping[str, str]
    fallbacks: tuple[str, ...]

    def __post_init__(self) -> None:
        words = [keyword.word for keyword in self.keywords]
        if len(set(words)) < len(words) or not self.fallbacks:
            raise ConfigError(f"a script needs a fallback, and each keyword once; the keywords are {words}")


def reflect(words: Sequence[str], reflections: Mapping[str, str]) -> list[str]:
    """The words as the other one would say them: "i am", "my" become "you are", "your".

    From left to right: the longest phrase of the table that stands here is replaced, and what was put in its place is
    not looked at again; a word that begins no phrase stays as it is.

    Args:
        words: (n,) in lower case.
        reflections: a word or several, separated by single spaces -> what takes its place, likewise.

    Returns:
        The new list, one word an entry; it may be longer or shorter than the old.

    Source:
        Weizenbaum 1966, who wrote these substitutions into his rules; the order is ours.

    Example:
        >>> reflect("i am sure you took my hat".split(), {"i am": "you are", "i": "you", "you": "i", "my": "your"})
        ['you', 'are', 'sure', 'i', 'took', 'your', 'hat']
    """
    reflected, place = [], 0
    while place < len(words):
        for stop in range(len(words), place, -1):
            phrase = " ".join(words[place:stop])
            if phrase in reflections:
                break
        reflected += reflections.get(phrase, phrase).split()  # no phrase: the loop has ended with a single word
        place = stop
    return reflected


def decompose(pattern: Sequence[str], words: Sequence[str]) -> list[list[str]] | None:
    """Take a sentence apart: what does each "*" of a pattern stand for?

    Args:
        pattern: entries are "*", which stands for any number of words, none included, or words, of which alternatives
            are parted by "|": "hat|cap" stands for one word, hat or cap.
        words: of the sentence; the pattern has to cover all of them.

    Returns:
        One list of words for each "*", in order; None if the pattern does not fit. Where it fits in several ways the
        first "*" is as short as possible, then the second, and so on.

    Source:
        Weizenbaum 1966, "decomposition rules"; his 0 is our "*".

    Example:
        >>> decompose(["*", "lost|mislaid", "my", "*"], "i think i lost my red hat".split())
        [['i', 'think', 'i'], ['red', 'hat']]
        >>> decompose(["*", "found", "*"], ["i", "lost", "it"]) is None
        True
    """
    if not pattern:
        return None if words else []
    first, rest = pattern[0], pattern[1:]
    if first != "*":
        return decompose(rest, words[1:]) if words and words[0] in first.split("|") else None
    for n in range(len(words) + 1):
        parts = decompose(rest, words[n:])
        if parts is not None:
            return [list(words[:n]), *parts]
    return None


class Eliza:
    """A conversation that follows a script.

    Example:
        >>> rule = Rule("* lost my *", ("Where did you last see your {2}?",))
        >>> eliza = Eliza(Script("Hello.", (Keyword("lost", 1, (rule,)),), {"my": "your"}, ("Go on.",)))
        >>> eliza.reply("I have lost my umbrella!"), eliza.reply("It is raining.")
        ('Where did you last see your umbrella?', 'Go on.')
    """

    def __init__(self, script: Script) -> None:
        """Begin a conversation: nothing is kept in mind, every rule at its first reply."""
        self.script = script
        self.keywords = {keyword.word: keyword for keyword in script.keywords}
        self.memory: deque[str] = deque()
        self._turns: dict[tuple[str, ...], int] = {}

    def reply(self, text: str) -> str:
        """Answer one remark; the same conversation always goes the same way.

        Args:
            text: anything.
        """
        candidates = [
            (keyword, words) for words in clauses(text) for word in words if (keyword := self.keywords.get(word))
        ]
        for keyword, words in sorted(candidates, key=lambda candidate: -candidate[0].rank):
            for rule in keyword.rules:
                parts = decompose(rule.pattern.split(), words)
                if parts is not None:
                    if rule.memories:
                        self.memory.append(self.assembled(rule.memories, parts))
                    return self.assembled(rule.replies, parts)
        return self.memory.popleft() if self.memory else self.assembled(self.script.fallbacks, [])

    def assembled(self, replies: tuple[str, ...], parts: list[list[str]]) -> str:
        """The next of these replies in turn, its gaps filled with the parts as the other one would say them."""
        turn = self._turns.get(replies, 0)
        self._turns[replies] = turn + 1
        reflected = [" ".join(reflect(part, self.script.reflections)) for part in parts]
        text = GAP.sub(lambda gap: reflected[int(gap[1]) - 1], replies[turn % len(replies)])
        text = SPACES.sub(lambda spaces: spaces[1] or " ", text).strip()  # where a part was empty
        return text[:1].upper() + text[1:]


def clauses(text: str) -> list[list[str]]:
    """The words of a text in lower case, cut at punctuation.

    Example:
        >>> clauses("Well, I've lost it. Twice!")
        [['well'], ["i've", 'lost', 'it'], ['twice']]
    """
    found: list[list[str]] = [[]]
    for word in WORD.findall(text.lower().replace("’", "'")):
        if word in CLAUSE_ENDS:
            found.append([])
        else:
            found[-1].append(word)
    return [words for words in found if words]


def script_from_toml(path: str | Path) -> Script:
    """Read a script of one's own.

    Args:
        path: a TOML file with `greeting`, `fallbacks`, a table `reflections`, and `[[keyword]]` tables that have
            `word`, `rank` and `[[keyword.rule]]` tables with `pattern`, `replies` and perhaps `memories`.

    Raises:
        ConfigError: if the file is missing, is not TOML, or lacks or has something else.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        keywords = tuple(
            Keyword(rules=tuple(_rule(rule) for rule in entry.pop("rule")), **entry) for entry in content.pop("keyword")
        )
        return Script(keywords=keywords, **content | {"fallbacks": tuple(content["fallbacks"])})
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no script: {error}; see script_from_toml for what one has") from None


def _rule(table: dict) -> Rule:
    return Rule(**{name: value if name == "pattern" else tuple(value) for name, value in table.items()})

