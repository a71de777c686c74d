"""Wrong answers of chapter 12: one function each; its names resolve in the exercise file. Source only, never run."""

from minillm.course.wrong_answers import wrong


@wrong("12.1", "norm after the sum, as in the first Transformer")
def forward(self, x, mask=None, causal=False, rotation=None, cache=None, layer=0):
    x = self.attention_norm(x + self.drop(self.attention(x, mask, causal, rotation, cache, layer)))
    return self.feed_forward_norm(x + self.drop(self.feed_forward(x)))


@wrong("12.1", "the residual stream itself is normalised")
def forward(self, x, mask=None, causal=False, rotation=None, cache=None, layer=0):
    x = self.attention_norm(x)
    x = x + self.drop(self.attention(x, mask, causal, rotation, cache, layer))
    x = self.feed_forward_norm(x)
    return x + self.drop(self.feed_forward(x))


@wrong("12.1", "both parts read the input of the block")
def forward(self, x, mask=None, causal=False, rotation=None, cache=None, layer=0):
    attended = self.drop(self.attention(self.attention_norm(x), mask, causal, rotation, cache, layer))
    return x + attended + self.drop(self.feed_forward(self.feed_forward_norm(x)))


@wrong("12.1", "no residual around the feed-forward layer")
def forward(self, x, mask=None, causal=False, rotation=None, cache=None, layer=0):
    x = x + self.drop(self.attention(self.attention_norm(x), mask, causal, rotation, cache, layer))
    return self.drop(self.feed_forward(self.feed_forward_norm(x)))


@wrong("12.1", "one norm for both parts")
def forward(self, x, mask=None, causal=False, rotation=None, cache=None, layer=0):
    x = x + self.drop(self.attention(self.attention_norm(x), mask, causal, rotation, cache, layer))
    return x + self.drop(self.feed_forward(self.attention_norm(x)))


@wrong("12.1", "the layer's number is not handed on: every block uses layer 0 of the cache")
def forward(self, x, mask=None, causal=False, rotation=None, cache=None, layer=0):
    x = x + self.drop(self.attention(self.attention_norm(x), mask, causal, rotation, cache))
    return x + self.drop(self.feed_forward(self.feed_forward_norm(x)))


@wrong("12.1", "the rotation is forgotten")
def forward(self, x, mask=None, causal=False, rotation=None, cache=None, layer=0):
    x = x + self.drop(self.attention(self.attention_norm(x), mask, causal, cache=cache, layer=layer))
    return x + self.drop(self.feed_forward(self.feed_forward_norm(x)))


@wrong("12.1", "always causal, whatever was asked for")
def forward(self, x, mask=None, causal=False, rotation=None, cache=None, layer=0):
    x = x + self.drop(self.attention(self.attention_norm(x), None, True, rotation, cache, layer))
    return x + self.drop(self.feed_forward(self.feed_forward_norm(x)))


@wrong("12.1", "dropout on the sum, not on what is added")
def forward(self, x, mask=None, causal=False, rotation=None, cache=None, layer=0):
    x = self.drop(x + self.attention(self.attention_norm(x), mask, causal, rotation, cache, layer))
    return self.drop(x + self.feed_forward(self.feed_forward_norm(x)))


@wrong("12.1", "no dropout after the feed-forward layer")
def forward(self, x, mask=None, causal=False, rotation=None, cache=None, layer=0):
    x = x + self.drop(self.attention(self.attention_norm(x), mask, causal, rotation, cache, layer))
    return x + self.feed_forward(self.feed_forward_norm(x))


@wrong("12.1", "the input is changed in place")
def forward(self, x, mask=None, causal=False, rotation=None, cache=None, layer=0):
    attended = self.drop(self.attention(self.attention_norm(x), mask, causal, rotation, cache, layer))
    x.data += attended.data
    return x + self.drop(self.feed_forward(self.feed_forward_norm(x)))


@wrong("12.1", "the residual is cut from the gradient")
def forward(self, x, mask=None, causal=False, rotation=None, cache=None, layer=0):
    x = x.detach() + self.drop(self.attention(self.attention_norm(x), mask, causal, rotation, cache, layer))
    return x + self.drop(self.feed_forward(self.feed_forward_norm(x)))


