"""The guided filter: regression in windows, against least squares and closed forms."""

from __future__ import annotations

import numpy as np
import torch

from nulltext.image.guided_filter import fit, means
from nulltext.image.outlines import feather


def pictures(*channels: int, side: int = 24) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(count, side, side, generator=generator) * 2 - 1 for count in channels]


def test_means_repeat_the_border():
    x = torch.arange(25.0).view(1, 5, 5)
    assert float(means(x, 1)[0, 2, 2]) == 12
    assert float(means(x, 1)[0, 0, 0]) == (4 * 0 + 2 * 1 + 2 * 5 + 6) / 9


def test_a_linear_function_of_the_guide_is_found():
    (guide,) = pictures(3)
    matrix = torch.tensor([[0.2, 0.5, 0.0], [0.0, -0.6, 0.1]])
    x = torch.einsum("kc,chw->khw", matrix, guide) + 0.3
    fitted = fit(x, guide, 3, 1e-6)
    torch.testing.assert_close(fitted.of(guide), x, atol=1e-4, rtol=0)  # float32 covariances
    expected = matrix[..., None, None].expand(2, 3, 24, 24)
    torch.testing.assert_close(fitted.slope, expected, atol=1e-3, rtol=0)


def test_one_window_is_a_ridge_regression():
    x, guide = pictures(1, 3, side=9)
    radius, ridge = 4, 0.05
    rows = guide.flatten(1).T.double().numpy()
    centred = rows - rows.mean(axis=0)
    values = x.flatten().double().numpy()
    normal = centred.T @ centred / 81 + ridge * np.eye(3)
    slope = np.linalg.solve(normal, centred.T @ (values - values.mean()) / 81)
    # averaging over windows is undone by a picture that repeats itself: every window is the whole
    tiled = [picture.repeat(1, 5, 5) for picture in (x, guide)]
    fitted = fit(*tiled, radius, ridge)
    np.testing.assert_allclose(fitted.slope[0, :, 22, 22], slope, atol=1e-5)  # float32


def test_a_flat_guide_gives_a_mean():
    (x,) = pictures(1)
    flat = torch.full((3, 24, 24), 0.4)
    torch.testing.assert_close(
        fit(x, flat, 2, 0.01).of(flat), means(means(x, 2), 2), atol=1e-5, rtol=0
    )


def test_a_feathered_mask_is_sharp_at_edges_and_soft_where_there_is_none():
    picture = torch.full((3, 200, 200), -0.8)
    picture[:, 40:160, 40:] = 0.6  # a band that goes on to the right
    mask = torch.zeros(200, 200)
    mask[40:160, 40:100] = 1  # it ends within the band
    weight = feather(mask, picture, 0)
    assert float(weight[100, 36:40].max()) < 0.1
    assert float(weight[100, 40:44].min()) > 0.9
    assert 0.3 < float(weight[100, 100]) < 0.7
    assert float((weight[100, 90:110].diff()).abs().max()) < 0.1
    assert float(weight[100, 140:].max()) == float(weight[:, :20].max()) == 0
