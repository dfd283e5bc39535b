"""Ziggurat: the survey recipe for pre-trained language models, as software."""

__version__ = "0.1.0"
