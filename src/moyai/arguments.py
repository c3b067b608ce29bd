"""The words of the command line: what `moyai` and each of its commands understand, and what help says of them."""

import argparse
from pathlib import Path
from typing import Any

from moyai.version import __version__

EDITED = 4  # pictures of each edit where no number is asked for


def parser() -> argparse.ArgumentParser:
    """All that `moyai` understands; the command's name is in `command`."""
    made = argparse.ArgumentParser(
        prog="moyai",
        description="Latent diffusion on your own images: train both stages, sample, and get an honest report.",
    )
    made.add_argument("--version", action="version", version=f"moyai {__version__}")
    commands = made.add_subparsers(title="commands", required=True, metavar="COMMAND")
    looking = (_add_evaluate, _add_compare, _add_reconstruct, _add_inspect)
    for add in (_add_train, _add_sample, _add_edit, *looking, _add_check, _add_recipe):
        add(commands)
    return made


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one and the help does not name it already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = action.default in (None, False) or "default:" in (action.help or "")
        return action.help if said else super()._get_help_string(action)


def _command(commands: Any, name: str, what: str) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what, formatter_class=_Help)
    added.set_defaults(command=name)
    return added


def _add_train(commands: Any) -> None:
    p = _command(commands, "train", "Train all that a recipe says, from data to report; goes on where it stopped.")
    _recipe_words(p)
    p.add_argument("--out", type=Path, default=None, help="the run's folder (default: runs/<name>, or the run given)")
    p.add_argument(
        "--first-stage", type=Path, default=None, metavar="RUN", help="take over that run's first stage, train none"
    )
    p.add_argument("--stage", default=None, help="only this part: first_stage, latents, prior, decoder or report")
    p.add_argument("--device", default=None, help="cpu, cuda or cuda:N (default: cuda where there is one)")
    p.add_argument("--allow-data-change", action="store_true", help="go on though the data are not those it began with")
    p.add_argument("--force", action="store_true", help="take over the folder from a run on another machine")
    p.add_argument("--quiet", action="store_true", help="only warnings")


def _add_sample(commands: Any) -> None:
    p = _command(commands, "sample", "Draw pictures from a trained run.")
    p.add_argument("path", metavar="RUN", type=Path, help="a folder that `moyai train` made")
    _asked_words(p, "all", "eight of them")
    p.add_argument(
        "--picture",
        nargs="+",
        default=None,
        metavar="[CONDITION=]FILE",
        help="small pictures to enlarge, or to fill in; of a model that does both, by name: low_resolution=small.png",
    )
    p.add_argument("--mask", type=Path, default=None, metavar="FILE", help="white where --picture is to be filled in")
    _drawing_words(p, 8, "the recipe's")
    p.add_argument(
        "--temperature", type=float, default=None, help="of priors over codes: below 1 likelier codes, 0 the likeliest"
    )
    p.add_argument("--top-k", type=int, default=None, help="of priors over codes: draw among so many likeliest")
    p.add_argument(
        "--top-p", type=float, default=None, help="of priors over codes: among those that come to this share"
    )
    _written_words(p, "samples.png")


def _add_edit(commands: Any) -> None:
    p = _command(commands, "edit", "Change pictures by a trained run, or fill in what a mask says is missing.")
    p.add_argument("path", metavar="RUN", type=Path, help="a folder that `moyai train` made")
    p.add_argument("originals", metavar="PICTURE", type=Path, nargs="+", help="pictures to begin with")
    p.add_argument(
        "--mask", type=Path, default=None, metavar="FILE", help="white where to paint; black stays as it is, to the bit"
    )
    p.add_argument(
        "--strength",
        type=float,
        default=None,
        help="how much is drawn anew, above 0 up to 1, a share of the model's own time (default: 0.6, with a mask 1)",
    )
    p.add_argument(
        "--repeat",
        dest="repeats",
        type=int,
        default=None,
        metavar="TIMES",
        help="walk each step so often, so that what is new fits what is there (default: 1, with a mask 10)",
    )
    _asked_words(p, "none", "none")
    _drawing_words(p, EDITED, "the recipe's, or all there are")
    _written_words(p, "edited.png")


