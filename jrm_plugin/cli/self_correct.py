"""`jrm self-correct`: from a YAML file to corrected images and the paper's table 3; the same command goes on."""

import argparse
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from jrm_plugin.cli.common import quiet
from jrm_plugin.configs import check_config, read_config
from jrm_plugin.correction.editing import Editor
from jrm_plugin.correction.loop import self_correct
from jrm_plugin.correction.rounds import SETTINGS_FILE, CorrectionRound
from jrm_plugin.correction.shape_editor import draw_samples, edit_shapes
from jrm_plugin.correction.table import correction_table, initial_quantiles, tables_in_words
from jrm_plugin.data.editreward import read_edit_reward
from jrm_plugin.data.samples import read_samples
from jrm_plugin.dotted_path import import_function
from jrm_plugin.errors import JRMError, shortened
from jrm_plugin.files import check_writable, write_json, write_text
from jrm_plugin.records.samples import Sample
from jrm_plugin.scoring.loading import load_scorer, model_digest, named_model
from jrm_plugin.synthetic.shape_reader import oracle_score

MOST_SAMPLES = 100_000  # that are drawn; they are all in memory


@dataclass(frozen=True)
class SelfCorrectConfig:
    """What is corrected, by what.

    Parameters:
        data: `{shape_edits: {count: 100, seed: 0}}`; a JSON file in EditReward's training format, or a folder with its
            `heldout.json` or `train.json` (every edited image of it, once); or what `jrm score --input` reads.
        editor: `shape_edits`, a dotted path to a callable (`package.module.name`, installed or in the current folder),
            or `{diffusers: {…}}` with the arguments of [`DiffusersEditor`].
        output: folder to write, or to go on in.
        model: the reward model that judges and criticises; by default jrm-tiny, which knows coloured shapes only.
        rounds: corrections per sample.
        thresholds: of the initial overall score: a list of values, or `{quantiles: […]}` of it.
        control: also run the editor without critiques.
        keep_better: each round edits the best image so far instead of the last one.
        seed: of the editor.
    """

    data: str | dict
    editor: str | dict
    output: str
    model: str | None = None
    rounds: int = 1
    thresholds: list | dict = field(default_factory=lambda: {"quantiles": [0.75, 0.5, 0.25]})
    control: bool = True
    keep_better: bool = False
    seed: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, help="YAML file; see docs/self-correction.md")


def run(options: argparse.Namespace) -> int:
    """One run; leaves what `self_correct` leaves, and `table.json` and `table.md`. Returns 2 if a sample failed."""
    quiet()
    config = parse(options.config)
    check_writable(config.output)
    tables = [path for name in ("table.json", "table.md") if (path := Path(config.output, name)).exists()]
    if tables and not Path(config.output, SETTINGS_FILE).exists():
        raise JRMError(f"{tables[0]} is of no run in this folder; move it, or choose another output folder.")
    samples, is_shapes = _samples(config.data)
    editor = _editor(config.editor)
    config = replace(config, model=named_model(config.model))
    rounds = self_correct(
        load_scorer(config.model),
        samples,
        editor,
        config.rounds,
        output=config.output,
        control=config.control,
        keep_better=config.keep_better,
        seed=config.seed,
        settings={
            **{name: value for name, value in asdict(config).items() if name in ("model", "data", "editor")},
            "content of the model": model_digest(config.model).hex(),
        },
        progress=True,
    )
    thresholds = config.thresholds
    if isinstance(thresholds, dict):
        thresholds = initial_quantiles(rounds, thresholds["quantiles"])

    def oracle(scored: CorrectionRound) -> float:
        sample = samples[scored.sample]
        return oracle_score(sample.prompt_images[0], sample.prompt_text, Path(config.output, scored.image))

    table = correction_table(rounds, thresholds, oracle=oracle if is_shapes else None)
    _report(Path(config.output), table)
    if failures := [failed for failed in rounds if failed.error is not None]:
        first = failures[0]
        print(
            f"jrm: {len(table['left_out'])} of {len(samples)} samples failed and count in no row; the first is sample "
            f"{first.sample}, {first.arm}, round {first.number}: {first.error}",
            file=sys.stderr,
        )
    return 2 if failures else 0


