"""Wrong answers of chapter 05: each must lose the points of exactly the task it names. Parsed, never run."""

from minillm.course.wrong_answers import wrong


@wrong("5.1", "the probability of dropping instead of keeping")
def keep_probabilities(counts, threshold):
    if not threshold > 0:
        raise ConfigError("threshold must be above 0")
    if counts.sum() <= 0:
        raise DataError("no word occurs")
    share = counts / counts.sum()
    return 1 - np.sqrt(np.minimum(1.0, threshold / np.where(counts > 0, share, threshold)))


@wrong("5.1", "what word2vec.c does, not what the formula says")
def keep_probabilities(counts, threshold):
    if not threshold > 0:
        raise ConfigError("threshold must be above 0")
    if counts.sum() <= 0:
        raise DataError("no word occurs")
    ratio = threshold / np.where(counts > 0, counts / counts.sum(), threshold)
    return np.minimum(1.0, np.sqrt(ratio) + ratio)


@wrong("5.1", "forgets the root")
def keep_probabilities(counts, threshold):
    if not threshold > 0:
        raise ConfigError("threshold must be above 0")
    if counts.sum() <= 0:
        raise DataError("no word occurs")
    share = counts / counts.sum()
    return np.minimum(1.0, threshold / np.where(counts > 0, share, threshold))


@wrong("5.1", "rare words get more than 1")
def keep_probabilities(counts, threshold):
    if not threshold > 0:
        raise ConfigError("threshold must be above 0")
    if counts.sum() <= 0:
        raise DataError("no word occurs")
    share = counts / counts.sum()
    return np.sqrt(threshold / np.where(counts > 0, share, threshold))


@wrong("5.1", "counts instead of shares")
def keep_probabilities(counts, threshold):
    if not threshold > 0:
        raise ConfigError("threshold must be above 0")
    if counts.sum() <= 0:
        raise DataError("no word occurs")
    return np.sqrt(np.minimum(1.0, threshold / np.maximum(counts, threshold)))


@wrong("5.2", "a number on a border belongs to the word before it")
def noise_words(counts, uniforms, power=0.75):
    if counts.sum() <= 0:
        raise DataError("no word can be drawn")
    ends = np.cumsum(np.asarray(counts, float) ** power)
    return np.searchsorted(ends, uniforms * ends[-1], side="left")


@wrong("5.2", "draws as often as the text has the words")
def noise_words(counts, uniforms, power=0.75):
    if counts.sum() <= 0:
        raise DataError("no word can be drawn")
    ends = np.cumsum(np.asarray(counts, float))
    return np.searchsorted(ends, uniforms * ends[-1], side="right")


@wrong("5.2", "the power of the cumulative counts instead of the cumulative powers")
def noise_words(counts, uniforms, power=0.75):
    if counts.sum() <= 0:
        raise DataError("no word can be drawn")
    ends = np.cumsum(np.asarray(counts, float)) ** power
    return np.searchsorted(ends, uniforms * ends[-1], side="right")


@wrong("5.2", "every word alike")
def noise_words(counts, uniforms, power=0.75):
    if counts.sum() <= 0:
        raise DataError("no word can be drawn")
    return (uniforms * len(counts)).astype(np.int64)


@wrong("5.2", "does not stretch the numbers to the length of the line")
def noise_words(counts, uniforms, power=0.75):
    if counts.sum() <= 0:
        raise DataError("no word can be drawn")
    ends = np.cumsum(np.asarray(counts, float) ** power)
    return np.searchsorted(ends, uniforms, side="right")


@wrong("5.3", "every place looks as far as the widest")
def context_windows(ids, reaches, boundary=None):
    if len(ids) == 0 or len(ids) != len(reaches):
        raise DataError("lengths differ")
    widest = int(reaches.max())
    steps = np.concatenate([np.arange(-widest, 0), np.arange(1, widest + 1)])
    places = np.arange(len(ids))[:, None] + steps
    allowed = (places >= 0) & (places < len(ids))
    places = np.where(allowed, places, 0)
    marks = np.zeros(len(ids), bool) if boundary is None else ids == boundary
    document = np.cumsum(marks)
    allowed &= (document[places] == document[:, None]) & ~marks[places] & ~marks[:, None]
    return np.where(allowed, ids[places], 0), allowed


