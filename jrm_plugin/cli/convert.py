"""`jrm convert`: reward models of other projects into JRM folders, and back."""

import argparse
from pathlib import Path

from jrm_plugin.errors import JRMError
from jrm_plugin.model.foreign import LAYOUTS
from jrm_plugin.records.scores import OVERALL_RULES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--from", dest="from_layout", choices=[*LAYOUTS, "auto"], help="whose checkpoint SRC is")
    way.add_argument("--to", dest="to_layout", choices=[*LAYOUTS], help="write a converted SRC back as its project's")
    parser.add_argument("source", type=Path, metavar="SRC", help="folder, or file of weights")
    parser.add_argument("target", type=Path, metavar="DST", help="folder to be made")
    group = parser.add_argument_group("with --from")
    group.add_argument(
        "--base", metavar="FOLDER", help="the model that it was trained from, for what SRC does not hold"
    )
    group.add_argument(
        "--prompts",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="the project's code with its prompts; not run",
    )
    group.add_argument("--constant", metavar="NAME", help="the prompt of an EditReward with a single head")
    group.add_argument(
        "--overall-rule", choices=OVERALL_RULES, help="how overall comes of the dimensions (default: mean)"
    )
    group.add_argument("--verify", action="store_true", help="compare its scores with transformers' own class")


def run(options: argparse.Namespace) -> int:
    from jrm_plugin.cli.common import quiet
    from jrm_plugin.model.foreign.conversion import convert, convert_back

    quiet()
    if options.to_layout is not None:
        if options.base or options.prompts or options.constant or options.overall_rule or options.verify:
            raise JRMError(
                "--base, --prompts, --constant, --overall-rule and --verify belong to --from; leave them out."
            )
        sentences = convert_back(options.source, options.target, options.to_layout)
    else:
        sentences = convert(
            options.source,
            options.target,
            options.from_layout,
            base=options.base,
            prompts=options.prompts,
            constant=options.constant,
            overall_rule=options.overall_rule,
            verified=options.verify,
        )
    print("\n".join(sentences))
    return 0
