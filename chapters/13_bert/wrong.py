"""Wrong answers of chapter 13: each must lose the points of exactly the task it names. Parsed, never run."""

from minillm.course.wrong_answers import wrong


@wrong("13.1", "each token throws its own coin: the number is right on average only")
def choose_tokens(allowed, rate, generator, continues_word=None, longest_ngram=1):
    words = word_groups(allowed, np.zeros(len(allowed), bool) if continues_word is None else continues_word)
    chosen = np.zeros(len(allowed), bool)
    for group in ngram_groups(words, longest_ngram, generator):
        chosen[group] = generator.random() < rate
    return chosen


@wrong("13.1", "short texts are asked for nothing")
def choose_tokens(allowed, rate, generator, continues_word=None, longest_ngram=1):
    words = word_groups(allowed, np.zeros(len(allowed), bool) if continues_word is None else continues_word)
    groups = ngram_groups(words, longest_ngram, generator)
    n_left = round(rate * allowed.sum())
    chosen = np.zeros(len(allowed), bool)
    for number in generator.permutation(len(groups)):
        if len(groups[number]) <= n_left:
            chosen[groups[number]] = True
            n_left -= len(groups[number])
    return chosen


@wrong("13.1", "the first words, not random ones")
def choose_tokens(allowed, rate, generator, continues_word=None, longest_ngram=1):
    words = word_groups(allowed, np.zeros(len(allowed), bool) if continues_word is None else continues_word)
    n_left = max(1, round(rate * allowed.sum()))
    chosen = np.zeros(len(allowed), bool)
    for group in ngram_groups(words, longest_ngram, generator):
        if len(group) <= n_left:
            chosen[group] = True
            n_left -= len(group)
    return chosen


@wrong("13.1", "counts words where tokens are to be counted")
def choose_tokens(allowed, rate, generator, continues_word=None, longest_ngram=1):
    words = word_groups(allowed, np.zeros(len(allowed), bool) if continues_word is None else continues_word)
    groups = ngram_groups(words, longest_ngram, generator)
    chosen = np.zeros(len(allowed), bool)
    for number in generator.permutation(len(groups))[: max(1, round(rate * len(groups)))]:
        chosen[groups[number]] = True
    return chosen


@wrong("13.1", "the rate is of the whole text, special tokens included")
def choose_tokens(allowed, rate, generator, continues_word=None, longest_ngram=1):
    words = word_groups(allowed, np.zeros(len(allowed), bool) if continues_word is None else continues_word)
    groups = ngram_groups(words, longest_ngram, generator)
    n_left = max(1, round(rate * len(allowed)))
    chosen = np.zeros(len(allowed), bool)
    for number in generator.permutation(len(groups)):
        if len(groups[number]) <= n_left:
            chosen[groups[number]] = True
            n_left -= len(groups[number])
    return chosen


@wrong("13.1", "stops at the first word that does not fit")
def choose_tokens(allowed, rate, generator, continues_word=None, longest_ngram=1):
    words = word_groups(allowed, np.zeros(len(allowed), bool) if continues_word is None else continues_word)
    groups = ngram_groups(words, longest_ngram, generator)
    n_left = max(1, round(rate * allowed.sum()))
    chosen = np.zeros(len(allowed), bool)
    for number in generator.permutation(len(groups)):
        if len(groups[number]) > n_left:
            break
        chosen[groups[number]] = True
        n_left -= len(groups[number])
    return chosen


@wrong("13.1", "the last word may make it too many")
def choose_tokens(allowed, rate, generator, continues_word=None, longest_ngram=1):
    words = word_groups(allowed, np.zeros(len(allowed), bool) if continues_word is None else continues_word)
    groups = ngram_groups(words, longest_ngram, generator)
    n_left = max(1, round(rate * allowed.sum()))
    chosen = np.zeros(len(allowed), bool)
    for number in generator.permutation(len(groups)):
        if n_left > 0:
            chosen[groups[number]] = True
            n_left -= len(groups[number])
    return chosen


@wrong("13.1", "short words first, so that the number is reached more often and long words are never asked for")
def choose_tokens(allowed, rate, generator, continues_word=None, longest_ngram=1):
    words = word_groups(allowed, np.zeros(len(allowed), bool) if continues_word is None else continues_word)
    groups = ngram_groups(words, longest_ngram, generator)
    n_left = max(1, round(rate * allowed.sum()))
    chosen = np.zeros(len(allowed), bool)
    for number in sorted(generator.permutation(len(groups)), key=lambda number: len(groups[number])):
        if len(groups[number]) <= n_left:
            chosen[groups[number]] = True
            n_left -= len(groups[number])
    return chosen


@wrong("13.1", "single tokens whatever the words are")
def choose_tokens(allowed, rate, generator, continues_word=None, longest_ngram=1):
    word_groups(allowed, np.zeros(len(allowed), bool) if continues_word is None else continues_word)
    places = np.flatnonzero(allowed)
    chosen = np.zeros(len(allowed), bool)
    chosen[generator.permutation(places)[: max(1, round(rate * len(places)))]] = True
    return chosen


