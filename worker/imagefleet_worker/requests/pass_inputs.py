"""The inputs of a pass: checkpoint, texts and adapters."""

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock

from imagefleet_shared.field_types import Emphasis
from imagefleet_shared.request_parts import LoRA, TextualInversion
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.checkpoints.empty_pipeline import clip_tokenizer
from imagefleet_worker.prompts.comments import without_comments
from imagefleet_worker.prompts.count_tokens import PromptLength, count_tokens
from imagefleet_worker.prompts.lay_out import text_match_key
from imagefleet_worker.prompts.plan import plan_negative, plan_prompt, texts_of
from imagefleet_worker.prompts.triggers import EmbeddingCandidate
from imagefleet_worker.requests.find_adapters import find_inversions, find_loras
from imagefleet_worker.requests.resolved import PassInputs


class PassInputResolver:
    """Resolves prompts and adapter names to the inputs of a pass; thread-safe.

    Args:
        models: the store in which adapters are looked up.
        max_tokens: limit for each prompt.
    """

    def __init__(self, models: ModelStore, max_tokens: int) -> None:
        self._models = models
        self._max_tokens = max_tokens
        self._tokenizer = clip_tokenizer("<|endoftext|>")
        # Tokenizers are not thread-safe.
        self._tokenizer_lock = Lock()

    def resolve(
        self,
        checkpoint: ModelFile,
        prompt: str,
        negative_prompt: str,
        *,
        loras: Sequence[LoRA],
        inversions: Sequence[TextualInversion],
        emphasis: Emphasis,
        steps: int,
        first_pass_steps: int | None = None,
    ) -> PassInputs:
        """The inputs of a pass, with adapters looked up and prompts parsed.

        Args:
            prompt: may contain comments and LoRA tags.
            negative_prompt: may contain comments.
            loras: requested in addition to those tagged in the prompt.
            inversions: requested in addition to those named in the texts.
            steps: number of steps that prompt schedules refer to; see `parse_schedule`.
            first_pass_steps: see `parse_schedule`.

        Raises:
            InvalidRequest: an adapter does not exist or is incompatible, or a prompt is malformed
                or too long.
        """
        negative_text = without_comments(negative_prompt)
        text, found_loras = find_loras(
            without_comments(prompt), negative_text, loras, checkpoint, self._models
        )
        parts = plan_prompt(text, steps, first_pass_steps)
        negative = plan_negative(negative_text, steps, first_pass_steps)
        texts = texts_of((*parts, negative))
        match_keys = [text_match_key(part_text, emphasis) for part_text in texts]
        candidates = find_inversions(inversions, match_keys, found_loras, checkpoint, self._models)
        length = self._count_tokens(texts, candidates, emphasis)
        return PassInputs(
            checkpoint, found_loras, parts, negative, length.inversions, length.windows
        )

    def without_adapters(
        self, inputs: PassInputs, checkpoint: ModelFile, emphasis: Emphasis
    ) -> PassInputs:
        """The same texts for a checkpoint that supports no adapters.

        Embedding names are ordinary words there, so the texts may take more windows.

        Raises:
            PromptTooLong: a text has too many tokens without its embeddings.
        """
        length = self._count_tokens(texts_of((*inputs.prompt, inputs.negative)), (), emphasis)
        return replace(
            inputs, checkpoint=checkpoint, loras=(), inversions=(), windows=length.windows
        )

    def _count_tokens(
        self, texts: Sequence[str], candidates: Sequence[EmbeddingCandidate], emphasis: Emphasis
    ) -> PromptLength:
        with self._tokenizer_lock:
            return count_tokens(self._tokenizer, texts, candidates, self._max_tokens, emphasis)
