"""Wrong answers of chapter 14: each must lose the points of exactly the task it names. Parsed, never run."""

import numpy as np

from minillm.course.wrong_answers import wrong


@wrong("14.1", "each length is drawn by itself and the last one makes up the sum: early spans are favoured")
def random_lengths(n_tokens, n_spans, generator):
    if not 1 <= n_spans <= n_tokens:
        raise ConfigError("cannot be cut")
    lengths, n_left = [], n_tokens
    for n_after in range(n_spans - 1, 0, -1):
        lengths.append(int(generator.integers(1, n_left - n_after + 1)))
        n_left -= lengths[-1]
    return np.array([*lengths, n_left])


@wrong("14.1", "every token beyond the first of each span goes to a random span: equal lengths are favoured")
def random_lengths(n_tokens, n_spans, generator):
    if not 1 <= n_spans <= n_tokens:
        raise ConfigError("cannot be cut")
    return 1 + generator.multinomial(n_tokens - n_spans, [1 / n_spans] * n_spans)


@wrong("14.1", "cuts may fall on the same gap, which leaves spans of no token")
def random_lengths(n_tokens, n_spans, generator):
    if not 1 <= n_spans <= n_tokens:
        raise ConfigError("cannot be cut")
    cuts = np.sort(generator.integers(0, n_tokens + 1, n_spans - 1))
    return np.diff(np.concatenate(([0], cuts, [n_tokens])))


@wrong("14.1", "the cuts are not sorted: negative lengths")
def random_lengths(n_tokens, n_spans, generator):
    if not 1 <= n_spans <= n_tokens:
        raise ConfigError("cannot be cut")
    cuts = generator.choice(n_tokens - 1, n_spans - 1, replace=False) + 1
    return np.diff(np.concatenate(([0], cuts, [n_tokens])))


@wrong("14.1", "gaps are counted from 0, so that the first span can be empty")
def random_lengths(n_tokens, n_spans, generator):
    if not 1 <= n_spans <= n_tokens:
        raise ConfigError("cannot be cut")
    cuts = np.sort(generator.choice(n_tokens - 1, n_spans - 1, replace=False))
    return np.diff(np.concatenate(([0], cuts, [n_tokens])))


