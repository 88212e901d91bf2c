"""Pictures of a run: sample grids, curves, the schedule, pairs, features. Equal input gives equal bytes.

Images are enlarged only by repeating pixels, so that a picture shows what was generated. Curves are drawn with matplotlib's Agg canvas,
without pyplot and its global state.
"""

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = 2
MARGIN = 12
PAPER = "#ffffff"
GAP_COLOUR = "#dee2e6"
INK = "#212529"
FAINT = "#868e96"

# Okabe and Ito's palette, which colour-blind readers can tell apart.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
TEXTURE_COLOUR, SEMANTIC_COLOUR = PALETTE[:2]
PHASE_COLOURS = {"semantics alone": "#fbe3d4", "both": "#f1f3f5", "texture alone": "#d6e8f4"}

# Small images are enlarged until their side is at least this many pixels.
CELL_SIDE = 72
# Those with a caption below are at least so wide, and so many stand in a row.
CAPTIONED_SIDE, CAPTIONED_PER_ROW, LINE_GAP = 128, 6, 4
FONT_SIZE = 13
DOTS_PER_INCH = 150
MOST_INSIDE = 4
"""Curves whose legend has room among them; that of more stands beside."""


def image_grid(images: Tensor, columns: int, scale: int = 1) -> Image.Image:
    """Images (N, 3, H, W) uint8 row by row, enlarged by the factor ``scale``, with thin gaps between and around them.

    The width is ``columns * (W * scale + GAP) + GAP``. The last row may have fewer images.
    """
    height, width = (side * scale for side in images.shape[2:])
    rows = math.ceil(len(images) / columns)
    grid = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), GAP_COLOUR)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        grid.paste(_enlarged(image, width, height), (column * (width + GAP) + GAP, row * (height + GAP) + GAP))
    return grid


def labelled_grid(images: Tensor, labels: Sequence[str], per_row: int) -> Image.Image:
    """One label per row, at the left; rows in order of first appearance, each with its first ``per_row`` images.

    Images are (N, 3, H, W) uint8, with one label each. Small images are enlarged by a whole factor. If all labels are empty, all
    images are shown in order, ``per_row`` per row. With one image per label, labels stand below the images, which fill rows.
    """
    if not any(labels):
        return image_grid(images, per_row, _scale(images))
    members: dict[str, list[Tensor]] = {}
    for image, label in zip(images, labels, strict=True):
        members.setdefault(label, []).append(image)
    if per_row == 1:
        return _captioned_grid(torch.stack([row[0] for row in members.values()]), list(members))
    scale = _scale(images)
    strips = [image_grid(torch.stack(row[:per_row]), per_row, scale) for row in members.values()]

    font = _font()
    text_width = max(math.ceil(font.getlength(in_one_line(label))) for label in members)
    left, height = text_width + 2 * MARGIN, strips[0].height - GAP
    picture = Image.new("RGB", (left + strips[0].width, len(strips) * height + GAP), PAPER)
    draw = ImageDraw.Draw(picture)
    for row, (label, strip) in enumerate(zip(members, strips, strict=True)):
        picture.paste(strip, (left, row * height))
        draw.text(
            (left - MARGIN, row * height + strip.height / 2), in_one_line(label), fill=INK, font=font, anchor="rm"
        )
    return picture


def _captioned_grid(images: Tensor, captions: Sequence[str]) -> Image.Image:
    """Each image with its caption below, :data:`CAPTIONED_PER_ROW` per row."""
    scale = max(1, math.ceil(CAPTIONED_SIDE / min(images.shape[2:])))
    height, width = (side * scale for side in images.shape[2:])
    font, columns = _font(), min(CAPTIONED_PER_ROW, len(images))
    lines = [_wrapped(in_one_line(caption), font, width) for caption in captions]
    below = max(map(len, lines)) * (FONT_SIZE + LINE_GAP) + MARGIN
    rows = math.ceil(len(images) / columns)
    size = (columns * (width + MARGIN) + MARGIN, rows * (height + below) + MARGIN)
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    for number, (image, words) in enumerate(zip(images, lines, strict=True)):
        row, column = divmod(number, columns)
        x, y = MARGIN + column * (width + MARGIN), MARGIN + row * (height + below)
        draw.rectangle((x - 1, y - 1, x + width, y + height), outline=GAP_COLOUR)
        picture.paste(_enlarged(image, width, height), (x, y))
        for line, text in enumerate(words):
            draw.text(
                (x + width / 2, y + height + LINE_GAP + line * (FONT_SIZE + LINE_GAP)), text, INK, font, anchor="ma"
            )
    return picture


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of at most ``width`` pixels; a word that is longer alone is cut."""
    lines: list[str] = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width and lines[-1]:
            lines.append("")
            longer = word
        while font.getlength(longer) > width:
            longer = longer[:-1]
        lines[-1] = longer
    return lines


def in_one_line(text: str) -> str:
    """A class name, which may hold line breaks, as it can be drawn."""
    return " ".join(text.split())


def save_png(picture: Image.Image, path: Path) -> None:
    """Writes the picture; creates its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format="PNG")


