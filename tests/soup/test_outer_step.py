"""Steps of an outer optimizer as averages of folders."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sms_hf import Masks
from sms_hf.soup.outer_step import outer_step, outer_weights


def folder(path, values):
    path.mkdir()
    save_file({"w": torch.tensor([values])}, path / "model.safetensors")
    Masks({"w": torch.tensor([[True, False, True]])}).save(path / "masks.safetensors")
    return path


def value(path):
    return load_file(path / "model.safetensors")["w"][0]


@pytest.mark.parametrize(("rate", "momentum"), [(0.7, 0.9), (1.0, 0.0), (0.5, 0.5)])
def test_three_steps_are_those_of_sgd_with_nesterov_momentum(tmp_path, rate, momentum):
    """torch's own SGD, whose gradient is what the copies moved; pruned weights stay exactly zero."""
    means = [[1.0, 0.0, -2.0], [3.0, 0.0, 0.5], [2.0, 0.0, 0.25]]
    start, point = folder(tmp_path / "start", [2.0, 0.0, 1.0]), None
    expected = value(start).clone()
    sgd = torch.optim.SGD([expected], lr=rate, momentum=momentum, nesterov=momentum > 0)
    for number, mean in enumerate(means):
        output, carried = tmp_path / f"output-{number}", tmp_path / f"point-{number}"
        outer_step(folder(tmp_path / f"mean-{number}", mean), start, point, (rate, momentum), output, carried)
        expected.grad = expected.detach() - torch.tensor(mean)
        sgd.step()
        torch.testing.assert_close(value(output), expected, rtol=1e-6, atol=1e-6)
        assert value(output)[1] == 0
        start, point = output, carried
    assert torch.equal(Masks.of(output)["w"], torch.tensor([[True, False, True]]))


def test_a_whole_step_without_momentum_is_the_average():
    assert outer_weights(1.0, 0.0) == ([1.0, 0.0, 0.0], [1.0, 1.0, -1.0, 0.0])
