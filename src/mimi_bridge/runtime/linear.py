"""A matrix product with a weight that stays, laid out once for the processor.

oneDNN, which comes with PyTorch for CPUs, multiplies by weights that it has put into blocks, up to twice as fast as a
plain product for few rows: a stream's step of one frame takes two thirds of the time, whole recordings a few percent
less. PyTorch has an operation for it, which `torch.compile` takes for linear layers; it is not part of the public
interface. So it is tried once, and where it is missing, or not equal up to rounding, and elsewhere than on a CPU,
products are plain.

On a CPU a row's product is the same to the bit, whatever rows stand beside it: the libraries compute each in the same
order as soon as there are a few, and fewer are filled up. So a stream's codes are those of the whole recording.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

MIN_SIZE = 2**15  # numbers of a weight: smaller ones gain nothing
MIN_ROWS = 4


@dataclass(frozen=True)
class LinearMap:
    """`x @ weight.T + bias`, for inference.

    Attributes:
        weight: `(out, in)`, or oneDNN's blocks of it.
        bias: `(out,)`, or None.
    """

    weight: Tensor
    bias: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None, exportable: bool = False) -> "LinearMap":
        """The map of a weight `(out, in)`, in blocks where that is faster; `exportable` keeps it as it is."""
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        in_blocks = not exportable and weight.device.type == "cpu" and weight.dtype == torch.float32
        if in_blocks and weight.numel() >= MIN_SIZE and can_lay_out_in_blocks():
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), MIN_ROWS)
        return cls(weight, bias)

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """Multiply.

        Args:
            x: `(rows, in)`.
            add: What the product is added to, `(rows, out)`; its memory may become the result's.

        Returns:
            `(rows, out)`.
        """
        num_rows = len(x)
        if has_too_few_rows(x):
            added = None if add is None else filled(add)
            return self(filled(x), added)[:num_rows]
        if self.weight.is_mkldnn:
            if add is None:
                return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return torch.ops.mkldnn._linear_pointwise.binary(x, add, self.weight, self.bias, "add")
        if add is None:
            return functional.linear(x, self.weight, self.bias)
        return add.addmm_(x, self.weight.T) if self.bias is None else add.add_(self.bias).addmm_(x, self.weight.T)


def has_too_few_rows(x: Tensor) -> bool:
    """Whether the libraries would sum the product of these rows, `(..., rows, size)`, in another order than more."""
    return x.shape[-2] < MIN_ROWS and x.device.type == "cpu" and not torch.compiler.is_compiling()


def filled(x: Tensor) -> Tensor:
    """Too few rows, `(..., rows, size)`, and rows of zeros after them: `(..., MIN_ROWS, size)`."""
    return functional.pad(x, (0, 0, 0, MIN_ROWS - x.shape[-2]))


@cache
def can_lay_out_in_blocks() -> bool:
    """Whether this PyTorch has oneDNN's product, and it is what it is taken for."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, add = (torch.randn(shape, generator=generator) for shape in ((5, 64), (48, 64), (5, 48)))
    try:
        with torch.inference_mode(False), torch.no_grad():
            packed = LinearMap(torch.ops.mkldnn._reorder_linear_weight(weight, MIN_ROWS), add[0])
            expected = x @ weight.T + add[0]
            return (
                torch.allclose(packed(x), expected, atol=1e-5)
                and torch.allclose(packed(x[:1]), expected[:1], atol=1e-5)
                and torch.allclose(packed(x, add.clone()), expected + add, atol=1e-5)
            )
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
