"""Operators of ONNX Runtime's own, for graphs that it alone has to read."""

import math
from collections.abc import Callable
from typing import Any

import torch

DOMAIN = 'com.microsoft'
TANH_SCALE = math.sqrt(2 / math.pi)


def onnxruntime_operators() -> dict[Callable, Callable]:
    """How torch.onnx writes attention and GELU as ONNX Runtime's operators.

    Its attention keeps no N×N scores, and its GELU is one pass; the standard's operators of opset 18 are neither.

    Returns:
        A ``custom_translation_table`` of :func:`torch.onnx.export`.

    Source: ONNX Runtime, ``docs/ContribOperators.md``: MultiHeadAttention, Gelu.
    """
    from onnxscript import opset18

    op: Any = opset18

    attention = _operator('MultiHeadAttention', ['query', 'key', 'value'], ['num_heads'])
    activation = _operator('Gelu', ['X'])

    def attend(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        if attn_mask is not None or dropout_p or is_causal or scale is not None or enable_gqa:
            raise ValueError('Only attention of all tokens to all is written as an operator of ONNX Runtime.')
        heads = query.shape[1]

        def tokens(x: Any) -> Any:  # (B, heads, N, d) to (B, N, C)
            return op.Reshape(op.Transpose(x, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))

        out = attention(tokens(query), tokens(key), tokens(value), num_heads=heads)
        return op.Transpose(op.Reshape(out, op.Constant(value_ints=[0, 0, heads, -1])), perm=[0, 2, 1, 3])

    def gelu(x: Any, approximate: str = 'none') -> Any:
        if approximate == 'none':
            return activation(x)
        return op.Mul(op.Mul(x, 0.5), op.Add(1.0, op.Tanh(op.Mul(op.Add(x, op.Mul(0.044715, op.Pow(x, 3.0))), TANH_SCALE))))

    return {torch.ops.aten.scaled_dot_product_attention.default: attend, torch.ops.aten.gelu.default: gelu}


def _operator(name: str, inputs: list[str], numbers: list[str] | None = None) -> Callable[..., Any]:
    """One of its operators: tensors ``inputs`` and whole numbers ``numbers`` to a tensor."""
    from onnx.defs import OpSchema
    from onnxscript import values

    schema = OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter(one, 'T') for one in inputs],
        outputs=[OpSchema.FormalParameter('output', 'T')],
        type_constraints=[('T', ['tensor(float)'], '')],
        attributes=[OpSchema.Attribute(one, OpSchema.AttrType.INT, '') for one in numbers or []],
    )
    return values.Op(values.Opset(DOMAIN, 1), name, schema)
