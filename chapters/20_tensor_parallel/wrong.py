"""Wrong answers of chapter 20: each must lose the points of exactly the task it names. Parsed, never run."""

from minillm.course.wrong_answers import wrong


@wrong("20.1", "no sections: queries and keys end up on other ranks than their heads")
def slice_of(full, split, index, size):
    if split is None:
        return full
    check_sections(full, split, split.sections or (full.shape[split.dim],), size)
    return full.chunk(size, split.dim)[index]


@wrong("20.1", "the sections are dealt out to the ranks instead of being shared")
def slice_of(full, split, index, size):
    if split is None:
        return full
    sections = split.sections or (full.shape[split.dim],)
    check_sections(full, split, sections, size)
    parts = full.split(sections, split.dim)
    return parts[index % len(parts)]


@wrong("20.1", "always along the first dimension")
def slice_of(full, split, index, size):
    if split is None:
        return full
    sections = split.sections or (full.shape[split.dim],)
    check_sections(full, split, sections, size)
    return torch.cat([part.chunk(size, 0)[index] for part in full.split(sections, 0)], 0)


@wrong("20.1", "sections only: a tensor without them is not cut")
def slice_of(full, split, index, size):
    if split is None or not split.sections:
        return full
    check_sections(full, split, split.sections, size)
    return torch.cat([part.chunk(size, split.dim)[index] for part in full.split(split.sections, split.dim)], split.dim)


@wrong("20.1", "counts ranks from the end")
def slice_of(full, split, index, size):
    if split is None:
        return full
    sections = split.sections or (full.shape[split.dim],)
    check_sections(full, split, sections, size)
    shares = [part.chunk(size, split.dim)[size - 1 - index] for part in full.split(sections, split.dim)]
    return torch.cat(shares, split.dim)


@wrong("20.1", "every size-th row instead of a run of rows")
def slice_of(full, split, index, size):
    if split is None:
        return full
    sections = split.sections or (full.shape[split.dim],)
    check_sections(full, split, sections, size)
    return full.transpose(0, split.dim)[index::size].transpose(0, split.dim)


@wrong("20.1", "what does not divide is cut all the same, unequally")
def slice_of(full, split, index, size):
    if split is None:
        return full
    sections = split.sections or (full.shape[split.dim],)
    shares = [part.tensor_split(size, split.dim)[index] for part in full.split(sections, split.dim)]
    return torch.cat(shares, split.dim)


@wrong("20.1", "keeps only this rank's queries")
def slice_of(full, split, index, size):
    if split is None:
        return full
    sections = split.sections or (full.shape[split.dim],)
    check_sections(full, split, sections, size)
    return full.split(sections, split.dim)[0].chunk(size, split.dim)[index]


@wrong("20.1", "fails on what is not cut")
def slice_of(full, split, index, size):
    sections = split.sections or (full.shape[split.dim],)
    check_sections(full, split, sections, size)
    return torch.cat([part.chunk(size, split.dim)[index] for part in full.split(sections, split.dim)], split.dim)


@wrong("20.2", "g's backward: each rank keeps the part of the gradient that it found itself")
@staticmethod
def backward(ctx, gradient):
    return gradient, None


@wrong("20.2", "the mean over the ranks, as for data parallel copies")
@staticmethod
def backward(ctx, gradient):
    return sum_of(gradient, ctx.comm) / ctx.comm.size, None


@wrong("20.2", "adds in place, into a gradient that another branch has, too")
@staticmethod
def backward(ctx, gradient):
    ctx.comm.all_reduce(gradient)
    return gradient, None


@wrong("20.2", "adds twice")
@staticmethod
def backward(ctx, gradient):
    return sum_of(sum_of(gradient, ctx.comm), ctx.comm), None


@wrong("20.2", "adds its own gradient once more")
@staticmethod
def backward(ctx, gradient):
    return gradient + sum_of(gradient, ctx.comm), None


@wrong("20.2", "multiplies by the number of ranks instead of asking them")
@staticmethod
def backward(ctx, gradient):
    return gradient * ctx.comm.size, None


@wrong("20.2", "forgets that forward had two arguments")
@staticmethod
def backward(ctx, gradient):
    return sum_of(gradient, ctx.comm)


