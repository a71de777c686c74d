"""Wrong answers of chapter 08: each must lose the points of exactly the task it names. Parsed, never run."""

from minillm.course.wrong_answers import wrong


@wrong("8.1", "the mask multiplies the weights after the softmax: the rest no longer sums to 1")
def attention_weights(query, key, mask=None):
    weights = functional.softmax(query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]))
    return weights if mask is None else weights * mask


@wrong("8.1", "masked after the softmax and then made to sum to 1, which divides by zero where nothing is seen")
def attention_weights(query, key, mask=None):
    weights = functional.softmax(query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]))
    if mask is not None:
        weights = weights * mask
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights


@wrong("8.1", "not divided by the root of the head width")
def attention_weights(query, key, mask=None):
    scores = query @ key.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return functional.softmax(scores)


@wrong("8.1", "divided by the head width instead of its root")
def attention_weights(query, key, mask=None):
    scores = query @ key.transpose(-2, -1) / query.shape[-1]
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return functional.softmax(scores)


@wrong("8.1", "divided by the root of the number of keys")
def attention_weights(query, key, mask=None):
    scores = query @ key.transpose(-2, -1) / math.sqrt(max(1, key.shape[-2]))
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return functional.softmax(scores)


@wrong("8.1", "hides where the mask is True")
def attention_weights(query, key, mask=None):
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(mask, -math.inf)
    return functional.softmax(scores)


@wrong("8.1", "hides with -1e9, which is not low beside scores of 1e12 and gives shares to a row that sees nothing")
def attention_weights(query, key, mask=None):
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e9)
    return functional.softmax(scores)


@wrong("8.1", "torch's own softmax makes NaN of a row that sees nothing")
def attention_weights(query, key, mask=None):
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(dim=-1)


@wrong("8.1", "softmax over the queries")
def attention_weights(query, key, mask=None):
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return functional.softmax(scores.transpose(-2, -1)).transpose(-2, -1)


@wrong("8.1", "the mask is forgotten")
def attention_weights(query, key, mask=None):
    return functional.softmax(query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]))


@wrong("8.1", "crashes without a mask")
def attention_weights(query, key, mask=None):
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    return functional.softmax(scores.masked_fill(~mask, -math.inf))


@wrong("8.1", "exp without subtracting the largest score overflows")
def attention_weights(query, key, mask=None):
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    shares = scores.exp()
    total = shares.sum(dim=-1, keepdim=True)
    return shares / total.masked_fill(total == 0, 1.0)


@wrong("8.1", "computed in float32 whatever came in")
def attention_weights(query, key, mask=None):
    scores = query.float() @ key.float().transpose(-2, -1) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return functional.softmax(scores).to(query.dtype)


@wrong("8.1", "scales the query in place and so changes its input")
def attention_weights(query, key, mask=None):
    with torch.no_grad():
        query.div_(math.sqrt(query.shape[-1]))
    scores = query @ key.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return functional.softmax(scores)


@wrong("8.1", "transposes all dimensions of the keys, which is the same for two of them only")
def attention_weights(query, key, mask=None):
    scores = query @ key.permute(*range(key.dim() - 1, -1, -1)) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return functional.softmax(scores)


@wrong("8.2", "a lower triangle from the first key on: wrong as soon as there are cached keys")
def causal_mask(n_queries, n_keys, device=None):
    if n_queries > n_keys:
        raise ShapeError("more queries than keys")
    return torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril()


@wrong("8.2", "nobody sees itself")
def causal_mask(n_queries, n_keys, device=None):
    if n_queries > n_keys:
        raise ShapeError("more queries than keys")
    key_position = torch.arange(n_keys, device=device)
    return key_position < key_position[n_keys - n_queries :, None]


@wrong("8.2", "True where attention is hidden")
def causal_mask(n_queries, n_keys, device=None):
    if n_queries > n_keys:
        raise ShapeError("more queries than keys")
    key_position = torch.arange(n_keys, device=device)
    return key_position > key_position[n_keys - n_queries :, None]


@wrong("8.2", "zeros and ones instead of bool: `~` turns 1 into -2")
def causal_mask(n_queries, n_keys, device=None):
    if n_queries > n_keys:
        raise ShapeError("more queries than keys")
    return torch.ones(n_queries, n_keys, device=device).tril(diagonal=n_keys - n_queries)


