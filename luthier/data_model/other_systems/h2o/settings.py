"""All settings of an H2O LLM Studio experiment, and what each becomes here.

Names and defaults are those of version 1.14, and of what older versions had besides.
"""

from __future__ import annotations

from luthier.data_model.other_systems.foreign_setting import ForeignSetting, Status
from luthier.data_model.other_systems.h2o.data_settings import (
    CAUSAL,
    H2O_DATA_SETTINGS,
    SEQ2SEQ,
)
from luthier.data_model.other_systems.h2o.environment_settings import H2O_ENVIRONMENT_SETTINGS
from luthier.data_model.other_systems.h2o.older_settings import H2O_OLDER_SETTINGS
from luthier.data_model.other_systems.h2o.prediction_settings import H2O_PREDICTION_SETTINGS
from luthier.data_model.other_systems.h2o.training_settings import H2O_TRAINING_SETTINGS

__all__ = ["CAUSAL", "H2O_SETTINGS", "OTHER_PROBLEM_TYPES", "SEQ2SEQ"]

#: Problem types that are no supervised generation -> what they need.
OTHER_PROBLEM_TYPES = {
    "text_dpo_modeling": Status.PREFERENCE,
    "text_rlhf_language_modeling": Status.PREFERENCE,
    "text_causal_classification_modeling": Status.HEADS,
    "text_causal_regression_modeling": Status.HEADS,
}
H2O_SETTINGS: tuple[ForeignSetting, ...] = (
    *H2O_DATA_SETTINGS,
    *H2O_TRAINING_SETTINGS,
    *H2O_PREDICTION_SETTINGS,
    *H2O_ENVIRONMENT_SETTINGS,
    *H2O_OLDER_SETTINGS,
)
