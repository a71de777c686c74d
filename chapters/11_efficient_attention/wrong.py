"""Wrong answers of chapter 11: each must lose the points of exactly the task it names. Parsed, never run."""

from minillm.course.wrong_answers import wrong


@wrong("11.1", "the old sum keeps its old shift")
def running_softmax(scores, value, highest, total, mixed):
    new_highest = torch.maximum(highest, scores.amax(dim=-1, keepdim=True))
    weights = (scores - new_highest).exp2()
    return new_highest, total + weights.sum(dim=-1, keepdim=True), mixed + weights @ value


@wrong("11.1", "the sum is repaired, the mixture is not")
def running_softmax(scores, value, highest, total, mixed):
    new_highest = torch.maximum(highest, scores.amax(dim=-1, keepdim=True))
    weights = (scores - new_highest).exp2()
    kept = (highest - new_highest).exp2()
    return new_highest, total * kept + weights.sum(dim=-1, keepdim=True), mixed + weights @ value


@wrong("11.1", "the factor is upside down: it grows where it must shrink")
def running_softmax(scores, value, highest, total, mixed):
    new_highest = torch.maximum(highest, scores.amax(dim=-1, keepdim=True))
    weights = (scores - new_highest).exp2()
    kept = (new_highest - highest).exp2()
    return new_highest, total * kept + weights.sum(dim=-1, keepdim=True), mixed * kept + weights @ value


@wrong("11.1", "powers of e of scores that are counted in powers of two")
def running_softmax(scores, value, highest, total, mixed):
    new_highest = torch.maximum(highest, scores.amax(dim=-1, keepdim=True))
    weights = (scores - new_highest).exp()
    kept = (highest - new_highest).exp()
    return new_highest, total * kept + weights.sum(dim=-1, keepdim=True), mixed * kept + weights @ value


@wrong("11.1", "each step's own maximum, which forgets a larger one before")
def running_softmax(scores, value, highest, total, mixed):
    new_highest = scores.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    weights = (scores - new_highest).exp2()
    kept = (highest - new_highest).exp2()
    return new_highest, total * kept + weights.sum(dim=-1, keepdim=True), mixed * kept + weights @ value


@wrong("11.1", "one maximum for all queries: the others' powers become zero")
def running_softmax(scores, value, highest, total, mixed):
    new_highest = torch.maximum(highest, scores.amax())
    weights = (scores - new_highest).exp2()
    kept = (highest - new_highest).exp2()
    return new_highest, total * kept + weights.sum(dim=-1, keepdim=True), mixed * kept + weights @ value


@wrong("11.1", "divides at every step, and so divides again and again")
def running_softmax(scores, value, highest, total, mixed):
    new_highest = torch.maximum(highest, scores.amax(dim=-1, keepdim=True))
    weights = (scores - new_highest).exp2()
    kept = (highest - new_highest).exp2()
    total = total * kept + weights.sum(dim=-1, keepdim=True)
    return new_highest, total, (mixed * kept + weights @ value) / total


@wrong("11.1", "the powers of the old maximum, which overflow when scores rise")
def running_softmax(scores, value, highest, total, mixed):
    new_highest = torch.maximum(highest, scores.amax(dim=-1, keepdim=True))
    first = highest == torch.finfo(scores.dtype).min
    shift = torch.where(first, new_highest, highest)
    weights = (scores - shift).exp2() * (shift - new_highest).exp2()
    kept = (highest - new_highest).exp2()
    return new_highest, total * kept + weights.sum(dim=-1, keepdim=True), mixed * kept + weights @ value


@wrong("11.1", "repairs the total in place, which the caller still has")
def running_softmax(scores, value, highest, total, mixed):
    new_highest = torch.maximum(highest, scores.amax(dim=-1, keepdim=True))
    weights = scores.sub_(new_highest).exp2_()
    kept = highest.sub_(new_highest).exp2_()
    total = total.mul_(kept).add_(weights.sum(dim=-1, keepdim=True))
    return new_highest, total, mixed.mul_(kept).baddbmm_(weights, value)


@wrong("11.3", "starts from minus infinity: minus infinity less itself is NaN")
def mix_rows(wanted, keys, values, bias, sight, rows, room):
    highest = wanted.new_full((*wanted.shape[:2], 1), -math.inf)
    total, mixed = torch.zeros_like(highest), torch.zeros_like(wanted)
    for columns in sight.column_blocks(rows):
        scores = product(wanted, keys[:, columns].mT, room)
        sight.adjust(per_head(scores, rows), rows, columns, bias)
        highest, total, mixed = running_softmax(scores, values[:, columns], highest, total, mixed)
    nothing = total == 0.0
    total = total.masked_fill(nothing, 1.0)
    return mixed / total, highest.masked_fill(nothing, 0.0) + total.log2()