@wrong("13.1", "runs are forgotten")
def choose_tokens(allowed, rate, generator, continues_word=None, longest_ngram=1):
    groups = word_groups(allowed, np.zeros(len(allowed), bool) if continues_word is None else continues_word)
    n_left = max(1, round(rate * allowed.sum()))
    chosen = np.zeros(len(allowed), bool)
    for number in generator.permutation(len(groups)):
        if len(groups[number]) <= n_left:
            chosen[groups[number]] = True
            n_left -= len(groups[number])
    return chosen


@wrong("13.1", "random numbers from a generator of its own")
def choose_tokens(allowed, rate, generator, continues_word=None, longest_ngram=1):
    words = word_groups(allowed, np.zeros(len(allowed), bool) if continues_word is None else continues_word)
    groups = ngram_groups(words, longest_ngram, generator)
    n_left = max(1, round(rate * allowed.sum()))
    chosen = np.zeros(len(allowed), bool)
    for number in np.random.default_rng(0).permutation(len(groups)):
        if len(groups[number]) <= n_left:
            chosen[groups[number]] = True
            n_left -= len(groups[number])
    return chosen


@wrong("13.2", "every chosen token becomes the mask")
def mask_tokens(token_ids, config, generator, continues_word=None):
    ids = check_token_ids(token_ids, config.vocab_size)
    allowed = ~np.isin(ids, config.special_ids)
    continues = None if continues_word is None else continues_word[ids]
    chosen = choose_tokens(allowed, config.rate, generator, continues, config.longest_ngram)
    return np.where(chosen, config.mask_id, ids), np.where(chosen, ids, NOT_COUNTED)


@wrong("13.2", "80, 10 and 10 per cent whatever the config says")
def mask_tokens(token_ids, config, generator, continues_word=None):
    ids = check_token_ids(token_ids, config.vocab_size)
    allowed = ~np.isin(ids, config.special_ids)
    continues = None if continues_word is None else continues_word[ids]
    chosen = choose_tokens(allowed, config.rate, generator, continues, config.longest_ngram)
    kind = generator.random(len(ids))
    drawn = random_tokens(len(ids), config, generator)
    inputs = np.where(chosen & (kind < 0.8), config.mask_id, ids)
    return np.where(chosen & (kind >= 0.8) & (kind < 0.9), drawn, inputs), np.where(chosen, ids, NOT_COUNTED)


@wrong("13.2", "one lot for the whole text: all chosen tokens are masked, or all random, or all left alone")
def mask_tokens(token_ids, config, generator, continues_word=None):
    ids = check_token_ids(token_ids, config.vocab_size)
    allowed = ~np.isin(ids, config.special_ids)
    continues = None if continues_word is None else continues_word[ids]
    chosen = choose_tokens(allowed, config.rate, generator, continues, config.longest_ngram)
    kind = generator.random()
    drawn = random_tokens(len(ids), config, generator)
    inputs = np.where(chosen & (kind < config.mask_share), config.mask_id, ids)
    randomly = config.mask_share <= kind < config.mask_share + config.random_share
    return np.where(chosen & randomly, drawn, inputs), np.where(chosen, ids, NOT_COUNTED)


@wrong("13.2", "a second lot decides about the random tokens: they get their share of what is not masked")
def mask_tokens(token_ids, config, generator, continues_word=None):
    ids = check_token_ids(token_ids, config.vocab_size)
    allowed = ~np.isin(ids, config.special_ids)
    continues = None if continues_word is None else continues_word[ids]
    chosen = choose_tokens(allowed, config.rate, generator, continues, config.longest_ngram)
    hidden = generator.random(len(ids)) < config.mask_share
    randomly = generator.random(len(ids)) < config.random_share
    drawn = random_tokens(len(ids), config, generator)
    inputs = np.where(chosen & randomly, drawn, ids)
    return np.where(chosen & hidden, config.mask_id, inputs), np.where(chosen, ids, NOT_COUNTED)


@wrong("13.2", "asks for the masked tokens only, not for the random and the unchanged ones")
def mask_tokens(token_ids, config, generator, continues_word=None):
    ids = check_token_ids(token_ids, config.vocab_size)
    allowed = ~np.isin(ids, config.special_ids)
    continues = None if continues_word is None else continues_word[ids]
    chosen = choose_tokens(allowed, config.rate, generator, continues, config.longest_ngram)
    kind = generator.random(len(ids))
    drawn = random_tokens(len(ids), config, generator)
    inputs = np.where(chosen & (kind < config.mask_share), config.mask_id, ids)
    randomly = (kind >= config.mask_share) & (kind < config.mask_share + config.random_share)
    return np.where(chosen & randomly, drawn, inputs), np.where(inputs == config.mask_id, ids, NOT_COUNTED)


@wrong("13.2", "random tokens may be special ones")
def mask_tokens(token_ids, config, generator, continues_word=None):
    ids = check_token_ids(token_ids, config.vocab_size)
    allowed = ~np.isin(ids, config.special_ids)
    continues = None if continues_word is None else continues_word[ids]
    chosen = choose_tokens(allowed, config.rate, generator, continues, config.longest_ngram)
    kind = generator.random(len(ids))
    drawn = generator.integers(config.vocab_size, size=len(ids))
    inputs = np.where(chosen & (kind < config.mask_share), config.mask_id, ids)
    randomly = (kind >= config.mask_share) & (kind < config.mask_share + config.random_share)
    return np.where(chosen & randomly, drawn, inputs), np.where(chosen, ids, NOT_COUNTED)


