"""Wrong answers of chapter 01: each must lose the points of exactly the task it names. Parsed, never run."""

from minillm.course.wrong_answers import wrong


@wrong("1.1", "distances from the mean, which the outlier itself has moved")
def robust_z_scores(values):
    values = check_values(values)
    distances = values - values.mean()
    spread = np.median(np.abs(distances))
    if spread == 0:
        return np.where(distances == 0, 0.0, np.copysign(np.inf, distances))
    return MAD_OF_A_NORMAL * distances / spread


@wrong("1.1", "divided by the factor instead of multiplied")
def robust_z_scores(values):
    values = check_values(values)
    distances = values - np.median(values)
    spread = np.median(np.abs(distances))
    if spread == 0:
        return np.where(distances == 0, 0.0, np.copysign(np.inf, distances))
    return distances / (MAD_OF_A_NORMAL * spread)


@wrong("1.1", "the mean distance instead of the median one")
def robust_z_scores(values):
    values = check_values(values)
    distances = values - np.median(values)
    spread = np.mean(np.abs(distances))
    if spread == 0:
        return np.zeros_like(distances)
    return MAD_OF_A_NORMAL * distances / spread


@wrong("1.1", "all scores 0 where more than half of the values are equal")
def robust_z_scores(values):
    values = check_values(values)
    distances = values - np.median(values)
    spread = np.median(np.abs(distances))
    return MAD_OF_A_NORMAL * distances / spread if spread > 0 else np.zeros_like(distances)


@wrong("1.1", "the sign is lost")
def robust_z_scores(values):
    values = check_values(values)
    distances = np.abs(values - np.median(values))
    spread = np.median(distances)
    if spread == 0:
        return np.where(distances == 0, 0.0, np.inf)
    return MAD_OF_A_NORMAL * distances / spread


@wrong("1.2", "the last known value is carried on, no line")
def interpolate_missing(values):
    numbers, known = known_numbers(values)
    places = np.where(known, np.arange(len(numbers)), -1)
    last = np.maximum.accumulate(places)
    return numbers[np.where(last < 0, np.flatnonzero(known)[0], last)]


@wrong("1.2", "the mean of both neighbours, wherever the hole lies between them")
def interpolate_missing(values):
    numbers, known = known_numbers(values)
    places = np.flatnonzero(known)
    for hole in np.flatnonzero(~known):
        after = np.searchsorted(places, hole)
        near = places[max(after - 1, 0) : after + 1] if after else places[:1]
        numbers[hole] = numbers[near].mean()
    return numbers


@wrong("1.2", "holes at the ends become 0")
def interpolate_missing(values):
    numbers, known = known_numbers(values)
    places = np.arange(len(numbers))
    numbers[~known] = np.interp(places[~known], places[known], numbers[known], left=0.0, right=0.0)
    return numbers


@wrong("1.2", "writes into the input")
def interpolate_missing(values):
    numbers, known = known_numbers(values)
    places = np.arange(len(numbers))
    numbers[~known] = np.interp(places[~known], places[known], numbers[known])
    if isinstance(values, np.ndarray):
        values[:] = numbers
    return numbers


@wrong("1.2", "the ends go on along the last line")
def interpolate_missing(values):
    numbers, known = known_numbers(values)
    places = np.flatnonzero(known)
    if len(places) == 1:
        return np.full(len(numbers), numbers[places[0]])
    for hole in np.flatnonzero(~known):
        right = min(max(np.searchsorted(places, hole), 1), len(places) - 1)
        a, b = places[right - 1], places[right]
        numbers[hole] = numbers[a] + (numbers[b] - numbers[a]) * (hole - a) / (b - a)
    return numbers


@wrong("1.3", "a run that is there once counts as well")
def top_ngram_share(text, n_words):
    if n_words < 1:
        raise ConfigError("n_words")
    words = text.split()
    counts = Counter(zip(*(words[place:] for place in range(n_words)), strict=False))
    if not counts:
        return 0.0
    most = max(counts.values())
    letters = max(sum(map(len, run)) for run, count in counts.items() if count == most)
    return min(1.0, most * letters / sum(map(len, words)))


