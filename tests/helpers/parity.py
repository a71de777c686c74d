"""Our models beside those of `transformers` with the same weights: logits and all gradients."""

import torch

from minillm.export.hugging_face import family_of
from minillm.export.weights import to_ours


def randomized(model, seed=0, scale=0.2):
    """The model with noise on every parameter: biases and norm scales must matter too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((scale * noise).to(parameter.dtype))
    return model


def random_ids(vocab_size, shape, seed=0):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def assert_near(actual, expected, relative, what=""):
    """The largest difference is at most `relative` times the largest number."""
    assert actual.shape == expected.shape, (what, actual.shape, expected.shape)
    difference, largest = (actual - expected).abs().max().item(), expected.abs().max().item()
    assert difference <= relative * largest, f"{what}: difference {difference:.2e}, largest number {largest:.2e}"


def assert_same_gradients(model, peer, relative, on_disk=dict):
    """Every parameter's gradient, once both had `backward` called on them; theirs is brought into our arrangement.

    `on_disk` turns their parameters' names into those of their files, where the two differ.
    """
    gradients = on_disk({name: parameter.grad for name, parameter in peer.named_parameters()})
    expected = to_ours(gradients.__getitem__, family_of(model.config).matches(model.config))
    ours = dict(model.named_parameters())
    assert ours.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        difference = (ours[name].grad - gradient).abs().max().item()
        assert difference <= relative * largest, f"gradient of {name}: {difference:.2e} of {largest:.2e}"