@wrong("12.2", "no shift: the model may copy its input")
def next_token_targets(token_ids, counted=None, ignore_index=-100):
    targets = token_ids.clone()
    return targets if counted is None else targets.masked_fill(~counted, ignore_index)


@wrong("12.2", "shifted the other way: every target lies in the past")
def next_token_targets(token_ids, counted=None, ignore_index=-100):
    targets = torch.full_like(token_ids, ignore_index)
    targets[..., 1:] = token_ids[..., :-1]
    if counted is not None:
        targets[..., 1:].masked_fill_(~counted[..., :-1], ignore_index)
    return targets


@wrong("12.2", "the mask is not shifted with the ids")
def next_token_targets(token_ids, counted=None, ignore_index=-100):
    targets = torch.full_like(token_ids, ignore_index)
    targets[..., :-1] = token_ids[..., 1:]
    return targets if counted is None else targets.masked_fill(~counted, ignore_index)


@wrong("12.2", "rolled: the last position is to predict the first token")
def next_token_targets(token_ids, counted=None, ignore_index=-100):
    targets = token_ids.roll(-1, dims=-1)
    if counted is not None:
        targets = targets.masked_fill(~counted.roll(-1, dims=-1), ignore_index)
    return targets


@wrong("12.2", "cut instead of filled: one position too few")
def next_token_targets(token_ids, counted=None, ignore_index=-100):
    targets = token_ids[..., 1:].clone()
    return targets if counted is None else targets.masked_fill(~counted[..., 1:], ignore_index)


@wrong("12.2", "-100 written into the code")
def next_token_targets(token_ids, counted=None, ignore_index=-100):
    targets = torch.full_like(token_ids, -100)
    targets[..., :-1] = token_ids[..., 1:]
    if counted is not None:
        targets[..., :-1].masked_fill_(~counted[..., 1:], -100)
    return targets


@wrong("12.2", "the mask is read the wrong way round")
def next_token_targets(token_ids, counted=None, ignore_index=-100):
    targets = torch.full_like(token_ids, ignore_index)
    targets[..., :-1] = token_ids[..., 1:]
    if counted is not None:
        targets[..., :-1].masked_fill_(counted[..., 1:], ignore_index)
    return targets


@wrong("12.2", "the ids are changed in place")
def next_token_targets(token_ids, counted=None, ignore_index=-100):
    token_ids[..., :-1] = token_ids[..., 1:].clone()
    token_ids[..., -1:] = ignore_index
    if counted is not None:
        token_ids[..., :-1].masked_fill_(~counted[..., 1:], ignore_index)
    return token_ids


@wrong("12.2", "a mask of any shape and dtype is accepted")
def next_token_targets(token_ids, counted=None, ignore_index=-100):
    targets = torch.full_like(token_ids, ignore_index)
    targets[..., :-1] = token_ids[..., 1:]
    if counted is not None:
        targets[..., :-1].masked_fill_(~counted.bool()[..., 1:], ignore_index)
    return targets


@wrong("12.3", "as many key and value heads as query heads")
def parameters_by_part(config):
    width, hidden, bias = config.d_model, config.d_ff, config.bias
    n_up = 2 if config.feed_forward in GATED else 1
    attention = 4 * width * width + bias * 4 * width
    feed_forward = (n_up + 1) * width * hidden + bias * (n_up * hidden + width)
    norm = width * (config.norm_weight + (bias and config.norm == "layer"))
    return {
        "token embedding": config.vocab_size * width,
        "position embedding": config.max_seq_len * width if config.position == "learned" else 0,
        "token shift": width if config.token_shift else 0,
        "attention": config.n_layers * attention,
        "feed-forward": config.n_layers * feed_forward,
        "norms": (2 * config.n_layers + 1 + config.embedding_norm) * norm,
        "head": 0 if config.tie_embeddings else config.vocab_size * width,
    }


@wrong("12.3", "the final norm is forgotten")
def parameters_by_part(config):
    width, hidden, bias = config.d_model, config.d_ff, config.bias
    d_qkv = width + 2 * config.n_kv_heads * config.d_head
    n_up = 2 if config.feed_forward in GATED else 1
    attention = width * d_qkv + width * width + bias * (d_qkv + width)
    feed_forward = (n_up + 1) * width * hidden + bias * (n_up * hidden + width)
    norm = width * (config.norm_weight + (bias and config.norm == "layer"))
    return {
        "token embedding": config.vocab_size * width,
        "position embedding": config.max_seq_len * width if config.position == "learned" else 0,
        "token shift": width if config.token_shift else 0,
        "attention": config.n_layers * attention,
        "feed-forward": config.n_layers * feed_forward,
        "norms": (2 * config.n_layers + config.embedding_norm) * norm,
        "head": 0 if config.tie_embeddings else config.vocab_size * width,
    }


