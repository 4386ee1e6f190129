from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import REPOSITORY
from tests.example_study import example, put
from tokinfo.io.tokenizers import count_tokens
from tokinfo.study.lengths import bounds
from tokinfo.study.load import StudyError, load_study, problems, prompt_problems
from tokinfo.study.study import Study
from tokinfo.text.promptcheck import PromptError, check_prompts

FLAT = ("sources", "flat")
LLAMA = ("sources", "llama")


def lines(raw: Any) -> list[str]:
    return [str(problem) for problem in problems(raw)]


def spoilt(*changes: tuple[tuple[str | int, ...], object]) -> list[str]:
    raw = example()
    for path, value in changes:
        put(raw, path, value)
    return lines(raw)


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No tokenizer of an earlier run lies about."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_the_example_is_valid() -> None:
    assert lines(example()) == []
    assert load_study(example()) == Study.model_validate(example())


# One mistake each: where it is made, and the start of the one line that must come of it.
FORM = [
    (("thread",), 2, "thread = 2: unknown key (did you mean `threads`?); allowed: name, "),
    (("threads",), 0, "threads = 0: should be greater than or equal to 1; allowed: a whole num"),
    (("device",), "gpu", "device = 'gpu': is not one of the choices; allowed: auto, cpu, cuda"),
    (("name",), "", "name = '': is empty"),
    (("name",), "  ", "name = '  ': is blank"),
    ((*FLAT, "d_model"), 1, "sources.flat.d_model = 1: should be greater than or equal to 2"),
    ((*FLAT, "widht"), 1, "sources.flat.widht = 1: unknown key; allowed: "),
    ((*FLAT, "kind"), "mixxer", "sources.flat.kind = 'mixxer': unknown kind (did you mean `mixe"),
    ((*FLAT, "training", "stps"), 1, "sources.flat.training.stps = 1: unknown key (did you mean"),
    ((*FLAT, "training", "seed"), True, "sources.flat.training.seed = true: should be a number"),
    (("sources", "smol"), 3, "sources.smol = 3: must be a mapping"),
    (("sources", "smol", "sha256"), "abc", "sources.smol.sha256 = 'abc': is not of the right"),
    (("solvers", "adam", "restarts"), 0, "solvers.adam.restarts = 0: should be greater than or"),
    (("solvers", "adam", "steps"), "many", "solvers.adam.steps = 'many': should be a valid int"),
    (("solvers", "adam", "decode"), {"method": "x"}, "solvers.adam.decode.method = 'x': is not"),
    (("models", "Big Model"), {"source": "smol"}, "models.Big Model: the name is not allowed; a"),
    (("models",), [], "models = []: must be a mapping"),
    (("grids",), [], "grids = []: is empty"),
    (("grids", 0, "masks"), [], "grids[0].masks = []: is empty"),
    (("grids", 0, "masks", 1), -1, "grids[0].masks[1] = -1: should be a text; write it in quo"),
    (("grids", 0, "metrics", 1), "l3", "grids[0].metrics[1] = 'l3': is not one of the choices"),
    (("grids", 0, "seeds"), [0, -1], "grids[0].seeds[1] = -1: should be greater than or equal"),
    (("grids", 1), 7, "grids[1] = 7: must be a mapping"),
    (("prompts", "sky", 1), 7, "prompts.sky[1] = 7: should be a text; write it in quotes"),
    (("prompts", "sky", 1), "a \ud800", "prompts.sky[1] = 'a \\ud800': has characters that ar"),
]

PASSAGES = {"corpus": "bible", "tokenizer": "bpe", "count": 2, "tokens": [4, 6]}

