"""How activations are compared and searched for: the settings of metrics and solvers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tokinfo.study.fields import Integer, Real, Strict, fits, misfit


class MetricWeights(Strict):
    """Weights of the `l1+cosine` metric."""

    cosine: Real = Field(1.0, ge=0, description="Weight of 1 - |cos|.")
    l1: Real = Field(1.0, ge=0, description="Weight of the L1 sum.")


def _not_blank(text: str | None) -> None:
    if text is not None and not text.strip():
        raise misfit("is blank", "a text, or null for every token")


class DecodeSettings(Strict):
    """How a found embedding becomes tokens."""

    method: Literal["pseudo-inverse", "nearest"] = Field(
        "pseudo-inverse",
        description="`pseudo-inverse`: largest entry of embedding @ pinv(matrix), as published; "
        "`nearest`: smallest Euclidean distance.",
    )
    restricted_to: Annotated[str | None, fits(_not_blank)] = Field(
        None, min_length=1, description="Only tokens of this text are candidates (null: all)."
    )


class SolverBase(Strict):
    """Fields of every solver that descends."""

    decode: DecodeSettings = Field(
        default_factory=lambda: DecodeSettings(), description="How a found embedding is read."
    )


class Timed(Strict):
    """A solver that returns what it has when its time is up."""

    minutes: Real | None = Field(
        None,
        gt=0,
        description="Time for all prompts of a cell, after which the best so far is returned "
        "(null: no limit).",
    )


class ChapterSolver(SolverBase, Timed):
    """The published protocol: plain gradient descent from N(0, 1), one start."""

    kind: Literal["chapter"] = Field("chapter", description="The published protocol.")
    steps: Integer = Field(500, ge=1, description="Descent steps.")
    learning_rate: Real = Field(
        0.02, gt=0, description="First learning rate (published: 0.02 mixers, 2 Llama)."
    )
    final_share: Real = Field(
        0.1, gt=0, le=1, description="Last learning rate, as a share of the first (linear)."
    )
    start_scale: Real = Field(1.0, gt=0, description="Standard deviation of the start.")
    reference_noise: Real = Field(
        0.05,
        ge=0,
        description="Noise added to the embedding before the reference tokens are re-decoded, "
        "as published; only the `published_correct` column sees it.",
    )


class AdamSolver(SolverBase, Timed):
    """Adam from the embedding matrix's mean and scale, several starts at once."""

    kind: Literal["adam"] = Field("adam", description="Adam with restarts and a stopping rule.")
    steps: Integer = Field(300, ge=1, description="Most descent steps.")
    learning_rate: Real = Field(
        0.2,
        gt=0,
        description="Step in units of the embedding matrix's standard deviation "
        "(vocabulary parametrisation: scaled so that the embedding moves about as far; mixture: "
        "in nats).",
    )
    final_share: Real = Field(
        0.02, gt=0, le=1, description="Last learning rate, as a share of the first (linear)."
    )
    second_moment: Literal["component", "row"] = Field(
        "component",
        description="What a step is divided by: the root of each component's mean square "
        "gradient (Adam), or of the whole row's, which keeps the gradient's direction.",
    )
    nearest_penalty: Real = Field(
        0.0,
        ge=0,
        description="Weight of the mean squared distance of each position to its nearest token "
        "embedding, in units of the embedding's variance and of the row's first loss (0: none).",
    )
    clamp: bool = Field(
        False,
        description="After each step, clamp every component to its range over the vocabulary "
        "(vocabulary parametrisation: to between 0 and 1).",
    )
    project: Literal["none", "nearest"] = Field(
        "none",
        description="What the model is run on: the free embeddings, or the token embeddings "
        "nearest to them, the gradient there moving the free ones; the best tokens are kept.",
    )
    window: Integer = Field(
        1,
        ge=1,
        description="Decoded tokens a position that the forward model chooses from at the end, "
        "left to right (1: the first decoded token, unchecked).",
    )
    restarts: Integer = Field(
        1, ge=1, description="Independent starts per prompt; the best is kept."
    )
    check_every: Integer = Field(25, ge=1, description="Steps between checks of the stopping rule.")
    stable_checks: Integer = Field(
        3, ge=1, description="Checks in a row with the same decoded tokens before a row stops."
    )
    tolerance: Real = Field(
        1e-3,
        ge=0,
        description="A row is at the floor when its loss is below this share of its first loss.",
    )


