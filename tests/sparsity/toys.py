"""Models of a few weights whose masks can be worked out by hand."""

import torch
from torch import nn

A, B = [0.1, -0.05, 0.3, 0.2], [-0.2, 0.8, 0.9, 0.2]


def model_of(dtype=torch.float32, **rows):
    """One linear map `(1, len(row))` a row: parameters `a.weight`, `b.weight`, ..."""
    model = nn.ModuleDict({name: nn.Linear(len(row), 1, bias=False) for name, row in rows.items()})
    with torch.no_grad():
        for name, row in rows.items():
            model[name].weight.copy_(torch.tensor([row]))
    return model.to(dtype)


def shapes_model(shapes, seed=0):
    """Linear maps of random weights with the shapes `(out, in)`: parameters `0.weight`, `1.weight`, ..."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.ModuleList(nn.Linear(n_in, n_out, bias=False) for n_out, n_in in shapes)
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
    return model


def bits(masks):
    return {name.removesuffix(".weight"): mask.int().reshape(-1).tolist() for name, mask in masks.items()}


def kept(masks):
    return [int(mask.sum()) for mask in masks.values()]


def snapshot(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_unchanged(model, before):
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def num_zeros(masks):
    return masks.num_weights - masks.num_kept


class FeedForward(nn.Module):
    """Three neurons of norm 5, sqrt(2) and 13: a layer named as T5's."""

    def __init__(self):
        super().__init__()
        self.wi, self.wo = nn.Linear(1, 3), nn.Linear(3, 1)
        with torch.no_grad():
            self.wi.weight.copy_(torch.tensor([[3.0], [1.0], [5.0]]))
            self.wo.weight.copy_(torch.tensor([[4.0, -1.0, 12.0]]))
            self.wi.bias.copy_(torch.tensor([0.0, 100.0, 0.0]))
            self.wo.bias.fill_(7.0)


class Attention(nn.Module):
    """Two heads of one feature each, norms 2 and sqrt(7): a layer named as T5's."""

    def __init__(self):
        super().__init__()
        self.key_value_proj_dim = 1
        self.q, self.k, self.v, self.o = (nn.Linear(2, 2, bias=False) for _ in range(4))
        with torch.no_grad():
            for linear in (self.q, self.k, self.v):
                linear.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
            self.o.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))


def filters():
    """Three filters of norms 1, 2 and 3."""
    model = nn.Sequential(nn.Conv2d(1, 3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -2.0, 3.0]).reshape(3, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    return model
