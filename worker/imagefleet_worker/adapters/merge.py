"""The adapters that a warm pipeline has on: switched in place, taken off bit for bit."""

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn

from imagefleet_shared.errors import IncompatibleAdapter
from imagefleet_worker.adapters.delta import Adapter, Component, Target, target_names
from imagefleet_worker.adapters.merge_kernels import (
    grouped,
    rowwise_terms,
    write_in_rows,
    write_merged,
)
from imagefleet_worker.adapters.originals import Originals, SavedBytes, StateCorrupted
from imagefleet_worker.adapters.scaled import ScaledAdapter, State, Terms, state_of, terms_of
from imagefleet_worker.lru_cache import ByteLRUCache


@dataclass(frozen=True, kw_only=True)
class SwitchReport:
    """What a switch did, in parameters that had or have an adapter on them."""

    rewritten: int
    restored: int
    unchanged: int
    seconds: float
    """Of the calling thread; a GPU may still be at the last copies."""


class MergedState:
    """A pipeline's weights with any set of adapters merged; for the engine's thread.

    A parameter is ``round(original + sum of scale * delta)``, in float32 and rounded once to its
    own dtype; the sum begins with the original and takes adapters in the order of their sha256.
    It is written in place, so compiled code and CUDA graphs stay valid. Base weights are never
    computed back: they are copied from `Originals`.

    A switch that fails once it has begun, in whatever way, leaves *no* adapters on: every parameter
    is its original, bit for bit. (Not the set it had before: that takes computing, which may fail
    again.) Were that restoring itself cut short, the next switch would finish it.

    Args:
        components: to merge into. Their parameters may be moved between devices, not replaced.
        device_budget_bytes: for saved originals on the device; see `Originals`.
        copies_bytes: for merged weights of sets that were on: one that comes back costs a copy.
        verify_every: of the switches that restore something, each so many-th is verified.
    """

    def __init__(
        self,
        components: Mapping[Component, nn.Module],
        *,
        device_budget_bytes: int,
        copies_bytes: int,
        verify_every: int,
    ) -> None:
        self._parameters = {
            Target(component, name): parameter
            for component, module in components.items()
            for name, parameter in module.named_parameters()
        }
        self._originals = Originals(device_budget_bytes)
        self._copies: ByteLRUCache[State, Mapping[Target, Tensor]] = ByteLRUCache(
            _size_bytes, copies_bytes
        )
        self._verify_every = verify_every
        self._restores = 0
        self._state: State | None = ()
        # Parameters that are not their originals; None while one is being written.
        self._held: dict[Target, Terms | None] = {}

    @property
    def saved_bytes(self) -> SavedBytes:
        return self._originals.saved_bytes

    @property
    def copied_bytes(self) -> int:
        """Memory that merged weights of sets which may come back take."""
        return self._copies.stats.size_bytes

    @property
    def on_text_encoders(self) -> Terms:
        """(sha256, scale) of each adapter that changes a text encoder, sorted: says its weights."""
        assert self._state is not None, "the last switch was cut short"
        held = ((target.component, terms or ()) for target, terms in self._held.items())
        changing = {term[0] for component, terms in held if component != "unet" for term in terms}
        return tuple((sha256, scale) for sha256, _, scale in self._state if sha256 in changing)

    def has(self, wanted: Collection[ScaledAdapter]) -> bool:
        """Whether exactly these adapters are on."""
        return state_of(wanted) == self._state

    @torch.no_grad()
    def switch(self, wanted: Collection[ScaledAdapter]) -> SwitchReport:
        """Have exactly these adapters on; the same set in any order costs nothing.

        Only parameters whose terms change are written. An adapter given twice counts twice.

        Raises:
            IncompatibleAdapter: a target is no parameter of the pipeline (then the set that was on
                stays), a delta's shape is wrong, or a merged weight is not finite in its dtype.
            StateCorrupted: a parameter that was restored is not its original.
        """
        started_s = perf_counter()
        state = state_of(wanted)
        if state == self._state:
            seconds = perf_counter() - started_s
            return SwitchReport(rewritten=0, restored=0, unchanged=len(self._held), seconds=seconds)
        self._require_targets(wanted)
        terms = terms_of(wanted)
        rewritten = [target for target in terms if terms[target] != self._held.get(target)]
        restored = [target for target in self._held if target not in terms]
        adapters = {item.adapter.sha256: item.adapter for item in wanted}
        self._state = None
        try:
            self._restore(restored)
            changed = {target: terms[target] for target in rewritten}
            if copies := self._copies.get(state):
                self._copy_back(changed, copies)
            else:
                self._rewrite(changed, adapters)
                self._keep_copies(state, terms)
        except BaseException:
            self._restore(list(self._held))
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
        """Take every adapter off and keep no copies: the weights may then move elsewhere.

        Raises:
            StateCorrupted: some parameter is not its original.
        """
        self.switch(())
        if differing := self._differing():
            raise StateCorrupted(f"not as saved before a move: {target_names(differing)}")
        self._originals.clear()
        self._copies.clear()

    def verify(self) -> bool:
        """Whether every parameter that should be its original is, bit for bit."""
        return not self._differing()

    def _differing(self) -> list[Target]:
        return self._originals.differing(
            target for target in self._originals if target not in self._held
        )

    def _restore(self, targets: Sequence[Target]) -> None:
        self._held.update(dict.fromkeys(targets))
        self._originals.restore(targets)
        for target in targets:
            del self._held[target]
        if targets:
            self._restores += 1
            if self._restores % self._verify_every == 0 and (differing := self._differing()):
                raise StateCorrupted(f"not as saved after a restore: {target_names(differing)}")

    def _copy_back(self, terms: Mapping[Target, Terms], copies: Mapping[Target, Tensor]) -> None:
        self._held.update(dict.fromkeys(terms))
        for target in terms:
            self._weight(target).copy_(copies[target])
        self._held.update(terms)

    def _keep_copies(self, state: State, targets: Collection[Target]) -> None:
        merged = {target: self._weight(target) for target in targets}
        if self._copies.fits(_size_bytes(merged)):
            self._copies.put(state, {target: weight.clone() for target, weight in merged.items()})

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
        groups = list(grouped(whole, terms))
        scratch = self._originals.scratch(groups)
        bounds: list[tuple[Sequence[Target], Tensor]] = []
        for target, deltas in rowwise.items():
            self._held[target] = None
            original, largest = self._originals[target], self._originals.largest(target)
            bounds.append(([target], write_in_rows(parameters[target], original, largest, deltas)))
        for group in groups:
            own = {target: parameters[target] for target in group}
            originals = self._originals.float32(group, scratch[own[group[0]].device])
            self._held.update(dict.fromkeys(group))
            bounds.append((group, write_merged(own, originals, terms, adapters)))
        self._held.update(terms)
        self._require_finite(bounds)

    def _require_targets(self, wanted: Collection[ScaledAdapter]) -> None:
        for item in wanted:
            unknown = [target for target in item.adapter.deltas if target not in self._parameters]
            if unknown:
                raise IncompatibleAdapter(
                    f"adapter {item.adapter.sha256[:12]} is for another architecture; the "
                    f"checkpoint has no {target_names(unknown)}"
                )

    def _require_finite(self, bounds: Sequence[tuple[Sequence[Target], Tensor]]) -> None:
        """Of what was written: after all of it, so that a GPU is waited for once."""
        overflowing: list[Target] = []
        for group, bound in bounds:
            parameters = [self._parameters[target] for target in group]
            # Cheap to have; few tensors need a closer look.
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
def applied(state: MergedState, wanted: Collection[ScaledAdapter]) -> Generator[SwitchReport]:
    """Have these adapters on for a while.

    On exit, however it comes, every parameter and buffer is bitwise as the checkpoint has it: also
    when the body raises, when switching in raises, or when other adapters were on before.

    Raises:
        IncompatibleAdapter, StateCorrupted: as `MergedState.switch`.
    """
    try:
        yield state.switch(wanted)
    finally:
        state.switch(())


def _size_bytes(weights: Mapping[Target, Tensor]) -> int:
    return sum(weight.nbytes for weight in weights.values())
