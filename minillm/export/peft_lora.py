"""LoRA adapters in the layout of the `peft` package, for the exported model, and back.

    DIR/adapter_config.json         which modules, rank, alpha
        adapter_model.safetensors   base_model.model.<their module>.lora_A.weight (R, I), .lora_B.weight (O, R)

A fused layer of ours is several modules of theirs or one, by family. Parts with an A and a B of their own become
modules, or one module of the ranks' sum whose B has blocks; a whole layer becomes modules that share one A. All of it
computes the same.

Dimensions: R rank, I width of a layer's input, O width of its output, N rows.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minillm import surgery
from minillm.adapt.adapted import Adapted, adapt
from minillm.adapt.delta import TrainedInPlace
from minillm.adapt.lora import WHOLE, LoraConfig, LoraDelta, LoraEmbedding, LoraLayer
from minillm.errors import CheckpointError, ConfigError
from minillm.export.exported import exported, head_tensors, heads_from, modules_of
from minillm.export.folder import new_folder, read_json_object, write_json
from minillm.export.weights import Match
from minillm.train.checkpoint import write_file
from minillm.train.tensor_file import read_tensor_file, tensor_file_chunks

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
EXPERT = re.compile(r".*\.experts\.\d+\.(?P<kind>w[123])$")  # gate, down and up of one expert
EXPERTS = (set(), {"w2"}, {"w1", "w2", "w3"})
LINEAR_KEYS, TABLE_KEYS = ("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")
COPY_OF_BASE = ".base_layer.weight"  # peft writes a table whole beside its branch; it is the base's, unchanged
NOT_HERE = (  # settings of theirs that make another computation of it, when they are set
    "use_dora", "lora_bias", "layer_replication", "target_parameters", "use_qalora", "alora_invocation_tokens",
    "arrow_config", "velora_config", "monteclora_config", "use_bdlora", "kasa_config", "trainable_token_indices",
)  # fmt: skip


@dataclass
class TheirLora:
    """One module of theirs with its two matrices.

    Attributes:
        a: (R, I).
        b: (O, R), rows in their order.
        scale: what B A x is multiplied by.
        is_table: whether the module is an embedding.
        is_transposed: whether they keep the module's weight as (in, out).
    """

    a: Tensor
    b: Tensor
    scale: float
    is_table: bool = False
    is_transposed: bool = False

    @property
    def rank(self) -> int:
        """R."""
        return self.a.shape[0]


@dataclass(frozen=True)
class Place:
    """Where the rows of one layer of ours are in their model.

    Attributes:
        modules: their modules.
        rows: for each, (N,) the rows of ours that it holds, in its order.
        is_transposed: whether they keep the weight as (in, out).
    """

    modules: tuple[str, ...]
    rows: tuple[Tensor, ...]
    is_transposed: bool


def save_peft_lora(adapted: Adapted, folder: str | Path, base: str = "", name: str = "") -> Path:
    """Write a LoRA adapter so that `PeftModel.from_pretrained(exported model, folder)` gives the same logits.

    Args:
        adapted: a model of a family that transformers has, or a classifier over one, with a LoRA adapter.
        folder: a new or empty folder; it appears complete or not at all.
        base: where `peft` finds the exported model, its folder or name on a hub; noted in the config.
        name: which adapter; the one in use if empty.

    Returns:
        the folder.

    Raises:
        CheckpointError: if transformers has no such model, the method is not LoRA, or their layout cannot say it.
    """
    name = name or adapted.name
    config, (lora, heads) = adapted.configs[name], lora_and_heads(adapted, name)
    places = places_of(adapted.model)
    modules: dict[str, TheirLora] = {}
    for place, layer in lora.layers.items():
        modules |= to_theirs(place, layer, name, places)
    check_experts(modules, [module for place in places.values() for module in place.modules])
    tensors = {key: tensor for module, theirs in modules.items() for key, tensor in named(module, theirs).items()}
    saved = head_tensors(adapted, heads)
    tensors |= {f"{PREFIX}{key}": tensor for key, tensor in saved.items()}
    settings = settings_for(config, modules, modules_of(saved), exported(adapted.model).task, base)
    with new_folder(Path(folder)) as temporary:
        write_json(temporary / CONFIG, settings)
        write_file(temporary / WEIGHTS, tensor_file_chunks(tensors, {"format": "pt"}))
    return Path(folder)


def lora_and_heads(adapted: Adapted, name: str) -> tuple[LoraDelta, dict[str, Tensor]]:
    """The LoRA part of an adapter, and what is trained beside it: our parameter's name -> numbers.

    Raises:
        CheckpointError: if it is another method.
    """
    delta = adapted.deltas[name]
    parts = getattr(delta, "deltas", [delta])
    if not isinstance(parts[0], LoraDelta):
        raise CheckpointError(f"the adapter {name!r} is of the method {adapted.configs[name].method}, expected lora")
    return parts[0], {key: value for part in parts[1:] if isinstance(part, TrainedInPlace)
                      for key, value in part.tensors().items()}  # fmt: skip


def places_of(model: nn.Module) -> dict[str, Place]:
    """Our layer's name -> where its rows are; layers and tables only.

    Raises:
        CheckpointError: if transformers has no such model.
    """
    form, places = exported(model), {}
    for name, match in form.matches.items():
        layer = name.removesuffix(".weight")
        if layer == name or name in form.own or form.tied & set(match.theirs):
            continue
        weight = getattr(surgery.unwrapped(model.get_submodule(layer)), "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 2:
            places[layer] = place_of(match, weight.shape[0])
    return places


def place_of(match: Match, n_rows: int) -> Place:
    """Find out where the rows go by sending their numbers through the match.

    Args:
        match: of a layer's weight.
        n_rows: O.
    """
    width = 2 if n_rows != 2 else 3
    numbers = torch.arange(n_rows)[:, None].expand(n_rows, width)  # (O, N)
    parts = match.part(numbers)
    is_transposed = parts[0].shape == (width, n_rows)
    rows = tuple((part.T if is_transposed else part)[:, 0].contiguous() for part in parts)
    return Place(tuple(name.removesuffix(".weight") for name in match.theirs), rows, is_transposed)


def check_experts(modules: Collection[str], known: Iterable[str]) -> None:
    """Refuse adapters of experts that `peft` cannot read: transformers keeps the experts of a layer as two tensors, and
    peft turns matrices of single experts into theirs only where every expert has `down`, or all three.

    Args:
        modules: theirs, that are adapted.
        known: all of theirs.

    Raises:
        CheckpointError: if others are adapted.
    """
    kinds = {match["kind"] for module in modules if (match := EXPERT.match(module))}
    of_these = {module for module in known if (match := EXPERT.match(module)) and match["kind"] in kinds}
    if kinds not in EXPERTS or of_these - set(modules):
        raise CheckpointError(
            "peft reads adapters of experts only where down of every expert is adapted, or gate, up and down; choose "
            "such targets, or save with save()"
        )


def to_theirs(place: str, layer: LoraLayer, name: str, places: Mapping[str, Place]) -> dict[str, TheirLora]:
    """One layer's branches as modules of theirs.

    Raises:
        CheckpointError: if they have no place for it.
    """
    if place not in places:
        raise CheckpointError(
            f"{place} cannot be written for peft: it is tied to the head there, where a branch would change only one "
            "of the two, or is not of one matrix; leave it out of the targets"
        )
    there, branches = places[place], [*layer.branches[name].values()]
    scale, is_table = layer.configs[name].scale, isinstance(layer, LoraEmbedding)
    if is_table:
        a, b = branches[0].A.detach(), branches[0].B.detach()
        return {there.modules[0]: TheirLora(a, b, scale, True)}
    n_rows = sum(map(len, there.rows))
    modules = {}
    for module, rows in zip(there.modules, there.rows, strict=True):
        touching = [branch for branch in branches if touches(branch.rows, rows)]
        if touching:
            a = torch.cat([branch.A.detach() for branch in touching])
            b = torch.cat([widened(branch, n_rows) for branch in touching], dim=1)[rows.to(a.device)]
            modules[module] = TheirLora(a, b, scale, False, there.is_transposed)
    return modules


def touches(changed: slice, rows: Tensor) -> bool:
    """Whether a branch changes any of these rows."""
    return bool(((rows >= changed.start) & (rows < changed.stop)).any())


def widened(branch: nn.Module, n_rows: int) -> Tensor:
    """A branch's B with zeros for the rows that it does not change: (O, R)."""
    b = branch.B.detach()
    whole = b.new_zeros(n_rows, b.shape[1])                        # (N, R)
    whole[branch.rows] = b
    return whole