def sheet(parts: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures below one another, each below its title."""
    font, line = _font(), FONT_SIZE + 2 * MARGIN
    parts = [(in_one_line(title), picture) for title, picture in parts]
    width = max(max(picture.width, math.ceil(font.getlength(title)) + MARGIN) for title, picture in parts) + MARGIN
    whole = Image.new("RGB", (width, sum(line + picture.height for _, picture in parts) + MARGIN), PAPER)
    draw, y = ImageDraw.Draw(whole), 0
    for title, picture in parts:
        draw.text((MARGIN, y + MARGIN), title, fill=INK, font=font, anchor="lt")
        whole.paste(picture, (MARGIN, y + line))
        y += line + picture.height
    return whole


def plot_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    path: Path,
    xlabel: str,
    ylabel: str,
    log_y: bool = False,
    like: Mapping[str, str] | None = None,
) -> None:
    """Named curves of (x, y) points in one picture, with a legend if there are several.

    ``like``: a curve, dotted, in the colour of another one.
    """
    figure, axes = plain_axes(xlabel, ylabel)
    like = like or {}
    numbers = {name: number for number, name in enumerate(name for name in curves if name not in like)}
    for name, points in curves.items():
        # A few points are separate measurements and get markers; many form a line.
        marker = "o" if len(points) <= 20 else None
        x, y = zip(*points, strict=True) if points else ((), ())
        number = numbers[like.get(name, name)]
        colour = PALETTE[number % len(PALETTE)]
        dashes = ":" if name in like else ("-", "--", "-.")[number // len(PALETTE) % 3]
        axes.plot(x, y, label=name, color=colour, linestyle=dashes, linewidth=1.5, marker=marker, markersize=4)
    if log_y:
        axes.set_yscale("log")
    plain_numbers(axes, log_y)
    if len(curves) > MOST_INSIDE:
        figure.legend(frameon=False, fontsize=9, labelcolor=INK, loc="outside right upper")
    elif len(curves) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    save_figure(figure, path)


@dataclass(frozen=True)
class Scale:
    """One axis of a heat map: its name, and the labels of its cells."""

    name: str
    labels: Sequence[str]


def plot_heat_map(
    values: Sequence[Sequence[float]], rows: Scale, columns: Scale, marked: tuple[int, int], path: Path, title: str
) -> None:
    """A cell for each value, with the value written into it; NaN cells stay empty. ``marked``: row and column of the cell with a frame."""
    from matplotlib.patches import Rectangle

    figure, axes = plain_axes(columns.name, rows.name)
    axes.imshow(values, cmap="viridis", aspect="auto")
    finite = [value for line in values for value in line if math.isfinite(value)]
    bright = min(finite) + 0.6 * (max(finite) - min(finite))
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if math.isfinite(value):
                colour = INK if value >= bright else PAPER
                axes.text(column, row, f"{value:.4g}", ha="center", va="center", fontsize=9, color=colour)
    row, column = marked
    axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor=PALETTE[1], linewidth=2.5))
    axes.set_xticks(range(len(columns.labels)), columns.labels)
    axes.set_yticks(range(len(rows.labels)), rows.labels)
    axes.grid(visible=False)
    axes.set_title(title, fontsize=10, color=INK)
    save_figure(figure, path)


def phase_borders(u: Tensor, t_tex: Tensor, t_sem: Tensor) -> tuple[float, float, float, float]:
    """The progress at which each phase of ``PHASE_COLOURS`` begins and the last one ends. ``u`` (N,) goes from 0 to 1.

    Only the semantics move while texture stays at 0; only texture moves once the semantics have reached 1.
    """
    start, end = float(u[t_tex <= 1e-6].amax()), float(u[t_sem >= 1.0 - 1e-6].amin())
    return 0.0, min(start, end), max(start, end), 1.0


def plot_schedule(times: Callable[[Tensor], tuple[Tensor, Tensor]], path: Path) -> None:
    """The time of texture and of semantics over progress; ``times`` maps u (N,) to (t_tex, t_sem), each from 0 to 1.

    Three phases are shaded: semantics alone (texture still waits at 0), both, and texture alone (semantics are done).
    """
    u = torch.linspace(0.0, 1.0, 1001)
    t_tex, t_sem = times(u)
    borders = phase_borders(u, t_tex, t_sem)

    figure, axes = plain_axes("progress u", "time t of each part (0: noise, 1: data)")
    for (name, colour), left, right in zip(PHASE_COLOURS.items(), borders[:-1], borders[1:], strict=True):
        if right - left > 0.02:
            axes.axvspan(left, right, color=colour, linewidth=0)
            is_wide = right - left > 0.2
            height, rotation = (1.06, 0) if is_wide else (0.5, 90)
            axes.text(
                (left + right) / 2, height, name, rotation=rotation, ha="center", va="center", fontsize=9, color=INK
            )
    axes.plot(u, t_sem, color=SEMANTIC_COLOUR, linewidth=2.2, label="semantic latent, t_sem")
    axes.plot(u, t_tex, color=TEXTURE_COLOUR, linewidth=2.2, label="texture latent, t_tex", linestyle=(0, (5, 2)))
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.12))
    axes.legend(loc="lower right", fontsize=9, labelcolor=INK, facecolor=PAPER, edgecolor="none", framealpha=0.85)
    save_figure(figure, path)


def plot_learnt_curve(
    t_sem: Tensor,
    learnt: Sequence[Tensor],
    mean: Tensor,
    ways: Sequence[Sequence[Sequence[float]]],
    watched: Sequence[float],
    path: Path,
) -> None:
    """Left: the time of texture over that of semantics, of each learnt curve and of their mean. Right: how the curves came there.

    Args:
        t_sem: times of the semantics, ``(N,)``.
        learnt: ``t_tex`` at these, of each probe, ``(N,)``.
        mean: the same of the mean curve.
        ways: per probe, rows of the step and ``t_tex`` at each time of ``watched``.
        watched: times of the semantics that were noted on the way.
        path: where the PNG is written.
    """
    figure, curve, way = plain_pair(
        ("time of the semantics, t_sem", "time of the texture, t_tex"), ("step of the probe", "t_tex, by t_sem")
    )
    curve.plot((0, 1), (0, 1), color=FAINT, linewidth=1.0, linestyle=":", label="ordinary diffusion")
    curve.plot(t_sem, (t_sem - 0.3).clamp(min=0.0), color=FAINT, linewidth=1.2, linestyle="--", label="offset, tau 0.3")
    for t_tex in learnt if len(learnt) > 1 else ():
        curve.plot(t_sem, t_tex, color=TEXTURE_COLOUR, linewidth=0.9, alpha=0.5)
    label = "learnt" if len(learnt) == 1 else f"mean of {len(learnt)} probes"
    curve.plot(t_sem, mean, color=TEXTURE_COLOUR, linewidth=2.2, label=label)
    curve.set(xlim=(0, 1), ylim=(0, 1))
    curve.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=INK)
    for number, at in enumerate(watched, start=1):
        for rows in ways:
            steps = [row[0] for row in rows]
            way.plot(steps, [row[number] for row in rows], color=PALETTE[number - 1], linewidth=1.4)
        if ways and ways[0]:
            way.annotate(
                f"t_sem {at:g}", (ways[0][-1][0], ways[0][-1][number]), fontsize=9, color=INK, va="bottom", ha="right"
            )
    way.set_ylim(0, 1)
    plain_numbers(way, log_y=False)
    save_figure(figure, path)


NUM_PAIRS = 8
"""Images in a picture of originals and reconstructions."""


def side_by_side(columns: Sequence[Tensor], captions: Sequence[str], path: Path, titles: Sequence[str]) -> None:
    """Columns of images (N, 3, H, W) uint8 beside each other, a caption at the right of each row, titles on top.

    For originals and reconstructions, or samples and their nearest training images with the distance as caption.
    """
    rows = list(zip(*columns, strict=True))
    save_png(_table(rows, captions, titles, _cell(columns[0])), path)


def plot_pca_features(features: Tensor, reconstruction: Tensor, images: Tensor, path: Path) -> None:
    """Each image beside its patch features and their reconstruction, as colours; the caption is their mean cosine.

    Both feature grids are (N, h, w, D), with D and N*h*w at least 3; images are (N, 3, H, W) uint8. Red, green and blue
    are the first three principal components of the original features, from their 1 % to their 99 % quantile.
    """
    from sklearn.decomposition import PCA

    count, grid_height, grid_width, channels = features.shape
    flat = features.reshape(-1, channels).double().cpu().numpy()
    pca = PCA(n_components=3, svd_solver="full").fit(flat)
    original = torch.from_numpy(pca.transform(flat))
    rebuilt = torch.from_numpy(pca.transform(reconstruction.reshape(-1, channels).double().cpu().numpy()))
    low, high = (original.quantile(q, dim=0) for q in (0.01, 0.99))

    def colours(components: Tensor) -> Tensor:
        unit = ((components - low) / (high - low).clamp_min(1e-12)).clamp(0.0, 1.0)
        return (unit * 255).round().to(torch.uint8).reshape(count, grid_height, grid_width, 3).permute(0, 3, 1, 2)

    cosines = torch.cosine_similarity(features, reconstruction, dim=-1).mean(dim=(1, 2))
    captions = [f"cosine {float(cosine):.3f}" for cosine in cosines]
    rows = list(zip(images, colours(original), colours(rebuilt), strict=True))
    save_png(_table(rows, captions, ("image", "features", "reconstruction"), _cell(images)), path)


def plot_captions(images: Tensor, own: Sequence[str], nearest: Sequence[Sequence[str]], path: Path) -> None:
    """Each image (3, H, W) uint8 beside its caption and those that are found for it; its own among these is marked."""
    found = [
        ", ".join(f"[{text[:40]}]" if text == mine else text[:40] for text in texts)
        for mine, texts in zip(own, nearest, strict=True)
    ]
    captions = [f"{mine[:60]}  |  {texts}" for mine, texts in zip(own, found, strict=True)]
    rows = [(image,) for image in images]
    save_png(_table(rows, captions, ("",), _cell(images)), path)


def _table(
    rows: Sequence[Sequence[Tensor]], captions: Sequence[str], titles: Sequence[str], cell: tuple[int, int]
) -> Image.Image:
    """Rows of images, each drawn in a cell of this (width, height), with titles on top and a caption at the right of each row."""
    font = _font()
    width, height = cell
    top = MARGIN + (FONT_SIZE + MARGIN if any(titles) else 0)
    lefts = [MARGIN]
    for title in titles:
        lefts.append(lefts[-1] + max(width, math.ceil(font.getlength(title))) + MARGIN)
    caption_width = max(math.ceil(font.getlength(caption)) for caption in captions)
    size = (lefts[-1] + caption_width + MARGIN, top + len(rows) * (height + MARGIN))
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    for left, title in zip(lefts[:-1], titles, strict=True):
        draw.text((left, MARGIN), title, fill=FAINT, font=font, anchor="lt")
    for row, (images, caption) in enumerate(zip(rows, captions, strict=True)):
        y = top + row * (height + MARGIN)
        for left, image in zip(lefts[:-1], images, strict=True):
            picture.paste(_enlarged(image, width, height), (left, y))
        draw.text((lefts[-1], y + height / 2), caption, fill=INK, font=font, anchor="lm")
    return picture


def _enlarged(image: Tensor, width: int, height: int) -> Image.Image:
    """An image (3, H, W) uint8 at the given size, by repeating pixels."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    return picture.resize((width, height), Image.Resampling.NEAREST)


def _scale(images: Tensor) -> int:
    return max(1, math.ceil(CELL_SIDE / min(images.shape[2:])))


def _cell(images: Tensor) -> tuple[int, int]:
    """Width and height of one image in a picture, pixels."""
    scale = _scale(images)
    return images.shape[3] * scale, images.shape[2] * scale


def _font() -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, so that pictures are the same on every machine."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", FONT_SIZE)


