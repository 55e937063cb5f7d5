"""Causal attention of packed rows on a CPU: block by block of queries, by plain matrix products.

Queries that share a key head lie together, so that one product serves them all (K key heads, R
queries of each, N tokens, Dh numbers)::

    query  [K, N · R, Dh]      key, value  [K, N, Dh]

    a row of T tokens          block of queries  a..b    sees keys 0..b, the last b - a by the mask
    behind a prefix of P       ...                       sees the prefix and keys 0..b

Scores are computed a second time on the way back; nothing of the size of scores is kept. torch's
own kernel for CPUs takes about 1.4 times as long on rows of 50 to 300 tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from luthier.training.data.packing import RowLayout

#: Queries of one block: of 32 to 400, 64 was the fastest for rows of 50 to 300 tokens.
_BLOCK = 64


@dataclass(frozen=True)
class Span:
    """A row in a sequence, or a prefix that others see.

    Args:
        start: First token.
        stop: The token after the last.
        prefix: First token of its prefix and the token after the last; equal if there is none.
    """

    start: int
    stop: int
    prefix: tuple[int, int] = (0, 0)


def spans_of(layouts: Sequence[RowLayout]) -> Iterator[Span]:
    """The rows of batches that are laid end to end.

    Args:
        layouts: Of the batches.

    Yields:
        Each batch's prefix, if there is one, then its rows, in order.
    """
    start = 0
    for layout in layouts:
        prefix = (start, start + layout.prefix_length)
        if layout.prefix_length:
            yield Span(*prefix)
        start += layout.prefix_length
        for group in layout.groups:
            for _ in range(group.num_rows):
                yield Span(start, start + group.length, prefix)
                start += group.length


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Sequence[Span],
    scaling: float,
) -> torch.Tensor:
    """Attention of each row to its prefix and itself.

    Args:
        query: [K, N · R, Dh].
        key: [K, N, Dh].
        value: [K, N, Dh].
        spans: Cover the N tokens.
        scaling: Of the scores.

    Returns:
        [K, N · R, Dh].
    """
    shared = query.shape[1] // key.shape[1]
    output = torch.empty_like(query)
    for span in spans:
        keys, values = _seen(key, span), _seen(value, span)
        for part, num_seen, num_own in _blocks(span, shared):
            shares = _shares(query[:, part], keys[:, :num_seen], num_own, scaling)
            torch.bmm(shares, values[:, :num_seen], out=output[:, part])
    return output


def attend_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Sequence[Span],
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of ``attend``.

    Args:
        grad: Of its output, [K, N · R, Dh].
        query: As it was given, and so are the others.
        key: [K, N, Dh].
        value: [K, N, Dh].
        spans: Cover the N tokens.
        scaling: Of the scores.

    Returns:
        Gradients of query, key and value.
    """
    shared = query.shape[1] // key.shape[1]
    nothing = query.new_zeros(())
    grad_query = torch.empty_like(query)
    grad_key, grad_value = torch.zeros_like(key), key.new_zeros(value.shape)
    for span in spans:
        keys, values = _seen(key, span), _seen(value, span)
        has_prefix = span.prefix[1] > span.prefix[0]
        grad_keys = torch.zeros_like(keys) if has_prefix else _seen(grad_key, span)
        grad_values = torch.zeros_like(values) if has_prefix else _seen(grad_value, span)
        for part, num_seen, num_own in _blocks(span, shared):
            queries, grads = query[:, part], grad[:, part]
            shares = _shares(queries, keys[:, :num_seen], num_own, scaling)
            grad_values[:, :num_seen].baddbmm_(shares.transpose(1, 2), grads)
            errors = torch.bmm(grads, values[:, :num_seen].transpose(1, 2))
            torch._softmax_backward_data(errors, shares, -1, errors.dtype, grad_input=errors)
            grad_keys[:, :num_seen].baddbmm_(errors.transpose(1, 2), queries, alpha=scaling)
            torch.baddbmm(
                *(nothing, errors, keys[:, :num_seen]),
                beta=0,
                alpha=scaling,
                out=grad_query[:, part],
            )
        if has_prefix:
            _add_seen(grad_key, grad_keys, span)
            _add_seen(grad_value, grad_values, span)
    return grad_query, grad_key, grad_value


def _blocks(span: Span, shared: int) -> Iterator[tuple[slice, int, int]]:
    """Each block of a row: its queries, how many keys they see, how many of these are its own."""
    num_before = span.prefix[1] - span.prefix[0] - span.start
    for start in range(span.start, span.stop, _BLOCK):
        stop = min(start + _BLOCK, span.stop)
        yield slice(start * shared, stop * shared), num_before + stop, stop - start


def _shares(
    queries: torch.Tensor, keys: torch.Tensor, num_own: int, scaling: float
) -> torch.Tensor:
    """What each query takes of each key's value, [K, n · R, keys]; the last ``num_own`` keys are
    the queries' own tokens."""
    nothing = queries.new_zeros(())
    scores = torch.baddbmm(nothing, queries, keys.transpose(1, 2), beta=0, alpha=scaling)
    later = _later(queries.shape[1] // num_own, queries.dtype)
    scores[..., -num_own:] += later[: queries.shape[1], :num_own]
    return torch.softmax(scores, -1, out=scores)


@functools.cache
def _later(shared: int, dtype: torch.dtype) -> torch.Tensor:
    """0 where a query sees a key, -inf where the key is later, [block · R, block]."""
    later = torch.full((_BLOCK, _BLOCK), float("-inf"), dtype=dtype).triu(1)
    return later.repeat_interleave(shared, dim=0)


def _seen(tensor: torch.Tensor, span: Span) -> torch.Tensor:
    """What a row sees of keys or values, prefix first; a view if there is no prefix."""
    own, (start, stop) = tensor[:, span.start : span.stop], span.prefix
    return own if start == stop else torch.cat([tensor[:, start:stop], own], dim=1)


def _add_seen(total: torch.Tensor, seen: torch.Tensor, span: Span) -> None:
    """Add what belongs to the places that ``_seen`` took."""
    start, stop = span.prefix
    total[:, start:stop] += seen[:, : stop - start]
    total[:, span.start : span.stop] += seen[:, stop - start :]
