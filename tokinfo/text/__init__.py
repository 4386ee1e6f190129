"""Texts, tokenizers and prompts."""
