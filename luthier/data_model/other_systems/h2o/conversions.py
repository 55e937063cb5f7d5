"""How values of H2O LLM Studio become ours. Each converter gets the value and the whole table."""

from __future__ import annotations

from typing import Any

from luthier.data_model.options.quantisation import INT8, NF4
from luthier.data_model.options.run_options import FULL_FINE_TUNING, LORA
from luthier.data_model.other_systems.foreign_setting import Refusal, Unneeded, Values


def is_none(value: Any) -> bool:
    """Whether they mean that there is none."""
    return value in (None, "None", "")


def or_none(value: Any, values: Values) -> Any:
    """A column, or None."""
    return None if is_none(value) else value


def decoded_text(value: Any, values: Values) -> Any:
    """Their texts spell line ends as backslash and n."""
    if not isinstance(value, str):
        return value
    return value.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r")


def columns(value: Any, values: Values) -> Any:
    """Columns as a list; one may be given as a text."""
    if is_none(value):
        return []
    return [value] if isinstance(value, str) else value


def names(value: Any, values: Values) -> Any:
    """Names separated by commas; none means the default."""
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    return value or None


def method(value: Any, values: Values) -> Any:
    """Full fine-tuning is LoRA switched off."""
    return LORA if value else FULL_FINE_TUNING


def pretrained_weights(value: Any, values: Values) -> Any:
    """A file of weights; those of a LoRA hold the base model and the deltas in one."""
    if is_none(value):
        return None
    if values["training.lora"]:
        return Refusal(
            "with training.lora it holds the base model and the deltas in one; export the adapter "
            "there and name its folder as general.start_from"
        )
    return value


def model_name(value: Any, values: Values) -> Any:
    """A name that can be a folder's."""
    return str(value).replace("/", "-")


def validation_file(value: Any, values: Values) -> Any:
    """Only a custom strategy reads it."""
    is_custom = values["dataset.validation_strategy"] == "custom"
    return value if is_custom and not is_none(value) else ""


def id_column(value: Any, values: Values) -> Any:
    """Only parents refer to it."""
    return None if is_none(values["dataset.parent_id_column"]) else value


def only_last(value: Any, values: Values) -> Any:
    """It counts where prompts are masked."""
    return bool(value) and bool(values["dataset.mask_prompt_labels"])


def batches_per_update(value: Any, values: Values) -> Any:
    """Their batch size is per device; so many batches make the same update here."""
    count, gpus = values["training.grad_accumulation"], values["environment.gpus"]
    if not isinstance(count, int) or not isinstance(gpus, list | tuple):
        return count
    return count * max(1, len(gpus))


def mixed_precision(value: Any, values: Values) -> Any:
    """Their switch and their dtype are one option."""
    return str(values["environment.mixed_precision_dtype"]) if value else "off"


_LOSSES = {
    "TokenAveragedCrossEntropy": "token_average",
    "SampleAveragedCrossEntropy": "sample_average",
}


def loss(value: Any, values: Values) -> Any:
    """The two losses of supervised generation."""
    return _LOSSES.get(value) or Refusal(f"loss {value!r:.80} is not built yet")


#: Their words for quantised weights -> ours.
_QUANTISED = {"int4": NF4, "int8": INT8}


def dtype(value: Any, values: Values) -> Any:
    """Number formats; the quantised ones say nothing of what layers compute in."""
    return Unneeded("weights are quantised") if value in _QUANTISED else value


def quantization(value: Any, values: Values) -> Any:
    """The quantised ones among their number formats."""
    if value in _QUANTISED and not values["training.lora"]:
        return Refusal("quantised weights cannot be learned, which is refused there, too")
    return _QUANTISED.get(value) or Unneeded("a number format")


def quantile(value: Any, values: Values) -> Any:
    """0 keeps full length there, which costs time and changes nothing."""
    return 1.0 if value == 0 else value


def save_word(value: Any, values: Values) -> Any:
    """When to save, in our words."""
    return {"each_evaluation_epoch": "each_evaluation", "disable": "never"}.get(value, value)


def is_not_choosing(value: Any, values: Values) -> bool:
    """A metric matters to what is learned only where the best checkpoint is kept by it."""
    is_best = values["training.save_checkpoint"] == "best"
    return not is_best and not values.get("training.save_best_checkpoint")


_METRICS = {"BLEU": "bleu", "Perplexity": "row_perplexity"}


def metric(value: Any, values: Values) -> Any:
    """A metric that is computed here. A judge costs money and needs an endpoint, so it is asked
    only where it chooses the checkpoint."""
    if value in _METRICS:
        return ["loss", _METRICS[value]] if is_not_choosing(value, values) else [_METRICS[value]]
    if value == "GPT":
        if is_not_choosing(value, values):
            return Unneeded(
                "the validation loss is measured; prediction.metrics loss, ai_judge asks a judge"
            )
        return ["ai_judge"]
    return Refusal(f"metric {value!r:.80} is not built yet")


def judge_model(value: Any, values: Values) -> Any:
    """Counts where a judge is asked."""
    return value if values["prediction.metric"] == "GPT" else Unneeded("no judge is asked")


def judge_prompt(value: Any, values: Values) -> Any:
    """Of their prompts, the one that needs no other data than the row."""
    if value == "general":
        return value
    if values["prediction.metric"] != "GPT" or is_not_choosing(value, values):
        return Unneeded(f"the prompt {value!r:.80} is not offered, and no judge is asked")
    return Refusal(
        f"the prompt {value!r:.80} is not offered: it asks about other columns or questions than "
        "the rows; give the text of one as prediction.judge_template"
    )


def tracker(value: Any, values: Values) -> Any:
    """Where metrics are sent; files of ours always have them."""
    if is_none(value):
        return []
    return ["wandb"] if value == "W&B" else Unneeded(f"tracker {value!r:.80} is not offered")


def tracker_project(value: Any, values: Values) -> Any:
    """The project of the tracker that is used."""
    return value or Unneeded("our default")