@wrong("12.3", "the norm of the embedding is forgotten")
def parameters_by_part(config):
    width, hidden, bias = config.d_model, config.d_ff, config.bias
    d_qkv = width + 2 * config.n_kv_heads * config.d_head
    n_up = 2 if config.feed_forward in GATED else 1
    attention = width * d_qkv + width * width + bias * (d_qkv + width)
    feed_forward = (n_up + 1) * width * hidden + bias * (n_up * hidden + width)
    norm = width * (config.norm_weight + (bias and config.norm == "layer"))
    return {
        "token embedding": config.vocab_size * width,
        "position embedding": config.max_seq_len * width if config.position == "learned" else 0,
        "token shift": width if config.token_shift else 0,
        "attention": config.n_layers * attention,
        "feed-forward": config.n_layers * feed_forward,
        "norms": (2 * config.n_layers + 1) * norm,
        "head": 0 if config.tie_embeddings else config.vocab_size * width,
    }


@wrong("12.3", "an RMS norm with biases has shifts")
def parameters_by_part(config):
    width, hidden, bias = config.d_model, config.d_ff, config.bias
    d_qkv = width + 2 * config.n_kv_heads * config.d_head
    n_up = 2 if config.feed_forward in GATED else 1
    attention = width * d_qkv + width * width + bias * (d_qkv + width)
    feed_forward = (n_up + 1) * width * hidden + bias * (n_up * hidden + width)
    norm = width * (config.norm_weight + bias)
    return {
        "token embedding": config.vocab_size * width,
        "position embedding": config.max_seq_len * width if config.position == "learned" else 0,
        "token shift": width if config.token_shift else 0,
        "attention": config.n_layers * attention,
        "feed-forward": config.n_layers * feed_forward,
        "norms": (2 * config.n_layers + 1 + config.embedding_norm) * norm,
        "head": 0 if config.tie_embeddings else config.vocab_size * width,
    }


@wrong("12.3", "two feed-forward matrices of width 4 C, whatever the config says")
def parameters_by_part(config):
    width, hidden, bias = config.d_model, 4 * config.d_model, config.bias
    d_qkv = width + 2 * config.n_kv_heads * config.d_head
    attention = width * d_qkv + width * width + bias * (d_qkv + width)
    feed_forward = 2 * width * hidden + bias * (hidden + width)
    norm = width * (config.norm_weight + (bias and config.norm == "layer"))
    return {
        "token embedding": config.vocab_size * width,
        "position embedding": config.max_seq_len * width if config.position == "learned" else 0,
        "token shift": width if config.token_shift else 0,
        "attention": config.n_layers * attention,
        "feed-forward": config.n_layers * feed_forward,
        "norms": (2 * config.n_layers + 1 + config.embedding_norm) * norm,
        "head": 0 if config.tie_embeddings else config.vocab_size * width,
    }


@wrong("12.3", "a tied head is counted a second time")
def parameters_by_part(config):
    width, hidden, bias = config.d_model, config.d_ff, config.bias
    d_qkv = width + 2 * config.n_kv_heads * config.d_head
    n_up = 2 if config.feed_forward in GATED else 1
    attention = width * d_qkv + width * width + bias * (d_qkv + width)
    feed_forward = (n_up + 1) * width * hidden + bias * (n_up * hidden + width)
    norm = width * (config.norm_weight + (bias and config.norm == "layer"))
    return {
        "token embedding": config.vocab_size * width,
        "position embedding": config.max_seq_len * width if config.position == "learned" else 0,
        "token shift": width if config.token_shift else 0,
        "attention": config.n_layers * attention,
        "feed-forward": config.n_layers * feed_forward,
        "norms": (2 * config.n_layers + 1 + config.embedding_norm) * norm,
        "head": config.vocab_size * width,
    }


