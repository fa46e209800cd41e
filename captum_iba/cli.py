"""The command line: ``captum-iba demo``, ``explain``, ``explain-text``, ``compare``, ``insights``, ``serve``."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from captum_iba._cli_compare import add_parser as add_compare
from captum_iba._cli_explain import add_parser as add_explain
from captum_iba._cli_explain import hint
from captum_iba._cli_explain_text import add_parser as add_explain_text
from captum_iba._cli_insights import add_parser as add_insights
from captum_iba._cli_serve import add_parser as add_serve
from captum_iba.errors import CaptumIBAError

USER_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments (Sequence[str], optional): without the program's name. Default: None: ``sys.argv``.

    Returns:
        int: 0; 1 if some images could not be read; 2 for a mistake in the arguments.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = _show_warning
            status: int = options.run(options)
    except CaptumIBAError as error:
        print(f"captum-iba: {error}", file=sys.stderr)
        advice = hint(options, error)
        if advice:
            print(f"captum-iba: {advice}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        print(f"captum-iba: {error}. Choose another --output.", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("captum-iba: interrupted; what is written stays, and the same command goes on with it.", file=sys.stderr)
        return 130
    return status


def _show_warning(message: Warning | str, *_args: object, **_kwargs: object) -> None:
    print(f"captum-iba: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="captum-iba", description="How many bits each region gives the decision.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="explain embedded handwritten digits; nothing is downloaded")
    demo.add_argument("--output", type=Path, default=Path("iba-demo"), metavar="DIR", help="default: iba-demo")
    demo.set_defaults(run=_demo)
    add_explain(commands)
    add_explain_text(commands)
    add_compare(commands)
    add_insights(commands)
    add_serve(commands)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from captum_iba.demo.run import report, run_demo

    print(report(run_demo(options.output)))
    return 0
