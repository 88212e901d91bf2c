"""PSNR and SSIM against scikit-image's numbers."""

import pytest
import torch
from torch import Tensor

from sfd.evaluation.reconstruction import MAX_PSNR, psnr, ssim


def pattern(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Two images that any language can compute, uint8 ``(1, 3, height, width)``."""
    row, column = torch.arange(height)[:, None], torch.arange(width)
    one = torch.stack([(row * 7 + column * 3 + 40 * channel) % 256 for channel in range(3)])
    other = torch.stack([(row * 7 + column * 4 + 43 * channel) % 256 for channel in range(3)])
    return one[None].to(torch.uint8), other[None].to(torch.uint8)


def test_the_values_are_those_of_scikit_image() -> None:
    """0.26.0: ``structural_similarity(one, other, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=255)`` and ``peak_signal_noise_ratio(one, other, data_range=255)``."""
    one, other = pattern(32, 48)
    assert ssim(one, other).tolist() == [pytest.approx(0.4974945056856102, abs=1e-6)]
    assert psnr(one, other).tolist() == [pytest.approx(10.038237481283259, abs=1e-5)]


def test_equal_images_have_the_highest_values() -> None:
    images, _ = pattern(16, 20)
    assert psnr(images, images).tolist() == [MAX_PSNR] and ssim(images, images).tolist() == [pytest.approx(1.0)]


def test_the_values_of_each_image_stand_alone() -> None:
    one, other = pattern(16, 20)
    both = torch.cat([one, one]), torch.cat([one, other])
    assert psnr(*both).tolist() == [MAX_PSNR, *psnr(one, other).tolist()]
    assert ssim(*both).tolist() == pytest.approx([1.0, *ssim(one, other).tolist()])


def test_an_error_of_one_everywhere_is_48_decibels() -> None:
    images = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    assert psnr(images, images + 1).tolist() == [pytest.approx(48.1308, abs=1e-4)]


def test_images_smaller_than_the_window_have_a_similarity() -> None:
    one, other = pattern(8, 8)
    assert 0.0 < float(ssim(one, other)) < 1.0
