"""Wrong answers of chapter 15: each must lose the points of exactly the task it names. Parsed, never run."""

from minillm.course.wrong_answers import wrong


@wrong("15.1", "subtracts the mean first, which is a layer norm without its shift")
def rms_norm(x, weight=None, epsilon=1e-5):
    x = x - x.mean(dim=-1, keepdim=True)
    normed = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + epsilon)
    return normed if weight is None else normed * weight


@wrong("15.1", "divides by the length of the vector instead of its root mean square")
def rms_norm(x, weight=None, epsilon=1e-5):
    normed = x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + epsilon)
    return normed if weight is None else normed * weight


@wrong("15.1", "epsilon outside the root")
def rms_norm(x, weight=None, epsilon=1e-5):
    normed = x / (x.square().mean(dim=-1, keepdim=True).sqrt() + epsilon)
    return normed if weight is None else normed * weight


@wrong("15.1", "one size for the whole batch instead of one for each vector")
def rms_norm(x, weight=None, epsilon=1e-5):
    normed = x * torch.rsqrt(x.square().mean() + epsilon)
    return normed if weight is None else normed * weight


@wrong("15.1", "forgets the root: divides by the mean square")
def rms_norm(x, weight=None, epsilon=1e-5):
    normed = x / (x.square().mean(dim=-1, keepdim=True) + epsilon)
    return normed if weight is None else normed * weight


@wrong("15.1", "scales by 1 + weight, as another library stores it")
def rms_norm(x, weight=None, epsilon=1e-5):
    normed = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + epsilon)
    return normed if weight is None else normed * (1 + weight)


@wrong("15.1", "scales before it normalises, so that the scale is lost")
def rms_norm(x, weight=None, epsilon=1e-5):
    x = x if weight is None else x * weight
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + epsilon)


@wrong("15.1", "an epsilon of its own")
def rms_norm(x, weight=None, epsilon=1e-5):
    normed = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6)
    return normed if weight is None else normed * weight


@wrong("15.1", "no gradient flows through the size of the vector")
def rms_norm(x, weight=None, epsilon=1e-5):
    normed = x * torch.rsqrt(x.detach().square().mean(dim=-1, keepdim=True) + epsilon)
    return normed if weight is None else normed * weight


@wrong("15.1", "overwrites its input")
def rms_norm(x, weight=None, epsilon=1e-5):
    normed = x.mul_(torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + epsilon))
    return normed if weight is None else normed * weight


@wrong("15.2", "the curve on the wrong half")
def swiglu_feed_forward(x, gate, up, down):
    return linear(linear(x, gate) * functional.silu(linear(x, up)), down)


@wrong("15.2", "a plain sigmoid as in the first gated units")
def swiglu_feed_forward(x, gate, up, down):
    return linear(torch.sigmoid(linear(x, gate)) * linear(x, up), down)


@wrong("15.2", "GEGLU: the curve is GELU")
def swiglu_feed_forward(x, gate, up, down):
    return linear(functional.gelu_tanh(linear(x, gate)) * linear(x, up), down)


@wrong("15.2", "adds the halves instead of multiplying them")
def swiglu_feed_forward(x, gate, up, down):
    return linear(functional.silu(linear(x, gate)) + linear(x, up), down)


@wrong("15.2", "the curve over the product")
def swiglu_feed_forward(x, gate, up, down):
    return linear(functional.silu(linear(x, gate) * linear(x, up)), down)


@wrong("15.2", "no gate at all: SiLU between two maps")
def swiglu_feed_forward(x, gate, up, down):
    return linear(functional.silu(linear(x, up)), down)


@wrong("15.2", "no gradient reaches the gate")
def swiglu_feed_forward(x, gate, up, down):
    return linear(functional.silu(linear(x, gate)).detach() * linear(x, up), down)


@wrong("15.3", "a single expert's weight is divided by itself and is always 1")
def choose_experts(logits, n_active):
    if not 1 <= n_active <= logits.shape[-1]:
        raise ShapeError("too many experts")
    likeliest, chosen = logits.softmax(dim=-1).topk(n_active, dim=-1)
    return chosen, likeliest / likeliest.sum(dim=-1, keepdim=True)


@wrong("15.3", "the probabilities of several experts are not divided by their sum")
def choose_experts(logits, n_active):
    if not 1 <= n_active <= logits.shape[-1]:
        raise ShapeError("too many experts")
    likeliest, chosen = logits.softmax(dim=-1).topk(n_active, dim=-1)
    return chosen, likeliest


