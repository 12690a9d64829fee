"""LoRA tags in prompts are parsed as in A1111, and refused if ambiguous or malformed."""

import time

import pytest

from imagefleet_shared.errors import InvalidRequest
from imagefleet_worker.prompts.extra_networks import LoRARef, extract_loras


def lora(name: str, text_encoder_scale: float, unet_scale: float) -> LoRARef:
    return LoRARef(name=name, unet_scale=unet_scale, text_encoder_scale=text_encoder_scale)


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("<lora:x>", lora("x", 1, 1)),
        ("<lora:x:0.8>", lora("x", 0.8, 0.8)),
        ("<lora:x:-1.5>", lora("x", -1.5, -1.5)),
        ("<lora:x:0.5:0.8>", lora("x", 0.5, 0.8)),
        ("<lora:x:te=0.5>", lora("x", 0.5, 0.5)),
        ("<lora:x:unet=0.5>", lora("x", 1, 0.5)),
        ("<lora:x:unet=0.8:te=0.5>", lora("x", 0.5, 0.8)),
        ("<lora:x:0.3:te=0.5>", lora("x", 0.5, 0.5)),
        ("<lora:x:0.3:0.4:unet=0>", lora("x", 0.3, 0)),
        ("<lora:x:te=0.5:0.3:0.4>", lora("x", 0.5, 0.4)),
        ("<lyco:x y_v1.2-final (sd15):1>", lora("x y_v1.2-final (sd15)", 1, 1)),
        ("<lora:a=b:0.5>", lora("a=b", 0.5, 0.5)),
    ],
)
def test_a_tag_becomes_a_reference(tag: str, expected: LoRARef) -> None:
    assert extract_loras(f"a {tag}cat") == ("a cat", (expected,))


def test_only_the_tags_are_removed_from_the_text() -> None:
    text, loras = extract_loras("<lora:a:1> (cat:1.2) <lora:b:0.5>,  [dog] a < b > c <3")

    assert text == " (cat:1.2) ,  [dog] a < b > c <3"
    assert [lora.name for lora in loras] == ["a", "b"]


def test_a_text_without_tags_is_unchanged() -> None:
    assert extract_loras("a cat") == ("a cat", ())


def test_repeating_a_tag_has_no_effect() -> None:
    assert extract_loras("<lora:x:0.5><lora:x:te=0.5>") == ("", (lora("x", 0.5, 0.5),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<lora:x:0.5> <lora:x:0.6>", r"<lora:x:0\.6> gives 'x' a second scale"),
        ("<lora:x:abc>", r"'abc' in <lora:x:abc>"),
        ("<lora:x:>", r"'' in <lora:x:>"),
        ("<lora:x:te=>", r"'' in <lora:x:te=>"),
        ("<lora:x:nan>", r"'nan' in <lora:x:nan> is not finite"),
        ("<lora:x:unet=inf>", "not finite"),
        ("<lora:x:1:1:8>", "limits the rank"),
        ("<lora:x:dyn=8>", "limits the rank"),
        ("<lora:x:1:1:8:9>", "unknown parts"),
        ("<lora:x:strength=1>", "unknown parts"),
        ("<lora:>", "no name"),
        ("<lora: :1>", "no name"),
        ("<hypernet:x:1>", "<hypernet:x:1> asks for 'hypernet'; known are lora, lyco"),
        ("<Lora:x:1>", "asks for 'Lora'"),
        ("a <lora:x:1", "'<lora:x:1' is never closed"),
        ("<lora:x <lora:y:1>", "'<lora:x ' is never closed"),
    ],
)
def test_a_malformed_or_contradictory_tag_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        extract_loras(text)


@pytest.mark.parametrize("unit", ["<", "<a:", "<lora", "<lora:x:1", "a:"])
def test_a_long_text_takes_no_longer_than_its_length_allows(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    started_s = time.monotonic()
    if "<lora:" in text:
        with pytest.raises(InvalidRequest):
            extract_loras(text)
    else:
        extract_loras(text)
    assert time.monotonic() - started_s < 5
