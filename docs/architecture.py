"""Draw docs/architecture.png: floors and wings from the import contracts in pyproject.toml, arrows from the code.

python docs/architecture.py [OUT.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

import grimp
from importlinter.api import read_configuration
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 1.25, 0.42  # of a room, in inches
STEP, ROW, GAP = 1.58, 0.6, 0.55  # from room to room, from row to row, between floors


def contracts() -> dict[str, list[list[str]]]:
    """Return the layers of each floor, top first; a layer is a list of wings. A floor without a contract has none."""
    options = read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    layers = {contract["id"]: contract["layers"] for contract in options if contract["type"] == "layers"}
    floors = layers.pop("floors")
    return {floor: [layer.split(" | ") for layer in layers.get(floor, [])] for floor in floors}


def imports(wings: list[str]) -> dict[str, set[str]]:
    """Return which wings each wing (top first) imports, without the imports that a longer path implies."""
    graph = grimp.build_graph(*{wing.partition(".")[0] for wing in wings}, cache_dir=None)
    for wing in wings:
        if wing in graph.modules and not graph.is_module_squashed(wing):
            graph.squash_module(wing)
    direct = {
        wing: graph.find_modules_directly_imported_by(wing) & set(wings[number + 1 :])
        for number, wing in enumerate(wings)
    }

    def reach(wing: str) -> set[str]:
        return direct[wing].union(*map(reach, direct[wing]))

    return {wing: found - set().union(*map(reach, found)) for wing, found in direct.items()}


def draw(out: Path) -> None:
    """Draw a band for each floor, the top floor first; in a band, wings to the left may import wings to the right."""
    floors = contracts()
    length = max(len(layers) for layers in floors.values()) * STEP + 1.3
    heights = {floor: max([len(layer) for layer in layers] or [1]) * ROW + 0.5 for floor, layers in floors.items()}
    height = sum(heights.values()) + GAP * (len(floors) - 1)
    figure = Figure(figsize=(length, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, length), ylim=(0, height))
    axes.set_axis_off()
    top = height
    for number, (floor, layers) in enumerate(floors.items()):
        colour = f"C{number}"
        bottom = top - heights[floor]
        axes.add_patch(
            FancyBboxPatch((0.1, bottom), length - 0.2, heights[floor], "round,pad=0", fc=colour, alpha=0.12)
        )
        axes.text(0.25, (top + bottom) / 2, floor, weight="bold", size=12, va="center", rotation=0)
        _draw_wings(axes, floor, layers, (top + bottom) / 2, colour)
        if number < len(floors) - 1:
            _arrow(axes, (length / 2, bottom), (length / 2, bottom - GAP), "0.3", 0.0)
        top = bottom - GAP
    figure.savefig(out, dpi=110, metadata={"Software": None})


def _draw_wings(axes: Axes, floor: str, layers: list[list[str]], middle: float, colour: str) -> None:
    places = {
        f"{floor}.{wing}": (1.5 + column * STEP, middle + ROW * ((len(layer) - 1) / 2 - row), column)
        for column, layer in enumerate(layers)
        for row, wing in enumerate(layer)
    }
    for wing, found in (imports(list(places)) if places else {}).items():
        x, y, column = places[wing]
        for other in sorted(found):
            other_x, other_y, other_column = places[other]
            if other_column - column == 1:
                _arrow(axes, (x + WIDTH, y), (other_x, other_y), colour, 0.0)
            else:
                _arrow(
                    axes,
                    (x + WIDTH * 0.8, y + HEIGHT / 2),
                    (other_x + WIDTH * 0.2, other_y + HEIGHT / 2),
                    colour,
                    -0.12,
                )
    for wing, (x, y, _) in places.items():
        box = FancyBboxPatch(
            (x, y - HEIGHT / 2), WIDTH, HEIGHT, "round,pad=0,rounding_size=0.08", fc="white", ec=colour
        )
        axes.add_patch(box)
        axes.text(x + WIDTH / 2, y, wing.removeprefix(f"{floor}."), ha="center", va="center", size=11)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float) -> None:
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour, connectionstyle=style)
    )


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "architecture.png")
