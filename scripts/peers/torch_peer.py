"""The network in PyTorch: channels last, fused Adam; eager, compiled or in CUDA graphs.

Inference uses the fastest settings found: in bfloat16 the params are in bfloat16 too, and
nets compiled for a CPU have frozen params, which are laid out anew.
"""

import contextlib
import copy
import functools

import torch
from torch import nn

_DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def make(weights, compile_mode=None, bf16=False):
  return Torch(weights, compile_mode, bf16)


class Torch:
  """See worker.py."""

  versions = {'torch': torch.__version__}

  def __init__(self, weights, compile_mode, bf16):
    torch.backends.cudnn.benchmark = True
    # By default JAX rounds operands to TF32 on a GPU.
    precision = 'high' if _DEVICE == 'cuda' else 'highest'
    torch.set_float32_matmul_precision(precision)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(),
        nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(3136, 8192), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(8192, 2048), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(2048, 10),
    )  # fmt: skip
    layers = [layer for layer in net if hasattr(layer, 'weight')]
    names = dict.fromkeys(name.split('/')[0] for name in weights)
    for name, layer in zip(names, layers, strict=True):
      kernel = weights[f'{name}/kernel']
      if kernel.ndim == 4:
        kernel = kernel.transpose(3, 2, 0, 1)
      else:
        if name == 'dense1':  # PyTorch flattens in the order channels, rows, columns.
          kernel = kernel.reshape(7, 7, 64, -1).transpose(2, 0, 1, 3)
          kernel = kernel.reshape(3136, -1)
        kernel = kernel.T
      with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(kernel.copy()))
        layer.bias.copy_(torch.from_numpy(weights[f'{name}/bias']))
    net = net.to(_DEVICE, memory_format=torch.channels_last)
    self._optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    self._plain_net, self._compile_mode, self._bf16 = net, compile_mode, bf16
    self._net = torch.compile(net, mode=compile_mode) if compile_mode else net

  def _precision(self):
    if not self._bf16:
      return contextlib.nullcontext()
    return torch.autocast(_DEVICE, torch.bfloat16)

  def loss(self, images, labels):
    self._net.eval()
    with torch.inference_mode(), self._precision():
      logits = self._net(_to_input(images))
      return float(
          nn.functional.cross_entropy(logits.float(), _to_device(labels))
      )

  def trainer(self, images, labels):
    self._net.train()
    images, labels = _to_input(images), _to_device(labels)

    def step():
      self._optimizer.zero_grad(set_to_none=True)
      with self._precision():
        loss = nn.functional.cross_entropy(self._net(images), labels)
      loss.backward()
      self._optimizer.step()

    return step

  def wait(self):
    if _DEVICE == 'cuda':
      torch.cuda.synchronize()

  def inferrer(self, images):
    net, dtype, layout = self._for_inference

    def infer():
      with torch.no_grad():
        logits = net(_to_input(images, layout).to(dtype))
        logits.float().softmax(-1).cpu().numpy()

    return infer

  @functools.cached_property
  def _for_inference(self):
    dtype = torch.bfloat16 if self._bf16 else torch.float32
    is_frozen = self._compile_mode and _DEVICE == 'cpu'
    # Freezing chooses a layout by itself, which clashes with channels last.
    layout = torch.contiguous_format if is_frozen else torch.channels_last
    net = copy.deepcopy(self._plain_net).eval().to(dtype, memory_format=layout)
    if self._compile_mode:
      # Imported only here, since the measure `start` includes imports.
      from torch._inductor import config as inductor

      inductor.freezing = is_frozen
      net = torch.compile(net, mode=self._compile_mode)
    return net, dtype, layout


def _to_device(labels):
  return torch.from_numpy(labels).long().to(_DEVICE)


def _to_input(images, layout=torch.channels_last):
  images = torch.from_numpy(images).to(_DEVICE).permute(0, 3, 1, 2)
  return images.to(torch.float32, memory_format=layout) / 255
