"""Statistics of batch norms, estimated again."""

import copy

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from sms_hf.training.batch_norm import has_batch_norm, recalibrate_batch_norm_


class Toy(nn.Module):
    """Two batch norms, the second on what the first has normalised; dropout behind them."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3)
        self.drop = nn.Dropout(dropout)
        self.conv2, self.norm2 = nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
        nn.init.uniform_(self.norm1.weight, 0.5, 2.0)
        nn.init.normal_(self.norm1.bias)

    def forward(self, pixel_values):
        return self.norm2(self.conv2(self.drop(self.norm1(self.conv1(pixel_values)).relu())))


def images(count=3, rows=4):
    """Batches of equal size whose contents differ in mean and scale."""
    generator = torch.Generator().manual_seed(1)
    return [{"pixel_values": torch.randn(rows, 3, 9, 9, generator=generator) * (i + 1) + i} for i in range(count)]


def statistics(model):
    return [b.clone() for m in model.modules() if isinstance(m, nn.BatchNorm2d) for b in m.buffers()]


def test_statistics_are_the_mean_of_the_batch_statistics():
    model = Toy()
    reference, means, variances = copy.deepcopy(model).double(), [[], []], [[], []]
    for batch in images():
        x = batch["pixel_values"].double()
        for i, (conv, norm) in enumerate([(reference.conv1, reference.norm1), (reference.conv2, reference.norm2)]):
            x = conv(x)
            means[i].append(x.mean((0, 2, 3)))
            variances[i].append(x.var((0, 2, 3), unbiased=True))
            # In training mode a batch norm divides by the biased variance of the batch.
            scale = norm.weight / (x.var((0, 2, 3), unbiased=False) + norm.eps).sqrt()
            x = ((x - means[i][-1][:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]).relu()
    assert recalibrate_batch_norm_(model, images()) == 3
    for i, norm in enumerate([model.norm1, model.norm2]):
        torch.testing.assert_close(norm.running_mean, torch.stack(means[i]).mean(0).float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var, torch.stack(variances[i]).mean(0).float(), rtol=1e-5, atol=1e-6)
        assert norm.num_batches_tracked == 3


def test_literal_statistics():
    norm = nn.BatchNorm1d(1)
    model = nn.ModuleDict({"norm": norm})
    model.forward = lambda x: norm(x)
    # Means 2 and 10; unbiased variances 2 and 8.
    assert (
        recalibrate_batch_norm_(model, [{"x": torch.tensor([[1.0], [3.0]])}, {"x": torch.tensor([[8.0], [12.0]])}]) == 2
    )
    assert norm.running_mean.tolist() == [6.0]
    assert norm.running_var.tolist() == [5.0]


def test_the_same_statistics_again_whatever_they_were_before():
    model, other = Toy(), Toy()
    nn.init.constant_(other.norm1.running_mean, 7.0)
    other.norm2.num_batches_tracked.fill_(1000)
    recalibrate_batch_norm_(model, images())
    recalibrate_batch_norm_(other, images())
    first = statistics(model)
    recalibrate_batch_norm_(model, images())
    for a, b, c in zip(first, statistics(model), statistics(other), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_flags_momentum_weights_and_gradients_stay():
    model = Toy().train()
    model.conv2.eval()
    model.norm2.eval()
    weights = [p.detach().clone() for p in model.parameters()]
    recalibrate_batch_norm_(model, images())
    assert [m.training for m in (model, model.conv1, model.norm1, model.drop, model.conv2, model.norm2)] == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]
    assert (model.norm1.momentum, model.norm2.momentum) == (0.3, 0.1)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(weights, model.parameters(), strict=True))


def test_flags_are_restored_after_an_error():
    model = Toy().train()
    with pytest.raises(TypeError):
        recalibrate_batch_norm_(model, [{"unknown": 1}])
    assert model.norm1.momentum == 0.3
    assert all(m.training for m in model.modules())


def test_dropout_is_not_active():
    model, plain = Toy(dropout=0.5).train(), Toy()
    recalibrate_batch_norm_(model, images())
    recalibrate_batch_norm_(plain, images())
    assert all(torch.equal(a, b) for a, b in zip(statistics(model), statistics(plain), strict=True))


def test_num_batches():
    model, first = Toy(), Toy()
    assert recalibrate_batch_norm_(model, images(5), num_batches=2) == 2
    assert recalibrate_batch_norm_(first, images(2)) == 2
    assert all(torch.equal(a, b) for a, b in zip(statistics(model), statistics(first), strict=True))
    assert recalibrate_batch_norm_(model, images(2), num_batches=9) == 2


@pytest.mark.parametrize(("batches", "number"), [([], None), (images(1), 0)])
def test_no_batch_is_an_error_and_changes_nothing(batches, number):
    model = Toy()
    nn.init.constant_(model.norm1.running_mean, 7.0)
    with pytest.raises(ValueError, match="batches must hold at least one batch, got none"):
        recalibrate_batch_norm_(model, batches, number)
    assert model.norm1.running_mean.tolist() == [7.0] * 4


def test_nothing_happens_without_running_statistics():
    def batches():
        raise AssertionError("iterated")
        yield

    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.BatchNorm1d(2, track_running_stats=False))
    assert not has_batch_norm(model)
    assert recalibrate_batch_norm_(model, batches()) == 0


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_has_batch_norm(norm):
    assert has_batch_norm(nn.Sequential(nn.Linear(2, 2), norm(2)))


def test_transformers_resnet_with_labels_in_the_batches():
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    model = ResNetForImageClassification(config).eval()
    batches = [{"pixel_values": torch.randn(4, 3, 32, 32) + 5, "labels": torch.tensor([0, 1, 2, 0])} for _ in range(2)]
    assert has_batch_norm(model)
    assert recalibrate_batch_norm_(model, batches) == 2
    assert not model.training
    stem = model.resnet.embedder.embedder
    with torch.no_grad():
        expected = torch.stack([stem.convolution(b["pixel_values"]).mean((0, 2, 3)) for b in batches]).mean(0)
    torch.testing.assert_close(stem.normalization.running_mean, expected, rtol=1e-5, atol=1e-5)