def named(module: str, theirs: TheirLora) -> dict[str, Tensor]:
    """The tensors of one module by their names in the file."""
    first, second = TABLE_KEYS if theirs.is_table else LINEAR_KEYS
    start = f"{PREFIX}{module}"
    return {f"{start}.{first}": theirs.a.contiguous(), f"{start}.{second}": theirs.b.contiguous()}


def settings_for(
    config: LoraConfig, modules: Mapping[str, TheirLora], heads: Sequence[str] | None, task: str | None, base: str
) -> dict[str, Any]:
    """The content of adapter_config.json; modules with another rank than most are listed by name.

    Beside experts the scale is written as alpha / R even if it is alpha / sqrt(R): peft joins two of an expert's
    matrices, which doubles R, and mends alpha for the former alone.
    """
    stabilised = config.rank_stabilised and not any(EXPERT.match(module) for module in modules)
    ranks = [theirs.rank for theirs in modules.values()]
    usual = max(set(ranks), key=ranks.count)
    unusual = {module: theirs for module, theirs in modules.items() if theirs.rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base or None,
        "r": usual,
        "lora_alpha": alpha_for(config, usual, stabilised),
        "rank_pattern": {module: theirs.rank for module, theirs in unusual.items()},
        "alpha_pattern": {
            module: alpha_for(config, theirs.rank, stabilised) for module, theirs in unusual.items()
        },
        "lora_dropout": config.dropout,
        "use_rslora": stabilised,
        "target_modules": sorted(modules),
        "modules_to_save": heads,
        "fan_in_fan_out": any(theirs.is_transposed for theirs in modules.values()),
        "init_lora_weights": True,
        "bias": "none",
        "inference_mode": True,
    }


