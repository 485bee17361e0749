"""The average of the weights, against its closed form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from finpercep.training.averaging import WeightAverage


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def walk(model, average, updates):
    """Move the weights at random; returns all values of one of them, the first included."""
    values = [model[0].weight.detach().clone()]
    for _ in range(updates):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(2, 3, 8, 8))  # moves BatchNorm's statistics
        average.update(model)
        values.append(model[0].weight.detach().clone())
    return values


def test_it_is_the_exponential_average_with_warm_up():
    model = network()
    average = WeightAverage(model, 0.5)
    values = walk(model, average, 12)
    expected = values[0]
    for n, value in enumerate(values[1:]):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert torch.allclose(average.module[0].weight, expected, atol=1e-5)


def test_a_short_run_has_forgotten_its_start():
    """Weights that jump from 0 to 1 at once: without warm-up the average would still be 0.95 of 0."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightAverage(model, 0.999)
    nn.init.ones_(model.weight)
    for _ in range(50):
        average.update(model)
    assert average.module.weight.item() == pytest.approx(1, abs=1e-6)


def test_no_decay_is_the_model_itself():
    model = network()
    average = WeightAverage(model, 0.0)
    walk(model, average, 3)
    assert all(torch.equal(tensor, average.module.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_running_statistics_are_averaged_and_counters_copied():
    model = network()
    average = WeightAverage(model, 0.9)
    walk(model, average, 5)
    mine, theirs = average.module[1], model[1]
    assert mine.num_batches_tracked == theirs.num_batches_tracked == 5
    assert not torch.equal(mine.running_var, theirs.running_var)
    assert not average.module.training and model.training


def test_it_goes_on_from_what_was_kept():
    torch.manual_seed(3)
    model = network()
    average = WeightAverage(model, 0.9)
    walk(model, average, 3)
    other = WeightAverage(network(), 0.9)
    other.restore(average.weights(), average.updates)
    twin = copy.deepcopy(model)
    average.update(model)
    other.update(twin)
    assert all(torch.equal(tensor, other.weights()[name]) for name, tensor in average.weights().items())