@wrong("13.2", "one random token for the whole text")
def mask_tokens(token_ids, config, generator, continues_word=None):
    ids = check_token_ids(token_ids, config.vocab_size)
    allowed = ~np.isin(ids, config.special_ids)
    continues = None if continues_word is None else continues_word[ids]
    chosen = choose_tokens(allowed, config.rate, generator, continues, config.longest_ngram)
    kind = generator.random(len(ids))
    drawn = random_tokens(1, config, generator)
    inputs = np.where(chosen & (kind < config.mask_share), config.mask_id, ids)
    randomly = (kind >= config.mask_share) & (kind < config.mask_share + config.random_share)
    return np.where(chosen & randomly, drawn, inputs), np.where(chosen, ids, NOT_COUNTED)


@wrong("13.2", "special tokens are hidden too")
def mask_tokens(token_ids, config, generator, continues_word=None):
    ids = check_token_ids(token_ids, config.vocab_size)
    continues = None if continues_word is None else continues_word[ids]
    chosen = choose_tokens(np.ones(len(ids), bool), config.rate, generator, continues, config.longest_ngram)
    kind = generator.random(len(ids))
    drawn = random_tokens(len(ids), config, generator)
    inputs = np.where(chosen & (kind < config.mask_share), config.mask_id, ids)
    randomly = (kind >= config.mask_share) & (kind < config.mask_share + config.random_share)
    return np.where(chosen & randomly, drawn, inputs), np.where(chosen, ids, NOT_COUNTED)


@wrong("13.2", "every token is a target, so that most of the loss is copying")
def mask_tokens(token_ids, config, generator, continues_word=None):
    ids = check_token_ids(token_ids, config.vocab_size)
    allowed = ~np.isin(ids, config.special_ids)
    continues = None if continues_word is None else continues_word[ids]
    chosen = choose_tokens(allowed, config.rate, generator, continues, config.longest_ngram)
    kind = generator.random(len(ids))
    drawn = random_tokens(len(ids), config, generator)
    inputs = np.where(chosen & (kind < config.mask_share), config.mask_id, ids)
    randomly = (kind >= config.mask_share) & (kind < config.mask_share + config.random_share)
    return np.where(chosen & randomly, drawn, inputs), ids


@wrong("13.2", "words are forgotten")
def mask_tokens(token_ids, config, generator, continues_word=None):
    ids = check_token_ids(token_ids, config.vocab_size)
    allowed = ~np.isin(ids, config.special_ids)
    chosen = choose_tokens(allowed, config.rate, generator, None, config.longest_ngram)
    kind = generator.random(len(ids))
    drawn = random_tokens(len(ids), config, generator)
    inputs = np.where(chosen & (kind < config.mask_share), config.mask_id, ids)
    randomly = (kind >= config.mask_share) & (kind < config.mask_share + config.random_share)
    return np.where(chosen & randomly, drawn, inputs), np.where(chosen, ids, NOT_COUNTED)


@wrong("13.2", "writes into the ids it was given, so that the targets are the masks")
def mask_tokens(token_ids, config, generator, continues_word=None):
    ids = check_token_ids(token_ids, config.vocab_size)
    allowed = ~np.isin(ids, config.special_ids)
    continues = None if continues_word is None else continues_word[ids]
    chosen = choose_tokens(allowed, config.rate, generator, continues, config.longest_ngram)
    kind = generator.random(len(ids))
    drawn = random_tokens(len(ids), config, generator)
    randomly = (kind >= config.mask_share) & (kind < config.mask_share + config.random_share)
    ids[chosen & (kind < config.mask_share)] = config.mask_id
    ids[chosen & randomly] = drawn[chosen & randomly]
    return ids, np.where(chosen, ids, NOT_COUNTED)


@wrong("13.3", "the mean, which weighs a text with one hidden token like one with twenty")
def hidden_token_loss(model, hidden, targets):
    asked = targets != IGNORED
    return kernel_cross_entropy(model.logits(hidden[asked]), targets[asked], reduction="mean")


@wrong("13.3", "every place counts, the ones without a target as token 0")
def hidden_token_loss(model, hidden, targets):
    logits = model.logits(hidden)
    return kernel_cross_entropy(logits, targets.clamp(min=0), reduction="sum")


@wrong("13.3", "the token behind the hidden one, as in a decoder")
def hidden_token_loss(model, hidden, targets):
    moved = targets.roll(-1, dims=1)
    asked = moved != IGNORED
    return kernel_cross_entropy(model.logits(hidden[asked]), moved[asked], reduction="sum")


@wrong("13.3", "targets of id 0 are taken for none")
def hidden_token_loss(model, hidden, targets):
    asked = targets > 0
    return kernel_cross_entropy(model.logits(hidden[asked]), targets[asked], reduction="sum")


@wrong("13.3", "the vectors are cut off from the encoder: only the head learns")
def hidden_token_loss(model, hidden, targets):
    asked = targets != IGNORED
    return kernel_cross_entropy(model.logits(hidden.detach()[asked] + 0 * hidden[asked]), targets[asked], reduction="sum")


