"""Wrong answers of chapter 10: each must lose the points of exactly the task it names. Parsed, never run."""

from minillm.course.wrong_answers import wrong


@wrong("10.1", "the variance divides by C - 1")
def layer_norm(x, weight=None, bias=None, epsilon=1e-5):
    normed = (x - x.mean(dim=-1, keepdim=True)) / torch.sqrt(x.var(dim=-1, keepdim=True) + epsilon)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


@wrong("10.1", "epsilon is added to the root, not under it")
def layer_norm(x, weight=None, bias=None, epsilon=1e-5):
    centred = x - x.mean(dim=-1, keepdim=True)
    normed = centred / (centred.square().mean(dim=-1, keepdim=True).sqrt() + epsilon)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


@wrong("10.1", "the mean stays: this is RMSNorm")
def layer_norm(x, weight=None, bias=None, epsilon=1e-5):
    normed = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + epsilon)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


@wrong("10.1", "divides by the variance, not by its root")
def layer_norm(x, weight=None, bias=None, epsilon=1e-5):
    centred = x - x.mean(dim=-1, keepdim=True)
    normed = centred / (centred.square().mean(dim=-1, keepdim=True) + epsilon)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


@wrong("10.1", "over all dimensions but the last: batch normalisation")
def layer_norm(x, weight=None, bias=None, epsilon=1e-5):
    dims = tuple(range(x.dim() - 1))
    centred = x - x.mean(dim=dims, keepdim=True)
    normed = centred / torch.sqrt(centred.square().mean(dim=dims, keepdim=True) + epsilon)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


@wrong("10.1", "one mean and one variance for the whole tensor")
def layer_norm(x, weight=None, bias=None, epsilon=1e-5):
    centred = x - x.mean()
    normed = centred / torch.sqrt(centred.square().mean() + epsilon)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


@wrong("10.1", "mean of the squares minus square of the mean: no digits are left far from zero")
def layer_norm(x, weight=None, bias=None, epsilon=1e-5):
    mean = x.mean(dim=-1, keepdim=True)
    variance = x.square().mean(dim=-1, keepdim=True) - mean.square()
    normed = (x - mean) / torch.sqrt(variance + epsilon)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


@wrong("10.1", "the shift is forgotten where there is no scale")
def layer_norm(x, weight=None, bias=None, epsilon=1e-5):
    centred = x - x.mean(dim=-1, keepdim=True)
    normed = centred / torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + epsilon)
    if weight is None:
        return normed
    return normed * weight + (0 if bias is None else bias)


@wrong("10.1", "shifts first and scales then")
def layer_norm(x, weight=None, bias=None, epsilon=1e-5):
    centred = x - x.mean(dim=-1, keepdim=True)
    normed = centred / torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + epsilon)
    normed = normed if bias is None else normed + bias
    return normed if weight is None else normed * weight


@wrong("10.1", "epsilon is the constant of the paper's code, whatever was given")
def layer_norm(x, weight=None, bias=None, epsilon=1e-5):
    centred = x - x.mean(dim=-1, keepdim=True)
    normed = centred / torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + 1e-5)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


@wrong("10.1", "mean and variance are constants for the gradient")
def layer_norm(x, weight=None, bias=None, epsilon=1e-5):
    mean = x.mean(dim=-1, keepdim=True).detach()
    variance = (x - mean).square().mean(dim=-1, keepdim=True).detach()
    normed = (x - mean) / torch.sqrt(variance + epsilon)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


@wrong("10.1", "subtracts the mean in place and so changes its input")
def layer_norm(x, weight=None, bias=None, epsilon=1e-5):
    with torch.no_grad():
        x.sub_(x.mean(dim=-1, keepdim=True))
    centred = x - x.mean(dim=-1, keepdim=True)
    normed = centred / torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + epsilon)
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


@wrong("10.2", "always the order of the paper, whatever the config says")
def add(self, x, part, norm):
    return norm(x + F.dropout(part(x), self.dropout, self.training))


@wrong("10.2", "pre and post exchanged")
def add(self, x, part, norm):
    if not self.norm_first:
        return x + F.dropout(part(norm(x)), self.dropout, self.training)
    return norm(x + F.dropout(part(x), self.dropout, self.training))


@wrong("10.2", "pre: what is added to is the normalised vector, so nothing passes a layer unchanged")
def add(self, x, part, norm):
    if self.norm_first:
        x = norm(x)
        return x + F.dropout(part(x), self.dropout, self.training)
    return norm(x + F.dropout(part(x), self.dropout, self.training))


