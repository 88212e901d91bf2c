"""Captions in tar archives: in the text or the JSON of each sample, or in a table that is a member."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sfd.data.files import open_regular
from sfd.data.sources.caption_table import MAX_JSON_BYTES, CaptionTable, NoColumns, told_by_json
from sfd.data.sources.common import MAX_CAPTION_BYTES, told_by
from sfd.data.sources.source import Told
from sfd.data.sources.tar import SEPARATOR, Member, members_of, read_member, system_kind
from sfd.params import DataParams

_MAX_TABLE_BYTES = 2**30
_TEXTS = ("txt", "caption", "json", "csv", "tsv", "jsonl")
"""Endings of members that may hold captions."""


def archived_captions(folder: Path, paths: Sequence[str], params: DataParams) -> tuple[list[Told], list[CaptionTable]]:
    """What the samples' own members tell of these images; and the tables of captions in the archives.

    Args:
        folder: of the archives.
        paths: the images, ``ARCHIVE#MEMBER``.
        params: section `data`.
    """
    told: dict[str, Told] = {}
    tables: list[CaptionTable] = []
    for archive in dict.fromkeys(path.partition(SEPARATOR)[0] for path in paths):
        with open_regular(folder / archive) as file:
            for key, members in _text_members(folder / archive).items():
                own = _own_caption(file.fileno(), members, params)
                if own is not None:
                    told[f"{archive}{SEPARATOR}{key}"] = own
                tables += [
                    table
                    for ending, member in members.items()
                    if (table := _archived_table(file.fileno(), archive, ending, member, params)) is not None
                ]
    keys = [_key(path) for path in paths]
    return [told.get(key, Told((), "no caption among its members")) for key in keys], tables


def _key(path: str) -> str:
    """The key of a sample, from the path of its image."""
    folder, slash, file = path.rpartition("/") if "/" in path else path.rpartition(SEPARATOR)
    return f"{folder}{slash}{file.partition('.')[0] or file}"


def _text_members(archive: Path) -> dict[str, dict[str, Member]]:
    """Members with text by key and ending."""
    found: dict[str, dict[str, Member]] = {}
    for member in members_of(archive):
        name = member.name.removeprefix("./")
        folder, slash, file = name.rpartition("/")
        stem, _, ending = file.partition(".")
        if member.isreg() and stem and ending.lower() in _TEXTS and system_kind(name) is None:
            key = f"{folder}{slash}{stem}"
            found.setdefault(key, {})[ending.lower()] = Member(name, member.offset_data, member.size)
    return found


def _own_caption(descriptor: int, members: dict[str, Member], params: DataParams) -> Told | None:
    """The captions in a sample's text member, else in its JSON; None if it has neither."""
    for ending, limit in (("txt", MAX_CAPTION_BYTES), ("caption", MAX_CAPTION_BYTES), ("json", MAX_JSON_BYTES)):
        if ending in members:
            data = os.pread(descriptor, min(members[ending].size, limit + 1), members[ending].offset)
            name = PurePosixPath(members[ending].name).name
            return told_by_json(data, name, params.caption_column) if ending == "json" else told_by(data, name)
    return None


def _archived_table(
    descriptor: int, archive: str, ending: str, member: Member, params: DataParams
) -> CaptionTable | None:
    """A table of captions that is a member; None if it is none."""
    if ending not in ("csv", "tsv", "jsonl"):
        return None
    place = f"data.captions {archive}{SEPARATOR}{member.name}"
    data = read_member(descriptor, member, _MAX_TABLE_BYTES)
    try:
        return CaptionTable.parse(data, place, f".{ending}", None, params)
    except NoColumns:
        return None
