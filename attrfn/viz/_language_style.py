"""Style sheets of the views of language models: in light and dark, in notebooks and in reports."""

from __future__ import annotations

# Inside a notebook or a report, its ground and letters apply: so no rule sets either, and
# all colours let the ground through. Only names that stay while a table scrolls need a ground: that
# of our pages, of Jupyter or of VS Code. Rules are scoped by the classes, which begin with attrfn.

MATRIX = """\
.attrfn-scroll { max-width: 100%; overflow: auto; max-height: 85vh; }
.attrfn-scroll:focus-visible { outline: 2px solid #4c8dd6; outline-offset: 2px; }
.attrfn-matrix { font-size: .8rem; line-height: 1.2; border-collapse: separate;
  border-spacing: 0; width: auto; margin: 0; }
.attrfn-matrix tr:nth-child(n) { background: none; }
.attrfn-matrix :is(th, td) { box-sizing: border-box; padding: 0; border: 0; color: inherit;
  font-weight: 400; }
.attrfn-matrix thead th { vertical-align: bottom; text-align: left; padding: .15rem .1rem;
  max-width: 7.5rem; overflow-wrap: anywhere; }
.attrfn-matrix thead :is(th, td) { position: sticky; top: 0; z-index: 3; background: var(--ground,
  var(--jp-layout-color0, var(--vscode-editor-background, Canvas))); }
.attrfn-matrix.attrfn-few thead th { min-width: 5rem; }
.attrfn-matrix.attrfn-many thead th { padding: .15rem 0; }
.attrfn-matrix.attrfn-many thead th div { writing-mode: vertical-rl; transform: rotate(180deg);
  max-height: 9rem; overflow: hidden; white-space: nowrap; margin: 0 auto; }
.attrfn-matrix tbody th { position: sticky; left: 0; z-index: 1; text-align: right;
  padding: 0 .4rem; white-space: nowrap; max-width: 9rem; overflow: hidden;
  text-overflow: ellipsis; background: var(--ground,
  var(--jp-layout-color0, var(--vscode-editor-background, Canvas))); }
.attrfn-matrix td { position: relative; min-width: 1.05rem; height: 1.3rem; text-align: center;
  border: 1px solid transparent; background-clip: padding-box; white-space: nowrap;
  font-variant-numeric: tabular-nums; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.attrfn-matrix.attrfn-few td { padding: .1rem .45rem; text-align: right; }
.attrfn-matrix .attrfn-total :is(th, td) { border-top: 3px solid transparent; }
.attrfn-matrix .attrfn-total th { font-weight: 600; }
.attrfn-matrix tbody tr:hover > * { border-block-color: currentColor; }
.attrfn-matrix.attrfn-many td i { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); font-style: normal; }
.attrfn-matrix td i { font-style: normal; }
.attrfn-ends { display: flex; flex-wrap: wrap; gap: .3rem 2rem; margin-top: .6rem; }
.attrfn-matrix.attrfn-many td:hover { outline: 2px solid currentColor; z-index: 2; }
"""

ANSWER = """\
.attrfn-answer { line-height: 1.5; max-width: 60rem; }
.attrfn-answer .attrfn-title { font-weight: 600; margin-bottom: .5rem; }
.attrfn-answer .attrfn-head { font-size: .85em; opacity: .8; padding: 0; }
.attrfn-answer fieldset { border: 0; margin: 1rem 0 0; padding: 0; min-width: 0; }
.attrfn-answer .attrfn-text { margin: .2rem 0 0; line-height: 1.9; white-space: pre-wrap;
  overflow-wrap: anywhere; max-width: 75ch; }
.attrfn-answer .attrfn-p { padding: .15em .1em; border-radius: .2em; background-image:
  linear-gradient(rgb(214 60 60 / calc(max(0, var(--v)) * .0065)) 0 0),
  linear-gradient(rgb(52 120 200 / calc(max(0, -1 * var(--v)) * .0065)) 0 0);
  box-decoration-break: clone; -webkit-box-decoration-break: clone;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
@supports selector(:has(a)) {
  .attrfn-answer .attrfn-p { background-color: transparent !important; }
}
.attrfn-answer label { position: relative; display: inline-block; min-width: 1.5em;
  text-align: center; padding: 0 .15em; border-radius: .25em; cursor: pointer; }
.attrfn-answer label > * { line-height: 1.5; }
.attrfn-answer label bdi { display: inline-block; min-width: 1em; border-bottom: .14em solid; }
.attrfn-answer input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0;
  opacity: 0; cursor: pointer; }
.attrfn-answer label:hover { background: rgb(128 128 128 / .2); }
.attrfn-answer label:has(:checked) { box-shadow: 0 0 0 2px currentColor; }
.attrfn-answer label:has(:focus-visible) { outline: 2px solid #4c8dd6; outline-offset: 3px; }
.attrfn-answer legend label { padding: 0 .5em; font-weight: 600; }
.attrfn-says { display: grid; margin: .8rem 0; min-height: 5.5rem; }
.attrfn-says > * { grid-area: 1 / 1; visibility: hidden; }
.attrfn-says span { font-variant-numeric: tabular-nums; }
.attrfn-answer summary { cursor: pointer; }
"""

PASSAGES = """\
.attrfn-passages { max-width: 52rem; line-height: 1.5; }
.attrfn-passages .attrfn-soft { font-size: .85em; opacity: .8; }
.attrfn-passages ul { list-style: none; margin: .6rem 0 0; padding: 0; }
.attrfn-passages li { margin: 0 0 .9rem; padding: 0; }
.attrfn-row { display: grid; grid-template-columns: 2rem 1fr var(--width); gap: .5rem;
  align-items: center; }
.attrfn-rank { opacity: .8; text-align: right; }
.attrfn-number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.attrfn-track { position: relative; height: 1.05rem; background: rgb(128 128 128 / .13);
  border-radius: .2rem; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.attrfn-track > span { position: absolute; top: 0; bottom: 0; }
.attrfn-track .attrfn-bar { top: .15rem; bottom: .15rem; border-radius: .1rem; }
.attrfn-track .attrfn-zero { width: 0; border-left: 1px solid currentColor; }
.attrfn-track .attrfn-error { top: calc(50% - 1px); bottom: auto; height: 2px;
  background: currentColor; }
.attrfn-track .attrfn-error::before, .attrfn-track .attrfn-error::after { content: "";
  position: absolute; top: -.2rem; height: calc(.4rem + 2px); border-left: 2px solid; }
.attrfn-track .attrfn-error::before { left: 0; }
.attrfn-track .attrfn-error::after { right: 0; }
.attrfn-passages :is(p, details) { margin: .1rem 0 0 2.5rem; white-space: pre-line;
  overflow-wrap: anywhere; }
.attrfn-passages details p { margin-left: 0; }
.attrfn-passages details[open] summary { opacity: .6; }
.attrfn-passages summary { cursor: pointer; }
"""