@wrong("14.1", "the spans are as equal as possible: no randomness at all")
def random_lengths(n_tokens, n_spans, generator):
    if not 1 <= n_spans <= n_tokens:
        raise ConfigError("cannot be cut")
    return np.diff(np.arange(n_spans + 1) * n_tokens // n_spans)


@wrong("14.1", "the random numbers come from somewhere else than the generator")
def random_lengths(n_tokens, n_spans, generator):
    if not 1 <= n_spans <= n_tokens:
        raise ConfigError("cannot be cut")
    cuts = np.sort(np.random.choice(n_tokens - 1, n_spans - 1, replace=False)) + 1
    return np.diff(np.concatenate(([0], cuts, [n_tokens])))


@wrong("14.1", "more spans than tokens are not refused in our words")
def random_lengths(n_tokens, n_spans, generator):
    cuts = np.sort(generator.choice(max(n_tokens - 1, 0), min(max(n_spans - 1, 0), n_tokens - 1), replace=False)) + 1
    return np.diff(np.concatenate(([0], cuts, [n_tokens])))


@wrong("14.2", "each token is hidden by its own throw of a coin: the numbers of tokens and spans are left to chance")
def random_spans(n_tokens, generator, rate=RATE, mean_length=MEAN_LENGTH):
    span_counts(n_tokens, rate, mean_length)
    return generator.random(n_tokens) < rate


@wrong("14.2", "one span: what many summaries of the paper say")
def random_spans(n_tokens, generator, rate=RATE, mean_length=MEAN_LENGTH):
    n_hidden, _ = span_counts(n_tokens, rate, mean_length)
    start = int(generator.integers(1, n_tokens - n_hidden + 1))
    return (np.arange(n_tokens) >= start) & (np.arange(n_tokens) < start + n_hidden)


@wrong("14.2", "begins with a hidden span")
def random_spans(n_tokens, generator, rate=RATE, mean_length=MEAN_LENGTH):
    n_hidden, n_spans = span_counts(n_tokens, rate, mean_length)
    lengths = np.empty(2 * n_spans, np.int64)
    lengths[1::2] = random_lengths(n_tokens - n_hidden, n_spans, generator)
    lengths[0::2] = random_lengths(n_hidden, n_spans, generator)
    return np.repeat(np.arange(2 * n_spans) % 2 == 0, lengths)


@wrong("14.2", "True where a token stays")
def random_spans(n_tokens, generator, rate=RATE, mean_length=MEAN_LENGTH):
    n_hidden, n_spans = span_counts(n_tokens, rate, mean_length)
    lengths = np.empty(2 * n_spans, np.int64)
    lengths[0::2] = random_lengths(n_tokens - n_hidden, n_spans, generator)
    lengths[1::2] = random_lengths(n_hidden, n_spans, generator)
    return np.repeat(np.arange(2 * n_spans) % 2 == 0, lengths)


@wrong("14.2", "starts are drawn anywhere, so that spans overlap and touch")
def random_spans(n_tokens, generator, rate=RATE, mean_length=MEAN_LENGTH):
    n_hidden, n_spans = span_counts(n_tokens, rate, mean_length)
    hidden = np.zeros(n_tokens, bool)
    for length in random_lengths(n_hidden, n_spans, generator).tolist():
        start = int(generator.integers(n_tokens - length + 1))
        hidden[start : start + length] = True
    return hidden


@wrong("14.2", "all spans have the mean length")
def random_spans(n_tokens, generator, rate=RATE, mean_length=MEAN_LENGTH):
    n_hidden, n_spans = span_counts(n_tokens, rate, mean_length)
    lengths = np.empty(2 * n_spans, np.int64)
    lengths[0::2] = random_lengths(n_tokens - n_hidden, n_spans, generator)
    lengths[1::2] = np.diff(np.arange(n_spans + 1) * n_hidden // n_spans)
    return np.repeat(np.arange(2 * n_spans) % 2 == 1, lengths)


@wrong("14.2", "the same lengths for kept and hidden spans of equal number: the second draw is forgotten")
def random_spans(n_tokens, generator, rate=RATE, mean_length=MEAN_LENGTH):
    n_hidden, n_spans = span_counts(n_tokens, rate, mean_length)
    lengths = np.empty(2 * n_spans, np.int64)
    lengths[1::2] = random_lengths(n_hidden, n_spans, generator)
    lengths[0::2] = np.diff(np.arange(n_spans + 1) * (n_tokens - n_hidden) // n_spans)
    return np.repeat(np.arange(2 * n_spans) % 2 == 1, lengths)


@wrong("14.2", "rate and mean length are not handed on")
def random_spans(n_tokens, generator, rate=RATE, mean_length=MEAN_LENGTH):
    n_hidden, n_spans = span_counts(n_tokens)
    lengths = np.empty(2 * n_spans, np.int64)
    lengths[0::2] = random_lengths(n_tokens - n_hidden, n_spans, generator)
    lengths[1::2] = random_lengths(n_hidden, n_spans, generator)
    return np.repeat(np.arange(2 * n_spans) % 2 == 1, lengths)


@wrong("14.2", "zeros and ones instead of bool")
def random_spans(n_tokens, generator, rate=RATE, mean_length=MEAN_LENGTH):
    n_hidden, n_spans = span_counts(n_tokens, rate, mean_length)
    lengths = np.empty(2 * n_spans, np.int64)
    lengths[0::2] = random_lengths(n_tokens - n_hidden, n_spans, generator)
    lengths[1::2] = random_lengths(n_hidden, n_spans, generator)
    return np.repeat(np.arange(2 * n_spans) % 2, lengths)


@wrong("14.3", "one sentinel for each hidden token instead of each span")
def hide_spans(token_ids, hidden, sentinel_ids):
    ids, sentinels = np.asarray(token_ids, np.int64), np.asarray(sentinel_ids, np.int64)
    if ids.shape != hidden.shape or ids.ndim != 1 or hidden.dtype != bool:
        raise DataError("shapes")
    n_spans = int((hidden & ~np.concatenate(([False], hidden[:-1]))).sum())
    if len(sentinels) <= n_spans or np.isin(ids, sentinels).any():
        raise DataError("sentinels")
    inputs, targets, used = [], [], 0
    for token_id, is_hidden in zip(ids.tolist(), hidden.tolist(), strict=True):
        if is_hidden:
            mark = int(sentinels[min(used, len(sentinels) - 1)])
            inputs.append(mark)
            targets += [mark, token_id]
            used += 1
        else:
            inputs.append(token_id)
    return np.array(inputs, np.int64), np.array([*targets, sentinels[min(used, len(sentinels) - 1)]], np.int64)


@wrong("14.3", "the same sentinel for every span, like BERT's mask")
def hide_spans(token_ids, hidden, sentinel_ids):
    ids, sentinels = np.asarray(token_ids, np.int64), np.asarray(sentinel_ids, np.int64)
    if ids.shape != hidden.shape or ids.ndim != 1 or hidden.dtype != bool:
        raise DataError("shapes")
    begins = hidden & ~np.concatenate(([False], hidden[:-1]))
    n_spans = int(begins.sum())
    if len(sentinels) <= n_spans or np.isin(ids, sentinels).any():
        raise DataError("sentinels")
    inputs, targets = np.where(begins, sentinels[0], ids)[begins | ~hidden], []
    for start in np.flatnonzero(begins):
        length = int(np.argmin(np.append(hidden[start:], False)))
        targets += [sentinels[0], *ids[start : start + length]]
    return inputs, np.array([*targets, sentinels[0]], np.int64)


@wrong("14.3", "the last sentinel is forgotten")
def hide_spans(token_ids, hidden, sentinel_ids):
    ids, sentinels = np.asarray(token_ids, np.int64), np.asarray(sentinel_ids, np.int64)
    if ids.shape != hidden.shape or ids.ndim != 1 or hidden.dtype != bool:
        raise DataError("shapes")
    begins = hidden & ~np.concatenate(([False], hidden[:-1]))
    n_spans = int(begins.sum())
    if len(sentinels) <= n_spans or np.isin(ids, sentinels).any():
        raise DataError("sentinels")
    inputs, targets = np.where(begins, sentinels[np.cumsum(begins) - 1], ids)[begins | ~hidden], []
    for sentinel, start in zip(sentinels, np.flatnonzero(begins), strict=False):
        length = int(np.argmin(np.append(hidden[start:], False)))
        targets += [sentinel, *ids[start : start + length]]
    return inputs, np.array(targets, np.int64)


@wrong("14.3", "the targets are the whole text, as BART's")
def hide_spans(token_ids, hidden, sentinel_ids):
    ids, sentinels = np.asarray(token_ids, np.int64), np.asarray(sentinel_ids, np.int64)
    if ids.shape != hidden.shape or ids.ndim != 1 or hidden.dtype != bool:
        raise DataError("shapes")
    begins = hidden & ~np.concatenate(([False], hidden[:-1]))
    n_spans = int(begins.sum())
    if len(sentinels) <= n_spans or np.isin(ids, sentinels).any():
        raise DataError("sentinels")
    return np.where(begins, sentinels[np.cumsum(begins) - 1], ids)[begins | ~hidden], ids


@wrong("14.3", "a hidden first token does not begin a span")
def hide_spans(token_ids, hidden, sentinel_ids):
    ids, sentinels = np.asarray(token_ids, np.int64), np.asarray(sentinel_ids, np.int64)
    if ids.shape != hidden.shape or ids.ndim != 1 or hidden.dtype != bool:
        raise DataError("shapes")
    begins = hidden & ~np.concatenate((hidden[:1], hidden[:-1]))
    n_spans = int(begins.sum())
    if len(sentinels) <= n_spans or np.isin(ids, sentinels).any():
        raise DataError("sentinels")
    inputs, targets = np.where(begins, sentinels[np.cumsum(begins) - 1], ids)[begins | ~hidden], []
    for sentinel, start in zip(sentinels, np.flatnonzero(begins), strict=False):
        length = int(np.argmin(np.append(hidden[start:], False)))
        targets += [sentinel, *ids[start : start + length]]
    return inputs, np.array([*targets, sentinels[n_spans]], np.int64)


@wrong("14.3", "a span at the end of the text loses its last token: its end is looked for and not found")
def hide_spans(token_ids, hidden, sentinel_ids):
    ids, sentinels = np.asarray(token_ids, np.int64), np.asarray(sentinel_ids, np.int64)
    if ids.shape != hidden.shape or ids.ndim != 1 or hidden.dtype != bool:
        raise DataError("shapes")
    begins = hidden & ~np.concatenate(([False], hidden[:-1]))
    n_spans = int(begins.sum())
    if len(sentinels) <= n_spans or np.isin(ids, sentinels).any():
        raise DataError("sentinels")
    inputs, targets = np.where(begins, sentinels[np.cumsum(begins) - 1], ids)[begins | ~hidden], []
    for sentinel, start in zip(sentinels, np.flatnonzero(begins), strict=False):
        length = int(np.argmin(np.append(hidden[start:-1], False)))
        targets += [sentinel, *ids[start : start + length]]
    return inputs, np.array([*targets, sentinels[n_spans]], np.int64)


@wrong("14.3", "the hidden tokens stay in the inputs behind their sentinel")
def hide_spans(token_ids, hidden, sentinel_ids):
    ids, sentinels = np.asarray(token_ids, np.int64), np.asarray(sentinel_ids, np.int64)
    if ids.shape != hidden.shape or ids.ndim != 1 or hidden.dtype != bool:
        raise DataError("shapes")
    begins = hidden & ~np.concatenate(([False], hidden[:-1]))
    n_spans = int(begins.sum())
    if len(sentinels) <= n_spans or np.isin(ids, sentinels).any():
        raise DataError("sentinels")
    inputs, targets = [], []
    for place, token_id in enumerate(ids.tolist()):
        if begins[place]:
            mark = int(sentinels[begins[: place + 1].sum() - 1])
            inputs.append(mark)
            targets.append(mark)
        inputs.append(token_id)
        if hidden[place]:
            targets.append(token_id)
    return np.array(inputs, np.int64), np.array([*targets, sentinels[n_spans]], np.int64)


@wrong("14.3", "as many sentinels as spans are taken for enough: the end has none of its own")
def hide_spans(token_ids, hidden, sentinel_ids):
    ids, sentinels = np.asarray(token_ids, np.int64), np.asarray(sentinel_ids, np.int64)
    if ids.shape != hidden.shape or ids.ndim != 1 or hidden.dtype != bool:
        raise DataError("shapes")
    begins = hidden & ~np.concatenate(([False], hidden[:-1]))
    n_spans = int(begins.sum())
    if len(sentinels) < n_spans or np.isin(ids, sentinels).any():
        raise DataError("sentinels")
    inputs, targets = np.where(begins, sentinels[np.cumsum(begins) - 1], ids)[begins | ~hidden], []
    for sentinel, start in zip(sentinels, np.flatnonzero(begins), strict=False):
        length = int(np.argmin(np.append(hidden[start:], False)))
        targets += [sentinel, *ids[start : start + length]]
    return inputs, np.array([*targets, *sentinels[n_spans : n_spans + 1]], np.int64)


@wrong("14.3", "a text that contains a sentinel passes")
def hide_spans(token_ids, hidden, sentinel_ids):
    ids, sentinels = np.asarray(token_ids, np.int64), np.asarray(sentinel_ids, np.int64)
    if ids.shape != hidden.shape or ids.ndim != 1 or hidden.dtype != bool:
        raise DataError("shapes")
    begins = hidden & ~np.concatenate(([False], hidden[:-1]))
    n_spans = int(begins.sum())
    if len(sentinels) <= n_spans:
        raise DataError("sentinels")
    inputs, targets = np.where(begins, sentinels[np.cumsum(begins) - 1], ids)[begins | ~hidden], []
    for sentinel, start in zip(sentinels, np.flatnonzero(begins), strict=False):
        length = int(np.argmin(np.append(hidden[start:], False)))
        targets += [sentinel, *ids[start : start + length]]
    return inputs, np.array([*targets, sentinels[n_spans]], np.int64)


@wrong("14.4", "one mask for each token of a span: token masking, which tells the model how many are missing")
def infill_spans(token_ids, starts, lengths, mask_id):
    pieces, end = [], 0
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        pieces += [token_ids[end:start], [mask_id] * length]
        end = start + length
    return np.concatenate([*pieces, token_ids[end:]]).astype(np.int64)


@wrong("14.4", "spans of length 0 are left out")
def infill_spans(token_ids, starts, lengths, mask_id):
    pieces, end = [], 0
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        if length:
            pieces += [token_ids[end:start], [mask_id]]
            end = start + length
    return np.concatenate([*pieces, token_ids[end:]]).astype(np.int64)


@wrong("14.4", "what stands behind the last span is forgotten")
def infill_spans(token_ids, starts, lengths, mask_id):
    pieces, end = [np.zeros(0, np.int64)], 0
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        pieces += [token_ids[end:start], [mask_id]]
        end = start + length
    return np.concatenate(pieces).astype(np.int64)


@wrong("14.4", "replaces from the first span on in the shortened text, where later starts mean other places")
def infill_spans(token_ids, starts, lengths, mask_id):
    text = token_ids.tolist()
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        text[start : start + length] = [mask_id]
    return np.array(text, np.int64)


@wrong("14.4", "a span of length 0 replaces the token behind it")
def infill_spans(token_ids, starts, lengths, mask_id):
    pieces, end = [], 0
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        pieces += [token_ids[end:start], [mask_id]]
        end = start + max(length, 1)
    return np.concatenate([*pieces, token_ids[end:]]).astype(np.int64)


@wrong("14.4", "the masks of neighbouring spans become one")
def infill_spans(token_ids, starts, lengths, mask_id):
    pieces, end = [], 0
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        pieces += [token_ids[end:start], [mask_id] if not pieces or start > end else []]
        end = start + length
    return np.concatenate([*pieces, token_ids[end:]]).astype(np.int64)


@wrong("14.5", "the whole text sees the prefix, but the prefix itself only its past")
def prefix_mask(n_prefix, n_positions):
    key = np.arange(n_positions)
    query = key[:, None]
    later = query >= np.asarray(n_prefix)[:, None, None]
    return (key <= query) | (later & (key < np.asarray(n_prefix)[:, None, None]))


@wrong("14.5", "causal: the prefix is forgotten")
def prefix_mask(n_prefix, n_positions):
    key = np.arange(n_positions)
    return np.broadcast_to(key <= key[:, None], (len(n_prefix), n_positions, n_positions)).copy()


@wrong("14.5", "one position too many: the first one after the prefix is seen by all")
def prefix_mask(n_prefix, n_positions):
    key = np.arange(n_positions)
    return (key <= key[:, None]) | (key <= np.asarray(n_prefix)[:, None, None])


@wrong("14.5", "and instead of or")
def prefix_mask(n_prefix, n_positions):
    key = np.arange(n_positions)
    return (key <= key[:, None]) & (key < np.asarray(n_prefix)[:, None, None])


@wrong("14.5", "queries of the prefix see everything, also what comes after the prefix")
def prefix_mask(n_prefix, n_positions):
    key = np.arange(n_positions)
    return (key <= key[:, None]) | (key[:, None] < np.asarray(n_prefix)[:, None, None])


@wrong("14.5", "True where attention is hidden")
def prefix_mask(n_prefix, n_positions):
    key = np.arange(n_positions)
    return ~((key <= key[:, None]) | (key < np.asarray(n_prefix)[:, None, None]))


@wrong("14.5", "the longest prefix for all rows")
def prefix_mask(n_prefix, n_positions):
    key = np.arange(n_positions)
    longest = np.full(len(n_prefix), max(n_prefix, default=0))
    return (key <= key[:, None]) | (key < longest[:, None, None])


@wrong("14.5", "queries and keys exchanged")
def prefix_mask(n_prefix, n_positions):
    key = np.arange(n_positions)
    return ((key <= key[:, None]) | (key < np.asarray(n_prefix)[:, None, None])).transpose(0, 2, 1)


@wrong("14.6", "the limit is forgotten")
def mixing_rates(sizes, limit=math.inf, temperature=1.0):
    if not sizes or min(sizes.values()) < 1 or not limit > 0 or not temperature > 0:
        raise ConfigError("numbers")
    largest = max(sizes.values())
    weights = {task: (size / largest) ** (1 / temperature) for task, size in sizes.items()}
    total = math.fsum(weights.values())
    return {task: weight / total for task, weight in weights.items()}


@wrong("14.6", "the limit is applied after the temperature")
def mixing_rates(sizes, limit=math.inf, temperature=1.0):
    if not sizes or min(sizes.values()) < 1 or not limit > 0 or not temperature > 0:
        raise ConfigError("numbers")
    weights = {task: min(size ** (1 / temperature), limit) for task, size in sizes.items()}
    total = math.fsum(weights.values())
    return {task: weight / total for task, weight in weights.items()}


@wrong("14.6", "the power is the temperature itself: hotter is more unequal")
def mixing_rates(sizes, limit=math.inf, temperature=1.0):
    if not sizes or min(sizes.values()) < 1 or not limit > 0 or not temperature > 0:
        raise ConfigError("numbers")
    counted = {task: min(size, limit) for task, size in sizes.items()}
    largest = max(counted.values())
    weights = {task: (count / largest) ** temperature for task, count in counted.items()}
    total = math.fsum(weights.values())
    return {task: weight / total for task, weight in weights.items()}


@wrong("14.6", "a softmax of the sizes over the temperature, as for the scores of words")
def mixing_rates(sizes, limit=math.inf, temperature=1.0):
    if not sizes or min(sizes.values()) < 1 or not limit > 0 or not temperature > 0:
        raise ConfigError("numbers")
    counted = {task: min(size, limit) for task, size in sizes.items()}
    largest = max(counted.values())
    weights = {task: math.exp((count - largest) / temperature) for task, count in counted.items()}
    total = math.fsum(weights.values())
    return {task: weight / total for task, weight in weights.items()}


@wrong("14.6", "normalised before the power and not after: the rates do not sum to 1")
def mixing_rates(sizes, limit=math.inf, temperature=1.0):
    if not sizes or min(sizes.values()) < 1 or not limit > 0 or not temperature > 0:
        raise ConfigError("numbers")
    counted = {task: min(size, limit) for task, size in sizes.items()}
    total = math.fsum(counted.values())
    return {task: (count / total) ** (1 / temperature) for task, count in counted.items()}


@wrong("14.6", "the power of a whole number overflows at low temperatures")
def mixing_rates(sizes, limit=math.inf, temperature=1.0):
    if not sizes or min(sizes.values()) < 1 or not limit > 0 or not temperature > 0:
        raise ConfigError("numbers")
    weights = {task: float(min(size, limit)) ** (1 / temperature) for task, size in sizes.items()}
    total = math.fsum(weights.values())
    return {task: weight / total for task, weight in weights.items()}


@wrong("14.6", "tasks beyond the limit are left out")
def mixing_rates(sizes, limit=math.inf, temperature=1.0):
    if not sizes or min(sizes.values()) < 1 or not limit > 0 or not temperature > 0:
        raise ConfigError("numbers")
    counted = {task: size for task, size in sizes.items() if size <= limit}
    largest = max(counted.values(), default=1)
    weights = {task: (count / largest) ** (1 / temperature) for task, count in counted.items()}
    total = math.fsum(weights.values())
    return {task: weight / total for task, weight in weights.items()}


@wrong("14.6", "a task without examples passes")
def mixing_rates(sizes, limit=math.inf, temperature=1.0):
    if not sizes or not limit > 0 or not temperature > 0:
        raise ConfigError("numbers")
    counted = {task: min(size, limit) for task, size in sizes.items()}
    largest = max(counted.values())
    weights = {task: (count / largest) ** (1 / temperature) for task, count in counted.items()}
    total = math.fsum(weights.values())
    return {task: weight / total for task, weight in weights.items()}
