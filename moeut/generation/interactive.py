"""How does one talk with a model at a terminal? A prompt, a text, a prompt, a text; Ctrl-C stops the text only."""

from collections.abc import Callable
from contextlib import suppress


def converse(ask: Callable[[], str], respond: Callable[[str, int], object], new_line: Callable[[], object]) -> None:
    """Ask and respond until the prompt is empty or the input has ended (Ctrl-D).

    ask: gives a prompt; raises EOFError where there will be none. respond: writes what follows the prompt, given how
    many there were before. new_line: called when something is over. KeyboardInterrupt ends a response, or makes `ask`
    begin anew, and nothing else.
    """
    number = 0
    while True:
        try:
            prompt = ask()
        except KeyboardInterrupt:
            new_line()
            continue
        except EOFError:
            new_line()
            return
        if not prompt:
            return
        with suppress(KeyboardInterrupt):
            respond(prompt, number)
        new_line()
        number += 1