SENSE = [
    (("tokenizers", "bpe", "corpus"), "bibel", "tokenizers.bpe.corpus = 'bibel': unknown corpus"),
    ((*FLAT, "tokenizer"), "bpf", "sources.flat.tokenizer = 'bpf': unknown tokenizer (did you m"),
    (("models", "smol", "source"), "smoll", "models.smol.source = 'smoll': unknown source (did"),
    (("grids", 0, "models", 0), "flta", "grids[0].models[0] = 'flta': unknown model (did you"),
    (("grids", 0, "models", 0), "Flat", "grids[0].models[0] = 'Flat': unknown model (did you"),
    (("grids", 0, "solvers", 0), "sgd", "grids[0].solvers[0] = 'sgd': unknown solver; allowed:"),
    (("grids", 0, "prompts", 0), "sea", "grids[0].prompts[0] = 'sea': unknown prompt set"),
    (("grids", 0, "sites", 0), "blok.1", "grids[0].sites[0] = 'blok.1': is not a site; allowe"),
    (("grids", 0, "sites", 0), "block.3", "grids[0].sites[0] = 'block.3': is beyond the depth "
     "of `flat` (2 blocks); allowed: block.1 to block.2, or block.last"),
    (("grids", 0, "masks", 1), "x", "grids[0].masks[1] = 'x': is not a mask; allowed: a Python"),
    (("grids", 0, "masks", 1), "::0", "grids[0].masks[1] = '::0': the step of a mask must be"),
    (("grids", 0, "masks", 1), "0:", "grids[0].masks[1] = ':': repeats grids[0].masks[0]"),
    (("grids", 0, "masks", 1), "90:", "grids[0].masks[1] = '90:': shows no position of prompts"),
    (("grids", 0, "masks", 1), ":0", "grids[0].masks[1] = ':0': shows no position of prompts."),
    (("grids", 0, "masks", 1), ":90", "grids[0].masks[1] = ':90': hides no position of prompts"),
    (("grids", 0, "models"), ["flat", "flat"], "grids[0].models[1] = 'flat': repeats grids[0]."),
    (("grids", 0, "seeds"), [1, 1], "grids[0].seeds[1] = 1: repeats grids[0].seeds[0]"),
    (("grids", 0, "causal"), [True, False], "grids[0].causal = [true, false]: mixers are causal "
     "by construction: `flat`"),
    (("grids", 0, "padding"), ["n_ctx"], "grids[0].padding = ['n_ctx']: pretrained models are "
     "not padded to n_ctx: `smol`"),
    (("grids", 1, "sites", 0), "mlp.1", "grids[1].sites[0] = 'mlp.1': is read without the res"),
    (("grids", 1, "sites", 0), "embedding", "grids[1].sites[0] = 'embedding': is read without"),
    (("prompts", "sky", 0), "", "prompts.sky[0] = '': is blank"),
    (("prompts", "sky", 0), " \n", "prompts.sky[0] = ' \\n': is blank"),
    (("prompts", "sky", 0), "This is a prompt sentence", "prompts.sky[1] = 'This is a prompt se"),
    (("prompts", "sea"), [], "prompts.sea = []: is an empty set"),
    ((*LLAMA, "heads"), 5, "sources.llama.heads = 5: does not divide d_model = 32; allowed: 1, "
     "2, 4, 8, 16"),
    ((*LLAMA, "heads"), 32, "sources.llama.heads = 32: makes heads of 1 of d_model = 32; rotary"),
    ((*FLAT, "d_model"), 512, "grids[0].models[0] = 'flat': is as wide as its vocabulary is large "
     "(512): the pseudo-inverse of a square matrix multiplies what a descent leaves over; allowed: "
     "another width or vocabulary, or solvers with `decode: {method: nearest}`"),
    ((*FLAT, "expansion"), 2.0, "sources.flat.expansion = 2.0: has no meaning for form 'flat'"),
    ((*FLAT, "kernels"), 2, "sources.flat.kernels = 2: has no meaning for form 'flat'"),
    ((*FLAT, "training", "warmup"), 11, "sources.flat.training.warmup = 11: is more than train"),
    (("models", "llama"), {"source": "llama"}, "models.llama.state = 'trained': source `llama` "
     "has no training"),
    (("models", "flat", "compute_dtype"), "float16", "models.flat.compute_dtype = 'float16': "
     "weights in float32 would be rounded once more to compute in float16; allowed: null, float32"),
    (("models", "flat", "outlier_threshold"), 5.0, "models.flat.outlier_threshold = 5.0: has no "
     "meaning for quantization 'float32'; allowed: only with quantization int8"),
    (("models", "flat", "seed"), 3, "models.flat.seed = 3: a trained model has no random weigh"),
    (("models", "flat", "at"), 0.5, "models.flat.at = 0.5: is not among sources.flat.training.snap"
     "shots; allowed: 1"),

    (("models", "smol", "at"), 0.5, "models.smol.at = 0.5: only a model that is trained here is"),
    (("models", "llama", "at"), 0, "models.llama.at = 0.0: only a model that is trained here is"),
    ((*FLAT, "training", "snapshots"), [0.04], "sources.flat.training.snapshots[0] = 0.04: is less "
     "than half a step of 10; allowed: 0, or more than 0.05"),
    ((*FLAT, "training", "snapshots"), [0, 0.1, 0.12], "sources.flat.training.snapshots[2] = 0.12: "
     "is step 1 of 10, as 0.1 is; allowed: each step once"),
    ((*FLAT, "training", "snapshots"), [0.99], "sources.flat.training.snapshots[0] = 0.99: is step "
     "10 of 10, as 1 is"),
    ((*FLAT, "training", "snapshots"), [1], "sources.flat.training.snapshots[0] = 1: should be"),
    (("passages",), {"p": {**PASSAGES, "corpus": "bibel"}}, "passages.p.corpus = 'bibel': unknown"),
    (("passages",), {"p": {**PASSAGES, "tokenizer": "bp"}}, "passages.p.tokenizer = 'bp': unknown"),
    (("passages",), {"p": {**PASSAGES, "tokens": [8, 4]}}, "passages.p.tokens = [8, 4]: the fewe"),
    (("passages",), {"p": {**PASSAGES, "tokens": [8]}}, "passages.p.tokens = [8]: is empty"),
    (("passages",), {"p": {**PASSAGES, "count": 0}}, "passages.p.count = 0: should be greater"),
    (("passages",), {"sky": PASSAGES}, "passages.sky: names a set of `prompts` too"),
    (("prior",), "bibel", "prior = 'bibel': unknown corpus (did you mean `bible`?); allow"),
    (("grids", 0, "identify"), ["sgd"], "grids[0].identify[0] = 'sgd': unknown solver; allowed:"),
    (("grids", 0, "identify"), ["adam"], "grids[0].identify[0] = 'adam': is of kind adam, which "
     "does not say what is identifiable; allowed: solvers of kind sweep, joint: none here"),
    (("grids", 0, "solvers"), [], "grids[0].solvers = []: is empty, and `identify` names no solv"),
    (("grids", 0, "targets"), [], "grids[0].targets = []: is empty"),
    (("grids", 0, "targets"), ["mine"], "grids[0].targets[0] = 'mine': is not a target; allowed: "
     "own, shuffled or of:MODEL (another model of the study)"),
    (("grids", 0, "targets"), ["own", "own"], "grids[0].targets[1] = 'own': repeats grids[0].ta"),
    (("grids", 1, "targets"), ["of:smoll"], "grids[1].targets[0] = 'smoll': unknown model (did y"),
    (("grids", 1, "targets"), ["of:llama"], "grids[1].targets[0] = 'of:llama': has the same weig"),
    (("grids", 1, "targets"), ["of:smol"], "grids[1].targets[0] = 'of:smol': has another tokeni"),
    (("results",), "../out", "results = '../out': must be a relative path"),
    (("results",), "/tmp/out", "results = '/tmp/out': must be a relative path"),
    (("results",), "a//b", "results = 'a//b': must be a relative path"),
    (("results",), ".", "results = '.': must be a relative path"),
    (("corpora", "a.held-out"), example()["corpora"]["bible"], "corpora.a.held-out: names that"),
    (("corpora", "bible"), {"kind": "file", "path": "no.txt"}, "corpora.bible.path = 'no.txt': t"),
    (("sources", "smol"), {"kind": "local", "path": "no", "blocks": 30}, "sources.smol.path = 'n"),
    (("solvers", "adam", "decode"), {"restricted_to": " "}, "solvers.adam.decode.restricted_to "),
    (("grids", 0, "seeds"), list(range(200_000)), "grids: the grids stand for 4,800,004 cells"),
]  # fmt: skip


