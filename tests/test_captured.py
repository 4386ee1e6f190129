"""Activations that another program captured, of a prompt that nobody here knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tokinfo as ti
from tokinfo.examples import tiny_model
from tokinfo.io.errors import TokinfoError
from tokinfo.probe.captured import captured

PROMPT = "Mario the man versus Mario the idea."
QUIET: dict[str, Any] = {"show_progress": False}
OF_TRUTH = (
    *("prompt", "true_id", "true_token", "true_loss", "correct", "in_top5", "in_prompt"),
    *("reference_id", "published_correct", "prompt_exact", "token_f1", "edit_similarity"),
)


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return tiny_model()


def states(pair: tuple[Any, Any], ids: list[int], block: int = 1) -> torch.Tensor:
    """What transformers itself says, [position, width]."""
    with torch.no_grad():
        out = pair[0].model(torch.tensor([ids]), output_hidden_states=True)
    found: torch.Tensor = out.hidden_states[block][0]
    return found


def true_ids(pair: tuple[Any, Any]) -> list[int]:
    found: list[int] = pair[1](PROMPT)["input_ids"]
    return found


def test_the_prompt_comes_back_and_no_column_says_what_is_right(pair: tuple[Any, Any]) -> None:
    ids = true_ids(pair)
    found = ti.invert(
        ti.load(*pair),
        activations=states(pair, ids)[2:],
        positions=range(2, len(ids)),
        length=len(ids),
        site="block.1",
        **QUIET,
    )
    assert found.text == PROMPT
    assert found.certified
    assert found.ids == ids
    assert set(found.claims) == {0, 1}
    assert found.correct is None
    assert found.recovered is None
    assert found.to_polars().select(OF_TRUTH).null_count().row(0) == (len(ids),) * len(OF_TRUTH)
    assert "true prompt" not in " ".join(found.sentences())


def test_a_hook_gives_what_hidden_states_give(pair: tuple[Any, Any]) -> None:
    ids, kept = true_ids(pair), []
    handle = (
        pair[0]
        .model.layers[1]
        .register_forward_hook(
            lambda _, __, out: kept.append(out[0] if isinstance(out, tuple) else out)
        )
    )
    with torch.no_grad():
        pair[0](torch.tensor([ids]))
    handle.remove()
    found = ti.load(*pair).invert_activations(kept[0], site="block.2", judge=False, **QUIET)
    assert found.text == PROMPT
    assert found.certified


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_certificate_holds_for_the_prompt_and_no_other(
    pair: tuple[Any, Any], dtype: torch.dtype
) -> None:
    """Stored in fewer bits they are further off, and the floor says so."""
    ids = true_ids(pair)
    opened = ti.load(*pair)
    kept = states(pair, ids)[1:].to(dtype)
    known = dict(enumerate(ids))
    arguments: dict[str, Any] = {"positions": range(1, len(ids)), "site": "block.1", **QUIET}
    del known[0]
    found = opened.invert_activations(kept, known=known, **arguments)
    assert found.certified
    assert found.ids == ids
    for place in (1, 4, len(ids) - 1):
        wrong = known | {place: (ids[place] + 1) % len(pair[1])}
        missed = opened.invert_activations(
            kept, known=wrong, solver="adam", judge=False, **arguments
        )
        assert not missed.certified, place


def test_no_claimed_token_is_wrong(pair: tuple[Any, Any]) -> None:
    opened = ti.load(*pair)
    generator = torch.Generator().manual_seed(0)
    claims = 0
    for _ in range(6):
        ids = torch.randint(len(pair[1]), (5,), generator=generator).tolist()
        found = opened.invert_activations(
            states(pair, ids)[2:], positions=[2, 3, 4], site="block.1", **QUIET
        )
        for position in found.claims:
            claims += 1
            assert found.ids[position] == ids[position]
    assert claims > 6


def test_special_tokens_in_front_are_known_unless_said_otherwise(pair: tuple[Any, Any]) -> None:
    from tokenizers.processors import TemplateProcessing

    model, tokenizer = tiny_model()
    bos = tokenizer.convert_ids_to_tokens(5)
    tokenizer.add_special_tokens({"bos_token": bos})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, 5)]
    )
    ids = tokenizer(PROMPT)["input_ids"]
    kept = states((model, tokenizer), ids)[2:]
    where = {"positions": range(2, len(ids)), "site": "block.1", **QUIET}
    found = ti.load(model, tokenizer).invert_activations(kept, **where)
    assert found.rows[0]["given"]
    assert found.text == PROMPT
    by_text = ti.load(model, tokenizer).invert_activations(kept, known={0: bos, 1: "M"}, **where)
    assert [row["given"] for row in by_text.rows[:3]] == [True, True, False]


# --- what is read ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".npy", ".pt"])
def test_files_are_read_with_their_positions(tmp_path: Path, suffix: str) -> None:
    held = torch.arange(12.0).reshape(3, 4)
    path = tmp_path / f"kept{suffix}"
    named = {"activations": held, "positions": torch.tensor([1, 2, 5])}
    if suffix == ".safetensors":
        save_file(named, path)
    elif suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in named.items()})
    elif suffix == ".npy":
        np.save(path, held.numpy())
    else:
        torch.save(named, path)
    found = captured(path, None, 6)
    assert torch.equal(found.activations, held)
    assert found.positions == ((0, 1, 2) if suffix == ".npy" else (1, 2, 5))


def test_rows_of_every_token_are_cut_to_the_positions() -> None:
    held = torch.arange(12.0).reshape(1, 3, 4)
    assert torch.equal(captured(held, [-1], 3).activations, held[0, 2:])


class Trap:
    """A pickle of it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("ran",))


