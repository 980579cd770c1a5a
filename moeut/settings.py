"""What do all parts share? How their configurations are checked, and the mark of what is not scored.

A part's configuration is a frozen dataclass in the part's own file, checked by pydantic however it is made: in Python,
from YAML, or from the command line.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid", strict=True)

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1)]
"""A share that may be nothing but not everything, such as a dropout rate."""


IGNORED_TARGET = -100
"""The target of a position that is not scored, as everywhere in the field."""


def refuse(problems: Iterable[tuple[bool, str]]) -> None:
    """Raise one ValueError with every message whose condition is true, a line each ("field: what is wrong")."""
    messages = [message for wrong, message in problems if wrong]
    if messages:
        raise ValueError("\n".join(messages))


def suggestion(name: str, known: Iterable[str], otherwise: str) -> str:
    """What to say to an unknown name: which known one was meant, or `otherwise` where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else otherwise


def listed(things: Sequence[str], separator: str = ", ") -> str:
    """The first ten things in one line, and how many more there are."""
    more = [f"and {len(things) - 10:,} more"] if len(things) > 10 else []
    return separator.join([*things[:10], *more])
