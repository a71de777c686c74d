"""Wrong answers to chapter 25: the mistakes that are really made, each of which must cost exactly its task."""

import torch
from torch import nn
from torch.nn import functional as F

from minillm import surgery
from minillm.adapt.heads import head_modules
from minillm.adapt.in_front import repeated
from minillm.adapt.layers import layers_of
from minillm.adapt.prompted import inner_cache, padding_on_the_left, with_new_words, with_room
from minillm.course.wrong_answers import wrong
from minillm.errors import ConfigError
from minillm.nn.linear import Linear, normal_weight

# --- 25.1 the start of an adapter


@wrong("25.1", "not near the identity: the usual start of a linear layer, whatever initial_std says")
def __init__(self, d_model, config, generator=None):
    super().__init__()
    self.down = Linear(d_model, config.bottleneck, bias=True, std=d_model**-0.5, generator=generator)
    self.up = Linear(config.bottleneck, d_model, bias=True, std=config.bottleneck**-0.5, generator=generator)
    self.activation, self.is_on = config.activation, True
    if config.zero_up:
        nn.init.zeros_(self.up.weight)


@wrong("25.1", "both matrices at zero: neither ever gets a gradient")
def __init__(self, d_model, config, generator=None):
    super().__init__()
    self.down = Linear(d_model, config.bottleneck, bias=True, std=0.0)
    self.up = Linear(config.bottleneck, d_model, bias=True, std=0.0)
    self.activation, self.is_on = config.activation, True


@wrong("25.1", "normal numbers that are not cut off at twice the standard deviation")
def __init__(self, d_model, config, generator=None):
    super().__init__()
    self.down = Linear(d_model, config.bottleneck, True, config.initial_std, generator)
    self.up = Linear(config.bottleneck, d_model, True, 0.0 if config.zero_up else config.initial_std, generator)
    self.activation, self.is_on = config.activation, True


@wrong("25.1", "zero_up leaves the wrong matrix at zero: W_up is noise, and what it adds is zero only by its bias")
def __init__(self, d_model, config, generator=None):
    super().__init__()
    self.down = Linear(d_model, config.bottleneck, bias=True, std=0.0)
    self.up = Linear(config.bottleneck, d_model, bias=True, std=0.0)
    self.activation, self.is_on = config.activation, True
    std = config.initial_std
    for layer in (self.up,) if config.zero_up else (self.down, self.up):
        nn.init.trunc_normal_(layer.weight, 0.0, std, -2 * std, 2 * std, generator)


@wrong("25.1", "draws from torch's own generator: other numbers at every run")
def __init__(self, d_model, config, generator=None):
    super().__init__()
    self.down = Linear(d_model, config.bottleneck, bias=True, std=0.0)
    self.up = Linear(config.bottleneck, d_model, bias=True, std=0.0)
    self.activation, self.is_on = config.activation, True
    std = config.initial_std
    for layer in (self.down,) if config.zero_up else (self.down, self.up):
        nn.init.trunc_normal_(layer.weight, 0.0, std, -2 * std, 2 * std)


# --- 25.2 what an adapter adds


@wrong("25.2", "no skip: what the part has made is lost")
def forward(self, *args, **kwargs):
    h = super().forward(*args, **kwargs)
    return self.adapter(h) if self.adapter.is_on else h


@wrong("25.2", "reads the input of the part instead of what the part has made")
def forward(self, *args, **kwargs):
    h = super().forward(*args, **kwargs)
    if not self.adapter.is_on or args[0].shape != h.shape:
        return h
    return h + self.adapter(args[0])


@wrong("25.2", "cannot be switched off")
def forward(self, *args, **kwargs):
    h = super().forward(*args, **kwargs)
    return h + self.adapter(h)


@wrong("25.2", "passes on the first argument only: masks and caches are lost behind a whole layer")
def forward(self, x, *args, **kwargs):
    h = super().forward(x)
    return h + self.adapter(h) if self.adapter.is_on else h


@wrong("25.2", "the skip is cut off from the gradient")
def forward(self, *args, **kwargs):
    h = super().forward(*args, **kwargs)
    return h.detach() + self.adapter(h) if self.adapter.is_on else h


# --- 25.4 a prefix's keys and values


