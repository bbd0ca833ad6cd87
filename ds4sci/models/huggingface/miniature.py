"""Miniatures of Hugging Face configs: same class and settings, few narrow layers.

The effect of packed, padded and long rows depends on the class and settings of a model, not on its width or the number
of layers of each type. A miniature runs in milliseconds even if the model has billions of parameters, so every load
can verify one against the original model (``verification``).
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable
from typing import Any

HEADS, HEAD_DIM, VOCABULARY = 4, 16, 128
WIDTH = HEADS * HEAD_DIM

SHORT_WINDOW = 24
"""Replaces a window shorter than the documents. Two of the three documents of the verification are longer."""
LONG_WINDOW = 1024
"""Replaces a window longer than every document."""

_LAYERS = re.compile(
    r"(num_hidden_layers|num_layers|n_layers?|(num_)?(en|de)coder_layers|num_(en|de)coder_layers|num_blocks)$"
)
_WINDOWS = re.compile(
    r"(sliding_window(_size)?|attention_window|window_size|local_attention|attention_chunk_size|block_size"
    r"|index_topk|chunk_size|mamba_chunk_size|local_window|attention_window_size|(original_)?max_position_embeddings|n_positions"
    r"|max_sequence_length|max_seq_len|n_ctx|seq_length|lsh_attn_chunk_length|local_attn_chunk_length|swin|swa_window)$"
)
_WINDOW_SIDES = {"local_attention": 2, "attention_window": 2}
"""Windows that extend to both sides of a token."""
_ORIGINAL_POSITIONS = "original_max_position_embeddings"
_POSITION_TABLES = re.compile(r"(max_position_embeddings|n_positions|max_sequence_length|n_ctx|max_seq_len)$")

_HEADS = re.compile(
    r"(num_attention_heads|n_heads?|num_heads|attention_heads|(en|de)coder_attention_heads"
    r"|num_(en|de)coder_attention_heads|swa_num_attention_heads|index_n_heads|num_swa_attention_heads)$"
)
_KEY_HEADS = re.compile(
    r"(num_key_value_heads|num_kv_heads|n_kv_heads|kv_n_heads|swa_num_key_value_heads|num_swa_key_value_heads"
    r"|num_global_key_value_heads)$"
)
_SIZE_PATTERNS: tuple[tuple[str, int], ...] = (
    (r"(\w+_)?vocab_size(_per_layer_input)?", VOCABULARY),
    (r"(text_)?hidden_size|d_model|n_embd|dim|emb_dim|embed_dim|word_embed_proj_dim|lru_width|embedding_dim"
     r"|attention_hidden_size|entity_emb_size|(pronunciation|shape)_embed_dim|d_latents", WIDTH),
    (r"embedding_size|input_embedding_size|output_embedding_size|intra_bottleneck_size|true_hidden_size",
     WIDTH // 2),
    (r"head_dim|attention_head_dim|v_head_dim|qk_nope_head_dim|d_kv|attention_key_size|swa_head_dim|swa_v_head_dim"
     r"|global_head_dim|index_head_dim|linear_key_head_dim|linear_value_head_dim|linear_head_dim|kda_head_dim",
     HEAD_DIM),
    (r"qk_rope_head_dim", HEAD_DIM),
    (r"rotary_dim", HEAD_DIM // 2),
    (r"qk_head_dim", 2 * HEAD_DIM),
    (r"num_latents|adapter_rank", 32),
    (r"q_lora_rank|kv_lora_rank|o_lora_rank|\w*_low_rank_dim", HEAD_DIM),
    (r"(\w+_)?(intermediate_size|ffn_dim|ffn_hidden_size|inner_dim|feed_forward_size)|n_inner|d_ff|hidden_dim|d_inner"
     r"|dim_ff|dense_attention_dim|ffw_dim|d_intermediate|pooler_dim|feed_forward_proj_dim|(mlp|expert)_hidden_dim",
     96),
    (r"num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_routed_experts", 4),
    (r"num_experts_per_tok|top_k|moe_k|num_experts_per_token|moe_top_k|num_selected_experts|top_k_experts", 2),
    (r"n_group|num_expert_group|n_groups|mamba_n_groups|mamba_ngroups|topk_group|topk_groups|zero_expert_num", 1),
    (r"state_size|mamba_d_state|ssm_state_size|mamba_state_dim", 8),
    (r"time_step_rank|mamba_dt_rank", 4),
    (r"linear_num_key_heads", 2),
    (r"linear_num_value_heads|linear_num_heads|kda_num_heads", 4),
    (r"hidden_size_per_layer_input|laurel_rank", 16),
)  # fmt: skip
_SIZE_RULES = tuple((re.compile(pattern + "$"), value) for pattern, value in _SIZE_PATTERNS)
_PERIODS = re.compile(
    r"(\w+_period|\w+_interval|\w+_every_n_layers|\w+_step|sliding_window_pattern|decoder_sparse_step"
    r"|interleave_moe_layer_step|\w+_layer_freq|hybrid_layer_period)$"
)


def shrink(config: Any, longest: int | None = None, *, window: int = SHORT_WINDOW) -> Any:
    """A miniature of ``config``, which is not modified.

    Every type of layer is kept. A window, block or chunk of positions shorter than ``longest``, the length of the
    longest document, becomes ``window``; a longer one becomes ``LONG_WINDOW``.
    """
    small = copy.deepcopy(config)
    _shrink_config(small, longest, window)
    return small


def reduce_layers(config: Any, longest: int | None = None, *, window: int = SHORT_WINDOW) -> Any:
    """Like ``shrink``, with the full width of the layers: for configs with dependencies between widths that ``shrink``
    does not know."""
    small = copy.deepcopy(config)
    _shrink_config(small, longest, window, widths=False)
    return small


def window_sizes(config: Any) -> dict[str, int]:
    """Lengths in tokens in ``config``, by key; the smallest if a key occurs several times."""
    found: dict[str, int] = {}
    for part in nested_configs(config):
        for key, value in vars(part).items():
            if _is_window(key, value):
                found[key] = value // _WINDOW_SIDES.get(key, 1)
            elif _is_window_list(key, value):
                found[key] = min(value) // _WINDOW_SIDES.get(key, 1)
        for rope in _rope_settings(getattr(part, "rope_parameters", None)):
            if _is_window(_ORIGINAL_POSITIONS, rope.get(_ORIGINAL_POSITIONS)):
                found[_ORIGINAL_POSITIONS] = rope[_ORIGINAL_POSITIONS]
    return found


def _is_window(key: str, value: Any) -> bool:
    return bool(_WINDOWS.match(key)) and isinstance(value, int) and not isinstance(value, bool) and value > 1


def _is_window_list(key: str, value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_window(key, item) for item in value)


def nested_configs(config: Any) -> list[Any]:
    """``config`` and the configs nested in it."""
    from transformers import PreTrainedConfig

    found = [config]
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            found += nested_configs(value)
    return found


def _shrink_config(config: Any, longest: int | None, window: int, *, widths: bool = True) -> None:
    for part in nested_configs(config):
        if getattr(part, "_heterogeneity_spec", None):
            raise ValueError("its config has different settings per layer (per_layer_config)")
        _shrink_layers(part)
        _shrink_windows(part, longest, window)
        _shrink_tokens(part)
        if widths:
            _shrink_widths(part)


def _set(part: Any, key: str, value: Any) -> None:
    vars(part)[key] = value  # bypasses validation, which checks one key at a time


def _shrink_layers(part: Any) -> None:
    settings = vars(part)
    counts = {k: v for k, v in settings.items() if _LAYERS.match(k) and type(v) is int}
    for key, value in settings.items():
        if _PERIODS.match(key) and type(value) is int and value > 2:
            _set(part, key, 2)
        elif re.match(r"\w+_layer_offset$", key) and type(value) is int and value > 1:
            _set(part, key, 1)
        elif re.match(r"first_k_dense_replace$|num_dense_layers$|moe_layer_start_index$", key) and type(value) is int:
            _set(part, key, min(1, value))
    lists = {}
    for count in sorted(set(counts.values())):
        lists = {
            k: v
            for k, v in settings.items()
            if isinstance(v, list | tuple) and len(v) == count and count > 2 and not _is_layer_index_list(v)
        }
        kinds = list(zip(*(map(repr, v) for v in lists.values()), strict=True)) if lists else []
        chosen = sorted({kind: i for i, kind in reversed(list(enumerate(kinds)))}.values())
        if kinds and len(chosen) < count:
            chosen = chosen if len(chosen) > 1 else [0, 1]
            for key, value in lists.items():
                _set(part, key, type(value)(value[i] for i in chosen))
        layers = len(chosen) if kinds else min(count, 4 if _has_layer_pattern(part) else 2)
        layers = max(layers, min(count, len(settings.get("block_types") or ())))
        for key, value in counts.items():
            if value == count:
                _set(part, key, layers)
        for key, value in settings.items():
            numbers = isinstance(value, list) and value and all(type(item) is int for item in value)
            if numbers and key not in lists and re.search(r"layer_?(ids|idx|indices)|attn_idxs|_layers$", key):
                _set(part, key, [i for i in value if i < layers] or [layers - 1])
    for key, value in settings.items():
        if re.match(r"num_(nextn_predict|mtp|kv_shared)_?layers$", key) and type(value) is int:
            _set(part, key, min(value, 0 if "shared" in key else 1))


def _is_layer_index_list(value: Any) -> bool:
    """Whether ``value`` may be a list of layer indices."""
    if not isinstance(value, list | tuple) or not value or not all(type(item) is int for item in value):
        return False
    return len(value) > 1 and all(a < b for a, b in itertools.pairwise(value))


def _has_layer_pattern(part: Any) -> bool:
    return any(_PERIODS.match(key) or key.endswith("_offset") for key in vars(part))


def _shrink_windows(part: Any, longest: int | None, window: int) -> None:
    def shortened(value: int, sides: int = 1) -> int:
        return window if longest is not None and value // sides < longest else LONG_WINDOW

    for key, value in list(vars(part).items()):
        if _POSITION_TABLES.match(key) and type(value) is int:
            _set(part, key, LONG_WINDOW if longest is None or value >= longest else window)
        elif _is_window(key, value):
            _set(part, key, _window_for_key(key, shortened(value, _WINDOW_SIDES.get(key, 1))))
        elif _is_window_list(key, value):
            _set(part, key, [shortened(item, _WINDOW_SIDES.get(key, 1)) for item in value])
    for rope in _rope_settings(getattr(part, "rope_parameters", None)):
        if _is_window(_ORIGINAL_POSITIONS, rope.get(_ORIGINAL_POSITIONS)):
            rope[_ORIGINAL_POSITIONS] = shortened(rope[_ORIGINAL_POSITIONS])


def _window_for_key(key: str, value: int) -> int:
    """``value``, or less for blocks: a document needs several, so that it has blocks away from its ends."""
    return max(2, value // 6) if key == "block_size" and value < LONG_WINDOW else value


def _shrink_tokens(part: Any) -> None:
    vocabulary = getattr(part, "vocab_size", None)
    if not isinstance(vocabulary, int):
        return
    for key, value in list(vars(part).items()):
        if key.endswith(("_token_id", "_token_index")) and type(value) is int and value >= VOCABULARY:
            _set(part, key, value % 8 if key == "pad_token_id" else value % (VOCABULARY - 8) + 8)
        elif key.endswith(("_token_id", "_token_ids")) and isinstance(value, list):
            _set(part, key, [item % VOCABULARY if type(item) is int else item for item in value])


def _shrink_widths(part: Any) -> None:
    settings = vars(part)
    heads = next((v for k, v in settings.items() if _HEADS.match(k) and type(v) is int), None)
    rules: list[tuple[Callable[[str], Any], Callable[[int], int]]] = [
        (_HEADS.match, lambda v: min(v, HEADS)),
        (_KEY_HEADS.match, lambda v: HEADS if v == heads else min(v, 2)),
    ]
    rules += [(pattern.match, lambda v, n=n: min(v, n)) for pattern, n in _SIZE_RULES]  # type: ignore[misc]
    width = settings.get("hidden_size") or settings.get("d_model")
    doubled = isinstance(width, int) and settings.get("attention_hidden_size") == 2 * width
    for key, value in list(settings.items()):
        for matches, smaller in rules:
            if matches(key):
                if type(value) is int and value > 0:
                    full = key in ("embedding_size", "word_embed_proj_dim") and value == width
                    _set(part, key, WIDTH if full else smaller(value))
                elif isinstance(value, list) and value and all(type(item) is int for item in value):
                    _set(part, key, [smaller(item) for item in value])
                break
    if doubled:  # attention on hidden states concatenated with the embeddings (Zamba)
        _set(part, "attention_hidden_size", 2 * WIDTH)
        _set(part, "attention_head_dim", 2 * WIDTH // HEADS)
    for rope in _rope_settings(getattr(part, "rope_parameters", None)):
        for key in ("short_factor", "long_factor"):
            if isinstance(rope.get(key), list):
                fraction = rope.get("partial_rotary_factor", 1.0) or 1.0
                rope[key] = rope[key][: int(HEAD_DIM * fraction) // 2]
    expand = settings.get("expand", settings.get("mamba_expand"))
    if expand is not None:
        inner = int(expand * WIDTH)
        sizes = {"mamba_n_heads": inner // HEAD_DIM, "mamba_d_head": HEAD_DIM, "mamba_d_ssm": inner}
        groups = inner // HEAD_DIM if "mamba_headdim" in settings else min(2, settings.get("n_mamba_heads") or 1)
        sizes |= {"n_mamba_heads": groups}
        sizes |= {"mamba_num_heads": inner // HEAD_DIM, "mamba_head_dim": HEAD_DIM, "mamba_headdim": HEAD_DIM}
        if "mamba2" in str(settings.get("model_type", type(part).model_type)):
            sizes |= {"num_heads": inner // HEAD_DIM}
        for key, value in sizes.items():
            if type(settings.get(key)) is int:
                _set(part, key, value)


def _rope_settings(rope: Any) -> list[dict[str, Any]]:
    if not isinstance(rope, dict):
        return []
    return [rope, *(item for item in rope.values() if isinstance(item, dict))]


def position_table(config: Any) -> tuple[str, int] | None:
    """(key, value) of the number of positions, or None if ``config`` has no such key."""
    for part in (config.get_text_config(), config):
        for key, value in vars(part).items():
            if _POSITION_TABLES.match(key) and type(value) is int and value > 0:
                return key, value
    return None


def set_positions(config: Any, value: int) -> None:
    """Set the number of positions in ``config``."""
    for part in nested_configs(config):
        for key, old in list(vars(part).items()):
            if _POSITION_TABLES.match(key) and type(old) is int:
                _set(part, key, value)


def auxiliary_loss_settings(config: Any) -> dict[str, Any]:
    """Settings of ``config`` that may add auxiliary terms to the loss, by key."""
    return {
        key: value
        for part in nested_configs(config)
        for key, value in vars(part).items()
        if _AUXILIARY_LOSS.search(key) and value not in (None, False, 0, 0.0)
    }


_AUXILIARY_LOSS = re.compile(r"aux_loss|router_logits|router_z|z_loss|label_smoothing|mtp|nextn|loss_(weight|coef)")
