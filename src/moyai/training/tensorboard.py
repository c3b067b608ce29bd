"""The log for TensorBoard too, where it is asked for. The JSON lines stay the record."""

from pathlib import Path

from moyai.errors import RequestError
from moyai.log import Line


class TensorBoard:
    """Writes the numbers of every line of the log to event files in `folder`."""

    def __init__(self, folder: Path, *, step: int) -> None:
        """step: the checkpoint's step; what an earlier attempt wrote after it is hidden."""
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise RequestError("train.tensorboard needs TensorBoard; pip install moyai[tensorboard]") from error
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, line: Line) -> None:
        for kind in ("train", "validation", "time"):
            for name, value in line.get(kind, {}).items():
                self._writer.add_scalar(f"{kind}/{name}", value, line["step"])

    def close(self) -> None:
        self._writer.close()
