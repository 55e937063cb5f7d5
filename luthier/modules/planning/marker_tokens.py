"""Markers around prompts and answers that become tokens of their own."""

from __future__ import annotations

from luthier.adapters.added_tokens import AddedTokens, added_tokens, grown_tokenizer
from luthier.adapters.base import Adapter
from luthier.adapters.full_weights import FullWeights
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.errors import InvalidInputError, NotSupportedError
from luthier.resources.base_model import BaseModel

_OPTION = "add_prompt_answer_tokens"


def marker_tokens(base_model: BaseModel, dataset: DatasetOptions) -> AddedTokens | None:
    """The tokens that a training adds to the vocabulary.

    Args:
        base_model: Its tokenizer counts.
        dataset: Whether there are any, and the markers.

    Returns:
        The markers that are no tokens yet; None if there is nothing to add.

    Raises:
        InvalidInputError: If a marker cannot become a token.
    """
    if not dataset.add_prompt_answer_tokens:
        return None
    markers = (dataset.text_system_start, dataset.text_prompt_start, dataset.text_answer_separator)
    return added_tokens(base_model.tokenizer, markers)


def require_same_markers(adapter: Adapter, base_model: BaseModel, dataset: DatasetOptions) -> None:
    """Refuse to go on from an adapter whose vocabulary is another than this training's.

    Args:
        adapter: The earlier result.
        base_model: What it stands beside.
        dataset: Of this training.

    Raises:
        InvalidInputError: Naming both vocabularies.
    """
    added = marker_tokens(base_model, dataset)
    asked = {} if added is None else dict(added.ids)
    found = dict(adapter.added_tokens())
    if asked != found:
        raise InvalidInputError(
            f"'start_from' adds the tokens {list(found)!r:.200}, '{_OPTION}' and the markers of "
            f"this training {list(asked)!r:.200}; give those of the earlier training"
        )


def refuse_marker_tokens(dataset: DatasetOptions, *, why: str) -> None:
    """Refuse the option for a method that has no place for new tokens.

    Args:
        dataset: Of the training.
        why: The reason.

    Raises:
        NotSupportedError: If the option is on.
    """
    if dataset.add_prompt_answer_tokens:
        raise NotSupportedError(f"'{_OPTION}' is for lora and full_fine_tuning: {why}")


def whole_tuned_model(base_model: BaseModel, adapter: FullWeights) -> BaseModel:
    """A whole tuned model, with the tokenizer that has its tokens.

    Args:
        base_model: What was tuned.
        adapter: The result.

    Returns:
        A base model of its own around the result's tensors.
    """
    tokenizer = grown_tokenizer(base_model.tokenizer, adapter.added_tokens())
    return BaseModel.from_memory(adapter.model, tokenizer, name=base_model.name)
