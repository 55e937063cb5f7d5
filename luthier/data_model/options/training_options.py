"""The hyperparameters of a training, spelled once.

Each is in the file of ``options/training/`` that it belongs to by meaning; here they are one table.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from luthier.data_model.options.limits import TrainingLimits
from luthier.data_model.options.reading import NamedOptions, option_aliases, option_names
from luthier.data_model.options.setting import Setting
from luthier.data_model.options.training.checkpoints import CheckpointOptions
from luthier.data_model.options.training.evaluation import EvaluationOptions
from luthier.data_model.options.training.machine import MachineOptions
from luthier.data_model.options.training.optimizer import OptimizerOptions
from luthier.data_model.options.training.reporting import ReportingOptions
from luthier.data_model.options.training.row_text import RowTextOptions
from luthier.data_model.options.training.schedule import ScheduleOptions
from luthier.data_model.options.training.starting_network import StartingNetworkOptions


# The fields of the last class come first.
@dataclass(frozen=True)
class TrainingOptions(
    ReportingOptions,
    MachineOptions,
    CheckpointOptions,
    EvaluationOptions,
    StartingNetworkOptions,
    RowTextOptions,
    OptimizerOptions,
    ScheduleOptions,
    NamedOptions,
):
    """Every hyperparameter of the loop. Defaults are those of prompt tuning.

    Building one checks nothing; ``validate`` does. The fields' meaning is in their ``Setting``.
    """

    called = "training option"

    def validate(self, limits: TrainingLimits) -> None:
        """Refuse options that cannot be meant; changes nothing.

        Args:
            limits: The server's caps.

        Raises:
            InvalidInputError: For a value of the wrong type, not finite, or out of range; the
                message names the option, the value and the limit.
        """
        for field in dataclasses.fields(self):
            setting: Setting = field.metadata["setting"]
            setting.check(field.name, getattr(self, field.name), limits)
        self.require_measurable()
        self.require_one_warm_up()


TRAINING_OPTION_NAMES = option_names(TrainingOptions)
#: Name in another system -> our option.
TRAINING_OPTION_ALIASES = option_aliases(TrainingOptions)


PROMPT_TUNING_DEFAULTS = TrainingOptions()
#: For P-tuning and prefix tuning: what moves one virtual token by 0.3 breaks a network.
NETWORK_PROMPT_DEFAULTS = dataclasses.replace(PROMPT_TUNING_DEFAULTS, learning_rate=0.01)
#: caikit-nlp's ``TextGeneration.train``.
FULL_FINE_TUNING_DEFAULTS = TrainingOptions(num_epochs=5, learning_rate=2e-5)
#: For classification heads, alone or over a LoRA.
HEAD_TUNING_DEFAULTS = TrainingOptions(
    num_epochs=3,
    learning_rate=2e-4,
    accumulate_steps=1,
    metrics=("loss", "accuracy", "macro_f1"),
)