def test_a_square_embedding_is_fine_where_the_nearest_neighbour_reads_it() -> None:
    square = ((*FLAT, "d_model"), 512)
    nearest = (("solvers", "adam", "decode"), {"method": "nearest"})
    assert len(spoilt(square)) == 1
    assert spoilt(square, nearest) == []


@pytest.mark.parametrize(("path", "value", "line"), FORM + SENSE, ids=lambda v: str(v)[:50])
def test_one_mistake_gives_one_line_with_its_key_value_and_what_is_allowed(
    path: tuple[str | int, ...], value: object, line: str
) -> None:
    found = spoilt((path, value))
    assert len(found) == 1, found
    assert found[0].startswith(line)


def test_a_missing_value_is_named_with_what_it_should_be() -> None:
    raw = example()
    del (
        raw["sources"]["flat"]["d_model"],
        raw["grids"][0]["solvers"],
        raw["sources"]["smol"]["kind"],
    )
    assert lines(raw) == [
        "sources.flat.d_model: is missing; allowed: a whole number at least 2 "
        "(Width of an embedding)",
        "sources.smol.kind: is missing; allowed: gguf, hub, local, mixer, transformer, wheel",
        "grids[0].solvers = []: is empty, and `identify` names no solver either; allowed: chapter, "
        "adam",
    ]


