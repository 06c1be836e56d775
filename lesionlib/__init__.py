"""Synthetic dermoscopic lesions from visual and textual prompts: the study's package."""

__version__ = "0.1.0"
