"""Use a base model from the Hugging Face hub, which Luthier fetches only if you allow it.

python examples/download_base_model/main.py                        # refused
ALLOW_DOWNLOADS=true python examples/download_base_model/main.py   # downloads 270 MB once
"""

from __future__ import annotations

import argparse
import os
import sys

from luthier import TextGeneration
from luthier.errors import BaseModelNotFoundError

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PROMPT = "The capital of France is"


def main() -> int:
    """Load the model by name and continue a sentence.

    Returns:
        The exit status: 0 if the model was used, or refused because nobody allowed downloads.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a name on the hub")
    name = parser.parse_args().model
    try:
        model = TextGeneration.bootstrap(name)
    except BaseModelNotFoundError as error:
        print(f"not used: {error}")
        return 1 if os.environ.get("ALLOW_DOWNLOADS") == "true" else 0
    result = model.run(PROMPT, max_new_tokens=10)
    print(result.generated_text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