@wrong("11.3", "starts from zero: a row of very low scores underflows")
def mix_rows(wanted, keys, values, bias, sight, rows, room):
    highest = wanted.new_zeros((*wanted.shape[:2], 1))
    total, mixed = torch.zeros_like(highest), torch.zeros_like(wanted)
    for columns in sight.column_blocks(rows):
        scores = product(wanted, keys[:, columns].mT, room)
        sight.adjust(per_head(scores, rows), rows, columns, bias)
        highest, total, mixed = running_softmax(scores, values[:, columns], highest, total, mixed)
    nothing = total == 0.0
    total = total.masked_fill(nothing, 1.0)
    return mixed / total, highest.masked_fill(nothing, 0.0) + total.log2()


@wrong("11.3", "nothing is hidden and no bias is added")
def mix_rows(wanted, keys, values, bias, sight, rows, room):
    highest = wanted.new_full((*wanted.shape[:2], 1), torch.finfo(wanted.dtype).min)
    total, mixed = torch.zeros_like(highest), torch.zeros_like(wanted)
    for columns in sight.column_blocks(rows):
        scores = product(wanted, keys[:, columns].mT, room)
        highest, total, mixed = running_softmax(scores, values[:, columns], highest, total, mixed)
    nothing = total == 0.0
    total = total.masked_fill(nothing, 1.0)
    return mixed / total, highest.masked_fill(nothing, 0.0) + total.log2()


@wrong("11.3", "each block of keys is a softmax of its own, and the last one wins")
def mix_rows(wanted, keys, values, bias, sight, rows, room):
    lowest = wanted.new_full((*wanted.shape[:2], 1), torch.finfo(wanted.dtype).min)
    highest, total, mixed = lowest, torch.zeros_like(lowest), torch.zeros_like(wanted)
    for columns in sight.column_blocks(rows):
        scores = product(wanted, keys[:, columns].mT, room)
        sight.adjust(per_head(scores, rows), rows, columns, bias)
        zeros = torch.zeros_like(lowest), torch.zeros_like(wanted)
        highest, total, mixed = running_softmax(scores, values[:, columns], lowest, *zeros)
    nothing = total == 0.0
    total = total.masked_fill(nothing, 1.0)
    return mixed / total, highest.masked_fill(nothing, 0.0) + total.log2()


@wrong("11.3", "queries that see nothing are divided by zero")
def mix_rows(wanted, keys, values, bias, sight, rows, room):
    highest = wanted.new_full((*wanted.shape[:2], 1), torch.finfo(wanted.dtype).min)
    total, mixed = torch.zeros_like(highest), torch.zeros_like(wanted)
    for columns in sight.column_blocks(rows):
        scores = product(wanted, keys[:, columns].mT, room)
        sight.adjust(per_head(scores, rows), rows, columns, bias)
        highest, total, mixed = running_softmax(scores, values[:, columns], highest, total, mixed)
    return mixed / total, highest + total.log2()


@wrong("11.3", "the logarithm of a query that sees nothing is the lowest number, not 0")
def mix_rows(wanted, keys, values, bias, sight, rows, room):
    highest = wanted.new_full((*wanted.shape[:2], 1), torch.finfo(wanted.dtype).min)
    total, mixed = torch.zeros_like(highest), torch.zeros_like(wanted)
    for columns in sight.column_blocks(rows):
        scores = product(wanted, keys[:, columns].mT, room)
        sight.adjust(per_head(scores, rows), rows, columns, bias)
        highest, total, mixed = running_softmax(scores, values[:, columns], highest, total, mixed)
    total = total.masked_fill(total == 0.0, 1.0)
    return mixed / total, highest + total.log2()


@wrong("11.3", "the natural logarithm of the sum beside a maximum in powers of two")
def mix_rows(wanted, keys, values, bias, sight, rows, room):
    highest = wanted.new_full((*wanted.shape[:2], 1), torch.finfo(wanted.dtype).min)
    total, mixed = torch.zeros_like(highest), torch.zeros_like(wanted)
    for columns in sight.column_blocks(rows):
        scores = product(wanted, keys[:, columns].mT, room)
        sight.adjust(per_head(scores, rows), rows, columns, bias)
        highest, total, mixed = running_softmax(scores, values[:, columns], highest, total, mixed)
    nothing = total == 0.0
    total = total.masked_fill(nothing, 1.0)
    return mixed / total, highest.masked_fill(nothing, 0.0) + total.log()


