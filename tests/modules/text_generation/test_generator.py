"""What comes back from a request: the peer's faults of running are right here."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from luthier.errors import ConflictError, InvalidInputError
from luthier.inference.registry import engine_for
from luthier.modules import TextGeneration
from luthier.modules.text_generation.generator import TextGenerator

TEXTS = [f"message {number} about {word}" for number in range(5) for word in ("pay", "box")]


def text_of(model, text, **sampling):
    return model.run(text, preserve_input_text=False, **sampling).generated_text


def test_a_result_says_what_happened(tuned):
    result = tuned.run("hello", max_new_tokens=6)
    prompt = tuned.run_tokenizer("Text: hello Label: ").token_count
    assert result.generated_tokens == 6
    assert result.input_token_count == prompt
    assert result.finish_reason.name == "MAX_TOKENS"
    assert (result.producer_id.name, result.producer_id.version) == ("Peft generation", "0.1.0")
    assert result.seed is None
    assert result.tokens is None
    assert result.input_tokens is None


def test_the_prompt_comes_back_before_a_causal_models_text(tuned):
    kept = tuned.run("hello", max_new_tokens=6).generated_text
    cut = text_of(tuned, "hello", max_new_tokens=6)
    is_causal = tuned.base_model.kind == "causal"
    assert kept == ("Text: hello Label: " if is_causal else "") + cut
    assert cut


@pytest.mark.parametrize("preserve", [True, False])
def test_the_stream_joins_to_the_text_with_the_same_parameters(tuned, preserve):
    sampling = {"max_new_tokens": 12, "preserve_input_text": preserve}
    pieces = list(tuned.run_stream_out("Zoë ☕", **sampling))
    assert "".join(piece.generated_text for piece in pieces) == (
        tuned.run("Zoë ☕", **sampling).generated_text
    )
    assert all(isinstance(piece.generated_text, str) for piece in pieces)


def test_a_stream_counts_and_ends_once(tuned):
    pieces = list(tuned.run_stream_out("hello", max_new_tokens=12))
    assert len(pieces) > 3
    counts = [piece.details.generated_tokens for piece in pieces]
    assert counts == sorted(counts)
    assert counts[-1] == 12
    reasons = [piece.details.finish_reason.name for piece in pieces]
    assert reasons == ["NOT_FINISHED"] * (len(pieces) - 1) + ["MAX_TOKENS"]
    assert len({piece.details.input_token_count for piece in pieces}) == 1


def test_a_stream_gives_text_before_it_ends(tuned):
    """The engine is stopped by hand after the first pieces, so they cannot come from the end."""
    stream = iter(tuned.run_stream_out("hello", max_new_tokens=900, min_new_tokens=900))
    texts = [next(stream).generated_text for _ in range(5)]
    running = engine_for(tuned.base_model).status().num_running
    stream.close()
    assert "".join(texts)
    assert running == 1


def test_dropping_a_stream_frees_its_row(tuned):
    stream = iter(tuned.run_stream_out("hello", max_new_tokens=900, min_new_tokens=900))
    next(stream)
    stream.close()
    deadline = time.monotonic() + 60
    while engine_for(tuned.base_model).status().num_running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine_for(tuned.base_model).status().num_running == 0


def test_eighty_requests_from_eight_threads_get_what_each_gets_alone(tuned):
    bare = TextGeneration.bootstrap(tuned.base_model)
    models = {"tuned": tuned, "bare": bare}
    alone = {
        (name, text): text_of(model, text, max_new_tokens=8)
        for name, model in models.items()
        for text in TEXTS
    }
    assert alone["tuned", TEXTS[0]] != alone["bare", TEXTS[0]]
    requests = [(name, text) for text in TEXTS for name in models] * 4
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = list(
            pool.map(lambda key: text_of(models[key[0]], key[1], max_new_tokens=8), requests)
        )
    assert len(requests) == 80
    assert answers == [alone[key] for key in requests]


def test_sampling_with_a_seed_is_repeatable_and_reported(tuned):
    sampling = {"decoding_method": "SAMPLING", "max_new_tokens": 12, "temperature": 2}
    first = tuned.run("hello", seed=7, **sampling)
    again = tuned.run("hello", seed=7, **sampling)
    other = tuned.run("hello", seed=8, **sampling)
    assert first.generated_text == again.generated_text != other.generated_text
    assert first.seed == 7
    drawn = tuned.run("hello", **sampling)
    repeated = tuned.run("hello", seed=drawn.seed, **sampling)
    assert repeated.generated_text == drawn.generated_text


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_stop_sequences_stops_at_the_first_match(tuned, count):
    whole = text_of(tuned, "hello", max_new_tokens=20)
    stop = whole[2:5]
    stops = [stop, "never-1", "never-2"][:count]
    result = tuned.run("hello", max_new_tokens=20, preserve_input_text=False, stop_sequences=stops)
    assert result.finish_reason.name == "STOP_SEQUENCE"
    assert result.generated_text == whole[: whole.index(stop) + len(stop)]
    without = text_of(
        tuned, "hello", max_new_tokens=20, stop_sequences=stops, include_stop_sequence=False
    )
    assert without == whole[: whole.index(stop)]


def test_several_answers_are_those_of_the_seeds_that_they_report(tuned):
    sampling = {"decoding_method": "SAMPLING", "temperature": 2.0, "max_new_tokens": 8}
    results = tuned.run_many("hello", 3, seed=5, **sampling)
    assert [result.seed for result in results] == [5, 6, 7]
    for result in results:
        again = tuned.run("hello", seed=result.seed, **sampling)
        assert again.generated_text == result.generated_text
    assert len({result.generated_text for result in results}) == 3
    drawn = asyncio.run(tuned.arun_many("hello", 2, **sampling))
    assert drawn[1].seed == drawn[0].seed + 1
    assert tuned.run_many("hello", 1)[0].generated_text == tuned.run("hello").generated_text


def test_several_answers_that_would_be_the_same_or_too_many_are_refused(tuned):
    with pytest.raises(InvalidInputError, match="'n' is 2, but GREEDY gives one answer only"):
        tuned.run_many("hello", 2)
    with pytest.raises(InvalidInputError, match="'n' must be at most 16, got 17"):
        tuned.run_many("hello", 17, decoding_method="SAMPLING")
    assert engine_for(tuned.base_model).status().num_running == 0


def test_beams_are_offered_like_any_parameter(tuned):
    greedy = text_of(tuned, "hello", max_new_tokens=8)
    beams = text_of(tuned, "hello", max_new_tokens=8, num_beams=4)
    assert beams
    assert beams != greedy
    streamed = tuned.run_stream_out(
        "hello", max_new_tokens=8, num_beams=4, preserve_input_text=False
    )
    assert "".join(piece.generated_text for piece in streamed) == beams


def test_a_stop_sequence_in_the_prompt_stops_nothing(tuned):
    result = tuned.run("hello", max_new_tokens=5, stop_sequences=["hello"])
    assert result.generated_tokens == 5


def test_running_out_of_time_is_reported(tuned):
    result = tuned.run("hello", max_new_tokens=1000, min_new_tokens=1000, max_time=0.05)
    assert result.finish_reason.name == "TIME_LIMIT"
    assert 0 < result.generated_tokens < 1000


def test_tokens_are_reported_where_they_are_asked_for(tuned):
    result = tuned.run(
        "hello",
        max_new_tokens=6,
        input_tokens=True,
        generated_tokens=True,
        token_logprobs=True,
        token_ranks=True,
    )
    assert len(result.tokens) == 6
    assert [token.rank for token in result.tokens] == [1] * 6  # greedy takes the likeliest
    assert all(token.logprob < 0 for token in result.tokens)
    assert len(result.input_tokens) == result.input_token_count
    assert result.input_tokens[0].logprob is None
    if tuned.base_model.kind == "causal":
        assert all(token.logprob < 0 and token.rank >= 1 for token in result.input_tokens[1:])


def test_log_probabilities_are_the_base_models(here):
    """Against one forward pass of transformers over prompt and answer."""
    bare = TextGeneration.bootstrap("tiny-causal")
    result = bare.run("hello box", max_new_tokens=5, generated_tokens=True, token_logprobs=True)
    base = bare.base_model
    prompt = base.tokenizer("hello box")["input_ids"]
    answer = base.tokenizer.convert_tokens_to_ids([token.text for token in result.tokens])
    with torch.no_grad():
        logits = base.model(torch.tensor([[*prompt, *answer]])).logits[0]
    expected = logits.log_softmax(-1)[
        torch.arange(len(prompt) - 1, len(prompt) + 4), torch.tensor(answer)
    ]
    assert [token.logprob for token in result.tokens] == pytest.approx(expected.tolist(), abs=1e-4)


def test_log_probabilities_alone_mean_those_of_the_generated_tokens(tuned):
    result = tuned.run("hello", max_new_tokens=3, token_logprobs=True)
    assert len(result.tokens) == 3
    assert result.tokens[0].rank is None
    assert result.input_tokens is None


def test_a_stream_reports_tokens_as_they_come(tuned):
    pieces = list(
        tuned.run_stream_out("hello", max_new_tokens=6, generated_tokens=True, input_tokens=True)
    )
    assert sum(len(piece.tokens or ()) for piece in pieces) == 6
    reported = [piece.input_tokens for piece in pieces if piece.input_tokens]
    assert len(reported) == 1
    assert len(reported[0]) == pieces[-1].details.input_token_count


def test_truncation_keeps_the_first_tokens(tuned):
    result = tuned.run("hello", max_new_tokens=3, truncate_input_tokens=4)
    assert result.input_token_count == 4
    if tuned.base_model.kind == "causal":
        assert "Text: hello Label: ".startswith(result.generated_text[:3])


def test_the_virtual_tokens_make_a_difference(tuned):
    bare = TextGeneration.bootstrap(tuned.base_model)
    verbalized = "Text: hello Label: "
    assert text_of(bare, verbalized, max_new_tokens=10) != text_of(
        tuned, "hello", max_new_tokens=10
    )


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (
            {"max_new_tokens": 3, "min_new_tokens": 5},
            "Max new tokens needs to be bigger than min new tokens",
        ),
        ({"decoding_method": "BEAM"}, "not in valid decoding methods"),
        ({"top_p": float("nan"), "decoding_method": "SAMPLING"}, "top_p"),
        ({"max_new_tokens": 10**9}, "at most 4096"),
    ],
)
@pytest.mark.parametrize("method", ["run", "run_stream_out"])
def test_bad_parameters_are_refused_before_the_engine_sees_them(tuned, method, sampling, message):
    with pytest.raises(InvalidInputError, match=message):
        getattr(tuned, method)("hello", **sampling)


@pytest.mark.parametrize("text", [None, 5, b"bytes", ["hello"]])
def test_a_text_that_is_none_is_refused(tuned, text):
    with pytest.raises(InvalidInputError, match="'text' must be a string"):
        tuned.run(text)
    with pytest.raises(InvalidInputError, match="'text' must be a string"):
        tuned.run_tokenizer(text)


def test_a_prompt_that_does_not_fit_is_refused_with_both_lengths(tuned, configured):
    configured(INFERENCE_LIMITS_MAX_PROMPT_TOKENS="12")
    model = TextGeneration.bootstrap(tuned.base_model)
    with pytest.raises(InvalidInputError, match=r"has \d+ tokens, at most 12 are allowed"):
        model.run("word " * 40)
    assert model.run("word " * 40, truncate_input_tokens=12, max_new_tokens=2).generated_text


def test_an_empty_text_is_answered(tuned):
    assert tuned.run("", max_new_tokens=3, min_new_tokens=3).generated_tokens == 3


def test_a_failing_request_does_not_disturb_the_next(tuned):
    before = tuned.run("hello", max_new_tokens=5).generated_text
    with pytest.raises(InvalidInputError):
        tuned.run("word " * 5000) if tuned.base_model.kind == "causal" else tuned.run(7)
    assert tuned.run("hello", max_new_tokens=5).generated_text == before


async def test_the_async_calls_give_the_same(tuned):
    expected = tuned.run("hello", max_new_tokens=8)
    result = await tuned.arun("hello", max_new_tokens=8)
    assert result.to_dict() == expected.to_dict()
    pieces = [piece async for piece in tuned.arun_stream_out("hello", max_new_tokens=8)]
    assert "".join(piece.generated_text for piece in pieces) == expected.generated_text
    tokens = await tuned.arun_tokenizer("hello " * 2000)
    assert tokens.token_count == tuned.run_tokenizer("hello " * 2000).token_count


async def test_many_async_requests_run_at_once(tuned):
    answers = await asyncio.gather(*(tuned.arun(text, max_new_tokens=4) for text in TEXTS))
    assert [answer.generated_text for answer in answers] == [
        tuned.run(text, max_new_tokens=4).generated_text for text in TEXTS
    ]


async def test_cancelling_a_task_frees_its_row(tuned):
    task = asyncio.create_task(tuned.arun("hello", max_new_tokens=900, min_new_tokens=900))
    engine = engine_for(tuned.base_model)
    while not engine.status().num_running:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    deadline = time.monotonic() + 60
    while engine.status().num_running and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert engine.status().num_running == 0


async def test_closing_an_async_stream_frees_its_row(tuned):
    stream = tuned.arun_stream_out("hello", max_new_tokens=900, min_new_tokens=900)
    await anext(stream)
    await anext(stream)
    await stream.aclose()
    engine = engine_for(tuned.base_model)
    deadline = time.monotonic() + 60
    while engine.status().num_running and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert engine.status().num_running == 0


def test_a_dropped_generator_gives_its_base_model_back(configured):
    own = configured()
    lease = own.base_models.acquire("tiny-causal", dtype="bfloat16")
    generator = TextGenerator(lease, producer_id=TextGeneration.PRODUCER_ID, environment=own)
    del generator
    deadline = time.monotonic() + 60
    while own.base_models.num_loaded and time.monotonic() < deadline:
        time.sleep(0.01)
    assert own.base_models.num_loaded == 0
    with pytest.raises(ConflictError):
        lease.base_model  # noqa: B018


def test_a_released_module_says_so(here):
    model = TextGeneration.bootstrap("tiny-causal")
    model.release()
    model.release()
    with pytest.raises(ConflictError):
        model.run("hello")
    assert threading.active_count() >= 1
