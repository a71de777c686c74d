"""Wrong answers to chapter 32: the mistakes that are really made, each of which must cost exactly its task."""

import torch
from torch.nn import functional as F

from minillm.compress.binary import TRITS, ternarize
from minillm.compress.qat import scale_gradient, straight_through
from minillm.course.wrong_answers import wrong
from minillm.errors import ConfigError, DataError

# --- 32.1 straight through


@wrong("32.1", "rounds and hopes: nothing gets a gradient")
def straight_through(values, rounded):
    return rounded.detach() + 0.0 * values.detach()


@wrong("32.1", "the gradient goes to the rounded numbers")
def straight_through(values, rounded):
    return rounded


@wrong("32.1", "the right gradient, but the sum is no longer exactly the rounded number")
def straight_through(values, rounded):
    return values + (rounded - values).detach()


@wrong("32.1", "the numbers that were not rounded")
def straight_through(values, rounded):
    return values + 0.0 * rounded.detach()


# --- 32.2 fake quantization


@wrong("32.2", "the gradient is passed outside the clip range")
def fake_quantize(values, scale, zero, n_levels):
    codes = ((values / scale).round() + zero).clamp(0, n_levels - 1)
    rounded = scale * (codes - zero)
    return straight_through(values, rounded) + (rounded - rounded.detach())


@wrong("32.2", "the gradient is scaled by the scale")
def fake_quantize(values, scale, zero, n_levels):
    codes = straight_through(values, (values / scale).round()) + zero
    return scale * (codes.clamp(0, n_levels - 1) - zero)


@wrong("32.2", "halves are rounded up")
def fake_quantize(values, scale, zero, n_levels):
    steps = values / scale
    codes = straight_through(steps, (steps + 0.5).floor()) + zero
    return scale * (codes.clamp(0, n_levels - 1) - zero)


@wrong("32.2", "cut off before rounding: the gradient ends half a step too early")
def fake_quantize(values, scale, zero, n_levels):
    steps = (values / scale + zero).clamp(0, n_levels - 1)
    return scale * (straight_through(steps, steps.round()) - zero)


@wrong("32.2", "one level too many")
def fake_quantize(values, scale, zero, n_levels):
    steps = values / scale
    codes = straight_through(steps, steps.round()) + zero
    return scale * (codes.clamp(0, n_levels) - zero)


@wrong("32.2", "rounded, and not cut off at all")
def fake_quantize(values, scale, zero, n_levels):
    steps = values / scale
    return scale * straight_through(steps, steps.round())


@wrong("32.2", "the zero is not taken off again")
def fake_quantize(values, scale, zero, n_levels):
    steps = values / scale
    codes = straight_through(steps, steps.round()) + zero
    return scale * codes.clamp(0, n_levels - 1)


@wrong("32.2", "the scale gets no gradient")
def fake_quantize(values, scale, zero, n_levels):
    scale = scale.detach()
    steps = values / scale
    codes = straight_through(steps, steps.round()) + zero
    return scale * (codes.clamp(0, n_levels - 1) - zero)


# --- 32.3 learned steps


@wrong("32.3", "the gradient of the step is not made smaller")
def lsq_quantize(values, step, n_below, n_above, n_sharing):
    steps = (values / step).clamp(-n_below, n_above)
    return straight_through(steps, steps.round()) * step


@wrong("32.3", "the gradient of the step is divided by the root of the number alone")
def lsq_quantize(values, step, n_below, n_above, n_sharing):
    step = scale_gradient(step, n_sharing**-0.5)
    steps = (values / step).clamp(-n_below, n_above)
    return straight_through(steps, steps.round()) * step


@wrong("32.3", "only the last product's step has a small gradient")
def lsq_quantize(values, step, n_below, n_above, n_sharing):
    steps = (values / step).clamp(-n_below, n_above)
    return straight_through(steps, steps.round()) * scale_gradient(step, (n_sharing * n_above) ** -0.5)


@wrong("32.3", "the gradient of the result is made smaller, that of the values too")
def lsq_quantize(values, step, n_below, n_above, n_sharing):
    steps = (values / step).clamp(-n_below, n_above)
    return scale_gradient(straight_through(steps, steps.round()) * step, (n_sharing * n_above) ** -0.5)


@wrong("32.3", "cut off after rounding: the gradient goes on for half a step beyond the last level")
def lsq_quantize(values, step, n_below, n_above, n_sharing):
    step = scale_gradient(step, (n_sharing * n_above) ** -0.5)
    steps = values / step
    return straight_through(steps, steps.round()).clamp(-n_below, n_above) * step