@wrong("10.2", "post: only what the part gives is normalised")
def add(self, x, part, norm):
    if self.norm_first:
        return x + F.dropout(part(norm(x)), self.dropout, self.training)
    return x + norm(F.dropout(part(x), self.dropout, self.training))


@wrong("10.2", "no residual connection")
def add(self, x, part, norm):
    if self.norm_first:
        return F.dropout(part(norm(x)), self.dropout, self.training)
    return norm(F.dropout(part(x), self.dropout, self.training))


@wrong("10.2", "dropout of the sum drops the stream itself")
def add(self, x, part, norm):
    if self.norm_first:
        return F.dropout(x + part(norm(x)), self.dropout, self.training)
    return norm(F.dropout(x + part(x), self.dropout, self.training))


@wrong("10.2", "dropout before the part instead of behind it")
def add(self, x, part, norm):
    if self.norm_first:
        return x + part(F.dropout(norm(x), self.dropout, self.training))
    return norm(x + part(F.dropout(x, self.dropout, self.training)))


@wrong("10.2", "F.dropout without its third argument drops in evaluation too")
def add(self, x, part, norm):
    if self.norm_first:
        return x + F.dropout(part(norm(x)), self.dropout)
    return norm(x + F.dropout(part(x), self.dropout))


@wrong("10.2", "the dropout is forgotten")
def add(self, x, part, norm):
    return x + part(norm(x)) if self.norm_first else norm(x + part(x))


@wrong("10.2", "the norm is this layer's own first one, not the one that was given")
def add(self, x, part, norm):
    if self.norm_first:
        return x + F.dropout(part(self.attention_norm(x)), self.dropout, self.training)
    return self.attention_norm(x + F.dropout(part(x), self.dropout, self.training))


@wrong("10.2", "adds in place and so changes its input")
def add(self, x, part, norm):
    inner = norm(x) if self.norm_first else x
    written = F.dropout(part(inner), self.dropout, self.training)
    x.data += written
    return x if self.norm_first else norm(x)


@wrong("10.3", "shifted to the left: the decoder reads the answer's next token")
def shift_right(targets, start_id):
    if targets.dim() != 2:
        raise ShapeError("expected (B, T)")
    start = torch.full_like(targets[:, :1], start_id)
    inputs = torch.cat((targets[:, 1:], start), dim=1)
    return inputs.masked_fill(inputs == IGNORED, start_id)


@wrong("10.3", "not shifted: each position reads its own target")
def shift_right(targets, start_id):
    if targets.dim() != 2:
        raise ShapeError("expected (B, T)")
    return targets.masked_fill(targets == IGNORED, start_id)


@wrong("10.3", "rolled round: the first thing read is the last target")
def shift_right(targets, start_id):
    if targets.dim() != 2:
        raise ShapeError("expected (B, T)")
    inputs = targets.roll(1, dims=1)
    return inputs.masked_fill(inputs == IGNORED, start_id)


@wrong("10.3", "-100 stays where no target is wanted: no embedding has such a row")
def shift_right(targets, start_id):
    if targets.dim() != 2:
        raise ShapeError("expected (B, T)")
    start = torch.full_like(targets[:, :1], start_id)
    return torch.cat((start, targets[:, :-1]), dim=1)


@wrong("10.3", "the start is put in front and nothing taken off: one position more than targets")
def shift_right(targets, start_id):
    if targets.dim() != 2:
        raise ShapeError("expected (B, T)")
    start = torch.full_like(targets[:, :1], start_id)
    inputs = torch.cat((start, targets), dim=1)
    return inputs.masked_fill(inputs == IGNORED, start_id)


@wrong("10.3", "fills with 0 instead of the start")
def shift_right(targets, start_id):
    if targets.dim() != 2:
        raise ShapeError("expected (B, T)")
    start = torch.full_like(targets[:, :1], start_id)
    inputs = torch.cat((start, targets[:, :-1]), dim=1)
    return inputs.clamp(min=0)


@wrong("10.3", "shifts rows instead of places")
def shift_right(targets, start_id):
    if targets.dim() != 2:
        raise ShapeError("expected (B, T)")
    start = torch.full_like(targets[:1], start_id)
    inputs = torch.cat((start, targets[:-1]), dim=0)
    return inputs.masked_fill(inputs == IGNORED, start_id)