@wrong("1.3", "words are counted, not letters")
def top_ngram_share(text, n_words):
    if n_words < 1:
        raise ConfigError("n_words")
    words = text.split()
    counts = Counter(zip(*(words[place:] for place in range(n_words)), strict=False))
    if not counts or max(counts.values()) < 2:
        return 0.0
    return min(1.0, max(counts.values()) * n_words / len(words))


@wrong("1.3", "white space counts among the letters of the text")
def top_ngram_share(text, n_words):
    if n_words < 1:
        raise ConfigError("n_words")
    words = text.split()
    counts = Counter(zip(*(words[place:] for place in range(n_words)), strict=False))
    if not counts or max(counts.values()) < 2:
        return 0.0
    most = max(counts.values())
    letters = max(sum(map(len, run)) for run, count in counts.items() if count == most)
    return min(1.0, most * letters / len(text))


@wrong("1.3", "the run that covers most letters, not the most frequent one")
def top_ngram_share(text, n_words):
    if n_words < 1:
        raise ConfigError("n_words")
    words = text.split()
    counts = Counter(zip(*(words[place:] for place in range(n_words)), strict=False))
    covered = [count * sum(map(len, run)) for run, count in counts.items() if count > 1]
    return min(1.0, max(covered, default=0) / max(1, sum(map(len, words))))


@wrong("1.3", "overlapping runs add up to more than the whole")
def top_ngram_share(text, n_words):
    if n_words < 1:
        raise ConfigError("n_words")
    words = text.split()
    counts = Counter(zip(*(words[place:] for place in range(n_words)), strict=False))
    if not counts or max(counts.values()) < 2:
        return 0.0
    most = max(counts.values())
    letters = max(sum(map(len, run)) for run, count in counts.items() if count == most)
    return most * letters / sum(map(len, words))


@wrong("1.4", "the last run is forgotten")
def shingles(text, n_words=5):
    if n_words < 1:
        raise ConfigError("n_words")
    words = words_of(text)
    if len(words) <= n_words:
        return {tuple(words)} if words else set()
    return {tuple(words[start : start + n_words]) for start in range(len(words) - n_words)}


@wrong("1.4", "a text shorter than a run has no shingle")
def shingles(text, n_words=5):
    if n_words < 1:
        raise ConfigError("n_words")
    words = words_of(text)
    return {tuple(words[start : start + n_words]) for start in range(len(words) - n_words + 1)}


@wrong("1.4", "runs side by side instead of overlapping ones: one word more at the start changes every one")
def shingles(text, n_words=5):
    if n_words < 1:
        raise ConfigError("n_words")
    words = words_of(text)
    return {tuple(words[start : start + n_words]) for start in range(0, len(words), n_words)}


@wrong("1.4", "splits at white space, so that case and punctuation count")
def shingles(text, n_words=5):
    if n_words < 1:
        raise ConfigError("n_words")
    words = text.split()
    if len(words) <= n_words:
        return {tuple(words)} if words else set()
    return {tuple(words[start : start + n_words]) for start in range(len(words) - n_words + 1)}


@wrong("1.4", "too short ones at the end are shingles too")
def shingles(text, n_words=5):
    if n_words < 1:
        raise ConfigError("n_words")
    words = words_of(text)
    return {tuple(words[start : start + n_words]) for start in range(len(words))}


@wrong("1.5", "the least shingle is hashed, not the shingle with the least hash")
def signature(hashes, a, b):
    if len(hashes) == 0:
        return np.full(len(a), 0xFFFFFFFF, dtype=np.uint32)
    return ((a * hashes.min() + b) >> np.uint64(32)).astype(np.uint32)


