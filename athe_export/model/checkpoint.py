"""Checkpoint files: timm, Hugging Face and ATHE names in, ATHE fp16 safetensors out; strict about every tensor."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from athe_export.errors import CheckpointError
from athe_export.model.athe import AtheModel
from athe_export.model.deit import HeadRank
from athe_export.recipe import Recipe

RANK = "head_rank"
_HF_PREFIX = re.compile(r"^(vit|deit)\.")
_HF_NAMES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"^encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
_HF_QKV = re.compile(r"^encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)$")


@dataclass(frozen=True)
class Checkpoint:
    """Named float32 tensors (and an integer head rank) with the digest of the file they came from."""

    tensors: dict[str, Tensor]
    sha256: str | None
    trained: bool


def random_checkpoint(recipe: Recipe, seed: int) -> Checkpoint:
    """Untrained weights; a build of them is never gated."""
    model = AtheModel(recipe)
    model.initialise(seed)
    return Checkpoint(tensors_of(model), None, trained=False)


def read_checkpoint(path: Path, sha256: str | None = None) -> Checkpoint:
    """Reads `.safetensors` or `.pth` (tensors only, never arbitrary pickles) under timm's names.

    Raises:
        CheckpointError: missing, truncated, other digest, not a state dict, or values that are not finite.
    """
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as err:
        raise CheckpointError(
            f"cannot be read: {err.strerror}",
            where=str(path),
            remedy="correct checkpoint.path in the recipe, pass --checkpoint, or train it: athe-export train RECIPE",
        ) from None
    if sha256 is not None and digest != sha256:
        raise CheckpointError(
            f"sha256 is {digest}, the recipe says {sha256}",
            where=str(path),
            remedy="restore the file, or correct checkpoint.sha256 in the recipe if the change is meant",
        )
    tensors = _timm_names(_read_tensors(path), path)
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if bad:
        raise CheckpointError(
            f"holds NaN or infinite values in {_some(bad)}", where=str(path), remedy="train again or take an older file"
        )
    return Checkpoint({n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}, digest, trained=True)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    remedy = "copy the file again; .safetensors and .pth state dicts are understood"
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        safetensors.SafetensorError,
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        pickle.UnpicklingError,
    ) as err:
        reason = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise CheckpointError(f"truncated or not a checkpoint: {reason}", where=str(path), remedy=remedy) from None
    for wrapper in ("model", "state_dict", "tensors"):  # DeiT's, Lightning's and our own training state
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError("holds no state dict of tensors", where=str(path), remedy=remedy)
    return content


def _timm_names(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Hugging Face ViT/DeiT names -> timm's, q, k, v joined; other names pass through."""
    if any("distillation" in n or n.startswith("head_dist") or n == "dist_token" for n in tensors):
        raise CheckpointError(
            "is a distilled DeiT with a second class token, which this backbone does not have",
            where=str(path),
            remedy="use the plain variant, e.g. deit_tiny_patch16_224",
        )
    if not any("encoder.layer." in n for n in tensors):
        return tensors
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        short = _HF_PREFIX.sub("", name)
        if match := _HF_QKV.match(short):
            parts.setdefault(f"blocks.{match[1]}.attn.qkv.{match[3]}", {})[match[2]] = tensor
            continue
        for pattern, replacement in _HF_NAMES:
            short = re.sub(pattern, replacement, short)
        renamed[short] = tensor
    for name, qkv in parts.items():
        if len(qkv) == 3:
            renamed[name] = torch.cat([qkv["query"], qkv["key"], qkv["value"]])
    return renamed