def _add_evaluate(commands: Any) -> None:
    p = _command(commands, "evaluate", "Judge a run, or pictures, beside held-out real pictures.")
    p.add_argument(
        "path", metavar="RUN|FOLDER|FILE.npz", type=Path, help="a run; or a folder, a .zip or an .npz of pictures"
    )
    p.add_argument(
        "--against",
        default=None,
        metavar="DATA",
        help="a recipe, a run's folder, or a folder or .zip of pictures (default: the run's own data)",
    )
    p.add_argument(
        "--extractor",
        default="own",
        metavar="WHICH",
        help="own, a small network trained on the data; inception:FILE.safetensors (resized as pytorch-fid), "
        "inception-tf:FILE.safetensors (as torch-fidelity); dinov2:FOLDER; clip:FOLDER",
    )
    p.add_argument(
        "--n", type=int, default=None, help="samples, over all classes (default: 2000 of a run, else all there are)"
    )
    p.add_argument("--snapshots", action="store_true", help="also judge each average that training kept, by step")
    p.add_argument("--seed", type=int, default=None, help="of a run's first sample (default: 1000000)")
    _walk_words(p)
    p.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write the values there")
    p.add_argument(
        "--out",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="of pictures that are no run: also write the values, and sheets of those nearest to training pictures",
    )
    p.add_argument("--device", default=None, help="cpu, cuda or cuda:N (default: cuda where there is one)")
    p.add_argument("--quiet", action="store_true", help="only warnings and the table")


def _add_compare(commands: Any) -> None:
    p = _command(commands, "compare", "Put the priors of several runs into one table and one picture.")
    p.add_argument("paths", metavar="RUN", type=Path, nargs="+", help="two finished runs or more")
    p.add_argument(
        "--class", dest="classes", nargs="+", default=None, metavar="CLASS", help="default: those all runs know"
    )
    p.add_argument("--position", type=float, nargs="+", default=None, metavar="P", help="of slices, 0 to 1")
    p.add_argument("--caption", nargs="+", default=None, metavar="TEXT", help="what to draw, in words")
    p.add_argument("--n", type=int, default=None, help="pictures of each combination (default: 8 in all, or more)")
    p.add_argument("--seed", type=int, default=0, help="of the first column; column i has seed + i")
    _walk_words(p, "each recipe's own")
    p.add_argument("--out", type=Path, default=Path("comparison.png"), help="the picture, a row a run")
    p.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write the table there")
    p.add_argument("--device", default=None, help="cpu, cuda or cuda:N (default: cuda where there is one)")
    p.add_argument("--quiet", action="store_true", help="only warnings and the table")


def _add_reconstruct(commands: Any) -> None:
    p = _command(commands, "reconstruct", "Put pictures through a run's first stage and back, and judge them.")
    p.add_argument("path", metavar="RUN", type=Path, help="a run whose first stage is trained, or on its way")
    p.add_argument("pictures", metavar="PATH", type=Path, nargs="+", help="pictures, folders or .zip files of them")
    p.add_argument(
        "--out", type=Path, default=Path("reconstructions.png"), help="a sheet (.png), or a folder with a PNG for each"
    )
    p.add_argument(
        "--size",
        choices=("model", "native"),
        default="model",
        help="the run's, as its data were brought to, or their own",
    )
    p.add_argument("--tile", type=int, default=None, help="side of the tiles of larger pictures (default: 512)")
    p.add_argument(
        "--position", type=float, default=None, metavar="P", help="of all these slices, 0 to 1, where it is told"
    )
    p.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write the values there")
    p.add_argument("--device", default=None, help="cpu, cuda or cuda:N (default: cuda where there is one)")
    p.add_argument("--quiet", action="store_true", help="only warnings and the table")


