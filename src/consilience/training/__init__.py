"""Make experts: fine-tune encoders on pairs, with LoRA or fully, with a record of how."""

from __future__ import annotations

from consilience.training.expert import train_encoder

__all__ = ["train_encoder"]
