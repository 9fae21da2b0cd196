"""Mixed precision, chosen by device.

Conventions
-----------
* Weights stay float32; the precision applies to convolutions and products under autocast (arXiv 1710.03740).
* The scaler always exists, but has no effect unless the precision is float16, so the training loop needs no
  branch.
"""

from __future__ import annotations

import torch

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Precisions; tf32 is float32 with 10-bit products, on a GPU's tensor cores."""


def autocast_for(
    device: torch.device | str, precision: str = "auto"
) -> tuple[torch.autocast, torch.amp.GradScaler]:
    """Return the autocast and the gradient scaler of a device.

    Parameters
    ----------
    device : device or str
        Device of the network.
    precision : {"auto", "float32", "tf32", "bfloat16", "float16"}
        With "auto": bfloat16 on a CUDA device that has it in hardware, float16 on any other CUDA device,
        float32 elsewhere (bfloat16 took six times as long on a CPU without hardware for it).

    Returns
    -------
    autocast : torch.autocast
        Context for each forward pass; may be entered repeatedly.
    scaler : torch.amp.GradScaler
        Enabled only for float16, whose small gradients would vanish.

    Raises
    ------
    ValueError
        If the precision is unknown.
    """
    kind = torch.device(device).type
    if precision == "auto":
        dtype = torch.float32
        if kind == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            dtype = torch.bfloat16 if native else torch.float16
    elif precision in DTYPES:
        dtype = DTYPES[precision]
    else:
        raise ValueError(f"the precision must be 'auto' or one of {', '.join(DTYPES)}, not {precision!r}")
    if kind == "cuda":  # by default cuDNN rounds inputs of float32 convolutions to tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
    # autocast has no float32: its dtype is irrelevant when disabled
    mixed = dtype is not torch.float32
    autocast = torch.autocast(kind, dtype=dtype if mixed else torch.bfloat16, enabled=mixed)
    return autocast, torch.amp.GradScaler(kind, enabled=dtype is torch.float16)