@wrong("11.3", "every block of queries is hidden what the first one may not see")
def mix_rows(wanted, keys, values, bias, sight, rows, room):
    highest = wanted.new_full((*wanted.shape[:2], 1), torch.finfo(wanted.dtype).min)
    total, mixed = torch.zeros_like(highest), torch.zeros_like(wanted)
    for columns in sight.column_blocks(rows):
        scores = product(wanted, keys[:, columns].mT, room)
        sight.adjust(per_head(scores, rows), slice(0, rows.stop - rows.start), columns, bias)
        highest, total, mixed = running_softmax(scores, values[:, columns], highest, total, mixed)
    nothing = total == 0.0
    total = total.masked_fill(nothing, 1.0)
    return mixed / total, highest.masked_fill(nothing, 0.0) + total.log2()


@wrong("11.3", "the values of all keys' beginning instead of those of the block")
def mix_rows(wanted, keys, values, bias, sight, rows, room):
    highest = wanted.new_full((*wanted.shape[:2], 1), torch.finfo(wanted.dtype).min)
    total, mixed = torch.zeros_like(highest), torch.zeros_like(wanted)
    for columns in sight.column_blocks(rows):
        scores = product(wanted, keys[:, columns].mT, room)
        sight.adjust(per_head(scores, rows), rows, columns, bias)
        near = values[:, : columns.stop - columns.start]
        highest, total, mixed = running_softmax(scores, near, highest, total, mixed)
    nothing = total == 0.0
    total = total.masked_fill(nothing, 1.0)
    return mixed / total, highest.masked_fill(nothing, 0.0) + total.log2()


@wrong("11.4", "a softmax over the tile: the weights of a row no longer sum to 1 over all tiles")
def tile_gradients(scores, query, key, value, upstream, log_sums, common, room):
    weights = (scores * math.log(2.0)).softmax(dim=-1).nan_to_num(0.0)
    value_gradient = weights.mT @ upstream
    score_gradient = weights * (upstream @ value.mT - common)
    return score_gradient, score_gradient @ key, score_gradient.mT @ query, value_gradient


@wrong("11.4", "what is common to the row is not taken away")
def tile_gradients(scores, query, key, value, upstream, log_sums, common, room):
    weights = (scores - log_sums).exp2()
    score_gradient = weights * (upstream @ value.mT)
    return score_gradient, score_gradient @ key, score_gradient.mT @ query, weights.mT @ upstream


@wrong("11.4", "the common part is taken from this tile's keys alone")
def tile_gradients(scores, query, key, value, upstream, log_sums, common, room):
    weights = (scores - log_sums).exp2()
    weight_gradient = upstream @ value.mT
    own = (weights * weight_gradient).sum(dim=-1, keepdim=True)
    score_gradient = weights * (weight_gradient - own)
    return score_gradient, score_gradient @ key, score_gradient.mT @ query, weights.mT @ upstream


@wrong("11.4", "the values' gradient is made after the weights were overwritten")
def tile_gradients(scores, query, key, value, upstream, log_sums, common, room):
    weights = scores.sub_(log_sums).exp2_()
    score_gradient = weights.mul_(product(upstream, value.mT, room).sub_(common))
    return score_gradient, score_gradient @ key, score_gradient.mT @ query, weights.mT @ upstream


@wrong("11.4", "keys and queries exchanged in the last two products")
def tile_gradients(scores, query, key, value, upstream, log_sums, common, room):
    weights = (scores - log_sums).exp2()
    score_gradient = weights * (upstream @ value.mT - common)
    return score_gradient, score_gradient.mT @ query, score_gradient @ key, weights.mT @ upstream


@wrong("11.4", "powers of e")
def tile_gradients(scores, query, key, value, upstream, log_sums, common, room):
    weights = (scores - log_sums).exp()
    score_gradient = weights * (upstream @ value.mT - common)
    return score_gradient, score_gradient @ key, score_gradient.mT @ query, weights.mT @ upstream


