"""Wrong answers of chapter 04: each must lose the points of exactly the task it names. Parsed, never run."""

from minillm.course.wrong_answers import wrong


@wrong("4.1", "one replacement after another: you becomes I, and I becomes you again")
def reflect(words, reflections):
    text = f" {' '.join(words)} "
    for phrase, other in reflections.items():
        text = text.replace(f" {phrase} ", f" {other} ")
    return text.split()


@wrong("4.1", "single words only")
def reflect(words, reflections):
    return [part for word in words for part in reflections.get(word, word).split()]


@wrong("4.1", "the shortest phrase first")
def reflect(words, reflections):
    reflected, place = [], 0
    while place < len(words):
        for stop in range(place + 1, len(words) + 1):
            if " ".join(words[place:stop]) in reflections:
                break
        else:
            stop = place + 1
        phrase = " ".join(words[place:stop])
        reflected += reflections.get(phrase, phrase).split()
        place = stop
    return reflected


@wrong("4.1", "a phrase of several words becomes one entry")
def reflect(words, reflections):
    reflected, place = [], 0
    while place < len(words):
        for stop in range(len(words), place, -1):
            phrase = " ".join(words[place:stop])
            if phrase in reflections:
                break
        reflected.append(reflections.get(phrase, phrase))
        place = stop
    return reflected


@wrong("4.1", "moves on by one word behind a phrase of two")
def reflect(words, reflections):
    reflected = []
    for place in range(len(words)):
        for stop in range(len(words), place, -1):
            phrase = " ".join(words[place:stop])
            if phrase in reflections:
                break
        reflected += reflections.get(phrase, phrase).split()
    return reflected


@wrong("4.1", "words that are not in the table are lost")
def reflect(words, reflections):
    reflected, place = [], 0
    while place < len(words):
        for stop in range(len(words), place, -1):
            phrase = " ".join(words[place:stop])
            if phrase in reflections:
                break
        reflected += reflections.get(phrase, "").split()
        place = stop
    return reflected


@wrong("4.2", "the first gap as long as possible")
def decompose(pattern, words):
    if not pattern:
        return None if words else []
    first, rest = pattern[0], pattern[1:]
    if first != "*":
        return decompose(rest, words[1:]) if words and words[0] in first.split("|") else None
    for n in range(len(words), -1, -1):
        parts = decompose(rest, words[n:])
        if parts is not None:
            return [list(words[:n]), *parts]
    return None


@wrong("4.2", "a gap must have a word")
def decompose(pattern, words):
    if not pattern:
        return None if words else []
    first, rest = pattern[0], pattern[1:]
    if first != "*":
        return decompose(rest, words[1:]) if words and words[0] in first.split("|") else None
    for n in range(1, len(words) + 1):
        parts = decompose(rest, words[n:])
        if parts is not None:
            return [list(words[:n]), *parts]
    return None


@wrong("4.2", "words behind the pattern do not matter")
def decompose(pattern, words):
    if not pattern:
        return []
    first, rest = pattern[0], pattern[1:]
    if first != "*":
        return decompose(rest, words[1:]) if words and words[0] in first.split("|") else None
    for n in range(len(words) + 1):
        parts = decompose(rest, words[n:])
        if parts is not None:
            return [list(words[:n]), *parts]
    return None


@wrong("4.2", "an empty list of parts is taken for a failure")
def decompose(pattern, words):
    if not pattern:
        return None if words else []
    first, rest = pattern[0], pattern[1:]
    if first != "*":
        return decompose(rest, words[1:]) if words and words[0] in first.split("|") else None
    for n in range(len(words) + 1):
        parts = decompose(rest, words[n:])
        if parts:
            return [list(words[:n]), *parts]
    return None


@wrong("4.2", "a part of a word is enough: cap stands for ca")
def decompose(pattern, words):
    if not pattern:
        return None if words else []
    first, rest = pattern[0], pattern[1:]
    if first != "*":
        return decompose(rest, words[1:]) if words and words[0] in first else None
    for n in range(len(words) + 1):
        parts = decompose(rest, words[n:])
        if parts is not None:
            return [list(words[:n]), *parts]
    return None