def alpha_for(config: LoraConfig, rank: int, stabilised: bool) -> float:
    """The alpha that gives our scale with this rank, in their formula of either kind."""
    return config.scale * (math.sqrt(rank) if stabilised else rank)


def load_peft_lora(model: nn.Module, folder: str | Path, name: str = "default") -> Adapted:
    """Put a LoRA adapter that `peft` has trained, or `save_peft_lora` written, on our model of the same base.

    Modules of different ranks all get the largest, filled up with zeros. Arguments, result and errors are those of
    `minillm.export.peft.load_peft`.
    """
    folder = Path(folder)
    theirs = read_json_object(folder / CONFIG)
    check_settings(theirs, folder)
    modules, heads = read_modules(read_tensor_file(folder / WEIGHTS), theirs, folder)
    found = Ours(model, folder)
    for module, lora in modules.items():
        found.take(module, lora)
    kept = heads_from(model, heads, str(folder / WEIGHTS))
    config = found.config(theirs, sorted({key.rpartition(".")[0] for key in kept}))
    try:
        adapted = adapt(model, config, name, torch.Generator().manual_seed(0))
    except ConfigError as error:
        raise CheckpointError(f"{folder} does not fit this {type(model).__name__}: {error}") from error
    try:
        found.fill(adapted, kept)
    except CheckpointError:
        adapted.remove()
        raise
    return adapted


def check_settings(theirs: Mapping[str, Any], folder: Path) -> None:
    """Refuse what would compute something else here.

    Raises:
        CheckpointError: naming the setting.
    """
    if theirs.get("peft_type") != "LORA":
        raise CheckpointError(f"{folder / CONFIG} has peft_type {theirs.get('peft_type')!r}; this library reads 'LORA'")
    if theirs.get("bias") not in (None, "none"):
        raise CheckpointError(f"{folder / CONFIG} has bias {theirs['bias']!r}; this library reads 'none'")
    if found := [key for key in NOT_HERE if theirs.get(key)]:
        raise CheckpointError(f"{folder / CONFIG} has {found[0]} = {theirs[found[0]]!r}; this library does not do it")


def read_modules(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any], folder: Path
) -> tuple[dict[str, TheirLora], dict[str, Tensor]]:
    """The file's tensors by module, and the rest: modules saved whole.

    Raises:
        CheckpointError: if a module has only one of its two matrices, or they do not fit together.
    """
    bare = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items() if not key.endswith(COPY_OF_BASE)}
    modules = {}
    for first, second in (LINEAR_KEYS, TABLE_KEYS):
        for key in [key for key in bare if key.endswith(f".{first}")]:
            module = key.removesuffix(f".{first}")
            a, b = bare.pop(key), bare.pop(f"{module}.{second}", None)
            if b is None or b.dim() != 2 or a.dim() != 2 or b.shape[1] != a.shape[0]:
                raise CheckpointError(f"{folder / WEIGHTS}: the two matrices of {module} are missing or do not fit")
            modules[module] = TheirLora(a, b, their_scale(settings, module), first in TABLE_KEYS)
    if lost := sorted(key for key in bare if ".lora_" in key):
        raise CheckpointError(f"{folder / WEIGHTS} has {lost[0]}, which this library does not know")
    if not modules:
        raise CheckpointError(f"{folder / WEIGHTS} holds no LoRA matrices")
    return modules, bare


