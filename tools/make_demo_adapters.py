"""Write small random adapters for the demo checkpoint: LoRAs in kohya's naming, and an embedding.

    python -m tools.make_demo_adapters worker/models

Pictures change with them and are restored without them; their effect has no meaning.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tools.demo_models import demo_models

LORAS = ("demo-one", "demo-two")
EMBEDDING = "demo-token"
_RANK = 4
_SPREAD = 0.2


def write_demo_adapters(root: Path) -> list[Path]:
    """Write `loras/` and `embeddings/` in the model folder, which is created if missing."""
    models = demo_models("sd1", seed=0)
    written: list[Path] = []
    for seed, name in enumerate(LORAS):
        generator = torch.Generator().manual_seed(seed)
        tensors = _lora("lora_unet_", models["unet"], generator)
        tensors |= _lora("lora_te_text_model_", models["text_encoder"], generator)
        metadata = {
            "ss_base_model_version": "sd_v1",
            "modelspec.trigger_phrase": f"in {name} style",
        }
        written.append(_save(root / f"loras/{name}.safetensors", tensors, metadata))
    width = models["text_encoder"].get_parameter("final_layer_norm.weight").numel()
    vectors = torch.randn(3, width, generator=torch.Generator().manual_seed(9)) * _SPREAD
    written.append(_save(root / f"embeddings/{EMBEDDING}.safetensors", {"emb_params": vectors}, {}))
    return written


def _lora(prefix: str, model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "attn" in name:
            key = prefix + name.replace(".", "_")
            for factor, shape in (
                ("lora_down", (_RANK, module.in_features)),
                ("lora_up", (module.out_features, _RANK)),
            ):
                values = torch.randn(shape, generator=generator) * _SPREAD
                tensors[f"{key}.{factor}.weight"] = values.half()
            tensors[f"{key}.alpha"] = torch.tensor(float(_RANK))
    return tensors


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)
    # Readable by the container's user too.
    path.chmod(0o644)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Write small random adapters.")
    parser.add_argument("root", type=Path, help="the model folder")
    for path in write_demo_adapters(parser.parse_args().root):
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
