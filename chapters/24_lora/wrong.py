"""Wrong answers to chapter 24: the mistakes that are really made, each of which must cost exactly its task."""

import torch
from torch import nn
from torch.nn import functional as F

from minillm import surgery
from minillm.adapt.fastfood import fast_walsh_hadamard, size_of
from minillm.adapt.lora import (
    WHOLE,
    check_rank,
    initial_a,
    like_base,
    parts_of,
)
from minillm.compress.nf4 import normal_quantiles
from minillm.course.wrong_answers import wrong

# --- 24.3 forward


@wrong("24.3", "the scale alpha / rank is forgotten")
def forward(self, x):
    out = self.base(x)
    if not self.in_use:
        return out
    a, b = self.matrices()
    x = F.dropout(x, self.config.dropout, self.training)
    narrow = F.linear(x, a.to(x.dtype)) * self.stretch
    return out + F.linear(narrow.to(out.dtype), b.to(out.dtype))


@wrong("24.3", "always alpha / rank, also where the root of the rank was asked for")
def forward(self, x):
    out = self.base(x)
    if not self.in_use:
        return out
    a, b = self.matrices()
    x = F.dropout(x, self.config.dropout, self.training)
    narrow = F.linear(x, a.to(x.dtype)) * (self.config.alpha / self.config.rank * self.stretch)
    return out + F.linear(narrow.to(out.dtype), b.to(out.dtype))


@wrong("24.3", "A transposed: its numbers are read column by column")
def forward(self, x):
    out = self.base(x)
    if not self.in_use:
        return out
    a, b = self.matrices()
    x = F.dropout(x, self.config.dropout, self.training)
    narrow = F.linear(x, a.T.reshape(a.shape).to(x.dtype)) * (self.config.scale * self.stretch)
    return out + F.linear(narrow.to(out.dtype), b.to(out.dtype))


@wrong("24.3", "dropout on the frozen layer's input too")
def forward(self, x):
    x = F.dropout(x, self.config.dropout, self.training) if self.in_use else x
    out = self.base(x)
    if not self.in_use:
        return out
    a, b = self.matrices()
    narrow = F.linear(x, a.to(x.dtype)) * (self.config.scale * self.stretch)
    return out + F.linear(narrow.to(out.dtype), b.to(out.dtype))


@wrong("24.3", "dropout also when the layer is not training")
def forward(self, x):
    out = self.base(x)
    if not self.in_use:
        return out
    a, b = self.matrices()
    x = F.dropout(x, self.config.dropout)
    narrow = F.linear(x, a.to(x.dtype)) * (self.config.scale * self.stretch)
    return out + F.linear(narrow.to(out.dtype), b.to(out.dtype))


@wrong("24.3", "the branch replaces the frozen layer")
def forward(self, x):
    if not self.in_use:
        return self.base(x)
    a, b = self.matrices()
    x = F.dropout(x, self.config.dropout, self.training)
    narrow = F.linear(x, a.to(x.dtype)) * (self.config.scale * self.stretch)
    return F.linear(narrow, b.to(x.dtype))


@wrong("24.3", "rank 0: the branch adds nothing, and nothing can be learned")
def forward(self, x):
    return self.base(x)


@wrong("24.3", "the result is in the branch's number format, not in the layer's")
def forward(self, x):
    out = self.base(x)
    if not self.in_use:
        return out
    a, b = self.matrices()
    x = F.dropout(x, self.config.dropout, self.training)
    return out + F.linear(F.linear(x.to(a.dtype), a), b) * (self.config.scale * self.stretch)


@wrong("24.3", "a layer that multiplies its result multiplies only the frozen part of it")
def forward(self, x):
    out = self.base(x)
    if not self.in_use:
        return out
    a, b = self.matrices()
    x = F.dropout(x, self.config.dropout, self.training)
    narrow = F.linear(x, a.to(x.dtype)) * self.config.scale
    return out + F.linear(narrow.to(out.dtype), b.to(out.dtype))