@wrong("8.2", "keys and queries exchanged")
def causal_mask(n_queries, n_keys, device=None):
    if n_queries > n_keys:
        raise ShapeError("more queries than keys")
    key_position = torch.arange(n_keys, device=device)
    return key_position[:, None] <= key_position[n_keys - n_queries :]


@wrong("8.2", "takes more queries than keys without a word")
def causal_mask(n_queries, n_keys, device=None):
    return torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril(diagonal=n_keys - n_queries)


@wrong("8.2", "the last query's position is n_queries - 1 again, hidden by negative indexing when T = 0")
def causal_mask(n_queries, n_keys, device=None):
    if n_queries > n_keys:
        raise ShapeError("more queries than keys")
    key_position = torch.arange(n_keys, device=device)
    return key_position <= key_position[-n_queries:, None]


@wrong("8.3", "one key too many")
def padding_mask(lengths, n_keys):
    if lengths.dim() != 1 or ((lengths < 0) | (lengths > n_keys)).any():
        raise ShapeError("impossible lengths")
    return (torch.arange(n_keys) <= lengths[:, None])[:, None, None, :]


@wrong("8.3", "True where the padding is")
def padding_mask(lengths, n_keys):
    if lengths.dim() != 1 or ((lengths < 0) | (lengths > n_keys)).any():
        raise ShapeError("impossible lengths")
    return (torch.arange(n_keys) >= lengths[:, None])[:, None, None, :]


@wrong("8.3", "the padding is on the left")
def padding_mask(lengths, n_keys):
    if lengths.dim() != 1 or ((lengths < 0) | (lengths > n_keys)).any():
        raise ShapeError("impossible lengths")
    return (torch.arange(n_keys) >= n_keys - lengths[:, None])[:, None, None, :]


@wrong("8.3", "(B, S) without room for heads and queries")
def padding_mask(lengths, n_keys):
    if lengths.dim() != 1 or ((lengths < 0) | (lengths > n_keys)).any():
        raise ShapeError("impossible lengths")
    return torch.arange(n_keys) < lengths[:, None]


@wrong("8.3", "(B, 1, S, 1): hides queries instead of keys")
def padding_mask(lengths, n_keys):
    if lengths.dim() != 1 or ((lengths < 0) | (lengths > n_keys)).any():
        raise ShapeError("impossible lengths")
    return (torch.arange(n_keys) < lengths[:, None])[:, None, :, None]


@wrong("8.3", "as many keys as the longest sequence has, not as many as were asked for")
def padding_mask(lengths, n_keys):
    if lengths.dim() != 1 or ((lengths < 0) | (lengths > n_keys)).any():
        raise ShapeError("impossible lengths")
    longest = int(lengths.max()) if len(lengths) else n_keys
    return (torch.arange(longest) < lengths[:, None])[:, None, None, :]


@wrong("8.3", "lengths beyond the keys pass")
def padding_mask(lengths, n_keys):
    if lengths.dim() != 1 or (lengths < 0).any():
        raise ShapeError("impossible lengths")
    return (torch.arange(n_keys) < lengths[:, None])[:, None, None, :]


