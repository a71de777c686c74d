"""Wrong answers of chapter 09: each must lose the points of exactly the task it names. Parsed, never run."""

from minillm.course.wrong_answers import wrong


@wrong("9.1", "all sines before all cosines")
def sinusoidal_positions(positions, d_model, base=10000.0):
    angles = positions[..., None] * pair_frequencies(d_model, base)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


@wrong("9.1", "cosine first")
def sinusoidal_positions(positions, d_model, base=10000.0):
    angles = positions[..., None] * pair_frequencies(d_model, base)
    return torch.stack((angles.cos(), angles.sin()), dim=-1).flatten(-2)


@wrong("9.1", "every number has a speed of its own, so that sine and cosine are of different angles")
def sinusoidal_positions(positions, d_model, base=10000.0):
    pair_frequencies(d_model, base)
    angles = positions[..., None] * base ** -(torch.arange(d_model, dtype=torch.float64) / d_model)
    return torch.where(torch.arange(d_model) % 2 == 0, angles.sin(), angles.cos())


@wrong("9.1", "counts positions from 1")
def sinusoidal_positions(positions, d_model, base=10000.0):
    angles = (positions[..., None] + 1) * pair_frequencies(d_model, base)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


@wrong("9.1", "ignores the positions given and counts its own")
def sinusoidal_positions(positions, d_model, base=10000.0):
    own = torch.arange(positions.numel()).view(positions.shape)
    angles = own[..., None] * pair_frequencies(d_model, base)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


@wrong("9.1", "the base is not passed on")
def sinusoidal_positions(positions, d_model, base=10000.0):
    angles = positions[..., None] * pair_frequencies(d_model)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


@wrong("9.1", "computed in float32, which is coarse for large angles")
def sinusoidal_positions(positions, d_model, base=10000.0):
    angles = positions[..., None].float() * pair_frequencies(d_model, base).float()
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2).double()


@wrong("9.1", "odd widths get one number less")
def sinusoidal_positions(positions, d_model, base=10000.0):
    speeds = base ** -(torch.arange(0, d_model - 1, 2, dtype=torch.float64) / d_model)
    angles = positions[..., None] * speeds
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


@wrong("9.2", "turns the other way round")
def rotate(x, cosine, sine, layout="halves"):
    check_layout(layout)
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    if layout == "interleaved":
        first, second = x[..., 0::2], x[..., 1::2]
        return torch.stack((first * cosine + second * sine, second * cosine - first * sine), dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine + second * sine, second * cosine - first * sine), dim=-1)


@wrong("9.2", "both signs are plus, which is no rotation")
def rotate(x, cosine, sine, layout="halves"):
    check_layout(layout)
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    if layout == "interleaved":
        first, second = x[..., 0::2], x[..., 1::2]
        return torch.stack((first * cosine + second * sine, first * sine + second * cosine), dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine + second * sine, first * sine + second * cosine), dim=-1)


@wrong("9.2", "halves whatever the layout")
def rotate(x, cosine, sine, layout="halves"):
    check_layout(layout)
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


@wrong("9.2", "reads neighbours and writes halves")
def rotate(x, cosine, sine, layout="halves"):
    check_layout(layout)
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    first, second = (x[..., 0::2], x[..., 1::2]) if layout == "interleaved" else x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


