"""Solvers: each searches for a prompt whose visible activations match a target's."""