@wrong("25.4", "all keys first, then all values: layers read each other's")
def keys_and_values(self, layer):
    width = self.n_kv_heads * self.d_head
    keys, values = self.rows().chunk(2, dim=1)
    here = slice(layer * width, (layer + 1) * width)
    shape = (self.n_kv_heads, self.d_head)
    return keys[:, here].unflatten(1, shape).transpose(0, 1), values[:, here].unflatten(1, shape).transpose(0, 1)


@wrong("25.4", "every layer gets the rows of the first")
def keys_and_values(self, layer):
    width = self.n_kv_heads * self.d_head
    rows = self.rows()[:, : 2 * width]
    key, value = rows.unflatten(1, (2, self.n_kv_heads, self.d_head)).permute(1, 2, 0, 3)
    return key, value


@wrong("25.4", "values and keys exchanged")
def keys_and_values(self, layer):
    width = self.n_kv_heads * self.d_head
    rows = self.rows()[:, 2 * layer * width : 2 * (layer + 1) * width]
    key, value = rows.unflatten(1, (2, self.n_kv_heads, self.d_head)).permute(1, 2, 0, 3)
    return value, key


@wrong("25.4", "reshaped where it should be turned: heads and rows are mixed up")
def keys_and_values(self, layer):
    width = self.n_kv_heads * self.d_head
    rows = self.rows()[:, 2 * layer * width : 2 * (layer + 1) * width]
    key, value = rows.chunk(2, dim=1)
    shape = (self.n_kv_heads, self.n_virtual, self.d_head)
    return key.reshape(shape), value.reshape(shape)


@wrong("25.4", "the network without its tanh")
def keys_and_values(self, layer):
    width = self.n_kv_heads * self.d_head
    here = slice(2 * layer * width, 2 * (layer + 1) * width)
    if self.table is not None:
        rows = self.table[:, here]
    else:
        rows = F.linear(self.widen(self.start), self.output.weight[here], self.output.bias[here])
    key, value = rows.unflatten(1, (2, self.n_kv_heads, self.d_head)).permute(1, 2, 0, 3)
    return key, value


@wrong("25.4", "the rows are numbers without a gradient: nothing is trained")
def keys_and_values(self, layer):
    width = self.n_kv_heads * self.d_head
    rows = self.folded()[:, 2 * layer * width : 2 * (layer + 1) * width]
    key, value = rows.unflatten(1, (2, self.n_kv_heads, self.d_head)).permute(1, 2, 0, 3)
    return key, value


# --- 25.5 places behind a prefix


@wrong("25.5", "the text's places count from 0, as if no prefix stood before it")
def moved(self, here):
    return here


@wrong("25.5", "only tensors are moved: right in a batch with padding, wrong without")
def moved(self, here):
    n_before = self.prefix.n_virtual if self.prefix.is_on else 0
    return here if isinstance(here, slice) else here + n_before


@wrong("25.5", "moves the text also when the prefix is switched off")
def moved(self, here):
    n_before = self.prefix.n_virtual
    if isinstance(here, slice):
        return slice(here.start + n_before, here.stop + n_before)
    return here + n_before


@wrong("25.5", "one place too few: the last prefix row and the first token share a place")
def moved(self, here):
    n_before = self.prefix.n_virtual - 1 if self.prefix.is_on else 0
    if isinstance(here, slice):
        return slice(here.start + n_before, here.stop + n_before)
    return here + n_before


# --- 25.3 the network folded into rows


@wrong("25.3", "the network stays: the table is made, and nothing is saved")
@torch.no_grad()
def fold(self, table):
    old = next(self.parameters())
    if self.table is not None:
        self.table.copy_(table)
        return
    self.table = nn.Parameter(table.to(old.device, old.dtype, copy=True), requires_grad=old.requires_grad)


@wrong("25.3", "a new table where there was one: an optimizer goes on with the old")
@torch.no_grad()
def fold(self, table):
    old = next(self.parameters())
    for name in list(self._modules):
        delattr(self, name)
    for name in list(self._parameters):
        delattr(self, name)
    self.table = nn.Parameter(table.to(old.device, old.dtype, copy=True), requires_grad=old.requires_grad)


