"""A pruned network in a PyTorch program: python examples/prune.py"""

import timm
import torch

import edge_tprune

model = timm.create_model("deit_tiny_patch16_224", pretrained=False).eval()  # pretrained=True for real weights
images = torch.randn(2, 3, 224, 224)

for budget in (1.0, 0.8, 0.65, 0.5):
    pruned = edge_tprune.prune(model, method="bat", budget=budget)
    with torch.no_grad():
        logits = pruned(images)
    share = edge_tprune.macs(pruned) / edge_tprune.macs(model)
    print(f"budget {budget}: {share:.3f} of the MACs, tokens after each block {pruned.schedule}, logits {tuple(logits.shape)}")

# A schedule instead of a budget, and what timm's feature interface gives.
pruned = edge_tprune.prune(model, method="tome", schedule=[197] * 3 + [150] * 3 + [100] * 3 + [60] * 3)
with torch.no_grad():
    print("features, with a vector for every patch:", tuple(pruned.forward_features(images).shape))
