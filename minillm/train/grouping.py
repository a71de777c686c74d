"""Which parameters get weight decay, and which optimizer."""

from collections.abc import Callable

from torch import Tensor, nn

from minillm.train.optim import MuonAndAdamW


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups for an optimizer: weights of two and more dimensions decay; vectors (biases, norm gains) do not.

    Decay pulls towards 0, which is a sensible place for the entries of a product but not for a gain of 1.

    Args:
        model: any module; parameters with requires_grad=False are left out, tied ones are counted once.
        weight_decay: of the first group; the second has 0.

    Returns:
        groups whose "params" are (name, parameter) pairs, so that the optimizer knows the names; no empty group.

    Example:
        >>> groups = decay_groups(nn.Linear(2, 2), 0.1)
        >>> [(group["weight_decay"], [name for name, _ in group["params"]]) for group in groups]
        [(0.1, ['weight']), (0.0, ['bias'])]
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = {"params": [pair for pair in trained if pair[1].dim() >= 2], "weight_decay": weight_decay}
    vectors = {"params": [pair for pair in trained if pair[1].dim() < 2], "weight_decay": 0.0}
    return [group for group in (matrices, vectors) if group["params"]]


def is_hidden_matrix(name: str, parameter: Tensor, module: nn.Module) -> bool:
    """Whether Muon is meant for this parameter: a matrix that maps features to features, not ids to features or back.

    Args:
        name: dotted name of the parameter.
        parameter: the parameter.
        module: the module that holds it.

    Returns:
        True for matrices except those of `nn.Embedding`s and those whose name says embedding or head.
    """
    words = name.lower()
    not_hidden = isinstance(module, nn.Embedding) or any(word in words for word in ("embed", "head", "wte", "wpe"))
    return parameter.dim() == 2 and not not_hidden


def muon_and_adamw(
    model: nn.Module,
    muon_lr: float = 0.02,
    adamw_lr: float = 1e-2,
    momentum: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    adjust_lr_fn: str = "original",
    ns_dtype: str = "fp32",
    ns_steps: int = 5,
    neuron_beta: float = 0.0,
    head_lr: float | None = None,
    fused: bool = False,
    splits: dict[str, int | tuple[int, ...]] | None = None,
    chosen: Callable[[str, Tensor, nn.Module], bool] = is_hidden_matrix,
) -> MuonAndAdamW:
    """Muon for the hidden matrices, AdamW for embeddings, output head and vectors, in one optimizer.

    Args:
        model: any module; tied parameters are counted once, under their first name.
        muon_lr: learning rate of the matrices.
        adamw_lr: learning rate of the rest.
        momentum: of Muon.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: decoupled, of all parameters of two and more dimensions; vectors have none.
        adjust_lr_fn: rule of `muon_scale`.
        ns_dtype: "fp32" or "bf16", number format of the Newton-Schulz products.
        ns_steps: number of Newton-Schulz steps.
        neuron_beta: 0, or the beta of `equalize_neurons`.
        head_lr: learning rate of the output head, the parameter "head.weight"; None means `adamw_lr`.
        fused: let torch's kernel make AdamW's update.
        splits: end of a parameter's name -> Muon's `split` option, for example {"qkv.weight": 3}.
        chosen: (name, parameter, module that holds it) -> whether Muon takes it.

    Returns:
        the optimizer; each group has "use_muon".

    Raises:
        ConfigError: if a setting is out of range.
    """
    muon = {"use_muon": True, "lr": muon_lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": True,
            "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn, "ns_dtype": ns_dtype,
            "neuron_beta": neuron_beta}  # fmt: skip
    adamw = {"use_muon": False, "lr": adamw_lr, "betas": betas, "eps": eps, "fused": fused}
    by_split: dict[int | tuple[int, ...], list[tuple[str, Tensor]]] = {}
    rest: list[tuple[str, Tensor]] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if chosen(name, parameter, model.get_submodule(name.rpartition(".")[0])):
            split = next((split for ending, split in (splits or {}).items() if name.endswith(ending)), 1)
            by_split.setdefault(split, []).append((name, parameter))
        else:
            rest.append((name, parameter))
    groups = [{**muon, "params": pairs, "split": split} for split, pairs in by_split.items()]
    by_rate: dict[tuple[float, float], list[tuple[str, Tensor]]] = {}
    for name, parameter in sorted(rest, key=lambda pair: pair[1].dim() < 2):
        lr = head_lr if head_lr is not None and name.endswith("head.weight") else adamw_lr
        by_rate.setdefault((lr, weight_decay if parameter.dim() >= 2 else 0.0), []).append((name, parameter))
    groups += [{**adamw, "params": pairs, "lr": lr, "weight_decay": decay} for (lr, decay), pairs in by_rate.items()]
    return MuonAndAdamW(groups)