def parse(path: Path) -> SelfCorrectConfig:
    """The config in a YAML file. An unknown or missing key, or a value of another type, is a [`JRMError`]."""
    content = check_config(read_config(path), (SelfCorrectConfig,), f"the config {path}")
    config = SelfCorrectConfig(**content)
    for name, least in (("rounds", 1), ("seed", 0)):
        if content.get(name, least) < least:
            raise JRMError(f"the config {path} cannot be used: {name} must be {least} or more, not {content[name]}.")
    for name in ("data", "editor", "output", "model"):
        if content.get(name) == "":  # a path would take it for the current folder
            raise JRMError(f"the config {path} cannot be used: {name} is empty.")
    thresholds, are_quantiles = config.thresholds, isinstance(config.thresholds, dict)
    if are_quantiles:
        thresholds = thresholds.get("quantiles") if set(thresholds) == {"quantiles"} else None
    if not isinstance(thresholds, list) or not all(
        type(value) in (int, float) and (0 < value < 1 or not are_quantiles) for value in thresholds
    ):
        raise JRMError(
            f"the config {path} cannot be used: thresholds must be a list of numbers, or {{quantiles: [numbers]}} "
            f"between 0 and 1, not {shortened(config.thresholds)}."
        )
    return config


def _samples(data: str | dict) -> tuple[list[Sample], bool]:
    """The samples, and whether they are ShapeEdits', so that an oracle can judge them."""
    if isinstance(data, dict):
        options = _one_entry(data, "data", "shape_edits")
        whole = all(type(value) is int and value >= 0 for value in options.values())
        if not options.keys() <= {"count", "seed"} or not whole or not 1 <= options.get("count", 0) <= MOST_SAMPLES:
            raise JRMError(
                f"data.shape_edits must be {{count: 1 to {MOST_SAMPLES}, seed: 0 or more}}, not {shortened(options)}."
            )
        return draw_samples(options["count"], options.get("seed", 0)), True
    path = Path(data)
    for name in ("heldout.json", "train.json"):
        if (path / name).is_file():
            path = path / name
    if path.suffix != ".json":
        return [item.sample for item in read_samples(path)], False
    pairs = read_edit_reward(path).examples
    samples = dict.fromkeys(sample for pair in pairs for sample in (pair.chosen, pair.rejected))
    return list(samples), bool(pairs) and all(pair.info.get("model1") == "shape-edits" for pair in pairs)


def _editor(editor: str | dict) -> Editor:
    if isinstance(editor, dict):
        options = _one_entry(editor, "editor", "diffusers")
        from jrm_plugin.correction.diffusers_editor import DiffusersEditor  # imports torch

        kinds = {"pipeline": str, "image": str, "device": str, "dtype": str, "options": dict}
        for name, value in options.items():
            if not isinstance(value, kinds.get(name, object)):
                raise JRMError(f"editor.diffusers.{name} must be {kinds[name].__name__}, not {shortened(value)}.")
        try:
            return DiffusersEditor(**options)
        except TypeError as error:
            raise JRMError(f"editor.diffusers cannot be used: {error}.") from error
    if editor == "shape_edits":
        return edit_shapes
    return import_function(editor, "the editor", "one EditRequest")


def _one_entry(value: dict, key: str, name: str) -> dict:
    if set(value) != {name} or not isinstance(value[name], dict):
        raise JRMError(f"{key} must be text or {{{name}: {{…}}}}, not {shortened(value)}.")
    return value[name]


def _report(output: Path, table: dict) -> None:
    """Writes `table.json` and `table.md`, and prints the table."""
    write_json(output / "table.json", table)
    console, markdown = Console(highlight=False), []
    for title, header, rows in tables_in_words(table):
        # Narrow enough for 80 columns.
        shown = Table(title=title, title_justify="left", box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
        for column in header:
            shown.add_column(column, justify="right")
        for row in rows:
            shown.add_row(*row)
        console.print(shown, "")
        lines = [header, ["---:"] * len(header), *rows]
        markdown.append(f"{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    write_text(output / "table.md", "\n\n".join(markdown) + "\n")
    console.print(f"Images and rounds are in {output}, this table in table.md and table.json.", soft_wrap=True)
