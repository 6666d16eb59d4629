"""The unpruned network as the teacher, its pruned forms as students that share one set of weights, and the loss between them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_tprune.documents import MethodOptions
from edge_tprune.errors import UserError
from edge_tprune.finetune.recipe import LATE, NORM, Recipe
from edge_tprune.models.adapter import EMBEDDING, LOGITS
from edge_tprune.reduction import registry
from edge_tprune.reduction.attention import explicit_attention, fused_attention
from edge_tprune.reduction.host import PrunedViT, network_shape


@dataclass(frozen=True)
class Arithmetic:
    """What a training step computes in. Weights, scores and losses are float32 in either."""

    device: torch.device
    bfloat16: bool

    def autocast(self) -> AbstractContextManager[Any]:
        """A context for forward passes."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()

    def prepare(self, pruned: PrunedViT, training: bool) -> None:
        """Sets the form of attention that is fastest here.

        PyTorch's fused kernel for CPUs has a slow backward pass in bfloat16: the explicit form takes half of its time.
        """
        slow = self.bfloat16 and self.device.type == "cpu" and training
        pruned.attention = explicit_attention if slow else fused_attention


class Students(nn.Module):
    """One trainable network in its pruned forms.

    Args:
        model: a timm ViT; copied.
        method: the reduction.
        options: of the method.
        schedules: name of a budget -> tokens after each block.
        train: which parameters (`recipe.TRAINED`).
    """

    def __init__(
        self,
        model: nn.Module,
        method: str,
        options: MethodOptions,
        schedules: Mapping[str, Sequence[int]],
        train: str,
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval()
        chosen = registry.method(method)
        self.names = {budget: f"b{number}" for number, budget in enumerate(schedules)}  # a module's name must not hold a dot
        self.forms = nn.ModuleDict(
            {self.names[budget]: PrunedViT(self.model, chosen, tuple(tokens), options) for budget, tokens in schedules.items()}
        )
        for form in self.pruned.values():
            # The host's own flag alone: tables that depend on weights are computed again, while dropout stays off.
            form.training = True
        select_parameters(self.model, min((first_removal(form) for form in self.pruned.values()), default=0), train)

    @property
    def pruned(self) -> dict[str, PrunedViT]:
        """By budget."""
        return {budget: cast(PrunedViT, self.forms[name]) for budget, name in self.names.items()}

    def forward(self, images: Tensor, budget: str, class_tokens: bool) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W) -> (logits (B, classes), class tokens after each block, each (B, C), if asked for)."""
        return answer(cast(PrunedViT, self.forms[self.names[budget]]), images, class_tokens)


def answer(pruned: PrunedViT, images: Tensor, class_tokens: bool) -> tuple[Tensor, list[Tensor]]:
    """Logits and, if asked for, the class token after each block."""
    return pruned.forward_class_tokens(images) if class_tokens else (pruned(images), [])


def first_removal(pruned: PrunedViT) -> int:
    """The first block that removes tokens, counted from 1; one more than there are where none does."""
    return min((int(number) for number in pruned.reducers), default=len(pruned.schedule) + 1)


def select_parameters(model: nn.Module, first_block: int, train: str) -> None:
    """Makes a part of the parameters trainable: all, those of the norms, or those of `first_block` (from 1) and what follows it."""
    behind = ("norm", "fc_norm", "head", "head_dist", "attn_pool")
    model.requires_grad_(train not in (NORM, LATE))
    if train == NORM:
        for module in model.modules():
            if "Norm" in type(module).__name__:
                module.requires_grad_(True)
    if train == LATE:
        for name, parameter in model.named_parameters():
            part, _, rest = name.partition(".")
            is_late = int(rest.partition(".")[0]) >= first_block - 1 if part == "blocks" else part in behind
            parameter.requires_grad_(is_late)


class Teacher:
    """The unpruned network as it came."""

    def __init__(self, model: nn.Module, arithmetic: Arithmetic) -> None:
        everything = network_shape(model).full_schedule()
        self.form = PrunedViT(copy.deepcopy(model).eval().requires_grad_(False), registry.method("none"), everything, {})
        if self.form.output not in (LOGITS, EMBEDDING):
            raise UserError(
                f"{type(model).__name__} has neither a head nor pooling: there is no answer to train for. Choose another --global-pool"
            )
        self.form.to(arithmetic.device)
        self.arithmetic = arithmetic
        arithmetic.prepare(self.form, training=False)

    @property
    def head(self) -> bool:
        """Whether its answers are logits of classes; else they are embeddings."""
        return self.form.output == LOGITS

    @torch.no_grad()
    def __call__(self, images: Tensor, class_tokens: bool = False) -> tuple[Tensor, list[Tensor]]:
        """As `Students.forward`."""
        with self.arithmetic.autocast():
            return answer(self.form, images, class_tokens)


def divergence(student: Tensor, teacher: Tensor, temperature: float, head: bool) -> Tensor:
    """How far answers are from the teacher's, per image (B,).

    KL(teacher || student) of the softened probabilities in nats, times the square of the temperature so that gradients keep their size (Hinton
    et al. 2015, section 2). For a network without a head: the squared distance of the embeddings' directions, 2 - 2 cos.
    """
    student, teacher = student.float(), teacher.float()
    if not head:
        return 2 - 2 * functional.cosine_similarity(student, teacher, dim=-1)
    expected = (teacher / temperature).log_softmax(-1)
    given = (student / temperature).log_softmax(-1)
    return (expected.exp() * (expected - given)).sum(-1) * temperature**2


def loss_of(
    recipe: Recipe,
    student: tuple[Tensor, list[Tensor]],
    teacher: tuple[Tensor, list[Tensor]],
    labels: Tensor,
    head: bool,
    spread: Sequence[Tensor] = (),
) -> Tensor:
    """What a step minimises: divergence, and where the recipe says so, distance of class tokens and cross-entropy with the labels.

    Args:
        recipe: the weights of the parts, the temperature.
        student: answers and class tokens of B images.
        teacher: likewise.
        labels: (B,).
        head: whether answers are logits.
        spread: per block, how much the teacher's class token varies from image to image (a variance): the unit of its distance.
    """
    loss = divergence(student[0], teacher[0], recipe.temperature, head).mean()
    if recipe.class_tokens and student[1]:
        parts = [(mine.float() - own.float()).square().mean() / unit for mine, own, unit in zip(student[1], teacher[1], spread)]
        loss = loss + recipe.class_tokens * torch.stack(parts).mean()
    if recipe.labels:
        loss = loss + recipe.labels * functional.cross_entropy(student[0].float(), labels)
    return loss
