"""WordPiece, the tokenizer of BERT: words are split at spaces and marks, then each into the longest known pieces.

A piece that goes on with a word is written with `##` before it: "embedding" may become "em", "##bed", "##ding".
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import regex

from minillm.errors import DataError, TokenizerError
from minillm.tokenizers.pretokenize import cut_stream, ordinary_chunks
from minillm.tokenizers.reading import training_texts
from minillm.tokenizers.tokenizer import END_OF_TEXT, TableTokenizer, check_parts, check_text, number_specials

INSIDE = "##"
UNKNOWN = "[UNK]"
# BERT takes longer words for unknown: looking for the longest piece costs the square of the length.
MAX_WORD_CHARACTERS = 100
# Encoded words are remembered; beyond this many the memory starts afresh.
MAX_REMEMBERED_WORDS = 1 << 17

# What is cut out of a text before it is split: control, format and private-use characters, but for three spaces.
CONTROL = regex.compile(r"(?V1)[[\p{Cc}\p{Cf}\p{Co}\uFFFD]--[\t\n\r]]")
# The blocks of Chinese characters; each character is a word of its own. ASCII signs such as $ and ^ count as marks.
HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f"
MARK = r"!-/:-@\[-`{-~\p{P}"
WORD = regex.compile(rf"[{HAN}]|[{MARK}]|[^\s{HAN}{MARK}]+")
# For text that arrives in parts: words never reach across white space.
CHUNK = regex.compile(r"\s+|\S+")

Pair = tuple[str, str]
Counts = np.ndarray
Score = Callable[[Counts, Counts, Counts, int, np.ndarray], np.ndarray]


class WordPieceTokenizer(TableTokenizer):
    """WordPiece (Schuster and Nakajima 2012; Wu et al. 2016, arXiv:1609.08144), as BERT has it (arXiv:1810.04805).

    Text is not kept exactly: white space only parts words, control characters are dropped, and a word that no pieces
    make becomes one `[UNK]`. Decoding puts one space between two words.

    Example:
        >>> tokenizer = WordPieceTokenizer(["low", "##er", "##est", "s", "##low", "."])
        >>> tokenizer.tokens_of("lower slowest."), tokenizer.encode("lower slowest.")
        (['low', '##er', 's', '##low', '##est', '.'], [0, 1, 3, 4, 2, 5])
        >>> tokenizer.decode(tokenizer.encode("lower  fast."))
        'lower [UNK] .'
    """

    kind = "wordpiece"

    def __init__(
        self, tokens: Iterable[str], special_tokens: Iterable[str] = (END_OF_TEXT,), lowercase: bool = False
    ) -> None:
        """Make the tokenizer of a list of tokens, such as the lines of BERT's vocab.txt.

        Args:
            tokens: all different; their order gives the ids. A token that goes on with a word begins with "##".
                "[UNK]" gets the next id if it is not among them.
            special_tokens: strings that ordinary text never produces; one that is among the tokens keeps its id
                there, the others get the last ids.
            lowercase: lower the case of every text and take accents away, as BERT's uncased models do.

        Raises:
            TokenizerError: if a token is there twice, is empty, is nothing but "##" or holds white space.
        """
        self.tokens = list(tokens)
        for token in self.tokens:
            if not check_text(token).removeprefix(INSIDE) or regex.search(r"\s", token):
                raise TokenizerError(f"{token!r} is no token of WordPiece: it is empty or holds white space")
        if len(set(self.tokens)) < len(self.tokens):
            twice = next(token for token, count in Counter(self.tokens).items() if count > 1)
            raise TokenizerError(f"the token {twice!r} is there twice")
        if UNKNOWN not in self.tokens:
            self.tokens.append(UNKNOWN)
        id_of = {token: token_id for token_id, token in enumerate(self.tokens)}
        specials = list(number_specials(special_tokens, 0))
        new = number_specials([string for string in specials if string not in id_of], len(self.tokens))
        special_ids = {string: id_of.get(string, new.get(string, -1)) for string in specials}
        self.lowercase = bool(lowercase)
        self.unknown_id = id_of[UNKNOWN]
        self._id_of = {token: id_of[token] for token in self.tokens if token not in {UNKNOWN, *specials}}
        self._ids_of_word: dict[str, list[int]] = {}
        spelled = {token_id: token if token in special_ids else spelling(token) for token, token_id in id_of.items()}
        super().__init__({token_id: text.encode() for token_id, text in spelled.items()}, special_ids)
        self._special_ids = frozenset(special_ids.values())

    @classmethod
    def train(
        cls,
        source: str | Path | Iterable[str],
        vocab_size: int,
        special_tokens: Iterable[str] = (END_OF_TEXT,),
        lowercase: bool = False,
        score: str = "likelihood",
    ) -> Self:
        """Learn tokens from a corpus: its characters, then again and again the best pair of neighbours joined.

        When the characters alone are too many, the rarest are left out, and words that hold them take no part. The time
        grows with the number of tokens times the number of different pairs: meant for some thousands of tokens.

        Args:
            source: the text (str), its file (Path), or documents (iterable of str).
            vocab_size: the number of ids wanted, "[UNK]" and special tokens included; fewer come out when nothing is
                left to join.
            special_tokens: strings that are taken out of the corpus first.
            lowercase: as for the constructor.
            score: what makes a pair the best, a name in `SCORES`.

        Raises:
            TokenizerError: if `vocab_size` has no room for one character, or the score is unknown.
            DataError: if the corpus is empty, or the file is missing or not UTF-8.
        """
        special_tokens = list(number_specials(special_tokens, 0))
        n_fixed = 1 + len(special_tokens)
        if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size <= n_fixed:
            raise TokenizerError(f"vocab_size is {vocab_size!r}, expected an integer over {n_fixed}: [UNK], specials")
        if score not in SCORES:
            raise TokenizerError(f"score is {score!r}, expected one of {sorted(SCORES)}")
        word_counts: Counter[str] = Counter()
        for parts in training_texts(source):
            for chunks in ordinary_chunks(parts, special_tokens, CHUNK.findall):
                word_counts.update(chain.from_iterable(split_words(chunk, lowercase) for chunk in chunks))
        if not word_counts:
            raise DataError("the training corpus is empty: there is no word to learn from")
        return cls(learn_tokens(word_counts, vocab_size - n_fixed, SCORES[score]), special_tokens, lowercase)

    def encode(self, text: str, errors: str = "strict") -> list[int]:
        """The ids of the pieces of each word.

        Args:
            text: any text.
            errors: what to do about lone surrogates: "strict" raises a TokenizerError, "replace" reads U+FFFD (which is
                then dropped like any U+FFFD).
        """
        words = split_words(check_text(text, errors), self.lowercase)
        return list(chain.from_iterable(map(self._encode_word, words)))

    def encode_iterable(self, texts: Iterable[str], errors: str = "strict") -> Iterator[int]:
        """Lazily, the ids of the text that the parts make when joined."""
        for chunks in cut_stream(check_parts(texts, errors), CHUNK.findall):
            for chunk in chunks:
                yield from self.encode(chunk)

    def _encode_word(self, word: str) -> list[int]:
        ids = self._ids_of_word.get(word)
        if ids is None:
            pieces = longest_pieces(word, self._id_of) if len(word) <= MAX_WORD_CHARACTERS else []
            ids = [self._id_of[piece] for piece in pieces] or [self.unknown_id]
            if len(self._ids_of_word) >= MAX_REMEMBERED_WORDS:
                self._ids_of_word.clear()
            self._ids_of_word[word] = ids
        return ids

    def tokens_of(self, text: str) -> list[str]:
        """What `encode` gives, as tokens instead of ids."""
        return [self.tokens[token_id] for token_id in self.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Words with one space between them, the pieces of a word joined; a special token begins a text anew.

        Args:
            ids: ints in 0 .. vocab_size - 1.

        Raises:
            TokenizerError: for an id that is no integer or has no token; the message names it and its position.
        """
        return "".join(self.decode_stream(ids))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The same text in parts, one per id."""
        at_start = True
        for position, token_id in enumerate(ids):
            text = self.token_bytes(token_id, position).decode()
            yield text.removeprefix(" ") if at_start else text
            at_start = int(token_id) in self._special_ids

    def settings(self) -> dict[str, Any]:
        """The tokens in the order of their ids, special tokens and case."""
        return {"tokens": self.tokens, "special_tokens": list(self.special_tokens), "lowercase": self.lowercase}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """The tokenizer that had these settings."""
        return cls(settings["tokens"], settings["special_tokens"], settings["lowercase"])


def spelling(token: str) -> str:
    """What a token adds to a text: itself after a space, or without the marks if it goes on with a word.

    Example:
        >>> spelling("low"), spelling("##est")
        (' low', 'est')
    """
    return token.removeprefix(INSIDE) if token.startswith(INSIDE) else " " + token


def split_words(text: str, lowercase: bool = False) -> list[str]:
    """The words and marks of a text, without the white space.

    Args:
        text: any text.
        lowercase: lower the case and take accents away (characters that Unicode calls non-spacing marks).

    Returns:
        Runs of characters that are neither white space nor marks; each mark and each Chinese character alone.
        Control characters are dropped before.

    Source:
        Devlin et al. 2018, the "basic tokenizer" released with BERT.

    Example:
        >>> split_words("Don't say 中文, naïve!")
        ['Don', "'", 't', 'say', '中', '文', ',', 'naïve', '!']
        >>> split_words("Naïve!", lowercase=True)
        ['naive', '!']
    """
    text = CONTROL.sub("", text)
    if lowercase:
        letters = (letter for letter in unicodedata.normalize("NFD", text) if unicodedata.category(letter) != "Mn")
        text = "".join(letters).lower()
    return WORD.findall(text)


def longest_pieces(word: str, vocabulary: Collection[str]) -> list[str]:
    """Split a word into tokens: the longest that the word begins with, then the longest that goes on from there.

    Args:
        word: one word, no white space in it.
        vocabulary: the known tokens (`in` is fast); those that go on with a word begin with "##".

    Returns:
        The tokens; without their "##" and joined they give the word. An empty list if at some place no token goes on:
        there is no going back to a shorter token, the whole word is unknown then.

    Source:
        Wu et al. 2016, arXiv:1609.08144, section 4.1; the greedy search is that of BERT, arXiv:1810.04805.

    Example:
        >>> longest_pieces("lowest", {"l", "low", "lower", "##e", "##est", "##st"})
        ['low', '##est']
        >>> longest_pieces("lowly", {"l", "low", "##l"})
        []
    """
    pieces, start = [], 0
    while start < len(word):
        prefix = INSIDE if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if prefix + word[start:end] in vocabulary), None)
        if end is None:
            return []
        pieces.append(prefix + word[start:end])
        start = end
    return pieces


def letters_of(word: str) -> list[str]:
    """A word as its characters, "##" before all but the first.

    Example:
        >>> letters_of("low")
        ['l', '##o', '##w']
    """
    return [word[:1], *(INSIDE + letter for letter in word[1:])] if word else []


def frequency(pairs: Counts, lefts: Counts, rights: Counts, n_tokens: int, doubled: np.ndarray) -> np.ndarray:
    """How often the pair occurs: the rule of BPE.

    Args:
        pairs: (n,) how often each pair stands side by side in the corpus.
        lefts: (n,) how often its left token occurs.
        rights: (n,) how often its right token occurs.
        n_tokens: number of tokens in the corpus.
        doubled: (n,) True where left and right are the same token.

    Returns:
        (n,) scores; the pair with the largest is joined.
    """
    return pairs


def ratio(pairs: Counts, lefts: Counts, rights: Counts, n_tokens: int, doubled: np.ndarray) -> np.ndarray:
    """count(pair) / (count(left) * count(right)), arguments as for `frequency`: how much more often than by chance."""
    return pairs / (lefts * rights)


def likelihood(pairs: Counts, lefts: Counts, rights: Counts, n_tokens: int, doubled: np.ndarray) -> np.ndarray:
    """By how many nats joining the pair raises the log-likelihood of the corpus; arguments as for `frequency`.

    The model draws each token by itself, as often as it occurs: log-likelihood = sum over tokens of n log(n / N).
    Joining turns n_left, n_right, N into n_left - n_pair, n_right - n_pair, N - n_pair and makes a token with n_pair.

    Source:
        Schuster and Nakajima 2012, "Japanese and Korean voice search", section 3: join what raises the likelihood of
        the training data most.
    """
    def n_log_n(n: int | Counts) -> Counts:
        return n * np.log(np.maximum(n, 1))

    left_rests = np.maximum(lefts - np.where(doubled, 2, 1) * pairs, 0)
    right_rests = np.where(doubled, 0, rights - pairs)
    after = n_log_n(pairs) + n_log_n(left_rests) + n_log_n(right_rests) - n_log_n(n_tokens - pairs)
    return after - n_log_n(lefts) - n_log_n(np.where(doubled, 0, rights)) + n_log_n(n_tokens)


SCORES: dict[str, Score] = {"frequency": frequency, "ratio": ratio, "likelihood": likelihood}


def learn_tokens(word_counts: Mapping[str, int], n_tokens: int, score: Score = likelihood) -> list[str]:
    """Learn the tokens of WordPiece from the words of a corpus.

    Args:
        word_counts: word -> how often it occurs.
        n_tokens: how many tokens to learn, at least 1.
        score: of all pairs of neighbours, the one with the largest score is joined next; of equal ones the greatest
            pair of strings.

    Returns:
        The characters of the corpus (the most frequent ones if `n_tokens` is too few for all), sorted, then the joined
        tokens in the order of learning; fewer than `n_tokens` when nothing is left to join.

    Example:
        >>> learn_tokens({"low": 5, "lowest": 2}, 8, frequency)
        ['##e', '##o', '##s', '##t', '##w', 'l', 'lo', 'low']
    """
    letter_counts: Counter[str] = Counter()
    for word, count in word_counts.items():
        for letter in letters_of(word):
            letter_counts[letter] += count
    ranked = sorted(letter_counts, key=lambda letter: (-letter_counts[letter], letter))
    alphabet = sorted(ranked[:n_tokens])
    known = set(alphabet)
    spelled = {word: letters_of(word) for word in word_counts}
    corpus = PairTable({word: letters for word, letters in spelled.items() if known.issuperset(letters)}, word_counts)
    tokens = dict.fromkeys(alphabet)
    while len(tokens) < n_tokens and corpus.pair_counts:
        tokens[corpus.join(corpus.best(score))] = None
    return list(tokens)


class PairTable:
    """The words of a corpus as tokens, with the counts of tokens and pairs kept up to date while pairs are joined."""

    def __init__(self, tokens_of: Mapping[str, list[str]], word_counts: Mapping[str, int]) -> None:
        """Count the tokens and pairs of each word, as often as the word occurs."""
        self.tokens_of = dict(tokens_of)
        self.word_counts = word_counts
        self.token_counts: Counter[str] = Counter()
        self.pair_counts: Counter[Pair] = Counter()
        self.words_with: defaultdict[Pair, set[str]] = defaultdict(set)
        for word in self.tokens_of:
            self._count(word, 1)

    def _count(self, word: str, sign: int) -> None:
        tokens, weight = self.tokens_of[word], sign * self.word_counts[word]
        for token in tokens:
            self.token_counts[token] += weight
        for pair in pairwise(tokens):
            self.pair_counts[pair] += weight
            if sign > 0:
                self.words_with[pair].add(word)
            elif not self.pair_counts[pair]:
                del self.pair_counts[pair]

    def best(self, score: Score) -> Pair:
        """The pair with the largest score, of equal ones the greatest."""
        pairs = list(self.pair_counts)
        counts = np.array([self.pair_counts[pair] for pair in pairs], dtype=np.float64)
        lefts = np.array([self.token_counts[left] for left, _ in pairs], dtype=np.float64)
        rights = np.array([self.token_counts[right] for _, right in pairs], dtype=np.float64)
        doubled = np.array([left == right for left, right in pairs])
        scores = score(counts, lefts, rights, sum(self.token_counts.values()), doubled)
        return max(pairs[place] for place in np.flatnonzero(scores == scores.max()))

    def join(self, pair: Pair) -> str:
        """Join every occurrence of a pair, in each word from left to right; returns the new token."""
        joined = pair[0] + pair[1].removeprefix(INSIDE)
        for word in self.words_with.pop(pair):
            self._count(word, -1)
            old, tokens = self.tokens_of[word], []
            for token in old:
                if tokens and (tokens[-1], token) == pair:
                    tokens[-1] = joined
                else:
                    tokens.append(token)
            self.tokens_of[word] = tokens
            self._count(word, 1)
        return joined
