"""Operations of the Evoformer block and attention within packed documents, as plain functions. Requires only torch.

Each folder holds one operation: the public function, the reference in readable torch, the implementations, the test
cases. A new operation is a folder and an entry in ``KERNELS``. ``pointwise`` is internal: the functions between the
matrix products of the other operations.
"""

from ds4sci.kernels import evoformer_attention as _attention
from ds4sci.kernels import gated_self_attention as _gated
from ds4sci.kernels import layer_norm as _layer_norm
from ds4sci.kernels import outer_product_mean as _outer
from ds4sci.kernels import pair_bias as _bias
from ds4sci.kernels import shared_dropout as _dropout
from ds4sci.kernels import transition as _transition
from ds4sci.kernels import triangle_multiplication as _triangle
from ds4sci.kernels import varlen_attention as _documents
from ds4sci.kernels.attention_pair_bias import attention_pair_bias
from ds4sci.kernels.spec import Kernel

KERNELS: dict[str, Kernel] = {
    module.KERNEL.name: module.KERNEL
    for module in (_attention, _gated, _bias, _triangle, _outer, _transition, _layer_norm, _dropout, _documents)
}

varlen_attention = _documents.varlen_attention
evoformer_attention = _attention.evoformer_attention
evoformer_attention_lse = _attention.evoformer_attention_lse
gated_self_attention = _gated.gated_self_attention
pair_bias = _bias.pair_bias
triangle_multiplication = _triangle.triangle_multiplication
outer_product_mean = _outer.outer_product_mean
transition = _transition.transition
layer_norm = _layer_norm.layer_norm
shared_dropout = _dropout.shared_dropout

__all__ = [
    "KERNELS",
    "attention_pair_bias",
    "evoformer_attention",
    "evoformer_attention_lse",
    "gated_self_attention",
    "layer_norm",
    "outer_product_mean",
    "pair_bias",
    "shared_dropout",
    "transition",
    "triangle_multiplication",
    "varlen_attention",
]