@wrong("20.2", "takes the largest gradient instead of the sum")
@staticmethod
def backward(ctx, gradient):
    largest = gradient.clone()
    ctx.comm.all_reduce(largest, "max")
    return largest, None


@wrong("20.2", "cuts the connection: no gradient comes back")
@staticmethod
def backward(ctx, gradient):
    sum_of(gradient, ctx.comm)
    return None, None


@wrong("20.3", "adds up gradients that are the same already: P times too much")
@staticmethod
def backward(ctx, gradient):
    return sum_of(gradient, ctx.comm), None


@wrong("20.3", "divides what was never added")
@staticmethod
def backward(ctx, gradient):
    return gradient / ctx.comm.size, None


@wrong("20.3", "the mean over the ranks: right, but sent for nothing")
@staticmethod
def backward(ctx, gradient):
    return sum_of(gradient, ctx.comm) / ctx.comm.size, None


@wrong("20.3", "only the first rank's term gets a gradient")
@staticmethod
def backward(ctx, gradient):
    return gradient * (ctx.comm.rank == 0), None


@wrong("20.3", "forgets that forward had two arguments")
@staticmethod
def backward(ctx, gradient):
    return gradient


@wrong("20.3", "cuts the connection: no gradient comes back")
@staticmethod
def backward(ctx, gradient):
    return None, None


@wrong("20.3", "changes the gradient in place, which another branch has, too")
@staticmethod
def backward(ctx, gradient):
    return gradient.add_(gradient), None


@wrong("20.3", "multiplies by the number of ranks")
@staticmethod
def backward(ctx, gradient):
    return gradient * ctx.comm.size, None


@wrong("20.4", "the bias before the sum: it counts once for each rank")
def forward(self, x):
    if not self.input_is_parallel:
        x = scatter_to_tensor_model_parallel_region(x, self.comm)
    return leave_products(self.product(x, self.weight, self.bias), self.comm, self.sequence_parallel)


@wrong("20.4", "no sum: each rank goes on with its own terms")
def forward(self, x):
    if not self.input_is_parallel:
        x = scatter_to_tensor_model_parallel_region(x, self.comm)
    return self.product(x, self.weight, self.bias)


@wrong("20.4", "the bias is forgotten")
def forward(self, x):
    if not self.input_is_parallel:
        x = scatter_to_tensor_model_parallel_region(x, self.comm)
    return leave_products(self.product(x, self.weight), self.comm, self.sequence_parallel)


@wrong("20.4", "always sums, and leaves with all positions")
def forward(self, x):
    if not self.input_is_parallel:
        x = scatter_to_tensor_model_parallel_region(x, self.comm)
    y = leave_products(self.product(x, self.weight), self.comm, False)
    return y if self.bias is None else y + self.bias


@wrong("20.4", "cuts inputs that are cut already")
def forward(self, x):
    if self.input_is_parallel:
        x = scatter_to_tensor_model_parallel_region(x, self.comm)
    y = leave_products(self.product(x, self.weight), self.comm, self.sequence_parallel)
    return y if self.bias is None else y + self.bias


@wrong("20.4", "f at the end instead of g")
def forward(self, x):
    if not self.input_is_parallel:
        x = scatter_to_tensor_model_parallel_region(x, self.comm)
    y = copy_to_tensor_model_parallel_region(self.product(x, self.weight), self.comm)
    return y if self.bias is None else y + self.bias


@wrong("20.4", "a share of the bias on each rank: the value is right, its gradient is not")
def forward(self, x):
    if not self.input_is_parallel:
        x = scatter_to_tensor_model_parallel_region(x, self.comm)
    share = None if self.bias is None else self.bias / self.comm.size
    return leave_products(self.product(x, self.weight, share), self.comm, self.sequence_parallel)


@wrong("20.4", "only the first rank adds the bias, behind the sum")
def forward(self, x):
    if not self.input_is_parallel:
        x = scatter_to_tensor_model_parallel_region(x, self.comm)
    y = leave_products(self.product(x, self.weight), self.comm, self.sequence_parallel)
    return y if self.bias is None or self.comm.rank else y + self.bias