def build_model(recipe: Recipe, checkpoint: Checkpoint, where: str) -> tuple[AtheModel, tuple[str, ...]]:
    """The recipe's model with the checkpoint's weights, in evaluation mode, and the tensors it had no use for.

    Only scorers, a router and a head rank that the recipe does not use may be left over; they are named.

    Raises:
        CheckpointError: tensors missing, extra or of another shape, all of them listed.
    """
    model = AtheModel(recipe)
    wanted = tensors_of(model)
    found = {n: t for n, t in checkpoint.tensors.items() if not n.endswith("num_batches_tracked")}
    problems = [f"  missing: {n}, {_shape(t)}" for n, t in wanted.items() if n not in found]
    problems += [
        f"  misshapen: {n} is {_shape(found[n])}, the recipe needs {_shape(t)}"
        for n, t in wanted.items()
        if n in found and found[n].shape != t.shape
    ]
    left = [n for n in found if n not in wanted and n != RANK]
    unused = tuple(n for n in left if n.startswith(("scorers.", "router.")))
    problems += [f"  extra: {n}, {_shape(found[n])}" for n in left if n not in unused]
    if RANK in found and all(b.heads == recipe.model.heads for b in recipe.branches):
        unused += (RANK,)
    rank = _head_rank(found.get(RANK), recipe)
    if isinstance(rank, str):
        problems.append(f"  {rank}")
        rank = None
    if problems:
        raise CheckpointError(
            "does not fit the recipe:\n" + "\n".join(problems[:40]) + _more(len(problems) - 40),
            where=where,
            remedy="correct model and branches in the recipe. A dense checkpoint has no scorers.* and router.*: "
            "train them (athe-export train), or use scorer: cls_attention and one branch without a router",
        )
    _load(model, {n: found[n] for n in wanted})
    model.head_rank = rank
    return model.eval(), unused


def tensors_of(model: AtheModel) -> dict[str, Tensor]:
    """Checkpoint names -> tensors of the model, head rank included once known."""
    held = model.state_dict()
    state = {name: held[own] for name, own in model.tensor_names().items()}
    if model.head_rank is not None:
        state[RANK] = torch.tensor(model.head_rank, dtype=torch.int64)
    return state


def load_tensors(model: AtheModel, tensors: dict[str, Tensor]) -> None:
    """Inverse of `tensors_of`."""
    _load(model, {n: t for n, t in tensors.items() if n != RANK})
    if RANK in tensors:
        model.head_rank = tuple(tuple(int(h) for h in row) for row in tensors[RANK])


def save_checkpoint(path: Path, model: AtheModel, metadata: dict[str, object]) -> str:
    """Writes fp16 safetensors (staged, then renamed) and returns the file's sha256."""
    tensors = {n: (t.half() if t.is_floating_point() else t).contiguous() for n, t in tensors_of(model).items()}
    content = save(tensors, {"athe_export": json.dumps(metadata, sort_keys=True)})
    staging = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    staging.write_bytes(content)
    staging.replace(path)
    return hashlib.sha256(content).hexdigest()


def grouped(names: Iterable[str]) -> str:
    """Tensor names as the parts that they belong to, with counts: `blocks.11 (12), scorers.simple (2)`."""
    parts = Counter(".".join(n.split(".")[: 2 if n.startswith(("blocks.", "scorers.")) else 1]) for n in names)
    return ", ".join(part if count == 1 else f"{part} ({count})" for part, count in parts.items())


def _load(model: AtheModel, tensors: dict[str, Tensor]) -> None:
    names = model.tensor_names()
    missing, unexpected = model.load_state_dict({names[n]: t for n, t in tensors.items()}, strict=False)
    assert not unexpected and all(n.endswith("num_batches_tracked") for n in missing), (missing, unexpected)


def _head_rank(tensor: Tensor | None, recipe: Recipe) -> HeadRank | str | None:
    if tensor is None:
        return None
    m = recipe.model
    rank = tuple(tuple(int(h) for h in row) for row in tensor) if tensor.dim() == 2 else ()
    if len(rank) != m.depth or any(sorted(row) != list(range(m.heads)) for row in rank):
        return f"misshapen: {RANK} is not an order of {m.heads} heads for each of {m.depth} blocks"
    return rank


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + _more(len(names) - 5)


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
