"""Two processes learn what one does: same losses, same adapter, same end of every kind.

One launch runs all trainings of this file; the reference is the same training in this process.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.parallel_training import METHODS, OPTIONS, in_fp64, load, outcome

from luthier.errors import ConflictError
from luthier.resources.base_model import BaseModel
from luthier.training.checkpointing.checkpoints import CHECKPOINTS_FOLDER, checkpoint_folder
from luthier.training.processes.launching import launch
from luthier.training.processes.parallel import ALONE, ProcessGroup, current_group, joined

#: fp32: what is measured is under 1e-5, but for ``SHARES_TOLERANCE``.
TOLERANCE = 1e-4
#: fp64: what is measured is under 1e-11. What is not rounding shows here.
EXACT = 1e-9
#: Full fine-tuning in shares is on padded rows, in one process on packed ones. In fp32 gradients
#: differ in the last bits then, and where a gradient is next to nothing, an update of Adam is its
#: sign, whatever its size: of the 12,800 numbers of a matrix one was off by 1.9e-4. In fp64 all
#: numbers agree to 1e-12.
SHARES_TOLERANCE = 5e-4
#: Batches of one row, so that one process has none left when the other still has one.
IN_SHARES = {"use_fsdp": True, "batch_size": 1, "save_checkpoint": "best"}
BEST = {
    "method": "lora",
    "save_checkpoint": "best",
    "learning_rate": 0.3,
    "schedule": "constant",
    "evaluation_epochs": 0.34,
    "num_epochs": 1,
}
SAMPLE_AVERAGE = {"method": "lora", "loss_function": "sample_average", "max_grad_norm": 0.0}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def answers(tiny_base_models_dir: Path, run_folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Name of a training -> its outcome in each of two processes."""
    saved = {"method": "lora", "run_folder": str(run_folder), "save_every_steps": 1}
    checkpoint = checkpoint_folder(run_folder / CHECKPOINTS_FOLDER, 4)
    trainings = {
        **{method: {"method": method} for method in METHODS},
        **{f"{method} in shares": {"method": method, **IN_SHARES} for method in METHODS},
        **{
            f"{method} in shares in fp64": {"method": method, "in_fp64": True, **IN_SHARES}
            for method in METHODS
        },
        "best in fp64": {**BEST, "in_fp64": True},
        "full in shares, saved": {
            **{"method": "full", **IN_SHARES, "save_every_steps": 1, "keep_checkpoints": 0},
            "run_folder": str(run_folder / "full"),
        },
        "full in shares, resumed": {
            **{"method": "full", **IN_SHARES},
            "resume_from": str(checkpoint_folder(run_folder / "full" / CHECKPOINTS_FOLDER, 2)),
        },
        "sample_average": SAMPLE_AVERAGE,
        "best": BEST,
        "saved": {**saved, "keep_checkpoints": 0},
        "resumed": {"method": "lora", "resume_from": str(checkpoint)},
        "drawn_seed": {"method": "lora", "seed": -1, "num_epochs": 1},
        "cancelled": {"method": "lora", "stop_at": 2},
        "not_finite": {"method": "poisoned"},
        "different": {"method": "lora", "per_process": [{}, {"learning_rate": 0.5}]},
    }
    tests = Path(__file__).parents[1]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", f"{tests}{os.pathsep}{tests.parent}")
        request = {"base_models_dir": str(tiny_base_models_dir), "trainings": trainings}
        return launch("fixtures.parallel_training", request, num_processes=2)


@pytest.fixture(scope="module")
def base(tiny_base_models_dir: Path) -> BaseModel:
    return load(tiny_base_models_dir)


@pytest.fixture(scope="module")
def precise_base(base: BaseModel) -> BaseModel:
    return in_fp64(base)