@wrong("15.3", "scores instead of probabilities as weights")
def choose_experts(logits, n_active):
    if not 1 <= n_active <= logits.shape[-1]:
        raise ShapeError("too many experts")
    likeliest, chosen = logits.topk(n_active, dim=-1)
    return chosen, likeliest if n_active == 1 else likeliest / likeliest.sum(dim=-1, keepdim=True)


@wrong("15.3", "softmax over the tokens instead of the experts")
def choose_experts(logits, n_active):
    if not 1 <= n_active <= logits.shape[-1]:
        raise ShapeError("too many experts")
    likeliest, chosen = logits.softmax(dim=0).topk(n_active, dim=-1)
    return chosen, likeliest if n_active == 1 else likeliest / likeliest.sum(dim=-1, keepdim=True)


@wrong("15.3", "divides by the sum over all tokens")
def choose_experts(logits, n_active):
    if not 1 <= n_active <= logits.shape[-1]:
        raise ShapeError("too many experts")
    likeliest, chosen = logits.softmax(dim=-1).topk(n_active, dim=-1)
    return chosen, likeliest if n_active == 1 else likeliest / likeliest.sum(dim=0, keepdim=True)


@wrong("15.3", "the least likely experts")
def choose_experts(logits, n_active):
    if not 1 <= n_active <= logits.shape[-1]:
        raise ShapeError("too many experts")
    likeliest, chosen = logits.softmax(dim=-1).topk(n_active, dim=-1, largest=False)
    return chosen, likeliest if n_active == 1 else likeliest / likeliest.sum(dim=-1, keepdim=True)


@wrong("15.3", "experts in the order of their numbers, so that first choices are lost")
def choose_experts(logits, n_active):
    if not 1 <= n_active <= logits.shape[-1]:
        raise ShapeError("too many experts")
    probabilities = logits.softmax(dim=-1)
    chosen = probabilities.topk(n_active, dim=-1).indices.sort(dim=-1).values
    weights = probabilities.gather(-1, chosen)
    return chosen, weights if n_active == 1 else weights / weights.sum(dim=-1, keepdim=True)


@wrong("15.3", "weights without a gradient")
def choose_experts(logits, n_active):
    if not 1 <= n_active <= logits.shape[-1]:
        raise ShapeError("too many experts")
    likeliest, chosen = logits.softmax(dim=-1).detach().topk(n_active, dim=-1)
    return chosen, likeliest if n_active == 1 else likeliest / likeliest.sum(dim=-1, keepdim=True)


@wrong("15.3", "weights before experts")
def choose_experts(logits, n_active):
    if not 1 <= n_active <= logits.shape[-1]:
        raise ShapeError("too many experts")
    likeliest, chosen = logits.softmax(dim=-1).topk(n_active, dim=-1)
    return likeliest if n_active == 1 else likeliest / likeliest.sum(dim=-1, keepdim=True), chosen


@wrong("15.3", "more experts than there are become all of them")
def choose_experts(logits, n_active):
    if n_active < 1:
        raise ShapeError("no experts")
    likeliest, chosen = logits.softmax(dim=-1).topk(min(n_active, logits.shape[-1]), dim=-1)
    return chosen, likeliest if n_active == 1 else likeliest / likeliest.sum(dim=-1, keepdim=True)


@wrong("15.4", "token by token: a second choice goes before the first choice of a later token")
def within_capacity(chosen, n_experts, capacity):
    wanted = F.one_hot(chosen.flatten(), n_experts)
    place = (wanted.cumsum(dim=0) * wanted).sum(dim=1)
    return (place <= capacity).view(chosen.shape)


@wrong("15.4", "the answer stays in the order of the queue")
def within_capacity(chosen, n_experts, capacity):
    wanted = F.one_hot(chosen.T.flatten(), n_experts)
    place = (wanted.cumsum(dim=0) * wanted).sum(dim=1)
    return (place <= capacity).view(chosen.shape)


@wrong("15.4", "one place too few")
def within_capacity(chosen, n_experts, capacity):
    wanted = F.one_hot(chosen.T.flatten(), n_experts)
    place = (wanted.cumsum(dim=0) * wanted).sum(dim=1)
    return (place < capacity).view(chosen.shape[::-1]).T


@wrong("15.4", "each choice has room of its own")
def within_capacity(chosen, n_experts, capacity):
    wanted = F.one_hot(chosen, n_experts)
    place = (wanted.cumsum(dim=0) * wanted).sum(dim=-1)
    return place <= capacity


