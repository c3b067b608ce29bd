"""Results that anyone can repeat: train, judge, and fill the tables of docs/results.md and README.md.

    python benchmarks/results.py --list
    python benchmarks/results.py --row digits fashion-mnist --threads 2
    python benchmarks/results.py --page-only

Each run is trained and judged by `moyai` itself (`results_measure.py`), in OUT/<run>; the same command goes on where
an earlier one was cut off. What is measured is written to docs/results/<row>.json after each run, and the pages follow
from these files alone (`results_page.py`). A point that was measured by the same commands on the same machine is not
measured again (--again does); one from another machine is replaced, and with it all of its row's, so that no mean is
taken over machines. The rows themselves are a list in `results_rows.py`.
"""

import argparse
import dataclasses
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import results_page
import results_peers
from results_measure import ROOT, Failed, Json, Lab, alike, machine, measure, recipe_hash, start
from results_rows import OUT, Point, Row, points, rows

from moyai.errors import MoyaiError, RequestError, choices
from moyai.files import read_json, write_atomic, write_json_atomic

LARGEST = 150_000  # bytes of a picture in docs/pictures
CLEARED = 0.02  # the share of near-copies below which a "cleared" row shows its samples


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the words say; returns the exit status."""
    args = _parser().parse_args(arguments)
    try:
        chosen = _chosen(args)
        if args.list:
            for row in chosen:
                print(_told(row, args.docs))
            return 0
        status = 0 if args.page_only else Campaign(args).run(chosen)
        for path in results_page.write(args.docs):
            print(f"wrote {path}")
        return status
    except MoyaiError as error:
        print(f"results: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:  # between two commands; within one it is passed on
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--row", nargs="+", default=["all"], metavar="NAME", help="which rows; all of them by default")
    parser.add_argument("--list", action="store_true", help="say what the rows are and what is measured of them")
    parser.add_argument("--page-only", action="store_true", help="only fill the pages from docs/results/*.json")
    parser.add_argument("--out", type=Path, default=ROOT / OUT, help="where the runs lie (default: runs/results)")
    parser.add_argument("--threads", type=int, default=None, help="of every run, as OMP_NUM_THREADS")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the longest runs of factors (default: 10)")
    parser.add_argument("--again", action="store_true", help="delete the runs of these rows and measure them anew")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where results/, pictures/ and results.md are")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="laid over every recipe; needs --docs"
    )
    parser.add_argument("--n", type=int, default=None, help="samples to judge by; needs --docs")
    return parser


def _chosen(args: argparse.Namespace) -> list[Row]:
    """The rows that are named, with what is laid over all of them."""
    known = {row.name: row for row in rows(args.minutes)}
    if wrong := [name for name in args.row if name not in known and name != "all"]:
        raise RequestError(f"row {wrong[0]!r} is unknown; {choices(wrong[0], ['all', *known])}")
    if args.threads is not None and args.threads < 1:
        raise RequestError(f"--threads {args.threads} is not possible; possible: 1 or more")
    if not args.minutes > 0:
        raise RequestError(f"--minutes {args.minutes:g} is not possible; possible: more than 0")
    if (args.set or args.n) and args.docs.resolve() == ROOT / "docs":
        raise RequestError("--set and --n make other results than the recipes'; give a --docs of their own")
    names = known if "all" in args.row else dict.fromkeys(args.row)
    return [
        dataclasses.replace(known[name], overrides=(*known[name].overrides, *args.set), n=args.n or known[name].n)
        for name in names
    ]


def _told(row: Row, docs: Path) -> str:
    found, wanted = Store(docs, row).points, [_commands(point) for point in points(row)]
    what = f"seeds {', '.join(map(str, row.seeds))}" + (f", {len(row.variants)} variants" if row.variants else "")
    if row.measure == "peers":
        done = [p for p in found if p.get("recipe", "") == results_peers.settings(p["system"])]
        names = {(p["system"], p["minutes"], p["evaluation"]["samples"]) for p in done}
        jobs = list(results_peers.jobs(done))
        return f"{row.name:24}benchmarks/quality.py: {len(names & set(jobs))} of {len(jobs)} measured"
    now = recipe_hash(row.recipe)
    measured = sum(p["commands"] in wanted and p.get("recipe") == now for p in found)
    return f"{row.name:24}recipes/{row.recipe}.toml, {what}: {measured} of {len(wanted)} measured"


def _commands(point: Point) -> list[str]:
    """A point's commands as they are kept."""
    return [shlex.join(["moyai", *words]) for words in point.commands()]


class Store:
    """A row's file in docs/results, and the points in it."""

    def __init__(self, docs: Path, row: Row) -> None:
        self.path, self.row = docs / "results" / f"{row.name}.json", row

    @property
    def points(self) -> list[Json]:
        return read_json(self.path)["points"] if self.path.is_file() else []

    def has(self, commands: Sequence[str], name: str, on: Json, recipe: str = "") -> bool:
        """Whether this point was measured by these commands on this machine, of the recipe as it is now."""
        wanted = (name, list(commands), recipe)
        mine = [p for p in self.points if alike(p["machine"], on)]
        return any((p["name"], p["commands"], p.get("recipe", "")) == wanted for p in mine)

    def keep(self, point: Json, aside: Path) -> None:
        """Put a point among its row's. Those of another machine, of the recipe as it was before, and those that are no
        point of the row any more go; the file as it was is then left in `aside`."""
        others = [p for p in self.points if p["name"] != point["name"]]
        kept = [p for p in others if self._beside(p, point)]
        if len(kept) < len(others):
            aside.mkdir(parents=True, exist_ok=True)
            write_atomic(aside / f"{self.row.name}.before.json", self.path.read_bytes())
            what = "of another machine or recipe, or not of this row,"
            print(f"{len(others) - len(kept)} points of {self.row.name} {what} are replaced")
        self._write([*kept, point])

    def _beside(self, old: Json, new: Json) -> bool:
        """Whether a point may stand in one table with a new one."""
        if not alike(old["machine"], new["machine"]):
            return False
        if self.row.measure == "peers":
            return old.get("recipe", "") == results_peers.settings(old["system"])
        commands = {point.name: _commands(point) for point in points(self.row)}
        return old["commands"] == commands.get(old["name"]) and old.get("recipe") == new["recipe"]

    def forget(self) -> None:
        if self.path.is_file():
            self._write([])

    def _write(self, found: list[Json]) -> None:
        order = {point.name: i for i, point in enumerate(points(self.row))}
        found.sort(key=lambda p: order.get(p["name"], len(order)))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(self.path, {"row": self.row.name, "points": found})


