"""The page of token strips: right, safe, small, and looked at in a browser where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.synthetic_recovery import FakeModel, cell_rows, default_study, frame, known_rows
from tokinfo.report.pages.strips import write_strips
from tokinfo.report.tokens import show
from tokinfo.tables.recovery import TableError

FLAT = FakeModel("flat", "flat", "mixer-flat", 8, hidden=0.6)


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """Line breaks and indents of the template are one space, as in a browser."""
        return re.sub(r"[ \n]+", " ", "".join(self.words))

    def classes(self, tag: str) -> list[str | None]:
        return [attributes.get("class") for name, attributes in self.elements if name == tag]


def write(rows: list[dict[str, Any]], directory: Path, **options: Any) -> Page:
    frame(rows).write_parquet(directory / "recovery.parquet")
    write_strips(directory / "recovery.parquet", directory / "strips.html", **options)
    return Page((directory / "strips.html").read_text(encoding="utf-8"))


def test_every_position_is_shown_once_with_its_outcome(tmp_path: Path) -> None:
    rows = cell_rows(FLAT, mask="1:", texts=("a b c d",))
    for row, (right, near) in zip(
        rows, [(False, False), (True, True), (False, True), (True, True)], strict=True
    ):
        row |= {"correct": right, "in_top5": near, "found_token": " x"}
    page = write(rows, tmp_path)
    legend = 5
    assert page.classes("i")[legend:] == ["w h", "r", "t", "r"]
    assert "a·x·b·x·c·x·d·x" in page.text


def test_known_tokens_are_marked_and_not_counted(tmp_path: Path) -> None:
    rows = known_rows(cell_rows(FLAT, mask="2:", texts=("a b c d",)), "1:3")
    rows = [row if row["given"] else row | {"correct": False, "in_top5": False} for row in rows]
    page = write(rows, tmp_path)
    assert page.classes("i")[-4:] == ["w h", "g h", "g", "w"]
    assert "The search was given this token, and no number counts it." in page.text
    assert "0 of 1" in page.text
    assert "1 of" not in page.text
    assert "(known 1:3)" in page.text
    assert "was given this token" not in write(cell_rows(FLAT), tmp_path).text


def test_hidden_positions_differ_by_more_than_colour(tmp_path: Path) -> None:
    write(cell_rows(FLAT), tmp_path)
    style = (tmp_path / "strips.html").read_text().split("</style>")[0]
    assert 'content: "hidden"' in style
    for sign in ("2713", "2717", '"5"'):
        assert sign in style
    assert "dashed" in style
    assert "prefers-color-scheme: dark" in style


HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)> </details><style>*{display:none}'


def test_a_prompt_cannot_add_markup(tmp_path: Path) -> None:
    rows = cell_rows(FLAT, texts=(HOSTILE,))
    for row in rows:
        row |= {
            "true_token": HOSTILE[: 20 + row["position"]],
            "found_token": "</u></i></b>&lt;<script src=//x>",
            "top5_tokens": ['" onmouseover="x', "<b>"],
            "model": "<i>model",
            "solver": "'\"><script>",
            "prompts": "<h1>",
            "correct": False,
            "in_top5": True,
        }
    page = write(rows, tmp_path, name="<script>x", description="</main><iframe src=x>")
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe"}
    assert sum(tag == "h1" for tag, _ in page.elements) == 1
    assert sum(tag == "style" for tag, _ in page.elements) == 1
    assert sum(tag == "details" for tag, _ in page.elements) == 1
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
    assert "<script>alert(1)" in page.text, "shown as text"


def test_the_page_fetches_nothing_and_runs_nothing(tmp_path: Path) -> None:
    page = write(cell_rows(FLAT), tmp_path)
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "img", "iframe", "object"}
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    text = (tmp_path / "strips.html").read_text()
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" blue", "·blue"),
        ("a\n\tb\r", "a↵⇥b␍"),
        ("\u00a0", "⍽"),
        ("", "∅"),
        ("\u202eevil", "⟨U+202E⟩evil"),
        ("\u200b", "⟨U+200B⟩"),
        ("\x00\x1b", "⟨U+0000⟩⟨U+001B⟩"),
        ("\u0301", "◌\u0301"),
        ("\ufffd", "\ufffd"),
        ("日本", "日本"),
        ("x" * 60, "x" * 24 + "…"),
    ],
)
def test_tokens_are_shown_so_that_every_character_is_seen(token: str, shown: str) -> None:
    assert show(token) == shown


def test_different_tokens_that_read_alike_show_their_numbers(tmp_path: Path) -> None:
    rows = cell_rows(FLAT, texts=("a b",))
    for row in rows:
        row |= {"correct": False, "true_token": "\ufffd", "found_token": "\ufffd"}
        row |= {"true_id": 7, "found_id": 8}
    assert "\ufffd#7\ufffd#8" in write(rows, tmp_path).text


def test_the_top_says_what_came_back_in_numbers(tmp_path: Path) -> None:
    rows = cell_rows(FLAT, mask="1:")
    for row in rows:
        row["correct"] = row["prompt_id"] < 3 or row["visible"]
    text = write(rows, tmp_path, name="My study").text
    assert "Token strips: My study" in text
    assert "30.0 % (10.8 to 60.3; 3 of 10)" in text
    assert "100.0 %" in text
    assert "1 in 4,096" in text
    assert "All 1 cells of the study are on this page." in text


def test_a_study_that_hides_nothing_says_so(tmp_path: Path) -> None:
    assert "No hidden positions in this study" in write(cell_rows(FLAT, mask=":"), tmp_path).text


def test_every_link_leads_to_a_section(tmp_path: Path) -> None:
    rows = [r for m in ("1:", "3:") for b in (1, 8) for r in cell_rows(FLAT, mask=m, block=b)]
    page = write(rows, tmp_path)
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "details"]
    assert links == [f"#{section}" for section in sections]
    assert len(sections) == 4


def test_the_page_is_the_same_every_time(tmp_path: Path) -> None:
    write(cell_rows(FLAT), tmp_path)
    first = (tmp_path / "strips.html").read_bytes()
    write(cell_rows(FLAT), tmp_path)
    assert (tmp_path / "strips.html").read_bytes() == first


# --- size ---------------------------------------------------------------------------------


def test_a_default_study_fits_whole_in_two_megabytes(tmp_path: Path) -> None:
    default_study().write_parquet(tmp_path / "recovery.parquet")
    write_strips(tmp_path / "recovery.parquet", tmp_path / "strips.html")
    assert (tmp_path / "strips.html").stat().st_size < 2_000_000
    assert "All 352 cells" in (tmp_path / "strips.html").read_text()


def many(seeds: int, metrics: tuple[str, ...], blocks: int) -> list[dict[str, Any]]:
    return [
        row
        for block in range(1, blocks + 1)
        for metric in metrics
        for seed in range(seeds)
        for row in cell_rows(FLAT, block=block, metric=metric, seed=seed)
    ]


@pytest.mark.parametrize(
    ("most_bytes", "says"),
    [
        (110_000, ["8 of 24 cells", "smallest loss"]),
        (50_000, ["4 of 24 cells", "smallest loss", "most visible tokens"]),
        (35_000, ["4 of 24 cells", "first", "prompts of each set"]),
        (22_000, ["of 24 cells", "the first 1 prompts", "an even choice of cells"]),
    ],
)
def test_what_does_not_fit_is_left_out_and_said(
    most_bytes: int, says: list[str], tmp_path: Path
) -> None:
    page = write(many(3, ("l1", "cosine"), 4), tmp_path, most_bytes=most_bytes)
    for words in ["Not everything is here", "recovery.parquet", *says]:
        assert words in page.text
    assert (tmp_path / "strips.html").stat().st_size < most_bytes * 1.3


def test_the_seed_that_stays_has_the_smallest_loss(tmp_path: Path) -> None:
    rows = []
    for seed, loss in enumerate((5.0, 1.0, 3.0)):
        rows += cell_rows(FLAT, seed=seed, loss=loss)
    page = write(rows, tmp_path, most_bytes=26_000)
    assert "l1, seed 1" in page.text
    assert "seed 0" not in page.text


def test_an_empty_table_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"recovery\.parquet: has no rows"):
        write([], tmp_path)
    assert not (tmp_path / "strips.html").exists()


# --- in a browser -------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_the_page(scheme: str, tmp_path: Path) -> None:
    write(cell_rows(FLAT, texts=(HOSTILE, "The sky is blue.")), tmp_path, name="In a browser")
    page, shot = tmp_path / "strips.html", tmp_path / "shot.png"
    # Sections start closed; here the boxes are to be seen.
    page.write_text(page.read_text().replace("<details", "<details open"))
    subprocess.run(
        [
            str(CHROMIUM),
            *OPTIONS,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
            "--window-size=1000,1400",
            f"--screenshot={shot}",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    with Image.open(shot) as image:
        pixels = image.convert("RGB")
        corner = sum(pixels.getpixel((3, 3)))
        found = {colour for _, colour in pixels.getcolors(1 << 24) or []}
    assert corner > 600 if scheme == "light" else corner < 150, "the paper has the scheme's colour"
    right, wrong = (
        [(0xDC, 0xEC, 0xFA), (0xFD, 0xE6, 0xDA)]
        if scheme == "light"
        else [(0x12, 0x32, 0x4E), (0x4A, 0x22, 0x12)]
    )
    assert {right, wrong} <= found, "boxes of right and wrong tokens are drawn"
