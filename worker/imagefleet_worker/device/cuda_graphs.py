"""CUDA graphs of a UNet: a thousand kernel launches captured once per shape, replayed as one.

A launch costs the host some microseconds, about as long as a small batch's kernel runs: without
graphs the GPU waits for Python.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.nn import Module

from imagefleet_worker.device.graph_memory import GRAPH_MEMORY

# Over all batch sizes, image sizes and prompt lengths. Graphs share a memory pool, sized by the
# largest; each adds only a few megabytes for launches and inputs.
_MAX_GRAPHS = 32

_Shape = tuple[tuple[str, torch.Size, torch.dtype], ...]


@dataclass(frozen=True, eq=False)
class _CapturedGraph:
    graph: torch.cuda.CUDAGraph
    inputs: Mapping[str, Tensor]
    output: Tensor


class GraphedForward:
    """Replaces a UNet's `forward`; for the engine's thread.

    The first call with a shape runs eagerly, which also triggers compilation; the second is
    captured, and later ones are replayed. Graphs read the weights in place, so merges take effect.
    If weights have moved, as when a pipeline was evicted and came back, all graphs are recaptured.

    Args:
        unet: on a CUDA device, in eval mode.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._forward = unet.forward
        self._parameters = list(unet.parameters())
        self._addresses: tuple[int, ...] = ()
        # The number of the batch in which each shape last ran without a replay.
        self._eager_batches: dict[_Shape, int] = {}
        # Least recently used first.
        self._graphs: OrderedDict[_Shape, _CapturedGraph] = OrderedDict()
        self._stream: torch.cuda.Stream | None = None
        self._first_graph: torch.cuda.CUDAGraph | None = None

    @property
    def num_graphs(self) -> int:
        """Number of captured shapes."""
        return len(self._graphs)

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """What `forward` returns for `return_dict=False`, in newly allocated memory.

        Args:
            sample: noisy latents `(R, 4, H/8, W/8)`.
            timestep: a scalar tensor on the UNet's device.
            encoder_hidden_states: `(R, tokens, width)`.
            added_cond_kwargs: SDXL's; see `diffusion.added_cond`.
            return_dict: must be False.
        """
        assert not return_dict, "a graph has tensors only"
        inputs = {
            "sample": sample,
            "timestep": timestep,
            "encoder_hidden_states": encoder_hidden_states,
            **(added_cond_kwargs or {}),
        }
        self._discard_if_moved()
        shape = tuple((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items())
        if shape in self._graphs:
            self._graphs.move_to_end(shape)
            GRAPH_MEMORY.mark_replayed(self._eager_batches[shape])
        else:
            ran_before = shape in self._eager_batches
            self._eager_batches[shape] = GRAPH_MEMORY.batch
            if not ran_before:
                return (self._run(inputs),)
            self._capture(shape, inputs)
        captured = self._graphs[shape]
        for name, tensor in inputs.items():
            captured.inputs[name].copy_(tensor, non_blocking=True)
        captured.graph.replay()
        return (captured.output.clone(),)

    def discard(self) -> bool:
        """Discard all graphs and release their memory; False if there were none."""
        had_graphs = bool(self._graphs)
        self._graphs.clear()
        self._first_graph = None
        GRAPH_MEMORY.set_pool_bytes(self, 0)
        return had_graphs

    def _run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        added = {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs}
        return self._forward(
            inputs["sample"],
            inputs["timestep"],
            inputs["encoder_hidden_states"],
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]

    def _discard_if_moved(self) -> None:
        # Takes less than 0.1 us per parameter, negligible beside a call.
        addresses = tuple(parameter.data_ptr() for parameter in self._parameters)
        if addresses != self._addresses:
            self.discard()
            self._addresses = addresses

    def _capture(self, shape: _Shape, inputs: Mapping[str, Tensor]) -> None:
        if len(self._graphs) >= _MAX_GRAPHS:
            self._graphs.popitem(last=False)
        if self._stream is None:
            self._stream = torch.cuda.Stream(inputs["sample"].device)
        static_inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            # Libraries allocate workspaces on a stream's first call, which must not be captured.
            self._run(static_inputs)
        graph = torch.cuda.CUDAGraph()
        # Other threads copy images and load weights meanwhile, which must not abort the capture.
        pool = self._first_graph.pool() if self._first_graph else None
        with torch.cuda.graph(
            graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            output = self._run(static_inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        self._first_graph = self._first_graph or graph
        self._graphs[shape] = _CapturedGraph(graph, static_inputs, output)
        GRAPH_MEMORY.set_pool_bytes(self, _pool_bytes(graph))


def _pool_bytes(graph: torch.cuda.CUDAGraph) -> int:
    segments: list[dict[str, object]] = torch.cuda.memory_snapshot()
    return sum(
        cast(int, segment["total_size"])
        for segment in segments
        if segment["segment_pool_id"] == graph.pool()
    )


def capture_graphs(unet: UNet2DConditionModel) -> None:
    """Capture and replay the UNet's calls as CUDA graphs; its weights are untouched."""
    forward: object = GraphedForward(unet)
    vars(unet)["forward"] = forward


def discard_graphs(unet: Module) -> bool:
    """Discard the graphs of a UNet and release their memory; False if there were none."""
    forward = vars(unet).get("forward")
    return isinstance(forward, GraphedForward) and forward.discard()