@wrong("10.3", "writes into the targets, which the loss still needs")
def shift_right(targets, start_id):
    if targets.dim() != 2:
        raise ShapeError("expected (B, T)")
    targets[:, 1:] = targets[:, :-1].clone()
    targets[:, 0] = start_id
    targets[targets == IGNORED] = start_id
    return targets


@wrong("10.3", "a single row passes without a word")
def shift_right(targets, start_id):
    start = torch.full_like(targets[..., :1], start_id)
    inputs = torch.cat((start, targets[..., :-1]), dim=-1)
    return inputs.masked_fill(inputs == IGNORED, start_id)


@wrong("10.4", "not smoothed")
def smoothed_cross_entropy(logits, targets, smoothing, ignore_index=IGNORED):
    counted = targets != ignore_index
    log_shares = logits.log_softmax(dim=-1)
    of_target = log_shares.gather(-1, targets.masked_fill(~counted, 0).unsqueeze(-1)).squeeze(-1)
    return -of_target.masked_fill(~counted, 0.0).sum()


@wrong("10.4", "the smoothing is shared by the V - 1 others only")
def smoothed_cross_entropy(logits, targets, smoothing, ignore_index=IGNORED):
    counted = targets != ignore_index
    log_shares = logits.log_softmax(dim=-1)
    of_target = log_shares.gather(-1, targets.masked_fill(~counted, 0).unsqueeze(-1)).squeeze(-1)
    of_others = (log_shares.sum(dim=-1) - of_target) / max(1, logits.shape[-1] - 1)
    losses = -(1 - smoothing) * of_target - smoothing * of_others
    return losses.masked_fill(~counted, 0.0).sum()


@wrong("10.4", "the sum over all ids instead of their mean")
def smoothed_cross_entropy(logits, targets, smoothing, ignore_index=IGNORED):
    counted = targets != ignore_index
    log_shares = logits.log_softmax(dim=-1)
    of_target = log_shares.gather(-1, targets.masked_fill(~counted, 0).unsqueeze(-1)).squeeze(-1)
    losses = -(1 - smoothing) * of_target - smoothing * log_shares.sum(dim=-1)
    return losses.masked_fill(~counted, 0.0).sum()


@wrong("10.4", "the target keeps its whole share, the smoothing comes on top")
def smoothed_cross_entropy(logits, targets, smoothing, ignore_index=IGNORED):
    counted = targets != ignore_index
    log_shares = logits.log_softmax(dim=-1)
    of_target = log_shares.gather(-1, targets.masked_fill(~counted, 0).unsqueeze(-1)).squeeze(-1)
    losses = -of_target - smoothing * log_shares.mean(dim=-1)
    return losses.masked_fill(~counted, 0.0).sum()


@wrong("10.4", "ignored targets cost their even share")
def smoothed_cross_entropy(logits, targets, smoothing, ignore_index=IGNORED):
    counted = targets != ignore_index
    log_shares = logits.log_softmax(dim=-1)
    of_target = log_shares.gather(-1, targets.masked_fill(~counted, 0).unsqueeze(-1)).squeeze(-1)
    of_target = of_target.masked_fill(~counted, 0.0)
    return (-(1 - smoothing) * of_target - smoothing * log_shares.mean(dim=-1)).sum()


@wrong("10.4", "the mean over the counted targets instead of the sum")
def smoothed_cross_entropy(logits, targets, smoothing, ignore_index=IGNORED):
    counted = targets != ignore_index
    log_shares = logits.log_softmax(dim=-1)
    of_target = log_shares.gather(-1, targets.masked_fill(~counted, 0).unsqueeze(-1)).squeeze(-1)
    losses = -(1 - smoothing) * of_target - smoothing * log_shares.mean(dim=-1)
    return losses.masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1)


@wrong("10.4", "a softmax and then its logarithm: minus infinity as soon as a share is too small")
def smoothed_cross_entropy(logits, targets, smoothing, ignore_index=IGNORED):
    counted = targets != ignore_index
    log_shares = logits.softmax(dim=-1).log()
    of_target = log_shares.gather(-1, targets.masked_fill(~counted, 0).unsqueeze(-1)).squeeze(-1)
    losses = -(1 - smoothing) * of_target - smoothing * log_shares.mean(dim=-1)
    return losses.masked_fill(~counted, 0.0).sum()


@wrong("10.4", "-100 itself, whatever id was to be ignored")
def smoothed_cross_entropy(logits, targets, smoothing, ignore_index=IGNORED):
    counted = targets != IGNORED
    log_shares = logits.log_softmax(dim=-1)
    of_target = log_shares.gather(-1, targets.masked_fill(~counted, 0).unsqueeze(-1)).squeeze(-1)
    losses = -(1 - smoothing) * of_target - smoothing * log_shares.mean(dim=-1)
    return losses.masked_fill(~counted, 0.0).sum()


