"""SmolVLA in two parts: what its frozen part computes for a frame, and the action expert over that.

Image and language tokens (the prefix) attend to each other alone; the state token attends to them and itself, the
actions to all of it and to earlier actions. So keys and values of the prefix are constants of a frame, and a training
step needs the state token and the actions only. Modules are LeRobot's own, called as modules: whoever hooked them is
called, and precision follows the rules of LeRobot's forward. What differs is the order of the work and the attention,
which is PyTorch's.

Letters in shapes: B frames, T tokens of the prefix, A actions (the chunk), W = kv heads * head size, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WAVELENGTH = 10_000.0
"""Of the rotary position embedding, as LeRobot has it."""
STATE, ACTION, PADDED = "observation.state", "action", "action_is_pad"
TOKENS, TOKEN_MASK = "observation.language.tokens", "observation.language.attention_mask"


@dataclass(frozen=True)
class Layer:
    """A layer of the backbone and the expert's beside it, if any. `joint`: actions attend to the backbone's keys and values as
    they are, and to each other; else the expert projects them anew, and actions do not see each other."""

    vlm: Any
    expert: Any
    joint: bool


@dataclass(frozen=True)
class Heads:
    """Key and value heads, the query heads of each, and a head's size."""

    kv: int
    group: int
    size: int


@dataclass(frozen=True)
class Prefix:
    """Keys (after rotation) and values of the valid tokens of each layer, each (B, T, W), shorter frames filled up with zeros.

    `lengths` (B,) counts each frame's tokens; `filled` says whether any is shorter than T.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    lengths: Tensor
    filled: bool


def layers_of(vlm_with_expert: Any) -> list[Layer]:
    """The layers that matter to the actions: up to the last one that has an expert's beside it."""
    joint_every, cross = vlm_with_expert.self_attn_every_n_layers, "cross" in vlm_with_expert.attention_mode
    vlm, expert = vlm_with_expert.get_model_layers([vlm_with_expert.get_vlm_model().text_model, vlm_with_expert.lm_expert])
    layers = [
        Layer(vlm[n], expert[n], not cross or (joint_every > 0 and n % joint_every == 0)) for n in range(vlm_with_expert.num_vlm_layers)
    ]
    return layers[: 1 + max(n for n, layer in enumerate(layers) if layer.expert is not None)]