def test_an_empty_configuration_misses_every_required_part_and_nothing_else() -> None:
    required = [name for name, field in Study.model_fields.items() if field.is_required()]
    # Of the grids and the claims, a study needs one.
    assert [line.split(":")[0] for line in lines({})] == [*required, "grids = []"]


@pytest.mark.parametrize("group", [FORM, SENSE], ids=["form", "sense"])
def test_mistakes_in_different_places_are_all_reported_at_once(group: list[Any]) -> None:
    """As many as can be made together: each must still give its own line."""
    raw, expected, used = example(), [], set[Any]()
    for path, value, line in group:
        # One mistake a top-level entry: some would hide or change others.
        if path[:2] not in used and len(path) > 2:
            used.add(path[:2])
            put(raw, path, value)
            expected.append(line)
    found = lines(raw)
    assert len(expected) >= 4
    for line in expected:
        assert any(other.startswith(line) for other in found), (line, found)


def test_mistakes_of_form_do_not_hide_those_of_sense() -> None:
    found = spoilt(
        ((*FLAT, "training", "learning_rate"), "fast"),
        (("solvers", "adam", "restarts"), 0),
        (("grids", 0, "metrics"), ["l3"]),
        (("grids", 0, "masks"), [5, "90:", "x"]),
        (("grids", 0, "sites"), ["block.9"]),
        (("grids", 1, "models"), ["lama"]),
        (("prompts", "sky", 0), 5),
        (("prompts", "sky", 1), "one " * 17),
    )
    starts = [
        "sources.flat.training.learning_rate = 'fast'",
        "solvers.adam.restarts = 0",
        "grids[0].metrics[0] = 'l3'",
        "grids[0].masks[0] = 5",
        "prompts.sky[0] = 5",
        "grids[1].models[0] = 'lama': unknown model",
        "grids[0].sites[0] = 'block.9': is beyond the depth of `flat` (2 blocks), `llama` (4",
        "grids[0].masks[2] = 'x': is not a mask",
        "prompts.sky[1] = 'one one",
        "grids[0].masks[1] = '90:': shows no position",
    ]
    for start in starts:
        assert any(line.startswith(start) for line in found), (start, found)


def test_a_broken_entry_is_not_also_called_unknown() -> None:
    found = spoilt(((*FLAT, "d_model"), "wide"), (("solvers", "adam"), 1), (("tokenizers",), 4))
    assert [line.split(" = ")[0] for line in found] == [
        "tokenizers",
        "sources.flat.d_model",
        "solvers.adam",
    ]


