"""The VQ-VAE behind the demo's `<seg>` tokens: big_vision's `vae-oid` in structure and key names, narrower.

A mask of 64 x 64 becomes 4 x 4 vectors, each replaced by the nearest of 128 in a codebook (van den Oord et al. 2017,
arXiv 1711.00937). The codebook follows its vectors by exponential averages, and entries that are not used move to
vectors that are far from all entries.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demo.scenes import MASK_SIDE

CODES, EMBEDDING, WIDTH = 128, 64, 32
COMMITMENT = 0.25
DECAY = 0.98


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class MaskVAE(nn.Module):
    """Module numbers equal the published file's keys (`encoder.8.net.0.weight` ...)."""

    codebook: Tensor
    use: Tensor

    def __init__(self) -> None:
        super().__init__()
        w = WIDTH
        self.encoder = nn.Sequential(
            nn.Conv2d(1, w // 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(w // 8, w // 4, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(w // 4, w // 2, 4, 2, 1), nn.ReLU(), nn.Conv2d(w // 2, w, 4, 2, 1), nn.ReLU(),
            Residual(w), Residual(w), nn.Conv2d(w, EMBEDDING, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(EMBEDDING, w, 1), nn.ReLU(), Residual(w), Residual(w),
            nn.ConvTranspose2d(w, w, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(w, w // 2, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(w // 2, w // 4, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(w // 4, w // 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(w // 8, 1, 1),
        )  # fmt: skip
        self.register_buffer("codebook", torch.randn(CODES, EMBEDDING))
        self.register_buffer("use", torch.ones(CODES))

    def encode(self, masks: Tensor) -> Tensor:
        """float [B, 64, 64] in 0..1 -> vectors [B * 16, EMBEDDING], row-major over the 4 x 4 grid."""
        z = self.encoder(2 * (masks[:, None] - 0.5))
        return z.permute(0, 2, 3, 1).reshape(-1, EMBEDDING)

    def nearest(self, z: Tensor) -> Tensor:
        return torch.cdist(z, self.codebook).argmin(dim=1)

    def decode(self, vectors: Tensor) -> Tensor:
        """[B * 16, EMBEDDING] -> [B, 64, 64], nominally -1..1."""
        return self.decoder(vectors.view(-1, 4, 4, EMBEDDING).permute(0, 3, 1, 2))[:, 0]

    def codes(self, masks: np.ndarray) -> np.ndarray:
        """uint8 [B, 64, 64] -> codes int64 [B, 16]."""
        with torch.inference_mode():
            parts = [
                self.nearest(self.encode(torch.from_numpy(masks[i : i + 512]).float() / 255)).view(-1, 16)
                for i in range(0, len(masks), 512)
            ]
        return torch.cat(parts).numpy()

    @torch.no_grad()
    def follow(self, z: Tensor, index: Tensor, rng: torch.Generator) -> None:
        """Move the codebook towards the vectors it stood for."""
        hot = F.one_hot(index, CODES).float()
        self.use.mul_(DECAY).add_(hot.sum(0), alpha=1 - DECAY)
        mean = (hot.T @ z) / hot.sum(0).clamp(min=1)[:, None]
        seen = (hot.sum(0) > 0)[:, None]
        self.codebook.copy_(torch.where(seen, DECAY * self.codebook + (1 - DECAY) * mean, self.codebook))
        idle = torch.nonzero(self.use < 0.05)[:, 0]
        if len(idle):
            worst = ((z - self.codebook[index]) ** 2).sum(1)
            chosen = torch.multinomial(worst + 1e-8, len(idle), generator=rng)
            self.codebook[idle] = z[chosen]
            self.use[idle] = 1.0


def train(masks: np.ndarray, steps: int = 2500, batch: int = 64) -> MaskVAE:
    """Fit a VQ-VAE to uint8 masks [N, 64, 64]; the first 200 steps run without the codebook."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    vae = MaskVAE()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    data = torch.from_numpy(masks)
    for step in range(steps):
        x = data[torch.randint(len(data), (batch,), generator=rng)].float() / 255
        z = vae.encode(x)
        if step == 200:
            with torch.no_grad():
                vae.codebook.copy_(z[torch.randperm(len(z), generator=rng)[:CODES]])
        loss = torch.zeros(())
        vectors = z
        if step >= 200:
            index = vae.nearest(z.detach())
            quantized = vae.codebook[index]
            loss = COMMITMENT * F.mse_loss(z, quantized)
            vectors = z + (quantized - z).detach()
            vae.follow(z.detach(), index, rng)
        loss = loss + F.mse_loss(vae.decode(vectors), 2 * x - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0 or step == steps - 1:
            print(f"mask vae {step:5d}  loss {loss.item():.4f}", flush=True)
    return vae.eval()


def reconstruction_iou(vae: MaskVAE, masks: np.ndarray) -> float:
    """Mean IoU of masks uint8 [N, 64, 64] and what their codes decode to."""
    with torch.inference_mode():
        decoded = vae.decode(vae.codebook[torch.from_numpy(vae.codes(masks)).flatten()]).numpy() > 0
    truth = masks > 127
    both, either = (truth & decoded).sum((1, 2)), (truth | decoded).sum((1, 2))
    return float((both / np.maximum(either, 1)).mean())


def save(vae: MaskVAE, path: Path) -> None:
    """Write the published file's keys and layouts, float32."""
    arrays = {key: value.numpy() for key, value in vae.state_dict().items() if key not in ("codebook", "use")}
    arrays["_vq_vae._embedding"] = vae.codebook.numpy()
    with path.open("wb") as file:
        np.savez(file, **arrays)


def load(path: Path) -> MaskVAE:
    vae = MaskVAE()
    with np.load(path, allow_pickle=False) as file:
        state = {key: torch.from_numpy(file[key]) for key in file.files}
    state["codebook"] = state.pop("_vq_vae._embedding")
    state["use"] = torch.ones(CODES)
    vae.load_state_dict(state)
    assert vae.encode(torch.zeros(1, MASK_SIDE, MASK_SIDE)).shape == (16, EMBEDDING)
    return vae.eval()
