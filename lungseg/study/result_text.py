"""Cross-dataset results and comparisons as text and terminal tables."""

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lungseg.metrics import bootstrap
from lungseg.metrics.segmentation import PREPARED_REFERENCE
from lungseg.metrics.training_noise import SeedSpread
from lungseg.plurals import counted
from lungseg.study.cross_dataset import CrossDatasetResults, GeneralisationGap, GroupComparison, MatrixCell
from lungseg.study.subgroups import MIN_IMAGES
from lungseg.study.tested_images import TestedDataset

HELD_OUT_MARK = "*"
"""Mark of cells whose images are held-out patients of the training datasets."""
DISAGREEMENT = "Interval and p disagree: the interval is about the mean over images, p about the ranks of the patients."
SIZE_AND_REFERENCE = f"at native size, reference: {PREPARED_REFERENCE}"
SUBGROUPS = f"Dice by finding, age and sex, in subgroups of {MIN_IMAGES} images or more"
_SUBGROUP = "subgroup"
_MIN_WIDTH = 100  # columns: a terminal may wrap wider lines, but rich would cut figures to fit
_MIN_P = 1e-4  # smaller ones are printed as "p < 0.0001"


def describe_basis(bases: Iterable[str]) -> str:
    """Say what intervals and p values account for."""
    names = set(bases)
    if names <= {"patients"}:
        return "over patients, not over trainings"
    if names == {"patients and trainings"}:
        return "over patients and trainings"
    return "over patients and trainings; over patients only where a fold has one seed"


def of_class(class_name: str) -> str:
    """Name the class of a result; nothing in a study of one class."""
    return f", {class_name}" if class_name else ""


def format_p(p: float | None) -> str:
    """Format a p value with its sign, such as "= 0.0400" or "< 0.0001"."""
    return "-" if p is None else f"< {_MIN_P:.4f}" if p < _MIN_P else f"= {p:.4f}"


def format_difference(paired: bootstrap.PairedDifference, decimals: int = 4) -> str:
    """Format the mean difference, its interval, and p or why there is none."""
    holm = "" if paired.p_holm is None else f" (Holm {format_p(paired.p_holm).removeprefix('= ')})"
    p = f"no p: {paired.no_p}" if paired.p is None else f"p {format_p(paired.p)}{holm}"
    return f"difference {_interval_text(paired.difference, paired.low, paired.high, decimals)}, {p}"


def format_spread(spread: SeedSpread | None, decimals: int = 4) -> str:
    """Format the spread over seeds."""
    if spread is None:
        return "1 seed"
    low, high, sd = (f"{value:z.{decimals}f}" for value in (spread.min, spread.max, spread.sd))
    return f"{spread.seeds} seeds: {low} to {high}, sd {sd}"


def format_gap(gap: GeneralisationGap) -> str:
    """Format a generalisation gap as one line."""
    text = _interval_text(gap.gap.gap, gap.gap.low, gap.gap.high)
    spread = f"; {format_spread(gap.spread, 3)}" if gap.spread else ""
    return f"gap {text} from {gap.run_group.label} to {gap.dataset}{of_class(gap.class_name)}{spread}"


def more_lines(
    metrics: Mapping[str, bootstrap.PairedDifference], spreads: tuple[SeedSpread | None, SeedSpread | None]
) -> list[str]:
    """Format what follows the Dice of a comparison: IoU and HD95, the seeds of both sides, a disagreement."""
    names = (("IoU", "iou", 4), ("HD95 px", "hd95_px", 2))
    others = [
        f"{title} {format_difference(metrics[name], digits)}{_fewer_images(metrics, name)}"
        for title, name, digits in names
        if name in metrics
    ]
    lines = [f"  {'; '.join(others)}"] if others else []
    if spreads != (None, None):
        lines.append(f"  mean Dice of {format_spread(spreads[0])}; other {format_spread(spreads[1])}")
    if metrics["dice"].disagrees:
        lines.append(f"  {DISAGREEMENT}")
    return lines


def _fewer_images(metrics: Mapping[str, bootstrap.PairedDifference], name: str) -> str:
    """Say on how many images a metric is defined on both sides, where that is not all."""
    images = metrics[name].images
    return "" if images == metrics["dice"].images else f" (defined on {images} images)"


def dice_table(results: CrossDatasetResults) -> tuple[list[str], list[list[str]]]:
    """Format the cells as text: a header, then a row per run group and class with a column per dataset."""
    lines = list(dict.fromkeys((cell.run_group, cell.class_name) for cell in results.cells))
    datasets = sorted({cell.dataset for cell in results.cells})
    texts = {(cell.run_group, cell.class_name, cell.dataset): _cell_text(cell) for cell in results.cells}
    rows = [
        [group.label, *_class_cells(name), *(texts.get((group, name, dataset), "-") for dataset in datasets)]
        for group, name in lines
    ]
    return ["trained on", *_class_head(results), *datasets], rows


def _class_head(results: CrossDatasetResults) -> list[str]:
    """Return the heading of the column of classes; none in a study of one class."""
    return ["class"] if any(cell.class_name for cell in results.cells) else []


def _class_cells(class_name: str) -> list[str]:
    return [class_name] if class_name else []