def _untimed(descent: AdamSolver) -> None:
    if descent.minutes is not None:
        raise misfit("minutes is set for a part of a search", "minutes of the solver itself")


Descent = Annotated[AdamSolver, fits(_untimed)]
"""The descent that another search begins with."""


class SequentialSolver(Timed):
    """Exact search from left to right; every position must be visible."""

    kind: Literal["sequential"] = Field("sequential", description="Exact, left to right.")
    decode: DecodeSettings = Field(
        default_factory=lambda: DecodeSettings(), description="How candidates are ordered."
    )
    expected: Integer = Field(
        256,
        ge=0,
        description="Most tokens tried of those that the model expects next; as many of "
        "them as would have paid for the tokens found so far (0: none).",
    )
    steps: Integer = Field(20, ge=1, description="Descent steps for one token in one attempt.")
    attempts: Integer = Field(
        3,
        ge=1,
        description="Descents for one token, each from the best token of the one before.",
    )
    guesses: Integer = Field(
        2048,
        ge=0,
        description="Most tokens that are tried where descent fails, as a surrogate of the model "
        "proposes them; then the vocabulary is swept (0: none).",
    )
    check_every: Integer = Field(10, ge=1, description="Steps between trials of candidates.")
    candidates: Integer = Field(16, ge=5, description="Nearest tokens tried at each check.")
    learning_rate: Real = Field(
        0.5, gt=0, description="Step in units of the embedding's standard deviation."
    )
    tolerance: Real = Field(
        1e-4,
        gt=0,
        description="A token is proven when its activations are this near the target's, as a share "
        "of the distance of the embeddings' mean.",
    )


class NoiseSettings(Strict):
    """Gaussian noise on the visible activations: how much of it loses a hidden token."""

    lowest: Real = Field(1e-4, gt=0, description="Smallest noise-to-signal ratio tried.")
    highest: Real = Field(1e2, gt=0, description="Largest noise-to-signal ratio tried.")
    levels: Integer = Field(49, ge=2, description="Ratios tried, evenly spaced in their logarithm.")
    draws: Integer = Field(8, ge=1, description="Independent noises; the median is reported.")
    candidates: Integer = Field(
        512,
        ge=1,
        description="Competitors of the true token, the nearest without noise; those further "
        "away are not considered.",
    )

    @property
    def step(self) -> float:
        """The factor between neighbouring ratios: by as much a threshold may be too high."""
        return float((self.highest / self.lowest) ** (1 / (self.levels - 1)))


class SweepSolver(Timed):
    """Not an attack: given the other tokens, every candidate for one position is tested."""

    kind: Literal["sweep"] = Field("sweep", description="Exhaustive, given the other tokens.")
    decode: DecodeSettings = Field(
        default_factory=lambda: DecodeSettings(), description="Which tokens are candidates."
    )
    positions: Literal["hidden", "all"] = Field(
        "hidden", description="Which positions are swept; the others keep their true token."
    )
    first: Integer | None = Field(
        None, ge=1, description="Only this many leading positions of those (null: all)."
    )
    noise: NoiseSettings | None = Field(
        None, description="Also find the noise at which each token is lost (null: do not)."
    )