def heads_of(vlm_with_expert: Any) -> Heads:
    kv = vlm_with_expert.num_key_value_heads
    return Heads(kv, vlm_with_expert.num_attention_heads // kv, vlm_with_expert.vlm.config.text_config.head_dim)


def backbone_dtype(policy: Any) -> torch.dtype:
    """The type of the backbone's weights."""
    dtype: torch.dtype = policy.model.vlm_with_expert.get_vlm_model().text_model.layers[0].self_attn.k_proj.weight.dtype
    return dtype


# --- the frozen part -----------------------------------------------------------------------------------------------


def see(policy: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The connector's output for each camera that `batch` has, in the policy's order: (B, cameras, tokens, H)."""
    pictures, _ = policy.prepare_images(batch)
    embed = policy.model.vlm_with_expert.embed_image
    return torch.stack([embed(picture) for picture in pictures[: len(cameras_in(policy.config, batch))]], dim=1)


def cameras_in(config: Any, batch: Mapping[str, Any]) -> list[str]:
    """The cameras that a batch has, in the policy's order."""
    return [key for key in config.image_features if key in batch]


def empty_cameras(config: Any, cameras: int) -> int:
    """Cameras that LeRobot adds, masked, to a batch of so many."""
    return min(int(config.empty_cameras), len(config.image_features) - cameras)


def special_tokens(policy: Any, cameras: int) -> int:
    """Tokens that LeRobot puts around so many cameras' pictures, and around those that it adds."""
    model = policy.model
    each = len(model.global_image_start_token) + len(model.image_end_token) if model.add_image_special_tokens else 0
    return each * (cameras + empty_cameras(policy.config, cameras))


def embed(policy: Any, batch: Mapping[str, Tensor], vision: Tensor) -> tuple[Tensor, Tensor]:
    """The prefix's embeddings (B, T, H) without the masked ones, valid ones first, and their number (B,) for each frame."""
    model, config = policy.model, policy.config
    tokens = batch[TOKENS]
    frames, device = len(tokens), tokens.device

    def special(token: Tensor) -> Tensor:
        return model.vlm_with_expert.embed_language_tokens(token.to(device)).unsqueeze(0).expand(frames, -1, -1)

    def valid(count: int) -> Tensor:
        return torch.ones(frames, count, dtype=torch.bool, device=device)

    parts: list[Tensor] = []
    masks: list[Tensor] = []
    cameras = cameras_in(config, batch)
    if vision.shape[1] != len(cameras):
        raise ValueError(f"vision embeddings of {vision.shape[1]} cameras, the batch names {len(cameras)}")
    for number in range(len(cameras) + empty_cameras(config, len(cameras))):
        if model.add_image_special_tokens:  # LeRobot masks a camera's picture, not the tokens around it
            parts.append(special(model.global_image_start_token))
            masks.append(valid(parts[-1].shape[1]))
        if number < len(cameras):
            seen = vision[:, number]
            parts.append(seen * torch.tensor(seen.shape[-1] ** 0.5, dtype=seen.dtype, device=device))
            masks.append(valid(seen.shape[1]))
            if f"{cameras[number]}_padding_mask" in batch:
                masks[-1] = batch[f"{cameras[number]}_padding_mask"].bool()[:, None].expand_as(masks[-1])
        if model.add_image_special_tokens:
            parts.append(special(model.image_end_token))
            masks.append(valid(1))
    words = model.vlm_with_expert.embed_language_tokens(tokens)
    parts.append(words * math.sqrt(words.shape[-1]))
    masks.append(batch[TOKEN_MASK].bool())
    embedded, mask = torch.cat(parts, dim=1), torch.cat(masks, dim=1)
    # LeRobot joins the state token to them: the wider type of both is the type of all.
    embedded = embedded.to(torch.promote_types(embedded.dtype, model.state_proj.weight.dtype))
    lengths = mask.sum(dim=1)
    if bool(mask.all()):
        return embedded, lengths
    order = torch.argsort(~mask, dim=1, stable=True)[:, : int(lengths.max())]
    return embedded.gather(1, order[..., None].expand(-1, -1, embedded.shape[-1])), lengths


def frozen_prefix(layers: Sequence[Layer], heads: Heads, hidden: Tensor, lengths: Tensor) -> Prefix:
    """Keys and values of all `layers` for embeddings (B, T, H) of which each frame's first `lengths` (B,) are valid."""
    count = hidden.shape[1]
    filled = bool((lengths < count).any())
    positions = _rotation(torch.arange(count, device=hidden.device)[None], heads, hidden.dtype)
    # A frame without any token gets a row of its own to attend to: nobody reads it, and nothing becomes NaN.
    mask = _valid_mask(lengths.clamp_min(1), count)[:, None, None] if filled else None
    keys, values = [], []
    for layer in layers:
        attention = layer.vlm.self_attn
        normal = layer.vlm.input_layernorm(hidden).to(attention.q_proj.weight.dtype)
        keys.append(_turned(attention.k_proj(normal), positions, heads))
        values.append(attention.v_proj(normal))
        if layer is not layers[-1]:  # of the last layer, keys and values are all that is read
            query = _query(attention.q_proj(normal), positions, heads)
            hidden = _after_attention(layer.vlm, hidden, _attend(query, keys[-1], values[-1], heads, mask))
    return Prefix(keys, values, lengths, filled)


def unpacked(entries: Tensor | Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> Prefix:
    """The prefix that stored entries hold, each (layers, 2, tokens, W), in `dtype` on `device`; converted once, a block a layer."""
    counts = [entry.shape[2] for entry in entries]
    layers, _, _, width = entries[0].shape
    longest, filled = max(counts), min(counts) < max(counts)
    shape = (layers, 2, len(counts), longest, width)
    packed = torch.zeros(shape, dtype=dtype, device=device) if filled else torch.empty(shape, dtype=dtype, device=device)
    if isinstance(entries, Tensor):
        packed.copy_(entries.to(device, non_blocking=True).permute(1, 2, 0, 3, 4))
    else:
        for frame, entry in enumerate(entries):
            packed[:, :, frame, : counts[frame]].copy_(entry, non_blocking=True)
    lengths = torch.tensor(counts, device=device)
    return Prefix(packed[:, 0].unbind(), packed[:, 1].unbind(), lengths, filled)


# --- the trained part ----------------------------------------------------------------------------------------------


def action_losses(policy: Any, layers: Sequence[Layer], heads: Heads, prefix: Prefix, batch: Mapping[str, Tensor], noise: Tensor,
                  time: Tensor, reduction: str) -> Tensor:  # fmt: skip
    """LeRobot's loss over a prefix: a mean over the valid (time, dimension) entries, of all frames ("mean") or of each ("none")."""
    model, config = policy.model, policy.config
    state, actions = batch[STATE], batch[ACTION]
    if config.adapt_to_pi_aloha:  # LeRobot changes its batch in place; this one stays as it is
        state, actions = policy._pi_aloha_decode_state(state.clone()), policy._pi_aloha_encode_actions_inv(actions.clone())
    state = policy.prepare_state({STATE: state})
    actions = policy.prepare_action({ACTION: actions})
    moment = time[:, None, None]
    suffix, _, _ = model.embed_suffix(moment * noise + (1 - moment) * actions, time)
    token = model.state_proj(state)[:, None, :]
    token = token.to(torch.promote_types(token.dtype, layers[0].vlm.self_attn.k_proj.weight.dtype))
    out = _expert(model.vlm_with_expert.lm_expert, layers, heads, prefix, token, suffix)
    found = model.action_out_proj(out.to(torch.promote_types(out.dtype, torch.float32)))
    losses = functional.mse_loss(noise - actions, found, reduction="none")[:, :, : config.action_feature.shape[0]]
    return _reduced(losses, batch.get(PADDED), reduction)


def _expert(expert: Any, layers: Sequence[Layer], heads: Heads, prefix: Prefix, state: Tensor, actions: Tensor) -> Tensor:
    """The expert's output for the actions (B, A, H expert), given the state token (B, 1, H)."""
    count, chunk = prefix.keys[0].shape[1], actions.shape[1]
    own = torch.arange(chunk, device=actions.device)[None]
    at = prefix.lengths[:, None] if prefix.filled else prefix.lengths[:1, None]
    state_turn = _rotation(at, heads, state.dtype)
    joint_turn, cross_turn = _rotation(at + 1 + own, heads, actions.dtype), _rotation(own, heads, actions.dtype)
    seen, joint_mask = _masks(prefix, count, chunk, heads)
    for layer, fixed_keys, fixed_values in zip(layers, prefix.keys, prefix.values, strict=True):
        attention = layer.vlm.self_attn
        normal = layer.vlm.input_layernorm(state).to(attention.q_proj.weight.dtype)
        state_key, state_value = _turned(attention.k_proj(normal), state_turn, heads), attention.v_proj(normal)
        keys, values = torch.cat([fixed_keys, state_key], dim=1), torch.cat([fixed_values, state_value], dim=1)
        if layer.expert is not None:
            own_attention = layer.expert.self_attn
            own_normal = layer.expert.input_layernorm(actions).to(own_attention.q_proj.weight.dtype)
            if layer.joint:
                query = _query(own_attention.q_proj(own_normal), joint_turn, heads)
                all_keys = torch.cat([keys, _turned(own_attention.k_proj(own_normal), joint_turn, heads)], dim=1)
                all_values = torch.cat([values, own_attention.v_proj(own_normal)], dim=1)
                attended = _attend(query, all_keys, all_values, heads, joint_mask)
            else:
                query = _query(own_attention.q_proj(own_normal), cross_turn, heads)
                read_keys = _read(own_attention.k_proj, fixed_keys, state_key)
                read_values = _read(own_attention.v_proj, fixed_values, state_value)
                attended = _attend(query, read_keys, read_values, heads, seen)
            actions = _after_attention(layer.expert, actions, attended)
        if layer is not layers[-1]:
            query = _query(attention.q_proj(normal), state_turn, heads)
            state = _after_attention(layer.vlm, state, _attend(query, keys, values, heads, seen))
    return expert.norm(actions)


def _read(projection: nn.Module, fixed: Tensor, state: Tensor) -> Tensor:
    """What the expert makes of keys or values. Apart, as those of the prefix need no gradient of their own."""
    return torch.cat([projection(each.to(projection.weight.dtype)) for each in (fixed, state)], dim=1)


def _masks(prefix: Prefix, count: int, chunk: int, heads: Heads) -> tuple[Tensor | None, Tensor]:
    """Which of prefix and state a token may attend to (None: all of them), and which of prefix, state and actions an action may."""
    device = prefix.lengths.device
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=device).tril()
    if not prefix.filled:
        everything = torch.ones(chunk, count + 1, dtype=torch.bool, device=device)
        return None, torch.cat([everything, causal], dim=1).repeat(heads.group, 1)
    # The state token is always valid: no row is masked as a whole.
    valid = functional.pad(_valid_mask(prefix.lengths, count), (0, 1), value=True)
    frames = len(valid)
    joint = torch.cat([valid[:, None].expand(-1, chunk, -1), causal.expand(frames, -1, -1)], dim=2)
    return valid[:, None, None], joint.repeat(1, heads.group, 1)[:, None]


def _valid_mask(lengths: Tensor, count: int) -> Tensor:
    return torch.arange(count, device=lengths.device) < lengths[:, None]


def _reduced(losses: Tensor, padded: Tensor | None, reduction: str) -> Tensor:
    if padded is None:
        return losses.mean(dim=(1, 2)) if reduction == "none" else losses.mean()
    valid = ~padded
    losses = losses * valid.unsqueeze(-1)
    if reduction == "none":
        return losses.sum(dim=(1, 2)) / (valid.sum(dim=1) * losses.shape[-1]).clamp_min(1)
    return losses.sum() / (valid.sum() * losses.shape[-1]).clamp_min(1)


# --- what both have in common --------------------------------------------------------------------------------------


def _rotation(positions: Tensor, heads: Heads, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine (B or 1, tokens, head size / 2) of the rotary position embedding, float32 or wider."""
    wide = torch.promote_types(dtype, torch.float32)
    half = heads.size // 2
    scale = WAVELENGTH ** ((2.0 / heads.size) * torch.arange(half, dtype=wide, device=positions.device))
    radians = positions[..., None].to(wide) / scale
    return torch.cos(radians), torch.sin(radians)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def _turned(keys: Tensor, turn: tuple[Tensor, Tensor], heads: Heads) -> Tensor:
    """Keys (B, tokens, W), rotated."""
    cos, sin = turn
    return _rotate(keys.unflatten(-1, (heads.kv, heads.size)), cos.unsqueeze(2), sin.unsqueeze(2)).flatten(2)


def _query(query: Tensor, turn: tuple[Tensor, Tensor], heads: Heads) -> Tensor:
    """Queries (B, tokens, heads * size), rotated, as (B, kv heads, group * tokens, size): the heads that share keys are rows of one."""
    cos, sin = turn
    grouped = query.unflatten(-1, (heads.kv, heads.group, heads.size)).permute(0, 2, 3, 1, 4)
    return _rotate(grouped, cos[:, None, None], sin[:, None, None]).flatten(2, 3)


def _attend(query: Tensor, keys: Tensor, values: Tensor, heads: Heads, mask: Tensor | None) -> Tensor:
    """Attention of grouped queries to keys and values (B, tokens, W): (B, tokens, heads * size)."""
    keys, values = (each.unflatten(-1, (heads.kv, heads.size)).transpose(1, 2) for each in (keys, values))
    if not query.dtype == keys.dtype == values.dtype:  # a backbone of 16 bits beside an expert of 32
        wide = torch.promote_types(torch.promote_types(query.dtype, keys.dtype), values.dtype)
        query, keys, values = query.to(wide), keys.to(wide), values.to(wide)
    if query.device.type == "cpu" and query.dtype in (torch.float32, torch.float64):
        # As fast as PyTorch's kernel here, whose exponential is an approximation: so rounding stays that of LeRobot's forward.
        scores = torch.matmul(query * heads.size**-0.5, keys.transpose(2, 3))
        if mask is not None:
            scores += torch.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
        found = torch.matmul(functional.softmax(scores, dim=-1), values)
    else:
        found = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    return found.unflatten(2, (heads.group, -1)).permute(0, 3, 1, 2, 4).flatten(2)


def _after_attention(layer: nn.Module, hidden: Tensor, attended: Tensor) -> Tensor:
    """The rest of a layer. Additions are in place, as LeRobot's are: so the projection's type is the type of what follows."""
    out = layer.self_attn.o_proj(attended.to(layer.self_attn.o_proj.weight.dtype))
    out += hidden
    further = layer.mlp(layer.post_attention_layernorm(out))
    further += out
    return further