@wrong("12.3", "rotary positions have a table")
def parameters_by_part(config):
    width, hidden, bias = config.d_model, config.d_ff, config.bias
    d_qkv = width + 2 * config.n_kv_heads * config.d_head
    n_up = 2 if config.feed_forward in GATED else 1
    attention = width * d_qkv + width * width + bias * (d_qkv + width)
    feed_forward = (n_up + 1) * width * hidden + bias * (n_up * hidden + width)
    norm = width * (config.norm_weight + (bias and config.norm == "layer"))
    return {
        "token embedding": config.vocab_size * width,
        "position embedding": config.max_seq_len * width,
        "token shift": width if config.token_shift else 0,
        "attention": config.n_layers * attention,
        "feed-forward": config.n_layers * feed_forward,
        "norms": (2 * config.n_layers + 1 + config.embedding_norm) * norm,
        "head": 0 if config.tie_embeddings else config.vocab_size * width,
    }


@wrong("12.3", "biases only where vectors become wider")
def parameters_by_part(config):
    width, hidden, bias = config.d_model, config.d_ff, config.bias
    d_qkv = width + 2 * config.n_kv_heads * config.d_head
    n_up = 2 if config.feed_forward in GATED else 1
    attention = width * d_qkv + width * width + bias * d_qkv
    feed_forward = (n_up + 1) * width * hidden + bias * n_up * hidden
    norm = width * (config.norm_weight + (bias and config.norm == "layer"))
    return {
        "token embedding": config.vocab_size * width,
        "position embedding": config.max_seq_len * width if config.position == "learned" else 0,
        "token shift": width if config.token_shift else 0,
        "attention": config.n_layers * attention,
        "feed-forward": config.n_layers * feed_forward,
        "norms": (2 * config.n_layers + 1 + config.embedding_norm) * norm,
        "head": 0 if config.tie_embeddings else config.vocab_size * width,
    }


@wrong("12.4", "the token that crosses p is dropped")
def keep_top_p(logits, p):
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    dropped = ordered.softmax(dim=-1).cumsum(dim=-1) > p
    dropped[..., :1] = False
    return logits.masked_fill(dropped.scatter(-1, order, dropped), -math.inf)


@wrong("12.4", "a token that begins exactly at p is kept")
def keep_top_p(logits, p):
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(dim=-1)
    dropped = probability.cumsum(dim=-1) - probability > p
    return logits.masked_fill(dropped.scatter(-1, order, dropped), -math.inf)


@wrong("12.4", "decisions stay in sorted order")
def keep_top_p(logits, p):
    probability = logits.sort(dim=-1, descending=True, stable=True).values.softmax(dim=-1)
    return logits.masked_fill(probability.cumsum(dim=-1) - probability >= p, -math.inf)


@wrong("12.4", "sorted from the least likely token up")
def keep_top_p(logits, p):
    ordered, order = logits.sort(dim=-1, stable=True)
    probability = ordered.softmax(dim=-1)
    dropped = probability.cumsum(dim=-1) - probability >= p
    return logits.masked_fill(dropped.scatter(-1, order, dropped), -math.inf)


@wrong("12.4", "p is a bound on each probability")
def keep_top_p(logits, p):
    probability = logits.softmax(dim=-1)
    return logits.masked_fill((probability < p) & (probability < probability.amax(-1, keepdim=True)), -math.inf)


@wrong("12.4", "the kept scores become log-probabilities")
def keep_top_p(logits, p):
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(dim=-1)
    dropped = probability.cumsum(dim=-1) - probability >= p
    gone = dropped.scatter(-1, order, dropped)
    return logits.log_softmax(dim=-1).masked_fill(gone, -math.inf)


@wrong("12.4", "dropped tokens get a score of 0, which is not impossible")
def keep_top_p(logits, p):
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(dim=-1)
    dropped = probability.cumsum(dim=-1) - probability >= p
    return logits.masked_fill(dropped.scatter(-1, order, dropped), 0.0)


@wrong("12.4", "the scores are changed in place")
def keep_top_p(logits, p):
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(dim=-1)
    dropped = probability.cumsum(dim=-1) - probability >= p
    return logits.masked_fill_(dropped.scatter(-1, order, dropped), -math.inf)


