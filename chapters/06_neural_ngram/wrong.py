"""Wrong answers of chapter 06: each must lose the points of exactly the task it names. Parsed, never run."""

from minillm.course.wrong_answers import wrong


@wrong("6.1", "looks into the document before")
def contexts_before(token_ids, n_before, end_of_text_id):
    check_sequence(token_ids, n_before)
    before = np.arange(len(token_ids))[:, None] - np.arange(n_before, 0, -1)
    return np.where(before >= 0, token_ids[np.maximum(before, 0)], end_of_text_id).astype(np.int64)


@wrong("6.1", "the nearest id first")
def contexts_before(token_ids, n_before, end_of_text_id):
    check_sequence(token_ids, n_before)
    places = np.arange(len(token_ids))
    begins = np.concatenate([[True], token_ids[:-1] == end_of_text_id])[: len(token_ids)]
    first = np.maximum.accumulate(np.where(begins, places, 0))
    before = places[:, None] - np.arange(1, n_before + 1)
    return np.where(before >= first[:, None], token_ids[np.maximum(before, 0)], end_of_text_id).astype(np.int64)


@wrong("6.1", "the end of a document already belongs to the next")
def contexts_before(token_ids, n_before, end_of_text_id):
    check_sequence(token_ids, n_before)
    places = np.arange(len(token_ids))
    first = np.maximum.accumulate(np.where(token_ids == end_of_text_id, places, 0))
    before = places[:, None] - np.arange(n_before, 0, -1)
    return np.where(before >= first[:, None], token_ids[np.maximum(before, 0)], end_of_text_id).astype(np.int64)


@wrong("6.1", "the context holds the id that is to be predicted")
def contexts_before(token_ids, n_before, end_of_text_id):
    check_sequence(token_ids, n_before)
    places = np.arange(len(token_ids))
    begins = np.concatenate([[True], token_ids[:-1] == end_of_text_id])[: len(token_ids)]
    first = np.maximum.accumulate(np.where(begins, places, 0))
    before = places[:, None] - np.arange(n_before - 1, -1, -1)
    return np.where(before >= first[:, None], token_ids[np.maximum(before, 0)], end_of_text_id).astype(np.int64)


@wrong("6.1", "keeps the small integers it was given")
def contexts_before(token_ids, n_before, end_of_text_id):
    check_sequence(token_ids, n_before)
    places = np.arange(len(token_ids))
    begins = np.concatenate([[True], token_ids[:-1] == end_of_text_id])[: len(token_ids)]
    first = np.maximum.accumulate(np.where(begins, places, 0))
    before = places[:, None] - np.arange(n_before, 0, -1)
    return np.where(before >= first[:, None], token_ids[np.maximum(before, 0)], token_ids.dtype.type(end_of_text_id))


@wrong("6.2", "no largest score is subtracted: overflow")
def softmax_cross_entropy(logits, targets):
    check_targets(logits, targets)
    rows = np.arange(len(targets))
    exponentials = np.exp(logits)
    probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
    gradient = probabilities.copy()
    gradient[rows, targets] -= 1.0
    return float(-np.log(probabilities[rows, targets]).mean()), gradient / len(targets)


@wrong("6.2", "the derivative of the sum, not of the mean")
def softmax_cross_entropy(logits, targets):
    check_targets(logits, targets)
    rows = np.arange(len(targets))
    shifted = logits - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=-1, keepdims=True)
    losses = np.log(totals[:, 0]) - shifted[rows, targets]
    gradient = exponentials / totals
    gradient[rows, targets] -= 1.0
    return float(losses.mean()), gradient


@wrong("6.2", "the derivative uphill")
def softmax_cross_entropy(logits, targets):
    check_targets(logits, targets)
    rows = np.arange(len(targets))
    shifted = logits - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=-1, keepdims=True)
    losses = np.log(totals[:, 0]) - shifted[rows, targets]
    gradient = -exponentials / totals
    gradient[rows, targets] += 1.0
    return float(losses.mean()), gradient / len(targets)


@wrong("6.2", "a logarithm of a probability that has become 0")
def softmax_cross_entropy(logits, targets):
    check_targets(logits, targets)
    rows = np.arange(len(targets))
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
    gradient = probabilities.copy()
    gradient[rows, targets] -= 1.0
    return float(-np.log(probabilities[rows, targets] + 1e-12).mean()), gradient / len(targets)


