"""What a pass draws with: checkpoint, texts, adapters."""

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock

from imagefleet_shared.field_types import Emphasis
from imagefleet_shared.request_parts import LoRA
from imagefleet_shared.request_parts import TextualInversion as AskedInversion
from imagefleet_worker.catalog.model_file import ModelFile
from imagefleet_worker.catalog.store import ModelStore
from imagefleet_worker.checkpoints.empty_pipeline import clip_tokenizer
from imagefleet_worker.prompts.comments import without_comments
from imagefleet_worker.prompts.count_tokens import PromptLength, count_tokens
from imagefleet_worker.prompts.lay_out import letters_in
from imagefleet_worker.prompts.plan import plan_negative, plan_prompt, texts_of
from imagefleet_worker.prompts.triggers import EmbeddingCandidate
from imagefleet_worker.requests.find_adapters import find_inversions, find_loras
from imagefleet_worker.requests.resolved import PassInputs


class PassInputResolver:
    """Finds what texts and names ask for; safe to share between threads.

    Args:
        max_tokens: of the longest prompt allowed.
    """

    def __init__(self, models: ModelStore, max_tokens: int) -> None:
        self._models = models
        self._max_tokens = max_tokens
        self._tokenizer = clip_tokenizer("<|endoftext|>")
        # A tokenizer serves one thread at a time.
        self._tokenizing = Lock()

    def resolve(
        self,
        checkpoint: ModelFile,
        prompt: str,
        negative_prompt: str,
        *,
        loras: Sequence[LoRA],
        inversions: Sequence[AskedInversion],
        emphasis: Emphasis,
        steps: int,
        first_pass_steps: int | None = None,
    ) -> PassInputs:
        """The look of a pass.

        Args:
            prompt: with comments and tags of LoRAs.
            negative_prompt: with comments.
            loras: asked for beside them.
            inversions: asked for beside those that a text names.
            steps: what the texts' schedules count by; see `parse_schedule`.
            first_pass_steps: likewise.

        Raises:
            InvalidRequest: something asked for does not exist or does not fit.
        """
        negative_text = without_comments(negative_prompt)
        text, wanted = find_loras(
            without_comments(prompt), negative_text, loras, checkpoint, self._models
        )
        parts = plan_prompt(text, steps, first_pass_steps)
        negative = plan_negative(negative_text, steps, first_pass_steps)
        texts = texts_of((*parts, negative))
        letters = [letters_in(one, emphasis) for one in texts]
        candidates = find_inversions(inversions, letters, wanted, checkpoint, self._models)
        measured = self._count_tokens(texts, candidates, emphasis)
        return PassInputs(
            checkpoint, wanted, parts, negative, measured.inversions, measured.windows
        )

    def without_adapters(
        self, inputs: PassInputs, checkpoint: ModelFile, emphasis: Emphasis
    ) -> PassInputs:
        """The look's texts for a checkpoint that no adapter fits.

        A text without its embeddings may take more windows: their names are words there.

        Raises:
            PromptTooLong: more than allowed.
        """
        measured = self._count_tokens(texts_of((*inputs.prompt, inputs.negative)), (), emphasis)
        return replace(
            inputs, checkpoint=checkpoint, loras=(), inversions=(), windows=measured.windows
        )

    def _count_tokens(
        self, texts: Sequence[str], candidates: Sequence[EmbeddingCandidate], emphasis: Emphasis
    ) -> PromptLength:
        with self._tokenizing:
            return count_tokens(self._tokenizer, texts, candidates, self._max_tokens, emphasis)
