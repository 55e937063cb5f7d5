"""From records of every kind to token ids with labels, in order, on as many threads as wanted."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, TypeGuard

import alog

from luthier.data_model.conversations import ChatMessage, ChatTrainRecord, TextTrainRecord
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.records import ClassificationTrainRecord, GenerationTrainRecord
from luthier.errors import CancelledError, InvalidInputError, TrainingDataError
from luthier.training.data.encoding.class_encoding import encode_classes
from luthier.training.data.encoding.conversation_encoding import ConversationEncoder
from luthier.training.data.encoding.pair_encoding import TextPair, encode_pairs, text_pair
from luthier.training.data.encoding.plain_text import encode_plain_text
from luthier.training.data.encoding.row_tokenizer import RowTokenizer, eos_token_id_of
from luthier.training.data.encoding.verbalizer import DEFAULT_VERBALIZER, Verbalizer
from luthier.training.data.examples import TokenizedRow, TrainingData
from luthier.training.data.storage.cache_pruning import prune_cache
from luthier.training.data.storage.content_key import content_key
from luthier.training.data.storage.spilled_examples import keep_examples
from luthier.training.data.storage.stored_examples import read_stored, write_stored

__all__ = ["RecordTokenizer", "RowTokenizer", "TrainRecord", "eos_token_id_of", "tokenize_records"]

log = alog.use_channel(__name__)

#: Records that go to the tokenizer at once, and their characters, except that there is always one
#: record; also how often a stop is looked for.
_CHUNK_ROWS = 512
_CHUNK_CHARS = 2**18
#: Chunks that wait per thread, so that a fast reader does not fill the memory.
_CHUNKS_AHEAD = 2

PairRecord: TypeAlias = GenerationTrainRecord | ClassificationTrainRecord
TrainRecord: TypeAlias = PairRecord | ChatTrainRecord | TextTrainRecord
_Numbered: TypeAlias = tuple[int, TrainRecord]


@dataclass(frozen=True)
class RecordTokenizer:
    """Turns records of any kind into examples. Thread-safe.

    Args:
        verbalizer: Makes the source out of a pair.
        row_tokenizer: The base model's tokenizer and limits.
        options: Format, loss mask and lengths.
        name: What messages call the data: ``train`` or ``validation``.
    """

    verbalizer: Verbalizer
    row_tokenizer: RowTokenizer
    options: DatasetOptions = field(default_factory=DatasetOptions)
    name: str = "train"

    @functools.cached_property
    def conversations(self) -> ConversationEncoder:
        """Encodes conversations."""
        return ConversationEncoder(self.row_tokenizer, self.options)

    def tokenize(self, records: Sequence[_Numbered]) -> list[TokenizedRow]:
        """The examples of some records, in order.

        Args:
            records: With their numbers, counted from 1.

        Returns:
            One row per record; of plain text one or more.

        Raises:
            TrainingDataError: If one cannot be learned from; names its row.
            VerbalizerError: If a record lacks a field that the verbalizer names.
        """
        rows: list[TokenizedRow] = []
        pairs: list[TextPair] = []
        for row, record in records:
            if self._is_verbalized(record):
                pairs.append(text_pair(row, record, self.verbalizer, name=self.name))
                continue
            rows += self._encode_pairs(pairs)
            pairs = []
            rows += self._tokenize_one(row, record)
        return rows + self._encode_pairs(pairs)

    def _is_verbalized(self, record: object) -> TypeGuard[PairRecord]:
        format_ = self.options.prompt_format
        return isinstance(record, GenerationTrainRecord | ClassificationTrainRecord) and (
            format_ == "verbalizer" or (format_ == "auto" and self.options.chat_template is None)
        )

    def _encode_pairs(self, pairs: Sequence[TextPair]) -> list[TokenizedRow]:
        if not pairs:
            return []
        encode = encode_classes if self.row_tokenizer.class_labels else encode_pairs
        return encode(pairs, self.verbalizer, self.row_tokenizer, name=self.name)

    def _tokenize_one(self, row: int, record: object) -> list[TokenizedRow]:
        place = f"{self.name} row {row}"
        if self.row_tokenizer.class_labels:
            raise TrainingDataError(
                f"{place} is a {type(record).__name__}; a classification is learned from texts "
                "with a label"
            )
        if isinstance(record, GenerationTrainRecord | ClassificationTrainRecord):
            pair = text_pair(row, record, self.verbalizer, name=self.name)
            messages = (ChatMessage("user", pair.source), ChatMessage("assistant", pair.target))
            return [self.conversations.encode(row, ChatTrainRecord(messages), place)]
        if isinstance(record, ChatTrainRecord):
            self._refuse_verbalizer()
            place = f"{place} ({record.place})" if record.place else place
            return [self.conversations.encode(row, record, place)]
        if isinstance(record, TextTrainRecord):
            self._refuse_verbalizer()
            place = f"{place} ({record.place})" if record.place else place
            return encode_plain_text(
                row, record, self.row_tokenizer, max_length=self.options.max_length, place=place
            )
        raise TrainingDataError(
            f"{place} is a {type(record).__name__}, not a GenerationTrainRecord, "
            "ClassificationTrainRecord, ChatTrainRecord or TextTrainRecord"
        )

    def _refuse_verbalizer(self) -> None:
        if self.verbalizer.template != DEFAULT_VERBALIZER:
            raise InvalidInputError(
                "a 'verbalizer' makes text out of pairs; conversations and plain text have no use "
                "for it"
            )


def tokenize_records(
    records: Iterable[TrainRecord],
    verbalizer: Verbalizer,
    row_tokenizer: RowTokenizer,
    *,
    options: DatasetOptions | None = None,
    name: str = "train",
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainingData:
    """Verbalize, tokenize and label every record, in order.

    Args:
        records: Read once.
        verbalizer: Makes the source out of a record.
        row_tokenizer: Makes ids and labels out of source and target.
        options: Format, loss mask, lengths and threads; the defaults if None.
        name: What messages call the data: ``train`` or ``validation``.
        should_stop: Asked between chunks of records.

    Returns:
        At least one example, and what had to be cut.

    Raises:
        TrainingDataError: If there is no record, or one cannot be learned from; names its row.
        VerbalizerError: If a record lacks a field that the verbalizer names.
        CancelledError: If ``should_stop`` said so.
    """
    options = options or DatasetOptions()
    tokenizer = RecordTokenizer(verbalizer, row_tokenizer, options, name)
    if options.tokenization_cache is None:
        data = _kept_while_used(tokenizer, records, should_stop)
    else:
        data = _kept_on_disk(tokenizer, records, should_stop, Path(options.tokenization_cache))
    if data is None:
        raise TrainingDataError(f"{name} data cannot be empty: it holds no record")
    return data


def _kept_while_used(
    tokenizer: RecordTokenizer, records: Iterable[TrainRecord], should_stop: Callable[[], bool]
) -> TrainingData | None:
    rows = _tokenized(tokenizer, records, should_stop)
    return keep_examples(rows, max_tokens=tokenizer.options.max_tokens_in_memory)


def _kept_on_disk(
    tokenizer: RecordTokenizer,
    records: Iterable[TrainRecord],
    should_stop: Callable[[], bool],
    cache: Path,
) -> TrainingData | None:
    """From the cache, or into it. Records that can be read twice are never held in memory."""
    if isinstance(records, Iterator):
        records = list(records)
    key = content_key(
        (record for chunk in _chunks(records, should_stop) for _, record in chunk),
        template=tokenizer.verbalizer.template,
        row_tokenizer=tokenizer.row_tokenizer,
        options=tokenizer.options,
    )
    stored = read_stored(cache / key)
    if stored is not None:
        log.info("tokenized data is taken from the cache: rows=%d", len(stored))
    else:
        stored = write_stored(cache / key, _tokenized(tokenizer, records, should_stop))
    if stored is not None:
        prune_cache(cache, max_bytes=tokenizer.options.max_tokenization_cache_bytes, in_use=key)
    return stored


def _tokenized(
    tokenizer: RecordTokenizer, records: Iterable[TrainRecord], should_stop: Callable[[], bool]
) -> Iterator[TokenizedRow]:
    chunks = _chunks(records, should_stop)
    num_workers = tokenizer.options.number_of_workers
    for rows in _in_order(tokenizer.tokenize, chunks, num_workers):
        yield from rows


def _chunks(
    records: Iterable[TrainRecord], should_stop: Callable[[], bool]
) -> Iterator[list[_Numbered]]:
    chunk: list[_Numbered] = []
    num_chars = 0
    for row, record in enumerate(records, start=1):
        size = _num_chars(record)
        if chunk and (len(chunk) == _CHUNK_ROWS or num_chars + size > _CHUNK_CHARS):
            yield _asked(chunk, should_stop)
            chunk, num_chars = [], 0
        chunk.append((row, record))
        num_chars += size
    if chunk:
        yield _asked(chunk, should_stop)


def _asked(chunk: list[_Numbered], should_stop: Callable[[], bool]) -> list[_Numbered]:
    if should_stop():
        raise CancelledError("training was cancelled while its data was tokenized")
    return chunk


def _num_chars(record: object) -> int:
    """Characters that will be tokenized, about; 0 of what is no record."""
    texts: Iterable[object] = ()
    if isinstance(record, GenerationTrainRecord):
        texts = (record.input, record.output)
    elif isinstance(record, ClassificationTrainRecord | TextTrainRecord):
        texts = (record.text,)
    elif isinstance(record, ChatTrainRecord):
        texts = (message.content for message in record.messages)
    return sum(len(text) for text in texts if isinstance(text, str))


def _in_order(
    tokenize: Callable[[Sequence[_Numbered]], list[TokenizedRow]],
    chunks: Iterable[list[_Numbered]],
    num_workers: int,
) -> Iterator[list[TokenizedRow]]:
    """Each chunk's rows, in the order of the chunks; the tokenizer releases Python's lock."""
    if num_workers == 1:
        yield from map(tokenize, chunks)
        return
    pending: deque[Future[list[TokenizedRow]]] = deque()
    with ThreadPoolExecutor(num_workers, "tokenize") as pool:
        try:
            for chunk in chunks:
                pending.append(pool.submit(tokenize, chunk))
                if len(pending) > _CHUNKS_AHEAD * num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
