"""Before the first step: what the teachers' numbers look like, and where a new content head begins.

Both are read off many batches of the training data. A content head begins at the k-means centres of what it gets to
see; or in the teacher's own space: by least squares, the directions in which the latents tell the teacher become its
projection in, and the bridge reads them off.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..data.teachers.statistics import RunningStatistics
from ..distillation import WITHOUT_FLOAT64, TeacherBridge
from ..quantizer import CausalBridgeQuantizer
from .codebooks import fill_from_data
from .init_frames import InitFrames

RIDGES = tuple(10.0**power for power in range(-4, 3))  # of the latents' mean variance, to choose from
HELD_OUT = 5  # every so many blocks of frames are kept aside to choose it
BLOCK = 500  # frames: some recordings
FIRST_SHARE = 0.05  # of the latents' deviation: how loud a content head from least squares begins


def set_teacher_statistics(
    quantizer: CausalBridgeQuantizer,
    init_frames: InitFrames | None,
    stored: Mapping[str, RunningStatistics] | None = None,
) -> None:
    """Put each teacher's mean and deviation over its frames into its bridge.

    Stored ones are always taken; those of `init_frames` where there are none and the bridge has none yet.

    Raises:
        ValueError: If stored ones are of another teacher's size.
    """
    for name, bridge in bridges_of(quantizer).items():
        if stored and name in stored:
            mean, std = stored[name].mean, stored[name].std
        elif init_frames and not bridge.has_statistics and len(init_frames.teachers.get(name, ([], []))[0]) > 1:
            targets = _doubles(init_frames.teachers[name][0])
            mean, std = targets.mean(dim=0), targets.std(dim=0)
        else:
            continue
        if bridge.has_statistics or not quantizer.head_content.is_silent:
            _move_statistics(bridge, mean.float(), std.float())
        else:
            bridge.set_statistics(mean.float(), std.float())


def bridges_of(quantizer: CausalBridgeQuantizer) -> dict[str, TeacherBridge]:
    """The bridges by their teacher's name."""
    return {"qwen": quantizer.proj_qwen, "wavlm": quantizer.proj_wavlm}


@torch.no_grad()
def _move_statistics(bridge: TeacherBridge, mean: Tensor, std: Tensor) -> None:
    # A bridge that has learned says the same in the teacher's own space before and after.
    old_mean, old_std = bridge.mean.clone(), bridge.std.clone()
    bridge.set_statistics(mean, std)
    scale = old_std / bridge.std
    bridge.weight.mul_(scale[:, None])
    bridge.bias.mul_(scale).add_((old_mean - bridge.mean) / bridge.std)


def _doubles(values: Tensor) -> Tensor:
    return (values.cpu() if values.device.type in WITHOUT_FLOAT64 else values).double()


def begin_with_k_means(
    quantizer: CausalBridgeQuantizer, init_frames: InitFrames, frames_per_step: int, generator: torch.Generator
) -> float:
    """Fill the content head's codebook with the centres of what it gets to see.

    Returns:
        The perplexity of the codes.
    """
    return fill_from_data(quantizer.head_content, init_frames.latents, frames_per_step, generator)[0]


@torch.no_grad()
def begin_with_least_squares(
    quantizer: CausalBridgeQuantizer, init_frames: InitFrames, frames_per_step: int, generator: torch.Generator
) -> float:
    """Put the content head into the language model's space, then fill its codebook with centres.

    Latents are fitted to the standardised teacher; the leading directions of the fit become the projection in, and the
    bridge reads the teacher off them. `w_out` begins at a small share of the latents' rms.

    Returns:
        The perplexity of the codes.

    Raises:
        ValueError: If frames have no language model's states, or all the same, or the codebook is wider than the
            latents.
    """
    head, bridge = quantizer.head_content, quantizer.proj_qwen
    targets, places = init_frames.teachers.get("qwen", (torch.zeros(0), torch.zeros(0)))
    if len(targets) == 0 or not bool((targets != targets[0]).any()):
        raise ValueError(
            "content_init='least-squares' needs frames of the training data with different qwen_hidden, and has none; "
            "use 'k-means'."
        )
    dim = head.project_in.weight.shape[0]
    if dim > quantizer.codec_dim:
        raise ValueError(
            f"content_init='least-squares' needs a codebook_dim of at most {quantizer.codec_dim}, the latents' size, "
            f"got {dim}; use 'k-means'."
        )
    x = _doubles(init_frames.latents[places])
    mean = x.mean(dim=0)
    x = x - mean
    y = _doubles(bridge.standardise(targets))
    fit = ridge_regression(x, y)
    _, strengths, directions = torch.linalg.svd(x @ fit, full_matrices=False)
    kept = directions[:dim].T  # (teacher_dim, codebook_dim), fewer if the teacher is smaller
    size = kept.shape[1]
    w_in = x.new_zeros(dim, x.shape[1])
    w_in[:size] = (fit @ kept).T
    w_out = torch.linalg.qr(torch.randn(x.shape[1], dim, dtype=x.dtype, generator=generator))[0].to(x.device)
    rms = (strengths[:size].square().sum() / len(x)).sqrt()
    scale = FIRST_SHARE * x.square().sum(dim=1).mean().sqrt() / rms
    readout = x.new_zeros(bridge.out_features, dim)
    readout[:, :size] = kept
    head.project_in.weight.copy_(w_in[:, :, None])
    head.project_out.weight.copy_((scale * w_out)[:, :, None])
    bridge.weight.copy_(readout @ w_out.T / scale)
    bridge.bias.copy_(-readout @ (w_in @ mean))
    return begin_with_k_means(quantizer, init_frames, frames_per_step, generator)


def ridge_regression(x: Tensor, y: Tensor) -> Tensor:
    """The linear map from `x` to `y` that does best on frames it was not fitted to.

    Args:
        x: `(frames, dim)`, of mean 0.
        y: `(frames, targets)`.

    Returns:
        `(dim, targets)`, fitted to all frames with the ridge that did best when a fifth of them was kept aside.
    """
    block = max(1, min(BLOCK, len(x) // (2 * HELD_OUT)))
    aside = torch.arange(len(x), device=x.device) // block % HELD_OUT == HELD_OUT - 1
    if not aside.any():
        return _ridge_fit(x, y, RIDGES[-1])
    trained = [_ridge_fit(x[~aside], y[~aside], ridge) for ridge in RIDGES]
    errors = [float((y[aside] - x[aside] @ fit).square().mean()) for fit in trained]
    return _ridge_fit(x, y, RIDGES[errors.index(min(errors))])


def _ridge_fit(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    floor = ridge * x.square().mean() * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(x.T @ x / len(x) + floor, x.T @ y / len(x))