@wrong("5.3", "windows reach across the boundary, only the boundary itself is left out")
def context_windows(ids, reaches, boundary=None):
    if len(ids) == 0 or len(ids) != len(reaches):
        raise DataError("lengths differ")
    widest = int(reaches.max())
    steps = np.concatenate([np.arange(-widest, 0), np.arange(1, widest + 1)])
    places = np.arange(len(ids))[:, None] + steps
    allowed = (places >= 0) & (places < len(ids)) & (np.abs(steps) <= reaches[:, None])
    places = np.where(allowed, places, 0)
    marks = np.zeros(len(ids), bool) if boundary is None else ids == boundary
    allowed &= ~marks[places] & ~marks[:, None]
    return np.where(allowed, ids[places], 0), allowed


@wrong("5.3", "the boundary is a word like any other of the document it begins")
def context_windows(ids, reaches, boundary=None):
    if len(ids) == 0 or len(ids) != len(reaches):
        raise DataError("lengths differ")
    widest = int(reaches.max())
    steps = np.concatenate([np.arange(-widest, 0), np.arange(1, widest + 1)])
    places = np.arange(len(ids))[:, None] + steps
    allowed = (places >= 0) & (places < len(ids)) & (np.abs(steps) <= reaches[:, None])
    places = np.where(allowed, places, 0)
    marks = np.zeros(len(ids), bool) if boundary is None else ids == boundary
    document = np.cumsum(marks)
    allowed &= document[places] == document[:, None]
    return np.where(allowed, ids[places], 0), allowed


@wrong("5.3", "the text is a ring: windows at the start see its end")
def context_windows(ids, reaches, boundary=None):
    if len(ids) == 0 or len(ids) != len(reaches):
        raise DataError("lengths differ")
    widest = int(reaches.max())
    steps = np.concatenate([np.arange(-widest, 0), np.arange(1, widest + 1)])
    places = (np.arange(len(ids))[:, None] + steps) % len(ids)
    allowed = np.broadcast_to(np.abs(steps) <= reaches[:, None], places.shape).copy()
    marks = np.zeros(len(ids), bool) if boundary is None else ids == boundary
    document = np.cumsum(marks)
    allowed &= (document[places] == document[:, None]) & ~marks[places] & ~marks[:, None]
    return np.where(allowed, ids[places], 0), allowed


@wrong("5.3", "a word is in its own window")
def context_windows(ids, reaches, boundary=None):
    if len(ids) == 0 or len(ids) != len(reaches):
        raise DataError("lengths differ")
    widest = int(reaches.max())
    steps = np.arange(-widest, widest + 1)
    places = np.arange(len(ids))[:, None] + steps
    allowed = (places >= 0) & (places < len(ids)) & (np.abs(steps) <= reaches[:, None])
    places = np.where(allowed, places, 0)
    marks = np.zeros(len(ids), bool) if boundary is None else ids == boundary
    document = np.cumsum(marks)
    allowed &= (document[places] == document[:, None]) & ~marks[places] & ~marks[:, None]
    return np.where(allowed, ids[places], 0), allowed


@wrong("5.3", "the reach of the neighbour decides, not that of the place")
def context_windows(ids, reaches, boundary=None):
    if len(ids) == 0 or len(ids) != len(reaches):
        raise DataError("lengths differ")
    widest = int(reaches.max())
    steps = np.concatenate([np.arange(-widest, 0), np.arange(1, widest + 1)])
    places = np.arange(len(ids))[:, None] + steps
    allowed = (places >= 0) & (places < len(ids))
    places = np.where(allowed, places, 0)
    allowed &= np.abs(steps) <= reaches[places]
    marks = np.zeros(len(ids), bool) if boundary is None else ids == boundary
    document = np.cumsum(marks)
    allowed &= (document[places] == document[:, None]) & ~marks[places] & ~marks[:, None]
    return np.where(allowed, ids[places], 0), allowed


@wrong("5.4", "the gradients of the maximised quantity: every sign is turned")
def negative_sampling(hidden, target, negatives):
    sizes = {}
    check_shape("hidden", hidden, "B C", sizes)
    check_shape("target", target, "B C", sizes)
    check_shape("negatives", negatives, "B K C", sizes)
    scores, noise = np.einsum("bc,bc->b", hidden, target), np.einsum("bc,bkc->bk", hidden, negatives)
    losses = softplus(-scores) + softplus(noise).sum(axis=1)
    right, wrong = 1 - sigmoid(scores)[:, None], -sigmoid(noise)[:, :, None]
    return losses, right * target + (wrong * negatives).sum(axis=1), right * hidden, wrong * hidden[:, None, :]


