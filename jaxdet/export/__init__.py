"""From a model to a file that finds objects without jaxdet.

letterbox   images of any size onto the canvas, as `jaxdet predict` resizes them
sides       that an image has on the canvas
program     the whole way from pixels to boxes on them, as one function of JAX
stablehlo   that as a file for JAX
onnx_*      that as a file for onnxruntime and its like
"""