class JointSolver(Timed):
    """Given no token: descent, then search over tokens until the activations match."""

    kind: Literal["joint"] = Field("joint", description="Descent, then search over tokens.")
    decode: DecodeSettings = Field(
        default_factory=lambda: DecodeSettings(), description="Which tokens are candidates."
    )
    descent: Descent = Field(
        default_factory=lambda: AdamSolver(window=64),
        description="The descent that gives the start.",
    )
    restarts: Integer = Field(2, ge=1, description="Starts; the next is used when one fails.")
    mixtures: bool = Field(
        True,
        description="Behind attention, look for hidden tokens by mixtures too, as solver `mixture` "
        "does: first behind block 1, and for two or more behind later blocks.",
    )
    rounds: Integer = Field(
        24,
        ge=1,
        description="Most rounds of swaps in a row, each through all positions.",
    )
    leading: Integer | None = Field(
        8192,
        ge=1,
        description="Tokens that detection tries first, those with the lowest ids (frequent ones, "
        "in byte-pair vocabularies); without a certificate, all of them (null: all at once).",
    )
    gradient_candidates: Integer = Field(
        64, ge=1, description="Tokens proposed by the gradient at each position."
    )
    detections: Integer = Field(
        3,
        ge=0,
        description="Most detections in a row, each around the best prompt that the last one found "
        "(0: none).",
    )
    detection_rounds: Integer = Field(
        8,
        ge=1,
        description="Times that a detection judges every position, each time with a better "
        "estimate of the others' tokens (1: once, with any token possible there).",
    )
    combinations: Integer = Field(
        1024,
        ge=1,
        description="Combinations of the likeliest tokens of several positions that are tried "
        "after a detection.",
    )
    screen: Integer = Field(
        64, ge=1, description="Likeliest tokens of a position that combinations are made of."
    )
    sweep_found: bool = Field(
        True, description="Sweep the hidden positions around the found prompt, for its verdicts."
    )


class MixtureSolver(Timed):
    """Mix candidate tokens inside attention; from the whole vocabulary."""

    kind: Literal["mixture"] = Field("mixture", description="Tokens mixed inside attention.")
    decode: DecodeSettings = Field(
        default_factory=lambda: DecodeSettings(), description="Which tokens are candidates."
    )
    descent: Descent = Field(
        default_factory=lambda: AdamSolver(steps=150),
        description="The descent that finds visible tokens that are not known.",
    )
    rounds: Integer = Field(
        24, ge=1, description="Most times that candidates are added and mixed again."
    )
    steps: Integer = Field(
        30,
        ge=1,
        description="Descent steps on the mixtures in a round (behind the first block there are "
        "none: the mixtures of a round are found exactly).",
    )
    shortlist: Integer = Field(
        64, ge=1, description="Candidates of a position in the last lists, which are swapped."
    )
    leading: Integer | None = Field(
        8192,
        ge=1,
        description="Tokens that stand for unknown ones before anything is found, those with the "
        "lowest ids (frequent ones, in byte-pair vocabularies; null: all).",
    )


DescentSolver = ChapterSolver | AdamSolver
Solver = Annotated[
    ChapterSolver | AdamSolver | SequentialSolver | SweepSolver | JointSolver | MixtureSolver,
    Field(discriminator="kind"),
]

COMPONENTS = 640
"""Visible components that a detection compares, drawn at random where there are more."""

HELD = 1 << 31
"""Bytes of exponentials that a search by mixtures keeps between its rounds."""

MOST_ENTRIES = 4096
"""Entries of a sequence, candidates times positions, in which mixtures may descend through
attention; its scores grow with their square."""

MOST_MIXER_ENTRIES = 8 * MOST_ENTRIES
"""The same of a mixer, which keeps a sequence of its own for each entry. At 32 positions and a
width of 256 these hold about as much as attention's scores of 9 heads."""

MIXING = ("chapter", "adam")
"""Kinds of solver that may descend on mixtures."""

SWEEPING = ("sweep", "joint")
"""Kinds of solver that say what the activations identify at a position."""
