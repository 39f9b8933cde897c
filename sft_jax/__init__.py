"""Supervised fine-tuning in JAX: demonstrations in, an assistant out."""

__version__ = "0.1.0"
