"""The hand-over: the same model and checkpoint under PyTorch's own engine, when these readable ones are not enough.

    fsdp2   torch.distributed.fsdp.fully_shard: every rank has a part of each parameter and other rows of the batch
    tp      torch.distributed.tensor.parallel.parallelize_module: every layer is cut; with dp, fully_shard cuts the rest
    pp      torch.distributed.pipelining: every rank has some of the layers

The weights keep their names, so a checkpoint of one goes on under the other, and losses agree. torch's engines are
imported when used; `engine_plans` says what is cut how. The optimizer is torch's AdamW, which is ours number by number
(`tests/train/test_optim.py`).

Dimensions: B rows of a rank's batch, T sequence length.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minillm.errors import ConfigError
from minillm.models.gpt import GPT, GPTConfig
from minillm.parallel.clip import clip_global_gradients
from minillm.parallel.data_parallel import broadcast_module, global_token_count, reduce_gradients
from minillm.parallel.engine_plans import qkv_order, to_fsdp2, to_tensor_parallel, torch_schedule
from minillm.parallel.full_state import (
    gather_full_state,
    gather_optimizer_state,
    load_full_optimizer_state,
    load_full_state,
)
from minillm.parallel.layout import check_tensor_parallel
from minillm.parallel.mesh import Mesh, MeshSize
from minillm.parallel.pipeline import counts_once, sync_tied_gradients
from minillm.parallel.stages import PipelineStage
from minillm.train.loss import IGNORED, kernel_cross_entropy, next_token_loss
from minillm.train.optim import AdamW
from minillm.train.optimizer_state import load_optimizer_state_by_name, optimizer_state_by_name

ENGINES = ("ours", "fsdp2", "tp", "pp")
PORTABLE_OPTIONS = ("lr", "initial_lr", "betas", "eps", "weight_decay")


def check_engine(engine: str, size: MeshSize, config: GPTConfig) -> None:
    """Refuse a mesh that the engine has no use for, or a model that it cannot cut.

    Args:
        engine: "fsdp2", "tp" or "pp".
        size: of the mesh.
        config: of the model.

    Raises:
        ConfigError: naming what does not fit.

    Example:
        >>> config = GPTConfig(vocab_size=8, max_seq_len=8, n_layers=2, n_heads=2, d_model=4)
        >>> check_engine("fsdp2", MeshSize(dp=2, tp=2), config)
        Traceback (most recent call last):
        minillm.errors.ConfigError: engine fsdp2 on a mesh of dp=2,tp=2: it cuts along dp only; ...
    """
    axes = {"fsdp2": ("dp",), "tp": ("dp", "tp"), "pp": ("dp", "pp")}
    if engine not in axes:
        raise ConfigError(f"engine {engine!r} is unknown; known are {', '.join(axes)}")
    if any(getattr(size, axis) > 1 for axis in {"dp", "pp", "tp"} - set(axes[engine])):
        raise ConfigError(
            f"engine {engine} on a mesh of {size}: it cuts along {' and '.join(axes[engine])} only; change the mesh"
        )
    if engine == "tp":
        check_tensor_parallel(config, size.tp)
        if config.n_experts:
            raise ConfigError("engine tp has no plan for a mixture of experts; take fsdp2")
    if engine == "pp" and size.pp == 1:
        raise ConfigError(f"engine pp on a mesh of {size}: a pipeline has two stages or more; give pp=2")
    if engine == "pp" and (config.n_layers < size.pp or config.n_experts):
        raise ConfigError(f"engine pp: {config.n_layers} layers (n_experts {config.n_experts}) on {size.pp} stages")


class EngineModel:
    """A decoder and its AdamW under one of torch's engines; the same methods as `training.MeshModel`.

    Args:
        engine: "fsdp2", "tp" or "pp".
        model: the same whole model on all ranks; it is used up.
        mesh: the ranks.
        make_optimizer: (part of the model, config) -> our AdamW over its parameters; torch's takes over its settings.
        n_microbatches: parts of a rank's rows.
        autocast: makes the context for forward passes.

    Raises:
        ConfigError: as `check_engine`.
    """

    def __init__(
        self,
        engine: str,
        model: GPT,
        mesh: Mesh,
        make_optimizer: Callable[[nn.Module, GPTConfig], Optimizer],
        n_microbatches: int = 1,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        check_engine(engine, mesh.size, model.config)
        self.engine, self.mesh, self.config, self.autocast = engine, mesh, model.config, autocast
        self.n_microbatches = n_microbatches
        device_type = next(model.parameters()).device.type
        broadcast_module(model, mesh.world)
        self.is_fully_sharded = engine == "fsdp2" or (engine == "tp" and mesh.dp.size > 1)
        self.schedule = None
        if engine == "pp":
            self.model = PipelineStage(model, mesh.pp.rank, mesh.pp.size)
            self.loss_factor = 1.0
            self.schedule = torch_schedule(self.model, mesh, n_microbatches, self.scaled_loss)
        else:
            self.model = (to_fsdp2 if engine == "fsdp2" else to_tensor_parallel)(model, mesh, device_type)
        self.optimizer = torch_twin(make_optimizer(self.model, self.config))

    def gradients(self, inputs: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, int]:
        """See `training.CutModel`."""
        n_tokens = global_token_count(int((targets != IGNORED).sum()), self.mesh.dp)
        factor = scale / max(n_tokens, 1)
        if self.is_fully_sharded:
            factor *= self.mesh.dp.size                            # fully_shard takes the mean over the ranks
        add = self.add_in_turn if self.schedule is None else self.add_in_pipeline
        loss = add(inputs, targets, factor)
        self.mesh.dp.all_reduce(loss)
        return loss / max(n_tokens, 1), n_tokens

    def add_in_turn(self, inputs: Tensor, targets: Tensor, factor: float) -> Tensor:
        """One micro-batch after another; the summed loss."""
        total = torch.zeros((), dtype=torch.float64, device=inputs.device)
        parts = inputs.tensor_split(self.n_microbatches), targets.tensor_split(self.n_microbatches)
        for part_inputs, part_targets in zip(*parts, strict=True):
            with self.autocast():
                loss = next_token_loss(self.model, part_inputs, part_targets)
            (loss * factor).backward()
            total += loss.detach()
        return total

    def add_in_pipeline(self, inputs: Tensor, targets: Tensor, factor: float) -> Tensor:
        """All micro-batches through torch's schedule; then what torch leaves to the caller: tied tables, copies."""
        self.loss_factor = factor
        losses: list[Tensor] = []
        pp = self.mesh.pp
        with self.autocast():
            if pp.rank == 0:
                self.schedule.step(inputs)
            elif pp.rank == pp.size - 1:
                self.schedule.step(target=targets, losses=losses)
            else:
                self.schedule.step()
        loss = torch.zeros((), dtype=torch.float64, device=inputs.device)
        if losses:
            loss += torch.stack(losses).sum() / factor
        pp.broadcast(loss, source=pp.size - 1)
        sync_tied_gradients(self.model, pp)
        if self.mesh.dp.size > 1:
            reduce_gradients(list(self.model.parameters()), self.mesh.dp, scale=1.0)
        return loss

    def scaled_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What torch's schedule differentiates for each micro-batch."""
        return kernel_cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum") * self.loss_factor

    def clip(self, max_norm: float) -> Tensor:
        """See `training.CutModel`."""
        named = dict(self.model.named_parameters())
        if self.schedule is not None:
            counted = {parameter: counts_once(self.model, name) for name, parameter in named.items()}
            return clip_global_gradients(list(counted), max_norm, [self.mesh.pp], counted.__getitem__)
        gradients = [parameter.grad for parameter in named.values() if parameter.grad is not None]
        norms = [whole(torch.linalg.vector_norm(gradient)) for gradient in gradients]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        if not math.isinf(max_norm):
            factor = (max_norm / (norm + 1e-6)).clamp(max=1.0).item()
            for gradient in gradients:
                gradient.mul_(factor)
        return norm

    def gather_weights(self) -> dict[str, Tensor]:
        """See `training.CutModel`."""
        if self.schedule is not None:
            return gather_full_state(self.model, self.mesh)
        named = {name: whole(parameter.detach()) for name, parameter in self.model.named_parameters()}
        return {name: self.in_our_order(name, tensor) for name, tensor in named.items()}

    def gather_optimizer(self) -> dict:
        """See `training.CutModel`."""
        if self.schedule is not None:
            return portable(gather_optimizer_state(self.optimizer, self.model, self.mesh))
        saved = portable(optimizer_state_by_name(self.optimizer, self.model))
        for name, entries in saved["state"].items():
            saved["state"][name] = {key: self.whole_entry(name, key, value) for key, value in entries.items()}
        return saved

    def whole_entry(self, name: str, key: str, value: object) -> object:
        """One number or tensor of AdamW's state, as one process has it."""
        if key == "step":
            return int(value)
        return self.in_our_order(name, whole(value)) if isinstance(value, Tensor) else value

    def scatter(self, weights: Mapping[str, Tensor], optimizer_state: dict) -> None:
        """See `training.CutModel`."""
        optimizer_state = portable(optimizer_state)
        if self.schedule is not None:
            load_full_state(self.model, self.mesh, weights)
            load_full_optimizer_state(self.optimizer, self.model, self.mesh, optimizer_state)
            with_step_tensors(self.optimizer)
            return
        named = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(like(self.in_torchs_order(name, weights[name]), parameter))
        state = {}
        for name, entries in optimizer_state["state"].items():
            state[name] = {
                key: like(self.in_torchs_order(name, value), named[name]) if isinstance(value, Tensor) else value
                for key, value in entries.items()
            }
        load_optimizer_state_by_name(self.optimizer, self.model, {**optimizer_state, "state": state})
        with_step_tensors(self.optimizer)

    def in_torchs_order(self, name: str, tensor: Tensor) -> Tensor:
        """Rows of queries, keys and values as `to_tensor_parallel` puts them."""
        if self.engine != "tp" or ".qkv." not in name:
            return tensor
        return tensor[qkv_order(self.config, self.mesh.tp.size).to(tensor.device)]

    def in_our_order(self, name: str, tensor: Tensor) -> Tensor:
        """The way back."""
        if self.engine != "tp" or ".qkv." not in name:
            return tensor
        return tensor[qkv_order(self.config, self.mesh.tp.size).argsort().to(tensor.device)]


