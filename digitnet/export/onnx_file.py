"""The network as ONNX, for ONNX Runtime and other programs that read it.

Input `images`, [batch, 28, 28, 1] uint8; output `probabilities`, [batch, 10] float32.
Internally the layout is ONNX's own, channels first.
"""

from collections.abc import Callable
import logging
import pathlib

import numpy as np
import onnx
from onnx import helper
from onnx import numpy_helper
import onnxruntime
from onnxruntime import quantization

from digitnet import products
from digitnet.data.corpus import IMAGE_SHAPE
from digitnet.data.corpus import NUM_CLASSES
from digitnet.export.network import Network

# Readable by ONNX Runtime 1.12 (2022) and later.
_OPSET, _IR_VERSION = 17, 8
_BATCH = 512  # images at a time, which bounds memory


def write(network: Network, path: pathlib.Path) -> None:
  """Writes the network in float32."""
  graph = _Graph(network.params)
  value = graph.add('Cast', 'images', to=onnx.TensorProto.FLOAT)
  value = graph.add('Div', value, graph.constant('white', np.float32(255)))
  value = graph.add('Transpose', value, perm=(0, 3, 1, 2))
  side = IMAGE_SHAPE[0]
  for names, size in zip(network.conv_names, network.config['kernel_sizes']):
    before, after = products.padding(size)
    for name in names:
      kernel, bias = graph.layer(name, lambda kernel: kernel.transpose(3, 2, 0, 1))
      value = graph.add(
          'Conv', value, kernel, bias, name=name, pads=(before, before, after, after)
      )
      value = graph.add('Relu', value)
    value = graph.add('MaxPool', value, kernel_shape=(2, 2), strides=(2, 2))
    side //= 2
  value = graph.add('Flatten', value)
  last = network.dense_names[-1]
  for i, name in enumerate(network.dense_names):
    # The first kernel's rows are in the order height, width, channel.
    reorder = (lambda kernel: _channels_first(kernel, side)) if i == 0 else np.asarray
    value = graph.add('Gemm', value, *graph.layer(name, reorder), name=name)
    if name != last:
      value = graph.add('Relu', value)
  graph.add('Softmax', value, output='probabilities', axis=1)

  images = helper.make_tensor_value_info(
      'images', onnx.TensorProto.UINT8, ('batch', *IMAGE_SHAPE)
  )
  probs = helper.make_tensor_value_info(
      'probabilities', onnx.TensorProto.FLOAT, ('batch', NUM_CLASSES)
  )
  model = helper.make_model(
      helper.make_graph(graph.nodes, 'digitnet', [images], [probs], graph.constants),
      producer_name='digitnet',
      ir_version=_IR_VERSION,
      opset_imports=[helper.make_opsetid('', _OPSET)],
  )
  onnx.checker.check_model(model, full_check=True)
  onnx.save(model, path)


def write_int8(source: pathlib.Path, images: np.ndarray, path: pathlib.Path) -> None:
  """Quantizes the network of a float32 file to 8-bit kernels and activations.

  Args:
    source: a file that `write` wrote.
    images: [N, 28, 28, 1] uint8 training images that calibrate each activation's range.
    path: the new file.
  """
  root = logging.getLogger()
  level = root.level
  # ONNX Runtime warns that shapes should be inferred first, but there are none to infer.
  root.setLevel(logging.ERROR)
  try:
    quantization.quantize_static(
        source,
        path,
        _Images(images),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
    )
  finally:
    root.setLevel(level)


def load(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
  """Loads the network; returns a function that runs it in ONNX Runtime, on CPU."""
  session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])

  def probs(images):
    batches = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
    return np.concatenate([session.run(None, {'images': one})[0] for one in batches])

  return probs


def _channels_first(kernel, side):
  """Reorders a kernel's rows from height, width, channel to channel, height, width."""
  return kernel.reshape(side, side, -1, kernel.shape[1]).transpose(2, 0, 1, 3).reshape(kernel.shape)


class _Graph:
  """A sequence of nodes, each with one output."""

  def __init__(self, params):
    self.nodes, self.constants, self._params = [], [], params

  def constant(self, name, array):
    self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return name

  def layer(self, name, reorder):
    """Adds a layer's kernel, in ONNX's order, and its bias; returns their names."""
    return (
        self.constant(f'{name}.kernel', reorder(self._params[name]['kernel'])),
        self.constant(f'{name}.bias', self._params[name]['bias']),
    )

  def add(self, kind, *inputs, output=None, name=None, **attributes):
    output = output or f'{name or kind.lower()}_{len(self.nodes)}'
    self.nodes.append(helper.make_node(kind, inputs, [output], name, **attributes))
    return output


class _Images(quantization.CalibrationDataReader):
  """Yields the images once, in small batches."""

  def __init__(self, images):
    self._batches = iter(np.array_split(images, max(1, len(images) // 50)))

  def get_next(self):
    batch = next(self._batches, None)
    return None if batch is None else {'images': batch}
