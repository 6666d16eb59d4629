"""How far one network's answers are from another's, in numbers that need neither torch nor labels."""

from __future__ import annotations

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log probabilities over the last axis, in float64. A single logit is that of one class against its absence (a sigmoid): two probabilities."""
    if logits.shape[-1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=-1)
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def divergence(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(reference || other) in nats, of log probabilities, over the last axis."""
    return np.asarray(np.maximum((np.exp(reference) * (reference - other)).sum(-1), 0.0))
