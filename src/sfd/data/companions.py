"""What lies beside images and is none: captions, tables, and files that systems and programs leave. It is passed over and counted.

A name decides, so that such a file is never read. A file with an ending that is known neither here nor as that of an image counts as a
companion unless its first bytes are those of an image. Everything else is an image or is refused, by its content.
"""

from pathlib import Path, PurePath

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif")
"""What the names of images end with. An image may also have another ending, or none."""

ENDINGS = frozenset(
    (".txt", ".caption", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".rst", ".html", ".htm")
    + (".pdf", ".doc", ".docx", ".xls", ".xlsx", ".ods", ".odt", ".ini", ".cfg", ".toml", ".log", ".bib", ".cff")
    + (".npy", ".npz", ".parquet", ".mat", ".pkl", ".db", ".sqlite", ".py", ".ipynb", ".sh", ".bat", ".url", ".lnk")
    + (
        ".md5",
        ".sha1",
        ".sha256",
        ".xmp",
        ".aae",
        ".thm",
        ".mov",
        ".mp4",
        ".m4v",
        ".avi",
        ".mkv",
        ".webm",
        ".mp3",
        ".wav",
    )
    + (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
)
"""Of companions: captions, annotations, documents, arrays, scripts, checksums, what cameras and telephones write beside a photo, archives."""

DOCUMENTS = frozenset(("license", "licence", "copying", "readme", "notice", "authors", "changelog", "makefile"))
"""Names without an ending, in lower case."""

SYSTEM_FOLDERS = frozenset(
    ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__")
)
"""What macOS, network stores, Windows and others put into folders, in lower case."""


def kind_of_file(name: str) -> str | None:
    """The kind of a file that is passed over, such as ``.txt`` or ``hidden file``; None if it may be an image."""
    ending = PurePath(name).suffix.lower()
    if name.lower() in (".ds_store", "thumbs.db", "desktop.ini"):
        return name
    if name.startswith("."):
        return "._*" if name.startswith("._") else "hidden file"
    if name.lower() in DOCUMENTS:
        return name
    return ending if ending in ENDINGS else None


def kind_by_content(file: Path) -> str | None:
    """The kind of a file that :func:`kind_of_file` does not know: its ending, if neither that nor the first bytes are those of an image.

    So ``leaves.png.mcmeta`` is a companion of kind ``.mcmeta``, and ``photo.2019`` may be an image. None also if the file cannot be read.
    """
    from sfd.data.decoding import PREFIX_BYTES, looks_like_image

    ending = file.suffix.lower()
    if not ending or ending in IMAGE_ENDINGS or not file.is_file():
        return None
    try:
        with file.open("rb") as stream:
            return None if looks_like_image(stream.read(PREFIX_BYTES)) else ending
    except OSError:
        return None  # who reads the image refuses it, with the reason


def kind_of_folder(name: str) -> str | None:
    """The kind of a folder that is passed over with all that it holds; None if it may hold images."""
    if name.lower() in SYSTEM_FOLDERS or name == ".ipynb_checkpoints":
        return f"{name}/"
    return "hidden folder" if name.startswith(".") else None