@wrong("4.2", "never goes back: the gap ends at the first word that fits what comes next")
def decompose(pattern, words):
    parts, place = [], 0
    for number, entry in enumerate(pattern):
        if entry != "*":
            if place == len(words) or words[place] not in entry.split("|"):
                return None
            place += 1
            continue
        begin = place
        if number + 1 == len(pattern):
            place = len(words)
        elif pattern[number + 1] != "*":
            while place < len(words) and words[place] not in pattern[number + 1].split("|"):
                place += 1
        parts.append(list(words[begin:place]))
    return parts if place == len(words) else None


@wrong("4.3", "the best derivation instead of the sum of all")
def inside(lexical, parents, lefts, rights, probabilities):
    n_words, n_symbols = lexical.shape
    chart = np.zeros((n_words, n_words + 1, n_symbols))
    for start in range(n_words - 1, -1, -1):
        chart[start, start + 1] = lexical[start]
        for stop in range(start + 2, n_words + 1):
            left, right = chart[start, start + 1 : stop], chart[start + 1 : stop, stop]
            ways = (probabilities * left[:, lefts] * right[:, rights]).max(axis=0)
            np.maximum.at(chart[start, stop], parents, ways)
    return chart


@wrong("4.3", "of several rules of one symbol only the last counts")
def inside(lexical, parents, lefts, rights, probabilities):
    n_words, n_symbols = lexical.shape
    chart = np.zeros((n_words, n_words + 1, n_symbols))
    for start in range(n_words - 1, -1, -1):
        chart[start, start + 1] = lexical[start]
        for stop in range(start + 2, n_words + 1):
            pairs = chart[start, start + 1 : stop].T @ chart[start + 1 : stop, stop]
            chart[start, stop, parents] = probabilities * pairs[lefts, rights]
    return chart


@wrong("4.3", "left and right are exchanged")
def inside(lexical, parents, lefts, rights, probabilities):
    n_words, n_symbols = lexical.shape
    chart = np.zeros((n_words, n_words + 1, n_symbols))
    for start in range(n_words - 1, -1, -1):
        chart[start, start + 1] = lexical[start]
        for stop in range(start + 2, n_words + 1):
            pairs = chart[start, start + 1 : stop].T @ chart[start + 1 : stop, stop]
            ways = probabilities * pairs[rights, lefts]
            chart[start, stop] = np.bincount(parents, ways, minlength=n_symbols)
    return chart


@wrong("4.3", "only cuts behind the first word: trees that branch to the right")
def inside(lexical, parents, lefts, rights, probabilities):
    n_words, n_symbols = lexical.shape
    chart = np.zeros((n_words, n_words + 1, n_symbols))
    for start in range(n_words - 1, -1, -1):
        chart[start, start + 1] = lexical[start]
        for stop in range(start + 2, n_words + 1):
            ways = probabilities * chart[start, start + 1, lefts] * chart[start + 1, stop, rights]
            chart[start, stop] = np.bincount(parents, ways, minlength=n_symbols)
    return chart


@wrong("4.3", "the probabilities of the rules are forgotten")
def inside(lexical, parents, lefts, rights, probabilities):
    n_words, n_symbols = lexical.shape
    chart = np.zeros((n_words, n_words + 1, n_symbols))
    for start in range(n_words - 1, -1, -1):
        chart[start, start + 1] = lexical[start]
        for stop in range(start + 2, n_words + 1):
            pairs = chart[start, start + 1 : stop].T @ chart[start + 1 : stop, stop]
            chart[start, stop] = np.bincount(parents, pairs[lefts, rights], minlength=n_symbols)
    return chart


@wrong("4.3", "long stretches before the short ones in them")
def inside(lexical, parents, lefts, rights, probabilities):
    n_words, n_symbols = lexical.shape
    chart = np.zeros((n_words, n_words + 1, n_symbols))
    for start in range(n_words):
        chart[start, start + 1] = lexical[start]
        for stop in range(start + 2, n_words + 1):
            pairs = chart[start, start + 1 : stop].T @ chart[start + 1 : stop, stop]
            ways = probabilities * pairs[lefts, rights]
            chart[start, stop] = np.bincount(parents, ways, minlength=n_symbols)
    return chart


