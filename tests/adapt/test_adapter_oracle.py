"""Our adapters beside those of the `adapters` package: against its logits in a file, and itself where it is installed.

See helpers/freeze_adapters.py for how to install it: its pins do not go with those of the other oracles.
"""

import json

import pytest
import torch
from helpers.freeze_adapters import FILE, MODELS, PLACEMENTS, both, logits_of, ours, their_logits
from helpers.parity import assert_near

from minillm.adapt.adapter import ACTIVATIONS

CASES = [(kind, placement) for kind in MODELS for placement in PLACEMENTS]


def frozen(kind, placement):
    case = json.loads(FILE.read_text(encoding="utf-8"))[f"{kind} {placement}"]
    return case["parameters"], torch.tensor(case["logits"], dtype=torch.float64)


@pytest.mark.parametrize("kind, placement", CASES)
@torch.no_grad()
def test_logits_and_count_are_those_that_the_package_gave(kind, placement):
    count, logits = frozen(kind, placement)
    adapted, base = ours(kind, placement)
    assert adapted.count().trainable == count
    assert_near(logits_of(adapted.model)[:, -1], logits, MODELS[kind][2])
    assert (base[:, -1] - logits).abs().max() > 0.05 * logits.abs().max()  # the adapters do something


@pytest.mark.parametrize("kind, placement", CASES)
@torch.no_grad()
def test_the_frozen_logits_notice(kind, placement, monkeypatch):
    """Another activation, or a missing bias, gives other logits by far."""
    _, logits = frozen(kind, placement)
    adapted, _ = ours(kind, placement)
    monkeypatch.setitem(ACTIVATIONS, "relu", ACTIVATIONS["gelu"])
    differences = [(logits_of(adapted.model)[:, -1] - logits).abs().max()]
    monkeypatch.undo()
    for name, parameter in adapted.trainable_parameters().items():
        if name.endswith("down.bias"):
            parameter.zero_()
    differences.append((logits_of(adapted.model)[:, -1] - logits).abs().max())
    assert min(differences) > 1e-3


@pytest.mark.filterwarnings("ignore")  # theirs are not our concern
@pytest.mark.parametrize("kind, placement", CASES)
def test_logits_gradients_and_count_beside_the_package(kind, placement):
    pytest.importorskip("adapters")
    near = MODELS[kind][2]
    adapted, _, peer, parameters = both(kind, placement)
    results = logits_of(adapted.model), their_logits(peer)
    assert_near(*results, near, "logits")
    for logits in results:
        logits.square().mean().backward()
    for (name, own), parameter in zip(adapted.trainable_parameters().items(), parameters, strict=True):
        assert_near(own.grad, parameter.grad, 10 * near, name)