@wrong("32.3", "the step forgets that the value shrinks in steps: its gradient is the code alone")
def lsq_quantize(values, step, n_below, n_above, n_sharing):
    step = scale_gradient(step, (n_sharing * n_above) ** -0.5)
    steps = (values / step.detach()).clamp(-n_below, n_above)
    return straight_through(steps, steps.round()) * step.detach() + steps.detach().round() * (step - step.detach())


@wrong("32.3", "as many levels below as above")
def lsq_quantize(values, step, n_below, n_above, n_sharing):
    step = scale_gradient(step, (n_sharing * n_above) ** -0.5)
    steps = (values / step).clamp(-n_above, n_above)
    return straight_through(steps, steps.round()) * step


# --- 32.4 soft targets


@wrong("32.4", "T^2 is missing")
def soft_target_loss(logits, teacher_logits, temperature=1.0):
    if logits.shape != teacher_logits.shape or not temperature > 0:
        raise ConfigError(f"temperature {temperature}, {logits.shape} and {teacher_logits.shape}")
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_shares = F.log_softmax(logits.to(wide) / temperature, dim=-1)
    target = F.log_softmax(teacher_logits.detach().to(wide) / temperature, dim=-1)
    return (target.exp() * (target - log_shares)).sum(-1)


@wrong("32.4", "the divergence the other way round")
def soft_target_loss(logits, teacher_logits, temperature=1.0):
    if logits.shape != teacher_logits.shape or not temperature > 0:
        raise ConfigError(f"temperature {temperature}, {logits.shape} and {teacher_logits.shape}")
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_shares = F.log_softmax(logits.to(wide) / temperature, dim=-1)
    target = F.log_softmax(teacher_logits.detach().to(wide) / temperature, dim=-1)
    return temperature**2 * (log_shares.exp() * (log_shares - target)).sum(-1)


@wrong("32.4", "cross-entropy: right gradient, but not 0 where the two agree")
def soft_target_loss(logits, teacher_logits, temperature=1.0):
    if logits.shape != teacher_logits.shape or not temperature > 0:
        raise ConfigError(f"temperature {temperature}, {logits.shape} and {teacher_logits.shape}")
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_shares = F.log_softmax(logits.to(wide) / temperature, dim=-1)
    target = F.log_softmax(teacher_logits.detach().to(wide) / temperature, dim=-1)
    return -(temperature**2) * (target.exp() * log_shares).sum(-1)


@wrong("32.4", "only the teacher is softened")
def soft_target_loss(logits, teacher_logits, temperature=1.0):
    if logits.shape != teacher_logits.shape or not temperature > 0:
        raise ConfigError(f"temperature {temperature}, {logits.shape} and {teacher_logits.shape}")
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_shares = F.log_softmax(logits.to(wide), dim=-1)
    target = F.log_softmax(teacher_logits.detach().to(wide) / temperature, dim=-1)
    return temperature**2 * (target.exp() * (target - log_shares)).sum(-1)


@wrong("32.4", "the teacher learns too")
def soft_target_loss(logits, teacher_logits, temperature=1.0):
    if logits.shape != teacher_logits.shape or not temperature > 0:
        raise ConfigError(f"temperature {temperature}, {logits.shape} and {teacher_logits.shape}")
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_shares = F.log_softmax(logits.to(wide) / temperature, dim=-1)
    target = F.log_softmax(teacher_logits.to(wide) / temperature, dim=-1)
    return temperature**2 * (target.exp() * (target - log_shares)).sum(-1)


@wrong("32.4", "a mean over the vocabulary instead of a sum")
def soft_target_loss(logits, teacher_logits, temperature=1.0):
    if logits.shape != teacher_logits.shape or not temperature > 0:
        raise ConfigError(f"temperature {temperature}, {logits.shape} and {teacher_logits.shape}")
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_shares = F.log_softmax(logits.to(wide) / temperature, dim=-1)
    target = F.log_softmax(teacher_logits.detach().to(wide) / temperature, dim=-1)
    return temperature**2 * (target.exp() * (target - log_shares)).mean(-1)


@wrong("32.4", "logarithms of probabilities, which are 0 for large logits")
def soft_target_loss(logits, teacher_logits, temperature=1.0):
    if logits.shape != teacher_logits.shape or not temperature > 0:
        raise ConfigError(f"temperature {temperature}, {logits.shape} and {teacher_logits.shape}")
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    shares = F.softmax(logits.to(wide) / temperature, dim=-1)
    target = F.softmax(teacher_logits.detach().to(wide) / temperature, dim=-1)
    return temperature**2 * (target * (target.log() - shares.log())).sum(-1)


# --- 32.5 binary weights