def test_a_default_in_place_of_a_wrong_value_is_not_judged() -> None:
    assert len(spoilt(((*FLAT, "training"), {"steps": "x", "warmup": 400}))) == 1
    long = "word " * 3000
    wrong = (("sources", "smol", "n_ctx"), "x"), (("prompts", "sky"), [long])
    grid = (("grids",), [{**example()["grids"][0], "models": ["smol"]}])
    assert len(spoilt(*wrong, grid)) == 1


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def everywhere(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not isinstance(value, dict | list):
        return [path]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(found for key, inner in items for found in everywhere(inner, (*path, key)))]


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(st.sampled_from(everywhere(example())[1:]), yaml_values), max_size=4))
def test_no_configuration_ends_in_a_traceback(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    raw = example()
    for path, value in sorted(changes, key=lambda change: -len(change[0])):
        put(raw, path, value)
    found = problems(raw)
    assert len("\n".join(map(str, found)).splitlines()) == len(found)
    if found:
        assert failure(raw) == [str(problem) for problem in found]
    else:
        assert load_study(raw).cells()


# --- targets ------------------------------------------------------------------------------


def controlled(target: str, grid: dict[str, Any] | None = None, **sources: Any) -> list[str]:
    """What is wrong with a control of the untrained `llama`; ``sources`` change other sources."""
    raw = example()
    raw["sources"]["twin"] = {**raw["sources"]["llama"], **sources}
    raw["models"]["twin"] = {"source": "twin", "state": "untrained", "seed": 1}
    raw["models"]["other"] = {"source": "llama", "state": "untrained", "seed": 2}
    raw["models"]["bf16"] = {**raw["models"]["llama"], "quantization": "bfloat16"}
    raw["tokenizers"]["small"] = {"corpus": "bible", "vocabulary": 300}
    raw["solvers"]["sweep"] = {"kind": "sweep"}
    raw["grids"][1] |= {"targets": ["own", target], "residual": [True], **(grid or {})}
    return [line.removeprefix("grids[1].targets[1] = ") for line in lines(raw)]


def test_another_seed_and_an_equal_source_make_a_control() -> None:
    assert controlled("of:other") == controlled("of:twin") == controlled("shuffled") == []


@pytest.mark.parametrize(
    ("target", "changes", "says"),
    [
        ("of:bf16", {}, "'of:bf16': has the same weights, so the true prompt may explain it (for "),
        ("of:twin", {"d_model": 64}, "'of:twin': is 64 wide, not 32 (for model `llama`)"),
        ("of:twin", {"tokenizer": "small"}, "'of:twin': has another tokenizer, `small` for `bpe`"),
        ("of:twin", {"n_ctx": 15}, "'of:twin': holds 15 positions, not 16"),
        (
            "of:twin",
            {"grid": {"sites": ["block.last"]}, "blocks": 3},
            "'of:twin': has 3 blocks, and",
        ),
        (
            "of:flat",
            {"grid": {"causal": [False]}},
            "'of:flat': its model is a mixer, which is causa",
        ),
        (
            "shuffled",
            {"grid": {"sites": ["block.1", "embedding"]}},
            "'shuffled': at the site embedd",
        ),
        (
            "shuffled",
            {"grid": {"masks": ["1:", "-1"]}},
            "'shuffled': needs two visible positions, ",
        ),
        (
            "of:other",
            {"grid": {"solvers": [], "identify": ["sweep"]}},
            "grids[1].targets = ['own', ",
        ),
    ],
)
def test_what_some_prompt_could_explain_is_no_control(
    target: str, changes: dict[str, Any], says: str
) -> None:
    (line,) = controlled(target, **changes)
    assert line.startswith(says), line


def test_identify_takes_solvers_that_sweep_and_may_stand_alone() -> None:
    raw = put(example(), ("solvers", "sweep"), {"kind": "sweep"})
    raw["solvers"]["joint"] = {"kind": "joint"}
    raw["grids"][0] |= {"identify": ["sweep", "joint"]}
    assert lines(raw) == []
    assert lines(put(raw, ("grids", 0, "solvers"), [])) == []
    (line,) = lines(put(raw, ("grids", 0, "identify", 1), "chapter"))
    assert line.endswith("allowed: solvers of kind sweep, joint: sweep, joint")


def test_identify_counts_once_for_each_setting() -> None:
    raw = put(example(), ("solvers", "sweep"), {"kind": "sweep"})
    raw["grids"][0] |= {"identify": ["sweep"], "solvers": [], "seeds": list(range(200_000))}
    assert lines(raw) == []


def test_the_file_of_a_prior_is_looked_for_where_some_cell_uses_it() -> None:
    raw = put(example(), ("corpora", "text"), {"kind": "file", "path": "no.txt"}) | {
        "prior": "text"
    }
    assert lines(raw) == []
    raw["solvers"]["sweep"] = {"kind": "sweep"}
    raw["grids"][0]["identify"] = ["sweep"]
    assert [line.split(":")[0] for line in lines(raw)] == ["corpora.text.path = 'no.txt'"]


# --- prompts and lengths ------------------------------------------------------------------


def byte_level(vocabulary: int, texts: list[str]) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


LICENSE = REPOSITORY / "LICENSE"  # English prose that is always there
TOKENIZER = byte_level(400, LICENSE.read_text().splitlines())


@given(st.text(min_size=1))
@settings(max_examples=300, deadline=None)
def test_bounds_contain_the_number_of_tokens_of_byte_level_bpe(prompt: str) -> None:
    low, high = bounds(prompt, pretrained=False)
    assert low <= len(TOKENIZER.encode(prompt).ids) <= high


def test_a_prompt_that_fits_or_not_by_its_exact_length_waits_for_the_tokenizer() -> None:
    """Seventeen words cannot fit 16 positions; sixteen may."""
    assert spoilt((("prompts", "sky", 0), " ".join("a" * 16))) == []
    found = spoilt((("prompts", "sky", 0), " ".join("a" * 17)))
    assert [line.split(": ")[1] for line in found] == [
        "has 17 to 33 tokens, more than n_ctx = 16 (model `flat`); allowed",
        "has 17 to 33 tokens, more than n_ctx = 16 (model `llama`); allowed",
    ]


def save_tokenizer(directory: Path) -> None:
    directory.mkdir(parents=True)
    TOKENIZER.save(str(directory / "tokenizer.json"))


def test_with_the_tokenizer_of_an_earlier_run_prompts_are_counted(empty_directory: Path) -> None:
    save_tokenizer(empty_directory / "results/tokenizers/bpe")
    prompt = "zqxj" * 5  # one word that this tokenizer takes byte by byte
    count = len(TOKENIZER.encode(prompt).ids)
    assert count > 16
    raw = put(example(), ("tokenizers", "bpe", "vocabulary"), TOKENIZER.get_vocab_size())
    found = lines(put(raw, ("prompts", "sky", 0), prompt))
    assert [line.split(": ", 1)[1] for line in found] == [
        f"has {count} tokens, more than n_ctx = 16, counted with "
        f"results/tokenizers/bpe/tokenizer.json (model `{model}`); allowed: 1 to 16 tokens"
        for model in ("flat", "llama")
    ]


def test_a_tokenizer_of_another_size_is_a_leftover_and_not_used(empty_directory: Path) -> None:
    save_tokenizer(empty_directory / "results/tokenizers/bpe")
    assert spoilt((("prompts", "sky", 0), "zqxj" * 5)) == []


def test_a_file_that_is_no_tokenizer_is_not_used(empty_directory: Path) -> None:
    directory = empty_directory / "results/sources/smol/config"
    directory.mkdir(parents=True)
    (directory / "tokenizer.json").write_text("{}")
    assert lines(example()) == []


def test_prompt_problems_says_exactly_what_does_not_fit() -> None:
    raw = put(example(), ("grids", 0, "masks"), [":", "3:", "-1"])
    study = load_study(raw)
    assert prompt_problems(study, "flat", {"sky": [5, 16]}) == []
    found = [str(problem) for problem in prompt_problems(study, "flat", {"sky": [1, 17]})]
    assert [line.split(" (")[0] for line in found] == [
        "prompts.sky[1] = 'This is a prompt sentence': has 17 tokens, more than n_ctx = 16",
        "grids[0].masks[1] = '3:': shows no position of prompts.sky[0] = 'The sky is blue.' "
        "of 1 token",
        "grids[0].masks[2] = '-1': hides no position of prompts.sky[0] = 'The sky is blue.' "
        "of 1 token",
    ]
    assert [p.message for p in prompt_problems(study, "flat", {"sky": [0, 9]})] == [
        "has no token (model `flat`)"
    ]


def test_the_mask_of_a_padded_prompt_applies_to_the_pads_too() -> None:
    """`90:` and `:90` of 16 positions, whatever the prompt; `10:` shows pads."""
    grid = {**example()["grids"][0], "models": ["flat"], "padding": ["n_ctx"]}
    for mask, wrong in (("10:", 0), (":10", 0), ("16:", 1), (":16", 1), ("-16:", 1)):
        found = spoilt((("grids",), [{**grid, "masks": [mask]}]))
        assert len(found) == wrong, (mask, found)


def test_tokens_are_counted_as_the_tokenizer_adds_special_ones(tmp_path: Path) -> None:
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    texts = ["The sky", "<|endoftext|>", "blue"]
    expected = [len(TOKENIZER.encode(text).ids) for text in texts]
    assert count_tokens(tmp_path / "tokenizer.json", texts) == expected


def test_special_tokens_are_left_out_where_a_source_says_so(tmp_path: Path) -> None:
    begun = byte_level(400, ["The sky is blue."])
    begun.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    begun.save(str(tmp_path / "tokenizer.json"))
    texts = ["The sky", "blue"]
    bare = [len(begun.encode(text, add_special_tokens=False).ids) for text in texts]
    file = tmp_path / "tokenizer.json"
    assert count_tokens(file, texts) == [count + 1 for count in bare]
    assert count_tokens(file, texts, special_tokens=False) == bare
    # A mask that hides the only token of a prompt shows none; with one in front it shows one.
    study = {"n_ctx": 8, "prompts": {"p": ["b"]}, "uses": [["p", "1:", "none"]]}
    check_prompts(study, tmp_path, tmp_path / "counts.json")
    with pytest.raises(PromptError, match="shows no position"):
        check_prompts(study | {"special_tokens": False}, tmp_path, tmp_path / "counts.json")


# --- a local model ------------------------------------------------------------------------


def test_a_local_model_is_held_to_its_own_config(empty_directory: Path) -> None:
    model = empty_directory / "model"
    model.mkdir()
    config = {"num_hidden_layers": 12, "max_position_embeddings": 64}
    (model / "config.json").write_text(json.dumps(config))
    local = {"kind": "local", "path": "model", "blocks": 30}
    assert [line.split(": ")[0] for line in spoilt((("sources", "smol"), local))] == [
        "sources.smol.blocks = 30",
        "sources.smol.n_ctx = 2048",
    ]
    assert spoilt((("sources", "smol"), {**local, "blocks": 12, "n_ctx": 64})) == []


# --- files --------------------------------------------------------------------------------


def failure(*args: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(StudyError) as caught:
        load_study(*args, **kwargs)
    return str(caught.value).splitlines()


def test_a_study_is_read_from_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "study.yaml", example())
    assert load_study(path) == load_study([path]) == load_study(str(path)) == load_study(example())


def test_json_is_read_too(tmp_path: Path) -> None:
    assert load_study(write(tmp_path / "s.json", json.dumps(example()))) == load_study(example())


def test_files_merge_as_in_snakemake_and_each_problem_names_its_file(tmp_path: Path) -> None:
    utils = pytest.importorskip("snakemake.utils")
    first = write(tmp_path / "first.yaml", example())
    second = write(
        tmp_path / "second.yaml",
        {"threads": 0, "sources": {"flat": {"d_model": 1}}, "prompts": {"sky": ["Blue sky"]}},
    )
    found = failure([first, second], {"device": "gpu"})
    assert [line.split(" = ")[0] for line in found] == [
        "--config: device",
        f"{second}: threads",
        f"{second}: sources.flat.d_model",
    ]
    merged = example()
    utils.update_config(merged, yaml.safe_load(second.read_text()))
    merged["threads"] = merged["sources"]["flat"]["d_model"] = 4
    good = load_study([first, second], {"threads": 4, "sources": {"flat": {"d_model": 4}}})
    assert good == load_study(merged)
    assert good.prompts == {"sky": ["Blue sky"]}


def test_a_merged_configuration_still_names_its_files(tmp_path: Path) -> None:
    path = write(tmp_path / "study.yaml", put(example(), (*FLAT, "d_model"), 1))
    merged = OrderedDict(yaml.safe_load(path.read_text()))
    merged["threads"] = 0
    assert [line.split(" = ")[0] for line in failure(merged, files=[path])] == [
        "--config: threads",
        f"{path}: sources.flat.d_model",
    ]
    assert [line.split(" = ")[0] for line in failure(merged)] == ["threads", "sources.flat.d_model"]


def test_keys_given_twice_are_reported_with_their_lines(tmp_path: Path) -> None:
    text = yaml.safe_dump(example(), sort_keys=False) + "threads: 1\nname: Second\n"
    path = write(tmp_path / "study.yaml", text + "solvers:\n  adam: {kind: adam, kind: adam}\n")
    last = len(text.splitlines())
    solvers = text.splitlines().index("solvers:") + 1
    expected = [
        f"{path}: name: the key is given twice, on lines 1 and {last}; allowed: each key once",
        f"{path}: solvers: the key is given twice, on lines {solvers} and {last + 1}",
        f"{path}: solvers.adam.kind: the key is given twice, on lines {last + 2} and {last + 2}",
    ]
    found = failure(path)
    assert len([line for line in found if "given twice" in line]) == 3
    for line in expected:
        assert any(other.startswith(line) for other in found), (line, found)
    assert [line for line in failure(example(), files=[path]) if "given twice" in line] == found[:3]


def test_a_key_that_overrides_a_merged_one_is_no_duplicate(tmp_path: Path) -> None:
    raw = example()
    del raw["sources"]["flat"]
    text = yaml.safe_dump(raw).replace(
        "sources:\n",
        "sources:\n"
        "  base: &base {kind: mixer, form: flat, d_model: 8, blocks: 2, n_ctx: 16,"
        " tokenizer: bpe}\n"
        "  flat: {<<: *base, d_model: 16, training: {steps: 20}}\n",
    )
    study = load_study(write(tmp_path / "study.yaml", text))
    assert [study.sources[name].d_model for name in ("base", "flat")] == [8, 16]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "is not valid YAML"),
        ("- a\n- b\n", "must be a mapping of keys to values at its top level"),
        ("a: !!python/object:os.system {}", "is not valid YAML"),
        ("{[1]: 2}", "is not valid YAML"),
        ("a: 2020-99-99", "is not valid YAML"),
        ("\x00", "is not valid YAML"),
        ("[" * 3000, "is n"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_the_file(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path / "study.yaml", text)
    (line,) = failure(path)
    assert line.startswith(f"{path}: (the whole file): {message}")


def test_a_missing_file_a_directory_and_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xfa")
    found = failure([tmp_path / "no.yaml", tmp_path, binary])
    assert len(found) == 3
    assert "there is no such file" in found[0]
    assert "cannot be read" in found[1]


def test_a_file_that_contains_itself_ends_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "study.yaml", "name: &a [*a]\nsources: &b {flat: *b}\n")
    assert failure(path)