@wrong("13.4", "false sentences may come from the document itself, and be true by chance")
def next_sentence_pairs(documents, generator):
    if len(documents) < 2 or not all(len(document) for document in documents):
        raise DataError("too few documents")
    pairs = []
    for document in documents:
        for first, second in zip(document[:-1], document[1:], strict=True):
            false = int(generator.integers(2))
            if false:
                other = documents[generator.integers(len(documents))]
                second = other[generator.integers(len(other))]
            pairs.append(SentencePair(tuple(first), tuple(second), false))
    return pairs


@wrong("13.4", "label 1 means that B follows A")
def next_sentence_pairs(documents, generator):
    if len(documents) < 2 or not all(len(document) for document in documents):
        raise DataError("too few documents")
    pairs = []
    for number, document in enumerate(documents):
        for first, second in zip(document[:-1], document[1:], strict=True):
            false = int(generator.integers(2))
            if false:
                other = documents[(number + 1 + generator.integers(len(documents) - 1)) % len(documents)]
                second = other[generator.integers(len(other))]
            pairs.append(SentencePair(tuple(first), tuple(second), 1 - false))
    return pairs


@wrong("13.4", "a sentence of all other documents together: long documents come more often")
def next_sentence_pairs(documents, generator):
    if len(documents) < 2 or not all(len(document) for document in documents):
        raise DataError("too few documents")
    pairs = []
    for number, document in enumerate(documents):
        others = [sentence for place, other in enumerate(documents) if place != number for sentence in other]
        for first, second in zip(document[:-1], document[1:], strict=True):
            false = int(generator.integers(2))
            if false:
                second = others[generator.integers(len(others))]
            pairs.append(SentencePair(tuple(first), tuple(second), false))
    return pairs


@wrong("13.4", "always the first sentence of the other document")
def next_sentence_pairs(documents, generator):
    if len(documents) < 2 or not all(len(document) for document in documents):
        raise DataError("too few documents")
    pairs = []
    for number, document in enumerate(documents):
        for first, second in zip(document[:-1], document[1:], strict=True):
            false = int(generator.integers(2))
            if false:
                second = documents[(number + 1 + generator.integers(len(documents) - 1)) % len(documents)][0]
            pairs.append(SentencePair(tuple(first), tuple(second), false))
    return pairs


@wrong("13.4", "true and false in turn")
def next_sentence_pairs(documents, generator):
    if len(documents) < 2 or not all(len(document) for document in documents):
        raise DataError("too few documents")
    pairs = []
    for number, document in enumerate(documents):
        for first, second in zip(document[:-1], document[1:], strict=True):
            false = len(pairs) % 2
            if false:
                other = documents[(number + 1 + generator.integers(len(documents) - 1)) % len(documents)]
                second = other[generator.integers(len(other))]
            pairs.append(SentencePair(tuple(first), tuple(second), false))
    return pairs


@wrong("13.4", "both a true and a false pair for each two neighbours")
def next_sentence_pairs(documents, generator):
    if len(documents) < 2 or not all(len(document) for document in documents):
        raise DataError("too few documents")
    pairs = []
    for number, document in enumerate(documents):
        for first, second in zip(document[:-1], document[1:], strict=True):
            other = documents[(number + 1 + generator.integers(len(documents) - 1)) % len(documents)]
            pairs.append(SentencePair(tuple(first), tuple(second), 0))
            pairs.append(SentencePair(tuple(first), tuple(other[generator.integers(len(other))]), 1))
    return pairs


@wrong("13.4", "always the document that comes next")
def next_sentence_pairs(documents, generator):
    if len(documents) < 2 or not all(len(document) for document in documents):
        raise DataError("too few documents")
    pairs = []
    for number, document in enumerate(documents):
        for first, second in zip(document[:-1], document[1:], strict=True):
            false = int(generator.integers(2))
            if false:
                other = documents[(number + 1) % len(documents)]
                second = other[generator.integers(len(other))]
            pairs.append(SentencePair(tuple(first), tuple(second), false))
    return pairs


@wrong("13.4", "the first segment is exchanged, not the second")
def next_sentence_pairs(documents, generator):
    if len(documents) < 2 or not all(len(document) for document in documents):
        raise DataError("too few documents")
    pairs = []
    for number, document in enumerate(documents):
        for first, second in zip(document[:-1], document[1:], strict=True):
            false = int(generator.integers(2))
            if false:
                other = documents[(number + 1 + generator.integers(len(documents) - 1)) % len(documents)]
                first = other[generator.integers(len(other))]
            pairs.append(SentencePair(tuple(first), tuple(second), false))
    return pairs


@wrong("13.5", "shared layers are counted as often as they are applied")
def encoder_parameters_by_part(config):
    width, narrow, hidden = config.d_model, config.d_embedding, config.d_ff
    n_vectors = config.vocab_size + config.position_offset + config.max_seq_len + config.n_segments
    widening = 0 if narrow == width else narrow * width + width
    layer = 4 * (width * width + width) + width * hidden + hidden + hidden * width + width + 4 * width
    return {
        "embeddings": n_vectors * narrow + 2 * narrow + widening,
        "layers": config.n_layers * layer,
        "token head": width * narrow + narrow + 2 * narrow + config.vocab_size,
        "pair head": width * width + width + 2 * width + 2 if config.pair_head else 0,
    }


