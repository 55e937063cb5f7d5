"""When a training looks at held-out rows, what it measures, and when that ends it."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.data_model.judge_prompt import judge_template
from luthier.data_model.options.setting import option
from luthier.errors import InvalidInputError

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


@dataclass(frozen=True)
class EvaluationOptions:
    """Evaluations: when, by which metrics, and what follows."""

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
    early_stopping_patience: int = option(
        0,
        "int",
        "Evaluations without a better first metric after which the training ends; 0 is off.",
        minimum=0,
        maximum=10**6,
    )
    metrics: tuple[str, ...] = option(
        ("loss",),
        "names",
        "What is measured on the validation data. The first one says which evaluation is best.",
        choices=METRIC_WORDS,
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
    max_generated_tokens: int = option(
        256,
        "int",
        "Tokens that are generated per validation row, greedily, for metrics that compare text.",
        minimum=1,
        limit="max_target_length",
        aliases=("generation_max_length",),
    )

    def require_measurable(self) -> None:
        """Refuse metrics that cannot be measured as they are asked for.

        Raises:
            InvalidInputError: If there is none, or the judge has no model or template.
        """
        if not self.metrics:
            raise InvalidInputError("'metrics' must name at least one")
        if "ai_judge" in self.metrics:
            judge_template(self.judge_template)
            if not self.judge_model:
                raise InvalidInputError("'judge_model' must be given with the metric ai_judge")
