"""Models: masked mixers, transformers, pretrained ones, and the checkpoints that cells load."""
