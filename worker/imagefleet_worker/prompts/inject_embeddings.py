"""Vectors in the place of token embeddings, for one pass of a text encoder."""

from collections.abc import Generator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def injected_embeddings(
    encoder: PreTrainedModel, rows: Tensor, columns: Tensor, vectors: Tensor
) -> Generator[None]:
    """In the body, the encoder reads vectors at the given places of its input.

    Tokenizer and embedding table are not touched. Afterwards no hook is left, also when the body
    raises.

    Args:
        encoder: a CLIP text encoder.
        rows: `(m,)` int64, which sequence of the batch.
        columns: `(m,)` int64, which place in it, the start token's being 0.
        vectors: `(m, hidden)`; cast to the type and moved to the device of the embeddings.
    """

    read = False

    def overwrite(_module: nn.Module, _inputs: object, embedded: Tensor) -> Tensor:
        nonlocal read
        read = True
        place = (rows.to(embedded.device), columns.to(embedded.device))
        return embedded.index_put(place, vectors.to(embedded))

    hook = encoder.get_input_embeddings().register_forward_hook(overwrite)
    try:
        yield
    finally:
        hook.remove()
    # torch.compile ignores hooks that come after it.
    assert read, "the text encoder never looked its tokens up"