@wrong("10.4", "in bits instead of nats")
def smoothed_cross_entropy(logits, targets, smoothing, ignore_index=IGNORED):
    counted = targets != ignore_index
    log_shares = logits.log_softmax(dim=-1) / torch.log(torch.tensor(2.0, dtype=logits.dtype))
    of_target = log_shares.gather(-1, targets.masked_fill(~counted, 0).unsqueeze(-1)).squeeze(-1)
    losses = -(1 - smoothing) * of_target - smoothing * log_shares.mean(dim=-1)
    return losses.masked_fill(~counted, 0.0).sum()


@wrong("10.5", "each beam keeps its own best id: no beam can win two places")
def beam_step(totals, log_probabilities, end_id):
    n_beams, vocab_size = log_probabilities.shape[1:]
    extended = totals[:, :, None] + log_probabilities
    best = extended.flatten(1).topk(n_beams).values
    ended = extended[:, :, end_id]
    ended = ended.masked_fill(ended < best[:, -1:], -math.inf)
    going = extended.masked_fill(torch.arange(vocab_size) == end_id, -math.inf)
    kept, ids = going.max(dim=-1)
    kept, beams = kept.sort(dim=-1, descending=True)
    return ended, kept, beams, ids.gather(1, beams)


@wrong("10.5", "the totals so far are forgotten")
def beam_step(totals, log_probabilities, end_id):
    n_beams, vocab_size = log_probabilities.shape[1:]
    extended = log_probabilities
    best = extended.flatten(1).topk(n_beams).values
    ended = extended[:, :, end_id]
    ended = ended.masked_fill(ended < best[:, -1:], -math.inf)
    going = extended.masked_fill(torch.arange(vocab_size) == end_id, -math.inf)
    kept, places = going.flatten(1).topk(n_beams)
    return ended, kept, places // vocab_size, places % vocab_size


@wrong("10.5", "finished sentences take places from beams that go on")
def beam_step(totals, log_probabilities, end_id):
    n_beams, vocab_size = log_probabilities.shape[1:]
    extended = totals[:, :, None] + log_probabilities
    best, places = extended.flatten(1).topk(n_beams)
    ended = extended[:, :, end_id]
    ended = ended.masked_fill(ended < best[:, -1:], -math.inf)
    kept = best.masked_fill(places % vocab_size == end_id, -math.inf)
    return ended, kept, places // vocab_size, places % vocab_size


@wrong("10.5", "every end counts, however bad it is")
def beam_step(totals, log_probabilities, end_id):
    n_beams, vocab_size = log_probabilities.shape[1:]
    extended = totals[:, :, None] + log_probabilities
    ended = extended[:, :, end_id]
    going = extended.masked_fill(torch.arange(vocab_size) == end_id, -math.inf)
    kept, places = going.flatten(1).topk(n_beams)
    return ended, kept, places // vocab_size, places % vocab_size


@wrong("10.5", "an end must beat the best that goes on")
def beam_step(totals, log_probabilities, end_id):
    n_beams, vocab_size = log_probabilities.shape[1:]
    extended = totals[:, :, None] + log_probabilities
    going = extended.masked_fill(torch.arange(vocab_size) == end_id, -math.inf)
    kept, places = going.flatten(1).topk(n_beams)
    ended = extended[:, :, end_id]
    ended = ended.masked_fill(ended < kept[:, :1], -math.inf)
    return ended, kept, places // vocab_size, places % vocab_size


@wrong("10.5", "an end is compared with the K best that go on, not with the K best of all")
def beam_step(totals, log_probabilities, end_id):
    n_beams, vocab_size = log_probabilities.shape[1:]
    extended = totals[:, :, None] + log_probabilities
    going = extended.masked_fill(torch.arange(vocab_size) == end_id, -math.inf)
    kept, places = going.flatten(1).topk(n_beams)
    ended = extended[:, :, end_id]
    ended = ended.masked_fill(ended < kept[:, -1:], -math.inf)
    return ended, kept, places // vocab_size, places % vocab_size