def test_an_empty_file_misses_everything(tmp_path: Path) -> None:
    path = write(tmp_path / "study.yaml", "# nothing yet\n")
    assert f"{path}: models: is missing" in "\n".join(failure(path))


@pytest.mark.parametrize(
    ("held", "computed"),
    [
        *(("int8", dtype) for dtype in ("float32", "bfloat16", "float16")),
        *(("nf4", dtype) for dtype in ("float32", "bfloat16", "float16")),
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("bfloat16", "float32"),
        ("float16", "float32"),
    ],
)
def test_what_may_be_computed_in_is_what_does_not_round_the_weights_again(
    held: str, computed: str
) -> None:
    precision = {"source": "smol", "quantization": held, "compute_dtype": computed}
    assert spoilt((("models", "smol"), precision)) == []


def test_an_outlier_threshold_goes_with_int8() -> None:
    assert spoilt((("models", "smol", "outlier_threshold"), 3.5)) == []
    (line,) = spoilt((("models", "smol", "outlier_threshold"), 0))
    assert line.startswith("models.smol.outlier_threshold = 0: should be greater than 0")


def drawn(tokens: list[int], mask: str) -> list[str]:
    """Problems of a study whose first grid is given passages of these lengths, under one mask."""
    raw = example()
    raw["passages"] = {"p": PASSAGES | {"tokens": tokens}}
    raw["grids"][0] |= {"models": ["flat", "smol"], "prompts": ["p"], "masks": [mask]}
    return [str(problem) for problem in problems(raw)]


