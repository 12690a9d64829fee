"""Splits keys of adapter files into module name and role, such as `lora_down`."""

import re

TensorRole = str
"""The role of a tensor in its module, normalized: `lora_down`, `hada_w1_a`, `alpha`, `diff_b`."""

# A key is the module's name and one of these suffixes; the first row that matches wins. If the role
# is None, it is the suffix's group.
_SUFFIXES: list[tuple[str, TensorRole | None]] = [
    # kohya and LyCORIS; PEFT, optionally with the adapter's name; older diffusers.
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
    # PEFT's, one per output whatever its shape suggests.
    (r"\.lora_magnitude_vector(?:\.\w+)??(?:\.weight)?", "magnitude"),
    (r"\.(hada_(?:w[12]_[ab]|t[12]))", None),
    (r"\.(lokr_(?:w[12](?:_[ab])?|t2))", None),
    (r"\.([ab][12])\.weight", None),
    (r"\.(oft_blocks|oft_diag|rescale)", None),
    (r"\.(bias_(?:indices|values|size))", None),
    (r"\.(diff|diff_b|w_norm|b_norm|on_input)", None),
    (r"\.weight", "ia3"),
]
_COMPILED = [(re.compile(rf"(?:{suffix})\Z"), role) for suffix, role in _SUFFIXES]

BIAS_ROLES = ("diff_b", "b_norm")
"""Roles that change the module's bias; all others change its weight."""

INTEGER_ROLES = ("alpha", "on_input", "bias_indices", "bias_size")
"""Roles of tensors that may have an integer dtype."""

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
    """The module's name as in the file, and the role; None if the key is not an adapter's."""
    for pattern, role in _COMPILED:
        match = pattern.search(key)
        if match is not None and match.start():
            return key[: match.start()], role or match[1]
    return None


def adapter_kind(role: TensorRole, shape: tuple[int, ...]) -> str | None:
    """The kind that a role implies: `lora`, `boft`, ...; None for roles shared by several kinds."""
    if role == "oft_blocks":
        return "boft" if len(shape) == 4 else "oft"
    if role == "lora_down" and any(size > 1 for size in shape[2:]):
        return "locon"
    return _KIND_OF.get(role)