def test_a_file_that_would_run_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"activations": Trap()}, tmp_path / "trap.pt")
    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    for name in ("trap.pt", "trap.npy"):
        with pytest.raises(TokinfoError, match=name):
            captured(tmp_path / name, None, None)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("activations", "positions", "length", "reason"),
    [
        (torch.zeros(2, 3, 4), None, None, "of one prompt"),
        (torch.zeros(0, 4), None, None, "shape"),
        (torch.zeros(3), None, None, "shape"),
        (torch.zeros(3, 4, dtype=torch.int64), None, None, "floating-point"),
        (torch.full((3, 4), torch.nan), None, None, "finite"),
        (torch.zeros(3, 4), [0, 1], 9, "3 rows for 2 positions"),
        (torch.zeros(3, 4), [0, 2, 1], None, "rising"),
        (torch.zeros(3, 4), [0, 1, 9], 5, "0 to 4"),
        ("nowhere.pt", None, None, "no such file"),
        ("no tensor", None, None, "no such file"),
        ({"a": 1}, None, None, "no tensor"),
    ],
)
def test_what_does_not_fit_is_one_line(
    activations: Any, positions: Any, length: Any, reason: str
) -> None:
    with pytest.raises(TokinfoError, match=reason) as raised:
        captured(activations, positions, length)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"activations": torch.zeros(4, 7)}, r"7 wide.*64"),
        ({"site": "mlp.9"}, "has 2 blocks"),
        ({"length": 900}, "the model holds 64"),
        ({"known": {0: "two tokens here"}}, "known 0"),
        ({"known": {0: 9999}}, "token 9999"),
        ({"known": {11: 1}}, "positions 0 to 4"),
        ({"known": dict.fromkeys(range(5), 1)}, "nothing to find"),
        ({"prompt": "x"}, "not both"),
    ],
)
def test_what_does_not_suit_the_model_is_one_line(
    pair: tuple[Any, Any], change: dict[str, Any], reason: str
) -> None:
    usual: dict[str, Any] = {"activations": torch.ones(4, 64), "site": "block.1", "length": 5}
    usual |= {"positions": [1, 2, 3, 4]} | QUIET
    with pytest.raises(TokinfoError, match=reason) as raised:
        ti.invert(ti.load(*pair), **usual | change)
    assert "\n" not in str(raised.value)
