"""Does a conversation go on after Ctrl-C, and end with an empty prompt or the input?"""

from collections.abc import Iterator

import pytest

from moeut.generation.interactive import converse

Happening = str | type[BaseException]


def talk(prompts: list[Happening], interrupted: tuple[str, ...] = ()) -> list[object]:
    """What is said and done when these things are typed; responses to `interrupted` are stopped with Ctrl-C."""
    heard: list[object] = []
    typed: Iterator[Happening] = iter(prompts)

    def ask() -> str:
        happening = next(typed)
        if isinstance(happening, str):
            return happening
        raise happening

    def respond(prompt: str, number: int) -> None:
        heard.append((prompt, number))
        if prompt in interrupted:
            raise KeyboardInterrupt

    converse(ask, respond, lambda: heard.append("new line"))
    assert next(typed, None) is None, "it ended before everything was typed"
    return heard


def test_prompts_are_numbered_until_an_empty_one() -> None:
    assert talk(["a", "b", ""]) == [("a", 0), "new line", ("b", 1), "new line"]


def test_the_end_of_the_input_ends_it() -> None:
    assert talk([EOFError]) == ["new line"]
    assert talk(["a", EOFError]) == [("a", 0), "new line", "new line"]


def test_an_interruption_ends_the_response_only() -> None:
    assert talk(["a", "b", ""], interrupted=("a",)) == [("a", 0), "new line", ("b", 1), "new line"]
    assert talk([KeyboardInterrupt, "a", ""]) == ["new line", ("a", 0), "new line"]


def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        talk([ZeroDivisionError])
