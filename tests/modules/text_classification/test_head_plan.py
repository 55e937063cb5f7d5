"""What is refused before any weight is read."""

import pytest

from luthier.errors import (
    InvalidInputError,
    NotSupportedError,
    TrainingDataError,
    UnknownKeyError,
    VerbalizerError,
)
from luthier.modules import HeadTuning

ROWS = [{"text": "see you", "labels": ["ham"]}, {"text": "win", "labels": ["spam"]}]


def plan(**arguments):
    return HeadTuning.plan_train(**{"base_model": "tiny-causal", "train_stream": ROWS, **arguments})


def test_labels_are_those_of_the_data_in_order_of_the_alphabet():
    made = plan(train_stream=[ROWS[1], ROWS[0]], labels=[])
    assert made.labels == ("ham", "spam")
    assert made.lora.rank == 8
    assert made.options.metrics == ("loss", "accuracy", "macro_f1")


def test_labels_of_held_out_rows_count_too():
    made = plan(training_options={"validation_size": 0.5})
    assert (len(made.records), len(made.validation_records)) == (1, 1)
    assert made.labels == ("ham", "spam")


def test_names_in_texts_that_are_classified_stay():
    with pytest.raises(InvalidInputError, match="'personalize' is 'True'; a classification"):
        plan(training_options={"personalize": True})


def test_named_labels_keep_their_order_and_a_head_may_stand_alone():
    made = plan(labels=["spam", "ham", "other"], use_lora=False)
    assert made.labels == ("spam", "ham", "other")
    assert made.lora is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"base_model": "tiny-seq2seq"}, NotSupportedError, "'tiny-seq2seq' is seq2seq"),
        ({"train_stream": ROWS[:1]}, TrainingDataError, "all 1 rows .* have label 'ham'"),
        (
            {"train_stream": [*ROWS, {"text": "x", "labels": ["a", "b"]}]},
            TrainingDataError,
            "train_stream row 3 has 2 labels",
        ),
        (
            {"train_stream": [*ROWS, {"messages": [{"role": "user", "content": "x"},
             {"role": "assistant", "content": "ham"}]}]},
            TrainingDataError,
            "train_stream row 3 is a conversation",
        ),
        (
            {"labels": ["ham", "sp\ud83d"]},
            InvalidInputError,
            "'label 2' is no valid text: half of a surrogate pair at character 2",
        ),
        (
            {"train_stream": [*ROWS, {"text": "x", "labels": ["\ud83d"]}]},
            InvalidInputError,
            "'label 3' is no valid text",
        ),
        (
            {"labels": ["ham", "spma"]},
            TrainingDataError,
            "train_stream row 2 has label 'spam'.*did you mean 'spma'",
        ),
        (
            {"val_stream": [{"text": "x", "labels": ["new"]}]},
            TrainingDataError,
            "val_stream row 1 has label 'new', which is none of 'ham', 'spam'",
        ),
        (
            {"labels": ["ham", "x"], "train_stream": [*ROWS, *ROWS],
             "training_options": {"validation_size": 0.5}},
            TrainingDataError,
            "train_stream, the row 'win' has label 'spam'",
        ),
        (
            {"val_stream": [{"text": "t" * 90, "labels": ["new"]}] * 30,
             "training_options": {"data_sample": 0.5}},
            TrainingDataError,
            f"val_stream, the row '{'t' * 60}' has label 'new'",
        ),
        ({"labels": ["ham", "ham"]}, InvalidInputError, "'ham' stands twice"),
        ({"labels": ["ham", " "]}, InvalidInputError, "label 2 must be a name"),
        ({"labels": "ham"}, InvalidInputError, "'labels' must be a list"),
        ({"use_lora": "no"}, InvalidInputError, "'use_lora' must be true or false"),
        ({"use_lora": 0}, InvalidInputError, "'use_lora' must be true or false, got 0"),
        ({"use_lora": False, "rank": 4}, InvalidInputError, "'use_lora' is false"),
        ({"rank": 0}, InvalidInputError, "'rank' must be at least 1"),
        ({"initialisation": "loftq"}, NotSupportedError, "cannot start as 'loftq'"),
        ({"initialisation": "eva"}, NotSupportedError, "cannot start as 'eva'"),
        ({"rankk": 3}, UnknownKeyError, "'rankk', did you mean 'rank'"),
        ({"metrics": ["bleu"]}, InvalidInputError, "'bleu', which compares generated text"),
        ({"verbalizer": "{{input}} {{output}}"}, VerbalizerError, "output"),
        (
            {"training_options": {"prompt_format": "markers"}},
            InvalidInputError,
            "'prompt_format' is 'markers'",
        ),
        (
            {"training_options": {"chat_template": "{{ messages }}"}},
            InvalidInputError,
            "'chat_template' is",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        plan(**arguments)


def test_the_operator_limits_how_many_classes_a_request_may_ask_for(configured):
    configured(TRAINING_LIMITS_MAX_CLASSES="2")
    labels = ["ham", "spam", "other"]
    assert plan(labels=labels).labels == tuple(labels), "whose machine it is may ask for more"
    with pytest.raises(InvalidInputError, match="'labels' has 3 names, at most 2 are allowed"):
        plan(labels=labels, from_request=True)