@wrong("9.2", "the two layouts exchanged")
def rotate(x, cosine, sine, layout="halves"):
    check_layout(layout)
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    if layout == "halves":
        first, second = x[..., 0::2], x[..., 1::2]
        return torch.stack((first * cosine - second * sine, first * sine + second * cosine), dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


@wrong("9.2", "float64 angles make float64 vectors of float32 ones")
def rotate(x, cosine, sine, layout="halves"):
    check_layout(layout)
    if layout == "interleaved":
        first, second = x[..., 0::2], x[..., 1::2]
        return torch.stack((first * cosine - second * sine, first * sine + second * cosine), dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


@wrong("9.2", "a layout that nobody knows is taken for halves")
def rotate(x, cosine, sine, layout="halves"):
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    if layout == "interleaved":
        first, second = x[..., 0::2], x[..., 1::2]
        return torch.stack((first * cosine - second * sine, first * sine + second * cosine), dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


@wrong("9.2", "writes the first turned number over the old one before the second is made")
def rotate(x, cosine, sine, layout="halves"):
    check_layout(layout)
    cosine, sine = cosine.to(x.dtype), sine.to(x.dtype)
    first, second = (x[..., 0::2], x[..., 1::2]) if layout == "interleaved" else x.chunk(2, dim=-1)
    first = first * cosine - second * sine
    second = first * sine + second * cosine
    if layout == "interleaved":
        return torch.stack((first, second), dim=-1).flatten(-2)
    return torch.cat((first, second), dim=-1)


@wrong("9.3", "the same order for both layouts")
def rotary_rows(weight, d_head, layout):
    check_layout(layout)
    if d_head % 2 or d_head <= 0 or weight.shape[0] % d_head:
        raise ShapeError("no heads")
    return weight.unflatten(0, (-1, 2, d_head // 2)).transpose(1, 2).flatten(0, 2)


@wrong("9.3", "the two directions exchanged")
def rotary_rows(weight, d_head, layout):
    check_layout(layout)
    if d_head % 2 or d_head <= 0 or weight.shape[0] % d_head:
        raise ShapeError("no heads")
    pairs = (d_head // 2, 2) if layout == "interleaved" else (2, d_head // 2)
    return weight.unflatten(0, (-1, *pairs)).transpose(1, 2).flatten(0, 2)


@wrong("9.3", "reorders across all heads instead of within each")
def rotary_rows(weight, d_head, layout):
    check_layout(layout)
    if d_head % 2 or d_head <= 0 or weight.shape[0] % d_head:
        raise ShapeError("no heads")
    pairs = (2, -1) if layout == "interleaved" else (-1, 2)
    return weight.unflatten(0, pairs).transpose(0, 1).flatten(0, 1)


@wrong("9.3", "reorders the columns")
def rotary_rows(weight, d_head, layout):
    check_layout(layout)
    if d_head % 2 or d_head <= 0 or weight.shape[0] % d_head:
        raise ShapeError("no heads")
    half = weight.shape[-1] // 2
    order = [place for pair in range(half) for place in (pair, pair + half)]
    return weight[..., order + list(range(2 * half, weight.shape[-1]))]


@wrong("9.3", "gives back the rows as they came")
def rotary_rows(weight, d_head, layout):
    check_layout(layout)
    if d_head % 2 or d_head <= 0 or weight.shape[0] % d_head:
        raise ShapeError("no heads")
    return weight.clone()


@wrong("9.3", "rows that are no whole number of heads pass")
def rotary_rows(weight, d_head, layout):
    check_layout(layout)
    if d_head % 2 or d_head <= 0:
        raise ConfigError("odd heads")
    n_rows = weight.shape[0] // d_head * d_head
    pairs = (2, d_head // 2) if layout == "interleaved" else (d_head // 2, 2)
    return weight[:n_rows].unflatten(0, (-1, *pairs)).transpose(1, 2).flatten(0, 2)


@wrong("9.3", "an unknown layout is taken for halves")
def rotary_rows(weight, d_head, layout):
    if d_head % 2 or d_head <= 0 or weight.shape[0] % d_head:
        raise ShapeError("no heads")
    pairs = (2, d_head // 2) if layout == "interleaved" else (d_head // 2, 2)
    return weight.unflatten(0, (-1, *pairs)).transpose(1, 2).flatten(0, 2)


@wrong("9.4", "the directions exchanged: earlier keys get the second half")
def relative_buckets(distances, n_buckets=32, max_distance=128, bidirectional=True):
    n_each = n_buckets // (2 if bidirectional else 1)
    n_exact = n_each // 2
    if n_buckets % (2 if bidirectional else 1) or n_exact < 1 or max_distance <= n_exact:
        raise ConfigError("these buckets do not fit")
    if distances.is_floating_point() or distances.dtype == torch.bool:
        raise ShapeError("not integers")
    far = distances.abs() if bidirectional else (-distances).clamp(min=0)
    growth = torch.log(far.clamp(min=1).float() / n_exact) / math.log(max_distance / n_exact)
    shared = n_exact + (growth * (n_each - n_exact)).long()
    bucket = torch.where(far < n_exact, far.long(), shared.clamp(max=n_each - 1))
    return bucket + n_each * (distances < 0) if bidirectional else bucket


@wrong("9.4", "without two directions, later keys are counted as if they came before")
def relative_buckets(distances, n_buckets=32, max_distance=128, bidirectional=True):
    n_each = n_buckets // (2 if bidirectional else 1)
    n_exact = n_each // 2
    if n_buckets % (2 if bidirectional else 1) or n_exact < 1 or max_distance <= n_exact:
        raise ConfigError("these buckets do not fit")
    if distances.is_floating_point() or distances.dtype == torch.bool:
        raise ShapeError("not integers")
    far = distances.abs()
    growth = torch.log(far.clamp(min=1).float() / n_exact) / math.log(max_distance / n_exact)
    shared = n_exact + (growth * (n_each - n_exact)).long()
    bucket = torch.where(far < n_exact, far.long(), shared.clamp(max=n_each - 1))
    return bucket + n_each * (distances > 0) if bidirectional else bucket


@wrong("9.4", "the last bucket is not the last: far distances run beyond it")
def relative_buckets(distances, n_buckets=32, max_distance=128, bidirectional=True):
    n_each = n_buckets // (2 if bidirectional else 1)
    n_exact = n_each // 2
    if n_buckets % (2 if bidirectional else 1) or n_exact < 1 or max_distance <= n_exact:
        raise ConfigError("these buckets do not fit")
    if distances.is_floating_point() or distances.dtype == torch.bool:
        raise ShapeError("not integers")
    far = distances.abs() if bidirectional else (-distances).clamp(min=0)
    growth = torch.log(far.clamp(min=1).float() / n_exact) / math.log(max_distance / n_exact)
    shared = n_exact + (growth * (n_each - n_exact)).long()
    bucket = torch.where(far < n_exact, far.long(), shared)
    return bucket + n_each * (distances > 0) if bidirectional else bucket


@wrong("9.4", "buckets of equal width instead of equal factors")
def relative_buckets(distances, n_buckets=32, max_distance=128, bidirectional=True):
    n_each = n_buckets // (2 if bidirectional else 1)
    n_exact = n_each // 2
    if n_buckets % (2 if bidirectional else 1) or n_exact < 1 or max_distance <= n_exact:
        raise ConfigError("these buckets do not fit")
    if distances.is_floating_point() or distances.dtype == torch.bool:
        raise ShapeError("not integers")
    far = (distances.abs() if bidirectional else (-distances).clamp(min=0)).long()
    shared = n_exact + (far - n_exact) * (n_each - n_exact) // (max_distance - n_exact)
    bucket = torch.where(far < n_exact, far, shared.clamp(max=n_each - 1))
    return bucket + n_each * (distances > 0) if bidirectional else bucket


@wrong("9.4", "all buckets for each direction, so that there are twice as many")
def relative_buckets(distances, n_buckets=32, max_distance=128, bidirectional=True):
    n_each = n_buckets
    n_exact = n_each // 2
    if n_buckets % (2 if bidirectional else 1) or n_exact < 1 or max_distance <= n_exact:
        raise ConfigError("these buckets do not fit")
    if distances.is_floating_point() or distances.dtype == torch.bool:
        raise ShapeError("not integers")
    far = distances.abs() if bidirectional else (-distances).clamp(min=0)
    growth = torch.log(far.clamp(min=1).float() / n_exact) / math.log(max_distance / n_exact)
    shared = n_exact + (growth * (n_each - n_exact)).long()
    bucket = torch.where(far < n_exact, far.long(), shared.clamp(max=n_each - 1))
    return bucket + n_each * (distances > 0) if bidirectional else bucket


@wrong("9.4", "rounds to the nearest bucket instead of down")
def relative_buckets(distances, n_buckets=32, max_distance=128, bidirectional=True):
    n_each = n_buckets // (2 if bidirectional else 1)
    n_exact = n_each // 2
    if n_buckets % (2 if bidirectional else 1) or n_exact < 1 or max_distance <= n_exact:
        raise ConfigError("these buckets do not fit")
    if distances.is_floating_point() or distances.dtype == torch.bool:
        raise ShapeError("not integers")
    far = distances.abs() if bidirectional else (-distances).clamp(min=0)
    growth = torch.log(far.clamp(min=1).float() / n_exact) / math.log(max_distance / n_exact)
    shared = n_exact + (growth * (n_each - n_exact)).round().long()
    bucket = torch.where(far < n_exact, far.long(), shared.clamp(max=n_each - 1))
    return bucket + n_each * (distances > 0) if bidirectional else bucket


@wrong("9.4", "floating-point distances pass")
def relative_buckets(distances, n_buckets=32, max_distance=128, bidirectional=True):
    n_each = n_buckets // (2 if bidirectional else 1)
    n_exact = n_each // 2
    if n_buckets % (2 if bidirectional else 1) or n_exact < 1 or max_distance <= n_exact:
        raise ConfigError("these buckets do not fit")
    distances = distances.long()
    far = distances.abs() if bidirectional else (-distances).clamp(min=0)
    growth = torch.log(far.clamp(min=1).float() / n_exact) / math.log(max_distance / n_exact)
    shared = n_exact + (growth * (n_each - n_exact)).long()
    bucket = torch.where(far < n_exact, far, shared.clamp(max=n_each - 1))
    return bucket + n_each * (distances > 0) if bidirectional else bucket


@wrong("9.4", "too few buckets pass")
def relative_buckets(distances, n_buckets=32, max_distance=128, bidirectional=True):
    if distances.is_floating_point() or distances.dtype == torch.bool:
        raise ShapeError("not integers")
    n_each = max(2, n_buckets // (2 if bidirectional else 1))
    n_exact = n_each // 2
    far = distances.abs() if bidirectional else (-distances).clamp(min=0)
    growth = torch.log(far.clamp(min=1).float() / n_exact) / math.log(max(max_distance, n_exact + 1) / n_exact)
    shared = n_exact + (growth * (n_each - n_exact)).long()
    bucket = torch.where(far < n_exact, far.long(), shared.clamp(max=n_each - 1))
    return bucket + n_each * (distances > 0) if bidirectional else bucket


@wrong("9.5", "the formula for powers of two whatever the number")
def alibi_slopes(n_heads):
    if n_heads < 1:
        raise ConfigError("no heads")
    return slopes_of_power(n_heads)


@wrong("9.5", "the next larger power's first slopes")
def alibi_slopes(n_heads):
    if n_heads < 1:
        raise ConfigError("no heads")
    return slopes_of_power(2 ** math.ceil(math.log2(n_heads)))[:n_heads]


@wrong("9.5", "every second slope beginning with the second, which are there already")
def alibi_slopes(n_heads):
    if n_heads < 1:
        raise ConfigError("no heads")
    n_first = 2 ** int(math.log2(n_heads))
    return torch.cat((slopes_of_power(n_first), slopes_of_power(2 * n_first)[1::2]))[:n_heads]


@wrong("9.5", "sorted, so that a checkpoint's heads get each other's slopes")
def alibi_slopes(n_heads):
    if n_heads < 1:
        raise ConfigError("no heads")
    n_first = 2 ** int(math.log2(n_heads))
    slopes = torch.cat((slopes_of_power(n_first), slopes_of_power(2 * n_first)[::2]))[:n_heads]
    return slopes.sort(descending=True).values


@wrong("9.5", "float32")
def alibi_slopes(n_heads):
    if n_heads < 1:
        raise ConfigError("no heads")
    n_first = 2 ** int(math.log2(n_heads))
    return torch.cat((slopes_of_power(n_first), slopes_of_power(2 * n_first)[::2]))[:n_heads].float()


@wrong("9.5", "no heads give no slopes instead of an error")
def alibi_slopes(n_heads):
    n_first = 2 ** int(math.log2(max(1, n_heads)))
    return torch.cat((slopes_of_power(n_first), slopes_of_power(2 * n_first)[::2]))[: max(0, n_heads)]


@wrong("9.6", "ntk multiplies the base by the factor itself, which does not slow the slowest pair enough")
def scaled_frequencies(d_head, base=10000.0, scaling="none", factor=1.0, trained_len=0):
    check_scaling(scaling, factor, trained_len)
    if scaling == "ntk":
        ntk_base(base, factor, d_head)
        return pair_frequencies(d_head, base * factor)
    frequency = pair_frequencies(d_head, base)
    if scaling == "llama3":
        kept = share_kept(frequency, trained_len)
        return kept * frequency + (1.0 - kept) * frequency / factor
    return frequency / factor


@wrong("9.6", "linear makes the pairs faster")
def scaled_frequencies(d_head, base=10000.0, scaling="none", factor=1.0, trained_len=0):
    check_scaling(scaling, factor, trained_len)
    if scaling == "ntk":
        return pair_frequencies(d_head, ntk_base(base, factor, d_head))
    frequency = pair_frequencies(d_head, base)
    if scaling == "llama3":
        kept = share_kept(frequency, trained_len)
        return kept * frequency + (1.0 - kept) * frequency / factor
    return frequency * factor


@wrong("9.6", "llama3 slows the fast pairs and keeps the slow ones")
def scaled_frequencies(d_head, base=10000.0, scaling="none", factor=1.0, trained_len=0):
    check_scaling(scaling, factor, trained_len)
    if scaling == "ntk":
        return pair_frequencies(d_head, ntk_base(base, factor, d_head))
    frequency = pair_frequencies(d_head, base)
    if scaling == "llama3":
        kept = share_kept(frequency, trained_len)
        return (1.0 - kept) * frequency + kept * frequency / factor
    return frequency / factor


@wrong("9.6", "ntk slows its own frequencies once more")
def scaled_frequencies(d_head, base=10000.0, scaling="none", factor=1.0, trained_len=0):
    check_scaling(scaling, factor, trained_len)
    if scaling == "ntk":
        return pair_frequencies(d_head, ntk_base(base, factor, d_head)) / factor
    frequency = pair_frequencies(d_head, base)
    if scaling == "llama3":
        kept = share_kept(frequency, trained_len)
        return kept * frequency + (1.0 - kept) * frequency / factor
    return frequency / factor


@wrong("9.6", "the settings are not checked")
def scaled_frequencies(d_head, base=10000.0, scaling="none", factor=1.0, trained_len=0):
    if scaling == "ntk":
        return pair_frequencies(d_head, ntk_base(base, factor, d_head))
    frequency = pair_frequencies(d_head, base)
    if scaling == "llama3":
        kept = share_kept(frequency, trained_len)
        return kept * frequency + (1.0 - kept) * frequency / factor
    return frequency / factor


@wrong("9.6", "llama3 cuts instead of blending: a pair is kept or slowed, nothing between")
def scaled_frequencies(d_head, base=10000.0, scaling="none", factor=1.0, trained_len=0):
    check_scaling(scaling, factor, trained_len)
    if scaling == "ntk":
        return pair_frequencies(d_head, ntk_base(base, factor, d_head))
    frequency = pair_frequencies(d_head, base)
    if scaling == "llama3":
        kept = share_kept(frequency, trained_len).round()
        return kept * frequency + (1.0 - kept) * frequency / factor
    return frequency / factor
