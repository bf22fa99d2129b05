"""Models from outside: Hugging Face configurations, and the built-in catalogue, which the same importer reads."""

from taygeta.frontend.catalog import Entry, entries, model, model_names
from taygeta.frontend.huggingface import import_config, load_config

__all__ = ["Entry", "entries", "import_config", "load_config", "model", "model_names"]