@wrong("6.2", "changes the scores it was given")
def softmax_cross_entropy(logits, targets):
    check_targets(logits, targets)
    rows = np.arange(len(targets))
    logits -= logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(logits)
    totals = exponentials.sum(axis=-1, keepdims=True)
    losses = np.log(totals[:, 0]) - logits[rows, targets]
    gradient = exponentials / totals
    gradient[rows, targets] -= 1.0
    return float(losses.mean()), gradient / len(targets)


@wrong("6.3", "divides by the examples once more")
def affine_backward(gradient, x, weight):
    return gradient @ weight, gradient.T @ x / len(x), gradient.mean(axis=0)


@wrong("6.3", "the bias keeps one derivative for each example")
def affine_backward(gradient, x, weight):
    return gradient @ weight, gradient.T @ x, gradient


@wrong("6.3", "the weight's derivative lies on its side")
def affine_backward(gradient, x, weight):
    return gradient @ weight, x.T @ gradient, gradient.sum(axis=0)


@wrong("6.3", "the weight's derivative through the weight itself")
def affine_backward(gradient, x, weight):
    return gradient @ weight, np.outer(gradient.sum(axis=0), x.sum(axis=0)), gradient.sum(axis=0)


@wrong("6.4", "an id that stands twice counts once")
def embedding_backward(gradient, token_ids, n_rows):
    table = np.zeros((n_rows, gradient.shape[-1]), gradient.dtype)
    table[token_ids] += gradient
    return table


@wrong("6.4", "the mean of an id's derivatives instead of their sum")
def embedding_backward(gradient, token_ids, n_rows):
    table = np.zeros((n_rows, gradient.shape[-1]), gradient.dtype)
    np.add.at(table, token_ids, gradient)
    times = np.bincount(token_ids.reshape(-1), minlength=n_rows)
    return table / np.maximum(times, 1)[:, None].astype(gradient.dtype)


@wrong("6.4", "only as many rows as the largest id asks for")
def embedding_backward(gradient, token_ids, n_rows):
    table = np.zeros((token_ids.max(initial=0) + 1, gradient.shape[-1]), gradient.dtype)
    np.add.at(table, token_ids, gradient)
    return table


@wrong("6.4", "always float64")
def embedding_backward(gradient, token_ids, n_rows):
    table = np.zeros((n_rows, gradient.shape[-1]))
    np.add.at(table, token_ids, gradient)
    return table


@wrong("6.5", "tanh has no derivative")
def loss_and_gradients(weights, contexts, targets):
    x, hidden, logits = forward(weights, contexts)
    loss, d_logits = softmax_cross_entropy(logits, targets)
    gradients = {}
    d_hidden, gradients["output.weight"], gradients["output.bias"] = affine_backward(
        d_logits, hidden, weights["output.weight"]
    )
    d_x, gradients["hidden.weight"], gradients["hidden.bias"] = affine_backward(d_hidden, x, weights["hidden.weight"])
    if "direct.weight" in weights:
        d_x_direct, gradients["direct.weight"], _ = affine_backward(d_logits, x, weights["direct.weight"])
        d_x = d_x + d_x_direct
    n_rows, width = weights["embedding.weight"].shape
    gradients["embedding.weight"] = embedding_backward(d_x.reshape(*contexts.shape, width), contexts, n_rows)
    return loss, gradients


@wrong("6.5", "the direct connections do not reach the vectors")
def loss_and_gradients(weights, contexts, targets):
    x, hidden, logits = forward(weights, contexts)
    loss, d_logits = softmax_cross_entropy(logits, targets)
    gradients = {}
    d_hidden, gradients["output.weight"], gradients["output.bias"] = affine_backward(
        d_logits, hidden, weights["output.weight"]
    )
    d_x, gradients["hidden.weight"], gradients["hidden.bias"] = affine_backward(
        tanh_backward(d_hidden, hidden), x, weights["hidden.weight"]
    )
    if "direct.weight" in weights:
        _, gradients["direct.weight"], _ = affine_backward(d_logits, x, weights["direct.weight"])
    n_rows, width = weights["embedding.weight"].shape
    gradients["embedding.weight"] = embedding_backward(d_x.reshape(*contexts.shape, width), contexts, n_rows)
    return loss, gradients