class Campaign:
    """Rows being measured, one point after the other; pages and pictures are written after each."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.docs, self.again = args.docs, args.again
        self.lab = Lab(args.out.resolve(), args.threads, start)
        self.lab.out.mkdir(parents=True, exist_ok=True)
        self.machine = machine(self.lab)

    def run(self, chosen: Sequence[Row]) -> int:
        """0, or 1 where a point failed (the others are measured), or what a signal asks for, at once."""
        failed = 0
        for row in chosen:
            store = Store(self.docs, row)
            if self.again:
                self._clear(row, store)
            for outcome in self._peers(row, store) if row.measure == "peers" else self._runs(row, store):
                if isinstance(outcome, Failed):
                    print(f"results: {row.name}: {outcome}", file=sys.stderr)
                    if outcome.stopped:
                        return outcome.status
                    failed += 1
                else:
                    results_page.write(self.docs)
        return 1 if failed else 0

    def _runs(self, row: Row, store: Store) -> Iterator[Json | Failed]:
        for point in points(row):
            if store.has(_commands(point), point.name, self.machine, recipe_hash(point.recipe)):
                print(f"{point.name} is measured already")
                continue
            try:
                found = measure(point, self.lab, self.machine)
                if point.seed == row.seeds[0]:
                    self._picture(row, point)
                store.keep(found, self.lab.out)  # last: what is kept is complete
                yield found
            except Failed as failed:
                yield failed

    def _peers(self, row: Row, store: Store) -> Iterator[Json | Failed]:
        done: list[Json] = []  # read by `jobs`, which ends with the best of them
        for system, minutes, samples in results_peers.jobs(done):
            known = [results_peers.command(system, minutes, self.machine["threads"], samples)]
            name = f"{system}-{minutes}min"
            if store.has(known, name, self.machine, results_peers.settings(system)):
                print(f"{name} is measured already")
                done += [p for p in store.points if p["name"] == name]
                continue
            try:
                found = results_peers.measure(system, minutes, samples, self.lab, self.machine)
                store.keep(found, self.lab.out)
                done.append(found)
                yield found
            except Failed as failed:
                yield failed

    def _clear(self, row: Row, store: Store) -> None:
        """Forget a row, and delete the folders that it alone made."""
        known = store.points
        store.forget()  # first: cut off between here and there, nothing is taken for measured
        if row.measure == "peers":
            for point in known:
                threads, out = point["machine"]["threads"], self.lab.out.parent / "quality"
                place = results_peers.folder(out, point["system"], point["minutes"], threads)
                shutil.rmtree(place, ignore_errors=True)
        for point in points(row) if row.measure == "runs" else []:
            for name in {point.name, point.run} if point.run.startswith(row.name) else {point.name}:
                shutil.rmtree(self.lab.out / name, ignore_errors=True)
                (self.lab.out / f"{name}.usage.json").unlink(missing_ok=True)

    def _cleared(self, point: Point, each: int) -> bool:
        """Whether the very pictures of a sheet of so many a class are no copies: they are drawn again and looked up."""
        run, shown = self.lab.out / point.run, self.lab.out / f"{point.run}.shown.npz"
        self.lab.moyai(["sample", str(run), "--n", str(each), "--out", str(shown), "--quiet"])
        result = shown.with_suffix(".json")
        self.lab.moyai(["evaluate", str(shown), "--against", str(run), "--json", str(result), "--quiet"])
        judged = read_json(result)["rows"]["samples"]
        shares = [v["value"] for name, v in judged.items() if name.startswith(results_page.COPIES)]
        return max(shares, default=1.0) < CLEARED

    def _picture(self, row: Row, point: Point) -> None:
        """The report's sheet of samples into docs/pictures, with fewer columns where it is too large; the one that is
        there goes where some of the new one are copies."""
        if row.picture == "no":
            return
        run, path = self.lab.out / point.run, self.docs / "pictures" / f"{row.name}.png"
        sheet, each = run / "samples" / "samples.png", read_json(run / "recipe.json")["report"]["per_class"]
        for fewer in (6, 4, 2):
            if sheet.stat().st_size <= LARGEST:
                break
            sheet, each = self.lab.out / f"{point.run}.png", fewer
            self.lab.moyai(["sample", str(run), "--n", str(each), "--out", str(sheet), "--quiet"])
        if row.picture == "cleared" and not self._cleared(point, each):
            print(f"{row.name}: some of its pictures are near copies of training pictures, so none is shown")
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, sheet.read_bytes())


if __name__ == "__main__":
    sys.exit(main())
