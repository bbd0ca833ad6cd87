"""Miniatures of Hugging Face configs: the same class and the same settings, few and narrow layers.

What a model does to packed, padded and long rows depends on its class and on its settings, not on how wide it is or
how many layers of a kind it has. A miniature costs milliseconds where the model itself has billions of parameters, so
every load can afford to compare one with the untouched model (``hf_verification``).
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable
from typing import Any

HEADS, HEAD_DIM, VOCABULARY = 4, 16, 128
WIDTH = HEADS * HEAD_DIM

WINDOW = 24
"""What a window shorter than the documents becomes: shorter than two of the three documents of the verification."""
BEYOND = 1024
"""What a window becomes that no document reaches the end of."""

_LAYERS = re.compile(
    r"(num_hidden_layers|num_layers|n_layers?|(num_)?(en|de)coder_layers|num_(en|de)coder_layers|num_blocks)$"
)
_WINDOWS = re.compile(
    r"(sliding_window(_size)?|attention_window|window_size|local_attention|attention_chunk_size|block_size"
    r"|index_topk|chunk_size|mamba_chunk_size|local_window|attention_window_size|(original_)?max_position_embeddings|n_positions"
    r"|max_sequence_length|max_seq_len|n_ctx|seq_length|lsh_attn_chunk_length|local_attn_chunk_length|swin|swa_window)$"
)
_REACH = {"local_attention": 2, "attention_window": 2}
"""Windows that count both sides."""
_ORIGINAL = "original_max_position_embeddings"
_TABLES = re.compile(r"(max_position_embeddings|n_positions|max_sequence_length|n_ctx|max_seq_len)$")

_HEADS = re.compile(
    r"(num_attention_heads|n_heads?|num_heads|attention_heads|(en|de)coder_attention_heads"
    r"|num_(en|de)coder_attention_heads|swa_num_attention_heads|index_n_heads|num_swa_attention_heads)$"
)
_KEY_HEADS = re.compile(
    r"(num_key_value_heads|num_kv_heads|n_kv_heads|kv_n_heads|swa_num_key_value_heads|num_swa_key_value_heads"
    r"|num_global_key_value_heads)$"
)
_SIZES: tuple[tuple[str, int], ...] = (
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
_SIZE_RULES = tuple((re.compile(pattern + "$"), value) for pattern, value in _SIZES)
_PERIODS = re.compile(
    r"(\w+_period|\w+_interval|\w+_every_n_layers|\w+_step|sliding_window_pattern|decoder_sparse_step"
    r"|interleave_moe_layer_step|\w+_layer_freq|hybrid_layer_period)$"
)


def miniature(config: Any, longest: int | None = None, *, window: int = WINDOW) -> Any:
    """A small copy of ``config``, which stays as it is.

    Every kind of layer is kept. Windows, blocks and chunks of positions stay on their side of ``longest``, the most
    tokens of a document: those that some document exceeds become ``window``, those that none does ``BEYOND``.
    """
    own = copy.deepcopy(config)
    _shrink(own, longest, window)
    return own


def reduced_layers(config: Any, longest: int | None = None, *, window: int = WINDOW) -> Any:
    """As ``miniature``, the layers as wide as they are: for configs whose widths depend on each other in ways that
    ``miniature`` does not know."""
    own = copy.deepcopy(config)
    _shrink(own, longest, window, widths=False)
    return own


def windows(config: Any) -> dict[str, int]:
    """Lengths in tokens that ``config`` names, by key; of several under one key the smallest."""
    found: dict[str, int] = {}
    for part in parts(config):
        for key, value in vars(part).items():
            if _is_window(key, value):
                found[key] = value // _REACH.get(key, 1)
            elif _is_windows(key, value):
                found[key] = min(value) // _REACH.get(key, 1)
        for rope in _ropes(getattr(part, "rope_parameters", None)):
            if _is_window(_ORIGINAL, rope.get(_ORIGINAL)):
                found[_ORIGINAL] = rope[_ORIGINAL]
    return found


def _is_window(key: str, value: Any) -> bool:
    return bool(_WINDOWS.match(key)) and isinstance(value, int) and not isinstance(value, bool) and value > 1


def _is_windows(key: str, value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_window(key, one) for one in value)


def parts(config: Any) -> list[Any]:
    """``config`` and the configs inside it."""
    from transformers import PreTrainedConfig

    found = [config]
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            found += parts(value)
    return found


def _shrink(config: Any, longest: int | None, window: int, *, widths: bool = True) -> None:
    for part in parts(config):
        if getattr(part, "_heterogeneity_spec", None):
            raise ValueError("its config has settings for single layers (per_layer_config)")
        _shrink_layers(part)
        _shrink_windows(part, longest, window)
        _shrink_tokens(part)
        if widths:
            _shrink_widths(part)


def _put(part: Any, key: str, value: Any) -> None:
    vars(part)[key] = value  # past validation, which looks at keys one by one


def _shrink_layers(part: Any) -> None:
    own = vars(part)
    counts = {k: v for k, v in own.items() if _LAYERS.match(k) and type(v) is int}
    for key, value in own.items():
        if _PERIODS.match(key) and type(value) is int and value > 2:
            _put(part, key, 2)
        elif re.match(r"\w+_layer_offset$", key) and type(value) is int and value > 1:
            _put(part, key, 1)
        elif re.match(r"first_k_dense_replace$|num_dense_layers$|moe_layer_start_index$", key) and type(value) is int:
            _put(part, key, min(1, value))
    lists = {}
    for count in sorted(set(counts.values())):
        lists = {
            k: v
            for k, v in own.items()
            if isinstance(v, list | tuple) and len(v) == count and count > 2 and not _is_index(v)
        }
        kinds = list(zip(*(map(repr, v) for v in lists.values()), strict=True)) if lists else []
        chosen = sorted({kind: i for i, kind in reversed(list(enumerate(kinds)))}.values())
        if kinds and len(chosen) < count:
            chosen = chosen if len(chosen) > 1 else [0, 1]
            for key, value in lists.items():
                _put(part, key, type(value)(value[i] for i in chosen))
        layers = len(chosen) if kinds else min(count, 4 if _has_kinds(part) else 2)
        layers = max(layers, min(count, len(own.get("block_types") or ())))
        for key, value in counts.items():
            if value == count:
                _put(part, key, layers)
        for key, value in own.items():
            numbers = isinstance(value, list) and value and all(type(one) is int for one in value)
            if numbers and key not in lists and re.search(r"layer_?(ids|idx|indices)|attn_idxs|_layers$", key):
                _put(part, key, [i for i in value if i < layers] or [layers - 1])
    for key, value in own.items():
        if re.match(r"num_(nextn_predict|mtp|kv_shared)_?layers$", key) and type(value) is int:
            _put(part, key, min(value, 0 if "shared" in key else 1))


def _is_index(value: Any) -> bool:
    """Whether ``value`` may list numbers of layers."""
    if not isinstance(value, list | tuple) or not value or not all(type(one) is int for one in value):
        return False
    return len(value) > 1 and all(a < b for a, b in itertools.pairwise(value))


def _has_kinds(part: Any) -> bool:
    return any(_PERIODS.match(key) or key.endswith("_offset") for key in vars(part))


def _shrink_windows(part: Any, longest: int | None, window: int) -> None:
    def placed(value: int, sides: int = 1) -> int:
        return window if longest is not None and value // sides < longest else BEYOND

    for key, value in list(vars(part).items()):
        if _TABLES.match(key) and type(value) is int:
            _put(part, key, BEYOND if longest is None or value >= longest else window)
        elif _is_window(key, value):
            _put(part, key, _near(key, placed(value, _REACH.get(key, 1))))
        elif _is_windows(key, value):
            _put(part, key, [placed(one, _REACH.get(key, 1)) for one in value])
    for rope in _ropes(getattr(part, "rope_parameters", None)):
        if _is_window(_ORIGINAL, rope.get(_ORIGINAL)):
            rope[_ORIGINAL] = placed(rope[_ORIGINAL])


def _near(key: str, value: int) -> int:
    """Blocks come in several to a document, so that those at its ends are not all there are."""
    return max(2, value // 6) if key == "block_size" and value < BEYOND else value


def _shrink_tokens(part: Any) -> None:
    vocabulary = getattr(part, "vocab_size", None)
    if not isinstance(vocabulary, int):
        return
    for key, value in list(vars(part).items()):
        if key.endswith(("_token_id", "_token_index")) and type(value) is int and value >= VOCABULARY:
            _put(part, key, value % 8 if key == "pad_token_id" else value % (VOCABULARY - 8) + 8)
        elif key.endswith(("_token_id", "_token_ids")) and isinstance(value, list):
            _put(part, key, [one % VOCABULARY if type(one) is int else one for one in value])


def _shrink_widths(part: Any) -> None:
    own = vars(part)
    heads = next((v for k, v in own.items() if _HEADS.match(k) and type(v) is int), None)
    rules: list[tuple[Callable[[str], Any], Callable[[int], int]]] = [
        (_HEADS.match, lambda v: min(v, HEADS)),
        (_KEY_HEADS.match, lambda v: HEADS if v == heads else min(v, 2)),
    ]
    rules += [(pattern.match, lambda v, n=n: min(v, n)) for pattern, n in _SIZE_RULES]  # type: ignore[misc]
    width = own.get("hidden_size") or own.get("d_model")
    doubled = isinstance(width, int) and own.get("attention_hidden_size") == 2 * width
    for key, value in list(own.items()):
        for matches, smaller in rules:
            if matches(key):
                if type(value) is int and value > 0:
                    full = key in ("embedding_size", "word_embed_proj_dim") and value == width
                    _put(part, key, WIDTH if full else smaller(value))
                elif isinstance(value, list) and value and all(type(one) is int for one in value):
                    _put(part, key, [smaller(one) for one in value])
                break
    if doubled:  # attention beside the embeddings (Zamba)
        _put(part, "attention_hidden_size", 2 * WIDTH)
        _put(part, "attention_head_dim", 2 * WIDTH // HEADS)
    for rope in _ropes(getattr(part, "rope_parameters", None)):
        for key in ("short_factor", "long_factor"):
            if isinstance(rope.get(key), list):
                share = rope.get("partial_rotary_factor", 1.0) or 1.0
                rope[key] = rope[key][: int(HEAD_DIM * share) // 2]
    expand = own.get("expand", own.get("mamba_expand"))
    if expand is not None:
        inner = int(expand * WIDTH)
        sizes = {"mamba_n_heads": inner // HEAD_DIM, "mamba_d_head": HEAD_DIM, "mamba_d_ssm": inner}
        groups = inner // HEAD_DIM if "mamba_headdim" in own else min(2, own.get("n_mamba_heads") or 1)
        sizes |= {"n_mamba_heads": groups}
        sizes |= {"mamba_num_heads": inner // HEAD_DIM, "mamba_head_dim": HEAD_DIM, "mamba_headdim": HEAD_DIM}
        if "mamba2" in str(own.get("model_type", type(part).model_type)):
            sizes |= {"num_heads": inner // HEAD_DIM}
        for key, value in sizes.items():
            if type(own.get(key)) is int:
                _put(part, key, value)


def _ropes(rope: Any) -> list[dict[str, Any]]:
    if not isinstance(rope, dict):
        return []
    return [rope, *(one for one in rope.values() if isinstance(one, dict))]


def position_table(config: Any) -> tuple[str, int] | None:
    """(key, value) of the number of positions, where ``config`` names one."""
    for part in (config.get_text_config(), config):
        for key, value in vars(part).items():
            if _TABLES.match(key) and type(value) is int and value > 0:
                return key, value
    return None


def set_positions(config: Any, value: int) -> None:
    """Give ``config`` so many positions."""
    for part in parts(config):
        for key, old in list(vars(part).items()):
            if _TABLES.match(key) and type(old) is int:
                _put(part, key, value)


def loss_keys(config: Any) -> dict[str, Any]:
    """Settings of ``config`` that may add terms to the loss, by key."""
    return {
        key: value
        for part in parts(config)
        for key, value in vars(part).items()
        if _LOSS.search(key) and value not in (None, False, 0, 0.0)
    }


_LOSS = re.compile(r"aux_loss|router_logits|router_z|z_loss|label_smoothing|mtp|nextn|loss_(weight|coef)")
