"""What caikit and alog are told, in processes of their own: both keep global state."""

from __future__ import annotations

import os
import subprocess
import sys

REPORT = """
import os
from luthier.config import load_config
from luthier.config.caikit_bridge import apply_to_caikit
config = load_config()
apply_to_caikit(config)
apply_to_caikit(config)
import caikit
from caikit.runtime.names import ServiceType, get_service_name, get_service_package_name
print(caikit.get_config().runtime.library)
print(get_service_package_name(ServiceType.INFERENCE), get_service_name(ServiceType.INFERENCE))
print(get_service_package_name(ServiceType.TRAINING), get_service_name(ServiceType.TRAINING))
print(os.environ.get("RUNTIME_LIBRARY"), os.environ.get("CONFIG_FILES") is not None)
"""


def run(code: str, **variables: str) -> list[str]:
    environ = {name: value for name, value in os.environ.items() if name != "CONFIG_FILES"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return (done.stdout + done.stderr).splitlines()


def test_services_have_the_names_of_caikit_nlp():
    assert run(REPORT)[:3] == [
        "luthier",
        "caikit.runtime.Nlp NlpService",
        "caikit.runtime.Nlp NlpTrainingService",
    ]


def test_settings_of_caikit_nlp_in_files_and_variables_do_not_win(tmp_path):
    file = tmp_path / "site.yml"
    file.write_text("runtime:\n  library: caikit_nlp\n")
    lines = run(REPORT, CONFIG_FILES=str(file), RUNTIME_LIBRARY="caikit_nlp")
    assert lines[:4] == [
        "luthier",
        "caikit.runtime.Nlp NlpService",
        "caikit.runtime.Nlp NlpTrainingService",
        "caikit_nlp True",
    ]


def test_another_domain_reaches_the_wire():
    lines = run(REPORT, RUNTIME_SERVICE_GENERATION_DOMAIN="Other")
    assert lines[1] == "caikit.runtime.Nlp OtherService"


LOGGING = """
import alog
from luthier.config import load_config
from luthier.config.caikit_bridge import configure_logging
configure_logging(load_config().log)
for name in ("luthier.inference.engine", "luthier.training", "httpx"):
    log = alog.use_channel(name)
    log.debug("debug from %s", name)
    log.info("info from %s", name)
"""


def test_log_level_and_filters_hold_per_package():
    text = "\n".join(
        run(LOGGING, LOG_FILTERS="luthier.inference:debug,httpx:off", LOG_FORMATTER="json")
    )
    assert "debug from luthier.inference.engine" in text
    assert "info from luthier.training" in text
    assert "debug from luthier.training" not in text
    assert "from httpx" not in text
    assert all(line.startswith("{") for line in text.splitlines())


def test_pretty_lines_name_the_channel():
    text = "\n".join(run(LOGGING, LOG_FORMATTER="pretty", LOG_CHANNEL_WIDTH="40"))
    assert "luthier.inference.engine" in text