@wrong("20.4", "the mean of the terms")
def forward(self, x):
    if not self.input_is_parallel:
        x = scatter_to_tensor_model_parallel_region(x, self.comm)
    y = leave_products(self.product(x, self.weight), self.comm, self.sequence_parallel) / self.comm.size
    return y if self.bias is None else y + self.bias


@wrong("20.5", "each rank takes out its own largest score: sums in different units")
def losses_from_parts(logits, targets, comm):
    local, mine = own_ids(targets, logits.shape[-1], comm)
    largest = logits.amax(dim=-1)
    shifted = logits - largest.unsqueeze(-1)
    target_score = shifted.gather(-1, local.unsqueeze(-1)).squeeze(-1).masked_fill(~mine, 0.0)
    powers = shifted.exp()
    sums = torch.stack((powers.sum(dim=-1), target_score))
    comm.all_reduce(sums)
    return sums[0].log() - sums[1], powers / sums[0].unsqueeze(-1)


@wrong("20.5", "no largest score is taken out: exp overflows")
def losses_from_parts(logits, targets, comm):
    local, mine = own_ids(targets, logits.shape[-1], comm)
    target_score = logits.gather(-1, local.unsqueeze(-1)).squeeze(-1).masked_fill(~mine, 0.0)
    powers = logits.exp()
    sums = torch.stack((powers.sum(dim=-1), target_score))
    comm.all_reduce(sums)
    return sums[0].log() - sums[1], powers / sums[0].unsqueeze(-1)


@wrong("20.5", "ranks that do not have the target add the score of their first id")
def losses_from_parts(logits, targets, comm):
    local, mine = own_ids(targets, logits.shape[-1], comm)
    largest = logits.amax(dim=-1)
    comm.all_reduce(largest, "max")
    shifted = logits - largest.unsqueeze(-1)
    target_score = shifted.gather(-1, local.unsqueeze(-1)).squeeze(-1)
    powers = shifted.exp()
    sums = torch.stack((powers.sum(dim=-1), target_score))
    comm.all_reduce(sums)
    return sums[0].log() - sums[1], powers / sums[0].unsqueeze(-1)


@wrong("20.5", "the target's score is left with its shift")
def losses_from_parts(logits, targets, comm):
    local, mine = own_ids(targets, logits.shape[-1], comm)
    largest = logits.amax(dim=-1)
    comm.all_reduce(largest, "max")
    target_score = logits.gather(-1, local.unsqueeze(-1)).squeeze(-1).masked_fill(~mine, 0.0)
    powers = (logits - largest.unsqueeze(-1)).exp()
    sums = torch.stack((powers.sum(dim=-1), target_score))
    comm.all_reduce(sums)
    return sums[0].log() - sums[1], powers / sums[0].unsqueeze(-1)


@wrong("20.5", "the softmax among this rank's ids only")
def losses_from_parts(logits, targets, comm):
    local, mine = own_ids(targets, logits.shape[-1], comm)
    largest = logits.amax(dim=-1)
    comm.all_reduce(largest, "max")
    shifted = logits - largest.unsqueeze(-1)
    target_score = shifted.gather(-1, local.unsqueeze(-1)).squeeze(-1).masked_fill(~mine, 0.0)
    powers = shifted.exp()
    sums = torch.stack((powers.sum(dim=-1), target_score))
    comm.all_reduce(sums)
    return sums[0].log() - sums[1], powers / powers.sum(dim=-1, keepdim=True)


@wrong("20.5", "the sum of exponentials never leaves the rank")
def losses_from_parts(logits, targets, comm):
    local, mine = own_ids(targets, logits.shape[-1], comm)
    largest = logits.amax(dim=-1)
    comm.all_reduce(largest, "max")
    shifted = logits - largest.unsqueeze(-1)
    target_score = shifted.gather(-1, local.unsqueeze(-1)).squeeze(-1).masked_fill(~mine, 0.0)
    comm.all_reduce(target_score)
    powers = shifted.exp()
    total = powers.sum(dim=-1)
    return total.log() - target_score, powers / total.unsqueeze(-1)


