"""The recipes go along into the package, where `moyai train mnist` finds them from any folder; all else of the build
stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithRecipes(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # then they are found in the checkout
            target = Path(self.build_lib) / "moyai" / "recipes"
            shutil.copytree(Path(__file__).parent / "recipes", target, dirs_exist_ok=True)


setup(cmdclass={"build_py": WithRecipes})
