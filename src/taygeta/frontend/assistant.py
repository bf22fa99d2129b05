"""The built-in assistant: a small checkpoint in the package, which answers where no other is named."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def assistant_directory() -> Path:
    """Return where the assistant's checkpoint lies: config.json, model.safetensors and tokenizer.json."""
    return Path(str(resources.files("taygeta") / "data" / "assistant"))