def _require_equal(
    found: dict[str, Any], expected: dict[str, Any], tolerance: float = TOLERANCE
) -> None:
    assert found["losses"] == pytest.approx(expected["losses"], abs=tolerance)
    assert found["counts"] == expected["counts"]
    for (loss, metrics), (expected_loss, expected_metrics) in zip(
        found["validation"], expected["validation"], strict=True
    ):
        assert loss == pytest.approx(expected_loss, abs=tolerance)
        assert metrics == pytest.approx(expected_metrics, abs=tolerance)
    for name, values in expected["parameters"].items():
        torch.testing.assert_close(
            torch.tensor(found["parameters"][name], dtype=torch.float64),
            torch.tensor(values, dtype=torch.float64),
            rtol=0,
            atol=tolerance,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_learn_what_one_learns(
    answers: dict[str, list[dict[str, Any]]], base: BaseModel, method: str
) -> None:
    main, other = answers[method]
    _require_equal(main, outcome(base, method))
    assert other["content_hash"] == main["content_hash"]
    assert other["losses"] == main["losses"]


@pytest.mark.parametrize("method", METHODS)
def test_processes_that_share_the_weights_learn_what_one_learns(
    answers: dict[str, list[dict[str, Any]]], base: BaseModel, method: str
) -> None:
    main, other = answers[f"{method} in shares"]
    expected = outcome(base, method, batch_size=1, save_checkpoint="best")
    is_full = method == "full"
    _require_equal(main, expected, tolerance=SHARES_TOLERANCE if is_full else TOLERANCE)
    assert other["content_hash"] == main["content_hash"]


@pytest.mark.parametrize("method", METHODS)
def test_without_rounding_shares_differ_in_nothing(
    answers: dict[str, list[dict[str, Any]]], precise_base: BaseModel, method: str
) -> None:
    in_shares, _ = answers[f"{method} in shares in fp64"]
    expected = outcome(precise_base, method, batch_size=1, save_checkpoint="best")
    _require_equal(in_shares, expected, tolerance=EXACT)


def test_shares_are_put_together_in_checkpoints_and_taken_from_them(
    answers: dict[str, list[dict[str, Any]]], base: BaseModel, run_folder: Path
) -> None:
    whole = answers["full in shares, saved"]
    assert answers["full in shares, resumed"] == whole
    checkpoint = checkpoint_folder(run_folder / "full" / CHECKPOINTS_FOLDER, 2)
    changes = {"batch_size": 1, "save_checkpoint": "best", "resume_from": checkpoint}
    _require_equal(outcome(base, "full", **changes), whole[0], tolerance=SHARES_TOLERANCE)


def test_rows_weigh_the_same_in_whichever_process_they_are(
    answers: dict[str, list[dict[str, Any]]], base: BaseModel
) -> None:
    _require_equal(answers["sample_average"][0], outcome(base, **SAMPLE_AVERAGE))


def test_the_best_is_the_same_in_every_process(
    answers: dict[str, list[dict[str, Any]]], base: BaseModel, precise_base: BaseModel
) -> None:
    main, other = answers["best"]
    assert main["content_hash"] == other["content_hash"]
    values = [loss for loss, _ in main["validation"]]
    assert values.index(min(values)) != len(values) - 1
    # Steps this large make much of how sums are rounded: 1.3e-3 in fp32, 1e-11 in fp64.
    _require_equal(main, outcome(base, **BEST), tolerance=1e-2)
    _require_equal(answers["best in fp64"][0], outcome(precise_base, **BEST), tolerance=EXACT)


def test_a_resumed_training_ends_as_the_uninterrupted_one(
    answers: dict[str, list[dict[str, Any]]],
) -> None:
    for resumed, whole in zip(answers["resumed"], answers["saved"], strict=True):
        assert resumed == whole


def test_a_checkpoint_of_two_processes_is_taken_up_by_one(
    answers: dict[str, list[dict[str, Any]]], base: BaseModel, run_folder: Path
) -> None:
    checkpoint = checkpoint_folder(run_folder / CHECKPOINTS_FOLDER, 4)
    _require_equal(outcome(base, "lora", resume_from=checkpoint), answers["saved"][0])


def test_the_main_process_alone_writes(
    answers: dict[str, list[dict[str, Any]]], run_folder: Path
) -> None:
    steps = [path.name for path in sorted((run_folder / CHECKPOINTS_FOLDER).iterdir())]
    assert len(steps) == len(answers["saved"][0]["losses"]) == 6


def test_a_drawn_seed_is_the_same_in_every_process(
    answers: dict[str, list[dict[str, Any]]],
) -> None:
    main, other = answers["drawn_seed"]
    assert main["seed"] == other["seed"] != OPTIONS.seed


def test_a_cancellation_reaches_every_process(answers: dict[str, list[dict[str, Any]]]) -> None:
    for found in answers["cancelled"]:
        assert found == {
            "error": "CancelledError",
            "message": "training was cancelled after 2 updates",
        }


def test_a_loss_that_is_no_number_ends_every_process_and_names_the_rows_of_all(
    answers: dict[str, list[dict[str, Any]]], base: BaseModel
) -> None:
    main, other = answers["not_finite"]
    assert main == other
    alone = outcome(base, "poisoned")
    assert main["error"] == alone["error"] == "TrainingFailedError"
    assert main["message"].startswith("step 1: the loss is not finite in rows ")
    assert "and 3 more;" in main["message"]
    assert "and 3 more;" in alone["message"]


def test_processes_with_different_options_are_refused(
    answers: dict[str, list[dict[str, Any]]],
) -> None:
    for found in answers["different"]:
        assert found["error"] == "ConflictError"
        assert "the options of process 1 differs" in found["message"]


def test_one_process_needs_nobody() -> None:
    with joined({}, on_cpu=True) as group:
        assert group == current_group() == ALONE
    assert ALONE.sum([1.5, 2]) == [1.5, 2]
    assert ALONE.gather(["a"]) == ["a"]
    assert ALONE.from_main(7) == 7
    ALONE.require_same({"the options": "x"})


def test_a_group_of_one_changes_no_gradient() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    ProcessGroup().sum_gradients([parameter])
    assert parameter.grad is None
    assert issubclass(ConflictError, RuntimeError)