@wrong("13.5", "the token vectors are counted in the head once more")
def encoder_parameters_by_part(config):
    width, narrow, hidden = config.d_model, config.d_embedding, config.d_ff
    n_vectors = config.vocab_size + config.position_offset + config.max_seq_len + config.n_segments
    widening = 0 if narrow == width else narrow * width + width
    layer = 4 * (width * width + width) + width * hidden + hidden + hidden * width + width + 4 * width
    return {
        "embeddings": n_vectors * narrow + 2 * narrow + widening,
        "layers": (1 if config.share_layers else config.n_layers) * layer,
        "token head": width * narrow + narrow + 2 * narrow + config.vocab_size * (narrow + 1),
        "pair head": width * width + width + 2 * width + 2 if config.pair_head else 0,
    }


@wrong("13.5", "the embeddings have the model's width, factorised or not")
def encoder_parameters_by_part(config):
    width, hidden = config.d_model, config.d_ff
    n_vectors = config.vocab_size + config.position_offset + config.max_seq_len + config.n_segments
    layer = 4 * (width * width + width) + width * hidden + hidden + hidden * width + width + 4 * width
    return {
        "embeddings": n_vectors * width + 2 * width,
        "layers": (1 if config.share_layers else config.n_layers) * layer,
        "token head": width * width + width + 2 * width + config.vocab_size,
        "pair head": width * width + width + 2 * width + 2 if config.pair_head else 0,
    }


@wrong("13.5", "only the token vectors are narrow")
def encoder_parameters_by_part(config):
    width, narrow, hidden = config.d_model, config.d_embedding, config.d_ff
    n_others = config.position_offset + config.max_seq_len + config.n_segments
    widening = 0 if narrow == width else narrow * width + width
    layer = 4 * (width * width + width) + width * hidden + hidden + hidden * width + width + 4 * width
    return {
        "embeddings": config.vocab_size * narrow + n_others * width + 2 * width + widening,
        "layers": (1 if config.share_layers else config.n_layers) * layer,
        "token head": width * narrow + narrow + 2 * narrow + config.vocab_size,
        "pair head": width * width + width + 2 * width + 2 if config.pair_head else 0,
    }


@wrong("13.5", "the map from the narrow vectors to the width is forgotten")
def encoder_parameters_by_part(config):
    width, narrow, hidden = config.d_model, config.d_embedding, config.d_ff
    n_vectors = config.vocab_size + config.position_offset + config.max_seq_len + config.n_segments
    layer = 4 * (width * width + width) + width * hidden + hidden + hidden * width + width + 4 * width
    return {
        "embeddings": n_vectors * narrow + 2 * narrow,
        "layers": (1 if config.share_layers else config.n_layers) * layer,
        "token head": width * narrow + narrow + 2 * narrow + config.vocab_size,
        "pair head": width * width + width + 2 * width + 2 if config.pair_head else 0,
    }


@wrong("13.5", "no biases in the layers")
def encoder_parameters_by_part(config):
    width, narrow, hidden = config.d_model, config.d_embedding, config.d_ff
    n_vectors = config.vocab_size + config.position_offset + config.max_seq_len + config.n_segments
    widening = 0 if narrow == width else narrow * width + width
    layer = 4 * width * width + 2 * width * hidden + 4 * width
    return {
        "embeddings": n_vectors * narrow + 2 * narrow + widening,
        "layers": (1 if config.share_layers else config.n_layers) * layer,
        "token head": width * narrow + narrow + 2 * narrow + config.vocab_size,
        "pair head": width * width + width + 2 * width + 2 if config.pair_head else 0,
    }


@wrong("13.5", "12 C squared, which holds only where F is 4 C")
def encoder_parameters_by_part(config):
    width, narrow = config.d_model, config.d_embedding
    n_vectors = config.vocab_size + config.position_offset + config.max_seq_len + config.n_segments
    widening = 0 if narrow == width else narrow * width + width
    layer = 12 * width * width + 13 * width
    return {
        "embeddings": n_vectors * narrow + 2 * narrow + widening,
        "layers": (1 if config.share_layers else config.n_layers) * layer,
        "token head": width * narrow + narrow + 2 * narrow + config.vocab_size,
        "pair head": width * width + width + 2 * width + 2 if config.pair_head else 0,
    }


@wrong("13.5", "the two unused positions of RoBERTa are left out")
def encoder_parameters_by_part(config):
    width, narrow, hidden = config.d_model, config.d_embedding, config.d_ff
    n_vectors = config.vocab_size + config.max_seq_len + config.n_segments
    widening = 0 if narrow == width else narrow * width + width
    layer = 4 * (width * width + width) + width * hidden + hidden + hidden * width + width + 4 * width
    return {
        "embeddings": n_vectors * narrow + 2 * narrow + widening,
        "layers": (1 if config.share_layers else config.n_layers) * layer,
        "token head": width * narrow + narrow + 2 * narrow + config.vocab_size,
        "pair head": width * width + width + 2 * width + 2 if config.pair_head else 0,
    }


