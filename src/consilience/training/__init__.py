"""Make experts: encoders tuned on pairs or labels, language models on texts; LoRA or full, with a record of how."""

from __future__ import annotations

from consilience.training.classifier import train_classifier
from consilience.training.expert import train_encoder
from consilience.training.language import train_language_model
from consilience.training.seq2seq import train_seq2seq
from consilience.training.settings import Joint

__all__ = ["Joint", "train_classifier", "train_encoder", "train_language_model", "train_seq2seq"]
