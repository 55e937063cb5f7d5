import pytest

from luthier.client import answers
from luthier.client.results import JobState
from luthier.errors import LuthierError


@pytest.mark.parametrize("reason", ["EOS_TOKEN", 2])
def test_finish_reason_is_read_from_a_word_and_from_a_number(reason: object) -> None:
    result = answers.generated_text({"generated_text": "a", "finish_reason": reason})
    assert result.finish_reason == "EOS_TOKEN"


def test_generated_text_keeps_tokens_counts_and_seed() -> None:
    result = answers.generated_text(
        {
            "generated_text": "ok",
            "generated_tokens": "2",
            "finish_reason": "MAX_TOKENS",
            "input_token_count": 3,
            "seed": 2**64 - 1,
            "tokens": [{"text": "ok", "logprob": -0.5, "rank": 1}],
            "input_tokens": None,
        }
    )
    assert (result.generated_token_count, result.input_token_count) == (2, 3)
    assert result.seed == 2**64 - 1
    assert result.tokens[0].logprob == -0.5
    assert result.input_tokens == ()


def test_chunk_without_details_is_not_finished() -> None:
    assert answers.generated_chunk({"generated_text": "a"}).finish_reason == "NOT_FINISHED"


def test_chunk_reads_its_details() -> None:
    details = {"finish_reason": "STOP_SEQUENCE", "generated_tokens": 4, "input_token_count": 2}
    chunk = answers.generated_chunk({"generated_text": "", "details": details})
    assert (chunk.finish_reason, chunk.generated_token_count) == ("STOP_SEQUENCE", 4)


@pytest.mark.parametrize("state", ["COMPLETED", 3])
def test_state_is_read_from_a_word_and_from_a_number(state: object) -> None:
    status = answers.training_status({"training_id": "t", "state": state})
    assert status.state is JobState.COMPLETED


def test_unknown_state_is_an_error_of_the_server() -> None:
    with pytest.raises(LuthierError, match="unknown training state 'DREAMING'"):
        answers.training_status({"training_id": "t", "state": "DREAMING"})


def test_tokenization_counts_and_shows_tokens() -> None:
    result = answers.tokenization({"token_count": 2, "results": [{"text": "a"}, {"text": "b"}]})
    assert (result.token_count, result.tokens) == (2, ("a", "b"))


def test_metric_keeps_what_it_does_not_know() -> None:
    line = {"name": "loss", "step": 2, "num_steps": 9, "value": 0.5, "learning_rate": 0.1}
    (metric,) = answers.training_metrics({"metrics": [line]})
    assert (metric.name, metric.step, metric.num_steps, metric.value) == ("loss", 2, 9, 0.5)
    assert metric.fields["learning_rate"] == 0.1


def test_list_where_an_object_was_due_is_an_error() -> None:
    with pytest.raises(LuthierError, match="list where an object was due"):
        answers.model_list([])


def test_classes_are_read_in_their_order() -> None:
    body = {"results": [{"label": "spam", "score": 0.9}, {"label": "ham", "score": 0.1}]}
    assert [(each.label, each.score) for each in answers.label_scores(body)] == [
        ("spam", 0.9),
        ("ham", 0.1),
    ]
    assert answers.label_scores({}) == ()