@wrong("13.6", "all masks at once, none in sight of another")
def fill_masks(model, token_ids, mask_id, forbidden_ids=(), surest_first=True):
    if len({mask_id, *forbidden_ids}) >= model.config.vocab_size:
        raise SamplingError("nothing is left to put in")
    probabilities = probabilities_of(model, token_ids) if token_ids.numel() else torch.zeros(*token_ids.shape, mask_id + 1)
    probabilities[..., [mask_id, *forbidden_ids]] = 0.0
    best, choice = probabilities.max(dim=-1)
    masks = token_ids == mask_id
    return torch.where(masks, choice, token_ids), best.masked_fill(~masks, 1.0).log().sum(dim=1).float()


@wrong("13.6", "always from left to right")
def fill_masks(model, token_ids, mask_id, forbidden_ids=(), surest_first=True):
    if len({mask_id, *forbidden_ids}) >= model.config.vocab_size:
        raise SamplingError("nothing is left to put in")
    ids = token_ids.clone()
    total = torch.zeros(len(ids))
    for _ in range(int((ids == mask_id).sum(dim=1).max()) if ids.numel() else 0):
        probabilities = probabilities_of(model, ids)
        probabilities[..., [mask_id, *forbidden_ids]] = 0.0
        best, choice = probabilities.max(dim=-1)
        open_places = ids == mask_id
        place = open_places.int().argmax(dim=1)
        rows = open_places.any(dim=1).nonzero()[:, 0]
        ids[rows, place[rows]] = choice[rows, place[rows]]
        total[rows] += best[rows, place[rows]].log().float()
    return ids, total


@wrong("13.6", "the surest place of all, also one that is no mask: given words are overwritten")
def fill_masks(model, token_ids, mask_id, forbidden_ids=(), surest_first=True):
    if len({mask_id, *forbidden_ids}) >= model.config.vocab_size:
        raise SamplingError("nothing is left to put in")
    ids = token_ids.clone()
    total = torch.zeros(len(ids))
    for _ in range(int((ids == mask_id).sum(dim=1).max()) if ids.numel() else 0):
        probabilities = probabilities_of(model, ids)
        probabilities[..., [mask_id, *forbidden_ids]] = 0.0
        best, choice = probabilities.max(dim=-1)
        open_places = ids == mask_id
        place = best.argmax(dim=1) if surest_first else open_places.int().argmax(dim=1)
        rows = open_places.any(dim=1).nonzero()[:, 0]
        ids[rows, place[rows]] = choice[rows, place[rows]]
        total[rows] += best[rows, place[rows]].log().float()
    return ids, total


@wrong("13.6", "the mask itself may be put in")
def fill_masks(model, token_ids, mask_id, forbidden_ids=(), surest_first=True):
    if len({mask_id, *forbidden_ids}) >= model.config.vocab_size:
        raise SamplingError("nothing is left to put in")
    ids = token_ids.clone()
    total = torch.zeros(len(ids))
    for _ in range(int((ids == mask_id).sum(dim=1).max()) if ids.numel() else 0):
        probabilities = probabilities_of(model, ids)
        probabilities[..., list(forbidden_ids)] = 0.0
        best, choice = probabilities.max(dim=-1)
        open_places = ids == mask_id
        place = best.masked_fill(~open_places, -1.0).argmax(dim=1) if surest_first else open_places.int().argmax(dim=1)
        rows = open_places.any(dim=1).nonzero()[:, 0]
        ids[rows, place[rows]] = choice[rows, place[rows]]
        total[rows] += best[rows, place[rows]].log().float()
    return ids, total


@wrong("13.6", "forbidden ids are only looked at when it is too late: the others do not come up")
def fill_masks(model, token_ids, mask_id, forbidden_ids=(), surest_first=True):
    if len({mask_id, *forbidden_ids}) >= model.config.vocab_size:
        raise SamplingError("nothing is left to put in")
    ids = token_ids.clone()
    total = torch.zeros(len(ids))
    for _ in range(int((ids == mask_id).sum(dim=1).max()) if ids.numel() else 0):
        probabilities = probabilities_of(model, ids)
        best, choice = probabilities.max(dim=-1)
        probabilities[..., [mask_id, *forbidden_ids]] = 0.0
        open_places = ids == mask_id
        place = best.masked_fill(~open_places, -1.0).argmax(dim=1) if surest_first else open_places.int().argmax(dim=1)
        rows = open_places.any(dim=1).nonzero()[:, 0]
        ids[rows, place[rows]] = choice[rows, place[rows]]
        total[rows] += best[rows, place[rows]].log().float()
    return ids, total


