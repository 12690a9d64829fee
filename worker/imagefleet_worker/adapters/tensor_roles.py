"""The tensors of an adapter file, told apart: which module each is for, and as what."""

import re

TensorRole = str
"""What a tensor is to its module, in one spelling: `lora_down`, `hada_w1_a`, `alpha`, `diff_b`."""

# A key is the module's name and one of these; the first row that matches wins. Where the part is
# None, the suffix's own group names it.
_SUFFIXES: list[tuple[str, TensorRole | None]] = [
    # kohya and LyCORIS; PEFT, maybe with the adapter's name; diffusers' older ones.
    (
        r"\.lora_(?:down|A)(?:(?:\.\w+)?\.weight)?|(?:\.lora_linear_layer|\.lora|_lora)\.down\.weight",
        "lora_down",
    ),
    (
        r"\.lora_(?:up|B)(?:(?:\.\w+)?\.weight)?|(?:\.lora_linear_layer|\.lora|_lora)\.up\.weight",
        "lora_up",
    ),
    (r"\.lora_mid\.weight", "lora_mid"),
    (r"(?:\.lora_linear_layer|\.lora|_lora)?\.alpha", "alpha"),
    (r"\.scale", "scale"),
    (r"\.dora_scale", "dora_scale"),
    # PEFT's, for each output whatever its shape says.
    (r"\.lora_magnitude_vector(?:\.\w+)??(?:\.weight)?", "magnitude"),
    (r"\.(hada_(?:w[12]_[ab]|t[12]))", None),
    (r"\.(lokr_(?:w[12](?:_[ab])?|t2))", None),
    (r"\.([ab][12])\.weight", None),
    (r"\.(oft_blocks|oft_diag|rescale)", None),
    (r"\.(bias_(?:indices|values|size))", None),
    (r"\.(diff|diff_b|w_norm|b_norm|on_input)", None),
    (r"\.weight", "ia3"),
]
_COMPILED = [(re.compile(rf"(?:{suffix})\Z"), part) for suffix, part in _SUFFIXES]

BIAS_PARTS = ("diff_b", "b_norm")
"""Parts that change the module's bias; all others belong to its weight."""

INTEGER_PARTS = ("alpha", "on_input", "bias_indices", "bias_size")
"""Parts that may be whole numbers; all others are weights."""

_KIND_OF: dict[TensorRole, str] = {
    "lora_down": "lora",
    "lora_mid": "locon",
    "dora_scale": "dora",
    "magnitude": "dora",
    "hada_w1_a": "loha",
    "lokr_w1": "lokr",
    "lokr_w1_a": "lokr",
    "a1": "glora",
    "on_input": "ia3",
    "diff": "full",
    "diff_b": "full",
    "w_norm": "norm",
    "oft_diag": "oft",
}


def split_key(key: str) -> tuple[str, TensorRole] | None:
    """The name of the module in the file's own naming, and the part; None for another's key."""
    for pattern, part in _COMPILED:
        match = pattern.search(key)
        if match is not None and match.start():
            return key[: match.start()], part or match[1]
    return None


def adapter_kind(part: TensorRole, shape: tuple[int, ...]) -> str | None:
    """The kind that a part shows: `lora`, `boft`, ...; None for parts that several kinds have."""
    if part == "oft_blocks":
        return "boft" if len(shape) == 4 else "oft"
    if part == "lora_down" and any(size > 1 for size in shape[2:]):
        return "locon"
    return _KIND_OF.get(part)
