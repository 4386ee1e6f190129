"""Checkpoints: what a cell loads, and no more: the embedding and the blocks the study reads.

`tokinfo.models.preparing` makes them from full models, whose directories are read here too.
`load` gives every model the same form; no code after it depends on a model's family.
"""

# mypy: allow-untyped-calls
# (transformers leaves many of its functions without types)

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from tokinfo.io.chats import ChatTemplate, read_template
from tokinfo.io.damaged import check, parse_json, parsing, reading
from tokinfo.io.errors import InvalidError
from tokinfo.io.tokenizers import Reading, read_prompt, special_ids
from tokinfo.models import placement, remote_code
from tokinfo.models.bitsandbytes import import_bitsandbytes, mend_bitsandbytes
from tokinfo.models.mixer import MODEL_TYPE, MixerSpec, MixerStack
from tokinfo.models.structure import HELD, leave_out_blocks
from tokinfo.study.fields import ComputeDtype, Quantization, State
from tokinfo.study.prompts import Prompt, written
from tokinfo.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers.configuration_utils import PretrainedConfig
    from transformers.modeling_utils import PreTrainedModel

FACTS = "tokinfo.json"
WEIGHTS = "model.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Facts(BaseModel):
    """The contents of tokinfo.json, beside a checkpoint's weights."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    family: str
    state: State
    seed: int | None = Field(description="Of random weights; null for trained ones.")
    quantization: Quantization
    dtype: ComputeDtype = Field(description="What activations are computed in.")
    outlier_threshold: float | None = Field(description="Of int8; null for other precisions.")
    unquantised: tuple[str, ...] = Field(description="Matrices that bitsandbytes leaves alone.")
    blocks_kept: int
    depth: int = Field(description="Blocks of the full model.")
    n_ctx: int | None
    vocabulary: int = Field(description="Rows of the embedding.")
    d_model: int
    pad_id: int
    digest: str = Field(description="SHA-256 of the weights and config.json.")
    model: str | None = Field(None, description="Its name in the study.")
    source: str | None = Field(None, description="Name of its source in the study.")
    special_tokens: bool = Field(True, description="Whether prompts get the tokenizer's.")
    training_share: float | None = Field(None, description="Of models trained here.")
    training_tokens: int | None = None
    held_out_loss: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A model as a cell sees it."""

    # Called as decoder(inputs_embeds=[batch, positions, d], attention_mask=..., use_cache=False);
    # in eval mode, no parameter requires a gradient.
    decoder: nn.Module
    embedding: Tensor  # [vocabulary, d], float32 copy (or view) of the decoder's
    tokenizer: tokenizers.Tokenizer
    pad_id: int
    facts: Facts
    template: ChatTemplate | None = None

    @property
    def dtype(self) -> torch.dtype:
        """What the decoder computes in, and wants ``inputs_embeds`` in."""
        return DTYPES[self.facts.dtype]

    @property
    def special(self) -> list[int]:
        """Ids of the tokenizer's special tokens, in order."""
        return special_ids(self.tokenizer)

    def text(self, token: int) -> str:
        """Return the text of a token; of a special one, its name."""
        return self.tokenizer.decode([token], skip_special_tokens=False)

    def read(self, prompts: Sequence[Prompt]) -> list[Reading]:
        """Return prompts as the model reads them; raises InvalidError where it cannot."""
        found = []
        for number, prompt in enumerate(prompts):
            try:
                found.append(read_prompt(self.tokenizer, self.template, written(prompt)))
            except InvalidError as error:
                raise InvalidError(f"prompt {number}: {error}") from None
        return found


# --- full models ---------------------------------------------------------------------------


