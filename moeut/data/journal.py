"""Where does an interrupted preparation stand?  What is safely on the disk, and which document comes next.

The journal is replaced after what it counts has reached the disk, so it never promises too much, whatever is killed
when. What lies on the disk beyond it is cut off by those who go on.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pydantic

from moeut.data.documents import Position
from moeut.data.tokens import SplitCounts
from moeut.files import replacing

JOURNAL = "journal.json"


@dataclass(frozen=True)
class LaneStanding:
    """Where a lane goes on, and how much of it has come towards its share."""

    position: Position
    amount: int


@dataclass(frozen=True)
class Standing:
    """Where a preparation stands.

    fingerprint: of everything that decides the content but max_tokens, which is apart, since it only says where to
    stop. stage: how many passes over the sources are done. lanes: those of the pass that is not. splits, sources: what
    is written, in all and of each source. hashes: the lowest and the highest of the documents.
    """

    fingerprint: str
    max_tokens: int | None
    stage: int
    lanes: tuple[LaneStanding, ...]
    splits: dict[str, SplitCounts]
    sources: tuple[dict[str, SplitCounts], ...]
    hashes: tuple[int, int]


def write_journal(standing: Standing, folder: Path) -> None:
    """Writes where things stand; what it counts must be on the disk."""
    with replacing(folder / JOURNAL) as partial:
        partial.write_bytes(pydantic.TypeAdapter(Standing).dump_json(standing))


def read_journal(folder: Path, fingerprint: str, max_tokens: int | None) -> Standing | None:
    """Where the preparation in this folder stands, or None if it is another one's or there is none.

    One with another limit is the same as long as it has neither passed the new one nor come to the end of the old one.
    """
    file = folder / JOURNAL
    try:
        standing = pydantic.TypeAdapter(Standing).validate_python(json.loads(file.read_bytes()))
    except (FileNotFoundError, ValueError):
        return None
    if standing.fingerprint != fingerprint:
        return None
    if standing.max_tokens != max_tokens:
        train = standing.splits["train"]
        has_passed = max_tokens is not None and train.tokens > max_tokens
        is_over = train.documents > 0 and not standing.lanes
        if has_passed or is_over:
            return None
    return replace(standing, max_tokens=max_tokens)
