"""Merges adapters into a warm pipeline in place, and unmerges them bit for bit."""

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn

from imagefleet_shared.errors import IncompatibleAdapter
from imagefleet_worker.adapters.delta import Adapter, Component, Target, target_names
from imagefleet_worker.adapters.merge_kernels import (
    group_targets,
    rowwise_terms,
    write_merged,
    write_rowwise,
)
from imagefleet_worker.adapters.originals import Originals, SavedBytes, StateCorrupted
from imagefleet_worker.adapters.scaled import ScaledAdapter, State, Terms, state_of, terms_of
from imagefleet_worker.lru_cache import ByteLRUCache


@dataclass(frozen=True, kw_only=True)
class SwitchReport:
    """Number of parameters that a switch changed, among those with an adapter before or after."""

    rewritten: int
    restored: int
    unchanged: int
    seconds: float
    """In the calling thread; a GPU may still be executing the last copies."""


class MergedState:
    """A pipeline's weights with a set of adapters merged; for the engine's thread.

    A parameter is ``round(original + sum of scale * delta)``, computed in float32 and rounded once
    to its own dtype; the sum starts with the original and adds adapters in the order of their
    sha256. It is written in place, so compiled code and CUDA graphs stay valid. Base weights are
    never computed by subtraction: they are copied from `Originals`.

    A switch that fails after it has started leaves *no* adapters merged: every parameter is its
    original, bit for bit. (Not the previous set: merging that again may fail too.) If even this
    restoring is interrupted, the next switch finishes it.

    Args:
        components: to merge into. Their parameters may be moved between devices, not replaced.
        device_budget_bytes: for saved originals on the device; see `Originals`.
        merged_cache_bytes: for cached merged weights of earlier sets, which are then only copied.
        verify_every: the weights are verified after every Nth switch that restores any.
    """

    def __init__(
        self,
        components: Mapping[Component, nn.Module],
        *,
        device_budget_bytes: int,
        merged_cache_bytes: int,
        verify_every: int,
    ) -> None:
        self._parameters = {
            Target(component, name): parameter
            for component, module in components.items()
            for name, parameter in module.named_parameters()
        }
        self._originals = Originals(device_budget_bytes)
        self._merged_cache: ByteLRUCache[State, Mapping[Target, Tensor]] = ByteLRUCache(
            _size_bytes, merged_cache_bytes
        )
        self._verify_every = verify_every
        self._restores = 0
        self._state: State | None = ()
        # Terms of parameters that differ from their originals; None while one is being written.
        self._merged_terms: dict[Target, Terms | None] = {}

    @property
    def saved_bytes(self) -> SavedBytes:
        return self._originals.saved_bytes

    @property
    def cached_bytes(self) -> int:
        """Size of the cached merged weights."""
        return self._merged_cache.stats.size_bytes

    @property
    def text_encoder_terms(self) -> Terms:
        """(sha256, scale) of each adapter that changes a text encoder, sorted."""
        assert self._state is not None, "the last switch was interrupted"
        merged = ((target.component, terms or ()) for target, terms in self._merged_terms.items())
        changing = {term[0] for component, terms in merged if component != "unet" for term in terms}
        return tuple((sha256, scale) for sha256, _, scale in self._state if sha256 in changing)

    def has(self, adapters: Collection[ScaledAdapter]) -> bool:
        """Whether exactly these adapters are merged."""
        return state_of(adapters) == self._state

    @torch.no_grad()
    def switch(self, requested: Collection[ScaledAdapter]) -> SwitchReport:
        """Merge exactly these adapters; free if the set is unchanged, whatever its order.

        Only parameters whose terms change are written. An adapter given twice counts twice.

        Raises:
            IncompatibleAdapter: a target is not a parameter of the pipeline (the previous set then
                stays merged), a delta's shape is wrong, or a merged weight is not finite.
            StateCorrupted: a restored parameter differs from its original.
        """
        started_s = perf_counter()
        state = state_of(requested)
        if state == self._state:
            seconds = perf_counter() - started_s
            return SwitchReport(
                rewritten=0, restored=0, unchanged=len(self._merged_terms), seconds=seconds
            )
        self._require_targets(requested)
        terms = terms_of(requested)
        rewritten = [target for target in terms if terms[target] != self._merged_terms.get(target)]
        restored = [target for target in self._merged_terms if target not in terms]
        adapters = {item.adapter.sha256: item.adapter for item in requested}
        self._state = None
        try:
            self._restore(restored)
            changed = {target: terms[target] for target in rewritten}
            if cached := self._merged_cache.get(state):
                self._copy_from_cache(changed, cached)
            else:
                self._rewrite(changed, adapters)
                self._cache_merged(state, terms)
        except BaseException:
            self._restore(list(self._merged_terms))
            self._state = ()
            raise
        self._state = state
        return SwitchReport(
            rewritten=len(rewritten),
            restored=len(restored),
            unchanged=len(terms) - len(rewritten),
            seconds=perf_counter() - started_s,
        )

    def release(self) -> None:
        """Unmerge all adapters and free all copies, so that the weights can move to another device.

        Raises:
            StateCorrupted: a parameter differs from its original.
        """
        self.switch(())
        if differing := self._differing():
            raise StateCorrupted(f"not as saved before a move: {target_names(differing)}")
        self._originals.clear()
        self._merged_cache.clear()

    def verify(self) -> bool:
        """Whether every unmerged parameter equals its original, bit for bit."""
        return not self._differing()

    def _differing(self) -> list[Target]:
        return self._originals.differing(
            target for target in self._originals if target not in self._merged_terms
        )

    def _restore(self, targets: Sequence[Target]) -> None:
        self._merged_terms.update(dict.fromkeys(targets))
        self._originals.restore(targets)
        for target in targets:
            del self._merged_terms[target]
        if targets:
            self._restores += 1
            if self._restores % self._verify_every == 0 and (differing := self._differing()):
                raise StateCorrupted(f"not as saved after a restore: {target_names(differing)}")

    def _copy_from_cache(
        self, terms: Mapping[Target, Terms], cached: Mapping[Target, Tensor]
    ) -> None:
        self._merged_terms.update(dict.fromkeys(terms))
        for target in terms:
            self._weight(target).copy_(cached[target])
        self._merged_terms.update(terms)

    def _cache_merged(self, state: State, targets: Collection[Target]) -> None:
        merged = {target: self._weight(target) for target in targets}
        if self._merged_cache.fits(_size_bytes(merged)):
            self._merged_cache.put(
                state, {target: weight.clone() for target, weight in merged.items()}
            )

    def _weight(self, target: Target) -> Tensor:
        return self._parameters[target].detach()

    def _rewrite(self, terms: Mapping[Target, Terms], adapters: Mapping[str, Adapter]) -> None:
        for target in terms:
            self._originals.save(target, self._parameters[target])
        parameters = {target: self._weight(target) for target in terms}
        rowwise = {
            target: deltas
            for target in terms
            if parameters[target].device.type == "cpu"
            and (deltas := rowwise_terms(target, terms[target], adapters))
        }
        whole = {target: tensor for target, tensor in parameters.items() if target not in rowwise}
        groups = list(group_targets(whole, terms))
        scratch = self._originals.scratch(groups)
        bounds: list[tuple[Sequence[Target], Tensor]] = []
        for target, deltas in rowwise.items():
            self._merged_terms[target] = None
            original, max_abs = self._originals[target], self._originals.max_abs(target)
            bounds.append(([target], write_rowwise(parameters[target], original, max_abs, deltas)))
        for group in groups:
            members = {target: parameters[target] for target in group}
            originals = self._originals.float32(group, scratch[members[group[0]].device])
            self._merged_terms.update(dict.fromkeys(group))
            bounds.append((group, write_merged(members, originals, terms, adapters)))
        self._merged_terms.update(terms)
        self._require_finite(bounds)

    def _require_targets(self, requested: Collection[ScaledAdapter]) -> None:
        for item in requested:
            unknown = [target for target in item.adapter.deltas if target not in self._parameters]
            if unknown:
                raise IncompatibleAdapter(
                    f"adapter {item.adapter.sha256[:12]} is for another architecture; the "
                    f"checkpoint has no {target_names(unknown)}"
                )

    def _require_finite(self, bounds: Sequence[tuple[Sequence[Target], Tensor]]) -> None:
        """Check written parameters; called after all writes, so that a GPU synchronizes once."""
        overflowing: list[Target] = []
        for group, bound in bounds:
            parameters = [self._parameters[target] for target in group]
            # The bound is cheap, and few tensors exceed it.
            if bool((bound < torch.finfo(parameters[0].dtype).max / 2).all()):
                continue
            overflowing += [
                target
                for target, parameter in zip(group, parameters, strict=True)
                if not parameter.isfinite().all()
            ]
        if overflowing:
            raise IncompatibleAdapter(f"merged weights are not finite: {target_names(overflowing)}")


@contextmanager
def applied(state: MergedState, adapters: Collection[ScaledAdapter]) -> Generator[SwitchReport]:
    """Merge these adapters for the duration of the context.

    On exit every parameter and buffer is bitwise that of the checkpoint, also if the body or the
    switch raises, or if other adapters were merged before.

    Raises:
        IncompatibleAdapter, StateCorrupted: as `MergedState.switch`.
    """
    try:
        yield state.switch(adapters)
    finally:
        state.switch(())


def _size_bytes(weights: Mapping[Target, Tensor]) -> int:
    return sum(weight.nbytes for weight in weights.values())
