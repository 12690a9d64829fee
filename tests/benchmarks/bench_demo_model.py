"""Quality of the demo's trained models, measured on scenes held out from training.

    python -m tests.benchmarks.bench_demo_model [--scenes 120]

Pictures are rendered by the worker's own path from request to picture and classified by
`tools.training.judge`.

- base: held-out captions and seeds: share with the right subject, and the right background.
- new tints: subjects in a tint that the checkpoint never saw them in.
- styles: share of pictures nearer to the LoRA's training set than to the plain one, at LoRA scales
  0 and 1, and share that the LoRA moved that way.
- share of right subjects of the subject LoRA and of the embedding.
- SwinIR: mean PSNR gain over bicubic, on held-out pictures at half size.
- seconds for a single picture of 20 steps.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch

from tests.benchmarks.report import report
from tests.demo_exam import (
    NATURAL,
    TINTED,
    embedding_share,
    psnr_gain_db,
    rendered_accuracy,
    snowman_share,
    styled_shares,
)
from tests.demo_renderer import STEPS, DemoRenderer
from tools.training.captions import caption
from tools.training.pictures import Scene
from tools.training.subjects import NEVER_TOGETHER

Row = dict[str, str | float]
_ADAPTER_PICTURES = 24


def rows(renderer: DemoRenderer, scenes: int) -> list[Row]:
    """The figures, one per row."""
    subject, background = rendered_accuracy(renderer, (NATURAL * 4)[:scenes])
    tinted_subject, tinted_background = rendered_accuracy(renderer, TINTED[: scenes // 2])
    unseen = [
        Scene(subject=subject, tint=tint, background=background)
        for subject, tint in sorted(NEVER_TOGETHER)
        for background in ("white", "black", "yellow", "pink")
    ]
    new_subject, new_background = rendered_accuracy(renderer, unseen)
    results: list[Row] = [
        {"figure": "held-out scenes: subject", "value": subject, "pictures": scenes},
        {"figure": "held-out scenes: background", "value": background, "pictures": scenes},
        {"figure": "held-out tinted: subject", "value": tinted_subject, "pictures": scenes // 2},
        {
            "figure": "held-out tinted: background",
            "value": tinted_background,
            "pictures": scenes // 2,
        },
        {"figure": "new tints: subject", "value": new_subject, "pictures": len(unseen)},
        {"figure": "new tints: background", "value": new_background, "pictures": len(unseen)},
    ]
    for name in ("blueprint", "sticker"):
        for what, share in styled_shares(renderer, name, _ADAPTER_PICTURES).items():
            figure = f"demo-{name}, its style: {what}"
            results.append({"figure": figure, "value": share, "pictures": _ADAPTER_PICTURES})
    for figure, share in (
        ("demo-snowman at 1: subject", snowman_share(renderer, 1.0, _ADAPTER_PICTURES)),
        ("demo-snowman at 0: subject", snowman_share(renderer, 0.0, _ADAPTER_PICTURES)),
        ("demo-owl: subject", embedding_share(renderer, _ADAPTER_PICTURES)),
    ):
        results.append({"figure": figure, "value": share, "pictures": _ADAPTER_PICTURES})
    results.append(
        {"figure": "demo-x2 over bicubic, dB", "value": psnr_gain_db(60), "pictures": 60}
    )
    start = perf_counter()
    renderer.render([caption(NATURAL[0])], [1])
    figure = f"seconds for {STEPS} steps, {torch.get_num_threads()} threads"
    results.append({"figure": figure, "value": perf_counter() - start, "pictures": 1})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure the quality of the demo's trained models."
    )
    parser.add_argument("--scenes", type=int, default=120)
    with TemporaryDirectory() as folder:
        report("demo_model", rows(DemoRenderer(Path(folder)), parser.parse_args().scenes))


if __name__ == "__main__":
    main()
