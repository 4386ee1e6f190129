"""Measure how much information passes between the tokens of a language model."""
