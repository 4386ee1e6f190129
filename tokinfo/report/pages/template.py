"""Markup of the pages that does not depend on the study."""

from __future__ import annotations

import html

HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{
  color-scheme: light dark;
  --ink: #1c1c1c; --soft: #5a5a5a; --paper: #ffffff; --panel: #f4f4f2; --line: #d5d5d0;
  --right: #0b5fa5; --right-bg: #dcecfa; --near: #6a4c00; --near-bg: #fff3cf;
  --wrong: #a33600; --wrong-bg: #fde6da; --hide: #8a8a85; --hatch: #e4e4df;
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --ink: #ececec; --soft: #b0b0ac; --paper: #161718; --panel: #212325; --line: #3d4043;
    --right: #9fd0ff; --right-bg: #12324e; --near: #ffdf8a; --near-bg: #43360c;
    --wrong: #ffb695; --wrong-bg: #4a2212; --hide: #8f9397; --hatch: #2c2f31;
  }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; }}
main {{ max-width: 75rem; margin: 0 auto; padding: 1.2rem 1.2rem 4rem; }}
h1 {{ font-size: 1.6rem; margin: .2rem 0 .6rem; }}
h2 {{ font-size: 1.2rem; margin: 2rem 0 .4rem; }}
h4 {{ margin: 1rem 0 0; font-size: .95rem; }}
p {{ margin: .4rem 0; max-width: 60rem; }}
a {{ color: var(--right); }}
.ci, .none {{ color: var(--soft); font-size: .87em; font-weight: normal; }}
.note {{ border-left: 4px solid var(--line); padding-left: .8rem; }}
.wide {{ overflow-x: auto; }}
.wide td {{ white-space: nowrap; }}
.wide td.words {{ white-space: normal; min-width: 15rem; }}
table {{ border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: baseline; }}
thead th {{ font-size: .87em; color: var(--soft); }}
tbody th {{ font-weight: 600; white-space: nowrap; }}
.index {{ padding-left: 1.1rem; font-size: .92rem; }}
details {{ border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0;
  padding: 0 .9rem; background: var(--panel); }}
details[open] {{ padding-bottom: .9rem; }}
summary {{ cursor: pointer; padding: .45rem 0; font-weight: 600; }}
details:target {{ outline: 3px solid var(--right); }}
.s {{ display: flex; flex-wrap: wrap; gap: .55rem .2rem; margin: .9rem 0; max-width: none;
  direction: ltr; font: 14px/1.35 ui-monospace, "DejaVu Sans Mono", monospace; }}
.s i {{ font-style: normal; display: inline-flex; flex-direction: column; min-width: 1.7rem; }}
.s b, .s u {{ font-weight: normal; text-decoration: none; unicode-bidi: isolate;
  padding: .1rem .35rem; border: 1.5px solid var(--line); white-space: pre; min-height: 1.6em; }}
.s b {{ background: var(--paper); border-radius: 4px 4px 0 0; }}
.s u {{ border-radius: 0 0 4px 4px; margin-top: -1.5px; }}
.s .h b {{ border: 1.5px dashed var(--hide); background: repeating-linear-gradient(135deg,
  var(--paper) 0 6px, var(--hatch) 6px 8px); }}
.s .h b::before {{ content: "hidden"; display: block; font: 600 9px/1.1 system-ui, sans-serif;
  letter-spacing: .04em; color: var(--ink); }}
.s i:not(.h) b {{ padding-top: calc(.1rem + 9.9px); }}
.s u::before {{ font-weight: bold; margin-right: .3em; }}
.r u {{ background: var(--right-bg); color: var(--right); border-color: var(--right); }}
.r u::before {{ content: "\\2713"; }}
.t u {{ background: var(--near-bg); color: var(--near); border: 1.5px dotted var(--near); }}
.t u::before {{ content: "5"; }}
.w u {{ background: var(--wrong-bg); color: var(--wrong);
  border: 1.5px solid var(--wrong); border-bottom-width: 4px; border-bottom-style: double; }}
.w u::before {{ content: "\\2717"; }}
@media print {{ details {{ break-inside: avoid; }} }}
</style></head><body><main>
"""


def text(value: object) -> str:
    """Return a value as text to be shown, never markup."""
    return html.escape(str(value), quote=True)


LEGEND = """<h2>How to read a strip</h2>
<p>Each column is one position of the prompt: above the true token, below what the search found
there. The search saw the model's activations at visible positions only; at hidden ones it can
only be right if their token left a trace in the activations of others (or by luck).
<p class=s><i class=r><b>·sky</b><u>·sky</u></i><i class=t><b>·is</b><u>·was</u></i><i
class=w><b>·blue</b><u>·mon</u></i><i class="r h"><b>The</b><u>The</u></i><i
class="w h"><b>The</b><u>·burgers</u></i>
<p>&#10003; on blue: found exactly. <b>5</b> on yellow, dotted: wrong, but the true token is among
the search's five best. &#10007; on red, double line: wrong. A dashed, hatched box above marked
<em>hidden</em>: the search did not see this position. Signs: &middot; space, &#8629; new line,
&#8677; tab, &#9085; no-break space, &#10216;U+202E&#10217; a character that cannot be shown,
&#65533; part of a character; #123 a token's number where two tokens read alike.
"""
