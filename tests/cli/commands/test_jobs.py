import json

import httpx

RUNNING = {"training_id": "t1", "state": "RUNNING", "model_name": "intents"}
FAILED = {"training_id": "t2", "state": "ERRORED", "reasons": ["row 3 is empty"]}


def test_list_shows_every_training(run, serve) -> None:
    answer = httpx.Response(200, json={"trainings": [RUNNING, FAILED]})
    url, _ = serve({"GET /management/trainings": answer})
    lines = run("jobs", "list", "--url", url).out.splitlines()
    assert lines[1:] == ["t1        RUNNING  intents", "t2        ERRORED"]


def test_show_gives_state_and_reasons(run, serve) -> None:
    url, api = serve({"GET /management/trainings": httpx.Response(200, json=FAILED)})
    assert run("jobs", "show", "t2", "--url", url).out == "ERRORED row 3 is empty\n"
    assert api.requests[-1].url.params["training_id"] == "t2"


def test_show_as_json_is_json(run, serve) -> None:
    url, _ = serve({"GET /management/trainings": httpx.Response(200, json=RUNNING)})
    assert json.loads(run("jobs", "show", "t1", "--url", url, "--json").out)["state"] == "RUNNING"


def test_cancel_says_the_new_state(run, serve) -> None:
    answer = httpx.Response(200, json={"training_id": "t1", "state": "CANCELED"})
    url, _ = serve({"DELETE /management/trainings": answer})
    assert run("jobs", "cancel", "t1", "--url", url).out == "CANCELED\n"


def test_follow_ends_with_the_trainings_failure(run, serve) -> None:
    url, _ = serve(
        {
            "GET /management/trainings": httpx.Response(200, json=FAILED),
            "GET /management/trainings/metrics": httpx.Response(200, json={"metrics": []}),
        }
    )
    result = run("jobs", "follow", "t2", "--url", url)
    assert result.code == 1
    assert result.err == "luthier: training 't2' failed: row 3 is empty\n"


def test_resume_says_the_new_state(run, serve) -> None:
    answer = httpx.Response(200, json={"training_id": "t1", "state": "QUEUED"})
    url, api = serve({"POST /management/trainings/resume": answer})
    assert run("jobs", "resume", "t1", "--url", url).out == "QUEUED\n"
    assert api.requests[-1].url.params["training_id"] == "t1"
