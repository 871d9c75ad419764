"""Norms of a trunk that learn: batch norm over the images of all workers, and group norm.

Batch norm (Ioffe and Szegedy, ICML 2015) needs more images than one worker of a detector has. Its mean and variance are
therefore taken over all workers (Peng et al., MegDet, CVPR 2018, section 3.2): the images are normalised as if one
worker had them all. Padding takes part in the statistics; images of unequal size are padded to the largest of their
worker, so the statistics of unequal images depend a little on who has them.

For inference a batch norm is an affine, and `folded` merges it into the convolution before it.
"""

import math
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Groups of channels (Wu and He, Group Normalization, ECCV 2018, section 4).
_GROUPS = 32


class WorkersBatchNorm2d(nn.modules.batchnorm._BatchNorm):
    """Batch norm with statistics over all workers, on any device (torch's SyncBatchNorm knows no CPU, and
    DistributedDataParallel refuses it there).

    Every worker has to call it equally often while it trains. Without other workers it is `nn.BatchNorm2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] -> same shape; the running statistics move while training."""
        momentum = cast(float, self.momentum)
        if self.training:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, self.training, momentum, self.eps
            )
        mean, variance, count = joint_statistics(input.detach())
        with torch.no_grad():
            cast(Tensor, self.running_mean).lerp_(mean, momentum)
            cast(Tensor, self.running_var).lerp_(variance * count / (count - 1.0), momentum)
        gain, shift = (
            torch.ones_like(mean) if self.weight is None else self.weight,
            torch.zeros_like(mean) if self.bias is None else self.bias,
        )
        normalised: Tensor = _JointNormalization.apply(input, gain, shift, mean, (variance + self.eps).rsqrt(), count)
        return normalised


def joint_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and (biased) variance of each channel over the batches of all workers.

    Args:
        x: [N, C, H, W] of this worker; N, H and W may differ between workers.

    Returns:
        mean [C], variance [C], and the number of values of a channel (scalar); float32 at least.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    sums = torch.cat((wide.sum((0, 2, 3)), wide.new_tensor([x.numel() / x.shape[1]])))
    dist.all_reduce(sums)
    mean, count = sums[:-1] / sums[-1], sums[-1]
    # In a second turn, since a variance as a difference of two large sums loses its digits.
    squares = (wide - mean[:, None, None]).square().sum((0, 2, 3))
    dist.all_reduce(squares)
    return mean, squares / count, count


class _JointNormalization(torch.autograd.Function):
    """y = (x - mean) * inverse * gain + shift, where mean and inverse (of the deviation) depend on x of all workers."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, mean: Tensor, inverse: Tensor, count: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, gain, mean, inverse, count)
        scale = inverse * gain
        return (x * scale[:, None, None] + (shift - mean * scale)[:, None, None]).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """Ioffe and Szegedy, section 3; the two sums are over all workers, those for gain and shift the worker's own,
        which data-parallel training averages like any other gradient."""
        x, gain, mean, inverse, count = ctx.saved_tensors
        (grad,) = gradients
        centred = (x - mean[:, None, None]) * inverse[:, None, None]
        own = torch.stack((grad.to(centred.dtype).sum((0, 2, 3)), (grad * centred).sum((0, 2, 3))))
        joint = own.clone()
        dist.all_reduce(joint)
        of_shift, of_gain = joint / count
        spread = grad - of_shift[:, None, None] - centred * of_gain[:, None, None]
        grad_x = (spread * (gain * inverse)[:, None, None]).to(x.dtype)
        return grad_x, own[1].to(gain.dtype), own[0].to(gain.dtype), None, None, None


class BatchNormConv2d(nn.Sequential):
    """A convolution and the batch norm that alone reads its output."""

    def __init__(self, conv: nn.Conv2d, norm: WorkersBatchNorm2d) -> None:
        super().__init__(conv, norm)

    def folded(self) -> nn.Conv2d:
        """The plain convolution with the same outputs as this one in evaluation mode."""
        self.eval()
        conv: nn.Conv2d = fuse_conv_bn_eval(cast(nn.Conv2d, self[0]), cast(Any, self[1]))
        return conv.requires_grad_(False)


def workers_batch_norm(norm: nn.BatchNorm2d) -> nn.Module:
    """The same norm with statistics over all workers; takes over parameters and statistics."""
    made = WorkersBatchNorm2d(
        norm.num_features, norm.eps, 0.1 if norm.momentum is None else norm.momentum, affine=norm.affine
    )
    made.running_mean, made.running_var = norm.running_mean, norm.running_var
    return _in_place_of(norm, made)


def group_norm(norm: nn.BatchNorm2d) -> nn.Module:
    """A group norm with the scale and shift of a batch norm; 32 groups, fewer where they do not divide the width."""
    made = nn.GroupNorm(math.gcd(_GROUPS, norm.num_features), norm.num_features, norm.eps, affine=norm.affine)
    return _in_place_of(norm, made)


def _in_place_of(norm: nn.BatchNorm2d, made: nn.Module) -> nn.Module:
    if norm.affine:
        made.weight, made.bias = norm.weight, norm.bias
    # timm's BatchNormAct2d carries the activation that follows.
    activation = getattr(norm, "act", None)
    return made if activation is None else nn.Sequential(made, activation)
