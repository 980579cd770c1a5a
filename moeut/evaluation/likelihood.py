"""How likely are some tokens after others? Many such questions at once, in batches of similar lengths.

Questions are sorted by length, padded on the right, where no token of a causal model looks, and answered together; an
equal question is answered once. What is longer than the model reads loses tokens at its beginning.
Letters: B questions, T tokens of the longest, n tokens to score, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moeut.evaluation.subject import Subject

TOKENS_A_ROW = 256
"""A batch holds as many tokens as `batch_size` rows of this length: few long questions, or many short ones."""


class Question(NamedTuple):
    """The tokens to score, and those before them, of which there is at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Answer(NamedTuple):
    """What a model says of a question.

    log_probs: [n] the natural logarithm of the probability of each token of the continuation, given all before it.
    greedy: [n] the likeliest token in its place. truncated: tokens were left out at the beginning; what is left out of
    the continuation itself is not scored.
    """

    log_probs: NDArray[np.float64]
    greedy: NDArray[np.int64]
    truncated: bool

    @property
    def log_likelihood(self) -> float:
        """The sum of the log probabilities."""
        return float(self.log_probs.sum())

    @property
    def mean_log_prob(self) -> float:
        """Their mean a token; −∞ where nothing was scored."""
        return float(self.log_probs.mean()) if len(self.log_probs) else -np.inf


NOTHING = Answer(np.empty(0), np.empty(0, np.int64), False)
"""The answer to a question without a continuation."""


class Examiner:
    """Answers questions about a subject, and remembers what it has answered.

    batch_size: times `TOKENS_A_ROW` tokens are read at a time. progress: called with (stage, answered, asked).
    """

    def __init__(
        self,
        subject: Subject,
        batch_size: int = 8,
        progress: Callable[[str, int, int | None], None] | None = None,
    ) -> None:
        self.subject, self.batch_size, self.progress = subject, batch_size, progress
        self.known: dict[Question, Answer] = {}

    def ask(self, questions: Sequence[Question], stage: str = "tasks") -> list[Answer]:
        """The answers, in the order of the questions.

        Raises ValueError where the model computes what is no number.
        """
        pending = [q for q in dict.fromkeys(questions) if q.continuation and q not in self.known]
        # The longest first, so that what does not fit into memory fails at once.
        pending.sort(key=self._input_length, reverse=True)
        ends = np.cumsum([0, *(self._scored_length(question) for question in pending)]).tolist()
        # All memory that stays is taken here: bits of it between batches would keep theirs from being used again.
        log_probs, greedy = np.empty(ends[-1]), np.empty(ends[-1], np.int64)
        first = 0
        for batch in self._batches(pending):
            last = first + len(batch)
            place = slice(ends[first], ends[last])
            log_probs[place], greedy[place] = self._scores(batch)
            first = last
            if self.progress is not None:
                self.progress(stage, last, len(pending))
        for question, start, end in zip(pending, ends, ends[1:], strict=False):
            truncated = sum(map(len, question)) > self.subject.max_length + 1
            self.known[question] = Answer(log_probs[start:end], greedy[start:end], truncated)
        return [self.known[question] if question.continuation else NOTHING for question in questions]

    def _batches(self, questions: Sequence[Question]) -> Iterator[Sequence[Question]]:
        """As many at a time as `batch_size` allows of the first one's length."""
        first = 0
        while first < len(questions):
            rows = max(1, self.batch_size * TOKENS_A_ROW // self._input_length(questions[first]))
            yield questions[first : first + rows]
            first += rows

    def _input_length(self, question: Question) -> int:
        # The last token is only predicted, so that a text of max_length + 1 tokens fits.
        return min(sum(map(len, question)) - 1, self.subject.max_length)

    def _scored_length(self, question: Question) -> int:
        return min(len(question.continuation), self.subject.max_length)

    @torch.no_grad()
    def _scores(self, batch: Sequence[Question]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The log probabilities and the likeliest tokens of all continuations, one after the other."""
        whole = [
            torch.tensor((context + continuation)[-self.subject.max_length - 1 :]) for context, continuation in batch
        ]
        inputs = torch.zeros(len(batch), max(map(len, whole)) - 1, dtype=torch.long)
        for row, ids in enumerate(whole):
            inputs[row, : len(ids) - 1] = ids[:-1]
        logits = self.subject.model(inputs.to(self.subject.device)).logits
        counts = map(self._scored_length, batch)
        spans = [slice(len(ids) - 1 - count, len(ids) - 1) for ids, count in zip(whole, counts, strict=True)]
        scored = torch.cat([logits[row, span] for row, span in enumerate(spans)])
        scored = scored.to(torch.promote_types(scored.dtype, torch.float32)).log_softmax(-1)
        targets = torch.cat([ids[1:][span] for ids, span in zip(whole, spans, strict=True)]).to(scored.device)
        log_probs = scored.gather(1, targets[:, None])[:, 0].double().cpu().numpy()
        if np.isnan(log_probs).any():
            raise ValueError(f"{self.subject.name}: its logits are not numbers; nothing can be said of it")
        return log_probs, scored.argmax(-1).cpu().numpy()
