import io
import json

import httpx
from fixtures.fake_api import events

STREAM = "POST /api/v1/task/server-streaming-text-generation"
MANY = "POST /api/v1/task/text-generations"
UNARY = "POST /api/v1/task/text-generation"
PIECES = events({"generated_text": "de"}, {"generated_text": "livery"})


def test_generate_prints_the_stream(run, serve) -> None:
    url, api = serve({STREAM: PIECES})
    result = run("generate", "intents", "where is it?", "--max-new-tokens", 5, "--url", url)
    assert (result.code, result.out) == (0, "delivery\n")
    assert api.last_body == {
        "model_id": "intents",
        "inputs": "where is it?",
        "parameters": {"max_new_tokens": 5, "preserve_input_text": False},
    }


def test_options_become_sampling_parameters(run, serve) -> None:
    url, api = serve({STREAM: PIECES})
    run(
        "generate", "m", "x", "--sample", "--temperature", 0.7, "--seed", 5, "--stop", ".",
        "--stop", "!", "--url", url,
    )  # fmt: skip
    assert api.last_body["parameters"] == {
        "preserve_input_text": False,
        "decoding_method": "SAMPLING",
        "temperature": 0.7,
        "seed": 5,
        "stop_sequences": [".", "!"],
    }


def test_beams_and_their_company_become_sampling_parameters(run, serve) -> None:
    url, api = serve({STREAM: PIECES})
    run(
        "generate", "m", "x", "--num-beams", 4, "--length-penalty", 0.5, "--early-stopping",
        "--no-repeat-ngram-size", 3, "--min-p", 0.1, "--typical-p", 0.9, "--url", url,
    )  # fmt: skip
    assert api.last_body["parameters"] == {
        "preserve_input_text": False,
        "min_p": 0.1,
        "typical_p": 0.9,
        "no_repeat_ngram_size": 3,
        "num_beams": 4,
        "length_penalty": 0.5,
        "early_stopping": True,
    }


def test_several_answers_are_printed_with_their_seeds(run, serve) -> None:
    answer = {"results": [{"generated_text": "a", "seed": 4}, {"generated_text": "b", "seed": 5}]}
    url, api = serve({MANY: httpx.Response(200, json=answer)})
    result = run("generate", "m", "x", "--sample", "--n", 2, "--url", url)
    assert result.out == "--- 1 of 2, seed 4\na\n--- 2 of 2, seed 5\nb\n"
    assert api.last_body["n"] == 2
    as_json = run("generate", "m", "x", "--sample", "--n", 2, "--json", "--url", url)
    assert [json.loads(line)["text"] for line in as_json.out.splitlines()] == ["a", "b"]


def test_dash_reads_standard_input(run, serve, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    url, api = serve({STREAM: PIECES})
    run("generate", "m", "-", "--url", url)
    assert api.last_body["inputs"] == "from a pipe"


def test_json_is_the_whole_result_without_the_prompt(run, serve) -> None:
    answer = {"generated_text": "größe", "finish_reason": "EOS_TOKEN", "generated_tokens": 2}
    url, api = serve({UNARY: httpx.Response(200, json=answer)})
    result = json.loads(run("generate", "m", "x", "--json", "--url", url).out)
    assert (result["text"], result["generated_token_count"]) == ("größe", 2)
    assert api.last_body["parameters"] == {"preserve_input_text": False}


def test_error_in_the_stream_ends_with_its_exit_code(run, serve) -> None:
    error = {"details": "the prompt has 9000 tokens", "code": 400, "error": "invalid_input"}
    url, _ = serve({STREAM: events(error)})
    result = run("generate", "m", "x", "--url", url)
    assert (result.code, result.err) == (2, "luthier: the prompt has 9000 tokens\n")


def test_local_wants_a_saved_model(run, tmp_path) -> None:
    result = run("generate", tmp_path, "x", "--local")
    assert result.code == 2
    assert "is no saved model: it holds no config.yml" in result.err
