"""The command line. Each command reads its words, calls one function and prints what came of it.

The user's mistakes, and what the system refuses, are one line and exit status 2; a disk that is full 3; training that
cannot go on 4; a signal 128 + its number. torch is imported by the commands that need it, so that help answers at once.
"""

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from typing import Any

from moyai import console
from moyai.arguments import EDITED, parser
from moyai.errors import MoyaiError, SaveError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no room, or no writing at all


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    understood = parser()
    options, more = understood.parse_known_args(arguments)
    # Overrides may stand anywhere, which argparse alone cannot read behind an option.
    if wrong := [word for word in more if "=" not in word or word.startswith("-") or not hasattr(options, "overrides")]:
        understood.error(f"not understood: {' '.join(wrong)}; `moyai {options.command} --help` says what is possible")
    try:
        if more:
            options.overrides = [*options.overrides, *more]
        return COMMANDS[options.command](options)
    except MoyaiError as error:
        _complain(str(error))
        return error.status
    except KeyboardInterrupt:
        sys.stderr.write("moyai: stopped\n")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except OSError as error:  # what no command foresaw
        place = "" if error.filename is None else f"{error.filename}: "
        _complain(f"{place}{error.strerror or error}")
        return SaveError.status if error.errno in FULL else MoyaiError.status


def _complain(text: str) -> None:
    sys.stderr.write(f"moyai: {console.printable(text, sys.stderr.encoding)}\n")


def _train(o: argparse.Namespace) -> int:
    from moyai.training.run import train
    from moyai.training.signals import Interrupted

    try:
        with console.reporter(quiet=o.quiet) as reporter:
            train(
                o.recipe,
                *o.overrides,
                out=o.out,
                stage=o.stage,
                gpu=o.gpu,
                device=o.device,
                first_stage=o.first_stage,
                allow_data_change=o.allow_data_change,
                force=o.force,
                reporter=reporter,
            )
    except Interrupted as stopped:
        sys.stderr.write(f"moyai: {stopped}\n")
        return stopped.status
    return 0


def _device(o: argparse.Namespace) -> Any:
    """The device a command computes on, for which memory is kept from one forward to the next."""
    from moyai.devices import chosen
    from moyai.nets.precision import keep_memory

    keep_memory()
    return chosen(o.device)


def _sample(o: argparse.Namespace) -> int:
    return _drawn(o, ("picture",), ("temperature", "top_k", "top_p"))


def _edit(o: argparse.Namespace) -> int:
    if o.n is None and o.like is None:
        o.n = EDITED
    return _drawn(o, ("originals", "strength", "repeats"), ())


def _drawn(o: argparse.Namespace, more: Sequence[str], settings: Sequence[str]) -> int:
    """Draw what was asked for in the words of all commands that draw, and in more."""
    from moyai.commands import asking
    from moyai.commands.sample import Options, sample

    names = ("n", "seed", "steps", "sampler", "grid", "eta", "batch", *settings)
    drawn = {name: getattr(o, name) for name in names}
    drawn["guidance"] = asking.guidance(o.guidance)
    words = ("like", "classes", "position", "caption", "number", "map", "mask", *more)
    asked = {name: getattr(o, name) for name in words}
    with console.reporter(quiet=o.quiet) as reporter:
        for line in sample(o.path, reporter, Options(o.out, o.gif, device=_device(o), **asked), drawn):
            reporter.say(line)
    return 0


def _evaluate(o: argparse.Namespace) -> int:
    from moyai.commands import asking
    from moyai.commands.evaluate import Options, evaluate

    settings = {"steps": o.steps, "sampler": o.sampler, "guidance": asking.guidance(o.guidance)}
    options = Options(o.against, o.extractor, o.n, o.seed, o.json, _device(o), o.snapshots, o.out)
    with console.reporter(quiet=o.quiet) as reporter:
        for line in evaluate(o.path, reporter, options, settings):
            console.result(line)
    return 0


def _compare(o: argparse.Namespace) -> int:
    from moyai.commands import asking
    from moyai.commands.compare import Options, compare

    drawn = {name: getattr(o, name) for name in ("classes", "n", "seed", "steps", "sampler")}
    drawn["guidance"] = asking.guidance(o.guidance)
    options = Options(o.out, positions=o.position, captions=o.caption, json=o.json, device=_device(o), **drawn)
    with console.reporter(quiet=o.quiet) as reporter:
        for line in compare(o.paths, reporter, options):
            console.result(line)
    return 0


def _reconstruct(o: argparse.Namespace) -> int:
    from moyai.commands.reconstruct import Options, reconstruct

    options = Options(o.out, o.size == "native", o.tile, o.position, o.json, _device(o))
    with console.reporter(quiet=o.quiet) as reporter:
        for line in reconstruct(o.path, o.pictures, reporter, options):
            console.result(line)
    return 0


def _inspect(o: argparse.Namespace) -> int:
    from moyai.commands.inspect import inspect

    for line in inspect(o.path, plot=o.plot):
        console.result(line)
    return 0


def _check(o: argparse.Namespace) -> int:
    from moyai.commands.check import check
    from moyai.devices import chosen
    from moyai.recipe import reading

    recipe = reading.load(reading.find(o.recipe), o.overrides, gpu=o.gpu)
    for line in check(recipe, chosen(o.device)):
        console.result(line)
    return 0


def _recipe(o: argparse.Namespace) -> int:
    from moyai.recipe.reading import schema_help

    console.result(schema_help(o.key))
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": _train,
    "sample": _sample,
    "edit": _edit,
    "evaluate": _evaluate,
    "compare": _compare,
    "reconstruct": _reconstruct,
    "inspect": _inspect,
    "check": _check,
    "recipe": _recipe,
}


if __name__ == "__main__":
    sys.exit(main())
