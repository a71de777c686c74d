"""How weights lie in memory, for generation on a CPU, where reading them takes nearly all of the time."""

import torch

from minillm.models.gpt import GPT
from minillm.nn.linear import Linear


@torch.no_grad()
def store_by_columns(model: GPT) -> GPT:
    """Lay every linear map's weight (out, in) out in memory column by column; shapes and values stay as they are.

    One new token is a product of one row with each weight. Measured on two cores, 384 wide, generation in float32 was
    1.25 times as fast (226 against 181 tokens/s), in bfloat16 no faster (280 against 291).

    Args:
        model: changed in place.

    Returns:
        The same model.

    Example:
        >>> from minillm.models.registry import model_config
        >>> model = store_by_columns(GPT(model_config("gpt2", "nano", vocab_size=5, max_seq_len=8)))
        >>> weight = model.blocks[0].feed_forward.up.weight
        >>> tuple(weight.shape), weight.stride()
        ((256, 64), (1, 256))
    """
    for module in model.modules():
        if isinstance(module, Linear):
            module.weight.data = module.weight.data.t().contiguous().t()
    return model