def dataset_table(results: CrossDatasetResults) -> tuple[list[str], list[list[str]]]:
    """Format the number of tested images and patients, a row per dataset."""
    rows = [[tested.dataset, str(tested.images), _patients_text(tested)] for tested in results.datasets]
    return ["tested on", "images", "patients"], rows


def _patients_text(tested: TestedDataset) -> str:
    if tested.patients == tested.named_patients:
        return str(tested.patients)
    linked = tested.named_patients - tested.patients
    return f"{tested.patients} ({tested.named_patients} ids, {linked} linked to another by duplicate images)"


def seed_table(results: CrossDatasetResults) -> tuple[list[str], list[list[str]]]:
    """Format the spread of the mean Dice over seeds, a row per cell that has several."""
    cells = [(cell, cell.spread["dice"]) for cell in results.cells]
    rows = [
        [
            cell.run_group.label,
            *_class_cells(cell.class_name),
            cell.dataset,
            str(spread.seeds),
            *(f"{value:.4f}" for value in (spread.min, spread.max, spread.sd)),
        ]
        for cell, spread in cells
        if spread
    ]
    return ["trained on", *_class_head(results), "tested on", "seeds", "lowest", "highest", "sd"], rows


def subgroup_table(results: CrossDatasetResults) -> tuple[list[str], list[list[str]]]:
    """Format the Dice of each subgroup, a row each."""
    rows = [
        [
            group.run_group.label,
            *_class_cells(group.class_name),
            group.dataset,
            group.label,
            str(group.dice.images),
            _mean_text(group.dice, group.role),
        ]
        for group in results.subgroups
    ]
    return ["trained on", *_class_head(results), "tested on", _SUBGROUP, "images", "Dice"], rows


def format_comparison(comparison: GroupComparison) -> str:
    """Format the Dice of a comparison of two run groups as one line; study.json has the other metrics."""
    first, second = (spread.seeds if spread else 1 for spread in comparison.spreads)
    seeds = f"{counted(first, 'seed')} each" if first == second else f"{first} and {second} seeds"
    tested_on = f"{counted(comparison.paired.images, 'image')} of {comparison.dataset}{of_class(comparison.class_name)}"
    return (
        f"Dice {format_difference(comparison.paired)}, on {tested_on} for {comparison.first.label} minus "
        f"{comparison.second.label}, {seeds}"
    )


def matrix_basis(results: CrossDatasetResults) -> str:
    """Say what the intervals of the matrix and the gaps account for."""
    cells = [cell.dice.basis for cell in results.cells if cell.dice]
    return describe_basis([*cells, *(gap.gap.basis for gap in results.gaps)])


def print_results(results: CrossDatasetResults, console: Console | None = None) -> None:
    """Print the table and the gaps on standard output."""
    if not results.cells:
        return
    if console is None:
        console = Console(markup=False, highlight=False, emoji=False, width=max(_MIN_WIDTH, Console().width))
    console.print(Text("Dice by test dataset", style="bold"))
    console.print(Text(f"mean over images, {SIZE_AND_REFERENCE}"))
    console.print(Text(f"{HELD_OUT_MARK} held-out patients"))
    console.print(Text(f"95 % intervals {matrix_basis(results)}"))
    matrix = text_table(*dice_table(results))
    needed = console.measure(matrix, options=console.options.update(width=10 * console.width)).maximum
    console.print(matrix if needed <= console.width else text_table(*_dice_list(results)))
    for gap in results.gaps:
        console.print(Text(format_gap(gap)))
    console.print()
    console.print(Text("Tested images", style="bold"))
    console.print(text_table(*dataset_table(results)))
    for title, (header, rows) in (
        (SUBGROUPS, subgroup_table(results)),
        ("Mean Dice of single seeds", seed_table(results)),
    ):
        if rows:
            console.print()
            console.print(Text(title, style="bold"))
            console.print(text_table(header, rows))
    console.print()


def _dice_list(results: CrossDatasetResults) -> tuple[list[str], list[list[str]]]:
    """Format the cells as text, one row each: fits where many or long dataset names do not fit in columns."""
    rows = [
        [cell.run_group.label, *_class_cells(cell.class_name), cell.dataset, _cell_text(cell)] for cell in results.cells
    ]
    return ["trained on", *_class_head(results), "tested on", "Dice"], rows


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a terminal table without lines; the first column wraps, and that of subgroups, which may be free texts."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in header:
        table.add_column(name, no_wrap=name not in (header[0], _SUBGROUP), overflow="fold")
    for row in rows:
        table.add_row(*(Text(text, style="bold" if text.endswith(HELD_OUT_MARK) else "") for text in row))
    return table


def _cell_text(cell: MatrixCell) -> str:
    return "-" if cell.dice is None else _mean_text(cell.dice, cell.role)


def _mean_text(dice: bootstrap.Summary, role: str) -> str:
    mark = HELD_OUT_MARK if role == "held-out" else ""
    return f"{_interval_text(dice.mean, dice.low, dice.high)}{mark}"


def _interval_text(mean: float, low: float | None, high: float | None, decimals: int = 3) -> str:
    text = f"{mean:z.{decimals}f}"
    return text if low is None or high is None else f"{text} [{low:z.{decimals}f}, {high:z.{decimals}f}]"