def _add_inspect(commands: Any) -> None:
    p = _command(commands, "inspect", "Tell what a run, checkpoint, picture, recipe or data folder is.")
    p.add_argument("path", metavar="PATH", type=Path, help="what to look at")
    p.add_argument("--plot", type=Path, default=None, help="write the curves of a run's logs to this .html file")


def _add_check(commands: Any) -> None:
    p = _command(commands, "check", "Try a recipe without training: sizes, memory, minutes, a budget's split.")
    _recipe_words(p)
    p.add_argument("--device", default=None, help="cpu, cuda or cuda:N (default: cuda where there is one)")


def _add_recipe(commands: Any) -> None:
    p = _command(commands, "recipe", "Explain the keys of a recipe.")
    p.add_argument("key", nargs="?", default="", help="a section or key, such as prior.train")


def _asked_words(p: argparse.ArgumentParser, classes: str, positions: str) -> None:
    p.add_argument(
        "--class",
        dest="classes",
        nargs="+",
        default=None,
        metavar="CLASS",
        help=f"names or numbers; default: {classes}",
    )
    p.add_argument(
        "--position",
        type=float,
        nargs="+",
        default=None,
        metavar="P",
        help=f"of slices, 0 to 1; default: {positions}",
    )
    p.add_argument("--caption", nargs="+", default=None, metavar="TEXT", help="what to draw, in words")
    p.add_argument(
        "--number", nargs="+", default=None, metavar="FIELD=VALUE", help="other numbers the data have, such as age=70"
    )
    p.add_argument("--map", type=Path, nargs="+", default=None, metavar="FILE", help="pictures of region numbers")


def _drawing_words(p: argparse.ArgumentParser, n: int, batch: str) -> None:
    p.add_argument("--n", type=int, default=None, help=f"pictures of each combination of what is asked (default: {n})")
    p.add_argument("--seed", type=int, default=None, help="of the first picture; picture i has seed + i (default: 0)")
    _walk_words(p)
    p.add_argument("--grid", default=None, help="where the steps lie (default: the recipe's)")
    p.add_argument("--eta", type=float, default=None, help="fresh noise; of euler, 0 is DDIM and 1 is DDPM")
    p.add_argument("--batch", type=int, default=None, help=f"pictures a forward (default: {batch})")


def _written_words(p: argparse.ArgumentParser, out: str) -> None:
    p.add_argument(
        "--like", type=Path, default=None, metavar="PICTURE", help="draw it again, from the recipe it carries"
    )
    p.add_argument("--out", type=Path, default=Path(out), help="a grid (.png), arrays (.npz), a folder of PNGs")
    p.add_argument("--gif", type=Path, default=None, help="also the way from noise to pictures, as a .gif")
    p.add_argument("--device", default=None, help="cpu, cuda or cuda:N (default: cuda where there is one)")
    p.add_argument("--quiet", action="store_true", help="only warnings")


def _walk_words(p: argparse.ArgumentParser, whose: str = "the recipe's") -> None:
    p.add_argument("--steps", type=int, default=None, help=f"sampler steps (default: {whose})")
    p.add_argument("--sampler", default=None, help=f"euler (DDIM), dpmpp_2m, unipc, plms, ... (default: {whose})")
    p.add_argument(
        "--guidance",
        action="append",
        default=None,
        metavar="[CONDITION=]WEIGHT",
        help=f"classifier-free; 1 is none; of one condition by its name; may be repeated (default: {whose})",
    )


def _recipe_words(p: argparse.ArgumentParser) -> None:
    p.add_argument("recipe", metavar="RECIPE", help="a recipe's name (mnist, ...), a .toml file, or a run's folder")
    p.add_argument("overrides", metavar="section.key=value", nargs="*", default=[], help="laid over the recipe")
    p.add_argument("--gpu", action="store_true", help="lay the recipe's [gpu] table over it")