@wrong("20.5", "gathers all scores on all ranks, V numbers for each position instead of 3")
def losses_from_parts(logits, targets, comm):
    parts = logits.new_empty(comm.size, *logits.shape)
    comm.all_gather(parts, logits)
    whole = torch.cat(parts.unbind(0), -1)
    weights = whole.softmax(dim=-1)
    losses = whole.logsumexp(dim=-1) - whole.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return losses, weights.chunk(comm.size, -1)[comm.rank]


@wrong("20.5", "works in the caller's scores")
def losses_from_parts(logits, targets, comm):
    local, mine = own_ids(targets, logits.shape[-1], comm)
    largest = logits.amax(dim=-1)
    comm.all_reduce(largest, "max")
    shifted = logits.sub_(largest.unsqueeze(-1))
    target_score = shifted.gather(-1, local.unsqueeze(-1)).squeeze(-1).masked_fill(~mine, 0.0)
    powers = shifted.exp_()
    sums = torch.stack((powers.sum(dim=-1), target_score))
    comm.all_reduce(sums)
    return sums[0].log() - sums[1], powers / sums[0].unsqueeze(-1)


@wrong("20.5", "the log-probability itself, without its minus")
def losses_from_parts(logits, targets, comm):
    local, mine = own_ids(targets, logits.shape[-1], comm)
    largest = logits.amax(dim=-1)
    comm.all_reduce(largest, "max")
    shifted = logits - largest.unsqueeze(-1)
    target_score = shifted.gather(-1, local.unsqueeze(-1)).squeeze(-1).masked_fill(~mine, 0.0)
    powers = shifted.exp()
    sums = torch.stack((powers.sum(dim=-1), target_score))
    comm.all_reduce(sums)
    return sums[1] - sums[0].log(), powers / sums[0].unsqueeze(-1)


@wrong("20.6", "whatever is whole on all ranks")
def is_partial(name, split, sequence_parallel):
    return split is None


@wrong("20.6", "nothing without sequence parallelism: the norm of queries and keys is forgotten")
def is_partial(name, split, sequence_parallel):
    return split is None and sequence_parallel and name.startswith(("blocks.", "final_norm."))


@wrong("20.6", "norms only: the biases behind the sums are forgotten")
def is_partial(name, split, sequence_parallel):
    if split is not None:
        return False
    return ".qk_norm." in name or (sequence_parallel and "norm" in name and not name.startswith("embedding"))


@wrong("20.6", "the last norm is forgotten")
def is_partial(name, split, sequence_parallel):
    if split is not None:
        return False
    return ".qk_norm." in name or (sequence_parallel and name.startswith("blocks."))


@wrong("20.6", "with sequence parallelism everything that is whole, also before the first block")
def is_partial(name, split, sequence_parallel):
    return split is None and (sequence_parallel or ".qk_norm." in name)


@wrong("20.6", "what is cut is added up as well")
def is_partial(name, split, sequence_parallel):
    return ".qk_norm." in name or (sequence_parallel and name.startswith(("blocks.", "final_norm.")))


@wrong("20.6", "without sequence parallelism instead of with it")
def is_partial(name, split, sequence_parallel):
    if split is not None:
        return False
    return ".qk_norm." in name or (not sequence_parallel and name.startswith(("blocks.", "final_norm.")))


@wrong("20.6", "the first block only")
def is_partial(name, split, sequence_parallel):
    if split is not None:
        return False
    return ".qk_norm." in name or (sequence_parallel and name.startswith(("blocks.0.", "final_norm.")))


@wrong("20.7", "the plain mean of the two")
def merge_parts(output, log_sum, other, other_log_sum):
    return (output + other) / 2, torch.logaddexp2(log_sum, other_log_sum)


@wrong("20.7", "sums that overflow: powers without a common shift")
def merge_parts(output, log_sum, other, other_log_sum):
    one, two = log_sum.exp2(), other_log_sum.exp2()
    return (output * one + other * two) / (one + two), (one + two).log2()


@wrong("20.7", "adds the logarithms instead of the sums")
def merge_parts(output, log_sum, other, other_log_sum):
    total = torch.logaddexp2(log_sum, other_log_sum)
    merged = output * (log_sum - total).exp2() + other * (other_log_sum - total).exp2()
    return merged, log_sum + other_log_sum


