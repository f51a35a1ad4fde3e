"""The small pieces of HTML of which a page has hundreds: coloured tokens, bars, sparklines, words with their meaning.

Templates ask for them by the partials that they are named after (`_tokens.html`, `_charts.html`, `_term.html`): they
are printed here because Jinja takes ten times as long to call a macro.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

from markupsafe import Markup, escape

from app.charts import density_share, sparkline
from app.examples import ExampleView, LineView, TokenView
from app.glossary import Term
from app.numbers import number, percent
from app.urls import url
from sae_core.records import FeatureSummary


def token_spans(views: Iterable[TokenView]) -> Markup:
    """Coloured tokens, each a span."""
    return Markup("".join([_span(view) if view.is_marked else _plain_span(view.text, view.token_id) for view in views]))


def example_line(line: LineView) -> Markup:
    """An example in one line."""
    before, after = token_spans(line.before), token_spans(line.after)
    return Markup(
        f'<p class="tokens line"><span class="before"><span>{before}</span></span>'
        f'<span class="after">{after}</span></p>'
    )


def row_evidence(feature: FeatureSummary, lines: Sequence[LineView]) -> Markup:
    """What a list shows of a feature beside its name: how often and how strongly it is active, and on what."""
    note = "dead: it never fired on this corpus" if feature.density == 0 else "no examples"
    shown = "".join(map(example_line, lines)) or f'<p class="note">{note}</p>'
    return Markup(
        f'<div class="stats"><span class="stat"><span class="name">density</span> {escape(percent(feature.density))} '
        f'{bar(density_share(feature.density))}</span> <span class="stat"><span class="name">max</span> '
        f"{number(feature.max_activation)}</span> {spark(sparkline(feature.histogram))}</div>"
        f'<div class="lines">{shown}</div>'
    )


def example_text(example: ExampleView) -> Markup:
    """An example's tokens, with a sign where text is left out: the width class around it says which are seen."""
    runs = "".join([f'<span class="run-{run.reach}">{token_spans(run.tokens)}</span>' for run in example.runs])
    return Markup(f'<p class="tokens">{_cut(example.cut_before)}{runs}{_cut(example.cut_after)}</p>')


def example_item(
    example: ExampleView, slug: str, feature_index: int, corpus: str | None, can_probe: bool = True
) -> Markup:
    """An example in a feature's list of them."""
    copies = _COPIES.format(example.copies) if example.copies else ""
    probe = f"{example.context_id}".join(_probe_link(slug, feature_index, corpus)) if can_probe else ""
    source = f'<span title="{_escaped(example.source)}">{_escaped(example.short_source)}</span>'
    return Markup(
        f'<li class="example">\n  <span class="value">{example.activation}</span>\n  {example_text(example)}\n'
        f'  <span class="source">{copies}{source}{probe}</span>\n</li>'
    )


@lru_cache(maxsize=1024)
def _probe_link(slug: str, feature_index: int, corpus: str | None) -> tuple[str, str]:
    """To where an example's whole text is probed: what stands before and after the number of its context."""
    before = _escaped(url(f"/saes/{slug}/contexts/"))
    after = _escaped(url("/probe", feature=feature_index, corpus=corpus))
    return f' <a href="{before}', f'{after}" title="Open this text on the probe page">probe</a>'


_COPIES = (
    '<a class="copies" href="/glossary#copies" title="So many places of the corpus read the same around the peak; '
    'shown once">{}</a> '
)


def _cut(reaches: str) -> str:
    return f'<span class="cut {reaches}">…</span>' if reaches else ""


def bar(share: float, side: str = "quiet") -> Markup:
    """A share of 1 as a bar; `side` is its class, which says the colour."""
    return Markup(
        f'<svg class="bar {side}" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="8"/><rect width="{round(100 * share, 1)}" height="8"/></svg>'
    )


def spark(path: str, width: int = 72, height: int = 20) -> Markup:
    """A sparkline; `path`: as `charts` draws it."""
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return Markup(f'<svg class="spark" {size} aria-hidden="true"><path d="{path}"/></svg>')


def term_printer(terms: Mapping[str, Term], glossary: str) -> Callable[..., Markup]:
    """`term(key, text=None)`: a word with its definition on hover and focus; its link works by touch."""

    @lru_cache(maxsize=1024)
    def term(key: str, text: str | None = None) -> Markup:
        link = Markup('<a class="term" href="{}#{}">{}<span class="tip" role="tooltip">{}</span></a>')
        return link.format(glossary, key, text or terms[key].name, terms[key].meaning)

    return term


def _span(view: TokenView) -> str:
    text, classes = _escaped(view.text), view.classes
    before = f'<span class="{classes}"' if classes else "<span"
    original = "" if view.original is None else f' data-t="{_escaped(view.original)}"'
    if not view.step:
        return f'{before} data-i="{view.token_id}"{original}>{text}</span>'
    shown = view.shown_activation
    value = f' data-v="{shown}" title="{text} · id {view.token_id} · activation {shown}"'
    return f'{before} data-i="{view.token_id}"{value}{original}>{text}</span>'


@lru_cache(maxsize=1 << 14)
def _plain_span(text: str, token_id: int) -> str:
    """What most tokens are, again and again."""
    return f'<span data-i="{token_id}">{_escaped(text)}</span>'


@lru_cache(maxsize=1 << 14)
def _escaped(text: str) -> str:
    return str(escape(text))