@wrong("25.3", "a table that is no parameter: nothing more is trained or saved")
@torch.no_grad()
def fold(self, table):
    old = next(self.parameters())
    if self.table is not None:
        self.table.copy_(table)
        return
    for name in list(self._modules):
        delattr(self, name)
    for name in list(self._parameters):
        delattr(self, name)
    self.table = table.to(old.device, old.dtype, copy=True)


@wrong("25.3", "keeps the number format of the rows instead of the model's")
@torch.no_grad()
def fold(self, table):
    old = next(self.parameters())
    if self.table is not None:
        self.table.copy_(table)
        return
    for name in list(self._modules):
        delattr(self, name)
    for name in list(self._parameters):
        delattr(self, name)
    self.table = nn.Parameter(table.clone(), requires_grad=old.requires_grad)


@wrong("25.3", "frozen rows are trained again after folding")
@torch.no_grad()
def fold(self, table):
    old = next(self.parameters())
    if self.table is not None:
        self.table.copy_(table)
        return
    for name in list(self._modules):
        delattr(self, name)
    for name in list(self._parameters):
        delattr(self, name)
    self.table = nn.Parameter(table.to(old.device, old.dtype, copy=True))


# --- 25.6 the first vectors of a prompt


@wrong("25.6", "a text that is too short is filled up with its last word instead of repeated")
def first_vectors(config, vocabulary, generator=None):
    n_words, width = vocabulary.shape
    if config.initial == "random":
        std = config.std or float(vocabulary.detach().float().std())
        return normal_weight(config.n_virtual, width, std, generator).to(vocabulary.device, vocabulary.dtype)
    if wrong_ids := [token_id for token_id in config.initial_ids if not 0 <= token_id < n_words]:
        raise ConfigError(f"initial_ids has {wrong_ids[0]}")
    if config.initial == "text":
        ids = [config.initial_ids[min(index, len(config.initial_ids) - 1)] for index in range(config.n_virtual)]
        return vocabulary.detach()[torch.tensor(ids)].clone()
    among = torch.tensor(config.initial_ids or range(n_words))
    ids = among[torch.randint(len(among), (config.n_virtual,), generator=generator)]
    return vocabulary.detach()[ids].clone()


@wrong("25.6", "the first words of the vocabulary instead of drawn ones")
def first_vectors(config, vocabulary, generator=None):
    n_words, width = vocabulary.shape
    if config.initial == "random":
        std = config.std or float(vocabulary.detach().float().std())
        return normal_weight(config.n_virtual, width, std, generator).to(vocabulary.device, vocabulary.dtype)
    if wrong_ids := [token_id for token_id in config.initial_ids if not 0 <= token_id < n_words]:
        raise ConfigError(f"initial_ids has {wrong_ids[0]}")
    ids = torch.tensor(repeated(config.initial_ids or list(range(n_words)), config.n_virtual))
    return vocabulary.detach()[ids].clone()


@wrong("25.6", "draws from the whole vocabulary although ids to draw from are given")
def first_vectors(config, vocabulary, generator=None):
    n_words, width = vocabulary.shape
    if config.initial == "random":
        std = config.std or float(vocabulary.detach().float().std())
        return normal_weight(config.n_virtual, width, std, generator).to(vocabulary.device, vocabulary.dtype)
    if wrong_ids := [token_id for token_id in config.initial_ids if not 0 <= token_id < n_words]:
        raise ConfigError(f"initial_ids has {wrong_ids[0]}")
    if config.initial == "text":
        ids = torch.tensor(repeated(config.initial_ids, config.n_virtual))
    else:
        ids = torch.randint(n_words, (config.n_virtual,), generator=generator)
    return vocabulary.detach()[ids].clone()


@wrong("25.6", "random vectors of standard deviation 1, far larger than the words of most models")
def first_vectors(config, vocabulary, generator=None):
    n_words, width = vocabulary.shape
    if config.initial == "random":
        vectors = normal_weight(config.n_virtual, width, config.std or 1.0, generator)
        return vectors.to(vocabulary.device, vocabulary.dtype)
    if wrong_ids := [token_id for token_id in config.initial_ids if not 0 <= token_id < n_words]:
        raise ConfigError(f"initial_ids has {wrong_ids[0]}")
    if config.initial == "text":
        ids = torch.tensor(repeated(config.initial_ids, config.n_virtual))
    else:
        among = torch.tensor(config.initial_ids or range(n_words))
        ids = among[torch.randint(len(among), (config.n_virtual,), generator=generator)]
    return vocabulary.detach()[ids].clone()