@wrong("11.4", "gradients by scores over ln 2, which lack a factor ln 2")
def tile_gradients(scores, query, key, value, upstream, log_sums, common, room):
    weights = (scores - log_sums).exp2()
    score_gradient = weights * (upstream @ value.mT - common) * math.log(2.0)
    return score_gradient, score_gradient @ key, score_gradient.mT @ query, weights.mT @ upstream


@wrong("11.4", "the weights times themselves, as if the softmax were a sigmoid")
def tile_gradients(scores, query, key, value, upstream, log_sums, common, room):
    weights = (scores - log_sums).exp2()
    score_gradient = weights * (1 - weights) * (upstream @ value.mT - common)
    return score_gradient, score_gradient @ key, score_gradient.mT @ query, weights.mT @ upstream


@wrong("11.4", "common is subtracted in place from the upstream gradient's side")
def tile_gradients(scores, query, key, value, upstream, log_sums, common, room):
    weights = (scores - log_sums).exp2()
    value_gradient = weights.mT @ upstream
    score_gradient = weights * (upstream.sub_(common) @ value.mT)
    return score_gradient, score_gradient @ key, score_gradient.mT @ query, value_gradient


@wrong("11.2", "forgets that the queries are the last of the keys")
def column_blocks(self, rows):
    end = min(self.n_keys, rows.stop) if self.causal else self.n_keys
    first = max(0, rows.start + 1 - self.window) if self.window else 0
    for start in range(first, end, self.n_columns):
        columns = slice(start, min(start + self.n_columns, end))
        if self.mask is None or bool(cut(self.mask, rows, columns).any()):
            yield columns


@wrong("11.2", "the first query decides where the keys end")
def column_blocks(self, rows):
    past = self.n_keys - self.n_queries
    end = min(self.n_keys, rows.start + 1 + past) if self.causal else self.n_keys
    first = max(0, rows.start + past + 1 - self.window) if self.window else 0
    for start in range(first, end, self.n_columns):
        columns = slice(start, min(start + self.n_columns, end))
        if self.mask is None or bool(cut(self.mask, rows, columns).any()):
            yield columns


@wrong("11.2", "the last query's window decides where the keys begin")
def column_blocks(self, rows):
    past = self.n_keys - self.n_queries
    end = min(self.n_keys, rows.stop + past) if self.causal else self.n_keys
    first = max(0, rows.stop + past - self.window) if self.window else 0
    for start in range(first, end, self.n_columns):
        columns = slice(start, min(start + self.n_columns, end))
        if self.mask is None or bool(cut(self.mask, rows, columns).any()):
            yield columns


@wrong("11.2", "a window one key too long")
def column_blocks(self, rows):
    past = self.n_keys - self.n_queries
    end = min(self.n_keys, rows.stop + past) if self.causal else self.n_keys
    first = max(0, rows.start + past - self.window) if self.window else 0
    for start in range(first, end, self.n_columns):
        columns = slice(start, min(start + self.n_columns, end))
        if self.mask is None or bool(cut(self.mask, rows, columns).any()):
            yield columns


@wrong("11.2", "the last block is as long as the others and reaches beyond the keys")
def column_blocks(self, rows):
    past = self.n_keys - self.n_queries
    end = min(self.n_keys, rows.stop + past) if self.causal else self.n_keys
    first = max(0, rows.start + past + 1 - self.window) if self.window else 0
    for start in range(first, end, self.n_columns):
        columns = slice(start, start + self.n_columns)
        if self.mask is None or bool(cut(self.mask, rows, columns).any()):
            yield columns


@wrong("11.2", "visits every block, hidden or not")
def column_blocks(self, rows):
    past = self.n_keys - self.n_queries
    end = min(self.n_keys, rows.stop + past) if self.causal else self.n_keys
    first = max(0, rows.start + past + 1 - self.window) if self.window else 0
    for start in range(first, end, self.n_columns):
        yield slice(start, min(start + self.n_columns, end))


@wrong("11.2", "leaves out a block unless all of it may be seen")
def column_blocks(self, rows):
    past = self.n_keys - self.n_queries
    end = min(self.n_keys, rows.stop + past) if self.causal else self.n_keys
    first = max(0, rows.start + past + 1 - self.window) if self.window else 0
    for start in range(first, end, self.n_columns):
        columns = slice(start, min(start + self.n_columns, end))
        if self.mask is None or bool(cut(self.mask, rows, columns).all()):
            yield columns