@wrong("32.5", "alpha is the largest weight instead of the mean")
def binarize(weight):
    return torch.where(weight < 0, -torch.ones_like(weight), 1.0), weight.abs().amax(-1, keepdim=True)


@wrong("32.5", "one alpha for all rows")
def binarize(weight):
    alpha = weight.abs().mean().expand(*weight.shape[:-1], 1)
    return torch.where(weight < 0, -torch.ones_like(weight), 1.0), alpha


@wrong("32.5", "a weight of 0 gets the sign 0")
def binarize(weight):
    return weight.sign(), weight.abs().mean(-1, keepdim=True)


@wrong("32.5", "alpha is the root of the mean square")
def binarize(weight):
    return torch.where(weight < 0, -torch.ones_like(weight), 1.0), weight.square().mean(-1, keepdim=True).sqrt()


# --- 32.6 the best ternary weights


@wrong("32.6", "the rule of thumb")
def best_ternary(weight):
    return ternarize(weight)


@wrong("32.6", "the largest sum instead of the largest S_k^2 / k: everything stays")
def best_ternary(weight):
    sums = weight.abs().sort(-1, descending=True).values.cumsum(-1)
    return weight.sign(), sums[..., -1:] / weight.shape[-1]


@wrong("32.6", "S_k is not squared")
def best_ternary(weight):
    size = weight.abs()
    falling = size.sort(-1, descending=True).values
    k = torch.arange(1, weight.shape[-1] + 1, dtype=weight.dtype)
    best = (falling.cumsum(-1) / k).argmax(-1, keepdim=True)
    kept = size >= falling.gather(-1, best)
    return torch.where(kept, weight.sign(), 0.0), falling.cumsum(-1).gather(-1, best) / k[best]


@wrong("32.6", "alpha is the mean over the whole row")
def best_ternary(weight):
    size = weight.abs()
    falling = size.sort(-1, descending=True).values
    k = torch.arange(1, weight.shape[-1] + 1, dtype=weight.dtype)
    best = (falling.cumsum(-1).square() / k).argmax(-1, keepdim=True)
    return torch.where(size >= falling.gather(-1, best), weight.sign(), 0.0), size.mean(-1, keepdim=True)


@wrong("32.6", "counts k from 0")
def best_ternary(weight):
    size = weight.abs()
    falling = size.sort(-1, descending=True).values
    k = torch.arange(weight.shape[-1], dtype=weight.dtype).clamp(min=0.5)
    sums = falling.cumsum(-1)
    best = (sums.square() / k).argmax(-1, keepdim=True)
    kept = size >= falling.gather(-1, best)
    return torch.where(kept, weight.sign(), 0.0), sums.gather(-1, best) / (best + 1)


@wrong("32.6", "the smallest weights stay")
def best_ternary(weight):
    size = weight.abs()
    rising = size.sort(-1).values
    k = torch.arange(1, weight.shape[-1] + 1, dtype=weight.dtype)
    sums = rising.cumsum(-1)
    best = (sums.square() / k).argmax(-1, keepdim=True)
    return torch.where(size <= rising.gather(-1, best), weight.sign(), 0.0), sums.gather(-1, best) / k[best]


# --- 32.7 splitting


@wrong("32.7", "J and K swapped in a")
def split_ternary(weight):
    signs, alpha = ternarize(weight)
    size, kept = weight.abs(), signs != 0
    n_kept = kept.sum(-1, keepdim=True)
    of_kept = (n_kept * alpha).clamp(min=1e-30)
    lopsided = (weight * ~kept).sum(-1, keepdim=True)
    if bool((lopsided.abs() >= of_kept).any() & (lopsided != 0).any()):
        raise DataError("no split")
    share = 0.5 + 0.5 * lopsided / of_kept
    n_zero = (weight.shape[-1] - n_kept).clamp(min=1)
    shift = (weight.shape[-1] * alpha - size.sum(-1, keepdim=True)) / (2 * n_zero)
    first = torch.where(kept, share * weight, torch.where(weight > 0, weight + shift, shift))
    return first, weight - first


@wrong("32.7", "weights that stay are halved, whatever the others do")
def split_ternary(weight):
    signs, alpha = ternarize(weight)
    size, kept = weight.abs(), signs != 0
    n_kept = kept.sum(-1, keepdim=True)
    of_kept = (n_kept * alpha).clamp(min=1e-30)
    lopsided = (weight * ~kept).sum(-1, keepdim=True)
    if bool((lopsided.abs() >= of_kept).any() & (lopsided != 0).any()):
        raise DataError("no split")
    share = 0.5
    n_zero = (weight.shape[-1] - n_kept).clamp(min=1)
    shift = (weight.shape[-1] * alpha - size.sum(-1, keepdim=True)) / (2 * n_zero)
    first = torch.where(kept, share * weight, torch.where(weight > 0, weight + shift, shift))
    return first, weight - first