@wrong("13.6", "probabilities are made to sum to 1 again after the forbidden ones are out")
def fill_masks(model, token_ids, mask_id, forbidden_ids=(), surest_first=True):
    if len({mask_id, *forbidden_ids}) >= model.config.vocab_size:
        raise SamplingError("nothing is left to put in")
    ids = token_ids.clone()
    total = torch.zeros(len(ids))
    for _ in range(int((ids == mask_id).sum(dim=1).max()) if ids.numel() else 0):
        probabilities = probabilities_of(model, ids)
        probabilities[..., [mask_id, *forbidden_ids]] = 0.0
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
        best, choice = probabilities.max(dim=-1)
        open_places = ids == mask_id
        place = best.masked_fill(~open_places, -1.0).argmax(dim=1) if surest_first else open_places.int().argmax(dim=1)
        rows = open_places.any(dim=1).nonzero()[:, 0]
        ids[rows, place[rows]] = choice[rows, place[rows]]
        total[rows] += best[rows, place[rows]].log().float()
    return ids, total


@wrong("13.6", "fills the tensor it was given")
def fill_masks(model, token_ids, mask_id, forbidden_ids=(), surest_first=True):
    if len({mask_id, *forbidden_ids}) >= model.config.vocab_size:
        raise SamplingError("nothing is left to put in")
    ids = token_ids
    total = torch.zeros(len(ids))
    for _ in range(int((ids == mask_id).sum(dim=1).max()) if ids.numel() else 0):
        probabilities = probabilities_of(model, ids)
        probabilities[..., [mask_id, *forbidden_ids]] = 0.0
        best, choice = probabilities.max(dim=-1)
        open_places = ids == mask_id
        place = best.masked_fill(~open_places, -1.0).argmax(dim=1) if surest_first else open_places.int().argmax(dim=1)
        rows = open_places.any(dim=1).nonzero()[:, 0]
        ids[rows, place[rows]] = choice[rows, place[rows]]
        total[rows] += best[rows, place[rows]].log().float()
    return ids, total


@wrong("13.6", "as many steps as the first row has masks")
def fill_masks(model, token_ids, mask_id, forbidden_ids=(), surest_first=True):
    if len({mask_id, *forbidden_ids}) >= model.config.vocab_size:
        raise SamplingError("nothing is left to put in")
    ids = token_ids.clone()
    total = torch.zeros(len(ids))
    for _ in range(int((ids[0] == mask_id).sum()) if ids.numel() else 0):
        probabilities = probabilities_of(model, ids)
        probabilities[..., [mask_id, *forbidden_ids]] = 0.0
        best, choice = probabilities.max(dim=-1)
        open_places = ids == mask_id
        place = best.masked_fill(~open_places, -1.0).argmax(dim=1) if surest_first else open_places.int().argmax(dim=1)
        rows = open_places.any(dim=1).nonzero()[:, 0]
        ids[rows, place[rows]] = choice[rows, place[rows]]
        total[rows] += best[rows, place[rows]].log().float()
    return ids, total


@wrong("13.6", "rows that are finished are written on")
def fill_masks(model, token_ids, mask_id, forbidden_ids=(), surest_first=True):
    if len({mask_id, *forbidden_ids}) >= model.config.vocab_size:
        raise SamplingError("nothing is left to put in")
    ids = token_ids.clone()
    total = torch.zeros(len(ids))
    rows = torch.arange(len(ids))
    for _ in range(int((ids == mask_id).sum(dim=1).max()) if ids.numel() else 0):
        probabilities = probabilities_of(model, ids)
        probabilities[..., [mask_id, *forbidden_ids]] = 0.0
        best, choice = probabilities.max(dim=-1)
        open_places = ids == mask_id
        place = best.masked_fill(~open_places, -1.0).argmax(dim=1) if surest_first else open_places.int().argmax(dim=1)
        ids[rows, place] = choice[rows, place]
        total += best[rows, place].log().float()
    return ids, total


@wrong("13.6", "dropout stays on in a model that is being trained")
def fill_masks(model, token_ids, mask_id, forbidden_ids=(), surest_first=True):
    if len({mask_id, *forbidden_ids}) >= model.config.vocab_size:
        raise SamplingError("nothing is left to put in")
    ids = token_ids.clone()
    total = torch.zeros(len(ids))
    for _ in range(int((ids == mask_id).sum(dim=1).max()) if ids.numel() else 0):
        probabilities = model(ids).double().softmax(dim=-1)
        probabilities[..., [mask_id, *forbidden_ids]] = 0.0
        best, choice = probabilities.max(dim=-1)
        open_places = ids == mask_id
        place = best.masked_fill(~open_places, -1.0).argmax(dim=1) if surest_first else open_places.int().argmax(dim=1)
        rows = open_places.any(dim=1).nonzero()[:, 0]
        ids[rows, place[rows]] = choice[rows, place[rows]]
        total[rows] += best[rows, place[rows]].log().float()
    return ids, total


@wrong("13.7", "the best first and the best last, whatever their order")
def best_spans(first_scores, last_scores, allowed=None, max_length=0):
    if first_scores.dim() != 2 or first_scores.shape != last_scores.shape:
        raise ShapeError("shapes differ")
    if allowed is not None:
        first_scores = first_scores.masked_fill(~allowed, -torch.inf)
        last_scores = last_scores.masked_fill(~allowed, -torch.inf)
    return torch.stack((first_scores.argmax(dim=1), last_scores.argmax(dim=1)), dim=1)