@wrong("1.5", "b is forgotten")
def signature(hashes, a, b):
    if len(hashes) == 0:
        return np.full(len(a), 0xFFFFFFFF, dtype=np.uint32)
    return ((a[:, None] * hashes) >> np.uint64(32)).min(axis=1).astype(np.uint32)


@wrong("1.5", "the low half, in which an odd factor mixes nothing down")
def signature(hashes, a, b):
    if len(hashes) == 0:
        return np.full(len(a), 0xFFFFFFFF, dtype=np.uint32)
    values = a[:, None] * hashes + b[:, None]
    return (values & np.uint64(0xFFFFFFFF)).min(axis=1).astype(np.uint32)


@wrong("1.5", "the largest value")
def signature(hashes, a, b):
    if len(hashes) == 0:
        return np.full(len(a), 0xFFFFFFFF, dtype=np.uint32)
    values = a[:, None] * hashes + b[:, None]
    return (values >> np.uint64(32)).max(axis=1).astype(np.uint32)


@wrong("1.5", "64-bit results")
def signature(hashes, a, b):
    if len(hashes) == 0:
        return np.full(len(a), 0xFFFFFFFF, dtype=np.uint64)
    values = a[:, None] * hashes + b[:, None]
    return (values >> np.uint64(32)).min(axis=1)


@wrong("1.5", "nothing to take the least of where there is no shingle: an error")
def signature(hashes, a, b):
    values = a[:, None] * hashes + b[:, None]
    return (values >> np.uint64(32)).min(axis=1).astype(np.uint32)


@wrong("1.6", "one dictionary for all bands: equal numbers at different places meet")
def band_pairs(signatures, n_bands):
    n_places = signatures.shape[1]
    if n_bands < 1 or n_places % n_bands:
        raise ConfigError("n_bands")
    buckets = {}
    for band in np.split(signatures, n_bands, axis=1):
        for text, part in enumerate(band.tolist()):
            buckets.setdefault(tuple(part), set()).add(text)
    return {pair for members in buckets.values() for pair in combinations(sorted(members), 2)}


@wrong("1.6", "only the first of a bucket is paired")
def band_pairs(signatures, n_bands):
    n_places = signatures.shape[1]
    if n_bands < 1 or n_places % n_bands:
        raise ConfigError("n_bands")
    pairs = set()
    for band in np.split(signatures, n_bands, axis=1):
        first = {}
        for text, part in enumerate(band.tolist()):
            if tuple(part) in first:
                pairs.add((first[tuple(part)], text))
            first.setdefault(tuple(part), text)
    return pairs


@wrong("1.6", "bands of n_bands places instead of n_bands bands")
def band_pairs(signatures, n_bands):
    n_places = signatures.shape[1]
    if n_bands < 1 or n_places % n_bands:
        raise ConfigError("n_bands")
    pairs = set()
    for band in np.split(signatures, n_places // n_bands, axis=1):
        buckets = {}
        for text, part in enumerate(band.tolist()):
            buckets.setdefault(tuple(part), []).append(text)
        for members in buckets.values():
            pairs.update(combinations(members, 2))
    return pairs


@wrong("1.6", "the sum of a band is its key")
def band_pairs(signatures, n_bands):
    n_places = signatures.shape[1]
    if n_bands < 1 or n_places % n_bands:
        raise ConfigError("n_bands")
    pairs = set()
    for band in np.split(signatures, n_bands, axis=1):
        buckets = {}
        for text, part in enumerate(band.tolist()):
            buckets.setdefault(sum(part), []).append(text)
        for members in buckets.values():
            pairs.update(combinations(members, 2))
    return pairs


@wrong("1.6", "bands that do not fit are cut off in silence")
def band_pairs(signatures, n_bands):
    width = signatures.shape[1] // max(n_bands, 1)
    pairs = set()
    for band in range(n_bands):
        buckets = {}
        for text, part in enumerate(signatures[:, band * width : (band + 1) * width].tolist()):
            buckets.setdefault(tuple(part), []).append(text)
        for members in buckets.values():
            pairs.update(combinations(members, 2))
    return pairs
