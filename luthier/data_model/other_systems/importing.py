"""An experiment in another system's words, made ours, with a report of every setting.

Nothing is dropped silently: a setting that would change what is learned, and that there is nothing
for, is refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from luthier.data_model.options.experiment import ExperimentOptions
from luthier.data_model.options.run_options import LORA
from luthier.data_model.other_systems.caikit_settings import CAIKIT_SETTINGS
from luthier.data_model.other_systems.foreign_setting import (
    ABSENT,
    ForeignSetting,
    Refusal,
    Unneeded,
    Values,
)
from luthier.data_model.other_systems.h2o.settings import (
    H2O_SETTINGS,
    OTHER_PROBLEM_TYPES,
    SEQ2SEQ,
)
from luthier.data_model.other_systems.llm_trainer_settings import LLM_TRAINER_SETTINGS, PRESETS
from luthier.errors import InvalidInputError, NotSupportedError, UnknownKeyError, did_you_mean


class System(StrEnum):
    """Whose words a file is in."""

    H2O = "H2O LLM Studio"
    CAIKIT = "caikit-nlp"
    LLM_TRAINER = "LLM Trainer"


SETTINGS_OF: Mapping[System, tuple[ForeignSetting, ...]] = MappingProxyType(
    {
        System.H2O: H2O_SETTINGS,
        System.CAIKIT: CAIKIT_SETTINGS,
        System.LLM_TRAINER: LLM_TRAINER_SETTINGS,
    }
)
#: What a system does without a setting for it.
IMPLIED: Mapping[System, Mapping[str, Any]] = MappingProxyType(
    {
        System.H2O: {"dataset.prompt_format": "markers", "architecture.base_dropout": True},
        System.CAIKIT: {"dataset.validation_size": 0.0},
        System.LLM_TRAINER: {"general.method": LORA, "dataset.validation_size": 0.0},
    }
)


#: Fields that only the LLM Trainer has.
_ELEMENTS = ("base_model_architecture", "training_data_path", "quantization_rank")


class Fate(StrEnum):
    """What became of a setting."""

    MAPPED = "mapped"
    IGNORED = "ignored"
    REFUSED = "refused"


@dataclass(frozen=True)
class ReportLine:
    """One setting of the file.

    Args:
        name: In the other system.
        value: There.
        fate: What became of it.
        text: Our option and value, or the reason.
        option: Our option's path, or "".
    """

    name: str
    value: Any
    fate: Fate
    text: str
    option: str = ""

    def __str__(self) -> str:
        return f"{self.fate:<8} {self.name} = {self.value!r:.60}: {self.text}"


@dataclass(frozen=True)
class ImportedExperiment:
    """Options in our words, and how they came about.

    Args:
        system: Whose words they were in.
        options: What could be mapped, over our defaults; unchecked.
        report: One line per setting of the file, and per refused default.
    """

    system: System
    options: ExperimentOptions
    report: tuple[ReportLine, ...]

    def lines(self, fate: Fate) -> tuple[ReportLine, ...]:
        """The lines of one fate."""
        return tuple(line for line in self.report if line.fate is fate)

    def require_complete(self, *, answered: Collection[str] = ()) -> None:
        """Refuse to go on if something that matters is missing here.

        Args:
            answered: Paths of our options that the user has set since: a refused value that they
                stand in for is settled.

        Raises:
            NotSupportedError: Naming every setting, its value and the reason.
        """
        open_lines = [
            line
            for line in self.lines(Fate.REFUSED)
            if not line.option or line.option not in answered
        ]
        if open_lines:
            listed = "; ".join(
                f"'{line.name}' {line.value!r:.60}: {line.text}" for line in open_lines
            )
            raise NotSupportedError(f"of the {self.system} experiment, this is missing: {listed}")


def system_of(content: Mapping[str, Any]) -> System | None:
    """Whose words a file is in.

    Args:
        content: The file's keys and values.

    Returns:
        The system, or None for our own words.
    """
    if "problem_type" in content or "llm_backbone" in content:
        return System.H2O
    if "train_stream" in content:
        return System.CAIKIT
    is_element = any(_plain_name(str(key)) in _ELEMENTS for key in content)
    return System.LLM_TRAINER if is_element else None


def preset(name: str) -> dict[str, Any]:
    """A preset of the LLM Trainer, in its words.

    Args:
        name: One of ``PRESETS``.

    Returns:
        Field to value, to be imported with the data's path.

    Raises:
        InvalidInputError: For another name, with the nearest.
    """
    if name not in PRESETS:
        raise InvalidInputError(
            f"'preset' must be one of {', '.join(PRESETS)}, "
            f"got {name[:80]!r}{did_you_mean(name[:80], PRESETS)}"
        )
    return dict(PRESETS[name])


def import_experiment(content: Mapping[str, Any], system: System) -> ImportedExperiment:
    """Read an experiment in another system's words.

    What the file leaves out has that system's default.

    Args:
        content: The file's keys and values.
        system: Whose words they are.

    Returns:
        Options and report; nothing is refused yet but what nobody knows.

    Raises:
        UnknownKeyError: For a key that the system does not have.
        NotSupportedError: For a kind of problem that is not built yet.
    """
    table = SETTINGS_OF[system]
    given = dict(_named(_flat(content), table, system))
    if system is System.H2O:
        _require_generation(given.get("problem_type"))
    values = {**_defaults(table, is_seq2seq=given.get("problem_type") == SEQ2SEQ), **given}
    report: list[ReportLine] = []
    chosen: dict[str, Any] = dict(IMPLIED[system])
    for setting in table:
        if setting.name not in values:
            continue
        line = _judge(setting, values)
        if line.fate is Fate.MAPPED:
            chosen[setting.option] = setting.convert(values[setting.name], values)
        if setting.name in given or line.fate is Fate.REFUSED:
            report.append(line)
    if chosen.get("dataset.validation_dataframe"):
        chosen["dataset.validation_strategy"] = "custom"
    start = ExperimentOptions.defaults(chosen.get("general.method", LORA))
    return ImportedExperiment(system, start.laid_over(chosen), _one_line_each(report))


def _one_line_each(report: Sequence[ReportLine]) -> tuple[ReportLine, ...]:
    """The report with one line per name: a setting may become one of several options of ours."""
    by_name: dict[str, ReportLine] = {}
    for line in report:
        known = by_name.get(line.name)
        if known is None or known.fate is Fate.IGNORED:
            by_name[line.name] = line
    return tuple(by_name.values())


def _judge(setting: ForeignSetting, values: Values) -> ReportLine:
    value = values[setting.name]

    def line(fate: Fate, text: str) -> ReportLine:
        option = setting.option if setting.has_option else ""
        return ReportLine(setting.name, value, fate, text, option)

    if not setting.has_effect(values):
        return line(Fate.IGNORED, f"no effect with this {setting.only_if.removeprefix('not ')}")
    if setting.has_option:
        converted = setting.convert(value, values)
        if isinstance(converted, Refusal):
            return line(Fate.REFUSED, converted.reason)
        if isinstance(converted, Unneeded):
            return line(Fate.IGNORED, converted.reason)
        note = f" ({setting.reason})" if setting.reason else ""
        return line(Fate.MAPPED, f"{setting.option} = {converted!r:.80}{note}")
    why = f"{setting.state}: {setting.reason}" if setting.reason else str(setting.state)
    is_harmless = setting.is_harmless(value, values)
    return line(Fate.IGNORED if is_harmless else Fate.REFUSED, why)


def _require_generation(problem_type: Any) -> None:
    if problem_type in OTHER_PROBLEM_TYPES:
        raise NotSupportedError(f"problem type {problem_type}: {OTHER_PROBLEM_TYPES[problem_type]}")


def _flat(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            for name, each in value.items():
                yield f"{key}.{name}", each
        else:
            yield str(key), value


def _named(
    given: Iterator[tuple[str, Any]], table: Sequence[ForeignSetting], system: System
) -> Iterator[tuple[str, Any]]:
    """The given values under the table's spelling of their names, each once."""
    spelling = {setting.name: setting.name for setting in table}
    if system is System.LLM_TRAINER:
        spelling = {_plain_name(setting.name): setting.name for setting in table}
    seen: dict[str, str] = {}
    for key, value in given:
        name = spelling.get(_plain_name(key) if system is System.LLM_TRAINER else key)
        if name is None:
            known = [setting.name for setting in table]
            raise UnknownKeyError(
                f"{system} has no setting {key[:80]!r}{did_you_mean(key[:80], known)}"
            )
        if name in seen:
            raise InvalidInputError(f"'{key}' and '{seen[name]}' are the same; give one of them")
        seen[name] = key
        yield name, value


def _defaults(table: Sequence[ForeignSetting], *, is_seq2seq: bool) -> dict[str, Any]:
    return {
        setting.name: setting.seq2seq_default
        if is_seq2seq and setting.seq2seq_default is not ABSENT
        else setting.default
        for setting in table
        if setting.default is not ABSENT
    }


def _plain_name(name: str) -> str:
    """``🔹 Trained Artifact (Optional)`` -> ``trained_artifact``."""
    words = "".join(letter if letter.isalnum() else " " for letter in name.lower()).split()
    return "_".join(word for word in words if word != "optional")
