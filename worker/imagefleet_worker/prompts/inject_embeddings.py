"""Replacing token embeddings with textual inversion vectors during a text encoder's forward."""

from collections.abc import Generator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def inject_embeddings(
    encoder: PreTrainedModel, rows: Tensor, columns: Tensor, vectors: Tensor
) -> Generator[None]:
    """Within the context, the encoder uses these vectors at the given positions of its input.

    Tokenizer and embedding table are not changed. The hook is removed on exit, also when the body
    raises.

    Args:
        encoder: a CLIP text encoder.
        rows: `(m,)` int64, index of the sequence in the batch.
        columns: `(m,)` int64, position in the sequence, counting the start token as 0.
        vectors: `(m, hidden)`; cast to the dtype and device of the embeddings.
    """

    hook_ran = False

    def overwrite(_module: nn.Module, _inputs: object, embedded: Tensor) -> Tensor:
        nonlocal hook_ran
        hook_ran = True
        indices = (rows.to(embedded.device), columns.to(embedded.device))
        return embedded.index_put(indices, vectors.to(embedded))

    hook = encoder.get_input_embeddings().register_forward_hook(overwrite)
    try:
        yield
    finally:
        hook.remove()
    # torch.compile ignores hooks that are registered after compilation.
    assert hook_ran, "the text encoder never looked its tokens up"
