"""What H2O LLM Studio's screens have beside the settings of an experiment; no file has these."""

from __future__ import annotations

from types import MappingProxyType

_SCREEN = "no setting of a tuning: "
#: Item -> what there is here.
CREATION_ITEMS = MappingProxyType(
    {
        "Dataset": "dataset.train_dataframe",
        "Problem type": "the base model itself says whether it is causal or sequence-to-sequence",
        "Import config from YAML": "luthier train --file",
        "Use previous experiment weights": "general.start_from",
        "Dataset name": "files have names; there is no store of data sets yet",
        "Grid search values": "not built yet; a loop over luthier train --set does it",
    }
)
#: Key of the user settings -> what there is here.
USER_SETTINGS = MappingProxyType(
    {
        "credential_saver": _SCREEN + "no credentials are kept",
        "default_aws_bucket_name / _access_key / _secret_key": "files of S3 are not read",
        "default_azure_conn_string / _container": "files of Azure are not read",
        "default_kaggle_username / _secret_key": "data of Kaggle is not fetched",
        "default_number_of_workers": "environment.number_of_workers",
        "default_logger, default_neptune_project, _api_token, default_wandb_project, _entity, "
        "_api_token": "logging.trackers and logging.tracker_project; keys as each tracker's "
        "package reads them from the environment",
        "default_huggingface_api_token, default_hf_hub_enable_hf_transfer": "the environment "
        "variables of huggingface_hub",
        "default_openai_api_token, default_gpt_eval_max, default_openai_azure, _api_base, "
        "_api_deployment_id, _api_version": "server settings judge.api_key, judge.max_rows and "
        "judge.base_url; the protocol is OpenAI's, so Azure needs its address that speaks that",
        "set_max_epochs 50, set_max_batch_size 256, set_max_num_classes 100, set_max_max_length "
        "16384, set_max_gradient_clip 10, set_max_lora_r 256, set_max_lora_alpha 256": "server "
        "settings training.limits",
        "gpu_used_for_download cuda:0 (cpu, cpu_shard, cuda:N), gpu_used_for_chat 1": "server "
        "setting device",
        "default_safe_serialization true, delete_dialogs true, chart_plot_max_points 1000 "
        "(1..10000)": _SCREEN + "weights are always safetensors",
    }
)
