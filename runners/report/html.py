"""The report as one page that needs nothing but itself: tables that sort, figures, and each number's origin."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners.report import figures
from runners.report.layer_weights import layer_weights
from runners.report.published import METRICS, published
from runners.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from runners.report.write import Table


def all_figures(table: Table, speeds: Mapping[str, float]) -> dict[str, dict[str, Figure | None]]:
    """Every figure by section and title; speeds: measured real-time factors by upstream, as far as known."""
    return {
        "What a score costs": _paretos(table, speeds),
        "Bits against error": {"bits against error": figures.bits_against_error(table)},
        "Which layers the tasks read": {
            f"layer weights of {upstream}": figures.heat_map(layer_weights(table, upstream), upstream)
            for upstream in table.upstreams
        },
    }


def as_html(
    table: Table, runs: list[Path], drawn: Mapping[str, Mapping[str, Figure | None]], speeds: Mapping[str, float]
) -> str:
    """The page. drawn: `all_figures`; speeds: measured real-time factors by upstream, as far as known."""
    parts = [
        "<h1>SUPERB tasks on frozen upstreams</h1>",
        f'<p class="soft">{len(table.results)} cells of {_text(", ".join(map(str, runs)))}. In percent, best in green; '
        "mean and standard deviation over seeds. A click on a column's title sorts, one on a number shows where it is "
        "from.</p>",
        _warning(table),
        _ours(table, speeds),
        _failures(table),
        *(part for title, found in drawn.items() for part in _section(title, found)),
        "<h2>As published</h2>",
        f'<p class="soft">On the real corpora with the official settings. {_text(published()["source"])}</p>',
        _theirs(table),
        "<h2>Where each number is from</h2>",
        *(_origin(result) for result in table.ordered()),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>SUPERB report</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_packaged('report.css')}</style></head>\n<body>\n{body}\n"
        f"<script>{_packaged('report.js')}</script>\n</body></html>\n"
    )


def _packaged(name: str) -> str:
    return (resources.files("runners.report") / name).read_text(encoding="utf-8")


def _warning(table: Table) -> str:
    if table.is_comparable():
        return ""
    return (
        '<p class="note">These cells are not of the published corpora: the published rows below cannot be compared '
        "with them, and there is no SUPERB score. They compare upstreams with one another.</p>"
    )


def _ours(table: Table, speeds: Mapping[str, float]) -> str:
    heads = ["upstream", *(table.title(task) for task in table.tasks), "M parameters", "GMACs", "MB"]
    heads += ["real-time factor"] * bool(speeds) + ["score", "superb_s"]
    rows = []
    for upstream in table.upstreams:
        row = [_cell(_text(upstream), upstream)]
        for task in table.tasks:
            measured = table.measured(upstream, task)
            if measured is None:
                row.append(_cell("-", None))
                continue
            seed = min(measured.values)
            link = f'<a href="#{_anchor(upstream, task, seed)}">{_text(str(measured))}</a>'
            row.append(_cell(link, measured.mean, table.is_best(upstream, task)))
        for key, unit in (("parameters", 1e6), ("macs", 1e9), ("storage_bytes", 1e6)):
            row.append(_number(table.cost(upstream, key), unit))
        if speeds:
            speed = speeds.get(upstream)
            row.append(_cell("-" if speed is None else f"{speed:.4f}", speed))
        for score, digits in ((table.score(upstream), 1), (table.superb_score(upstream), 0)):
            row.append(_cell("-" if score is None else f"{score:.{digits}f}", score))
        rows.append(row)
    return _grid(heads, rows, "ours") + (
        '<p class="soft">score: mean of the tasks, an error rate as 100 minus it and at least 0. superb_s: the mean '
        f"over the seven tasks of a line from 0 ({_text(published()['zero'])}) to 1000 (the best published figure "
        "below), of slot filling half F1 and half CER; only for the real corpora with all seven tasks.</p>"
    )


def _theirs(table: Table) -> str:
    from runners.report.published import superb_score

    names = [metric for metrics in METRICS.values() for metric in metrics]
    arrows = {task: "↑" if TASKS[task].higher_is_better else "↓" for task in TASKS} | {"sf_cer": "↓"}
    heads = ["model", *(f"{name.upper().replace('_', ' ')} {arrows[name]}" for name in names)]
    heads += ["M parameters", "GMACs", "superb_s"]
    rows = []
    for row in published()["rows"]:
        keys = (*names, "parameters", "macs")
        figures_of = [_cell(f"{row[key]:.2f}" if key in row else "-", row.get(key)) for key in keys]
        score = superb_score(row)
        rows.append(
            [
                _cell(_text(row["name"]), row["name"]),
                *figures_of,
                _cell("-" if score is None else f"{score:.0f}", score),
            ]
        )
    return _grid(heads, rows, "published")


def _failures(table: Table) -> str:
    if not table.failures:
        return ""
    items = "".join(f"<li>{_text(failure)}</li>" for failure in table.failures)
    return f'<h2>Cells without a number</h2><ul class="failures">{items}</ul>'


def _paretos(table: Table, speeds: Mapping[str, float]) -> dict[str, Figure | None]:
    known = {
        key: {u: cost / unit for u in table.upstreams if (cost := table.cost(u, key)) is not None}
        for key, unit in (("storage_bytes", 1e6), ("macs", 1e9))
    }
    return {
        "mean score against storage": figures.pareto(table, known["storage_bytes"], "MB of weights"),
        "mean score against multiply-accumulates": figures.pareto(
            table, known["macs"], "GMACs of SUPERB's 32 utterances"
        ),
        "mean score against real-time factor": figures.pareto(table, speeds, "measured real-time factor"),
    }


def _section(title: str, found: Mapping[str, Figure | None]) -> list[str]:
    shown = [f"<figure>{figures.as_svg(f, _text(name))}</figure>" for name, f in found.items() if f is not None]
    return [f"<h2>{title}</h2>", f'<div class="figures">{"".join(shown)}</div>'] if shown else []


def _origin(result: dict[str, Any]) -> str:
    facts = {
        "test": f"<code>{_text(result['command'])}</code>",
        "training": f"<code>{_text(result['train_command'])}</code>",
        "all metrics": _text(", ".join(f"{name} {value:.5g}" for name, value in result.get("metrics", {}).items())),
        "learning rate": _text(
            result.get("learning_rate", result["identity"]["config"].get("optimizer", {}).get("lr", "-"))
        ),
        "seed": _text(result["seed"]),
        "checkpoint": _text(result.get("checkpoint") or "-"),
        "speech, labels": _text(f"{result['corpus']['speech']}, {result['corpus']['label']}"),
        "versions": _text(", ".join(f"{name} {version}" for name, version in result["versions"].items())),
        "machine": _text(f"{result['machine']}, {result['device']}, {sum(result['seconds'].values()):.0f} s"),
        "date": _text(result.get("date", "-")),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    title = f"{result['upstream']} / {result['task']} / seed {result['seed']}: {result['metric']} {result['value']:.5g}"
    anchor = _anchor(result["upstream"], result["task"], result["seed"])
    return f'<details id="{anchor}"><summary>{_text(title)}</summary><dl>{listed}</dl></details>'


def _anchor(upstream: str, task: str, seed: int) -> str:
    return "cell-" + "".join(c if c.isalnum() else "-" for c in f"{upstream}-{task}-{seed}")


def _grid(heads: Iterable[str], rows: Iterable[list[str]], name: str) -> str:
    head = "".join(f'<th scope="col"><button>{_text(title)}</button></th>' for title in heads)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="sortable" id="{name}"><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(content: str, value: object, is_best: bool = False) -> str:
    data = "" if value is None else f' data-value="{_text(value)}"'
    return f"<td{data}{' class=best' if is_best else ''}>{content}</td>"


def _number(value: int | None, unit: float) -> str:
    return _cell("-" if value is None else f"{value / unit:.2f}", None if value is None else value / unit)


def _text(value: object) -> str:
    return html.escape(str(value))
