"""The processes and devices that train together: `accelerate` set up once, and a model made ready for several processes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, broadcast_object_list
from timm.layers.norm_act import convert_sync_batchnorm

from finpercep.errors import ConfigError
from finpercep.reward_model.model import FinPercepRM
from finpercep.training.train_config import Precision

T = TypeVar("T")

_PATIENCE = timedelta(hours=2)  # the others wait while the main process measures a rung on the validation split
_SPLIT = {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}
_MIXED: dict[Precision, str] = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def make_accelerator(device: torch.device, precision: Precision) -> Accelerator:
    """One for this process, which may be one of several that ``accelerate launch`` or, on CPUs, ``torchrun`` started.

    Args:
        device: where to train; of several processes, each has the GPU of its local rank, or all have the CPU.
        precision: of the forward passes.

    Raises:
        ConfigError: the device cannot do that precision, or the launcher would split the model.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("precision fp16 needs a GPU; on a CPU take bf16 or fp32")
    if PartialState._shared_state and PartialState().num_processes == 1:
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run of this process may have had another device
    else:
        AcceleratorState._reset_state()  # … or another precision
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    options = [InitProcessGroupKwargs(timeout=_PATIENCE)]
    try:
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=_MIXED[precision], kwargs_handlers=options)
    except ValueError as error:
        raise ConfigError(f"precision {precision} on {device}: {error}; take fp32") from error
    require_whole_models(accelerator.distributed_type)
    return accelerator


def require_whole_models(kind: DistributedType) -> None:
    """Every process holds the whole model, its average and its optimiser; splitting a few million weights would gain nothing.

    Raises:
        ConfigError: ``accelerate launch`` was told to split it.
    """
    if kind in _SPLIT:
        raise ConfigError(f"every process must hold the whole model, got {kind.value}; launch with deploy/accelerate/ddp.yaml")


def on_main_process(accelerator: Accelerator, compute: Callable[[], T]) -> T:
    """What ``compute`` returns in the main process, in every process; the others wait for it."""
    held: list[Any] = [compute() if accelerator.is_main_process else None]
    broadcast_object_list(held, from_process=0)
    result: T = held[0]
    return result


def prepare_for_processes(
    accelerator: Accelerator,
    model: FinPercepRM,
    optimiser: torch.optim.Optimizer,
    backward: Callable[[], object],
) -> tuple[FinPercepRM, torch.optim.Optimizer]:
    """Model and optimiser as `accelerate` wraps them; the weights stay those of ``model``.

    On several GPUs BatchNorm's statistics are those of the whole batch (SyncBatchNorm). On several CPU processes, which
    SyncBatchNorm does not support, each normalises with its own share's, and the main process's running statistics are stored.

    Args:
        accelerator: this process's.
        model: on the accelerator's device.
        optimiser: of ``model``'s parameters.
        backward: one backward pass of ``model``, to see which parameters take part; not called for a single process.
    """
    if accelerator.num_processes > 1:
        unused = _has_unused_parameters(model, backward)
        # Looking for them costs a walk through the graph every step; most encoders use all they have.
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=unused)
        if accelerator.device.type == "cuda":
            convert_sync_batchnorm(model)
    wrapped, prepared = accelerator.prepare(model, optimiser)
    wrapped.config = model.config  # the objective asks the model for it
    return wrapped, prepared


def _has_unused_parameters(model: FinPercepRM, backward: Callable[[], object]) -> bool:
    was_training = model.training
    model.eval()  # leaves BatchNorm's statistics alone
    backward()
    unused = any(parameter.grad is None for parameter in model.parameters() if parameter.requires_grad)
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return unused
