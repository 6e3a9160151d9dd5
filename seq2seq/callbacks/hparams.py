"""Fills TensorBoard's HParams tab: one row for each run, from its first step on.

Which settings make up the row is chosen in `seq2seq.event_log`.
"""

import time
from collections.abc import Mapping

from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from seq2seq.callbacks.charts import write_scalars, writers
from seq2seq.status import Diverged

Hyperparameter = bool | int | float | str | None

# TensorBoard shows the first five at once.
FIGURES = ("loss", "exact_match", "token_accuracy", "bleu", "chrf", "perplexity", "edit_rate")


class HParams(Callback):
    """Show a run's hyperparameters and, once it is tested, its figures ``hp/<figure>``.

    A run that is under way has a row without figures, and so has one that diverged, whose status is
    failure and whose text ``diverged`` says where. A figure that isn't finite is left out.

    Args:
        values: hyperparameters by name; None leaves the cell empty. Runs of one log directory
            should have the same names: TensorBoard takes the columns from the first of them.
    """

    def __init__(self, *, values: Mapping[str, Hyperparameter]) -> None:
        self.values = dict(values)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the row."""
        columns = [
            api_pb2.HParamInfo(name=name, type=_type(value), differs=True)
            for name, value in self.values.items()
        ]
        start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for name, value in self.values.items():
            if isinstance(value, bool):
                start.hparams[name].bool_value = value
            elif isinstance(value, str):
                start.hparams[name].string_value = value
            elif value is not None:  # a word among numbers could not be sorted
                start.hparams[name].number_value = value
        names = [api_pb2.MetricName(tag=_tag(figure)) for figure in FIGURES]
        metrics = [api_pb2.MetricInfo(name=name) for name in names]
        experiment = api_pb2.Experiment(hparam_infos=columns, metric_infos=metrics)
        _write(trainer, metadata.EXPERIMENT_TAG, experiment=experiment)
        _write(trainer, metadata.SESSION_START_INFO_TAG, session_start_info=start)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the figures."""
        tested = trainer.callback_metrics
        found = {_tag(figure): tested.get(f"test/{figure}") for figure in FIGURES}
        numbers = {tag: float(value) for tag, value in found.items() if value is not None}
        write_scalars(trainer, numbers, trainer.global_step)
        self._end(trainer, api_pb2.STATUS_SUCCESS)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """End the row of a run that diverged; others may go on, and the first end counts."""
        if isinstance(exception, Diverged):
            for writer in writers(trainer):
                writer.add_text("diverged", str(exception), exception.step)
            self._end(trainer, api_pb2.STATUS_FAILURE)

    def _end(self, trainer: Trainer, status: int) -> None:
        end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
        _write(trainer, metadata.SESSION_END_INFO_TAG, session_end_info=end)


def _tag(figure: str) -> str:
    return f"hp/{figure}"


def _type(value: Hyperparameter) -> int:
    if isinstance(value, bool):
        return int(api_pb2.DATA_TYPE_BOOL)
    return int(api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64)


def _write(trainer: Trainer, tag: str, **content: object) -> None:
    data = plugin_data_pb2.HParamsPluginData(**content)
    value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data))
    for writer in writers(trainer):
        writer.file_writer.add_summary(Summary(value=[value]))