@wrong("4.4", "transitions read the wrong way round")
def log_forward(log_initial, log_transitions, log_scores):
    forward = np.empty(log_scores.shape)
    forward[0] = log_initial + log_scores[0]
    for t in range(1, len(log_scores)):
        forward[t] = np.logaddexp.reduce(forward[t - 1] + log_transitions, axis=1) + log_scores[t]
    return forward


@wrong("4.4", "probabilities instead of logarithms inside: underflow")
def log_forward(log_initial, log_transitions, log_scores):
    forward = np.empty(log_scores.shape)
    forward[0] = np.exp(log_initial + log_scores[0])
    for t in range(1, len(log_scores)):
        forward[t] = (forward[t - 1] @ np.exp(log_transitions)) * np.exp(log_scores[t])
    with np.errstate(divide="ignore"):
        return np.log(forward)


@wrong("4.4", "the maximum instead of the sum")
def log_forward(log_initial, log_transitions, log_scores):
    forward = np.empty(log_scores.shape)
    forward[0] = log_initial + log_scores[0]
    for t in range(1, len(log_scores)):
        forward[t] = (forward[t - 1][:, None] + log_transitions).max(axis=0) + log_scores[t]
    return forward


@wrong("4.4", "the first id is not looked at")
def log_forward(log_initial, log_transitions, log_scores):
    forward = np.empty(log_scores.shape)
    forward[0] = log_initial
    for t in range(1, len(log_scores)):
        forward[t] = np.logaddexp.reduce(forward[t - 1][:, None] + log_transitions) + log_scores[t]
    return forward


@wrong("4.4", "one step before the first id")
def log_forward(log_initial, log_transitions, log_scores):
    forward = np.empty(log_scores.shape)
    before = log_initial
    for t in range(len(log_scores)):
        before = forward[t] = np.logaddexp.reduce(before[:, None] + log_transitions) + log_scores[t]
    return forward


@wrong("4.4", "log of a sum of shifted exponentials: nan where all are impossible")
def log_forward(log_initial, log_transitions, log_scores):
    forward = np.empty(log_scores.shape)
    forward[0] = log_initial + log_scores[0]
    for t in range(1, len(log_scores)):
        arriving = forward[t - 1][:, None] + log_transitions
        with np.errstate(all="ignore"):
            largest = arriving.max(axis=0)
            forward[t] = np.log(np.exp(arriving - largest).sum(axis=0)) + largest + log_scores[t]
    return forward


@wrong("4.5", "the best state of each place so far, not the best way")
def viterbi(log_initial, log_transitions, log_scores):
    best = log_initial + log_scores[0]
    path = [best.argmax()]
    for t in range(1, len(log_scores)):
        best = (best[:, None] + log_transitions).max(axis=0) + log_scores[t]
        path.append(best.argmax())
    return np.array(path), float(best.max())


@wrong("4.5", "greedy: one way only")
def viterbi(log_initial, log_transitions, log_scores):
    best = log_initial + log_scores[0]
    path, score = [best.argmax()], best.max()
    for t in range(1, len(log_scores)):
        best = score + log_transitions[path[-1]] + log_scores[t]
        path.append(best.argmax())
        score = best.max()
    return np.array(path), float(score)


@wrong("4.5", "where a state came from is looked up one place too early")
def viterbi(log_initial, log_transitions, log_scores):
    best = log_initial + log_scores[0]
    came_from = np.zeros(log_scores.shape, np.int64)
    for t in range(1, len(log_scores)):
        candidates = best[:, None] + log_transitions
        came_from[t - 1] = candidates.argmax(axis=0)
        best = candidates.max(axis=0) + log_scores[t]
    path = [best.argmax()]
    for row in came_from[:0:-1]:
        path.append(row[path[-1]])
    return np.array(path[::-1]), float(best.max())


@wrong("4.5", "the states come out backwards")
def viterbi(log_initial, log_transitions, log_scores):
    best = log_initial + log_scores[0]
    came_from = np.zeros(log_scores.shape, np.int64)
    for t in range(1, len(log_scores)):
        candidates = best[:, None] + log_transitions
        came_from[t] = candidates.argmax(axis=0)
        best = candidates.max(axis=0) + log_scores[t]
    path = [best.argmax()]
    for row in came_from[:0:-1]:
        path.append(row[path[-1]])
    return np.array(path), float(best.max())


