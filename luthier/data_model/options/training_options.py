"""The hyperparameters of a training, spelled once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from luthier.data_model.judge_prompt import judge_template
from luthier.data_model.options.limits import TrainingLimits
from luthier.data_model.options.quantisation import NONE, QUANTISATIONS
from luthier.data_model.options.reading import NamedOptions, option_aliases, option_names
from luthier.data_model.options.setting import Setting, option
from luthier.errors import InvalidInputError

MAX_SEED = 2**63 - 1
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
    "accuracy",
    "macro_f1",
    "bleu",
    "rouge1",
    "rouge2",
    "rougeL",
    "ai_judge",
)
TRACKERS = ("tensorboard", "mlflow", "wandb", "trackio")
SAVE_CHECKPOINT_WORDS = ("last", "resumable", "best", "each_evaluation", "never")


@dataclass(frozen=True)
class TrainingOptions(NamedOptions):
    """Every hyperparameter of the loop. Defaults are those of prompt tuning.

    Building one checks nothing; ``validate`` does. The fields' meaning is in their ``Setting``.
    """

    called = "training option"

    num_epochs: int = option(
        20,
        "int",
        "Passes over the training data; 0 trains nothing and keeps the start.",
        minimum=0,
        limit="max_epochs",
        aliases=("epochs", "n_epochs", "num_train_epochs"),
    )
    learning_rate: float = option(
        0.3,
        "number",
        "Step size of the optimizer at the schedule's peak.",
        above=0,
        maximum=100,
        aliases=("lr",),
    )
    batch_size: int = option(
        8,
        "int",
        "Rows that go through the model at once.",
        minimum=1,
        limit="max_batch_size",
        aliases=("per_device_train_batch_size", "train_batch_size"),
    )
    accumulate_steps: int = option(
        32,
        "int",
        "Batches whose gradients make one update. k batches of b rows give the update of one "
        "batch of k·b rows.",
        minimum=1,
        limit="max_accumulate_steps",
        aliases=("gradient_accumulation_steps", "grad_accumulation"),
    )
    max_source_length: int = option(
        256,
        "int",
        "Tokens kept of the verbalized input, from its start.",
        minimum=1,
        limit="max_source_length",
    )
    max_target_length: int = option(
        128,
        "int",
        "Tokens kept of the output, from its start; the end-of-sequence token comes on top.",
        minimum=1,
        limit="max_target_length",
    )
    seed: int = option(
        73,
        "int",
        "Makes order and random starts repeatable; -1 draws one, which the result reports.",
        minimum=-1,
        maximum=MAX_SEED,
        aliases=("random_seed",),
    )
    verbalizer: str = option(
        "{{input}}",
        "text",
        "Template from record fields to the text that the model reads.",
    )
    start_from: str | None = option(
        None,
        "text",
        "Earlier result that adapters start from instead of fresh numbers: a saved model, PEFT's "
        "folder or a checkpoint; in a request, the id of a tuned model. The optimizer begins anew.",
        is_optional=True,
        aliases=("trained_artifact",),
    )
    pretrained_weights: str | None = option(
        None,
        "text",
        "Weights that full fine-tuning starts from in place of the base model's: safetensors, a "
        "checkpoint's parameters, or what torch.save wrote, which is read without unpickling; or "
        "the folder of a whole model. In a request, the id of a tuned model, or a name below "
        "base_models_dir. What it lacks stays the base model's.",
        is_optional=True,
    )
    torch_dtype: str | None = option(
        None,
        "choice",
        "Number format of the base model; none takes the server's.",
        choices=TORCH_DTYPES,
        is_optional=True,
        aliases=("dtype",),
        is_bookkeeping=True,
    )
    quantization: str = option(
        NONE,
        "choice",
        "How the frozen weights of the base model are held: as they are, in 8 bits, or in 4 bits "
        "(nf4 or fp4, with quantised scales): QLoRA. For methods that leave them as they are.",
        choices=QUANTISATIONS,
    )
    serve_quantized: bool = option(
        False,
        "bool",
        "Whether the saved model asks for a base model that is quantised like this when it is "
        "loaded, too; else it runs on the base model as it is.",
        is_bookkeeping=True,
    )
    device: str | None = option(
        None,
        "text",
        "Where to train: cpu, cuda, cuda:1; none chooses.",
        is_optional=True,
        is_bookkeeping=True,
    )
    silence_progress_bars: bool = option(
        True,
        "bool",
        "False shows a progress bar on stderr.",
        aliases=("disable_tqdm",),
        is_bookkeeping=True,
    )
    schedule: str = option(
        "linear",
        "choice",
        "How the learning rate falls after the warm-up, per update: linear and cosine to 0.",
        choices=SCHEDULES,
        aliases=("lr_scheduler_type",),
    )
    warmup_steps: int = option(
        0,
        "int",
        "Updates over which the learning rate rises from 0.",
        minimum=0,
        maximum=10**9,
    )
    warmup_ratio: float = option(
        0.0,
        "number",
        "Warm-up as a share of all updates; not together with another warm-up.",
        minimum=0,
        maximum=1,
    )
    weight_decay: float = option(
        0.01,
        "number",
        "Decay of weights; norms, biases and other vectors do not decay. Decoupled for AdamW, else "
        "added to the gradient.",
        minimum=0,
        maximum=10,
    )
    adam_beta1: float = option(
        0.9,
        "number",
        "Adam and AdamW: decay of the mean of gradients.",
        minimum=0,
        maximum=0.999999,
    )
    adam_beta2: float = option(
        0.999,
        "number",
        "Adam and AdamW: decay of the mean of squared gradients.",
        minimum=0,
        maximum=0.99999999,
    )
    adam_epsilon: float = option(
        1e-8, "number", "Keeps the division finite; SGD has none.", above=0, maximum=1
    )
    max_grad_norm: float = option(
        0.0,
        "number",
        "Gradients longer than this (Euclidean, all parameters) are scaled down to it; 0 is off.",
        minimum=0,
        maximum=1e9,
        aliases=("gradient_clip",),
    )
    gradient_checkpointing: bool = option(
        False,
        "bool",
        "Compute activations twice instead of keeping them: less memory, about 1.4 times the time.",
    )
    group_by_length: bool = option(
        True,
        "bool",
        "Batch rows of like length, so that little is padded; False takes them in random order.",
    )
    base_dropout: bool = option(
        False,
        "bool",
        "Keep the base model's own dropout active while training.",
    )
    intermediate_dropout: float = option(
        0.0,
        "number",
        "Share that is dropped while training wherever the base model can drop something, "
        "attention included, whatever its config says there; 0 leaves that to base_dropout.",
        minimum=0,
        maximum=0.5,
    )
    save_checkpoint: str = option(
        "last",
        "choice",
        "When a training that has a folder saves its state: at evaluation points and the ends of "
        "epochs as often as checkpoint_time_share allows, and every save_every_seconds (last), "
        "likewise but not at the end of all (resumable; a server's default, whose jobs drop their "
        "folder then), when the first metric improved (best; the result then is what was best), at "
        "evaluation points (each_evaluation), or never.",
        choices=SAVE_CHECKPOINT_WORDS,
    )
    save_every_seconds: float = option(
        300.0,
        "number",
        "With save_checkpoint last or resumable: work that a killed training loses at most, in "
        "seconds, or what checkpoint_time_share makes of it where checkpoints take longer; 0 saves "
        "at evaluation points and the ends of epochs only.",
        minimum=0.0,
        maximum=10**9,
        is_bookkeeping=True,
    )
    checkpoint_time_share: float = option(
        0.05,
        "number",
        "With save_checkpoint last or resumable: largest share of the time since the last "
        "checkpoint that the next one may take, measured as it goes; 1 saves at every evaluation "
        "point and end of an epoch. The state at the end of all does not ask.",
        minimum=1e-6,
        maximum=1.0,
        is_bookkeeping=True,
    )
    save_every_steps: int = option(
        0,
        "int",
        "Updates between further checkpoints; 0 saves none but those of save_checkpoint.",
        minimum=0,
        maximum=10**9,
        aliases=("save_steps",),
        is_bookkeeping=True,
    )
    keep_checkpoints: int | None = option(
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

    optimizer: str = option(
        "adamw",
        "choice",
        "How gradients become updates. sgd has Nesterov's momentum, rmsprop a smoothing of 0.9; "
        "adamw_8bit needs a GPU and bitsandbytes.",
        choices=OPTIMIZERS,
        aliases=("optim",),
    )
    momentum: float = option(
        0.9, "number", "Of sgd and rmsprop; the others have none.", minimum=0, maximum=0.999999
    )
    min_learning_rate_ratio: float = option(
        0.0,
        "number",
        "Share of the learning rate that linear and cosine never fall below.",
        minimum=0,
        maximum=1,
    )
    warmup_epochs: float = option(
        0.0,
        "number",
        "Warm-up in passes over the data, fractions allowed; not together with another warm-up.",
        minimum=0,
        maximum=1000,
    )
    loss_function: str = option(
        "token_average",
        "choice",
        "Whether each label token of an update weighs the same, or each row.",
        choices=LOSS_FUNCTIONS,
    )
    freeze_layers: tuple[str, ...] = option(
        (),
        "names",
        "Parts of parameter names; what has one of them in its name is not learned.",
    )
    differential_learning_rate_layers: tuple[str, ...] = option(
        (),
        "names",
        "Parts of parameter names that get differential_learning_rate.",
    )
    differential_learning_rate: float = option(
        1e-5,
        "number",
        "Peak step size of the layers named there; same schedule.",
        above=0,
        maximum=100,
    )
    evaluation_epochs: float = option(
        1.0,
        "number",
        "Passes over the data between two evaluations, fractions allowed; there is always one at "
        "the end.",
        above=0,
        maximum=1000,
    )
    evaluate_before_training: bool = option(
        False, "bool", "Evaluate once before the first update, too."
    )
    metrics: tuple[str, ...] = option(
        ("loss",),
        "names",
        "What is measured on the validation data. The first one says which evaluation is best.",
        choices=METRIC_WORDS,
    )
    max_generated_tokens: int = option(
        256,
        "int",
        "Tokens that are generated per validation row, greedily, for metrics that compare text.",
        minimum=1,
        limit="max_target_length",
        aliases=("generation_max_length",),
    )
    judge_model: str = option(
        "",
        "text",
        "Model that the metric ai_judge asks; the server's settings say where (judge.base_url).",
    )
    judge_template: str = option(
        "general",
        "text",
        "What ai_judge asks: general, or a text with {{answer}} and perhaps {{prompt}} and "
        "{{reference}} that asks for a line SCORE: with a number from 0 to 1.",
    )
    early_stopping_patience: int = option(
        0,
        "int",
        "Evaluations without a better first metric after which the training ends; 0 is off.",
        minimum=0,
        maximum=10**6,
    )

    num_processes: int = option(
        1,
        "int",
        "Processes that share the rows of each update, a GPU each where there are some; they learn "
        "what one would. Under torchrun its own number counts.",
        minimum=1,
        limit="max_processes",
        is_bookkeeping=True,
    )
    use_fsdp: bool = option(
        False,
        "bool",
        "Several processes keep a share each of what full fine-tuning learns, its gradients and "
        "the optimizer's state, and borrow the others' layer by layer. Rows are padded then.",
        is_bookkeeping=True,
    )
    compile_model: bool = option(
        False,
        "bool",
        "Compile the model's layers: pays for itself in long trainings on a GPU. Rows are padded "
        "then, because each packed batch would be compiled anew.",
        is_bookkeeping=True,
    )
    mixed_precision: str = option(
        "off",
        "choice",
        "Number format that layers compute in where rounding harms little, while weights stay as "
        "they are; float16 scales the loss. On a CPU, one that is not measured to be faster is "
        "off.",
        choices=MIXED_PRECISION_WORDS,
    )

    trackers: tuple[str, ...] = option(
        (),
        "names",
        "Where losses and metrics are sent beside the run's own files; each needs its package.",
        choices=TRACKERS,
        is_bookkeeping=True,
    )
    tracker_project: str = option(
        "luthier",
        "text",
        "Project or experiment that trackers file the run under.",
        is_bookkeeping=True,
    )

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


TRAINING_OPTION_NAMES = option_names(TrainingOptions)
#: Name in another system -> our option.
TRAINING_OPTION_ALIASES = option_aliases(TrainingOptions)


PROMPT_TUNING_DEFAULTS = TrainingOptions()
#: For P-tuning and prefix tuning: what moves one virtual token by 0.3 breaks a network.
NETWORK_PROMPT_DEFAULTS = dataclasses.replace(PROMPT_TUNING_DEFAULTS, learning_rate=0.01)
#: caikit-nlp's ``TextGeneration.train``.
FULL_FINE_TUNING_DEFAULTS = TrainingOptions(num_epochs=5, learning_rate=2e-5)
