"""Mixed precision, chosen by the device.

Conventions
-----------
* Weights stay float32; the precision is that of convolutions and products under autocast (arXiv 1710.03740).
* The scaler is always there and does nothing unless the precision is float16, so that a training loop has no
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
"""Types that are computed in; tf32 is float32 whose products keep 10 bits, on a GPU's tensor cores."""


def autocast_for(
    device: torch.device | str, precision: str = "auto"
) -> tuple[torch.autocast, torch.amp.GradScaler]:
    """Return the autocast and the gradient scaler of a device.

    Parameters
    ----------
    device : device or str
        Where the network runs.
    precision : {"auto", "float32", "tf32", "bfloat16", "float16"}
        With "auto": bfloat16 on a CUDA device that has it in hardware, float16 on any other CUDA device,
        float32 elsewhere (bfloat16 took six times as long on a CPU without hardware for it).

    Returns
    -------
    autocast : torch.autocast
        Enter it around each forward pass; it may be entered again and again.
    scaler : torch.amp.GradScaler
        Enabled for float16 alone, whose small gradients would vanish.

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
        raise ValueError(f"the precision is 'auto' or one of {', '.join(DTYPES)}, not {precision!r}")
    if kind == "cuda":  # cuDNN's default rounds the factors of "float32" convolutions to tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
    # autocast knows no float32: where it is disabled, its dtype says nothing
    mixed = dtype is not torch.float32
    autocast = torch.autocast(kind, dtype=dtype if mixed else torch.bfloat16, enabled=mixed)
    return autocast, torch.amp.GradScaler(kind, enabled=dtype is torch.float16)
