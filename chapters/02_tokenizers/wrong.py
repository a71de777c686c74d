"""Wrong answers of chapter 02: the mistakes that learners make. Each replaces one function of the reference."""

import re
from codecs import getincrementaldecoder
from collections import Counter
from itertools import pairwise

from minillm.course.wrong_answers import wrong
from minillm.tokenizers.bpe_naive import count_pairs, merge, word_of
from minillm.tokenizers.wordpiece import INSIDE

# ---- 2.1 counting pairs


@wrong("2.1", "each distinct word counts once, however often it occurs")
def count_pairs(word_counts):
    counts = Counter()
    for word in word_counts:
        for pair in zip(word, word[1:], strict=False):
            counts[pair] += 1
    return counts


@wrong("2.1", "the last word with a pair overwrites the counts of the others")
def count_pairs(word_counts):
    counts = Counter()
    for word, count in word_counts.items():
        for pair in zip(word, word[1:], strict=False):
            counts[pair] = count
    return counts


@wrong("2.1", "a pair that stands twice in a word counts once")
def count_pairs(word_counts):
    counts = Counter()
    for word, count in word_counts.items():
        for pair in set(zip(word, word[1:], strict=False)):
            counts[pair] += count
    return counts


@wrong("2.1", "all words in one row: pairs across their borders")
def count_pairs(word_counts):
    corpus = [token for word, count in word_counts.items() for _ in range(count) for token in word]
    return Counter(zip(corpus, corpus[1:], strict=False))


@wrong("2.1", "the last pair of each word is forgotten")
def count_pairs(word_counts):
    counts = Counter()
    for word, count in word_counts.items():
        for i in range(len(word) - 2):
            counts[word[i], word[i + 1]] += count
    return counts


@wrong("2.1", "the joined token instead of the pair as key")
def count_pairs(word_counts):
    counts = Counter()
    for word, count in word_counts.items():
        for left, right in zip(word, word[1:], strict=False):
            counts[left + right] += count
    return counts


@wrong("2.1", "a run of three has one pair, because merging could join only one")
def count_pairs(word_counts):
    counts = Counter()
    for word, count in word_counts.items():
        i = 0
        while i < len(word) - 1:
            counts[word[i], word[i + 1]] += count
            i += 2 if word[i] == word[i + 1] else 1
    return counts


# ---- 2.2 joining a pair


@wrong("2.2", "only the first occurrence is joined")
def merge(word, pair):
    for i in range(len(word) - 1):
        if word[i : i + 2] == pair:
            return (*word[:i], pair[0] + pair[1], *word[i + 2 :])
    return word


@wrong("2.2", "the joined right token stays as well")
def merge(word, pair):
    merged = []
    for i in range(len(word)):
        if word[i : i + 2] == pair:
            merged.append(pair[0] + pair[1])
        else:
            merged.append(word[i])
    return tuple(merged)


@wrong("2.2", "from right to left")
def merge(word, pair):
    merged, i = [], len(word)
    while i > 0:
        width = 2 if i > 1 and word[i - 2 : i] == pair else 1
        merged.insert(0, b"".join(word[i - width : i]))
        i -= width
    return tuple(merged)


@wrong("2.2", "any neighbours whose bytes make the same token are joined")
def merge(word, pair):
    merged, i = [], 0
    while i < len(word):
        joined = b"".join(word[i : i + 2])
        width = 2 if i + 1 < len(word) and joined == pair[0] + pair[1] else 1
        merged.append(b"".join(word[i : i + width]))
        i += width
    return tuple(merged)


@wrong("2.2", "the last token is lost when it is not joined")
def merge(word, pair):
    merged, i = [], 0
    while i < len(word) - 1:
        width = 2 if word[i : i + 2] == pair else 1
        merged.append(b"".join(word[i : i + width]))
        i += width
    return tuple(merged)


@wrong("2.2", "a list instead of a word")
def merge(word, pair):
    merged, i = [], 0
    while i < len(word):
        width = 2 if word[i : i + 2] == pair else 1
        merged.append(b"".join(word[i : i + width]))
        i += width
    return merged


@wrong("2.2", "the pair's two tokens in either order")
def merge(word, pair):
    merged, i = [], 0
    while i < len(word):
        width = 2 if len(word[i : i + 2]) == 2 and set(word[i : i + 2]) == set(pair) else 1
        merged.append(b"".join(word[i : i + width]))
        i += width
    return tuple(merged)


