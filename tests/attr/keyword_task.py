"""Sentences with one keyword among fillers, which decides the class, and a small transformer that has learned it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

N_KEYWORDS, VOCABULARY, LENGTH, WIDTH = 4, 60, 12, 32


def sentences(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (n, LENGTH), classes, and where the keywords stand."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(N_KEYWORDS, VOCABULARY, (n, LENGTH), generator=generator)
    keyword = torch.randint(N_KEYWORDS, (n,), generator=generator)
    place = torch.randint(LENGTH, (n,), generator=generator)
    ids[torch.arange(n), place] = keyword
    return ids, keyword // 2, place


class KeywordClassifier(nn.Module):
    """Embeddings with learned positions, three transformer blocks, mean pool."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 64, dropout=0.0, batch_first=True) for _ in range(3)
        )
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.positions
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean(dim=1))
        return logits


def trained(n_steps: int, batch_size: int = 64, seed: int = 0) -> KeywordClassifier:
    """The classifier after so many steps of Adam."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = KeywordClassifier()
    adam = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(n_steps):
        ids, labels, _ = sentences(batch_size, 1_000_000 * (seed + 1) + step)
        loss = nn.functional.cross_entropy(model(ids), labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model.eval()
