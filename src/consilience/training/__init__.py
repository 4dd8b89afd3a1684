"""Make experts: fine-tune encoders on pairs and language models on texts, with LoRA or fully, with a record of how."""

from __future__ import annotations

from consilience.training.expert import train_encoder
from consilience.training.language import train_language_model

__all__ = ["train_encoder", "train_language_model"]