@wrong("5.4", "negatives are scored like targets: -log sigmoid(score)")
def negative_sampling(hidden, target, negatives):
    sizes = {}
    check_shape("hidden", hidden, "B C", sizes)
    check_shape("target", target, "B C", sizes)
    check_shape("negatives", negatives, "B K C", sizes)
    scores, noise = np.einsum("bc,bc->b", hidden, target), np.einsum("bc,bkc->bk", hidden, negatives)
    losses = softplus(-scores) + softplus(-noise).sum(axis=1)
    right, wrong = sigmoid(scores)[:, None] - 1, sigmoid(noise)[:, :, None] - 1
    return losses, right * target + (wrong * negatives).sum(axis=1), right * hidden, wrong * hidden[:, None, :]


@wrong("5.4", "the mean over the negatives instead of their sum")
def negative_sampling(hidden, target, negatives):
    sizes = {}
    check_shape("hidden", hidden, "B C", sizes)
    check_shape("target", target, "B C", sizes)
    check_shape("negatives", negatives, "B K C", sizes)
    scores, noise = np.einsum("bc,bc->b", hidden, target), np.einsum("bc,bkc->bk", hidden, negatives)
    losses = softplus(-scores) + softplus(noise).mean(axis=1)
    right, wrong = sigmoid(scores)[:, None] - 1, sigmoid(noise)[:, :, None] / noise.shape[1]
    return losses, right * target + (wrong * negatives).sum(axis=1), right * hidden, wrong * hidden[:, None, :]


@wrong("5.4", "the predicting vector learns from the target only")
def negative_sampling(hidden, target, negatives):
    sizes = {}
    check_shape("hidden", hidden, "B C", sizes)
    check_shape("target", target, "B C", sizes)
    check_shape("negatives", negatives, "B K C", sizes)
    scores, noise = np.einsum("bc,bc->b", hidden, target), np.einsum("bc,bkc->bk", hidden, negatives)
    losses = softplus(-scores) + softplus(noise).sum(axis=1)
    right, wrong = sigmoid(scores)[:, None] - 1, sigmoid(noise)[:, :, None]
    return losses, right * target, right * hidden, wrong * hidden[:, None, :]


@wrong("5.4", "log(1 + exp(score)) as it is written: overflows")
def negative_sampling(hidden, target, negatives):
    sizes = {}
    check_shape("hidden", hidden, "B C", sizes)
    check_shape("target", target, "B C", sizes)
    check_shape("negatives", negatives, "B K C", sizes)
    scores, noise = np.einsum("bc,bc->b", hidden, target), np.einsum("bc,bkc->bk", hidden, negatives)
    losses = np.log(1 + np.exp(-scores)) + np.log(1 + np.exp(noise)).sum(axis=1)
    right, wrong = sigmoid(scores)[:, None] - 1, sigmoid(noise)[:, :, None]
    return losses, right * target + (wrong * negatives).sum(axis=1), right * hidden, wrong * hidden[:, None, :]


@wrong("5.4", "the derivative of the sigmoid, sigmoid (1 - sigmoid), instead of that of its logarithm")
def negative_sampling(hidden, target, negatives):
    sizes = {}
    check_shape("hidden", hidden, "B C", sizes)
    check_shape("target", target, "B C", sizes)
    check_shape("negatives", negatives, "B K C", sizes)
    scores, noise = np.einsum("bc,bc->b", hidden, target), np.einsum("bc,bkc->bk", hidden, negatives)
    losses = softplus(-scores) + softplus(noise).sum(axis=1)
    right = -(sigmoid(scores) * (1 - sigmoid(scores)))[:, None]
    wrong = (sigmoid(noise) * (1 - sigmoid(noise)))[:, :, None]
    return losses, right * target + (wrong * negatives).sum(axis=1), right * hidden, wrong * hidden[:, None, :]


@wrong("5.5", "what word2vec.c does: every word gets the whole gradient of the mean")
def cbow_gradients(contexts, allowed, target, negatives):
    sizes = {}
    check_shape("contexts", contexts, "B W C", sizes)
    check_shape("allowed", allowed, "B W", sizes)
    n_allowed = np.maximum(allowed.sum(axis=1, keepdims=True), 1)
    shares = (allowed / n_allowed).astype(contexts.dtype)[:, :, None]
    hidden = (shares * contexts).sum(axis=1)
    losses, d_hidden, d_target, d_negatives = negative_sampling(hidden, target, negatives)
    return losses, allowed[:, :, None] * d_hidden[:, None, :], d_target, d_negatives


@wrong("5.5", "the sum of the words instead of their mean")
def cbow_gradients(contexts, allowed, target, negatives):
    sizes = {}
    check_shape("contexts", contexts, "B W C", sizes)
    check_shape("allowed", allowed, "B W", sizes)
    shares = allowed.astype(contexts.dtype)[:, :, None]
    hidden = (shares * contexts).sum(axis=1)
    losses, d_hidden, d_target, d_negatives = negative_sampling(hidden, target, negatives)
    return losses, shares * d_hidden[:, None, :], d_target, d_negatives


