"""Stage ``scan``: the code of sfd, as DVC can watch it from a graph in another folder."""

from pathlib import Path

from sfd.pipeline.stage import digest_path


def write_code_digests(folder: Path) -> None:
    """Writes one file per package of sfd with the sha256 of its modules; compiled files do not count.

    A graph such as ``presets/released-xl`` depends on these files. DVC's ignore rules end at a graph's own folder, so it would take the
    ``__pycache__`` of code elsewhere for a change of the code.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in sorted(Path(__file__).parents[1].iterdir()):
        if (package / "__init__.py").is_file():
            (folder / package.name).write_text(digest_path(package) + "\n", encoding="utf-8")