# ---- 2.3 learning merges


@wrong("2.3", "ties go to the pair that was counted first")
def train_merges(piece_counts, n_merges):
    words = {word_of(piece): count for piece, count in piece_counts.items()}
    merges = []
    for _ in range(n_merges):
        counts = count_pairs(words)
        if not counts:
            break
        best = max(counts, key=counts.get)
        merges.append(best)
        words = {merge(word, best): count for word, count in words.items()}
    return merges


@wrong("2.3", "ties go to the smallest pair")
def train_merges(piece_counts, n_merges):
    words = {word_of(piece): count for piece, count in piece_counts.items()}
    merges = []
    for _ in range(n_merges):
        counts = count_pairs(words)
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        words = {merge(word, best): count for word, count in words.items()}
    return merges


@wrong("2.3", "ties go to the pair whose joined token is the greatest")
def train_merges(piece_counts, n_merges):
    words = {word_of(piece): count for piece, count in piece_counts.items()}
    merges = []
    for _ in range(n_merges):
        counts = count_pairs(words)
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair[0] + pair[1]))
        merges.append(best)
        words = {merge(word, best): count for word, count in words.items()}
    return merges


@wrong("2.3", "pairs are counted once, at the start")
def train_merges(piece_counts, n_merges):
    counts = count_pairs({word_of(piece): count for piece, count in piece_counts.items()})
    return sorted(counts, key=lambda pair: (counts[pair], pair), reverse=True)[:n_merges]


@wrong("2.3", "fails when no pair is left")
def train_merges(piece_counts, n_merges):
    words = {word_of(piece): count for piece, count in piece_counts.items()}
    merges = []
    for _ in range(n_merges):
        counts = count_pairs(words)
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        words = {merge(word, best): count for word, count in words.items()}
    return merges


@wrong("2.3", "stops when every pair occurs only once")
def train_merges(piece_counts, n_merges):
    words = {word_of(piece): count for piece, count in piece_counts.items()}
    merges = []
    for _ in range(n_merges):
        counts = count_pairs(words)
        if not counts or max(counts.values()) < 2:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        words = {merge(word, best): count for word, count in words.items()}
    return merges


@wrong("2.3", "how often a piece occurs is lost")
def train_merges(piece_counts, n_merges):
    words = {word_of(piece): 1 for piece in piece_counts}
    merges = []
    for _ in range(n_merges):
        counts = count_pairs(words)
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        words = {merge(word, best): count for word, count in words.items()}
    return merges


@wrong("2.3", "one merge too many")
def train_merges(piece_counts, n_merges):
    words = {word_of(piece): count for piece, count in piece_counts.items()}
    merges = []
    for _ in range(n_merges + 1):
        counts = count_pairs(words)
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        words = {merge(word, best): count for word, count in words.items()}
    return merges


# ---- 2.4 encoding


@wrong("2.4", "the first pair from the left that has a rank, not the smallest rank")
def encode_by_rank(ids, ranks, products):
    i = 0
    while i < len(ids) - 1:
        rank = ranks.get((ids[i], ids[i + 1]))
        if rank is None:
            i += 1
        else:
            ids[i : i + 2] = [products[rank]]
            i = 0
    return ids


@wrong("2.4", "the largest rank first")
def encode_by_rank(ids, ranks, products):
    while found := [ranks[pair] for pair in pairwise(ids) if pair in ranks]:
        rank = max(found)
        i = next(i for i, pair in enumerate(pairwise(ids)) if ranks.get(pair) == rank)
        ids[i : i + 2] = [products[rank]]
    return ids


@wrong("2.4", "the rightmost of equal pairs first")
def encode_by_rank(ids, ranks, products):
    while found := [(ranks[pair], -i) for i, pair in enumerate(pairwise(ids)) if pair in ranks]:
        rank, i = min(found)
        ids[-i : -i + 2] = [products[rank]]
    return ids