@wrong("32.7", "b is twice as large as it should be")
def split_ternary(weight):
    signs, alpha = ternarize(weight)
    size, kept = weight.abs(), signs != 0
    n_kept = kept.sum(-1, keepdim=True)
    of_kept = (n_kept * alpha).clamp(min=1e-30)
    lopsided = (weight * ~kept).sum(-1, keepdim=True)
    if bool((lopsided.abs() >= of_kept).any() & (lopsided != 0).any()):
        raise DataError("no split")
    share = 0.5 - 0.5 * lopsided / of_kept
    n_zero = (weight.shape[-1] - n_kept).clamp(min=1)
    shift = (weight.shape[-1] * alpha - size.sum(-1, keepdim=True)) / (n_zero)
    first = torch.where(kept, share * weight, torch.where(weight > 0, weight + shift, shift))
    return first, weight - first


@wrong("32.7", "the halves are the two signs: they round right, but do not add up to the weight")
def split_ternary(weight):
    signs, alpha = ternarize(weight)
    lopsided = (weight * (signs == 0)).sum(-1, keepdim=True).abs()
    if bool((lopsided > (signs != 0).sum(-1, keepdim=True) * alpha).any()):
        raise DataError("no split")
    first = torch.where(signs == 0, alpha / 2, signs * alpha / 2)
    return first, signs * alpha - first


@wrong("32.7", "what has no split is split all the same")
def split_ternary(weight):
    signs, alpha = ternarize(weight)
    size, kept = weight.abs(), signs != 0
    n_kept = kept.sum(-1, keepdim=True)
    of_kept = (n_kept * alpha).clamp(min=1e-30)
    lopsided = (weight * ~kept).sum(-1, keepdim=True)
    share = 0.5 - 0.5 * lopsided / of_kept
    n_zero = (weight.shape[-1] - n_kept).clamp(min=1)
    shift = (weight.shape[-1] * alpha - size.sum(-1, keepdim=True)) / (2 * n_zero)
    first = torch.where(kept, share * weight, torch.where(weight > 0, weight + shift, shift))
    return first, weight - first


@wrong("32.7", "a of all rows together")
def split_ternary(weight):
    signs, alpha = ternarize(weight)
    size, kept = weight.abs(), signs != 0
    n_kept = kept.sum(-1, keepdim=True)
    of_kept = (n_kept * alpha).clamp(min=1e-30)
    lopsided = (weight * ~kept).sum(-1, keepdim=True)
    if bool((lopsided.abs() >= of_kept).any() & (lopsided != 0).any()):
        raise DataError("no split")
    share = 0.5 - 0.5 * lopsided.sum() / of_kept.sum()
    n_zero = (weight.shape[-1] - n_kept).clamp(min=1)
    shift = (weight.shape[-1] * alpha - size.sum(-1, keepdim=True)) / (2 * n_zero)
    first = torch.where(kept, share * weight, torch.where(weight > 0, weight + shift, shift))
    return first, weight - first


# --- 32.8 packing


@wrong("32.8", "the first weight is the highest digit")
def pack_trits(signs):
    digits = F.pad(signs.int() + 1, (0, -len(signs) % TRITS), value=1).view(-1, TRITS)
    return (digits * 3 ** torch.arange(TRITS - 1, -1, -1)).sum(-1).to(torch.uint8)


@wrong("32.8", "filled up with -1 instead of 0")
def pack_trits(signs):
    digits = F.pad(signs.int() + 1, (0, -len(signs) % TRITS), value=0).view(-1, TRITS)
    return (digits * 3 ** torch.arange(TRITS)).sum(-1).to(torch.uint8)


@wrong("32.8", "two bits a weight, four to a byte")
def pack_trits(signs):
    digits = F.pad(signs.int() + 1, (0, -len(signs) % 4), value=1).view(-1, 4)
    return (digits * 4 ** torch.arange(4)).sum(-1).to(torch.uint8)


@wrong("32.8", "digits of -1, 0, 1, some of which wrap around in a byte")
def pack_trits(signs):
    digits = F.pad(signs.int(), (0, -len(signs) % TRITS), value=0).view(-1, TRITS)
    return (digits * 3 ** torch.arange(TRITS)).sum(-1).to(torch.uint8)


@wrong("32.8", "an incomplete last byte is lost")
def pack_trits(signs):
    digits = (signs.int() + 1)[: len(signs) // TRITS * TRITS].view(-1, TRITS)
    return (digits * 3 ** torch.arange(TRITS)).sum(-1).to(torch.uint8)
