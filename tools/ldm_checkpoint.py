"""Write diffusers modules as a single-file checkpoint in LDM names."""

from collections.abc import Mapping

import torch

from imagefleet_worker.weights.families import Family
from imagefleet_worker.weights.ldm_keys import LdmComponent, group_by_file_key, ldm_names


def ldm_state_dict(
    family: Family, modules: Mapping[LdmComponent, torch.nn.Module], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Convert the modules' weights to a checkpoint's names, in contiguous copies.

    Works on the meta device too, to get names and shapes only.
    """
    stored: dict[str, torch.Tensor] = {}
    for component, module in modules.items():
        weights = module.state_dict()
        names = ldm_names(family, component, weights)
        for file_key, keys in group_by_file_key(names).items():
            tensor = (
                torch.cat([weights[key] for key in keys]) if len(keys) > 1 else weights[keys[0]]
            )
            if names[keys[0]].transposed:
                tensor = tensor.T
            if component == "vae" and ".attn_1." in file_key and tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
            stored[file_key] = tensor.detach().to(dtype, copy=True).contiguous()
    return stored
