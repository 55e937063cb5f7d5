import json
from pathlib import Path

import httpx

MODELS = httpx.Response(
    200,
    json={
        "models": [
            {"name": "intents", "loaded": True, "size": 1_500_000, "module_id": "6655831b"},
            {"name": "summaries", "loaded": False},
        ]
    },
)


def test_list_shows_a_table(run, serve) -> None:
    url, _ = serve({"GET /info/models": MODELS})
    result = run("models", "list", "--url", url)
    assert result.code == 0
    assert result.out.splitlines() == [
        "model      loaded  MB   module",
        "intents    yes     1.5  6655831b",
        "summaries  no",
    ]


def test_list_as_json_is_json(run, serve) -> None:
    url, _ = serve({"GET /info/models": MODELS})
    found = json.loads(run("models", "list", "--url", url, "--json").out)
    assert [model["name"] for model in found] == ["intents", "summaries"]


def test_address_may_come_from_the_environment(run, serve, monkeypatch) -> None:
    url, _ = serve({"GET /info/models": httpx.Response(200, json={"models": []})})
    monkeypatch.setenv("LUTHIER_URL", url)
    assert run("models", "list").out == "no models; 'luthier train' makes one\n"


def test_undeploy_deletes_after_yes(run, serve) -> None:
    url, api = serve({"DELETE /management/models": httpx.Response(200, json={})})
    result = run("models", "undeploy", "intents", "--yes", "--url", url)
    assert (result.code, result.out) == (0, "undeployed intents\n")
    assert api.requests[-1].url.params["model_id"] == "intents"


def test_undeploy_without_an_answer_deletes_nothing(run, serve, monkeypatch, tmp_path) -> None:
    url, api = serve({})
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert run("models", "undeploy", "intents", "--url", url).code == 130
    assert api.requests == []


def test_unknown_model_says_where_to_look(run, serve) -> None:
    body = {"details": "Model 'nope' not loaded", "error": "model_not_found"}
    url, _ = serve({"DELETE /management/models": httpx.Response(404, json=body)})
    result = run("models", "undeploy", "nope", "-y", "--url", url)
    assert result.code == 1
    assert result.err == (
        "luthier: Model 'nope' not loaded; 'luthier models list' shows what is served\n"
    )


def test_deploy_sends_the_folder(run, serve, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("module_id: x")
    url, api = serve({"POST /management/models": httpx.Response(200, json={"name": "m"})})
    assert run("models", "deploy", "m", tmp_path, "--url", url).out == "deployed m\n"
    assert b"module_id: x" in api.requests[-1].content