@wrong("13.7", "the best first, then the best last behind it: greedy")
def best_spans(first_scores, last_scores, allowed=None, max_length=0):
    if first_scores.dim() != 2 or first_scores.shape != last_scores.shape:
        raise ShapeError("shapes differ")
    allowed = torch.ones_like(first_scores, dtype=torch.bool) if allowed is None else allowed
    places = torch.arange(first_scores.shape[1])
    first = first_scores.masked_fill(~allowed, -torch.inf).argmax(dim=1)
    fits = allowed & (places >= first[:, None])
    if max_length:
        fits = fits & (places < first[:, None] + max_length)
    return torch.stack((first, last_scores.masked_fill(~fits, -torch.inf).argmax(dim=1)), dim=1)


@wrong("13.7", "spans of one token are left out")
def best_spans(first_scores, last_scores, allowed=None, max_length=0):
    if first_scores.dim() != 2 or first_scores.shape != last_scores.shape:
        raise ShapeError("shapes differ")
    n_positions = first_scores.shape[1]
    sums = first_scores[:, :, None] + last_scores[:, None, :]
    fits = torch.ones(n_positions, n_positions, dtype=torch.bool).triu(1)
    if max_length:
        fits = fits.tril(max_length - 1)
    if allowed is not None:
        fits = fits & allowed[:, :, None] & allowed[:, None, :]
    best = sums.masked_fill(~fits, -torch.inf).flatten(1).argmax(dim=1)
    return torch.stack((best // n_positions, best % n_positions), dim=1)


@wrong("13.7", "one token too many")
def best_spans(first_scores, last_scores, allowed=None, max_length=0):
    if first_scores.dim() != 2 or first_scores.shape != last_scores.shape:
        raise ShapeError("shapes differ")
    n_positions = first_scores.shape[1]
    sums = first_scores[:, :, None] + last_scores[:, None, :]
    fits = torch.ones(n_positions, n_positions, dtype=torch.bool).triu()
    if max_length:
        fits = fits.tril(max_length)
    if allowed is not None:
        fits = fits & allowed[:, :, None] & allowed[:, None, :]
    best = sums.masked_fill(~fits, -torch.inf).flatten(1).argmax(dim=1)
    return torch.stack((best // n_positions, best % n_positions), dim=1)


@wrong("13.7", "the last token may be one of the question")
def best_spans(first_scores, last_scores, allowed=None, max_length=0):
    if first_scores.dim() != 2 or first_scores.shape != last_scores.shape:
        raise ShapeError("shapes differ")
    n_positions = first_scores.shape[1]
    sums = first_scores[:, :, None] + last_scores[:, None, :]
    fits = torch.ones(n_positions, n_positions, dtype=torch.bool).triu()
    if max_length:
        fits = fits.tril(max_length - 1)
    if allowed is not None:
        fits = fits & allowed[:, :, None]
    best = sums.masked_fill(~fits, -torch.inf).flatten(1).argmax(dim=1)
    return torch.stack((best // n_positions, best % n_positions), dim=1)


@wrong("13.7", "hidden with 0, which is better than a negative score")
def best_spans(first_scores, last_scores, allowed=None, max_length=0):
    if first_scores.dim() != 2 or first_scores.shape != last_scores.shape:
        raise ShapeError("shapes differ")
    n_positions = first_scores.shape[1]
    sums = first_scores[:, :, None] + last_scores[:, None, :]
    fits = torch.ones(n_positions, n_positions, dtype=torch.bool).triu()
    if max_length:
        fits = fits.tril(max_length - 1)
    if allowed is not None:
        fits = fits & allowed[:, :, None] & allowed[:, None, :]
    best = (sums * fits).flatten(1).argmax(dim=1)
    return torch.stack((best // n_positions, best % n_positions), dim=1)


@wrong("13.7", "first and last change places when the flat index is taken apart")
def best_spans(first_scores, last_scores, allowed=None, max_length=0):
    if first_scores.dim() != 2 or first_scores.shape != last_scores.shape:
        raise ShapeError("shapes differ")
    n_positions = first_scores.shape[1]
    sums = first_scores[:, :, None] + last_scores[:, None, :]
    fits = torch.ones(n_positions, n_positions, dtype=torch.bool).triu()
    if max_length:
        fits = fits.tril(max_length - 1)
    if allowed is not None:
        fits = fits & allowed[:, :, None] & allowed[:, None, :]
    best = sums.masked_fill(~fits, -torch.inf).flatten(1).argmax(dim=1)
    return torch.stack((best % n_positions, best // n_positions), dim=1)


@wrong("13.7", "the end is one behind the last token, as in a slice")
def best_spans(first_scores, last_scores, allowed=None, max_length=0):
    if first_scores.dim() != 2 or first_scores.shape != last_scores.shape:
        raise ShapeError("shapes differ")
    n_positions = first_scores.shape[1]
    sums = first_scores[:, :, None] + last_scores[:, None, :]
    fits = torch.ones(n_positions, n_positions, dtype=torch.bool).triu()
    if max_length:
        fits = fits.tril(max_length - 1)
    if allowed is not None:
        fits = fits & allowed[:, :, None] & allowed[:, None, :]
    best = sums.masked_fill(~fits, -torch.inf).flatten(1).argmax(dim=1)
    return torch.stack((best // n_positions, best % n_positions + 1), dim=1)