def plain_axes(xlabel: str, ylabel: str) -> "tuple[Figure, Axes]":
    """A figure with empty axes, in the style of all figures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained", facecolor=PAPER)
    axes = figure.subplots()
    _style(axes, xlabel, ylabel)
    return figure, axes


def plain_pair(left: tuple[str, str], right: tuple[str, str]) -> "tuple[Figure, Axes, Axes]":
    """As :func:`plain_axes`, two beside each other; each is given as the names of its axes x and y."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.8), layout="constrained", facecolor=PAPER)
    first, second = figure.subplots(1, 2)
    _style(first, *left)
    _style(second, *right)
    return figure, first, second


def _style(axes: "Axes", xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(which="both", colors=FAINT, labelcolor=INK, labelsize=9)
    axes.grid(axis="y", color=GAP_COLOUR, linewidth=0.8)
    axes.set_axisbelow(True)


def plain_numbers(axes: "Axes", log_y: bool) -> None:
    """Writes 20,000 and 0.05 where matplotlib would write 2e4 and 5 x 10^-2."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    if log_y:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())


def drawn(figure: "Figure") -> Image.Image:
    """The figure as a picture."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a class name in a script that the font lacks
        figure.savefig(stream, format="png", dpi=DOTS_PER_INCH)
    return Image.open(stream).convert("RGB")


def save_figure(figure: "Figure", path: Path) -> None:
    """Writes the figure as PNG; creates its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the name and version of the software, the bytes depend on the picture alone.
    figure.savefig(path, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