@wrong("6.5", "vectors are cut from the row the wrong way round")
def loss_and_gradients(weights, contexts, targets):
    x, hidden, logits = forward(weights, contexts)
    loss, d_logits = softmax_cross_entropy(logits, targets)
    gradients = {}
    d_hidden, gradients["output.weight"], gradients["output.bias"] = affine_backward(
        d_logits, hidden, weights["output.weight"]
    )
    d_x, gradients["hidden.weight"], gradients["hidden.bias"] = affine_backward(
        tanh_backward(d_hidden, hidden), x, weights["hidden.weight"]
    )
    if "direct.weight" in weights:
        d_x_direct, gradients["direct.weight"], _ = affine_backward(d_logits, x, weights["direct.weight"])
        d_x = d_x + d_x_direct
    n_rows, width = weights["embedding.weight"].shape
    parts = d_x.reshape(len(contexts), width, contexts.shape[1]).swapaxes(1, 2)
    gradients["embedding.weight"] = embedding_backward(parts, contexts, n_rows)
    return loss, gradients


@wrong("6.5", "forgets the derivative of the direct connections")
def loss_and_gradients(weights, contexts, targets):
    x, hidden, logits = forward(weights, contexts)
    loss, d_logits = softmax_cross_entropy(logits, targets)
    gradients = {}
    d_hidden, gradients["output.weight"], gradients["output.bias"] = affine_backward(
        d_logits, hidden, weights["output.weight"]
    )
    d_x, gradients["hidden.weight"], gradients["hidden.bias"] = affine_backward(
        tanh_backward(d_hidden, hidden), x, weights["hidden.weight"]
    )
    n_rows, width = weights["embedding.weight"].shape
    gradients["embedding.weight"] = embedding_backward(d_x.reshape(*contexts.shape, width), contexts, n_rows)
    return loss, gradients


@wrong("6.6", "one-sided differences")
def finite_differences(function, values, step=1e-5):
    if not step > 0:
        raise ConfigError(f"step is {step}, expected a number above 0")
    if values.dtype != np.float64:
        raise ShapeError(f"values are {values.dtype}, expected float64")
    gradient, here = np.zeros(values.shape), function(values)
    for place in np.ndindex(values.shape):
        above = values.copy()
        above[place] += step
        gradient[place] = (function(above) - here) / step
    return gradient


@wrong("6.6", "divides by the step instead of twice the step")
def finite_differences(function, values, step=1e-5):
    if not step > 0:
        raise ConfigError(f"step is {step}, expected a number above 0")
    if values.dtype != np.float64:
        raise ShapeError(f"values are {values.dtype}, expected float64")
    gradient = np.zeros(values.shape)
    for place in np.ndindex(values.shape):
        above, below = values.copy(), values.copy()
        above[place] += step
        below[place] -= step
        gradient[place] = (function(above) - function(below)) / step
    return gradient


@wrong("6.6", "a number that was moved stays moved")
def finite_differences(function, values, step=1e-5):
    if not step > 0:
        raise ConfigError(f"step is {step}, expected a number above 0")
    if values.dtype != np.float64:
        raise ShapeError(f"values are {values.dtype}, expected float64")
    gradient, moved = np.zeros(values.shape), values.copy()
    for place in np.ndindex(values.shape):
        moved[place] += step
        above = function(moved)
        moved[place] -= 2 * step
        gradient[place] = (above - function(moved)) / (2 * step)
    return gradient


@wrong("6.6", "works on the array itself and leaves it changed by rounding")
def finite_differences(function, values, step=1e-5):
    if not step > 0:
        raise ConfigError(f"step is {step}, expected a number above 0")
    if values.dtype != np.float64:
        raise ShapeError(f"values are {values.dtype}, expected float64")
    gradient = np.zeros(values.shape)
    for place in np.ndindex(values.shape):
        values[place] += step
        above = function(values)
        values[place] -= 2 * step
        gradient[place] = (above - function(values)) / (2 * step)
        values[place] += step
    return gradient
