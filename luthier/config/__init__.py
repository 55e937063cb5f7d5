"""Typed settings of a server: config.yml, files and the environment, read at the doors only."""

from luthier.config.loader import load_config
from luthier.config.schema import Config

__all__ = ["Config", "load_config"]
