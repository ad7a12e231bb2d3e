"""How a trainer evaluates: whole recordings, all of them, and every loss by name over the frames of the whole set."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from ..modeling_mimi_bridge import MimiBridgeModel
from ..outputs import MimiBridgeOutput
from .run_log import RunLog
from .teachers import TrainingTeachers

PADDING_INDEX = -100  # what transformers fills predictions up with


class EvaluatingTrainer(Trainer):
    """transformers' Trainer, whose evaluations are the same for every batch size and number of processes."""

    eval_data_collator: Any
    run_log: RunLog
    teachers: TrainingTeachers | None

    @property
    def bridge_model(self) -> MimiBridgeModel:
        """The model that is trained, by whatever it is wrapped for that."""
        return cast(MimiBridgeModel, self.model)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As in transformers, with whole recordings, and all of them."""
        with self._whole_recordings():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As in transformers, with whole recordings, and all of them."""
        with self._whole_recordings():
            return super().get_test_dataloader(test_dataset)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Any, Any]:
        """The loss of an evaluation batch, and its codes; losses and codes are counted on the way.

        Rows that were repeated so that all processes have as many do not count.
        """
        inputs = self._prepare_inputs(self.teachers.add(inputs) if self.teachers is not None else inputs)
        num_rows = len(next(iter(inputs.values())))
        num_counted = num_rows_that_count(num_rows, self.accelerator)
        loss, num_codebooks = torch.zeros((), device=self.args.device), self.bridge_model.quantizer.num_quantizers
        codes = torch.full((num_rows, 1, num_codebooks), PADDING_INDEX, device=loss.device)
        if num_counted:
            inputs = {name: each[:num_counted] if isinstance(each, Tensor) else each for name, each in inputs.items()}
            with torch.no_grad(), self.compute_loss_context_manager():
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
            codes = codes_to_gather(outputs, num_rows)
        return (loss.detach().float(), *((None, None) if prediction_loss_only else (codes, ())))

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in transformers, with every loss by name, over the frames of the whole set.

        Beside the distance to a teacher stands the one that the mean of the training's targets would get. The
        discriminator's losses are no part of it. The model is left as it was, after `bf16_full_eval`, too.
        """
        self.run_log.begin_evaluation()
        halves = not self.is_in_train and (self.args.bf16_full_eval or self.args.fp16_full_eval)
        with weights_kept(self.bridge_model) if halves else nullcontext():
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        assert output.metrics is not None
        output.metrics.update(self.run_log.evaluated(metric_key_prefix))
        return output

    @contextmanager
    def _whole_recordings(self) -> Iterator[None]:
        kept = self.data_collator, self.args.dataloader_drop_last
        self.data_collator, self.args.dataloader_drop_last = self.eval_data_collator, False
        try:
            yield
        finally:
            self.data_collator, self.args.dataloader_drop_last = kept


def num_rows_that_count(num_rows: int, accelerator: Accelerator) -> int:
    """How many rows of this process's batch, its first ones, are no repetitions.

    accelerate repeats rows so that all processes have as many. As its `gather_for_metrics` counts them, they are the
    last of all processes' last batches, one after the other.

    Args:
        num_rows: Of the batch.
        accelerator: In the middle of a data loader.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
        return num_rows
    return min(num_rows, max(0, state.remainder - num_rows * accelerator.process_index))


def codes_to_gather(outputs: MimiBridgeOutput, num_rows: int) -> Tensor:
    """Codes as transformers gathers predictions, `(rows, frames, codebooks)`: -100 where there is no frame.

    Args:
        outputs: Of the model, for the rows that count.
        num_rows: Of the batch, those that do not count among them.
    """
    assert outputs.audio_codes is not None and outputs.audio_codes_mask is not None
    codes = outputs.audio_codes.transpose(1, 2).masked_fill(~outputs.audio_codes_mask[:, :, None], PADDING_INDEX)
    return nn.functional.pad(codes, (0, 0, 0, 0, 0, num_rows - len(codes)), value=PADDING_INDEX)


@contextmanager
def weights_kept(model: nn.Module) -> Iterator[None]:
    """Put a model's weights back at the end: transformers rounds them for an evaluation in half precision."""
    parameters = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module, name, value) for module in model.modules() for name, value in module._buffers.items()]
    try:
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for module, name, value in buffers:
            module._buffers[name] = value
        model.to(next(model.parameters()).device)  # forgets what was packed of the rounded weights
        model.train(model.training)