@wrong("12.5", "temperature after top-p")
def filter_logits(logits, config, seen=None):
    if config.repetition_penalty != 1.0:
        if seen is None:
            raise SamplingError("pass the tokens seen so far")
        logits = penalize_repetition(logits, seen, config.repetition_penalty)
    if config.top_k:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1.0:
        logits = keep_top_p(logits, config.top_p)
    if config.min_p:
        logits = keep_min_p(logits, config.min_p)
    return logits / config.temperature if config.temperature else logits


@wrong("12.5", "scores are multiplied by the temperature")
def filter_logits(logits, config, seen=None):
    if config.repetition_penalty != 1.0:
        if seen is None:
            raise SamplingError("pass the tokens seen so far")
        logits = penalize_repetition(logits, seen, config.repetition_penalty)
    if config.temperature != 0.0:
        logits = logits * config.temperature
    if config.top_k:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1.0:
        logits = keep_top_p(logits, config.top_p)
    return keep_min_p(logits, config.min_p) if config.min_p else logits


@wrong("12.5", "temperature 0 divides by zero")
def filter_logits(logits, config, seen=None):
    if config.repetition_penalty != 1.0:
        if seen is None:
            raise SamplingError("pass the tokens seen so far")
        logits = penalize_repetition(logits, seen, config.repetition_penalty)
    logits = logits / config.temperature
    if config.top_k:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1.0:
        logits = keep_top_p(logits, config.top_p)
    return keep_min_p(logits, config.min_p) if config.min_p else logits


@wrong("12.5", "top-p before top-k")
def filter_logits(logits, config, seen=None):
    if config.repetition_penalty != 1.0:
        if seen is None:
            raise SamplingError("pass the tokens seen so far")
        logits = penalize_repetition(logits, seen, config.repetition_penalty)
    if config.temperature not in (0.0, 1.0):
        logits = logits / config.temperature
    if config.top_p < 1.0:
        logits = keep_top_p(logits, config.top_p)
    if config.top_k:
        logits = keep_top_k(logits, config.top_k)
    return keep_min_p(logits, config.min_p) if config.min_p else logits


@wrong("12.5", "only one filter at a time")
def filter_logits(logits, config, seen=None):
    if config.repetition_penalty != 1.0:
        if seen is None:
            raise SamplingError("pass the tokens seen so far")
        logits = penalize_repetition(logits, seen, config.repetition_penalty)
    if config.temperature not in (0.0, 1.0):
        logits = logits / config.temperature
    if config.top_k:
        return keep_top_k(logits, config.top_k)
    if config.top_p < 1.0:
        return keep_top_p(logits, config.top_p)
    return keep_min_p(logits, config.min_p) if config.min_p else logits


@wrong("12.5", "the penalty comes last")
def filter_logits(logits, config, seen=None):
    if config.temperature not in (0.0, 1.0):
        logits = logits / config.temperature
    if config.top_k:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1.0:
        logits = keep_top_p(logits, config.top_p)
    if config.min_p:
        logits = keep_min_p(logits, config.min_p)
    if config.repetition_penalty != 1.0:
        if seen is None:
            raise SamplingError("pass the tokens seen so far")
        logits = penalize_repetition(logits, seen, config.repetition_penalty)
    return logits


@wrong("12.5", "min-p is forgotten")
def filter_logits(logits, config, seen=None):
    if config.repetition_penalty != 1.0:
        if seen is None:
            raise SamplingError("pass the tokens seen so far")
        logits = penalize_repetition(logits, seen, config.repetition_penalty)
    if config.temperature not in (0.0, 1.0):
        logits = logits / config.temperature
    if config.top_k:
        logits = keep_top_k(logits, config.top_k)
    return keep_top_p(logits, config.top_p) if config.top_p < 1.0 else logits


@wrong("12.5", "a penalty without the seen tokens is ignored")
def filter_logits(logits, config, seen=None):
    if config.repetition_penalty != 1.0 and seen is not None:
        logits = penalize_repetition(logits, seen, config.repetition_penalty)
    if config.temperature not in (0.0, 1.0):
        logits = logits / config.temperature
    if config.top_k:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1.0:
        logits = keep_top_p(logits, config.top_p)
    return keep_min_p(logits, config.min_p) if config.min_p else logits


