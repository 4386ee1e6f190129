"""Evidence: what the two decoders read through noise, by width, of a fixed vocabulary.

    python benchmarks/decoding.py docs/evidence/decoding.csv

Random embeddings, as of an untrained model. No descent is made: every token's embedding is
read, with gaussian noise on it, which stands for what a descent leaves over. The pseudo-inverse
fails where the matrix is square.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import write

from tokinfo.solvers.decoding import Decoder, inverse_gram, read_through_noise

VOCABULARY = 1024
WIDTHS = (64, 256, 512, 768, 960, 1008, 1024, 1040, 1088, 1280, 1536, 2048, 4096)
NOISES = (0.05, 0.2, 1.0)


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    rows = []
    for width in WIDTHS:
        embedding = torch.randn(VOCABULARY, width, generator=torch.Generator().manual_seed(0))
        gram = inverse_gram(embedding)
        singular = torch.linalg.svdvals(embedding.double())
        for noise in NOISES:
            read = {
                method: read_through_noise(Decoder(embedding, gram, method), noise)
                for method in ("pseudo-inverse", "nearest")
            }
            rows.append(
                {
                    "vocabulary": VOCABULARY,
                    "width": width,
                    "condition": float(singular[0] / singular[-1]),
                    "noise": noise,
                    **{f"{name.replace('-', '_')}_read": share for name, share in read.items()},
                }
            )
    write(options.out, rows)


if __name__ == "__main__":
    main()
