r"""Peak memory of preparing and inverting blocks as wide as Llama-2 70B's, stage by stage.

    python benchmarks/streaming.py SCRATCH docs/evidence/streaming.csv
    python benchmarks/streaming.py SCRATCH docs/evidence/streaming_precisions.csv \
        --size llama-2-7b --precisions int8 nf4 bfloat16 float32 --blocks 2

A random model of that width (four blocks, bfloat16, one shard a block; 8 GB) is written to the
directory SCRATCH, which must not exist and is removed at the end. Every stage is a process,
whose largest resident memory (VmHWM) is recorded; pages of files that it has mapped count.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
from common import write
from safetensors.torch import save_file

from tokinfo.models.checkpoint import DTYPES, load, weight_files
from tokinfo.models.preparing import prepare
from tokinfo.models.weights import INDEX
from tokinfo.solvers.pose import make_problem
from tokinfo.solvers.run import run
from tokinfo.study.cell import Cell
from tokinfo.study.solvers import AdamSolver, DecodeSettings, MetricWeights, SweepSolver
from tokinfo.study.sources import Model

SIZES = {"llama-2-7b": (4096, 11008, 32, 32), "llama-2-70b": (8192, 28672, 64, 8)}
"""Width, width inside the MLP, heads, and heads of keys and values."""
VOCABULARY, BLOCKS = 32_000, 4
PROMPT = "w17 w4711 w31000 w256"
# The decoding matrix of the pseudo-inverse is another job's; the nearest token needs none.
CANDIDATES = DecodeSettings(
    method="nearest", restricted_to=" ".join([PROMPT, *(f"w{n}" for n in range(28))])
)
SOLVERS = {
    "adam": AdamSolver(steps=10, restarts=1, decode=DecodeSettings(method="nearest")),
    "sweep": SweepSolver(decode=CANDIDATES),
}


def shapes(size: str) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """Yield each shard's name and the shapes of its tensors."""
    width, inner, heads, keys = SIZES[size]
    narrow = width // heads * keys
    for number in range(BLOCKS):
        front = f"model.layers.{number}."
        yield (
            f"block-{number + 1}.safetensors",
            {
                f"{front}self_attn.q_proj.weight": (width, width),
                f"{front}self_attn.k_proj.weight": (narrow, width),
                f"{front}self_attn.v_proj.weight": (narrow, width),
                f"{front}self_attn.o_proj.weight": (width, width),
                f"{front}mlp.gate_proj.weight": (inner, width),
                f"{front}mlp.up_proj.weight": (inner, width),
                f"{front}mlp.down_proj.weight": (width, inner),
                f"{front}input_layernorm.weight": (width,),
                f"{front}post_attention_layernorm.weight": (width,),
            },
        )
    outside: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, width),
        "lm_head.weight": (VOCABULARY, width),
        "model.norm.weight": (width,),
    }
    yield "outside.safetensors", outside


def make(directory: Path, size: str) -> None:
    """Write the full model, one shard after another."""
    directory.mkdir(parents=True)
    width, inner, heads, keys = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    where = {}
    for file, wanted in shapes(size):
        tensors = {}
        for name, shape in wanted.items():
            tensor = torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) > 1:
                tensor.normal_(0, 0.02, generator=generator)
            tensors[name] = tensor
            where[name] = file
        save_file(tensors, directory / file, metadata={"format": "pt"})
        del tensors, tensor
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "num_hidden_layers": BLOCKS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))


def cut(scratch: Path, precision: str, blocks: int) -> None:
    """Prepare a checkpoint."""
    model = Model.model_validate({"source": "s", "quantization": precision})
    prepare(scratch / "full", model, blocks, checkpoint(scratch, precision, blocks))


def invert(scratch: Path, precision: str, blocks: int, solver: str) -> dict[str, Any]:
    """Load a checkpoint and explain one prompt whose first token is hidden."""
    cell = Cell(
        model="wide",
        site=f"block.{blocks}",
        residual=True,
        causal=True,
        padding="none",
        mask="1:",
        metric="l1",
        parametrisation="embedding",
        solver=solver,
        prompts="one",
        seed=0,
    )
    model = load(checkpoint(scratch, precision, blocks))
    settings = SOLVERS[solver]
    posed = (model, torch.empty(0), cell, settings, MetricWeights(), [PROMPT])
    problem, truth = make_problem(*posed)
    begun = time.perf_counter()
    result = run(problem, settings, truth)
    found = {"solving_seconds": round(time.perf_counter() - begun, 1)}
    if result.identified is not None:
        return {**found, "hidden_rank": result.identified[0][0].rank}
    return {**found, "last_over_first_loss": round(float(result.loss / result.first_loss), 4)}


def checkpoint(scratch: Path, precision: str, blocks: int) -> Path:
    return scratch / f"{precision}-{blocks}"


STAGES: dict[str, Callable[[Path, str, int], dict[str, Any] | None]] = {
    "prepare": cut,
    "load": lambda *place: {"vocabulary": len(load(checkpoint(*place)).embedding)},
    "adam": lambda *place: invert(*place, "adam"),
    "sweep": lambda *place: invert(*place, "sweep"),
}


def peak() -> int:
    """Return the largest resident memory that this process has had, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def stage(scratch: Path, size: str, name: str, precision: str, blocks: int) -> dict[str, Any]:
    """Run one stage in a new process and return what it took."""
    flags = ["--size", size, "--stage", name, "--precisions", precision, "--blocks", str(blocks)]
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, str(scratch), "", *flags],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    block = sum(math.prod(shape) for shape in next(shapes(size))[1].values())
    return {
        "stage": name,
        "precision": precision,
        "blocks": blocks,
        "block_float32_gb": round(4 * block / 1e9, 2),
        "embedding_float32_gb": round(4 * VOCABULARY * SIZES[size][0] / 1e9, 2),
        "seconds": round(time.perf_counter() - begun, 1),
        **measured,
    }


def main() -> None:
    """Run the stages one after another and write the table, or run one (of a child process)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="llama-2-70b")
    parser.add_argument("--stage", choices=["make", *STAGES])
    parser.add_argument(
        "--precisions", nargs="+", default=["int8"], choices=[*DTYPES, "int8", "nf4"]
    )
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    first, least = options.precisions[0], options.blocks[0]
    if options.stage:
        baseline, found = peak(), None
        if options.stage == "make":
            make(options.scratch / "full", options.size)
        else:
            found = STAGES[options.stage](options.scratch, first, least)
        held = weight_files(checkpoint(options.scratch, first, least))
        sizes = {
            "imports_gb": round(baseline / 1e9, 2),
            "peak_gb": round(peak() / 1e9, 2),
            "checkpoint_gb": round(sum(path.stat().st_size for path in held) / 1e9, 2),
        }
        print(json.dumps({**sizes, **(found or {})}))
        return
    options.scratch.mkdir()
    plan = [("make", first, 0)]
    plan += [("prepare", name, blocks) for name in options.precisions for blocks in options.blocks]
    plan += [(name, first, least) for name in ("load", "adam", "sweep")]
    rows = []
    try:
        for name, precision, blocks in plan:
            rows.append(stage(options.scratch, options.size, name, precision, blocks))
        write(options.out, rows)
    finally:
        shutil.rmtree(options.scratch)


if __name__ == "__main__":
    main()
