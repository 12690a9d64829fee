"""CUDA graphs of a UNet: its thousand launches recorded once for each shape, then one launch.

A launch takes the host some microseconds, a small batch's kernel takes the GPU as little: without
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

# Of batch, size and prompt length together. Graphs share their memory, so that the largest decides
# what they take; each alone keeps a few megabytes of launches and its inputs.
_MOST_GRAPHS = 32

_Shape = tuple[tuple[str, torch.Size, torch.dtype], ...]


@dataclass(frozen=True, eq=False)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: Mapping[str, Tensor]
    output: Tensor


class GraphedForward:
    """Stands in for a UNet's `forward`; for the engine's thread.

    A shape's first call runs as ever, which also compiles what is to be compiled; its second one
    records, and later ones replay. Weights are read where they lie: merges in place take effect.
    Should they have moved, as when a pipeline left the device and came back, all is recorded anew.

    Args:
        unet: on a CUDA device, in eval mode.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._forward = unet.forward
        self._parameters = list(unet.parameters())
        self._places: tuple[int, ...] = ()
        # With the batch in which they last ran, other than by a replay.
        self._seen: dict[_Shape, int] = {}
        # Least recently used first.
        self._recordings: OrderedDict[_Shape, _Recording] = OrderedDict()
        self._stream: torch.cuda.Stream | None = None
        self._first: torch.cuda.CUDAGraph | None = None

    @property
    def recordings(self) -> int:
        """How many shapes are recorded now."""
        return len(self._recordings)

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """What `forward` returns for `return_dict=False`, in memory of its own.

        Args:
            sample: noisy latents `(R, 4, H/8, W/8)`.
            timestep: no dimensions, on the UNet's device.
            encoder_hidden_states: `(R, tokens, width)`.
            added_cond_kwargs: SDXL's; see `added_conditions`.
            return_dict: must be False.
        """
        assert not return_dict, "a graph has tensors only"
        given = {
            "sample": sample,
            "timestep": timestep,
            "encoder_hidden_states": encoder_hidden_states,
            **(added_cond_kwargs or {}),
        }
        self._forget_if_moved()
        shape = tuple((name, tensor.shape, tensor.dtype) for name, tensor in given.items())
        if shape in self._recordings:
            self._recordings.move_to_end(shape)
            GRAPH_MEMORY.replayed(self._seen[shape])
        else:
            seen = shape in self._seen
            self._seen[shape] = GRAPH_MEMORY.batch
            if not seen:
                return (self._run(given),)
            self._record(shape, given)
        recording = self._recordings[shape]
        for name, tensor in given.items():
            recording.inputs[name].copy_(tensor, non_blocking=True)
        recording.graph.replay()
        return (recording.output.clone(),)

    def forget(self) -> bool:
        """Give up all recordings, whose memory is then the allocator's; False: there were none."""
        had = bool(self._recordings)
        self._recordings.clear()
        self._first = None
        GRAPH_MEMORY.keep(self, 0)
        return had

    def _run(self, given: Mapping[str, Tensor]) -> Tensor:
        added = {name: given[name] for name in ("text_embeds", "time_ids") if name in given}
        return self._forward(
            given["sample"],
            given["timestep"],
            given["encoder_hidden_states"],
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]

    def _forget_if_moved(self) -> None:
        # Less than 0.1 us for each: nothing beside a call.
        places = tuple(parameter.data_ptr() for parameter in self._parameters)
        if places != self._places:
            self.forget()
            self._places = places

    def _record(self, shape: _Shape, given: Mapping[str, Tensor]) -> None:
        if len(self._recordings) >= _MOST_GRAPHS:
            self._recordings.popitem(last=False)
        if self._stream is None:
            self._stream = torch.cuda.Stream(given["sample"].device)
        inputs = {name: tensor.clone() for name, tensor in given.items()}
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            # Libraries allocate workspaces on a stream's first call, which must not be recorded.
            self._run(inputs)
        graph = torch.cuda.CUDAGraph()
        # Other threads copy pictures and load weights meanwhile: their calls are none of ours.
        pool = self._first.pool() if self._first else None
        with torch.cuda.graph(
            graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            output = self._run(inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        self._first = self._first or graph
        self._recordings[shape] = _Recording(graph, inputs, output)
        GRAPH_MEMORY.keep(self, _pool_bytes(graph))


def _pool_bytes(graph: torch.cuda.CUDAGraph) -> int:
    segments: list[dict[str, object]] = torch.cuda.memory_snapshot()
    return sum(
        cast(int, segment["total_size"])
        for segment in segments
        if segment["segment_pool_id"] == graph.pool()
    )


def record_graphs(unet: UNet2DConditionModel) -> None:
    """Have the UNet's calls recorded and replayed; names and places of its weights stay."""
    forward: object = GraphedForward(unet)
    vars(unet)["forward"] = forward


def forget_graphs(unet: Module) -> bool:
    """Give up the recordings of a UNet and the memory they keep; False: there were none."""
    forward = vars(unet).get("forward")
    return isinstance(forward, GraphedForward) and forward.forget()