@wrong("12.6", "everything goes through the model again, behind what the cache holds")
def logits_after(model, rows, cache=None):
    longest = max(map(len, rows))
    n_padding = [longest - len(row) for row in rows]
    token_ids = torch.tensor([[0] * n + row for n, row in zip(n_padding, rows, strict=True)])
    mask, positions = token_places(n_padding, longest)
    return model.logits(model.hidden(token_ids, cache, mask, positions)[:, -1])


@wrong("12.6", "the cache is never used")
def logits_after(model, rows, cache=None):
    longest = max(map(len, rows))
    n_padding = [longest - len(row) for row in rows]
    token_ids = torch.tensor([[0] * n + row for n, row in zip(n_padding, rows, strict=True)])
    mask, positions = token_places(n_padding, longest)
    return model.logits(model.hidden(token_ids, None, mask, positions)[:, -1])


@wrong("12.6", "the cache is emptied and filled again at each step")
def logits_after(model, rows, cache=None):
    if cache is not None:
        cache.reset()
    longest = max(map(len, rows))
    n_padding = [longest - len(row) for row in rows]
    token_ids = torch.tensor([[0] * n + row for n, row in zip(n_padding, rows, strict=True)])
    mask, positions = token_places(n_padding, longest)
    return model.logits(model.hidden(token_ids, cache, mask, positions)[:, -1])


@wrong("12.6", "no mask: every row sees the padding")
def logits_after(model, rows, cache=None):
    n_past = 0 if cache is None else cache.length
    longest = max(map(len, rows))
    n_padding = [longest - len(row) for row in rows]
    token_ids = torch.tensor([([0] * n + row)[n_past:] for n, row in zip(n_padding, rows, strict=True)])
    _, positions = token_places(n_padding, longest)
    return model.logits(model.hidden(token_ids, cache, None, positions[:, n_past:])[:, -1])


@wrong("12.6", "positions count the padding")
def logits_after(model, rows, cache=None):
    n_past = 0 if cache is None else cache.length
    longest = max(map(len, rows))
    n_padding = [longest - len(row) for row in rows]
    token_ids = torch.tensor([([0] * n + row)[n_past:] for n, row in zip(n_padding, rows, strict=True)])
    mask, _ = token_places(n_padding, longest)
    return model.logits(model.hidden(token_ids, cache, mask)[:, -1])


@wrong("12.6", "padding on the right: the last place is not the last token")
def logits_after(model, rows, cache=None):
    n_past = 0 if cache is None else cache.length
    longest = max(map(len, rows))
    token_ids = torch.tensor([(row + [0] * (longest - len(row)))[n_past:] for row in rows])
    return model.logits(model.hidden(token_ids, cache)[:, -1])


@wrong("12.6", "one new token at most: only the last id of each row is handed on")
def logits_after(model, rows, cache=None):
    n_past = 0 if cache is None else cache.length
    longest = max(map(len, rows))
    n_padding = [longest - len(row) for row in rows]
    if n_past:
        n_past = longest - 1
    token_ids = torch.tensor([([0] * n + row)[n_past:] for n, row in zip(n_padding, rows, strict=True)])
    mask, positions = token_places(n_padding, longest)
    mask = mask[:, : (0 if cache is None else cache.length) + token_ids.shape[1]]
    return model.logits(model.hidden(token_ids, cache, mask, positions[:, n_past:])[:, -1])


@wrong("12.6", "the scores of every place, not of the last")
def logits_after(model, rows, cache=None):
    n_past = 0 if cache is None else cache.length
    longest = max(map(len, rows))
    n_padding = [longest - len(row) for row in rows]
    token_ids = torch.tensor([([0] * n + row)[n_past:] for n, row in zip(n_padding, rows, strict=True)])
    mask, positions = token_places(n_padding, longest)
    return model(token_ids, cache, mask, positions[:, n_past:])


@wrong("12.6", "the rows of the caller are padded in place")
def logits_after(model, rows, cache=None):
    n_past = 0 if cache is None else cache.length
    longest = max(map(len, rows))
    n_padding = [longest - len(row) for row in rows]
    for row, n in zip(rows, n_padding, strict=True):
        row[:0] = [0] * n
    token_ids = torch.tensor([row[n_past:] for row in rows])
    mask, positions = token_places(n_padding, longest)
    return model.logits(model.hidden(token_ids, cache, mask, positions[:, n_past:])[:, -1])