@wrong("10.5", "the sentences of a batch compete with each other")
def beam_step(totals, log_probabilities, end_id):
    n_rows, n_beams, vocab_size = log_probabilities.shape
    extended = totals[:, :, None] + log_probabilities
    best = extended.flatten().topk(n_rows * n_beams).values
    ended = extended[:, :, end_id]
    ended = ended.masked_fill(ended < best[-1], -math.inf)
    going = extended.masked_fill(torch.arange(vocab_size) == end_id, -math.inf)
    kept, places = going.flatten(1).topk(n_beams)
    return ended, kept, places // vocab_size, places % vocab_size


@wrong("10.5", "beam and id exchanged: divides by the number of beams")
def beam_step(totals, log_probabilities, end_id):
    n_beams, vocab_size = log_probabilities.shape[1:]
    extended = totals[:, :, None] + log_probabilities
    best = extended.flatten(1).topk(n_beams).values
    ended = extended[:, :, end_id]
    ended = ended.masked_fill(ended < best[:, -1:], -math.inf)
    going = extended.masked_fill(torch.arange(vocab_size) == end_id, -math.inf)
    kept, places = going.flatten(1).topk(n_beams)
    return ended, kept, places % n_beams, places // n_beams


@wrong("10.5", "an end goes on and is extended again")
def beam_step(totals, log_probabilities, end_id):
    n_beams, vocab_size = log_probabilities.shape[1:]
    extended = totals[:, :, None] + log_probabilities
    kept, places = extended.flatten(1).topk(n_beams)
    ended = extended[:, :, end_id]
    ended = ended.masked_fill(ended < kept[:, -1:], -math.inf)
    return ended, kept, places // vocab_size, places % vocab_size


@wrong("10.5", "forbids with -1e9 what must be impossible: a beam that is not there comes to life")
def beam_step(totals, log_probabilities, end_id):
    n_beams, vocab_size = log_probabilities.shape[1:]
    extended = totals[:, :, None] + log_probabilities
    best = extended.flatten(1).topk(n_beams).values
    ended = extended[:, :, end_id]
    ended = ended.masked_fill(ended < best[:, -1:], -1e9)
    going = extended.masked_fill(torch.arange(vocab_size) == end_id, -1e9)
    kept, places = going.flatten(1).topk(n_beams)
    return ended, kept, places // vocab_size, places % vocab_size


@wrong("10.5", "writes minus infinity into the scores that were given")
def beam_step(totals, log_probabilities, end_id):
    n_beams, vocab_size = log_probabilities.shape[1:]
    extended = log_probabilities.add_(totals[:, :, None])
    best = extended.flatten(1).topk(n_beams).values
    ended = extended[:, :, end_id]
    ended = ended.masked_fill(ended < best[:, -1:], -math.inf)
    extended[:, :, end_id] = -math.inf
    kept, places = extended.flatten(1).topk(n_beams)
    return ended, kept, places // vocab_size, places % vocab_size


@wrong("10.6", "not clipped: every run that a reference has counts as often as it was written")
def matching_runs(words, references, order):
    known = set()
    for reference in references:
        known |= set(runs_of(reference, order))
    return sum(count for run, count in runs_of(words, order).items() if run in known)


@wrong("10.6", "each run counts at most once")
def matching_runs(words, references, order):
    known = set()
    for reference in references:
        known |= set(runs_of(reference, order))
    return len(set(runs_of(words, order)) & known)


@wrong("10.6", "the counts of several references are added up")
def matching_runs(words, references, order):
    together = Counter()
    for reference in references:
        together += runs_of(reference, order)
    return (runs_of(words, order) & together).total()


@wrong("10.6", "only the best single reference counts")
def matching_runs(words, references, order):
    return max((runs_of(words, order) & runs_of(reference, order)).total() for reference in references)


@wrong("10.6", "only the first reference is looked at")
def matching_runs(words, references, order):
    return (runs_of(words, order) & runs_of(references[0], order)).total()


@wrong("10.6", "a run must be in all references")
def matching_runs(words, references, order):
    found = runs_of(words, order)
    for reference in references:
        found &= runs_of(reference, order)
    return found.total()


@wrong("10.6", "single words, whatever the order")
def matching_runs(words, references, order):
    most = Counter()
    for reference in references:
        most |= runs_of(reference, 1)
    return (runs_of(words, 1) & most).total()


@wrong("10.6", "a share instead of a count")
def matching_runs(words, references, order):
    most = Counter()
    for reference in references:
        most |= runs_of(reference, order)
    return (runs_of(words, order) & most).total() / max(1, len(words) - order + 1)


@wrong("10.6", "the references joined to one text: runs across the seams count")
def matching_runs(words, references, order):
    joined = [word for reference in references for word in reference]
    return (runs_of(words, order) & runs_of(joined, order)).total()