def torch_twin(optimizer: Optimizer) -> Optimizer:
    """torch's AdamW with the groups and settings of ours; its loop over parameters, of which some may be DTensors.

    Args:
        optimizer: ours, before its first step.

    Raises:
        ConfigError: if it is no AdamW.
    """
    if not isinstance(optimizer, AdamW):
        raise ConfigError(
            f"torch's engines step with AdamW here, not with {type(optimizer).__name__}, which needs whole matrices; "
            "give --optimizer adamw"
        )
    keys = ("lr", "betas", "eps", "weight_decay")
    groups = [{"params": group["params"], **{key: group[key] for key in keys}} for group in optimizer.param_groups]
    return torch.optim.AdamW(groups, foreach=False)


def portable(saved: dict) -> dict:
    """Optimizer state by name with the options that our AdamW and torch's both have."""
    groups = [
        {"names": group["names"], "options": {key: v for key, v in group["options"].items() if key in PORTABLE_OPTIONS}}
        for group in saved["groups"]
    ]
    return {**saved, "groups": groups}


def with_step_tensors(optimizer: Optimizer) -> None:
    """torch's AdamW counts steps in a tensor, in place; ours with a number."""
    for entries in optimizer.state.values():
        if "step" in entries:
            entries["step"] = torch.tensor(float(entries["step"]))


def whole(tensor: Tensor) -> Tensor:
    """The whole of a DTensor, on every rank; any other tensor is whole."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor cut as the parameter is, if it is a DTensor with that shape."""
    if not hasattr(parameter, "full_tensor") or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    tensor = tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
