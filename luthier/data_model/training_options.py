"""The hyperparameters of a training, spelled once.

Each field of ``TrainingOptions`` carries its own ``Setting``: meaning, range and names in other
systems. Checking, the alias table and the documentation are all made from these, so a new option
is one new field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.data_model.checks import (
    require_bool,
    require_int,
    require_names,
    require_number,
    require_text,
)
from luthier.data_model.judge_prompt import judge_template
from luthier.data_model.quantisation import NONE, QUANTISATIONS
from luthier.errors import InvalidInputError, UnknownKeyError, did_you_mean

MAX_SEED = 2**63 - 1
#: Longest verbalizer or initial text, in characters.
MAX_TEXT_CHARS = 100_000
#: caikit-nlp's word for "choose a device".
DETECT_DEVICE = "__DETECT__"
TORCH_DTYPES = ("float32", "bfloat16", "float16")
MIXED_PRECISION_WORDS = ("off", "bfloat16", "float16")
SCHEDULES = ("linear", "cosine", "constant")
OPTIMIZERS = ("adamw", "adam", "adadelta", "rmsprop", "sgd", "adamw_8bit")
LOSS_FUNCTIONS = ("token_average", "sample_average")
#: NOTE: the keys of ``training.metrics.registry.METRICS``, which imports torch's neighbours.
METRIC_WORDS = (
    "loss",
    "perplexity",
    "row_perplexity",
    "token_accuracy",
    "exact_match",
    "label_accuracy",
    "bleu",
    "rouge1",
    "rouge2",
    "rougeL",
    "ai_judge",
)
TRACKERS = ("tensorboard", "mlflow", "wandb", "trackio")
#: Most entries of a list of names.
MAX_NAMES = 1000
SAVE_CHECKPOINT_WORDS = ("last", "best", "each_evaluation", "never")


@dataclass(frozen=True)
class TrainingLimits:
    """What one training may ask for. Each is a key under ``training.limits`` of the config.

    Args:
        max_epochs: Largest ``num_epochs``.
        max_batch_size: Largest ``batch_size``.
        max_accumulate_steps: Largest ``accumulate_steps``.
        max_source_length: Largest ``max_source_length``, in tokens.
        max_target_length: Largest ``max_target_length``, in tokens.
        max_virtual_tokens: Largest ``num_virtual_tokens``.
        max_lora_rank: Largest rank of a LoRA.
    """

    max_epochs: int = 1000
    max_batch_size: int = 1024
    max_accumulate_steps: int = 1024
    max_source_length: int = 32_768
    max_target_length: int = 32_768
    max_virtual_tokens: int = 1024
    max_lora_rank: int = 1024


#: For callers who answer to no server: only nonsense is refused.
UNLIMITED = TrainingLimits(*[2**31] * len(dataclasses.fields(TrainingLimits)))


@dataclass(frozen=True)
class Setting:
    """What is known about one option beside its type and default.

    Args:
        kind: ``int``, ``number``, ``bool``, ``text``, ``choice`` or ``names`` (a tuple of texts).
        meaning: One or two sentences for people.
        minimum: Smallest value.
        above: Every value is greater.
        maximum: Largest value, whatever the server's limits say.
        limit: Field of ``TrainingLimits`` that caps the value, or "".
        choices: The words of a ``choice``, or all that ``names`` may hold.
        is_optional: True where None means "decide for me".
        aliases: Names in other systems that are accepted for it.
        is_bookkeeping: True where no value changes what is learned, so that a resumed training may
            have another one.
    """

    kind: str
    meaning: str
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    limit: str = ""
    choices: tuple[str, ...] = ()
    is_optional: bool = False
    aliases: tuple[str, ...] = ()
    is_bookkeeping: bool = False

    def check(self, name: str, value: object, limits: TrainingLimits) -> None:
        """Refuse a value of the wrong type or range.

        Args:
            name: The option's name, for the message.
            value: Anything.
            limits: The server's caps.

        Raises:
            InvalidInputError: Naming the option, the value and the limit.
        """
        if value is None and self.is_optional:
            return
        if self.kind == "bool":
            require_bool(name, value)
        elif self.kind == "int":
            minimum = None if self.minimum is None else int(self.minimum)
            maximum = self._maximum(limits)
            require_int(
                name, value, minimum=minimum, maximum=None if maximum is None else int(maximum)
            )
        elif self.kind == "number":
            require_number(
                name,
                value,
                minimum=self.minimum,
                above=self.above,
                maximum=self._maximum(limits),
            )
        elif self.kind == "names":
            self._check_names(name, value)
        else:
            self._check_text(name, value)

    def _check_names(self, name: str, values: object) -> None:
        for value in require_names(name, values, max_count=MAX_NAMES, max_chars=MAX_TEXT_CHARS):
            self._check_text(name, value)

    def _check_text(self, name: str, value: object) -> None:
        text = require_text(name, value, max_chars=MAX_TEXT_CHARS)
        if self.choices and text not in self.choices:
            raise InvalidInputError(
                f"'{name}' must be one of {', '.join(self.choices)}, got {text[:80]!r}"
                + did_you_mean(text[:80], self.choices)
            )

    def _maximum(self, limits: TrainingLimits) -> float | None:
        return getattr(limits, self.limit) if self.limit else self.maximum


def _setting(default: Any, kind: str, meaning: str, **known: Any) -> Any:
    metadata = {"setting": Setting(kind, meaning, **known)}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainingOptions:
    """Every hyperparameter of the loop. Defaults are those of prompt tuning.

    Building one checks nothing; ``validate`` does. The fields' meaning is in their ``Setting``.
    """

    num_epochs: int = _setting(
        20,
        "int",
        "Passes over the training data; 0 trains nothing and keeps the start.",
        minimum=0,
        limit="max_epochs",
        aliases=("epochs", "n_epochs", "num_train_epochs"),
    )
    learning_rate: float = _setting(
        0.3,
        "number",
        "Step size of the optimizer at the schedule's peak.",
        above=0,
        maximum=100,
        aliases=("lr",),
    )
    batch_size: int = _setting(
        8,
        "int",
        "Rows that go through the model at once.",
        minimum=1,
        limit="max_batch_size",
        aliases=("per_device_train_batch_size", "train_batch_size"),
    )
    accumulate_steps: int = _setting(
        32,
        "int",
        "Batches whose gradients make one update. k batches of b rows give the update of one "
        "batch of k·b rows.",
        minimum=1,
        limit="max_accumulate_steps",
        aliases=("gradient_accumulation_steps", "grad_accumulation"),
    )
    max_source_length: int = _setting(
        256,
        "int",
        "Tokens kept of the verbalized input, from its start.",
        minimum=1,
        limit="max_source_length",
    )
    max_target_length: int = _setting(
        128,
        "int",
        "Tokens kept of the output, from its start; the end-of-sequence token comes on top.",
        minimum=1,
        limit="max_target_length",
    )
    seed: int = _setting(
        73,
        "int",
        "Makes order and random starts repeatable; -1 draws one, which the result reports.",
        minimum=-1,
        maximum=MAX_SEED,
        aliases=("random_seed",),
    )
    verbalizer: str = _setting(
        "{{input}}",
        "text",
        "Template from record fields to the text that the model reads.",
    )
    start_from: str | None = _setting(
        None,
        "text",
        "Earlier result that adapters start from instead of fresh numbers: a saved model, PEFT's "
        "folder or a checkpoint; in a request, the id of a tuned model. The optimizer begins anew.",
        is_optional=True,
        aliases=("trained_artifact",),
    )
    torch_dtype: str | None = _setting(
        None,
        "choice",
        "Number format of the base model; none takes the server's.",
        choices=TORCH_DTYPES,
        is_optional=True,
        aliases=("dtype",),
        is_bookkeeping=True,
    )
    quantization: str = _setting(
        NONE,
        "choice",
        "How the frozen weights of the base model are held: as they are, in 8 bits, or in 4 bits "
        "(nf4 or fp4, with quantised scales): QLoRA. For methods that leave them as they are.",
        choices=QUANTISATIONS,
    )
    serve_quantized: bool = _setting(
        False,
        "bool",
        "Whether the saved model asks for a base model that is quantised like this when it is "
        "loaded, too; else it runs on the base model as it is.",
        is_bookkeeping=True,
    )
    device: str | None = _setting(
        None,
        "text",
        "Where to train: cpu, cuda, cuda:1; none chooses.",
        is_optional=True,
        is_bookkeeping=True,
    )
    silence_progress_bars: bool = _setting(
        True,
        "bool",
        "False shows a progress bar on stderr.",
        aliases=("disable_tqdm",),
        is_bookkeeping=True,
    )
    schedule: str = _setting(
        "linear",
        "choice",
        "How the learning rate falls after the warm-up, per update: linear and cosine to 0.",
        choices=SCHEDULES,
        aliases=("lr_scheduler_type",),
    )
    warmup_steps: int = _setting(
        0,
        "int",
        "Updates over which the learning rate rises from 0.",
        minimum=0,
        maximum=10**9,
    )
    warmup_ratio: float = _setting(
        0.0,
        "number",
        "Warm-up as a share of all updates; not together with another warm-up.",
        minimum=0,
        maximum=1,
    )
    weight_decay: float = _setting(
        0.01,
        "number",
        "Decay of weights; norms, biases and other vectors do not decay. Decoupled for AdamW, else "
        "added to the gradient.",
        minimum=0,
        maximum=10,
    )
    adam_beta1: float = _setting(
        0.9,
        "number",
        "Adam and AdamW: decay of the mean of gradients.",
        minimum=0,
        maximum=0.999999,
    )
    adam_beta2: float = _setting(
        0.999,
        "number",
        "Adam and AdamW: decay of the mean of squared gradients.",
        minimum=0,
        maximum=0.99999999,
    )
    adam_epsilon: float = _setting(
        1e-8, "number", "Keeps the division finite; SGD has none.", above=0, maximum=1
    )
    max_grad_norm: float = _setting(
        0.0,
        "number",
        "Gradients longer than this (Euclidean, all parameters) are scaled down to it; 0 is off.",
        minimum=0,
        maximum=1e9,
        aliases=("gradient_clip",),
    )
    gradient_checkpointing: bool = _setting(
        False,
        "bool",
        "Compute activations twice instead of keeping them: less memory, about 1.4 times the time.",
    )
    group_by_length: bool = _setting(
        True,
        "bool",
        "Batch rows of like length, so that little is padded; False takes them in random order.",
    )
    base_dropout: bool = _setting(
        False,
        "bool",
        "Keep the base model's own dropout active while training.",
    )
    save_checkpoint: str = _setting(
        "last",
        "choice",
        "When a training that has a folder saves its state: at evaluation points and the ends of "
        "epochs (last), when the first metric improved (best; the result then is what was best), "
        "at evaluation points (each_evaluation), or never.",
        choices=SAVE_CHECKPOINT_WORDS,
    )
    save_every_steps: int = _setting(
        0,
        "int",
        "Updates between further checkpoints; 0 saves none but those of save_checkpoint.",
        minimum=0,
        maximum=10**9,
        aliases=("save_steps",),
        is_bookkeeping=True,
    )
    keep_checkpoints: int | None = _setting(
        None,
        "int",
        "Newest checkpoints that are kept, the best one on top; 0 keeps all. None keeps 2, and all "
        "with save_checkpoint each_evaluation.",
        minimum=0,
        maximum=10**6,
        is_optional=True,
        aliases=("save_total_limit",),
        is_bookkeeping=True,
    )

    optimizer: str = _setting(
        "adamw",
        "choice",
        "How gradients become updates. sgd has Nesterov's momentum, rmsprop a smoothing of 0.9; "
        "adamw_8bit needs a GPU and bitsandbytes.",
        choices=OPTIMIZERS,
        aliases=("optim",),
    )
    momentum: float = _setting(
        0.9, "number", "Of sgd and rmsprop; the others have none.", minimum=0, maximum=0.999999
    )
    min_learning_rate_ratio: float = _setting(
        0.0,
        "number",
        "Share of the learning rate that linear and cosine never fall below.",
        minimum=0,
        maximum=1,
    )
    warmup_epochs: float = _setting(
        0.0,
        "number",
        "Warm-up in passes over the data, fractions allowed; not together with another warm-up.",
        minimum=0,
        maximum=1000,
    )
    loss_function: str = _setting(
        "token_average",
        "choice",
        "Whether each label token of an update weighs the same, or each row.",
        choices=LOSS_FUNCTIONS,
    )
    freeze_layers: tuple[str, ...] = _setting(
        (),
        "names",
        "Parts of parameter names; what has one of them in its name is not learned.",
    )
    differential_learning_rate_layers: tuple[str, ...] = _setting(
        (),
        "names",
        "Parts of parameter names that get differential_learning_rate.",
    )
    differential_learning_rate: float = _setting(
        1e-5,
        "number",
        "Peak step size of the layers named there; same schedule.",
        above=0,
        maximum=100,
    )
    evaluation_epochs: float = _setting(
        1.0,
        "number",
        "Passes over the data between two evaluations, fractions allowed; there is always one at "
        "the end.",
        above=0,
        maximum=1000,
    )
    evaluate_before_training: bool = _setting(
        False, "bool", "Evaluate once before the first update, too."
    )
    metrics: tuple[str, ...] = _setting(
        ("loss",),
        "names",
        "What is measured on the validation data. The first one says which evaluation is best.",
        choices=METRIC_WORDS,
    )
    max_generated_tokens: int = _setting(
        256,
        "int",
        "Tokens that are generated per validation row, greedily, for metrics that compare text.",
        minimum=1,
        limit="max_target_length",
        aliases=("generation_max_length",),
    )
    judge_model: str = _setting(
        "",
        "text",
        "Model that the metric ai_judge asks; the server's settings say where (judge.base_url).",
    )
    judge_template: str = _setting(
        "general",
        "text",
        "What ai_judge asks: general, or a text with {{answer}} and perhaps {{prompt}} and "
        "{{reference}} that asks for a line SCORE: with a number from 0 to 1.",
    )
    early_stopping_patience: int = _setting(
        0,
        "int",
        "Evaluations without a better first metric after which the training ends; 0 is off.",
        minimum=0,
        maximum=10**6,
    )

    num_processes: int = _setting(
        1,
        "int",
        "Processes that share the rows of each update, a GPU each where there are some; they learn "
        "what one would. Under torchrun its own number counts.",
        minimum=1,
        maximum=4096,
        is_bookkeeping=True,
    )
    use_fsdp: bool = _setting(
        False,
        "bool",
        "Several processes keep a share each of what full fine-tuning learns, its gradients and "
        "the optimizer's state, and borrow the others' layer by layer. Rows are padded then.",
        is_bookkeeping=True,
    )
    compile_model: bool = _setting(
        False,
        "bool",
        "Compile the model's layers: pays for itself in long trainings on a GPU. Rows are padded "
        "then, because each packed batch would be compiled anew.",
        is_bookkeeping=True,
    )
    mixed_precision: str = _setting(
        "off",
        "choice",
        "Number format that layers compute in where rounding harms little, while weights stay as "
        "they are; float16 scales the loss. On a CPU, one that is not measured to be faster is "
        "off.",
        choices=MIXED_PRECISION_WORDS,
    )

    trackers: tuple[str, ...] = _setting(
        (),
        "names",
        "Where losses and metrics are sent beside the run's own files; each needs its package.",
        choices=TRACKERS,
        is_bookkeeping=True,
    )
    tracker_project: str = _setting(
        "luthier",
        "text",
        "Project or experiment that trackers file the run under.",
        is_bookkeeping=True,
    )

    @classmethod
    def from_mapping(
        cls, given: Mapping[str, object], *, defaults: TrainingOptions | None = None
    ) -> TrainingOptions:
        """Options from names and values, as a YAML file, a request or keyword arguments give them.

        Names in other systems are accepted (``lr``, ``random_seed`` …). A None value takes the
        default. Nothing but the names is checked.

        Args:
            given: Name to value.
            defaults: What is not given; the class's defaults if None.

        Returns:
            The options, unchecked.

        Raises:
            UnknownKeyError: For a name that no option has, with the nearest known one.
            InvalidInputError: If an option is given twice, under two of its names.
        """
        values: dict[str, Any] = {}
        spelled: dict[str, str] = {}
        for name, value in given.items():
            option = TRAINING_OPTION_ALIASES.get(name, name)
            if option not in TRAINING_OPTION_NAMES:
                known = (*TRAINING_OPTION_NAMES, *TRAINING_OPTION_ALIASES)
                raise UnknownKeyError(
                    f"unknown training option {name[:80]!r}{did_you_mean(name[:80], known)}"
                )
            if value is None:
                continue
            if option in spelled:
                raise InvalidInputError(
                    f"'{name}' and '{spelled[option]}' are the same option; give one of them"
                )
            spelled[option] = name
            values[option] = _as_option(option, value)
        return dataclasses.replace(defaults or cls(), **values)

    def validate(self, limits: TrainingLimits) -> None:
        """Refuse options that cannot be meant; changes nothing.

        Args:
            limits: The server's caps.

        Raises:
            InvalidInputError: For a value of the wrong type, not finite, or out of range; the
                message names the option, the value and the limit.
        """
        for field in dataclasses.fields(self):
            setting: Setting = field.metadata["setting"]
            setting.check(field.name, getattr(self, field.name), limits)
        warm_ups = [
            f"{name!r} ({getattr(self, name)})"
            for name in ("warmup_steps", "warmup_ratio", "warmup_epochs")
            if getattr(self, name)
        ]
        if not self.metrics:
            raise InvalidInputError("'metrics' must name at least one")
        if "ai_judge" in self.metrics:
            judge_template(self.judge_template)
            if not self.judge_model:
                raise InvalidInputError("'judge_model' must be given with the metric ai_judge")
        if len(warm_ups) > 1:
            raise InvalidInputError(f"{' and '.join(warm_ups)} say the same thing; give one")

    @property
    def is_device_given(self) -> bool:
        """False where the device is to be chosen for the caller."""
        return self.device not in (None, "", DETECT_DEVICE)


TRAINING_OPTION_NAMES = tuple(field.name for field in dataclasses.fields(TrainingOptions))
#: Name in another system -> our option.
TRAINING_OPTION_ALIASES: Mapping[str, str] = {
    alias: field.name
    for field in dataclasses.fields(TrainingOptions)
    for alias in field.metadata["setting"].aliases
}


def _as_option(name: str, value: object) -> object:
    """A list as a tuple; one text where a list of names is wanted as a list of one."""
    if isinstance(value, list):
        return tuple(value)
    (field,) = (field for field in dataclasses.fields(TrainingOptions) if field.name == name)
    is_one_name = field.metadata["setting"].kind == "names" and isinstance(value, str)
    return (value,) if is_one_name else value


PROMPT_TUNING_DEFAULTS = TrainingOptions()
#: caikit-nlp's ``TextGeneration.train``.
FULL_FINE_TUNING_DEFAULTS = TrainingOptions(num_epochs=5, learning_rate=2e-5)
