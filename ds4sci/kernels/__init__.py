"""The operations of the evoformer block as plain functions; needs torch alone.

Each folder tells one operation's whole story: the public function, the readable reference, its implementations.
A new operation is a folder and a line in ``KERNELS``.
"""

from ds4sci.kernels import evoformer_attention as _attention
from ds4sci.kernels import layer_norm as _layer_norm
from ds4sci.kernels import outer_product_mean as _outer
from ds4sci.kernels import transition as _transition
from ds4sci.kernels import triangle_multiplication as _triangle
from ds4sci.kernels.spec import Kernel

KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (_attention.KERNEL, _triangle.KERNEL, _outer.KERNEL, _transition.KERNEL, _layer_norm.KERNEL)
}

evoformer_attention = _attention.evoformer_attention
evoformer_attention_lse = _attention.evoformer_attention_lse
triangle_multiplication = _triangle.triangle_multiplication
outer_product_mean = _outer.outer_product_mean
transition = _transition.transition
layer_norm = _layer_norm.layer_norm

__all__ = [
    "KERNELS",
    "evoformer_attention",
    "evoformer_attention_lse",
    "layer_norm",
    "outer_product_mean",
    "transition",
    "triangle_multiplication",
]