def their_scale(settings: Mapping[str, Any], module: str) -> float:
    """What peft multiplies a module's branch by."""

    def of(pattern: str, usual: str) -> float:
        known = settings.get(pattern) or {}
        return next((value for key, value in known.items() if surgery.means(module, key)), settings.get(usual, 8))

    rank, alpha = of("rank_pattern", "r"), of("alpha_pattern", "lora_alpha")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


@dataclass
class Ours:
    """Where the modules of a file belong in our model.

    Attributes:
        model: ours.
        folder: of the file, for messages.
        places: our layer's name -> where its rows are in theirs.
        parts: our layer's name -> part's name -> the module of theirs.
    """

    model: nn.Module
    folder: Path
    places: dict[str, Place] = field(default_factory=dict)
    parts: dict[str, dict[str, TheirLora]] = field(default_factory=dict)

    def __post_init__(self):
        self.places = places_of(self.model)

    def take(self, module: str, lora: TheirLora) -> None:
        """Find a module's place.

        Raises:
            CheckpointError: if our model has none for it.
        """
        for name, place in self.places.items():
            if module in place.modules:
                parts = [*surgery.sections_of(self.model, name)] if len(place.modules) > 1 else [WHOLE]
                self.parts.setdefault(name, {})[parts[place.modules.index(module)]] = lora
                return
        raise CheckpointError(f"{self.folder / WEIGHTS} adapts {module}, for which this model has no layer of its own")

    def config(self, theirs: Mapping[str, Any], heads: Sequence[str]) -> LoraConfig:
        """Our settings for these layers.

        Raises:
            CheckpointError: if layers have different parts, which our settings cannot say.
        """
        wanted = {part for parts in self.parts.values() for part in parts} - {WHOLE}
        for name, parts in self.parts.items():
            if (there := wanted & surgery.sections_of(self.model, name).keys()) != parts.keys() - {WHOLE}:
                raise CheckpointError(f"{self.folder} adapts {sorted(parts)} of {name}, but {sorted(there)} of others")
        all_of_them = [lora for parts in self.parts.values() for lora in parts.values()]
        rank, stabilised = max(lora.rank for lora in all_of_them), bool(theirs.get("use_rslora"))
        return LoraConfig(
            rank=rank,
            alpha=all_of_them[0].scale * (math.sqrt(rank) if stabilised else rank),
            targets=tuple(self.parts),
            parts=tuple(part for part in ("query", "key", "value") if part in wanted),
            dropout=float(theirs.get("lora_dropout") or 0.0),
            rank_stabilised=stabilised,
            heads=tuple(heads),
        )

    @torch.no_grad()
    def fill(self, adapted: Adapted, kept: Mapping[str, Tensor]) -> None:
        """Copy their numbers into fresh branches, rows in our order, and into heads.

        Raises:
            CheckpointError: if sizes differ.
        """
        lora, _ = lora_and_heads(adapted, adapted.name)
        for name, layer in lora.layers.items():
            for part, branch in layer.branches[adapted.name].items():
                fused = part == WHOLE and not isinstance(layer, LoraEmbedding)
                order = torch.cat(self.places[name].rows) if fused else slice(None)
                self.fill_branch(branch, self.parts[name][part], order, adapted.config.scale)
        for name, parameter in adapted.trainable_parameters().items():
            if name in kept:
                parameter.copy_(kept[name])

    def fill_branch(self, branch: nn.Module, lora: TheirLora, order: Tensor | slice, scale: float) -> None:
        """One branch: A (R, I) and B (O, R), filled up with zeros if theirs has a smaller rank."""
        if lora.a.shape[1] != branch.A.shape[1] or len(lora.b) != len(branch.B):
            raise CheckpointError(
                f"{self.folder / WEIGHTS}: matrices of widths {lora.a.shape[1]} and {len(lora.b)} do not fit into a "
                f"layer of {branch.A.shape[1]} and {len(branch.B)}"
            )
        branch.A.zero_()[: lora.rank] = lora.a
        ratio = lora.scale / scale
        branch.B.zero_()[order, : lora.rank] = lora.b if math.isclose(ratio, 1.0) else lora.b * ratio
