"""How near decoded images are to the originals: PSNR and SSIM."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

MAX_PSNR = 100.0
"""PSNR of images without any error, dB; the true value is infinite."""

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03
"""The constants of the paper."""


def psnr(images: Tensor, decoded: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of two uint8 ``(B, 3, H, W)``, dB, per image ``(B,)``; at most :data:`MAX_PSNR`."""
    error = (images.float() - decoded.float()).square().mean(dim=(1, 2, 3))
    return (10.0 * torch.log10(255.0**2 / error)).clamp(max=MAX_PSNR)


def ssim(images: Tensor, decoded: Tensor) -> Tensor:
    """Structural similarity of two uint8 ``(B, C, H, W)``, per image ``(B,)``; 1: equal.

    Wang et al. 2004 (doi 10.1109/TIP.2003.819861): a Gaussian window of 11 x 11 pixels, population moments, the mean over all windows
    that lie within the image, here over the colour channels, too. The window of a smaller image is the largest that fits.
    """
    channels = images.shape[1]
    x, y = (values.double().flatten(0, 1)[:, None] for values in (images, decoded))
    window = _window(min(SSIM_WINDOW, *images.shape[2:])).to(x)
    mean_x, mean_y, xx, yy, xy = (conv2d(values, window) for values in (x, y, x * x, y * y, x * y))
    variance_x, variance_y, covariance = xx - mean_x.square(), yy - mean_y.square(), xy - mean_x * mean_y
    c1, c2 = (SSIM_K1 * 255.0) ** 2, (SSIM_K2 * 255.0) ** 2
    luminance = (2.0 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2.0 * covariance + c2) / (variance_x + variance_y + c2)
    per_channel = (luminance * structure).mean(dim=(1, 2, 3))
    return per_channel.view(-1, channels).mean(dim=1).float()


def _window(size: int) -> Tensor:
    """A normalised Gaussian window ``(1, 1, size, size)``."""
    offsets = torch.arange(size).double() - (size - 1) / 2
    line = torch.exp(-offsets.square() / (2.0 * SSIM_SIGMA**2))
    square = torch.outer(line, line)
    return (square / square.sum())[None, None]