@wrong("15.4", "the last tokens are kept instead of the first")
def within_capacity(chosen, n_experts, capacity):
    wanted = F.one_hot(chosen.T.flatten(), n_experts).flip(0)
    place = (wanted.cumsum(dim=0) * wanted).sum(dim=1).flip(0)
    return (place <= capacity).view(chosen.shape[::-1]).T


@wrong("15.4", "one queue for all experts together")
def within_capacity(chosen, n_experts, capacity):
    place = torch.arange(1, chosen.numel() + 1)
    return (place <= capacity).view(chosen.shape[::-1]).T


@wrong("15.4", "an overfull expert drops all of its tokens")
def within_capacity(chosen, n_experts, capacity):
    visits = torch.bincount(chosen.flatten(), minlength=n_experts)
    return (visits <= capacity)[chosen]


@wrong("15.4", "True for the dropped ones")
def within_capacity(chosen, n_experts, capacity):
    wanted = F.one_hot(chosen.T.flatten(), n_experts)
    place = (wanted.cumsum(dim=0) * wanted).sum(dim=1)
    return (place > capacity).view(chosen.shape[::-1]).T


@wrong("15.5", "the factor E is missing")
def load_balancing_loss(logits, chosen):
    n_experts = logits.shape[-1]
    visits = torch.bincount(chosen.flatten(), minlength=n_experts).to(logits.dtype)
    return (visits / chosen.numel() * logits.softmax(dim=-1).mean(dim=0)).sum()


@wrong("15.5", "visits divided by the tokens, so that two choices cost twice as much")
def load_balancing_loss(logits, chosen):
    n_experts = logits.shape[-1]
    visits = torch.bincount(chosen.flatten(), minlength=n_experts).to(logits.dtype)
    return n_experts * (visits / len(chosen) * logits.softmax(dim=-1).mean(dim=0)).sum()


@wrong("15.5", "the square of the visits' shares, which has no slope")
def load_balancing_loss(logits, chosen):
    n_experts = logits.shape[-1]
    visits = torch.bincount(chosen.flatten(), minlength=n_experts).to(logits.dtype)
    return n_experts * (visits / chosen.numel()).square().sum()


@wrong("15.5", "the square of the probabilities, which does not see where the tokens go")
def load_balancing_loss(logits, chosen):
    n_experts = logits.shape[-1]
    return n_experts * logits.softmax(dim=-1).mean(dim=0).square().sum()


@wrong("15.5", "only the first choices are counted")
def load_balancing_loss(logits, chosen):
    n_experts = logits.shape[-1]
    visits = torch.bincount(chosen[:, 0], minlength=n_experts).to(logits.dtype)
    return n_experts * (visits / len(chosen) * logits.softmax(dim=-1).mean(dim=0)).sum()


@wrong("15.5", "experts that nobody chose are forgotten")
def load_balancing_loss(logits, chosen):
    n_experts = logits.shape[-1]
    visits = torch.bincount(chosen.flatten())
    probability = logits.softmax(dim=-1).mean(dim=0)[: len(visits)]
    return len(visits) * (visits.to(logits.dtype) / chosen.numel() * probability).sum()


@wrong("15.5", "the mean of the scores instead of the probabilities")
def load_balancing_loss(logits, chosen):
    n_experts = logits.shape[-1]
    visits = torch.bincount(chosen.flatten(), minlength=n_experts).to(logits.dtype)
    return n_experts * (visits / chosen.numel() * logits.mean(dim=0).softmax(dim=-1)).sum()


@wrong("15.5", "a number without a gradient")
def load_balancing_loss(logits, chosen):
    n_experts = logits.shape[-1]
    visits = torch.bincount(chosen.flatten(), minlength=n_experts).to(logits.dtype)
    return n_experts * (visits / chosen.numel() * logits.detach().softmax(dim=-1).mean(dim=0)).sum()


@wrong("15.6", "the mean squared, not the mean of the squares")
def router_z_loss(logits):
    return logits.logsumexp(dim=-1).mean().square()


@wrong("15.6", "not squared")
def router_z_loss(logits):
    return logits.logsumexp(dim=-1).mean()


@wrong("15.6", "the sum over the tokens")
def router_z_loss(logits):
    return logits.logsumexp(dim=-1).square().sum()


@wrong("15.6", "overflows for large scores")
def router_z_loss(logits):
    return logits.exp().sum(dim=-1).log().square().mean()


@wrong("15.6", "the mean square of the scores themselves")
def router_z_loss(logits):
    return logits.square().mean()


@wrong("15.6", "over the tokens instead of the experts")
def router_z_loss(logits):
    return logits.logsumexp(dim=0).square().mean()
