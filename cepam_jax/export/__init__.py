"""Finished models for small devices: quantized after training, and files that run without this package.

`predictor` makes a function of weights and inputs from what a run learned, `quantize` rounds the weights,
`translate` writes the function down for ONNX, `packed` codes the weights into the fewest bytes, `loader`
turns such a file into ONNX again with numpy and constriction alone, and `artifact` is `jax.export`.
"""