@wrong("8.4", "a reshape alone: right shape, words mixed into heads")
def split_heads(x, n_heads):
    if x.shape[-1] % n_heads:
        raise ShapeError("uneven heads")
    return x.reshape(*x.shape[:-2], n_heads, x.shape[-2], x.shape[-1] // n_heads)


@wrong("8.4", "cut into (D, H): heads take every H-th number")
def split_heads(x, n_heads):
    if x.shape[-1] % n_heads:
        raise ShapeError("uneven heads")
    return x.unflatten(-1, (-1, n_heads)).movedim(-1, -3)


@wrong("8.4", "the heads stay behind the positions")
def split_heads(x, n_heads):
    if x.shape[-1] % n_heads:
        raise ShapeError("uneven heads")
    return x.unflatten(-1, (n_heads, -1))


@wrong("8.4", "counts dimensions from the front: only right for (B, T, C)")
def split_heads(x, n_heads):
    if x.shape[-1] % n_heads:
        raise ShapeError("uneven heads")
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


@wrong("8.4", "takes n_heads for the width of a head")
def split_heads(x, n_heads):
    if x.shape[-1] % n_heads:
        raise ShapeError("uneven heads")
    return x.unflatten(-1, (-1, n_heads)).transpose(-3, -2)


@wrong("8.4", "drops the numbers that are left over instead of refusing")
def split_heads(x, n_heads):
    d_head = x.shape[-1] // n_heads
    return x[..., : n_heads * d_head].unflatten(-1, (n_heads, d_head)).transpose(-3, -2)


@wrong("8.5", "joins without exchanging first")
def merge_heads(x):
    return x.reshape(*x.shape[:-3], x.shape[-2], x.shape[-3] * x.shape[-1])


@wrong("8.5", "exchanges but joins position and head")
def merge_heads(x):
    return x.transpose(-3, -2).flatten(-3, -2)


@wrong("8.5", "the numbers of the heads alternate")
def merge_heads(x):
    return x.movedim(-3, -1).flatten(-2)


@wrong("8.5", "adds the heads up")
def merge_heads(x):
    return x.sum(dim=-3)


@wrong("8.5", "the last head first")
def merge_heads(x):
    return x.flip(-3).transpose(-3, -2).flatten(-2)


@wrong("8.5", "counts dimensions from the front: only right for (B, H, T, D)")
def merge_heads(x):
    return x.transpose(1, 2).flatten(2)


@wrong("8.6", "queries from the source, keys and values from x")
def forward(self, x, source, mask=None):
    sizes = {}
    check_shape("x", x, "B T C", sizes)
    check_shape("source", source, "B S W", sizes)
    key, value = self.key_value(x).chunk(2, dim=-1)
    query = split_heads(self.query(source), self.n_heads)
    key, value = split_heads(key, self.n_kv_heads), split_heads(value, self.n_kv_heads)
    return self.output(merge_heads(mix_heads(query, key, value, mask, kernels=self.kernels)))


@wrong("8.6", "x looks at itself")
def forward(self, x, source, mask=None):
    sizes = {}
    check_shape("x", x, "B T C", sizes)
    check_shape("source", source, "B S W", sizes)
    key, value = self.key_value(x).chunk(2, dim=-1)
    query = split_heads(self.query(x), self.n_heads)
    key, value = split_heads(key, self.n_kv_heads), split_heads(value, self.n_kv_heads)
    return self.output(merge_heads(mix_heads(query, key, value, mask, kernels=self.kernels)))


@wrong("8.6", "keys and values exchanged")
def forward(self, x, source, mask=None):
    sizes = {}
    check_shape("x", x, "B T C", sizes)
    check_shape("source", source, "B S W", sizes)
    value, key = self.key_value(source).chunk(2, dim=-1)
    query = split_heads(self.query(x), self.n_heads)
    key, value = split_heads(key, self.n_kv_heads), split_heads(value, self.n_kv_heads)
    return self.output(merge_heads(mix_heads(query, key, value, mask, kernels=self.kernels)))


@wrong("8.6", "the output map is missing")
def forward(self, x, source, mask=None):
    sizes = {}
    check_shape("x", x, "B T C", sizes)
    check_shape("source", source, "B S W", sizes)
    key, value = self.key_value(source).chunk(2, dim=-1)
    query = split_heads(self.query(x), self.n_heads)
    key, value = split_heads(key, self.n_kv_heads), split_heads(value, self.n_kv_heads)
    return merge_heads(mix_heads(query, key, value, mask, kernels=self.kernels))


@wrong("8.6", "the mask is not passed on")
def forward(self, x, source, mask=None):
    sizes = {}
    check_shape("x", x, "B T C", sizes)
    check_shape("source", source, "B S W", sizes)
    key, value = self.key_value(source).chunk(2, dim=-1)
    query = split_heads(self.query(x), self.n_heads)
    key, value = split_heads(key, self.n_kv_heads), split_heads(value, self.n_kv_heads)
    return self.output(merge_heads(mix_heads(query, key, value, kernels=self.kernels)))


@wrong("8.6", "looks at the past only, as self-attention of a decoder does")
def forward(self, x, source, mask=None):
    sizes = {}
    check_shape("x", x, "B T C", sizes)
    check_shape("source", source, "B S W", sizes)
    key, value = self.key_value(source).chunk(2, dim=-1)
    query = split_heads(self.query(x), self.n_heads)
    key, value = split_heads(key, self.n_kv_heads), split_heads(value, self.n_kv_heads)
    past = torch.ones(x.shape[1], source.shape[1], dtype=torch.bool, device=x.device).tril()
    mask = past if mask is None else past & mask
    return self.output(merge_heads(mix_heads(query, key, value, mask, kernels=self.kernels)))


@wrong("8.6", "keys and values cut out of each head instead of the keys first")
def forward(self, x, source, mask=None):
    sizes = {}
    check_shape("x", x, "B T C", sizes)
    check_shape("source", source, "B S W", sizes)
    key, value = split_heads(self.key_value(source), self.n_kv_heads).chunk(2, dim=-1)
    query = split_heads(self.query(x), self.n_heads)
    return self.output(merge_heads(mix_heads(query, key, value, mask, kernels=self.kernels)))


@wrong("8.6", "one head of the whole width")
def forward(self, x, source, mask=None):
    sizes = {}
    check_shape("x", x, "B T C", sizes)
    check_shape("source", source, "B S W", sizes)
    key, value = self.key_value(source).chunk(2, dim=-1)
    group = self.n_heads // self.n_kv_heads
    key = merge_heads(split_heads(key, self.n_kv_heads).repeat_interleave(group, dim=1))
    value = merge_heads(split_heads(value, self.n_kv_heads).repeat_interleave(group, dim=1))
    mixed = mix_heads(self.query(x)[:, None], key[:, None], value[:, None], mask if mask is None else mask[:, :1])
    return self.output(merge_heads(mixed))


@wrong("8.6", "one source for the whole batch passes by broadcasting")
def forward(self, x, source, mask=None):
    check_shape("x", x, "B T C", {})
    check_shape("source", source, "B S W", {})
    key, value = self.key_value(source).expand(len(x), -1, -1).chunk(2, dim=-1)
    query = split_heads(self.query(x), self.n_heads)
    key, value = split_heads(key, self.n_kv_heads), split_heads(value, self.n_kv_heads)
    return self.output(merge_heads(mix_heads(query, key, value, mask, kernels=self.kernels)))


@wrong("8.7", "the whole is repeated: query heads 0 and G share instead of neighbours")
def share_heads(x, n_heads):
    if x.shape[-3] == 0 or n_heads % x.shape[-3]:
        raise ShapeError("uneven groups")
    return torch.cat([x] * (n_heads // x.shape[-3]), dim=-3)


@wrong("8.7", "repeats the positions")
def share_heads(x, n_heads):
    if x.shape[-3] == 0 or n_heads % x.shape[-3]:
        raise ShapeError("uneven groups")
    return x.repeat_interleave(n_heads // x.shape[-3], dim=-2)


@wrong("8.7", "takes n_heads for the number of repetitions")
def share_heads(x, n_heads):
    if x.shape[-3] == 0 or n_heads % x.shape[-3]:
        raise ShapeError("uneven groups")
    return x.repeat_interleave(n_heads, dim=-3)


@wrong("8.7", "counts dimensions from the front: only right for (B, G, S, D)")
def share_heads(x, n_heads):
    if x.shape[-3] == 0 or n_heads % x.shape[-3]:
        raise ShapeError("uneven groups")
    return x.repeat_interleave(n_heads // x.shape[1], dim=1)


@wrong("8.7", "everybody gets the first head")
def share_heads(x, n_heads):
    if x.shape[-3] == 0 or n_heads % x.shape[-3]:
        raise ShapeError("uneven groups")
    return x.narrow(-3, 0, 1).repeat_interleave(n_heads, dim=-3)


@wrong("8.7", "fills up uneven groups instead of refusing")
def share_heads(x, n_heads):
    heads = torch.arange(n_heads) * x.shape[-3] // n_heads
    return x.index_select(-3, heads) if x.shape[-3] else x.new_zeros(*x.shape[:-3], n_heads, *x.shape[-2:])


@wrong("8.7", "no gradient goes back")
def share_heads(x, n_heads):
    if x.shape[-3] == 0 or n_heads % x.shape[-3]:
        raise ShapeError("uneven groups")
    return x.detach().repeat_interleave(n_heads // x.shape[-3], dim=-3)