@wrong("20.7", "powers of e of logarithms to base 2")
def merge_parts(output, log_sum, other, other_log_sum):
    total = torch.logaddexp(log_sum, other_log_sum)
    return output * (log_sum - total).exp() + other * (other_log_sum - total).exp(), total


@wrong("20.7", "each weighs as much as the other should")
def merge_parts(output, log_sum, other, other_log_sum):
    total = torch.logaddexp2(log_sum, other_log_sum)
    return output * (other_log_sum - total).exp2() + other * (log_sum - total).exp2(), total


@wrong("20.7", "adds without weights")
def merge_parts(output, log_sum, other, other_log_sum):
    return output + other, torch.logaddexp2(log_sum, other_log_sum)


@wrong("20.7", "the logarithms themselves as weights")
def merge_parts(output, log_sum, other, other_log_sum):
    total = torch.logaddexp2(log_sum, other_log_sum)
    return (output * log_sum + other * other_log_sum) / (log_sum + other_log_sum), total


@wrong("20.7", "writes into what was given")
def merge_parts(output, log_sum, other, other_log_sum):
    total = torch.logaddexp2(log_sum, other_log_sum)
    output.mul_((log_sum - total).exp2()).add_(other * (other_log_sum - total).exp2())
    return output, total


@wrong("20.7", "who has the larger sum takes all")
def merge_parts(output, log_sum, other, other_log_sum):
    first = log_sum >= other_log_sum
    return torch.where(first, output, other), torch.logaddexp2(log_sum, other_log_sum)


@wrong("20.7", "the larger of the two sums instead of both")
def merge_parts(output, log_sum, other, other_log_sum):
    total = torch.logaddexp2(log_sum, other_log_sum)
    merged = output * (log_sum - total).exp2() + other * (other_log_sum - total).exp2()
    return merged, torch.maximum(log_sum, other_log_sum)


@wrong("20.8", "later keys are seen, earlier ones hidden")
def visible_pairs(queries, keys, causal=True):
    pairs = [(i, j) for i in range(len(queries)) for j in range(len(keys))]
    return [(i, j, causal and queries[i] == keys[j]) for i, j in pairs if not causal or keys[j] >= queries[i]]


@wrong("20.8", "the same piece is left out")
def visible_pairs(queries, keys, causal=True):
    pairs = [(i, j) for i in range(len(queries)) for j in range(len(keys))]
    return [(i, j, False) for i, j in pairs if not causal or keys[j] < queries[i]]


@wrong("20.8", "the same piece is seen whole: positions look into their future")
def visible_pairs(queries, keys, causal=True):
    pairs = [(i, j) for i in range(len(queries)) for j in range(len(keys))]
    return [(i, j, False) for i, j in pairs if not causal or keys[j] <= queries[i]]


@wrong("20.8", "causal is not asked about")
def visible_pairs(queries, keys, causal=True):
    pairs = [(i, j) for i in range(len(queries)) for j in range(len(keys))]
    return [(i, j, queries[i] == keys[j]) for i, j in pairs if keys[j] <= queries[i]]


@wrong("20.8", "compares places in the lists instead of pieces")
def visible_pairs(queries, keys, causal=True):
    pairs = [(i, j) for i in range(len(queries)) for j in range(len(keys))]
    return [(i, j, causal and i == j) for i, j in pairs if not causal or j <= i]


@wrong("20.8", "gives the pieces' numbers instead of their places")
def visible_pairs(queries, keys, causal=True):
    return [(q, k, causal and q == k) for q in queries for k in keys if not causal or k <= q]


@wrong("20.8", "a mask within the piece also when nothing is hidden")
def visible_pairs(queries, keys, causal=True):
    pairs = [(i, j) for i in range(len(queries)) for j in range(len(keys))]
    return [(i, j, queries[i] == keys[j]) for i, j in pairs if not causal or keys[j] <= queries[i]]


@wrong("20.8", "a mask within every earlier piece, too")
def visible_pairs(queries, keys, causal=True):
    pairs = [(i, j) for i in range(len(queries)) for j in range(len(keys))]
    return [(i, j, causal and keys[j] <= queries[i]) for i, j in pairs if not causal or keys[j] <= queries[i]]