@wrong("24.3", "the branch is cut off from the graph: A and B never get a gradient")
def forward(self, x):
    out = self.base(x)
    if not self.in_use:
        return out
    a, b = (matrix.detach() for matrix in self.matrices())
    x = F.dropout(x, self.config.dropout, self.training)
    narrow = F.linear(x, a.to(x.dtype)) * (self.config.scale * self.stretch)
    return out + F.linear(narrow.to(out.dtype), b.to(out.dtype))


# --- 24.1 fresh branches


@wrong("24.1", "B not zero at the start: the model is another one before the first step")
def make_branches(model, place, config, generator):
    base = surgery.unwrapped(model.get_submodule(place))
    if surgery.is_embedding(base):
        n_rows, d_out = base.weight.shape
        check_rank(config.rank, place, n_rows, d_out)
        b = torch.empty(d_out, config.rank).normal_(generator=generator)
        return {WHOLE: like_base(base, torch.zeros(config.rank, n_rows), b, slice(0, d_out))}
    d_out, d_in = surgery.matrix_of(base).shape
    branches = {}
    for part, rows in parts_of(model, place, config.parts, d_out).items():
        check_rank(config.rank, f"{place}.{part}", d_in, rows.stop - rows.start)
        a = initial_a(config.rank, d_in, config.initial, generator)
        b = torch.empty(rows.stop - rows.start, config.rank).normal_(0.0, 0.02, generator=generator)
        branches[part] = like_base(base, a, b, rows)
    return branches


@wrong("24.1", "A and B both zero: as good as rank 0, for neither ever gets a gradient")
def make_branches(model, place, config, generator):
    base = surgery.unwrapped(model.get_submodule(place))
    if surgery.is_embedding(base):
        n_rows, d_out = base.weight.shape
        check_rank(config.rank, place, n_rows, d_out)
        b = torch.zeros(d_out, config.rank)
        return {WHOLE: like_base(base, torch.zeros(config.rank, n_rows), b, slice(0, d_out))}
    d_out, d_in = surgery.matrix_of(base).shape
    branches = {}
    for part, rows in parts_of(model, place, config.parts, d_out).items():
        check_rank(config.rank, f"{place}.{part}", d_in, rows.stop - rows.start)
        a = torch.zeros(config.rank, d_in)
        branches[part] = like_base(base, a, torch.zeros(rows.stop - rows.start, config.rank), rows)
    return branches


@wrong("24.1", "one A for all parts of a fused layer")
def make_branches(model, place, config, generator):
    base = surgery.unwrapped(model.get_submodule(place))
    if surgery.is_embedding(base):
        n_rows, d_out = base.weight.shape
        check_rank(config.rank, place, n_rows, d_out)
        b = torch.empty(d_out, config.rank).normal_(generator=generator)
        return {WHOLE: like_base(base, torch.zeros(config.rank, n_rows), b, slice(0, d_out))}
    d_out, d_in = surgery.matrix_of(base).shape
    branches = {}
    a = initial_a(config.rank, d_in, config.initial, generator)
    for part, rows in parts_of(model, place, config.parts, d_out).items():
        check_rank(config.rank, f"{place}.{part}", d_in, rows.stop - rows.start)
        branches[part] = like_base(base, a.clone(), torch.zeros(rows.stop - rows.start, config.rank), rows)
    return branches


@wrong("24.1", "the code's initial values whatever was asked for")
def make_branches(model, place, config, generator):
    base = surgery.unwrapped(model.get_submodule(place))
    if surgery.is_embedding(base):
        n_rows, d_out = base.weight.shape
        check_rank(config.rank, place, n_rows, d_out)
        b = torch.empty(d_out, config.rank).normal_(generator=generator)
        return {WHOLE: like_base(base, torch.zeros(config.rank, n_rows), b, slice(0, d_out))}
    d_out, d_in = surgery.matrix_of(base).shape
    branches = {}
    for part, rows in parts_of(model, place, config.parts, d_out).items():
        check_rank(config.rank, f"{place}.{part}", d_in, rows.stop - rows.start)
        a = initial_a(config.rank, d_in, "code", generator)
        branches[part] = like_base(base, a, torch.zeros(rows.stop - rows.start, config.rank), rows)
    return branches