@wrong("4.5", "transitions read the wrong way round")
def viterbi(log_initial, log_transitions, log_scores):
    best = log_initial + log_scores[0]
    came_from = np.zeros(log_scores.shape, np.int64)
    for t in range(1, len(log_scores)):
        candidates = best[:, None] + log_transitions.T
        came_from[t] = candidates.argmax(axis=0)
        best = candidates.max(axis=0) + log_scores[t]
    path = [best.argmax()]
    for row in came_from[:0:-1]:
        path.append(row[path[-1]])
    return np.array(path[::-1]), float(best.max())


@wrong("4.5", "the log-probability of the ids, not of these states with them")
def viterbi(log_initial, log_transitions, log_scores):
    best = log_initial + log_scores[0]
    total = best
    came_from = np.zeros(log_scores.shape, np.int64)
    for t in range(1, len(log_scores)):
        candidates = best[:, None] + log_transitions
        came_from[t] = candidates.argmax(axis=0)
        best = candidates.max(axis=0) + log_scores[t]
        total = np.logaddexp.reduce(total[:, None] + log_transitions) + log_scores[t]
    path = [best.argmax()]
    for row in came_from[:0:-1]:
        path.append(row[path[-1]])
    return np.array(path[::-1]), float(np.logaddexp.reduce(total))


@wrong("4.5", "of equal states the last")
def viterbi(log_initial, log_transitions, log_scores):
    last = len(log_initial) - 1
    best = log_initial + log_scores[0]
    came_from = np.zeros(log_scores.shape, np.int64)
    for t in range(1, len(log_scores)):
        candidates = best[:, None] + log_transitions
        came_from[t] = last - candidates[::-1].argmax(axis=0)
        best = candidates.max(axis=0) + log_scores[t]
    path = [last - best[::-1].argmax()]
    for row in came_from[:0:-1]:
        path.append(row[path[-1]])
    return np.array(path[::-1]), float(best.max())


@wrong("4.6", "the state before times the state after, as if they were independent")
def expected_transitions(forward, backward, log_transitions, log_scores):
    posteriors = np.exp(forward + backward - np.logaddexp.reduce(forward[-1]))
    return posteriors[:-1].T @ posteriors[1:]


@wrong("4.6", "the id at the next place is forgotten")
def expected_transitions(forward, backward, log_transitions, log_scores):
    steps = forward[:-1, :, None] + log_transitions + backward[1:, None, :]
    return np.exp(steps - np.logaddexp.reduce(forward[-1])).sum(axis=0)


@wrong("4.6", "not divided by the probability of the sequence")
def expected_transitions(forward, backward, log_transitions, log_scores):
    arriving = log_scores[1:] + backward[1:]
    return np.exp(forward[:-1, :, None] + log_transitions + arriving[:, None, :]).sum(axis=0)


@wrong("4.6", "divided after exp: underflow")
def expected_transitions(forward, backward, log_transitions, log_scores):
    arriving = log_scores[1:] + backward[1:]
    steps = np.exp(forward[:-1, :, None] + log_transitions + arriving[:, None, :]).sum(axis=0)
    with np.errstate(all="ignore"):
        return steps / np.exp(np.logaddexp.reduce(forward[-1]))


@wrong("4.6", "probabilities of the next state instead of counts")
def expected_transitions(forward, backward, log_transitions, log_scores):
    arriving = log_scores[1:] + backward[1:]
    steps = forward[:-1, :, None] + log_transitions + arriving[:, None, :]
    counts = np.exp(steps - np.logaddexp.reduce(forward[-1])).sum(axis=0)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)


@wrong("4.6", "rows and columns exchanged")
def expected_transitions(forward, backward, log_transitions, log_scores):
    arriving = log_scores[1:] + backward[1:]
    steps = forward[:-1, :, None] + log_transitions + arriving[:, None, :]
    return np.exp(steps - np.logaddexp.reduce(forward[-1])).sum(axis=0).T


@wrong("4.6", "every step divided by its own sum, one per place, of the most probable way only")
def expected_transitions(forward, backward, log_transitions, log_scores):
    arriving = log_scores[1:] + backward[1:]
    steps = forward[:-1, :, None] + log_transitions + arriving[:, None, :]
    hard = (steps == steps.max(axis=(1, 2), keepdims=True)).astype(float)
    return hard.sum(axis=0)