def test_lengths_of_passages_are_known_before_they_are_drawn() -> None:
    assert drawn([4, 6], "3:") == []
    (line,) = drawn([4, 6], "5:")
    # Only to the tokenizer that counts them: SmolLM2 may find more tokens in the same text.
    assert line.startswith(
        "grids[0].masks[0] = '5:': shows no position of passages.p.tokens = [4, 6] of 4 tokens "
        "(model `flat`); allowed: a mask that"
    )
    (line,) = drawn([4, 20], "3:")
    assert line == (
        "passages.p.tokens = [4, 20]: has 20 tokens, more than n_ctx = 16 (model `flat`); "
        "allowed: 1 to 16 tokens"
    )


def test_a_model_earlier_in_its_training_has_other_weights_to_explain() -> None:
    raw = example()
    put(raw, (*FLAT, "training", "snapshots"), [0.5])
    raw["models"]["early"] = {"source": "flat", "at": 0.5}
    raw["models"]["early-int8"] = {"source": "flat", "at": 0.5, "quantization": "int8"}
    raw["grids"][0] |= {"models": ["early"], "targets": ["of:flat"]}
    assert problems(raw) == []
    raw["grids"][0]["targets"] = ["of:early-int8"]
    assert "has the same weights" in str(problems(raw)[0])
