"""Builds a folder of real colour images from three npm packages: emoji of 64 pixels in 8 unequal classes and 3 styles, with captions.

    python benchmarks/emoji64.py emoji64     # needs npm and its registry; 150 MB of downloads, 20 MB of images

The styles are Noto (Apache-2.0), Twemoji (CC-BY 4.0) and Fluent (MIT). Transparent parts become white, Fluent's 256 pixels are reduced
to 64, and exact copies of an image that is there already are left out. ``NAME.jsonl`` beside the folder
has a line per image: file, class, subclass, style and caption.
"""

import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

PACKAGES = {
    "noto": "emoji-datasource-google@16.0.0",
    "twemoji": "emoji-datasource-twitter@16.0.0",
    "fluent": "@lobehub/fluent-emoji-3d@1.1.0",
}
SIDE = 64
LEFT_OUT = ("Flags", "Component")


def main(folder: Annotated[Path, typer.Argument(help="the folder to make")]) -> None:
    """Downloads the packages and writes the folder."""
    if folder.exists():
        raise SystemExit(f"error: {folder} exists; name a new folder")
    with tempfile.TemporaryDirectory() as name:
        packages = {style: _unpack(package, Path(name) / style) for style, package in PACKAGES.items()}
        facts = json.loads((packages["noto"] / "emoji.json").read_text(encoding="utf-8"))
        captions: list[dict[str, str]] = []
        seen: set[bytes] = set()
        for emoji in facts:
            if emoji["category"] in LEFT_OUT:
                continue
            for style, file in _files(emoji, packages):
                image = _on_white(file)
                if image.tobytes() in seen:
                    continue
                seen.add(image.tobytes())
                captions.append(_write(folder, emoji, style, image))
    captions.sort(key=lambda line: line["file"])
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in captions)
    folder.with_name(f"{folder.name}.jsonl").write_text(lines, encoding="utf-8")
    print(f"{len(captions)} images in {len({line['class'] for line in captions})} classes in {folder}")


def _unpack(package: str, target: Path) -> Path:
    target.mkdir()
    subprocess.run(["npm", "pack", "--silent", package], cwd=target, check=True, stdout=subprocess.DEVNULL)
    (archive,) = target.glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    return target / "package"


def _files(emoji: dict[str, Any], packages: dict[str, Path]) -> Iterator[tuple[str, Path]]:
    """The image of an emoji in each style that has it."""
    for style, vendor in (("noto", "google"), ("twemoji", "twitter")):
        yield style, packages[style] / "img" / vendor / str(SIDE) / emoji["image"]
    # Fluent's names differ in the variation selector, FE0F.
    points = [emoji["unified"], emoji.get("non_qualified") or emoji["unified"]]
    names = [f"{point.lower()}.webp" for point in (*points, re.sub("-FE0F", "", emoji["unified"]))]
    found = [file for name in names if (file := packages["fluent"] / "assets" / name).is_file()]
    yield from (("fluent", file) for file in found[:1])


def _on_white(file: Path) -> Image.Image:
    with Image.open(file) as image:
        coloured = image.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    ground = Image.new("RGBA", coloured.size, "white")
    ground.alpha_composite(coloured)
    return ground.convert("RGB")


def _write(folder: Path, emoji: dict[str, Any], style: str, image: Image.Image) -> dict[str, str]:
    label = re.sub(r"[^a-z]+", "-", emoji["category"].lower())
    file = f"{label}/{emoji['short_name'].replace('_', '-')}_{style}.png"
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    image.save(folder / file)
    caption = emoji["name"].lower()
    return {"file": file, "class": label, "subclass": emoji["subcategory"], "style": style, "caption": caption}


if __name__ == "__main__":
    typer.run(main)