@wrong("24.1", "a table begins like a matrix: A drawn and B zero")
def make_branches(model, place, config, generator):
    base = surgery.unwrapped(model.get_submodule(place))
    if surgery.is_embedding(base):
        n_rows, d_out = base.weight.shape
        check_rank(config.rank, place, n_rows, d_out)
        a = initial_a(config.rank, n_rows, config.initial, generator)
        return {WHOLE: like_base(base, a, torch.zeros(d_out, config.rank), slice(0, d_out))}
    d_out, d_in = surgery.matrix_of(base).shape
    branches = {}
    for part, rows in parts_of(model, place, config.parts, d_out).items():
        check_rank(config.rank, f"{place}.{part}", d_in, rows.stop - rows.start)
        a = initial_a(config.rank, d_in, config.initial, generator)
        branches[part] = like_base(base, a, torch.zeros(rows.stop - rows.start, config.rank), rows)
    return branches


@wrong("24.1", "every rank is taken, also one above the width, which saves nothing")
def make_branches(model, place, config, generator):
    base = surgery.unwrapped(model.get_submodule(place))
    if surgery.is_embedding(base):
        n_rows, d_out = base.weight.shape
        b = torch.empty(d_out, config.rank).normal_(generator=generator)
        return {WHOLE: like_base(base, torch.zeros(config.rank, n_rows), b, slice(0, d_out))}
    d_out, d_in = surgery.matrix_of(base).shape
    branches = {}
    for part, rows in parts_of(model, place, config.parts, d_out).items():
        a = initial_a(config.rank, d_in, config.initial, generator)
        branches[part] = like_base(base, a, torch.zeros(rows.stop - rows.start, config.rank), rows)
    return branches


# --- 24.4 one A and one B


@wrong("24.4", "the parts are pushed together at the top: the value's change lands in the keys")
def matrices(self):
    branches, n_rows = self.in_use, self.n_rows
    if len(branches) == 1 and len(branches[0].B) == n_rows:
        return branches[0].A, branches[0].B
    wide, begin = [], 0
    for branch in branches:
        size = len(branch.B)
        wide.append(F.pad(branch.B, (0, 0, begin, n_rows - begin - size)))
        begin += size
    return torch.cat([branch.A for branch in branches]), torch.cat(wide, dim=1)


@wrong("24.4", "the rows begin at the end of the part")
def matrices(self):
    branches, n_rows = self.in_use, self.n_rows
    if len(branches) == 1 and len(branches[0].B) == n_rows:
        return branches[0].A, branches[0].B
    wide = [F.pad(branch.B, (0, 0, n_rows - branch.rows.stop, branch.rows.start)) for branch in branches]
    return torch.cat([branch.A for branch in branches]), torch.cat(wide, dim=1)


@wrong("24.4", "only the first part")
def matrices(self):
    branch, n_rows = self.in_use[0], self.n_rows
    return branch.A, F.pad(branch.B, (0, 0, branch.rows.start, n_rows - branch.rows.stop))


@wrong("24.4", "A and B of the parts in opposite orders: each part reads the other's numbers")
def matrices(self):
    branches, n_rows = self.in_use, self.n_rows
    if len(branches) == 1 and len(branches[0].B) == n_rows:
        return branches[0].A, branches[0].B
    wide = [F.pad(branch.B, (0, 0, branch.rows.start, n_rows - branch.rows.stop)) for branch in branches]
    return torch.cat([branch.A for branch in reversed(branches)]), torch.cat(wide, dim=1)


@wrong("24.4", "the matrices are copies without a graph: gradients do not reach the parts")
def matrices(self):
    branches, n_rows = self.in_use, self.n_rows
    wide = [F.pad(branch.B, (0, 0, branch.rows.start, n_rows - branch.rows.stop)) for branch in branches]
    return torch.cat([branch.A for branch in branches]).detach(), torch.cat(wide, dim=1).detach()


# --- 24.2 merge


