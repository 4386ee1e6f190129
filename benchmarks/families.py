"""Parity of every type of causal language model that `transformers` can build small.

    python benchmarks/families.py docs/evidence/families.csv --document docs/families.md

Each type is built with random weights (width 32, four blocks), saved, prepared as a study does,
and compared with `transformers`, as `tokinfo parity` does. It gets a process of its own, of limited
time and memory. A row says `agree`, `refused` with a reason, `wrong`, or `not built`, which is no
statement about tokinfo. The document's table is written from the rows.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

WIDTH, BLOCKS, VOCABULARY, POSITIONS = 32, 4, 96, 64
SECONDS, MEMORY, WEIGHTS = 25, 6_000_000_000, 5_000_000
"""Processor time and address space of a type's process, and most weights of its model."""
VERDICTS = ("agree", "refused", "wrong", "not built")
MARKS = ("<!-- from families.csv -->", "<!-- end of families.csv -->")

SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), BLOCKS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "dff"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("head_dim", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), POSITIONS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "n_group", "topk_group"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "hidden_size_per_layer_input"), 16),
    **dict.fromkeys(("decoder_layers", "encoder_layers"), BLOCKS),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "d_ff", "d_kv"), 48),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_d_state", "state_size"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    **{"sliding_window": 4, "initializer_range": 0.2, "rotary_dim": 4, "mamba_d_ssm": 64},
    **{"num_kv_shared_layers": 2, "laurel_rank": 4},
    **{"first_k_dense_replace": 1, "word_embed_proj_dim": WIDTH, "lru_width": WIDTH},
    **{"is_decoder": True, "attention_types": [[["global", "local"], BLOCKS // 2]]},
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
}
"""Small values of settings, given where a family's configuration has them."""
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": 4},
    {"head_dim": None},
    {"head_dim": None, "num_key_value_heads": 4},
    {"num_heads": 8, "head_dim": 8},
    {"num_experts_per_tok": 2, "n_group": None, "topk_group": None},
    {"intermediate_size": [48] * BLOCKS, "activation_sparsity_pattern": [0.0] * BLOCKS},
    {"num_kv_shared_layers": 0},
    {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16},
)
"""What is tried, one after the other, until a model is built."""


def models(kind: Any) -> Iterator[Any]:
    """Yield what gives a small model of a family for each variant of its settings."""
    import torch
    from transformers import AutoModelForCausalLM

    there = kind().to_dict()
    for variant in VARIANTS:
        settings = {**SMALL, **variant}
        chosen = {name: settings[name] for name in settings if name in there}
        aliases = {new: old for old, new in kind.attribute_map.items()}
        chosen |= {old: settings[old] for old in aliases.values() if old in SMALL and old in there}

        def build(chosen: dict[str, Any] = chosen) -> Any:
            config = kind(**{name: value for name, value in chosen.items() if value is not None})
            with torch.device("meta"):
                count = sum(
                    one.numel() for one in AutoModelForCausalLM.from_config(config).parameters()
                )
            if count > WEIGHTS:
                raise ValueError(f"{count} weights where the settings known here are small")
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
            for name, values in model.named_parameters():
                if values.ndim == 1:
                    torch.nn.init.normal_(values, 1.0 if "norm" in name else 0.0, 0.2)
            model(input_ids=torch.arange(4)[None], use_cache=False)
            return model

        yield build


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def examine(kind: Any) -> dict[str, Any]:
    """Build a model of a family and say how its sites compare."""
    reason = ""
    try:
        config = kind()
        if config.get_text_config(decoder=True) is not config:
            return {"verdict": "refused", "reason": "a model of several parts"}
        variants = list(models(kind))
    except Exception as error:
        return {"verdict": "not built", "reason": one_line(error)}
    for build in variants:
        try:
            model = build()
        except Exception as error:
            reason = reason or one_line(error)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            return {"class": type(model).__name__, **compared(model, Path(scratch))}
    return {"verdict": "not built", "reason": reason}


def compared(model: Any, scratch: Path) -> dict[str, Any]:
    """Prepare a model, compare it with itself, and sum up."""
    import tokenizers
    import torch

    from tokinfo.cli.parity import checkpoints
    from tokinfo.io.errors import TokinfoError
    from tokinfo.models.checkpoint import read_config, read_decoder, save_model
    from tokinfo.models.preparing import prepare
    from tokinfo.probe.parity import compare
    from tokinfo.study.sources import Model

    full = scratch / "full"
    save_model(model, full)
    words = tokenizers.models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0")
    tokenizers.Tokenizer(words).save(str(full / "tokenizer.json"))
    ids = torch.randint(1, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    try:
        prepare(full, Model(source="it"), 2, scratch / "cut")
        config = read_config(full)
        decoder = read_decoder(full, config).eval().requires_grad_(False)
        with checkpoints(full, config, decoder) as cut:
            rows = compare(decoder, ids, cut)
    except TokinfoError as error:
        reason = str(error).removeprefix("cut: ").replace(f"{scratch}/", "")
        return {"verdict": "refused", "reason": reason[:200]}
    worst = max((row.error for row in rows if row.error is not None), default=None)
    if any(row.error is not None and not row.passes() for row in rows):
        wrong = sorted({row.site for row in rows if row.error is not None and not row.passes()})
        return {"verdict": "wrong", "reason": " ".join(wrong), "error": f"{worst:.1e}"}
    places = {row.site.partition(".")[0]: row for row in reversed(rows) if row.passes()}
    refused = {row.site.partition(".")[0]: row.refusal for row in rows if row.error is None}
    sites = [place for place in ("attention", "mlp", "block") if place in places.keys() - refused]
    return {
        "verdict": "agree" if "block" in sites else "refused",
        "sites": " ".join(sites),
        "prefix": "again" if any("again" in row.read for row in rows) else "kept",
        "reason": "; ".join(
            f"{' and '.join(place for place in refused if refused[place] == why)}: {why[:200]}"
            for why in dict.fromkeys(refused.values())
        ),
        "error": "" if worst is None else f"{worst:.1e}",
    }


def work(name: str, results: Any) -> None:
    """Examine one type, in its own process."""
    import torch
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from tokinfo.models.checkpoint import quiet

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with quiet():
        try:
            results.put(examine(CONFIG_MAPPING[name]))
        except BaseException as error:
            results.put({"verdict": "wrong", "reason": f"no line of its own: {one_line(error)}"})


def scan(names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield one row for each type."""
    context = multiprocessing.get_context("fork")
    for name in names:
        results, begun = context.SimpleQueue(), time.perf_counter()
        process = context.Process(target=work, args=(name, results))
        process.start()
        process.join(4 * SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        found: dict[str, Any] = {"verdict": "not built", "reason": "no end within its limits"}
        if not results.empty():
            found = results.get()
        empty = dict.fromkeys(("class", "verdict", "sites", "prefix", "reason", "error"), "")
        row = {"type": name, **empty, **found, "seconds": f"{time.perf_counter() - begun:.1f}"}
        print(row["type"], row["verdict"], row["reason"], flush=True)
        yield row


def document(rows: Iterable[Mapping[str, str]]) -> str:
    """Return the document's table of the types that were built."""
    lines = [
        "| type | verdict | sites | prefix | what is refused, and why |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if row["verdict"] != "not built":
            reason = row["reason"].replace("|", "/").replace("<", "&lt;")
            cells = (row["type"], row["verdict"], row["sites"], row["prefix"], reason)
            lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|")
    return "\n".join(lines)


def rewritten(text: str, rows: Iterable[Mapping[str, str]]) -> str:
    """Return a document with its table between the marks written anew."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{document(rows)}\n{MARKS[1]}{after}"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="table to write")
    parser.add_argument("--document", type=Path, help="rewrite its table from the rows")
    parser.add_argument("--types", nargs="*", help="these only (default: all)")
    options = parser.parse_args()

    import torch
    from common import write
    from transformers import LlamaConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    torch.set_num_threads(1)
    examine(LlamaConfig)  # whatever is imported for it is there after every fork
    write(options.out, list(scan(options.types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))))
    if options.document is not None:
        text = options.document.read_text(encoding="utf-8")
        options.document.write_text(rewritten(text, read(options.out)), encoding="utf-8")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