@wrong("2.4", "the new token takes 256 + rank as its id")
def encode_by_rank(ids, ranks, products):
    while found := [(ranks[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in ranks]:
        rank, i = min(found)
        ids[i : i + 2] = [256 + rank]
    return ids


@wrong("2.4", "new pairs with the joined token are not looked at")
def encode_by_rank(ids, ranks, products):
    waiting = sorted((ranks[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in ranks)
    joined = {}
    for rank, i in waiting:
        if ids[i] is not None and ids[i + 1] is not None and i not in joined and i + 1 not in joined:
            joined[i], ids[i + 1] = products[rank], None
    return [joined.get(i, token_id) for i, token_id in enumerate(ids) if token_id is not None]


@wrong("2.4", "one round only")
def encode_by_rank(ids, ranks, products):
    found = [(ranks[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in ranks]
    if found:
        rank, i = min(found)
        ids[i : i + 2] = [products[rank]]
    return ids


@wrong("2.4", "fails on a piece of fewer than two bytes")
def encode_by_rank(ids, ranks, products):
    while True:
        rank, i = min((ranks.get(pair, len(products)), i) for i, pair in enumerate(pairwise(ids)))
        if rank == len(products):
            return ids
        ids[i : i + 2] = [products[rank]]
        if len(ids) == 1:
            return ids


# ---- 2.5 special tokens


@wrong("2.5", "the characters of special tokens are read as a regular expression")
def split_specials(text, special_tokens):
    longest_first = sorted(special_tokens, key=len, reverse=True)
    if not longest_first:
        return [(text, False)] if text else []
    strings = re.split("(" + "|".join(longest_first) + ")", text)
    return [(string, place % 2 == 1) for place, string in enumerate(strings) if string]


@wrong("2.5", "the first special token given wins, not the longer")
def split_specials(text, special_tokens):
    if not special_tokens:
        return [(text, False)] if text else []
    strings = re.split("(" + "|".join(map(re.escape, special_tokens)) + ")", text)
    return [(string, place % 2 == 1) for place, string in enumerate(strings) if string]


@wrong("2.5", "empty strings stay")
def split_specials(text, special_tokens):
    longest_first = sorted(special_tokens, key=len, reverse=True)
    if not longest_first:
        return [(text, False)]
    strings = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    return [(string, place % 2 == 1) for place, string in enumerate(strings)]


@wrong("2.5", "special tokens are thrown away")
def split_specials(text, special_tokens):
    longest_first = sorted(special_tokens, key=len, reverse=True)
    if not longest_first:
        return [(text, False)] if text else []
    return [(string, False) for string in re.split("|".join(map(re.escape, longest_first)), text) if string]


@wrong("2.5", "no special tokens: an expression that fits everywhere")
def split_specials(text, special_tokens):
    longest_first = sorted(special_tokens, key=len, reverse=True)
    strings = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    return [(string, place % 2 == 1) for place, string in enumerate(strings) if string]


@wrong("2.5", "one special token after the other: the longest in the text wins over the leftmost")
def split_specials(text, special_tokens):
    parts = [(text, False)] if text else []
    for special in sorted(special_tokens, key=len, reverse=True):
        new = []
        for string, is_special in parts:
            pieces = [string] if is_special else re.split("(" + re.escape(special) + ")", string)
            new += [(piece, is_special or piece == special) for piece in pieces if piece]
        parts = new
    return parts


@wrong("2.5", "special tokens in any case of letters")
def split_specials(text, special_tokens):
    longest_first = sorted(special_tokens, key=len, reverse=True)
    if not longest_first:
        return [(text, False)] if text else []
    strings = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text, flags=re.IGNORECASE)
    return [(string, place % 2 == 1) for place, string in enumerate(strings) if string]


@wrong("2.5", "white space around special tokens is lost")
def split_specials(text, special_tokens):
    longest_first = sorted(special_tokens, key=len, reverse=True)
    if not longest_first:
        return [(text, False)] if text else []
    strings = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    parts = [(string if place % 2 else string.strip(), place % 2 == 1) for place, string in enumerate(strings)]
    return [part for part in parts if part[0]]


# ---- 2.6 decoding a stream


@wrong("2.6", "each part is decoded by itself")
def stream_text(parts):
    for part in parts:
        if text := part.decode("utf-8", "replace"):
            yield text


@wrong("2.6", "everything is collected first")
def stream_text(parts):
    if text := b"".join(parts).decode("utf-8", "replace"):
        yield text


@wrong("2.6", "what is incomplete at the end is forgotten")
def stream_text(parts):
    decoder = getincrementaldecoder("utf-8")("replace")
    for part in parts:
        if text := decoder.decode(part):
            yield text


@wrong("2.6", "wrong bytes are an error")
def stream_text(parts):
    decoder = getincrementaldecoder("utf-8")("strict")
    for part in parts:
        if text := decoder.decode(part):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


@wrong("2.6", "wrong bytes are left out")
def stream_text(parts):
    decoder = getincrementaldecoder("utf-8")("ignore")
    for part in parts:
        if text := decoder.decode(part):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


@wrong("2.6", "waits until all bytes so far are characters: one wrong byte stops the text")
def stream_text(parts):
    held = b""
    for part in parts:
        held += part
        try:
            text, held = held.decode("utf-8"), b""
        except UnicodeDecodeError:
            continue
        if text:
            yield text
    if held:
        yield held.decode("utf-8", "replace")


@wrong("2.6", "empty texts are shown")
def stream_text(parts):
    decoder = getincrementaldecoder("utf-8")("replace")
    for part in parts:
        yield decoder.decode(part)
    yield decoder.decode(b"", final=True)


@wrong("2.6", "one part late")
def stream_text(parts):
    decoder = getincrementaldecoder("utf-8")("replace")
    waiting = ""
    for part in parts:
        text = decoder.decode(part)
        if text:
            if waiting:
                yield waiting
            waiting = text
    if waiting:
        yield waiting
    if text := decoder.decode(b"", final=True):
        yield text


# ---- 2.7 WordPiece


@wrong("2.7", "pieces inside a word are looked up without ##")
def longest_pieces(word, vocabulary):
    pieces, start = [], 0
    while start < len(word):
        ends = range(len(word), start, -1)
        end = next((end for end in ends if word[start:end] in vocabulary), None)
        if end is None:
            return []
        pieces.append((INSIDE if start else "") + word[start:end])
        start = end
    return pieces


@wrong("2.7", "the shortest piece instead of the longest")
def longest_pieces(word, vocabulary):
    pieces, start = [], 0
    while start < len(word):
        prefix = INSIDE if start else ""
        end = next((end for end in range(start + 1, len(word) + 1) if prefix + word[start:end] in vocabulary), None)
        if end is None:
            return []
        pieces.append(prefix + word[start:end])
        start = end
    return pieces


@wrong("2.7", "the pieces found before the gap are kept")
def longest_pieces(word, vocabulary):
    pieces, start = [], 0
    while start < len(word):
        prefix = INSIDE if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if prefix + word[start:end] in vocabulary), None)
        if end is None:
            return pieces
        pieces.append(prefix + word[start:end])
        start = end
    return pieces


@wrong("2.7", "goes back to a shorter piece when it meets a gap")
def longest_pieces(word, vocabulary):
    def rest(start):
        if start == len(word):
            return []
        prefix = INSIDE if start else ""
        for end in range(len(word), start, -1):
            if prefix + word[start:end] in vocabulary and (others := rest(end)) is not None:
                return [prefix + word[start:end], *others]
        return None

    return rest(0) or []


@wrong("2.7", "the pieces come without ##")
def longest_pieces(word, vocabulary):
    pieces, start = [], 0
    while start < len(word):
        prefix = INSIDE if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if prefix + word[start:end] in vocabulary), None)
        if end is None:
            return []
        pieces.append(word[start:end])
        start = end
    return pieces


@wrong("2.7", "a gap becomes [UNK] and the rest goes on")
def longest_pieces(word, vocabulary):
    pieces, start = [], 0
    while start < len(word):
        prefix = INSIDE if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if prefix + word[start:end] in vocabulary), None)
        pieces.append("[UNK]" if end is None else prefix + word[start:end])
        start = end or start + 1
    return pieces


@wrong("2.7", "the last letter is never part of a longer piece")
def longest_pieces(word, vocabulary):
    pieces, start = [], 0
    while start < len(word):
        prefix = INSIDE if start else ""
        ends = [*range(len(word) - 1, start, -1), start + 1]
        end = next((end for end in ends if prefix + word[start:end] in vocabulary), None)
        if end is None:
            return []
        pieces.append(prefix + word[start:end])
        start = end
    return pieces