@wrong("25.6", "an id of -1 is taken for the last word")
def first_vectors(config, vocabulary, generator=None):
    n_words, width = vocabulary.shape
    if config.initial == "random":
        std = config.std or float(vocabulary.detach().float().std())
        return normal_weight(config.n_virtual, width, std, generator).to(vocabulary.device, vocabulary.dtype)
    if wrong_ids := [token_id for token_id in config.initial_ids if token_id >= n_words]:
        raise ConfigError(f"initial_ids has {wrong_ids[0]}")
    if config.initial == "text":
        ids = torch.tensor(repeated(config.initial_ids, config.n_virtual))
    else:
        among = torch.tensor(config.initial_ids or range(n_words))
        ids = among[torch.randint(len(among), (config.n_virtual,), generator=generator)]
    return vocabulary.detach()[ids].clone()


# --- 25.7 a prompt in front of a text


@wrong("25.7", "the positions of the prompt are not cut off: P logits too many")
def hidden(self, token_ids, cache=None, mask=None, positions=None):
    inner = inner_cache(cache, self.prompt.is_on)
    if not self.prompt.is_on:
        return super().hidden(token_ids, inner, mask, positions)
    n_past, n_new = 0 if cache is None else cache.length, self.prompt.n_virtual
    super().check_input(token_ids, n_past, mask, positions)
    n_padding = padding_on_the_left(mask)
    mask = with_room(mask, n_new, n_padding)
    if positions is not None:
        positions = positions + n_new
    if n_past:
        return super().hidden(token_ids, inner, mask, positions)
    if positions is not None:
        new = torch.arange(n_new, device=positions.device, dtype=positions.dtype)
        positions = insert(new, positions, n_padding)
    if cache is not None:
        cache.reset()
    token_ids = with_new_words(token_ids, self.config.vocab_size, n_new, n_padding)
    return super().hidden(token_ids, inner, mask, positions)


@wrong("25.7", "the last P positions are cut off instead of the first")
def hidden(self, token_ids, cache=None, mask=None, positions=None):
    inner = inner_cache(cache, self.prompt.is_on)
    if not self.prompt.is_on:
        return super().hidden(token_ids, inner, mask, positions)
    n_past, n_new = 0 if cache is None else cache.length, self.prompt.n_virtual
    super().check_input(token_ids, n_past, mask, positions)
    n_padding = padding_on_the_left(mask)
    mask = with_room(mask, n_new, n_padding)
    if positions is not None:
        positions = positions + n_new
    if n_past:
        return super().hidden(token_ids, inner, mask, positions)
    if positions is not None:
        new = torch.arange(n_new, device=positions.device, dtype=positions.dtype)
        positions = insert(new, positions, n_padding)
    if cache is not None:
        cache.reset()
    token_ids = with_new_words(token_ids, self.config.vocab_size, n_new, n_padding)
    return super().hidden(token_ids, inner, mask, positions)[:, :-n_new]


@wrong("25.7", "the prompt stands before the padding: right for the longest text of a batch only")
def hidden(self, token_ids, cache=None, mask=None, positions=None):
    inner = inner_cache(cache, self.prompt.is_on)
    if not self.prompt.is_on:
        return super().hidden(token_ids, inner, mask, positions)
    n_past, n_new = 0 if cache is None else cache.length, self.prompt.n_virtual
    super().check_input(token_ids, n_past, mask, positions)
    mask = with_room(mask, n_new, None)
    if n_past:
        return super().hidden(token_ids, inner, mask, None if positions is None else positions + n_new)
    if positions is not None:
        new = torch.arange(n_new, device=positions.device, dtype=positions.dtype)
        positions = insert(new, positions + n_new + 1, None)
    if cache is not None:
        cache.reset()
    token_ids = with_new_words(token_ids, self.config.vocab_size, n_new, None)
    return super().hidden(token_ids, inner, mask, positions)[:, n_new:]


