"""Muon (Jordan et al. 2024): momentum, then the nearest semi-orthogonal matrix by a Newton-Schulz iteration.
For weights [.., rows, columns]; leading dimensions are independent matrices (experts)."""

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(m, steps=5):
    a, b, c = COEFFICIENTS
    tall = m.shape[-2] > m.shape[-1]
    x = (m.mT if tall else m).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                velocity = state["momentum"]
                velocity.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalised(p.grad.lerp(velocity, group["momentum"]))
                scale = max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * scale)