def read_config(directory: Path) -> PretrainedConfig:
    """Read config.json of a full model.

    Raises FileNotFoundError naming a missing file, FetchError for one that cannot be used (fields
    that the family does not allow), and ValueError for a model of several parts (text and vision),
    whose decoder is not the whole of it, or one with code in another repository.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    import tokinfo.models.modeling_mixer  # noqa: F401 (registers the mixers)

    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not a model directory")
    with parsing(f"{path}: cannot be used"):
        values = parse_json(path.read_bytes())
        known = values.get("model_type") in CONFIG_MAPPING
        if not known and (outside := remote_code.foreign(values)):
            raise InvalidError(f"{path}: names code in another repository ({outside[0]})")
        if not known and "auto_map" in values and not remote_code.allowed():
            raise InvalidError(f"{path}: its code is not run (trust_remote_code)")
        config: PretrainedConfig = AutoConfig.from_pretrained(
            directory, trust_remote_code=remote_code.allowed() and not known
        )
        config = remote_code.without_code(config, known=known)
        alone = config.get_text_config(decoder=True) is config
    if not alone:
        raise InvalidError(
            f"{directory / 'config.json'}: a {config.model_type} holds its decoder beside other "
            "parts (text_config); save the decoder alone"
        )
    return config


def shorter(config: PretrainedConfig, blocks: int) -> PretrainedConfig:
    """Return a copy of a configuration, of a decoder that holds its first ``blocks`` blocks only.

    The depth it states stays that of the whole model: some families compute with it.
    """
    copy = type(config).from_dict(config.to_dict())
    setattr(copy, HELD, blocks)
    # Where the model's code lies.
    copy._name_or_path = config._name_or_path
    return copy


def empty_decoder(config: PretrainedConfig) -> PreTrainedModel:
    """Return a decoder on the meta device: its modules, without a byte of weights.

    Raises FetchError where transformers cannot build what the configuration says.
    """
    from transformers import AutoModel

    import tokinfo.models.modeling_mixer  # noqa: F401 (registers the mixers)

    what = f"{family(config)}: no decoder can be built"
    with parsing(what), quiet(), torch.device("meta"):
        decoder: PreTrainedModel = AutoModel.from_config(
            config, dtype=torch.float32, trust_remote_code=remote_code.allowed()
        )
    leave_out_blocks(decoder)
    return decoder


def decoder_class(config: PretrainedConfig) -> Any:
    """Return the class of a configuration's decoder, of as many blocks as it holds.

    What its ``from_pretrained`` gives has no block that is left out.
    """
    kind = type(empty_decoder(config))

    def build(self: PreTrainedModel, *arguments: Any, **keywords: Any) -> None:
        kind.__init__(self, *arguments, **keywords)
        leave_out_blocks(self)

    # Under the family's own name, by which transformers finds how its tensors are stored.
    return type(kind.__name__, (kind,), {"__init__": build, "__module__": kind.__module__})


def read_decoder(directory: Path, config: PretrainedConfig) -> PreTrainedModel:
    """Read the decoder (no head) of a full model in float32, only the blocks that ``config`` holds.

    Raises ValueError when the directory lacks weights that the configuration needs, FetchError when
    transformers cannot read them.
    """
    with parsing(f"{directory}: its weights cannot be read"), quiet():
        decoder, info = decoder_class(config).from_pretrained(
            directory,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InvalidError(f"{directory}: no weights for {missing[0]} ({len(missing)} missing)")
    found: PreTrainedModel = decoder
    mend_bitsandbytes(found)
    return found


def save_model(model: PreTrainedModel, directory: Path) -> None:
    """Write config.json and one model.safetensors, without a progress bar."""
    with quiet():
        model.save_pretrained(directory, max_shard_size="1TB")
    # safetensors are written readable by their owner alone; others may share the results.
    shutil.copymode(directory / "config.json", directory / WEIGHTS)


def input_table(decoder: nn.Module) -> Tensor:
    """Return what a decoder takes for its tokens [vocabulary, d], in its own precision.

    It is the embedding matrix, except where the embedding scales its rows (Gemma, by the square
    root of d): then it is their scaled copy.
    """
    table: nn.Embedding = decoder.get_input_embeddings()  # type: ignore[operator]
    if type(table).forward is nn.Embedding.forward:
        return table.weight.detach()
    with torch.no_grad():
        rows: Tensor = table(torch.arange(table.num_embeddings, device=table.weight.device))
    return rows


def family(config: PretrainedConfig) -> str:
    """Name the family of a model as the tables do: `mixer-flat`, ..., or its model_type."""
    if config.model_type == MODEL_TYPE:
        return f"mixer-{config.form}"
    return str(config.model_type)


def digest(directory: Path) -> str:
    """Return the SHA-256 of the bytes of all weights, file by file, followed by config.json's."""
    found = hashlib.sha256()
    for path in (*weight_files(directory), directory / "config.json"):
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                found.update(chunk)
    return found.hexdigest()


