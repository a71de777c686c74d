"""Adapters in the layout of the `peft` package, whatever the method: a folder that `PeftModel.from_pretrained` opens.

    DIR/adapter_config.json         peft_type: which method; its settings
        adapter_model.safetensors   the trained numbers under peft's names, and the head of a classifier

`peft_lora`, `peft_ia3` and `peft_prompts` know the methods. Adapters between layers (Houlsby, Pfeiffer), BitFit,
partial fine-tuning and intrinsic dimension are not in peft; they are saved by `Adapted.save`.
"""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from minillm.adapt.adapted import Adapted
from minillm.adapt.ia3 import IA3Config
from minillm.adapt.lora import LoraConfig
from minillm.adapt.prefix import PrefixConfig
from minillm.adapt.prompt import PromptConfig, PTuningConfig
from minillm.errors import CheckpointError
from minillm.export.folder import read_json_object
from minillm.export.peft_ia3 import load_peft_ia3, save_peft_ia3
from minillm.export.peft_lora import CONFIG, load_peft_lora, save_peft_lora
from minillm.export.peft_prompts import load_peft_prompt, save_peft_prompt

SAVERS: dict[type, Callable[[Adapted, str | Path, str], Path]] = {
    LoraConfig: save_peft_lora,
    IA3Config: save_peft_ia3,
    PrefixConfig: save_peft_prompt,
    PromptConfig: save_peft_prompt,
    PTuningConfig: save_peft_prompt,
}
LOADERS: dict[str, Callable[[nn.Module, str | Path, str], Adapted]] = {
    "LORA": load_peft_lora,
    "IA3": load_peft_ia3,
    "PREFIX_TUNING": load_peft_prompt,
    "PROMPT_TUNING": load_peft_prompt,
    "P_TUNING": load_peft_prompt,
}


def save_peft(adapted: Adapted, folder: str | Path, base: str = "") -> Path:
    """Write the adapter in use so that `PeftModel.from_pretrained(exported model, folder)` gives the same logits.

    Args:
        adapted: a model of a family that transformers has, or a classifier over one, adapted by LoRA, (IA)^3, a prefix,
            a prompt or P-Tuning.
        folder: a new or empty folder; it appears complete or not at all.
        base: where `peft` finds the exported model, its folder or name on a hub; noted in the config.

    Returns:
        the folder.

    Raises:
        CheckpointError: if peft has no such method, transformers no such model, or their layout cannot say it.
    """
    save = SAVERS.get(type(adapted.config))
    if save is None:
        known = ", ".join(sorted({config.method for config in SAVERS}))
        raise CheckpointError(
            f"the method is {adapted.config.method}, which peft does not have (it has {known}); write it with save()"
        )
    return save(adapted, folder, base)


def load_peft(model: nn.Module, folder: str | Path, name: str = "default") -> Adapted:
    """Put an adapter that `peft` has trained, or `save_peft` written, on our model of the same base.

    Nothing in their files says which base it was: whether it is this one, only the caller knows.

    Args:
        model: of a family that transformers has, or a classifier over one, not adapted yet.
        folder: holds adapter_config.json and adapter_model.safetensors.
        name: of the adapter.

    Returns:
        the handle.

    Raises:
        CheckpointError: if the folder holds no adapter, one of a method or with settings that this library does not
            have, or one of another model; the model is as it was then.
    """
    kind = read_json_object(Path(folder) / CONFIG).get("peft_type")
    load = LOADERS.get(kind) if isinstance(kind, str) else None
    if load is None:
        raise CheckpointError(
            f"{Path(folder) / CONFIG} has peft_type {kind!r}; this library reads {', '.join(LOADERS)}"
        )
    return load(model, folder, name)
