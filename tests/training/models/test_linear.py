import pytest
import torch
import torch.nn.functional as F

from training.models.linear import Linear, linear


@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 4), (1, 1), (2, 5, 6, 3)])
def test_values_and_gradients_are_those_of_a_linear_layer(shape):
    torch.manual_seed(0)
    features = torch.randn(*shape, 24, requires_grad=True)
    weight, bias = torch.randn(40, 24, requires_grad=True), torch.randn(40, requires_grad=True)
    upstream = torch.randn(*shape, 40)
    for inputs in ((features, weight, bias), (features, weight)):
        ours, theirs = linear(*inputs), F.linear(*inputs)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        gradients = [torch.autograd.grad(out, inputs, upstream) for out in (ours, theirs)]
        for mine, reference in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-5)


def test_strided_features_are_taken_as_they_are():
    features = torch.randn(4, 24, 6).transpose(1, 2)
    layer = Linear(24, 8)
    expected = F.linear(features, layer.weight, layer.bias)
    torch.testing.assert_close(layer(features), expected, atol=1e-5, rtol=1e-5)


def test_autocast_still_chooses_the_precision():
    layer = Linear(24, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, 24)).dtype == torch.bfloat16
    assert layer.double()(torch.randn(3, 24).double()).dtype == torch.float64
