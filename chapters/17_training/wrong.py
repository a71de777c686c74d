"""Wrong answers to chapter 17: the mistakes that are really made, each of which must cost exactly its task."""

import copy
import math

import torch

from minillm.course.wrong_answers import wrong
from minillm.errors import ConfigError, ShapeError, TrainingError
from minillm.runtime import generator_states, restore_generators
from minillm.train.clip import gradients_of
from minillm.train.loss import IGNORED, next_token_loss
from minillm.train.saved_state import RunState, check_fits
from minillm.train.schedule import check_schedule

# --- 17.1 AdamW


@wrong("17.1", "no correction of the means, which start at 0")
def adamw_step(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    beta1, beta2 = betas
    exp_avg = beta1 * exp_avg + (1 - beta1) * gradient
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient**2
    update = exp_avg / (exp_avg_sq.sqrt() + eps)
    return parameter * (1 - lr * weight_decay) - lr * update, exp_avg, exp_avg_sq


@wrong("17.1", "weight decay added to the gradient: Adam with an L2 penalty, not AdamW")
def adamw_step(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    beta1, beta2 = betas
    gradient = gradient + weight_decay * parameter
    exp_avg = beta1 * exp_avg + (1 - beta1) * gradient
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient**2
    update = exp_avg / (1 - beta1**step) / ((exp_avg_sq / (1 - beta2**step)).sqrt() + eps)
    return parameter - lr * update, exp_avg, exp_avg_sq


@wrong("17.1", "eps under the root")
def adamw_step(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    beta1, beta2 = betas
    exp_avg = beta1 * exp_avg + (1 - beta1) * gradient
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient**2
    update = exp_avg / (1 - beta1**step) / (exp_avg_sq / (1 - beta2**step) + eps).sqrt()
    return parameter * (1 - lr * weight_decay) - lr * update, exp_avg, exp_avg_sq


@wrong("17.1", "eps added before the correction")
def adamw_step(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    beta1, beta2 = betas
    exp_avg = beta1 * exp_avg + (1 - beta1) * gradient
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient**2
    step_size = lr * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
    return parameter * (1 - lr * weight_decay) - step_size * exp_avg / (exp_avg_sq.sqrt() + eps), exp_avg, exp_avg_sq


@wrong("17.1", "eps and betas written into the code")
def adamw_step(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    exp_avg = 0.9 * exp_avg + 0.1 * gradient
    exp_avg_sq = 0.999 * exp_avg_sq + 0.001 * gradient**2
    update = exp_avg / (1 - 0.9**step) / ((exp_avg_sq / (1 - 0.999**step)).sqrt() + 1e-8)
    return parameter * (1 - lr * weight_decay) - lr * update, exp_avg, exp_avg_sq


@wrong("17.1", "the corrected means are handed on to the next step")
def adamw_step(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    beta1, beta2 = betas
    exp_avg = (beta1 * exp_avg + (1 - beta1) * gradient) / (1 - beta1**step)
    exp_avg_sq = (beta2 * exp_avg_sq + (1 - beta2) * gradient**2) / (1 - beta2**step)
    return parameter * (1 - lr * weight_decay) - lr * exp_avg / (exp_avg_sq.sqrt() + eps), exp_avg, exp_avg_sq


@wrong("17.1", "steps counted from 0: corrected as if this were the next step")
def adamw_step(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    beta1, beta2 = betas
    exp_avg = beta1 * exp_avg + (1 - beta1) * gradient
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient**2
    update = exp_avg / (1 - beta1 ** (step + 1)) / ((exp_avg_sq / (1 - beta2 ** (step + 1))).sqrt() + eps)
    return parameter * (1 - lr * weight_decay) - lr * update, exp_avg, exp_avg_sq


@wrong("17.1", "weight decay without the learning rate")
def adamw_step(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    beta1, beta2 = betas
    exp_avg = beta1 * exp_avg + (1 - beta1) * gradient
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient**2
    update = exp_avg / (1 - beta1**step) / ((exp_avg_sq / (1 - beta2**step)).sqrt() + eps)
    return parameter * (1 - weight_decay) - lr * update, exp_avg, exp_avg_sq


@wrong("17.1", "works in place: right numbers, but the caller's tensors are overwritten")
def adamw_step(parameter, gradient, exp_avg, exp_avg_sq, step, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    beta1, beta2 = betas
    exp_avg.mul_(beta1).add_(gradient, alpha=1 - beta1)
    exp_avg_sq.mul_(beta2).add_(gradient**2, alpha=1 - beta2)
    update = exp_avg / (1 - beta1**step) / ((exp_avg_sq / (1 - beta2**step)).sqrt() + eps)
    return parameter * (1 - lr * weight_decay) - lr * update, exp_avg, exp_avg_sq


# --- 17.2 schedule


@wrong("17.2", "the warm-up begins at rate 0: step 0 does nothing")
def warmup_cosine(step, max_learning_rate, min_learning_rate, n_warmup_steps, n_steps):
    check_schedule(step, max_learning_rate, min_learning_rate, n_warmup_steps, n_steps)
    if step < n_warmup_steps:
        return max_learning_rate * step / n_warmup_steps
    if step >= n_steps:
        return min_learning_rate
    progress = (step - n_warmup_steps) / (n_steps - n_warmup_steps)
    return min_learning_rate + 0.5 * (max_learning_rate - min_learning_rate) * (1 + math.cos(math.pi * progress))


@wrong("17.2", "the cosine comes up again after the end")
def warmup_cosine(step, max_learning_rate, min_learning_rate, n_warmup_steps, n_steps):
    check_schedule(step, max_learning_rate, min_learning_rate, n_warmup_steps, n_steps)
    if step < n_warmup_steps:
        return max_learning_rate * (step + 1) / n_warmup_steps
    progress = (step - n_warmup_steps) / max(1, n_steps - n_warmup_steps)
    return min_learning_rate + 0.5 * (max_learning_rate - min_learning_rate) * (1 + math.cos(math.pi * progress))


@wrong("17.2", "the cosine ignores the warm-up: a jump down where the warm-up ends")
def warmup_cosine(step, max_learning_rate, min_learning_rate, n_warmup_steps, n_steps):
    check_schedule(step, max_learning_rate, min_learning_rate, n_warmup_steps, n_steps)
    if step < n_warmup_steps:
        return max_learning_rate * (step + 1) / n_warmup_steps
    if step >= n_steps:
        return min_learning_rate
    return min_learning_rate + 0.5 * (max_learning_rate - min_learning_rate) * (1 + math.cos(math.pi * step / n_steps))


@wrong("17.2", "falls to 0 and is cut off at the minimum, instead of falling to the minimum")
def warmup_cosine(step, max_learning_rate, min_learning_rate, n_warmup_steps, n_steps):
    check_schedule(step, max_learning_rate, min_learning_rate, n_warmup_steps, n_steps)
    if step < n_warmup_steps:
        return max_learning_rate * (step + 1) / n_warmup_steps
    if step >= n_steps:
        return min_learning_rate
    progress = (step - n_warmup_steps) / (n_steps - n_warmup_steps)
    return max(min_learning_rate, 0.5 * max_learning_rate * (1 + math.cos(math.pi * progress)))


@wrong("17.2", "a straight line instead of a cosine")
def warmup_cosine(step, max_learning_rate, min_learning_rate, n_warmup_steps, n_steps):
    check_schedule(step, max_learning_rate, min_learning_rate, n_warmup_steps, n_steps)
    if step < n_warmup_steps:
        return max_learning_rate * (step + 1) / n_warmup_steps
    if step >= n_steps:
        return min_learning_rate
    progress = (step - n_warmup_steps) / (n_steps - n_warmup_steps)
    return max_learning_rate - (max_learning_rate - min_learning_rate) * progress


@wrong("17.2", "reaches the minimum one step early")
def warmup_cosine(step, max_learning_rate, min_learning_rate, n_warmup_steps, n_steps):
    check_schedule(step, max_learning_rate, min_learning_rate, n_warmup_steps, n_steps)
    if step < n_warmup_steps:
        return max_learning_rate * (step + 1) / n_warmup_steps
    if step >= n_steps - 1:
        return min_learning_rate
    progress = (step - n_warmup_steps) / (n_steps - 1 - n_warmup_steps)
    return min_learning_rate + 0.5 * (max_learning_rate - min_learning_rate) * (1 + math.cos(math.pi * progress))


@wrong("17.2", "accepts what makes no schedule")
def warmup_cosine(step, max_learning_rate, min_learning_rate, n_warmup_steps, n_steps):
    if step < n_warmup_steps:
        return max_learning_rate * (step + 1) / n_warmup_steps
    if step >= n_steps:
        return min_learning_rate
    progress = (step - n_warmup_steps) / (n_steps - n_warmup_steps)
    return min_learning_rate + 0.5 * (max_learning_rate - min_learning_rate) * (1 + math.cos(math.pi * progress))


# --- 17.3 clipping


@wrong("17.3", "each tensor is clipped by its own norm: the direction of the step changes")
def clip_gradients(parameters, max_norm, error_if_nonfinite=False):
    if not max_norm > 0:
        raise ConfigError(f"max_norm is {max_norm}")
    gradients = gradients_of(parameters)
    if not gradients:
        return torch.tensor(0.0)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    if error_if_nonfinite and not bool(torch.isfinite(norm)):
        raise TrainingError("not finite")
    for gradient in gradients:
        gradient.mul_((max_norm / (gradient.norm() + 1e-6)).clamp(max=1.0))
    return norm


@wrong("17.3", "short gradients are made longer")
def clip_gradients(parameters, max_norm, error_if_nonfinite=False):
    if not max_norm > 0:
        raise ConfigError(f"max_norm is {max_norm}")
    gradients = gradients_of(parameters)
    if not gradients:
        return torch.tensor(0.0)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    if error_if_nonfinite and not bool(torch.isfinite(norm)):
        raise TrainingError("not finite")
    if not math.isinf(max_norm):
        for gradient in gradients:
            gradient.mul_(max_norm / (norm + 1e-6))
    return norm


@wrong("17.3", "every entry is cut off at max_norm: clipping by value")
def clip_gradients(parameters, max_norm, error_if_nonfinite=False):
    if not max_norm > 0:
        raise ConfigError(f"max_norm is {max_norm}")
    gradients = gradients_of(parameters)
    if not gradients:
        return torch.tensor(0.0)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    if error_if_nonfinite and not bool(torch.isfinite(norm)):
        raise TrainingError("not finite")
    for gradient in gradients:
        gradient.clamp_(-max_norm, max_norm)
    return norm


@wrong("17.3", "the norms of the tensors are added up")
def clip_gradients(parameters, max_norm, error_if_nonfinite=False):
    if not max_norm > 0:
        raise ConfigError(f"max_norm is {max_norm}")
    gradients = gradients_of(parameters)
    if not gradients:
        return torch.tensor(0.0)
    norm = torch.stack([gradient.norm() for gradient in gradients]).sum()
    if error_if_nonfinite and not bool(torch.isfinite(norm)):
        raise TrainingError("not finite")
    if not math.isinf(max_norm):
        for gradient in gradients:
            gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


@wrong("17.3", "gives back the norm after clipping")
def clip_gradients(parameters, max_norm, error_if_nonfinite=False):
    if not max_norm > 0:
        raise ConfigError(f"max_norm is {max_norm}")
    gradients = gradients_of(parameters)
    if not gradients:
        return torch.tensor(0.0)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    if error_if_nonfinite and not bool(torch.isfinite(norm)):
        raise TrainingError("not finite")
    if not math.isinf(max_norm):
        for gradient in gradients:
            gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm.clamp(max=max_norm)


@wrong("17.3", "reads the parameters twice: a generator is empty the second time")
def clip_gradients(parameters, max_norm, error_if_nonfinite=False):
    if not max_norm > 0:
        raise ConfigError(f"max_norm is {max_norm}")
    parameters = [parameters] if isinstance(parameters, torch.Tensor) else parameters
    norms = [parameter.grad.norm() for parameter in parameters if parameter.grad is not None]
    if not norms:
        return torch.tensor(0.0)
    norm = torch.stack(norms).norm()
    if error_if_nonfinite and not bool(torch.isfinite(norm)):
        raise TrainingError("not finite")
    if not math.isinf(max_norm):
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


@wrong("17.3", "raises only after the gradients are spoilt")
def clip_gradients(parameters, max_norm, error_if_nonfinite=False):
    if not max_norm > 0:
        raise ConfigError(f"max_norm is {max_norm}")
    gradients = gradients_of(parameters)
    if not gradients:
        return torch.tensor(0.0)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    if not math.isinf(max_norm):
        for gradient in gradients:
            gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    if error_if_nonfinite and not bool(torch.isfinite(norm)):
        raise TrainingError("not finite")
    return norm


# --- 17.4 accumulation


@wrong("17.4", "the mean of the parts' means: parts with few counted targets weigh too much")
def accumulate_gradients(model, inputs, targets, n_microbatches, loss_sum=next_token_loss, scale=1.0):
    if inputs.shape != targets.shape or not 1 <= n_microbatches <= len(inputs):
        raise ShapeError("expected one shape (B, T) with B rows for 1 to B parts")
    total = 0.0
    for part, goal in zip(inputs.tensor_split(n_microbatches), targets.tensor_split(n_microbatches), strict=True):
        loss = loss_sum(model, part, goal) / (goal != IGNORED).sum().clamp(min=1) / n_microbatches
        (scale * loss).backward()
        total = total + loss.detach()
    return total


@wrong("17.4", "not divided by the number of parts: the sum of the parts' means")
def accumulate_gradients(model, inputs, targets, n_microbatches, loss_sum=next_token_loss, scale=1.0):
    if inputs.shape != targets.shape or not 1 <= n_microbatches <= len(inputs):
        raise ShapeError("expected one shape (B, T) with B rows for 1 to B parts")
    total = 0.0
    for part, goal in zip(inputs.tensor_split(n_microbatches), targets.tensor_split(n_microbatches), strict=True):
        loss = loss_sum(model, part, goal) / (goal != IGNORED).sum().clamp(min=1)
        (scale * loss).backward()
        total = total + loss.detach()
    return total / n_microbatches


@wrong("17.4", "divides by all targets, those that do not count included")
def accumulate_gradients(model, inputs, targets, n_microbatches, loss_sum=next_token_loss, scale=1.0):
    if inputs.shape != targets.shape or not 1 <= n_microbatches <= len(inputs):
        raise ShapeError("expected one shape (B, T) with B rows for 1 to B parts")
    total = 0.0
    for part, goal in zip(inputs.tensor_split(n_microbatches), targets.tensor_split(n_microbatches), strict=True):
        loss = loss_sum(model, part, goal) / targets.numel()
        (scale * loss).backward()
        total = total + loss.detach()
    return total


@wrong("17.4", "clears the gradients between the parts: only the last part counts")
def accumulate_gradients(model, inputs, targets, n_microbatches, loss_sum=next_token_loss, scale=1.0):
    if inputs.shape != targets.shape or not 1 <= n_microbatches <= len(inputs):
        raise ShapeError("expected one shape (B, T) with B rows for 1 to B parts")
    n_tokens, total = (targets != IGNORED).sum(), 0.0
    for part, goal in zip(inputs.tensor_split(n_microbatches), targets.tensor_split(n_microbatches), strict=True):
        model.zero_grad()
        loss = loss_sum(model, part, goal) / n_tokens
        (scale * loss).backward()
        total = total + loss.detach()
    return total


@wrong("17.4", "drops the rows that are left over when the parts do not come out even")
def accumulate_gradients(model, inputs, targets, n_microbatches, loss_sum=next_token_loss, scale=1.0):
    if inputs.shape != targets.shape or not 1 <= n_microbatches <= len(inputs):
        raise ShapeError("expected one shape (B, T) with B rows for 1 to B parts")
    n_tokens, total, size = (targets != IGNORED).sum(), 0.0, len(inputs) // n_microbatches
    for first in range(0, size * n_microbatches, size):
        loss = loss_sum(model, inputs[first : first + size], targets[first : first + size]) / n_tokens
        (scale * loss).backward()
        total = total + loss.detach()
    return total


@wrong("17.4", "the whole batch in one pass: right gradient, nothing saved")
def accumulate_gradients(model, inputs, targets, n_microbatches, loss_sum=next_token_loss, scale=1.0):
    if inputs.shape != targets.shape or not 1 <= n_microbatches <= len(inputs):
        raise ShapeError("expected one shape (B, T) with B rows for 1 to B parts")
    loss = loss_sum(model, inputs, targets) / (targets != IGNORED).sum()
    (scale * loss).backward()
    return loss.detach()


@wrong("17.4", "the loss returned is scaled as well")
def accumulate_gradients(model, inputs, targets, n_microbatches, loss_sum=next_token_loss, scale=1.0):
    if inputs.shape != targets.shape or not 1 <= n_microbatches <= len(inputs):
        raise ShapeError("expected one shape (B, T) with B rows for 1 to B parts")
    n_tokens, total = (targets != IGNORED).sum(), 0.0
    for part, goal in zip(inputs.tensor_split(n_microbatches), targets.tensor_split(n_microbatches), strict=True):
        loss = scale * loss_sum(model, part, goal) / n_tokens
        loss.backward()
        total = total + loss.detach()
    return total


@wrong("17.4", "always the next-token loss, whatever loss was passed in")
def accumulate_gradients(model, inputs, targets, n_microbatches, loss_sum=next_token_loss, scale=1.0):
    if inputs.shape != targets.shape or not 1 <= n_microbatches <= len(inputs):
        raise ShapeError("expected one shape (B, T) with B rows for 1 to B parts")
    n_tokens, total = (targets != IGNORED).sum(), 0.0
    for part, goal in zip(inputs.tensor_split(n_microbatches), targets.tensor_split(n_microbatches), strict=True):
        loss = next_token_loss(model, part, goal) / n_tokens
        (scale * loss).backward()
        total = total + loss.detach()
    return total


# --- 17.5 and 17.6 the loss scaler


@wrong("17.5", "multiplies instead of dividing")
def unscale(self, parameters):
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(self.scale)


@wrong("17.5", "divides the parameters, not their gradients")
def unscale(self, parameters):
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.data.div_(self.scale)


@wrong("17.5", "makes new tensors and forgets them: nothing changes")
def unscale(self, parameters):
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad / self.scale


@wrong("17.5", "replaces an overflow by 0, so that nobody sees it")
def unscale(self, parameters):
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(self.scale).nan_to_num_(0.0, 0.0, 0.0)


@wrong("17.5", "forgets that a parameter may have no gradient")
def unscale(self, parameters):
    for parameter in parameters:
        parameter.grad.div_(self.scale)


@wrong("17.6", "an overflow does not start the count again")
def update(self, found_overflow):
    if found_overflow:
        self.scale *= self.backoff_factor
        return
    self.n_good_steps += 1
    if self.n_good_steps == self.growth_interval:
        self.scale *= self.growth_factor
        self.n_good_steps = 0


@wrong("17.6", "the count goes on after growing: it grows once and never again")
def update(self, found_overflow):
    if found_overflow:
        self.scale *= self.backoff_factor
        self.n_good_steps = 0
        return
    self.n_good_steps += 1
    if self.n_good_steps == self.growth_interval:
        self.scale *= self.growth_factor


@wrong("17.6", "grows one step too late")
def update(self, found_overflow):
    if found_overflow:
        self.scale *= self.backoff_factor
        self.n_good_steps = 0
        return
    self.n_good_steps += 1
    if self.n_good_steps > self.growth_interval:
        self.scale *= self.growth_factor
        self.n_good_steps = 0


@wrong("17.6", "halves and doubles whatever the settings say")
def update(self, found_overflow):
    if found_overflow:
        self.scale /= 2.0
        self.n_good_steps = 0
        return
    self.n_good_steps += 1
    if self.n_good_steps == self.growth_interval:
        self.scale *= 2.0
        self.n_good_steps = 0


@wrong("17.6", "an overflow counts as a good step too")
def update(self, found_overflow):
    if found_overflow:
        self.scale *= self.backoff_factor
        self.n_good_steps = 0
    self.n_good_steps += 1
    if self.n_good_steps == self.growth_interval:
        self.scale *= self.growth_factor
        self.n_good_steps = 0


@wrong("17.6", "the wrong way round: shrinks when all is well")
def update(self, found_overflow):
    if not found_overflow:
        self.scale *= self.backoff_factor
        self.n_good_steps = 0
        return
    self.n_good_steps += 1
    if self.n_good_steps == self.growth_interval:
        self.scale *= self.growth_factor
        self.n_good_steps = 0


# --- 17.7 and 17.8 the state of a run


@wrong("17.7", "no copy: the state changes with the run")
def capture_state(module, optimizer, step, generators=None):
    return RunState(module.state_dict(), optimizer.state_dict(), step, generator_states(generators or {}))


@wrong("17.7", "a shallow copy: new dictionaries, the old tensors")
def capture_state(module, optimizer, step, generators=None):
    model_state, optimizer_state = copy.copy(module.state_dict()), copy.copy(optimizer.state_dict())
    return RunState(model_state, optimizer_state, step, generator_states(generators or {}))


@wrong("17.7", "copies the model, but not the optimizer")
def capture_state(module, optimizer, step, generators=None):
    model_state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    return RunState(model_state, optimizer.state_dict(), step, generator_states(generators or {}))


@wrong("17.7", "forgets the generators")
def capture_state(module, optimizer, step, generators=None):
    return RunState(copy.deepcopy(module.state_dict()), copy.deepcopy(optimizer.state_dict()), step)


@wrong("17.7", "keeps the settings of the optimizer, but not its moments")
def capture_state(module, optimizer, step, generators=None):
    optimizer_state = {"state": {}, "param_groups": copy.deepcopy(optimizer.state_dict()["param_groups"])}
    return RunState(copy.deepcopy(module.state_dict()), optimizer_state, step, generator_states(generators or {}))


@wrong("17.7", "forgets the step: learning rate and data begin again")
def capture_state(module, optimizer, step, generators=None):
    model_state, optimizer_state = copy.deepcopy(module.state_dict()), copy.deepcopy(optimizer.state_dict())
    return RunState(model_state, optimizer_state, 0, generator_states(generators or {}))


@wrong("17.8", "forgets the optimizer")
def restore_state(state, module, optimizer, generators=None):
    check_fits(state, module, optimizer, "the captured state")
    restore_generators(generators or {}, state.generators)
    module.load_state_dict(state.model)
    return state.step


@wrong("17.8", "forgets the generators")
def restore_state(state, module, optimizer, generators=None):
    check_fits(state, module, optimizer, "the captured state")
    module.load_state_dict(state.model)
    optimizer.load_state_dict(copy.deepcopy(state.optimizer))
    return state.step


@wrong("17.8", "gives the state's own tensors to the optimizer: the second restore finds them changed")
def restore_state(state, module, optimizer, generators=None):
    check_fits(state, module, optimizer, "the captured state")
    restore_generators(generators or {}, state.generators)
    module.load_state_dict(state.model)
    optimizer.load_state_dict(state.optimizer)
    return state.step


@wrong("17.8", "changes the model before it looks whether the rest fits")
def restore_state(state, module, optimizer, generators=None):
    module.load_state_dict(state.model)
    check_fits(state, module, optimizer, "the captured state")
    restore_generators(generators or {}, state.generators)
    optimizer.load_state_dict(copy.deepcopy(state.optimizer))
    return state.step


@wrong("17.8", "loads what fits and leaves the rest: strict=False")
def restore_state(state, module, optimizer, generators=None):
    restore_generators(generators or {}, state.generators)
    module.load_state_dict(state.model, strict=False)
    optimizer.load_state_dict(copy.deepcopy(state.optimizer))
    return state.step


@wrong("17.8", "the step is put back as 0")
def restore_state(state, module, optimizer, generators=None):
    check_fits(state, module, optimizer, "the captured state")
    restore_generators(generators or {}, state.generators)
    module.load_state_dict(state.model)
    optimizer.load_state_dict(copy.deepcopy(state.optimizer))
    return 0