@wrong("24.2", "the change is added into the old weight, so the way back leads nowhere and a second merge adds twice")
def merge(self):
    changed = self.changed_weight()
    if surgery.is_packed(self.base):
        self.unmerged.append(self.base)
        self.base = self.base.unpacked(changed)
        return
    self.unmerged.append(self.base.weight)
    self.base.weight.data.copy_(changed)


@wrong("24.2", "nothing is kept: the branch still adds, and the change counts twice")
def merge(self):
    changed = self.changed_weight()
    if surgery.is_packed(self.base):
        self.base = self.base.unpacked(changed)
        return
    self.base.weight = nn.Parameter(changed, requires_grad=False)


@wrong("24.2", "the merged weight is trained: the base does not stay what it was")
def merge(self):
    changed = self.changed_weight()
    if surgery.is_packed(self.base):
        self.unmerged.append(self.base)
        self.base = self.base.unpacked(changed)
        return
    self.unmerged.append(self.base.weight)
    self.base.weight = nn.Parameter(changed.detach())


@wrong("24.2", "the weight becomes the change alone")
def merge(self):
    if surgery.is_packed(self.base):
        self.unmerged.append(self.base)
        self.base = self.base.unpacked(self.change())
        return
    change = self.change()
    self.unmerged.append(self.base.weight)
    self.base.weight = nn.Parameter(change, requires_grad=False)


@wrong("24.2", "a packed layer is unpacked without the change")
def merge(self):
    changed = self.changed_weight()
    if surgery.is_packed(self.base):
        self.unmerged.append(self.base)
        self.base = self.base.unpacked()
        return
    self.unmerged.append(self.base.weight)
    self.base.weight = nn.Parameter(changed, requires_grad=False)


@wrong("24.2", "the changed weight is kept for the way back, the old one is lost")
def merge(self):
    changed = self.changed_weight()
    if surgery.is_packed(self.base):
        self.unmerged.append(self.base)
        self.base = self.base.unpacked(changed)
        return
    self.base.weight = nn.Parameter(changed, requires_grad=False)
    self.unmerged.append(self.base.weight)


# --- 24.5 who is trained


@wrong("24.5", "the base is trained as well")
def activate(self, name):
    self.name = name
    for parameter in self.model.parameters():
        parameter.requires_grad_(True)
    for delta in self.deltas.values():
        for parameter in delta.parameters().values():
            parameter.requires_grad_(False)
    for parameter in self.delta.parameters().values():
        parameter.requires_grad_(True)


@wrong("24.5", "all adapters are trained")
def activate(self, name):
    self.name = name
    surgery.freeze(self.model)
    for delta in self.deltas.values():
        for parameter in delta.parameters().values():
            parameter.requires_grad_(True)


@wrong("24.5", "the name is not noted: the adapter before stays in use")
def activate(self, name):
    surgery.freeze(self.model)
    for parameter in self.delta.parameters().values():
        parameter.requires_grad_(True)


@wrong("24.5", "only what is called A or B is trained: a head beside the method stays as it was drawn")
def activate(self, name):
    self.name = name
    surgery.freeze(self.model)
    for key, parameter in self.delta.parameters().items():
        parameter.requires_grad_(key.endswith((".A", ".B")))


# --- 24.6 the transform


