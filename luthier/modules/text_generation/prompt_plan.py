"""A prompt tuning before it starts: the plan of any training, and of the virtual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.adapters.prompts.initialisation import AnyPrompt, make_adapter
from luthier.adapters.prompts.source_prompt import (
    SourcePrompt,
    read_source_prompt,
    resolve_source_prompt,
)
from luthier.data_model.checks import require_int
from luthier.data_model.options.prompt_encoder import PromptEncoderOptions, encoder_options
from luthier.data_model.options.prompt_words import (
    PromptOutputModelType,
    PromptTuningInit,
    TuningType,
    parse_init_method,
    parse_output_model_types,
    parse_tuning_type,
)
from luthier.data_model.options.training_options import (
    NETWORK_PROMPT_DEFAULTS,
    PROMPT_TUNING_DEFAULTS,
)
from luthier.data_model.tuning import TuningConfig, validate_tuning_config
from luthier.errors import InvalidInputError, UnknownKeyError, did_you_mean
from luthier.modules.environment import Environment
from luthier.modules.planning.hooks import TrainingHooks, limits_for
from luthier.modules.planning.marker_tokens import refuse_marker_tokens
from luthier.modules.planning.starting_point import read_start
from luthier.modules.planning.train_plan import AdapterPlan, plan_training
from luthier.resources.base_model import BaseModel

#: Arguments that only prompt tuning has.
_OWN_ARGUMENTS = ("tuning_config", "tuning_type", "source_task")


@dataclass(frozen=True)
class PromptTuningPlan(AdapterPlan):
    """A prompt tuning that nothing known so far speaks against.

    Args:
        tuning_type: What is learned, and how.
        num_virtual_tokens: P, in each place.
        init_method: Where the virtual tokens start.
        init_text: For TEXT.
        source_prompt: For the methods that start from one, read.
        source_task: Which of its tasks, for EXACT_SOURCE_TASK.
        output_model_types: Where the virtual tokens stand; empty is where the tuning type has them.
        encoder: The network that they may be learned through.
    """

    tuning_type: TuningType
    num_virtual_tokens: int
    init_method: PromptTuningInit
    init_text: str | None
    source_prompt: SourcePrompt | None
    source_task: int
    output_model_types: tuple[PromptOutputModelType, ...]
    encoder: PromptEncoderOptions

    def make_adapter(self, base_model: BaseModel) -> AnyPrompt:
        """The virtual tokens before their first update.

        Args:
            base_model: From ``acquire``.

        Returns:
            A fresh adapter.
        """
        if self.start is not None:
            adapter = read_start(
                self.start,
                base_model,
                method=self.tuning_type.value.lower(),
                num_virtual_tokens=self.num_virtual_tokens,
            )
            assert isinstance(adapter, AnyPrompt)
            return adapter
        return make_adapter(
            base_model,
            tuning_type=self.tuning_type,
            num_virtual_tokens=self.num_virtual_tokens,
            init_method=self.init_method,
            init_text=self.init_text,
            source_prompt=self.source_prompt,
            source_task=self.source_task,
            output_model_types=self.output_model_types,
            encoder=self.encoder,
            seed=self.options.seed,
        )


def plan_prompt_tuning(
    arguments: Mapping[str, Any], *, module_id: str, environment: Environment
) -> PromptTuningPlan:
    """Plan a prompt tuning and its source; takes and raises what ``plan_training`` does."""
    common = {name: value for name, value in arguments.items() if name not in _OWN_ARGUMENTS}
    if arguments.get("tuning_config") is None:
        raise InvalidInputError("train() missing 1 required argument: 'tuning_config'")
    tuning_type = parse_tuning_type(arguments.get("tuning_type"))
    config = _tuning_config(arguments["tuning_config"])
    defaults = PROMPT_TUNING_DEFAULTS
    if tuning_type.learns_through_a_network:
        defaults = NETWORK_PROMPT_DEFAULTS
        if common.get("learning_rate") == PROMPT_TUNING_DEFAULTS.learning_rate:
            del common["learning_rate"]  # The signature's default, which is for the other types.
    plan = plan_training(common, module_id=module_id, defaults=defaults, environment=environment)
    refuse_marker_tokens(
        plan.dataset,
        why="PEFT's folder of a prompt has no place for embeddings of tokens, and its virtual "
        "tokens mark the prompt already",
    )
    validate_tuning_config(config, limits_for(plan.hooks, environment))
    init_method = parse_init_method(config.prompt_tuning_init_method)
    places: tuple[PromptOutputModelType, ...] = ()
    if config.output_model_types or not tuning_type.learns_through_a_network:
        is_seq2seq = plan.kind == "seq2seq"
        places = parse_output_model_types(config.output_model_types, is_seq2seq=is_seq2seq)
    source_prompt = None
    if init_method.needs_source:
        source_prompt = _source_prompt(config, init_method, tuning_type, plan.hooks, environment)
        _require_fit(source_prompt, config.num_virtual_tokens, num_places=len(places))
    source_task = arguments.get("source_task")
    return PromptTuningPlan.of(
        plan,
        tuning_type=tuning_type,
        num_virtual_tokens=config.num_virtual_tokens,
        init_method=init_method,
        init_text=config.prompt_tuning_init_text or None,
        source_prompt=source_prompt,
        source_task=0
        if source_task is None
        else require_int("source_task", source_task, minimum=0),
        output_model_types=places,
        encoder=encoder_options(config, tuning_type),
    )


def _tuning_config(given: object) -> TuningConfig:
    if isinstance(given, TuningConfig):
        return given
    if not isinstance(given, Mapping):
        raise InvalidInputError(
            f"'tuning_config' must be a TuningConfig or a mapping, got {type(given).__name__}"
        )
    for name in given:
        if name not in TuningConfig.fields:
            hint = did_you_mean(str(name)[:80], TuningConfig.fields)
            raise UnknownKeyError(f"unknown key 'tuning_config.{str(name)[:80]}'{hint}")
    return TuningConfig(**given)


def _source_prompt(
    config: TuningConfig,
    init_method: PromptTuningInit,
    tuning_type: TuningType,
    hooks: TrainingHooks,
    environment: Environment,
) -> SourcePrompt:
    if tuning_type is not TuningType.MULTITASK_PROMPT_TUNING:
        raise InvalidInputError(
            f"init method {init_method.value} needs tuning type MULTITASK_PROMPT_TUNING, "
            f"got {tuning_type.value}"
        )
    path = resolve_source_prompt(
        config.prompt_tuning_init_source_model,
        source_prompt_base=environment.source_prompt_base,
        from_request=hooks.from_request,
    )
    return read_source_prompt(path)


def _require_fit(source_prompt: SourcePrompt, num_virtual_tokens: int, *, num_places: int) -> None:
    """Refuse here what would otherwise be found with the weights in memory."""
    num_rows = len(source_prompt.prompt_embeddings)
    if num_rows != num_virtual_tokens * num_places:
        raise InvalidInputError(
            f"'num_virtual_tokens' is {num_virtual_tokens} in {num_places} place(s), but source "
            f"prompt {source_prompt.name!r} has {num_rows} virtual tokens"
        )
