"""The report of ``quality.py``: a table and a plot that a reader of the documentation sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

TITLES = {
    "sms_spam": "SMS spam (spam or ham)",
    "banking77": "banking77 (ten intents)",
    "base": "base model, asked in words",
    "prompt_tuning": "prompt tuning, 20 virtual tokens",
    "multitask_prompt_tuning": "multitask prompt tuning from a source prompt",
    "lora": "LoRA, rank 8, query and value",
}

_COLUMNS = (
    "Accuracy",
    "Names the label",
    "Learning rate",
    "Rows seen",
    "Test rows",
    "Numbers tuned",
    "CPU seconds tuning",
)
_HEAD = f"| Task | Method | {' | '.join(_COLUMNS)} |\n|---|---{'|---:' * len(_COLUMNS)}|"
_TEXT = """# Results

What tuning buys on real data, written by `benchmarks/quality.py`. The base model is
SmolLM2-135M-Instruct. Each method sees the same {rows} training rows (or all there are)
{num_epochs} times, in batches of 8. Its learning rate is chosen by the loss on {held_out} other
rows of the training file: of three, the two with the lowest after one pass over some of the
training rows are trained in full, and the lower one then is taken. Answers are generated greedily;
accuracy counts those that are exactly the label, the column beside it those that name the right
label and no other, whatever else they say. The base model is told the labels and what to do with
the message; tuned models get the message alone. CPU seconds are those of one training.

{head}
{table}

![Accuracy per method]({plot})

Always answering the commonest label: {baselines}. The source prompt of multitask prompt tuning was
tuned on {source_tasks} other sets of ten intents of banking77, with as many rows each; for SMS
spam it is thus a start from another kind of task.

What was tried on the held-out rows:

| Task | Method | Loss after a short training at each learning rate | After the whole training |
|---|---|---|---|
{tried}

Made with `{command}` on {processor}, torch {torch}, beside other work on the same machine.
"""


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write the Markdown page, and the plot beside it under the same name.

    Args:
        report: What ``quality.py`` prints.
        path: The page.
    """
    results = report["results"]
    plot = path.with_suffix(".svg")
    _draw(report, plot)
    baselines = ", ".join(
        f"{share:.1%} on {TITLES[task]}"
        for task, share in report["always_the_most_frequent_label"].items()
    )
    path.write_text(
        _TEXT.format(
            **{key: report[key] for key in ("rows", "num_epochs", "held_out", "source_tasks")},
            tried="\n".join(_tried(result) for result in results if result["method"] != "base"),
            head=_HEAD,
            table="\n".join(_line(result) for result in results),
            plot=plot.name,
            baselines=baselines,
            command=report["command"],
            processor=report["machine"]["processor"],
            torch=report["machine"]["torch"],
        ),
        encoding="utf-8",
    )


def _line(result: dict[str, Any]) -> str:
    cells = [
        TITLES[result["task"]],
        TITLES[result["method"]],
        f"{result['accuracy']:.1%}",
        f"{result['names_the_label']:.1%}",
        str(result.get("learning_rate", "")),
        f"{result['rows_seen']:,}",
        f"{result['test_rows']:,}",
        f"{result['tuned_numbers']:,}",
        f"{result['cpu_seconds_tuning']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _tried(result: dict[str, Any]) -> str:
    cells = [
        TITLES[result["task"]],
        TITLES[result["method"]],
        _losses(result["held_out_losses"]),
        _losses(result["held_out_losses_in_full"]),
    ]
    return f"| {' | '.join(cells)} |"


def _losses(losses: dict[str, float]) -> str:
    return ", ".join(f"{rate}: {loss:.3f}" for rate, loss in losses.items())


def _draw(report: dict[str, Any], path: Path) -> None:
    """Horizontal bars per task; a dashed line is the commonest label."""
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "luthier"  # the same numbers give the same file
    results = report["results"]
    tasks = list(dict.fromkeys(result["task"] for result in results))
    figure, panels = pyplot.subplots(
        len(tasks), 1, figsize=(7.5, 2.3 * len(tasks)), sharex=True, squeeze=False
    )
    for task, (panel,) in zip(tasks, panels, strict=True):
        mine = [result for result in results if result["task"] == task][::-1]
        names = [TITLES[result["method"]] for result in mine]
        colours = ["#9aa5b1" if result["method"] == "base" else "#2f6f8f" for result in mine]
        bars = panel.barh(names, [100 * result["accuracy"] for result in mine], color=colours)
        panel.bar_label(bars, fmt="%.1f", padding=3)
        common = 100 * report["always_the_most_frequent_label"][task]
        panel.axvline(common, color="#b1574b", linestyle="--", linewidth=1)
        panel.set_title(TITLES[task], loc="left", fontsize=10)
        panel.set_xlim(0, 109)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1][0].set_xlabel("exact answers, %  (dashed: the commonest label)")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