@wrong("24.6", "divided by the root of n, as an orthogonal transform would be")
def walsh_hadamard(x):
    size = size_of(x)
    half, shape = size // 2, x.shape
    while half:
        upper, lower = x.reshape(-1, size // (2 * half), 2, half).unbind(2)
        x = torch.stack([upper + lower, upper - lower], dim=2)
        half //= 2
    return x.reshape(shape) / size**0.5


@wrong("24.6", "neighbours first, and then neighbours again: only pairs are mixed")
def walsh_hadamard(x):
    size = size_of(x)
    half, shape = size // 2, x.shape
    while half:
        upper, lower = x.reshape(-1, size // 2, 2).unbind(2)
        x = torch.stack([upper + lower, upper - lower], dim=2)
        half //= 2
    return x.reshape(shape)


@wrong("24.6", "the difference the other way round")
def walsh_hadamard(x):
    size = size_of(x)
    half, shape = size // 2, x.shape
    while half:
        upper, lower = x.reshape(-1, size // (2 * half), 2, half).unbind(2)
        x = torch.stack([upper + lower, lower - upper], dim=2)
        half //= 2
    return x.reshape(shape)


@wrong("24.6", "the last step is missing")
def walsh_hadamard(x):
    size = size_of(x)
    half, shape = size // 2, x.shape
    while half > 1:
        upper, lower = x.reshape(-1, size // (2 * half), 2, half).unbind(2)
        x = torch.stack([upper + lower, upper - lower], dim=2)
        half //= 2
    return x.reshape(shape)


@wrong("24.6", "the batch is mixed with the numbers")
def walsh_hadamard(x):
    size_of(x)
    size, shape = x.numel(), x.shape
    half = size // 2
    while half:
        upper, lower = x.reshape(-1, size // (2 * half), 2, half).unbind(2)
        x = torch.stack([upper + lower, upper - lower], dim=2)
        half //= 2
    return x.reshape(shape)


# --- 24.7 Fastfood


@wrong("24.7", "without the normalisation: P x is far too long")
def forward(self, x):
    signed = nn.functional.pad(x, (0, len(self.signs) - self.n_in)) * self.signs
    mixed = fast_walsh_hadamard(signed).repeat(len(self.order) // len(signed))[self.order]
    return fast_walsh_hadamard(mixed * self.normal / self.normal.norm())[: self.n_out]


@wrong("24.7", "without the random order")
def forward(self, x):
    signed = nn.functional.pad(x, (0, len(self.signs) - self.n_in)) * self.signs
    mixed = fast_walsh_hadamard(signed).repeat(len(self.order) // len(signed))
    return fast_walsh_hadamard(mixed * self.normal)[: self.n_out]


@wrong("24.7", "the order the other way: sorted where it should be shuffled")
def forward(self, x):
    signed = nn.functional.pad(x, (0, len(self.signs) - self.n_in)) * self.signs
    mixed = fast_walsh_hadamard(signed).repeat(len(self.order) // len(signed))[self.order.argsort()]
    return fast_walsh_hadamard(mixed * self.normal)[: self.n_out]


@wrong("24.7", "without the random signs")
def forward(self, x):
    signed = nn.functional.pad(x, (0, len(self.signs) - self.n_in))
    mixed = fast_walsh_hadamard(signed).repeat(len(self.order) // len(signed))[self.order]
    return fast_walsh_hadamard(mixed * self.normal)[: self.n_out]


@wrong("24.7", "the transform is filled up with zeros instead of repeated")
def forward(self, x):
    signed = nn.functional.pad(x, (0, len(self.signs) - self.n_in)) * self.signs
    mixed = nn.functional.pad(fast_walsh_hadamard(signed), (0, len(self.order) - len(signed)))[self.order]
    return fast_walsh_hadamard(mixed * self.normal)[: self.n_out]


# --- 24.8 NF4


@wrong("24.8", "sixteen levels at equal distances")
def nf4_code():
    return torch.linspace(-1, 1, 16)


@wrong("24.8", "symmetric: eight on both sides, and no zero")
def nf4_code():
    levels = torch.cat([normal_quantiles(8), -normal_quantiles(8)]).sort().values
    return levels / levels.abs().max()


@wrong("24.8", "eight levels below zero and seven above")
def nf4_code():
    levels = torch.cat([normal_quantiles(7), torch.zeros(1), -normal_quantiles(8)]).sort().values
    return levels / levels.abs().max()


@wrong("24.8", "not divided: the ends are the quantiles themselves")
def nf4_code():
    return torch.cat([normal_quantiles(8), torch.zeros(1), -normal_quantiles(7)]).sort().values


@wrong("24.8", "not sorted")
def nf4_code():
    levels = torch.cat([normal_quantiles(8), torch.zeros(1), -normal_quantiles(7)])
    return levels / levels.abs().max()