@wrong("11.2", "stops at the first hidden block")
def column_blocks(self, rows):
    past = self.n_keys - self.n_queries
    end = min(self.n_keys, rows.stop + past) if self.causal else self.n_keys
    first = max(0, rows.start + past + 1 - self.window) if self.window else 0
    for start in range(first, end, self.n_columns):
        columns = slice(start, min(start + self.n_columns, end))
        if self.mask is not None and not bool(cut(self.mask, rows, columns).any()):
            return
        yield columns


@wrong("11.2", "blocks begin at multiples of n_columns, also before the window")
def column_blocks(self, rows):
    past = self.n_keys - self.n_queries
    end = min(self.n_keys, rows.stop + past) if self.causal else self.n_keys
    first = max(0, rows.start + past + 1 - self.window) if self.window else 0
    for start in range(first // self.n_columns * self.n_columns, end, self.n_columns):
        columns = slice(start, min(start + self.n_columns, end))
        if self.mask is None or bool(cut(self.mask, rows, columns).any()):
            yield columns


@wrong("11.5", "writes first and reads then: several new positions overwrite what the first of them should see")
def update(self, layer, key, value):
    self.check_new(key, value)
    n_slots, end = self.keys.shape[3], self.length + key.shape[2]
    past = torch.arange(max(0, self.length + 1 - n_slots), self.length) % n_slots
    kept = torch.arange(max(self.length, end - n_slots), end)
    seen = []
    for stored, new in ((self.keys[layer], key), (self.values[layer], value)):
        stored[:, :, kept % n_slots] = new[:, :, kept - self.length].to(stored.dtype)
        seen.append(torch.cat((stored[:, :, past], new), dim=2))
    return seen[0], seen[1]


@wrong("11.5", "gives back the slots as they lie, which is the order of the positions only until the ring is full")
def update(self, layer, key, value):
    self.check_new(key, value)
    n_slots, end = self.keys.shape[3], self.length + key.shape[2]
    past = torch.arange(max(0, self.length + 1 - n_slots), self.length) % n_slots
    kept = torch.arange(max(self.length, end - n_slots), end)
    seen = []
    for stored, new in ((self.keys[layer], key), (self.values[layer], value)):
        seen.append(torch.cat((stored[:, :, past.sort().values], new), dim=2))
        stored[:, :, kept % n_slots] = new[:, :, kept - self.length].to(stored.dtype)
    return seen[0], seen[1]


@wrong("11.5", "keeps the first new positions instead of the last when there are more than slots")
def update(self, layer, key, value):
    self.check_new(key, value)
    n_slots = self.keys.shape[3]
    past = torch.arange(max(0, self.length + 1 - n_slots), self.length) % n_slots
    n_kept = min(n_slots, key.shape[2])
    kept = torch.arange(self.length, self.length + n_kept)
    seen = []
    for stored, new in ((self.keys[layer], key), (self.values[layer], value)):
        seen.append(torch.cat((stored[:, :, past], new), dim=2))
        stored[:, :, kept % n_slots] = new[:, :, :n_kept].to(stored.dtype)
    return seen[0], seen[1]


@wrong("11.5", "one old position too many: the window of the first new query has window + 1 keys")
def update(self, layer, key, value):
    self.check_new(key, value)
    n_slots, end = self.keys.shape[3], self.length + key.shape[2]
    past = torch.arange(max(0, self.length - n_slots), self.length) % n_slots
    kept = torch.arange(max(self.length, end - n_slots), end)
    seen = []
    for stored, new in ((self.keys[layer], key), (self.values[layer], value)):
        seen.append(torch.cat((stored[:, :, past], new), dim=2))
        stored[:, :, kept % n_slots] = new[:, :, kept - self.length].to(stored.dtype)
    return seen[0], seen[1]


@wrong("11.5", "the values are kept as keys")
def update(self, layer, key, value):
    self.check_new(key, value)
    n_slots, end = self.keys.shape[3], self.length + key.shape[2]
    past = torch.arange(max(0, self.length + 1 - n_slots), self.length) % n_slots
    kept = torch.arange(max(self.length, end - n_slots), end)
    seen = []
    for stored, new in ((self.keys[layer], value), (self.values[layer], key)):
        seen.append(torch.cat((stored[:, :, past], new), dim=2))
        stored[:, :, kept % n_slots] = new[:, :, kept - self.length].to(stored.dtype)
    return seen[1], seen[0]


@wrong("11.5", "nothing is checked")
def update(self, layer, key, value):
    n_slots, end = self.keys.shape[3], self.length + key.shape[2]
    past = torch.arange(max(0, self.length + 1 - n_slots), self.length) % n_slots
    kept = torch.arange(max(self.length, end - n_slots), end)
    seen = []
    for stored, new in ((self.keys[layer], key), (self.values[layer], value)):
        seen.append(torch.cat((stored[:, :, past], new), dim=2))
        stored[:, :, kept % n_slots] = new[:, :, kept - self.length].to(stored.dtype)
    return seen[0], seen[1]


@wrong("11.5", "counts the positions itself, once for every layer")
def update(self, layer, key, value):
    self.check_new(key, value)
    n_slots, end = self.keys.shape[3], self.length + key.shape[2]
    past = torch.arange(max(0, self.length + 1 - n_slots), self.length) % n_slots
    kept = torch.arange(max(self.length, end - n_slots), end)
    seen = []
    for stored, new in ((self.keys[layer], key), (self.values[layer], value)):
        seen.append(torch.cat((stored[:, :, past], new), dim=2))
        stored[:, :, kept % n_slots] = new[:, :, kept - self.length].to(stored.dtype)
    self.length = end
    return seen[0], seen[1]


@wrong("11.5", "the full cache: it overruns when the slots are used up")
def update(self, layer, key, value):
    self.check_new(key, value)
    end = self.length + key.shape[2]
    self.keys[layer][:, :, self.length : end] = key
    self.values[layer][:, :, self.length : end] = value
    return self.keys[layer][:, :, :end].clone(), self.values[layer][:, :, :end].clone()


@wrong("11.5", "starts again at slot 0 for each piece")
def update(self, layer, key, value):
    self.check_new(key, value)
    n_slots, end = self.keys.shape[3], self.length + key.shape[2]
    past = torch.arange(max(0, self.length + 1 - n_slots), self.length) % n_slots
    kept = torch.arange(max(self.length, end - n_slots), end)
    seen = []
    for stored, new in ((self.keys[layer], key), (self.values[layer], value)):
        seen.append(torch.cat((stored[:, :, past], new), dim=2))
        stored[:, :, : len(kept)] = new[:, :, kept - self.length].to(stored.dtype)
    return seen[0], seen[1]


@wrong("11.6", "counts all query heads, as if none shared")
def cache_bytes(config, batch_size, seq_len=0, bytes_per_number=2):
    n_positions = seq_len or config.max_seq_len
    n_kept = min(n_positions, config.window) if config.window else n_positions
    return batch_size * n_kept * 2 * config.n_layers * config.d_model * bytes_per_number


@wrong("11.6", "counts the keys and forgets the values")
def cache_bytes(config, batch_size, seq_len=0, bytes_per_number=2):
    n_positions = seq_len or config.max_seq_len
    n_kept = min(n_positions, config.window) if config.window else n_positions
    return batch_size * n_kept * config.n_layers * config.n_kv_heads * config.d_head * bytes_per_number


@wrong("11.6", "one layer only")
def cache_bytes(config, batch_size, seq_len=0, bytes_per_number=2):
    n_positions = seq_len or config.max_seq_len
    n_kept = min(n_positions, config.window) if config.window else n_positions
    return batch_size * n_kept * 2 * config.n_kv_heads * config.d_head * bytes_per_number


@wrong("11.6", "the window is not looked at")
def cache_bytes(config, batch_size, seq_len=0, bytes_per_number=2):
    n_positions = seq_len or config.max_seq_len
    return batch_size * n_positions * 2 * config.n_layers * config.n_kv_heads * config.d_head * bytes_per_number


@wrong("11.6", "a window of 0 keeps nothing instead of everything")
def cache_bytes(config, batch_size, seq_len=0, bytes_per_number=2):
    n_kept = min(seq_len or config.max_seq_len, config.window)
    return batch_size * n_kept * 2 * config.n_layers * config.n_kv_heads * config.d_head * bytes_per_number


@wrong("11.6", "the whole window, also for a text that does not fill it")
def cache_bytes(config, batch_size, seq_len=0, bytes_per_number=2):
    n_kept = config.window or seq_len or config.max_seq_len
    return batch_size * n_kept * 2 * config.n_layers * config.n_kv_heads * config.d_head * bytes_per_number


@wrong("11.6", "always room for the model's longest text")
def cache_bytes(config, batch_size, seq_len=0, bytes_per_number=2):
    n_kept = min(config.max_seq_len, config.window) if config.window else config.max_seq_len
    return batch_size * n_kept * 2 * config.n_layers * config.n_kv_heads * config.d_head * bytes_per_number
