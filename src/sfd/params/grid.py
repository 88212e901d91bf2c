"""The grid of positions that texture and semantic latents share, and that the backbone divides into tokens."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfd.params.diffusion import DiffusionParams


def check_patch_size(patch_size: int, grid: int, origin: str) -> None:
    """The backbone's patches tile the latents, ``grid`` positions on each side. ``origin``: where that number comes from.

    Raises:
        ValueError: they do not.
    """
    if grid % patch_size:
        raise ValueError(
            f"the latents' grid {grid} ({origin}) must be a multiple of diffusion.model.patch_size {patch_size}"
        )


def check_token_groups(params: "DiffusionParams", grid: int, origin: str) -> None:
    """Groups of 2 x 2 tokens, from which ``sparse_deep`` takes its tokens, tile the latents, ``grid`` positions on each side.

    ``origin``: where that number comes from.

    Raises:
        ValueError: they do not.
    """
    patch_size = params.model.patch_size
    if params.sparse_deep is not None and grid // patch_size % 2:
        raise ValueError(
            f"diffusion.sparse_deep takes tokens from groups of 2 x 2, but there are {grid // patch_size} along one side (the latents' grid {grid} "
            f"({origin}) / diffusion.model.patch_size {patch_size}), which is odd: set sparse_deep to null, or change the grid"
        )


def shared_grid(image_size: int, factor: int, patches: tuple[int, int] | None, tiles: int = 1) -> int:
    """The side of the latents, positions.

    Args:
        image_size: side of the images, pixels.
        factor: downsampling of the texture VAE.
        patches: sides of the vision encoder's input and of its patches, pixels; None without an encoder.
        tiles: parts along one side of the image that the encoder sees one by one: 2 for quadrants, else 1.

    Raises:
        ValueError: the texture VAE does not divide the image, or texture and semantics have different grids.
    """
    if image_size % factor:
        raise ValueError(
            f"data.image_size {image_size} must be a multiple of {factor}, by which the texture VAE reduces it"
        )
    grid = image_size // factor
    if patches is None:
        return grid
    input_size, patch_size = patches
    if tiles * (input_size // patch_size) != grid:
        times = f"{tiles} quadrants * " if tiles > 1 else ""
        raise ValueError(
            f"texture and semantic latents must share one grid: data.image_size {image_size} / {factor} = {grid}, but "
            f"{times}encoder.input_size {input_size} / encoder.patch_size {patch_size} = {tiles * (input_size // patch_size)}; set "
            f"encoder.input_size to {grid // tiles * patch_size}, or change data.image_size"
        )
    return grid