@wrong("25.7", "the text's positions still count from 0: it stands where the prompt stands")
def hidden(self, token_ids, cache=None, mask=None, positions=None):
    inner = inner_cache(cache, self.prompt.is_on)
    if not self.prompt.is_on:
        return super().hidden(token_ids, inner, mask, positions)
    n_past, n_new = 0 if cache is None else cache.length, self.prompt.n_virtual
    super().check_input(token_ids, n_past, mask, positions)
    n_padding = padding_on_the_left(mask)
    mask = with_room(mask, n_new, n_padding)
    if n_past:
        return super().hidden(token_ids, inner, mask, positions)
    if positions is not None:
        new = torch.arange(n_new, device=positions.device, dtype=positions.dtype)
        positions = insert(new, positions, n_padding)
    if cache is not None:
        cache.reset()
    token_ids = with_new_words(token_ids, self.config.vocab_size, n_new, n_padding)
    return super().hidden(token_ids, inner, mask, positions)[:, n_new:]


@wrong("25.7", "the prompt is read again with every piece of a text")
def hidden(self, token_ids, cache=None, mask=None, positions=None):
    inner = inner_cache(cache, self.prompt.is_on)
    if not self.prompt.is_on:
        return super().hidden(token_ids, inner, mask, positions)
    n_past, n_new = 0 if cache is None else cache.length, self.prompt.n_virtual
    super().check_input(token_ids, n_past, mask, positions)
    n_padding = padding_on_the_left(mask)
    mask = with_room(mask, n_new, n_padding)
    if positions is not None:
        new = torch.arange(n_new, device=positions.device, dtype=positions.dtype)
        positions = insert(new, positions + n_new, n_padding)
    if cache is not None and not n_past:
        cache.reset()
    token_ids = with_new_words(token_ids, self.config.vocab_size, n_new, n_padding)
    return super().hidden(token_ids, inner, mask, positions)[:, n_new:]


@wrong("25.7", "nothing is checked: an id behind the vocabulary is taken for a learned word, too long a text for another's")
def hidden(self, token_ids, cache=None, mask=None, positions=None):
    inner = inner_cache(cache, self.prompt.is_on)
    if not self.prompt.is_on:
        return super().hidden(token_ids, inner, mask, positions)
    n_past, n_new = 0 if cache is None else cache.length, self.prompt.n_virtual
    n_padding = padding_on_the_left(mask)
    mask = with_room(mask, n_new, n_padding)
    if positions is not None:
        positions = positions + n_new
    if n_past:
        return super().hidden(token_ids, inner, mask, positions)
    if positions is not None:
        new = torch.arange(n_new, device=positions.device, dtype=positions.dtype)
        positions = insert(new, positions, n_padding)
    if cache is not None:
        cache.reset()
    new = torch.arange(self.config.vocab_size, self.config.vocab_size + n_new)
    token_ids = insert(new, token_ids, n_padding)
    return super().hidden(token_ids, inner, mask, positions)[:, n_new:]


# --- 25.8 factors


@wrong("25.8", "the outputs are multiplied before the bias is added")
def forward(self, x):
    if not self.ia3.is_on or self.unmerged:
        return super().forward(x)
    of_inputs, of_outputs = self.ia3.of_inputs(), self.ia3.of_outputs()
    x = x if of_inputs is None else x * of_inputs.to(x.dtype)
    out = super().forward(x)
    if of_outputs is None:
        return out
    bias = getattr(self, "bias", None)
    if bias is None:
        return out * of_outputs.to(out.dtype)
    return (out - bias) * of_outputs.to(out.dtype) + bias


@wrong("25.8", "merged factors are multiplied a second time")
def forward(self, x):
    if not self.ia3.is_on:
        return super().forward(x)
    of_inputs, of_outputs = self.ia3.of_inputs(), self.ia3.of_outputs()
    out = super().forward(x if of_inputs is None else x * of_inputs.to(x.dtype))
    return out if of_outputs is None else out * of_outputs.to(out.dtype)


@wrong("25.8", "the factors are added instead of multiplied")
def forward(self, x):
    if not self.ia3.is_on or self.unmerged:
        return super().forward(x)
    of_inputs, of_outputs = self.ia3.of_inputs(), self.ia3.of_outputs()
    out = super().forward(x if of_inputs is None else x + of_inputs.to(x.dtype))
    return out if of_outputs is None else out + of_outputs.to(out.dtype)


