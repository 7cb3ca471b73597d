"""Which tokens to read for the likelihood of (context, continuation) pairs, and what is read once for several of them.

Continuations of one context are joined: the context's last logits are those of all first tokens, and what is left of
the continuations are its branches. Contexts without such branches that begin alike, as questions with the same examples
before them do, become branches of their common beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy

from megatron_prism.errors import DataError

# Shorter beginnings are read again: reading branches has a cost of its own.
SHARED_TOKENS = 64

Pair = tuple[Sequence[int], Sequence[int]]


@dataclass
class Output:
    """A token whose logits are needed: its place in a text, and (pair, token) of what may follow it."""

    place: int
    targets: list[tuple[int, int]]


@dataclass
class Text:
    """Tokens that are read together, and what continues them."""

    token_ids: Sequence[int]
    outputs: list[Output]
    branches: list[Text] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.token_ids)

    def pairs(self) -> set[int]:
        """The numbers of the pairs whose tokens this text and its branches predict."""
        own = {number for output in self.outputs for number, _ in output.targets}
        return own.union(*(branch.pairs() for branch in self.branches))


def rolling_windows(token_ids: Sequence[int], prefix: int, length: int) -> list[tuple[list[int], list[int]]]:
    """(context, continuation) pairs that predict each token of a text once, with as much context as fits.

    Args:
        prefix: the token that the first token is predicted from.
        length: maximum number of tokens that the model reads.
    """
    whole = [prefix, *token_ids]
    pairs = []
    for start in range(1, len(whole), length):
        stop = min(start + length, len(whole))
        # The last window predicts fewer tokens, but reads as many as the others.
        first = max(0, stop - 1 - length)
        pairs.append((whole[first:start], whole[start:stop]))
    return pairs


def plan_texts(pairs: Sequence[Pair], context_length: int) -> list[Text]:
    """The texts to read, with what is shared joined where that saves tokens.

    Raises:
        DataError: for a pair whose tokens cannot be read.
    """
    contexts: dict[bytes, list[int]] = {}
    for number, pair in enumerate(pairs):
        kept = numpy.asarray(fitting_context(number, pair, context_length), numpy.int64)
        contexts.setdefault(kept.tobytes(), []).append(number)
    texts = []
    for numbers in contexts.values():
        context = fitting_context(numbers[0], pairs[numbers[0]], context_length)
        endings = {number: pairs[number][1] for number in numbers}
        later = sum(len(ending) - 1 for ending in endings.values())
        if (len(numbers) - 1) * len(context) > later:
            texts.append(_joined(context, endings))
        else:
            texts += [_alone(context, number, ending) for number, ending in endings.items()]
    return [text for text in texts if text.branches] + _sharing([t for t in texts if not t.branches])


def _sharing(texts: Sequence[Text]) -> list[Text]:
    """Texts that begin alike as branches of their common beginning."""
    # As big-endian bytes, token ids are in the order of their numbers.
    order = sorted(texts, key=lambda text: numpy.asarray(text.token_ids, ">i4").tobytes())
    # Number of tokens that are shared, and who shares them.
    groups: list[tuple[int, list[Text]]] = []
    for text in order:
        place = text.outputs[0].place
        if groups:
            before, members = groups[-1]
            shared = _alike(text.token_ids, members[0].token_ids, min(before, place))
            # A group must not lose most of what it shares to one more member.
            if shared >= SHARED_TOKENS and (len(members) == 1 or 2 * shared >= before):
                groups[-1] = shared, [*members, text]
                continue
        groups.append((place, [text]))
    return [_beginning(members, shared) if len(members) > 1 else members[0] for shared, members in groups]


def _alike(first: Sequence[int], second: Sequence[int], most: int) -> int:
    """The number of equal tokens at the beginning of both, at most `most`."""
    size = min(most, len(first), len(second))
    differ = numpy.flatnonzero(numpy.asarray(first[:size]) != numpy.asarray(second[:size]))
    return int(differ[0]) if len(differ) else size


def _beginning(texts: Sequence[Text], shared: int) -> Text:
    """The first `shared` tokens of texts, with the rest of each as a branch."""
    branches = [
        Text(text.token_ids[shared:], [Output(each.place - shared, each.targets) for each in text.outputs])
        for text in texts
    ]
    return Text(texts[0].token_ids[:shared], [], branches)


def fitting_context(number: int, pair: Pair, context_length: int) -> Sequence[int]:
    """The end of a pair's context that fits before its continuation.

    Raises:
        DataError: naming the number of the pair, if a part of it is empty, or its continuation too long.
    """
    context, continuation = pair
    if not context or not continuation:
        raise DataError(f"pair {number}: context and continuation need at least one token each")
    if len(continuation) > context_length:
        raise DataError(
            f"pair {number}: the continuation has {len(continuation)} tokens, and the model reads at most "
            f"{context_length}; shorten it"
        )
    room = context_length + 1 - len(continuation)
    return context[-room:] if len(context) > room else context


def _alone(context: Sequence[int], number: int, continuation: Sequence[int]) -> Text:
    outputs = [Output(place, [(number, token)]) for place, token in enumerate(continuation, len(context) - 1)]
    return Text([*context, *continuation[:-1]], outputs)


def _joined(context: Sequence[int], endings: dict[int, Sequence[int]]) -> Text:
    firsts = [(number, ending[0]) for number, ending in endings.items()]
    branches = [
        Text(ending[:-1], [Output(place, [(number, token)]) for place, token in enumerate(ending[1:])])
        for number, ending in endings.items()
        if len(ending) > 1
    ]
    return Text(context, [Output(len(context) - 1, firsts)], branches)


def batches(texts: Sequence[Text], batch_tokens: int) -> Iterator[list[Text]]:
    """Batches of similar length, longest first, with at most `batch_tokens` tokens after padding."""
    order = sorted(texts, key=len, reverse=True)
    first = 0
    while first < len(order):
        count = max(1, batch_tokens // len(order[first]))
        yield order[first : first + count]
        first += count


def places_of(texts: Sequence[Text]) -> list[int]:
    """The index of each output in the row of the texts."""
    places, start = [], 0
    for text in texts:
        places += [start + output.place for output in text.outputs]
        start += len(text)
    return places
