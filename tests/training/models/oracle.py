"""transformers' models as the truth that ours are held against."""

import torch


def seeded(model):
    """No zero bias and no unit scale may hide a mistake."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def assert_equal(backbone, theirs, height, width, prefix=1, **options):
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    grid = (height // backbone.patch_size, width // backbone.patch_size)
    with torch.no_grad():
        ours = backbone.features(images)
        expected = theirs(images, output_attentions=True, **options)
    tokens, attention = expected.last_hidden_state, expected.attentions[-1]
    for actual, truth in (
        (ours.embedding, tokens[:, 0]),
        (ours.patches, tokens[:, prefix:].unflatten(1, grid)),
        (ours.attention, attention[:, :, 0, prefix:].unflatten(2, grid)),
    ):
        torch.testing.assert_close(actual, truth, atol=1e-5, rtol=0)