@wrong("5.5", "divides by the width of the window, whoever counts")
def cbow_gradients(contexts, allowed, target, negatives):
    sizes = {}
    check_shape("contexts", contexts, "B W C", sizes)
    check_shape("allowed", allowed, "B W", sizes)
    shares = (allowed / allowed.shape[1]).astype(contexts.dtype)[:, :, None]
    hidden = (shares * contexts).sum(axis=1)
    losses, d_hidden, d_target, d_negatives = negative_sampling(hidden, target, negatives)
    return losses, shares * d_hidden[:, None, :], d_target, d_negatives


@wrong("5.5", "words that do not count are in the mean all the same")
def cbow_gradients(contexts, allowed, target, negatives):
    sizes = {}
    check_shape("contexts", contexts, "B W C", sizes)
    check_shape("allowed", allowed, "B W", sizes)
    n_allowed = np.maximum(allowed.sum(axis=1, keepdims=True), 1)
    shares = (allowed / n_allowed).astype(contexts.dtype)[:, :, None]
    losses, d_hidden, d_target, d_negatives = negative_sampling(contexts.mean(axis=1), target, negatives)
    return losses, shares * d_hidden[:, None, :], d_target, d_negatives


@wrong("5.5", "an empty window divides by 0")
def cbow_gradients(contexts, allowed, target, negatives):
    sizes = {}
    check_shape("contexts", contexts, "B W C", sizes)
    check_shape("allowed", allowed, "B W", sizes)
    with np.errstate(all="ignore"):
        shares = (allowed / allowed.sum(axis=1, keepdims=True)).astype(contexts.dtype)[:, :, None]
    hidden = (shares * contexts).sum(axis=1)
    losses, d_hidden, d_target, d_negatives = negative_sampling(hidden, target, negatives)
    return losses, shares * d_hidden[:, None, :], d_target, d_negatives


@wrong("5.6", "the words of the question may answer")
def analogies(vectors, questions, exclude=True):
    check_shape("questions", questions, "Q 3", {})
    check_shape("vectors", vectors, "V C", {})
    if len(vectors) < 4:
        raise DataError("too few")
    unit = unit_rows(vectors)
    a, b, c = unit[questions.T]
    return (unit_rows(b - a + c) @ unit.T).argmax(axis=1)


@wrong("5.6", "a - b + c: the wrong way round")
def analogies(vectors, questions, exclude=True):
    check_shape("questions", questions, "Q 3", {})
    check_shape("vectors", vectors, "V C", {})
    if len(vectors) < 4:
        raise DataError("too few")
    unit = unit_rows(vectors)
    a, b, c = unit[questions.T]
    cosines = unit_rows(a - b + c) @ unit.T
    if exclude:
        np.put_along_axis(cosines, questions, -np.inf, axis=1)
    return cosines.argmax(axis=1)


@wrong("5.6", "adds before it divides by the lengths: long vectors drown short ones")
def analogies(vectors, questions, exclude=True):
    check_shape("questions", questions, "Q 3", {})
    check_shape("vectors", vectors, "V C", {})
    if len(vectors) < 4:
        raise DataError("too few")
    a, b, c = vectors[questions.T]
    cosines = unit_rows(b - a + c) @ unit_rows(vectors).T
    if exclude:
        np.put_along_axis(cosines, questions, -np.inf, axis=1)
    return cosines.argmax(axis=1)


@wrong("5.6", "products instead of cosines: long vectors win")
def analogies(vectors, questions, exclude=True):
    check_shape("questions", questions, "Q 3", {})
    check_shape("vectors", vectors, "V C", {})
    if len(vectors) < 4:
        raise DataError("too few")
    a, b, c = unit_rows(vectors)[questions.T]
    cosines = (b - a + c) @ np.asarray(vectors, float).T
    if exclude:
        np.put_along_axis(cosines, questions, -np.inf, axis=1)
    return cosines.argmax(axis=1)


@wrong("5.6", "forbids only the third word")
def analogies(vectors, questions, exclude=True):
    check_shape("questions", questions, "Q 3", {})
    check_shape("vectors", vectors, "V C", {})
    if len(vectors) < 4:
        raise DataError("too few")
    unit = unit_rows(vectors)
    a, b, c = unit[questions.T]
    cosines = unit_rows(b - a + c) @ unit.T
    if exclude:
        np.put_along_axis(cosines, questions[:, 2:], -np.inf, axis=1)
    return cosines.argmax(axis=1)
