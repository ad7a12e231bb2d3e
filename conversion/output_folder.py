"""The folder that a conversion writes, and the two names beside it that it needs until the result is whole.

A result is written under the partial name. The old model, if there is one, has the replaced name while the new one
takes its place. A conversion that was killed leaves either behind; the next one to the same folder clears it up.
"""

import shutil
import sys
from pathlib import Path

from mimi_bridge.cli.places import folder_to_write
from source import ConversionError


class OutputFolder:
    """A folder that is whole and proven where it exists.

    Args:
        path: Where the result is to be.
    """

    def __init__(self, path: Path):
        self.path = path.absolute()
        self.partial = self.path.with_name(f".{self.path.name}.partial")
        self.replaced = self.path.with_name(f".{self.path.name}.replaced")

    def check(self, source: Path, overwrite: bool) -> None:
        """Refuse a folder that cannot be written or must not be replaced.

        Raises:
            ConversionError: With one sentence for the user.
        """
        try:
            folder_to_write(str(self.path))
        except (OSError, ValueError) as error:
            raise ConversionError(str(error)) from error
        if not self.path.exists():
            return
        if source.exists() and self.path.samefile(source):
            raise ConversionError(f"{self.path} is the source itself; choose another --output.")
        if not overwrite:
            raise ConversionError(
                f"{self.path} exists already; choose another --output, or pass --overwrite to replace it."
            )
        if not (self.path / "config.json").is_file():
            raise ConversionError(
                f"{self.path} is no model folder, so --overwrite will not replace it; choose another --output."
            )

    def give_name(self) -> None:
        """The partial result gets the folder's name; an old model there is gone after that, and not before."""
        shutil.rmtree(self.replaced, ignore_errors=True)
        if self.path.exists():
            self.path.rename(self.replaced)
        try:
            self.partial.rename(self.path)
        finally:
            self._restore_replaced()
        shutil.rmtree(self.replaced, ignore_errors=True)

    def clear_up_partial(self) -> None:
        """Nothing is left of a result that did not get its name."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def clear_up_after_killed(self) -> None:
        """Remove or restore what a killed conversion to the same folder left, and say so."""
        # An unproven result; an old model without its name, or one that a proven result has replaced.
        if self.partial.exists():
            _say(f"found {self.partial}, which a killed conversion left unproven; removing it")
            self.clear_up_partial()
        if self.replaced.exists():
            what = "removing it" if self.path.exists() else "giving it its name again"
            _say(f"found {self.replaced}, the old {self.path.name} that a killed conversion was to replace; {what}")
            if self.path.exists():
                shutil.rmtree(self.replaced, ignore_errors=True)
        self._restore_replaced()

    def _restore_replaced(self) -> None:
        """Give an old model its name back if the new one did not get it."""
        if self.replaced.exists() and not self.path.exists():
            self.replaced.rename(self.path)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