@wrong("25.8", "cannot be switched off")
def forward(self, x):
    if self.unmerged:
        return super().forward(x)
    of_inputs, of_outputs = self.ia3.of_inputs(), self.ia3.of_outputs()
    out = super().forward(x if of_inputs is None else x * of_inputs.to(x.dtype))
    return out if of_outputs is None else out * of_outputs.to(out.dtype)


@wrong("25.8", "the inputs' factors are forgotten")
def forward(self, x):
    if not self.ia3.is_on or self.unmerged:
        return super().forward(x)
    of_outputs, out = self.ia3.of_outputs(), super().forward(x)
    return out if of_outputs is None else out * of_outputs.to(out.dtype)


@wrong("25.8", "the factors' 32 bits spread through a model of 16")
def forward(self, x):
    if not self.ia3.is_on or self.unmerged:
        return super().forward(x)
    of_inputs, of_outputs = self.ia3.of_inputs(), self.ia3.of_outputs()
    out = super().forward(x if of_inputs is None else x * of_inputs.to(x.dtype))
    return out if of_outputs is None else out * of_outputs


# --- 25.9 which biases


@wrong("25.9", "a model without biases: nothing is trained, and nobody is told")
def biases_of(model, config):
    meant = surgery.find(model, config.targets) if config.targets else dict(model.named_modules())
    inside = {id(part) for head in head_modules(model, config.heads).values() for part in head.modules()}
    return [f"{name}.bias" if name else "bias" for name, module in meant.items()
            if isinstance(getattr(module, "bias", None), nn.Parameter) and id(module) not in inside]


@wrong("25.9", "the weights too: the base is trained")
def biases_of(model, config):
    named = [name for name, _ in model.named_parameters()]
    if not any(name.endswith("bias") for name in named):
        raise ConfigError("no biases")
    return named


@wrong("25.9", "the biases of a head too, which the head trains already")
def biases_of(model, config):
    meant = surgery.find(model, config.targets) if config.targets else dict(model.named_modules())
    named = [f"{name}.bias" if name else "bias" for name, module in meant.items()
             if isinstance(getattr(module, "bias", None), nn.Parameter)]
    layers = () if config.targets else layers_of(model)
    if not named or (layers and not any(name.startswith(f"{layer}.") for name in named for layer in layers)):
        where = " among " + ", ".join(config.targets)
        raise ConfigError(f"no biases{where}")
    return named


@wrong("25.9", "a new classifier's bias is taken for enough: the body without biases stays as it was")
def biases_of(model, config):
    meant = surgery.find(model, config.targets) if config.targets else dict(model.named_modules())
    inside = {id(part) for head in head_modules(model, config.heads).values() for part in head.modules()}
    named = [f"{name}.bias" if name else "bias" for name, module in meant.items()
             if isinstance(getattr(module, "bias", None), nn.Parameter) and id(module) not in inside]
    if not named:
        raise ConfigError("no biases among " + ", ".join(config.targets))
    return named


@wrong("25.9", "linear layers only: the norms' shifts stay")
def biases_of(model, config):
    meant = surgery.find(model, config.targets) if config.targets else dict(model.named_modules())
    inside = {id(part) for head in head_modules(model, config.heads).values() for part in head.modules()}
    named = [f"{name}.bias" if name else "bias" for name, module in meant.items()
             if surgery.is_linear(module) and module.bias is not None and id(module) not in inside]
    layers = () if config.targets else layers_of(model)
    if not named or (layers and not any(name.startswith(f"{layer}.") for name in named for layer in layers)):
        raise ConfigError("no biases among " + ", ".join(config.targets))
    return named


@wrong("25.9", "whatever ends in bias, also BERT's scores of words, which belong to its old task")
def biases_of(model, config):
    inside = {id(part) for head in head_modules(model, config.heads).values() for part in head.modules()}
    meant = surgery.find(model, config.targets) if config.targets else dict(model.named_modules())
    named = [f"{name}.{last}" if name else last for name, module in meant.items() if id(module) not in inside
             for last, _ in module.named_parameters(recurse=False) if last.endswith("bias")]
    layers = () if config.targets else layers_of(model)
    if not named or (layers and not any(name.startswith(f"{layer}.") for name in named for layer in layers)):
        raise ConfigError("no biases among " + ", ".join(config.targets))
    return named
