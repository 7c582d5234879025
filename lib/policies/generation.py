"""What rides along in `generate`: when a reply is complete, how likely its tokens were, and sampling that can be repeated.

One object of each class serves one call of `generate`, in one thread.
"""

import time
from collections.abc import Sequence

import torch
import xgrammar
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria

from lib.agent.limits import Bound
from lib.agent.protocol import complete

_TOP = 50
"""A sampled token is one of so many likeliest: the tail of a large vocabulary is noise."""


class ReplyEnd(StoppingCriteria):
    """Ends each row at the closing tag of its action or answer, and all rows when nobody wants them any more."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, closing: torch.Tensor, prompt_length: int, limits: Bound):
        """`closing` as `closing_tokens` gives it, on the model's device."""
        self._tokenizer = tokenizer
        self._closing = closing
        self._start = prompt_length
        self._limits = limits
        self._done: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        if self._done is None:
            self._done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        if self._limits.reached() is not None:
            self._done[:] = True
        for row in (self._closing[input_ids[:, -1]] & ~self._done).nonzero().flatten().tolist():
            self._done[row] = complete(str(self._tokenizer.decode(input_ids[row, self._start :].tolist())))
        return self._done


def closing_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> torch.Tensor:
    """bool `[vocabulary]`: the tokens with which a tag can be closed. Only after one of these can a reply be complete."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    closing = torch.zeros(vocabulary, dtype=torch.bool)
    closing[[number for number, token in enumerate(tokens) if token and ">" in token]] = True
    return closing


class Watch(LogitsProcessor):
    """Notes the log-probability of every chosen token, as the model itself gave it, and when the first token was due."""

    def __init__(self, device: torch.device):
        self.first: float | None = None
        """When the prompt had been read, on the clock of `time.perf_counter`."""
        self._device = device
        self._before: torch.Tensor | None = None
        self._chosen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._before is None:
            synchronise(self._device)
            self.first = time.perf_counter()
        else:
            self._chosen.append(self._take(input_ids))
        self._before = scores
        return scores

    def log_probabilities(self, sequences: torch.Tensor) -> list[list[float]]:
        """For the finished `[batch, length]` sequences: one list for each row, a number for every generated position."""
        if self._before is not None:
            self._chosen.append(self._take(sequences))
            self._before = None
        return torch.stack(self._chosen, dim=1).float().cpu().tolist() if self._chosen else [[] for _ in sequences]

    def _take(self, sequences: torch.Tensor) -> torch.Tensor:
        assert self._before is not None
        logits = self._before.float()
        return logits.gather(1, sequences[:, -1:]).squeeze(1) - logits.logsumexp(dim=1)


class Constraint(LogitsProcessor):
    """Lets each row write only what a grammar allows next. A row that has ended is left alone."""

    def __init__(self, grammar: xgrammar.CompiledGrammar, rows: int):
        self._matchers = [xgrammar.GrammarMatcher(grammar) for _ in range(rows)]
        self._bitmask = xgrammar.allocate_token_bitmask(rows, grammar.tokenizer_info.vocab_size)
        self._open = list(range(rows))
        self._begun = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._begun:
            tokens = input_ids[:, -1].tolist()
            self._open = [
                row
                for row in self._open
                if self._matchers[row].accept_token(tokens[row]) and not self._matchers[row].is_terminated()
            ]
        self._begun = True
        if not self._open:
            return scores
        for row in self._open:
            self._matchers[row].fill_next_token_bitmask(self._bitmask, row)
        masked = scores.float().clone()
        xgrammar.apply_token_bitmask_inplace(masked, self._bitmask.to(scores.device), indices=self._open)
        return masked


class Sampling(LogitsProcessor):
    """Draws the rows that have a seed at the given temperature, and leaves the others greedy.

    Adding Gumbel noise and taking the largest is drawing from the softmax, so both kinds share one greedy `generate`, and a row
    is drawn alike in whatever batch it stands.
    """

    def __init__(self, seeds: Sequence[int | None], temperature: float):
        self._generators = [None if seed is None else torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        drawn = scores.clone()
        for row, generator in enumerate(self._generators):
            if generator is None:
                continue
            top, ids = torch.topk(scores[row].float(), min(_TOP, scores.shape[1]))
            noise = -torch.empty(len(top)).exponential_(generator=generator).log().to(top.device)
            drawn[row] = float("-inf")
            drawn[row, ids] = (top / self._temperature + noise).to(drawn.dtype)
        return drawn


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock read now says what was done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
