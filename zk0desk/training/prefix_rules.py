"""When the prefix is a constant, what it depends on, and how large it is: rules without arithmetic."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from zk0desk.training.frames import Frames
    from zk0desk.training.policy import TrainablePolicy
    from zk0desk.training.prefix_forward import Layer

Level = Literal["off", "N", "V", "P"]
"""What is computed once: nothing (LeRobot's forward); nothing, but the prefix has no gradient; vision embeddings; keys and values."""

FORMAT = 1
"""Raised when entries of the same key would hold other numbers."""
ATTENTION_MODES = ("cross_attn", "self_attn")
BACKBONE_MODULES = "model.vlm_with_expert.vlm."
_VISION = ("model.vision_model.", "model.connector.")
_WORDS = "model.text_model.embed_tokens."


def refusal(policy: TrainablePolicy, frames: Frames | None = None) -> str:
    """Why nothing of `policy` (on `frames`) may be computed once and kept; "" when it may."""
    from lerobot.policies.smolvla.modeling_smolvla import VLAFlowMatching
    from lerobot.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel

    model = policy.policy.model
    both: Any = getattr(model, "vlm_with_expert", None)
    if type(model) is not VLAFlowMatching or type(both) is not SmolVLMWithExpertModel:
        return f"The policy's model is a {type(model).__name__} over a {type(both).__name__}, not LeRobot's SmolVLA."
    trained = next((name for name, parameter in both.vlm.named_parameters() if parameter.requires_grad), None)
    if trained:
        return f"The backbone is trained too ({trained}): what it computes for a frame changes with every step."
    moving = next((name or "the backbone" for name, module in both.vlm.named_modules() if module.training), None)
    if moving:
        return f"The backbone is in training mode ({moving}): what it computes for a frame may be drawn at random."
    if both.attention_mode not in ATTENTION_MODES:
        return f"The attention mode {both.attention_mode!r} is not known; {' and '.join(ATTENTION_MODES)} are."
    unknown = _unknown_layers(both)
    if unknown:
        return unknown
    if frames is not None and any(table.pictures.transformed for table in frames.tables):
        return "The pictures are transformed at random: a frame looks different at every visit."
    return ""


def _unknown_layers(both: Any) -> str:
    """What of the arrangement of layers is not as it was when the step was written; "" when nothing is."""
    text = both.get_vlm_model().text_model
    if both.num_vlm_layers != len(text.layers) or both.num_expert_layers != len(both.lm_expert.layers):
        return "The numbers of layers do not agree with the layers that are there."
    if both.num_expert_layers < 1 or both.num_vlm_layers % both.num_expert_layers:
        return f"{both.num_expert_layers} layers of the expert cannot be laid beside {both.num_vlm_layers} of the backbone."
    if both.num_attention_heads % both.num_key_value_heads:
        return f"{both.num_attention_heads} heads cannot share the keys of {both.num_key_value_heads}."
    needed = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
    for layer in (*text.layers, *both.lm_expert.layers):
        parts = dict(layer.named_children())
        projections = {name for name, _ in parts["self_attn"].named_children()} if "self_attn" in parts else set()
        if set(parts) != needed or projections != {"q_proj", "k_proj", "v_proj", "o_proj"}:
            return f"A layer ({type(layer).__name__}) has other parts than SmolVLA's: {', '.join(sorted(set(parts) | projections))}."
    return ""


def frozen_parameters(policy: TrainablePolicy, level: Level, layers: Sequence[Layer], *, live: bool) -> Iterator[tuple[str, Any]]:
    """The backbone's parameters that `level` uses, by their names in the policy: for its entries, or (`live`) in a step over them."""
    both = policy.policy.model.vlm_with_expert
    prefixes: list[str] = [] if live and level in ("V", "P") else list(_VISION)
    if level != "V" or live:
        prefixes += [] if live and level == "P" else [_WORDS]
        for number in range(len(layers) - 1):
            prefixes.append(f"model.text_model.layers.{number}.")
        # Of the last layer only keys and values are read.
        last = f"model.text_model.layers.{len(layers) - 1}"
        prefixes += [f"{last}.input_layernorm.", f"{last}.self_attn.k_proj.", f"{last}.self_attn.v_proj."]
    for name, parameter in both.vlm.named_parameters(remove_duplicate=False):
        if name.startswith(tuple(prefixes)):
            yield BACKBONE_MODULES + name, parameter


def frozen_sha256(policy: TrainablePolicy, level: Level, layers: Sequence[Layer]) -> str:
    """Hex SHA-256 over name, type, shape and bytes of the frozen tensors that entries of `level` are computed from."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in sorted(frozen_parameters(policy, level, layers, live=False)):
        digest.update(f"{name} {parameter.dtype} {list(parameter.shape)}\n".encode())
        digest.update(parameter.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def key_parts(
    policy: TrainablePolicy,
    level: Level,
    *,
    storage: str,
    compute: str,
    frozen: str,
    layers: int,
    slots: Mapping[str, str],
    instruction: Sequence[int],
) -> dict[str, Any]:
    """All that an entry depends on but for the recording's content and the decoder; JSON. See `FrozenPrefix.key_parts`."""
    import torch

    config, model = policy.policy.config, policy.policy.model
    parts: dict[str, Any] = {
        "format": FORMAT,
        "level": level,
        "storage": storage,
        "compute": f"{compute}, matrices {torch.get_float32_matmul_precision()}",
        "lerobot": importlib.metadata.version("lerobot"),
        "transformers": importlib.metadata.version("transformers"),
        "frozen-sha256": frozen,
        "resize": list(config.resize_imgs_with_padding) if config.resize_imgs_with_padding else None,
        "cameras": [[slot, slots[slot]] for slot in config.image_features if slot in slots],
    }
    if level == "P":
        special = [*model.global_image_start_token.tolist(), *model.image_end_token.tolist()] if model.add_image_special_tokens else []
        parts |= {
            "empty-cameras": config.empty_cameras,
            "masked": "dropped",
            "special-tokens": special,
            "instruction": list(instruction),
            "layers": layers,
        }
    return parts


def picture_tokens(policy: TrainablePolicy, size: tuple[int, int] | None) -> int:
    """Tokens of one camera's picture; `size` is its (height, width) before it is resized, needed where a policy does not resize."""
    config, vlm = policy.policy.config, policy.policy.model.vlm_with_expert.vlm.config
    resize = config.resize_imgs_with_padding
    if resize is None and size is None:
        raise ValueError("this policy does not resize pictures: how many tokens they have depends on their size")
    height, width = (resize[1], resize[0]) if resize is not None else size  # type: ignore[misc]
    patch = vlm.vision_config.patch_size
    return (height // patch) * (width // patch) // vlm.scale_factor**2


def bytes_of(parameters: Sequence[torch.Tensor]) -> int:
    """Bytes that tensors take."""
    return sum(prod(each.shape) * each.element_size() for each in parameters)