def weight_files(directory: Path) -> list[Path]:
    """Return a checkpoint's files of weights, in the order of their names."""
    return sorted(directory.glob("*.safetensors"))


# --- loading ------------------------------------------------------------------------------


def load(directory: Path, device: str = "cpu") -> Checkpoint:
    """Load a checkpoint that `prepare` wrote.

    On ``cuda`` it goes to one GPU, or to several where one is too small for it.

    Raises:
        FileNotFoundError: the directory is no checkpoint.
        ValueError: it is damaged, or does not fit on the GPUs.
        FetchError: it is no model that can be loaded.
    """
    path = directory / FACTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not a checkpoint (the `prepare` rule writes it)")
    check(directory)
    with reading(path):
        facts = Facts.model_validate_json(path.read_text(encoding="utf-8"))
    with reading(directory / "config.json"):
        config = parse_json((directory / "config.json").read_bytes())
        mixer = config["model_type"] == MODEL_TYPE and "quantization_config" not in config
    for file in weight_files(directory):
        # The header of a cut file does not match its size; no weights are read for this.
        with reading(file), safe_open(file, framework="pt"):
            pass
    gpus = _place(directory, facts, device)
    dtype = DTYPES[facts.dtype]
    decoder: nn.Module
    with parsing(f"{directory}: cannot be loaded"):
        if mixer:
            # Importing transformers takes about 3 s, as much as a warm mixer cell may cost in all.
            decoder = _load_mixer(directory, config, device, dtype)
        else:
            decoder = _load_auto(directory, config, device, gpus, dtype)
    decoder.eval().requires_grad_(False)
    tokenizer = load_tokenizer(directory)
    if not facts.special_tokens:
        tokenizer.post_processor = None  # what adds them
    return Checkpoint(
        decoder=decoder,
        embedding=input_table(decoder).float(),
        tokenizer=tokenizer,
        pad_id=facts.pad_id,
        facts=facts,
        template=read_template(directory),
    )


def _place(directory: Path, facts: Facts, device: str) -> list[int]:
    """Return the GPU of each block; on the CPU, warn where there is not enough memory."""
    held, dtype = facts.quantization, DTYPES[facts.dtype]
    widened = dtype.itemsize / DTYPES[held].itemsize if held in DTYPES else 1
    table = 0 if dtype is torch.float32 else 4 * facts.vocabulary * facts.d_model
    arguments = (directory, facts.blocks_kept, widened, table)
    if torch.device(device).type == "cuda":
        return placement.gpus_for(*arguments)
    placement.warn_of_memory(*arguments)
    return []


def _load_mixer(
    directory: Path, config: dict[str, Any], device: str, dtype: torch.dtype
) -> MixerStack:
    # Random weights that are thrown away are cheaper than the meta device, whose first
    # initialisation imports the compiler (1 s).
    with torch.random.fork_rng(devices=[]):
        held = config.get(HELD, config["num_hidden_layers"])
        stack = MixerStack(MixerSpec.from_config({**config, "num_hidden_layers": held}))
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for path in weight_files(directory)
        for name, tensor in load_file(path, device=device).items()
    }
    # assign: the memory-mapped tensors become the parameters; nothing is copied.
    stack.load_state_dict(state, assign=True)
    return stack


def _load_auto(
    directory: Path, config: dict[str, Any], device: str, gpus: list[int], dtype: torch.dtype
) -> PreTrainedModel:
    if "quantization_config" in config:
        import_bitsandbytes()
    where: dict[str, placement.Device] = {"": device}
    found = read_config(directory)
    with quiet():
        if len(set(gpus)) > 1:
            where = placement.device_map(empty_decoder(found), gpus)
        decoder: PreTrainedModel = decoder_class(found).from_pretrained(
            directory, config=found, dtype=dtype, use_safetensors=True, device_map=where
        )
    mend_bitsandbytes(decoder)
    return decoder


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' notes and bars out of the logs: unused head weights are meant here."""
    from transformers.utils import logging as notes

    before, bars = notes.get_verbosity(), notes.is_progress_bar_enabled()
    notes.set_verbosity_error()
    notes.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="bitsandbytes")
            yield
    finally:
        notes.set_verbosity(before)
        if bars:
            notes.enable_progress_bar()
