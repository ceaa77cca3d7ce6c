"""Makes tiny random decoder models, one directory each, with reference values by transformers (written with 5.23).

    python make_families.py [--out DIR] [NAME ...]        (default: the folder `families` beside this file, all names)

Each directory holds config.json and model.safetensors as transformers saves them, and golden.json and golden.safetensors:
prompt{i}.ids, .logits [T, V] of every position, .greedy 24 ids (prefill, then one-token steps with a KV cache; eos does not stop),
prompt2.greedy_logits_last8, prompt1.hidden.{embed,layerN,norm}, prompt3.last4_hidden.*.
Arithmetic: float32 on the stored weights, eager attention, batch of one, one thread. The same versions give the same bytes.
`_old` marks a config.json in transformers 4 keys. Every parameter has noise, the row of pad_token_id too."""
import argparse, copy, json, logging, os, warnings, zlib
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore"); logging.disable(logging.WARNING)
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar
disable_progress_bar()

VOCAB, STEPS, LENGTHS, MARGIN = 211, 24, (1, 7, 35, 50), 5e-3
S, F = "sliding_attention", "full_attention"

def rope(theta=10000.0, kind="default", **kw): return dict(rope_type=kind, rope_theta=theta, **kw)
def eps(key): return {key: 1e-3}
RMS, LN = eps("rms_norm_eps"), eps("layer_norm_eps")
FOUR = dict(num_hidden_layers=4, intermediate_size=16, layer_types=[S, S, S, F], sliding_window=16)
SHORT = [1.0, 1.05, 1.02, 1.12, 1.3, 1.14, 1.4, 1.26]; LONG = [1.1, 1.72, 1.65, 5.01, 2.19, 7.98, 2.25, 5.66]

# name: (model_type, config, options). Options: dtype (stored), old (transformers 4 keys), switch (longrope: the length after which frequencies change)
MODELS = {
    "arcee": ("arcee", dict(RMS, attention_bias=True, mlp_bias=True, head_dim=24, tie_word_embeddings=True, rope_parameters=rope(5000.0)), {}),
    "cohere": ("cohere", dict(LN, attention_bias=True, logit_scale=0.4, tie_word_embeddings=True, rope_parameters=rope(500000.0)), {}),
    "cohere2": ("cohere2", dict(LN, **FOUR, logit_scale=0.6, tie_word_embeddings=True, attention_bias=True), {}),
    "cohere2_old": ("cohere2", dict(LN, **FOUR, logit_scale=0.6), dict(old=True, drop=["layer_types", "head_dim", "tie_word_embeddings"], add=dict(sliding_window_pattern=4))),
    "ernie4_5": ("ernie4_5", dict(RMS, use_bias=True, head_dim=24, tie_word_embeddings=False, rope_parameters=rope(500000.0)), {}),
    "exaone4": ("exaone4", dict(RMS, **FOUR, tie_word_embeddings=True, rope_parameters=rope(1000000.0)), {}),
    "exaone4_full": ("exaone4", dict(RMS, sliding_window=None, layer_types=[F, F], tie_word_embeddings=False, rope_parameters=rope()), {}),
    "glm": ("glm", dict(RMS, attention_bias=True, head_dim=20, tie_word_embeddings=False, rope_parameters=rope(partial_rotary_factor=0.5)), {}),
    "glm4": ("glm4", dict(RMS, attention_bias=False, head_dim=24, tie_word_embeddings=True, rope_parameters=rope(partial_rotary_factor=0.5)), {}),
    "glm4_bias": ("glm4", dict(RMS, attention_bias=True, head_dim=16, tie_word_embeddings=False, rope_parameters=rope(5000.0, partial_rotary_factor=0.75)), {}),
    "helium": ("helium", dict(RMS, attention_bias=True, mlp_bias=True, head_dim=16, tie_word_embeddings=False, rope_parameters=rope(100000.0)), {}),
    "helium_tied": ("helium", dict(RMS, attention_bias=False, mlp_bias=False, head_dim=16, tie_word_embeddings=True, rope_parameters=rope(20000.0)), {}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", dict(RMS, attention_bias=True, head_dim=24, tie_word_embeddings=True, rope_parameters=rope()), {}),
    "hunyuan_alpha_old": ("hunyuan_v1_dense", dict(RMS, head_dim=16, tie_word_embeddings=True, rope_parameters=rope(10000.0, "dynamic", factor=1.0, alpha=1000.0,
        beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0)), dict(old=True)),
    "nemotron": ("nemotron", dict(eps("norm_eps"), attention_bias=True, mlp_bias=True, head_dim=16, tie_word_embeddings=False, rope_parameters=rope(partial_rotary_factor=1.0)), {}),
    "nemotron_partial": ("nemotron", dict(eps("norm_eps"), head_dim=24, tie_word_embeddings=True, rope_parameters=rope(partial_rotary_factor=0.5)), {}),
    "olmo": ("olmo", dict(tie_word_embeddings=False, attention_bias=True, rope_parameters=rope()), {}),
    "olmo_clip": ("olmo", dict(tie_word_embeddings=True, clip_qkv=1.2, rope_parameters=rope()), {}),
    "olmo3": ("olmo3", dict(RMS, **FOUR, attention_bias=True, tie_word_embeddings=True, rope_parameters={S: rope(5000.0), F: rope(200000.0)}), {}),
    "olmo3_yarn_old": ("olmo3", dict(RMS, **FOUR, tie_word_embeddings=False, rope_parameters={S: rope(500000.0), F: rope(500000.0, "yarn",
        factor=8.0, original_max_position_embeddings=16, beta_fast=1.0, beta_slow=0.05, attention_factor=1.2079441541679836)}), dict(old=True)),
    "phi": ("phi", dict(LN, tie_word_embeddings=False, rope_parameters=rope(partial_rotary_factor=0.5)), {}),
    "phi_tied": ("phi", dict(LN, tie_word_embeddings=True, rope_parameters=rope(partial_rotary_factor=0.25)), {}),
    "seed_oss": ("seed_oss", dict(RMS, attention_bias=True, attention_out_bias=True, mlp_bias=True, head_dim=20, tie_word_embeddings=False, rope_parameters=rope(1000000.0)), {}),
    "seed_oss_nobias": ("seed_oss", dict(RMS, attention_bias=False, attention_out_bias=False, mlp_bias=False, head_dim=16, tie_word_embeddings=True, rope_parameters=rope()), {}),
    "stablelm": ("stablelm", dict(LN, use_qkv_bias=True, tie_word_embeddings=False, rope_parameters=rope(partial_rotary_factor=0.25)), {}),
    "stablelm_parallel": ("stablelm", dict(LN, use_parallel_residual=True, tie_word_embeddings=True, rope_parameters=rope(partial_rotary_factor=0.5)), {}),
    "stablelm_qk": ("stablelm", dict(LN, qk_layernorm=True, use_parallel_residual=True, tie_word_embeddings=True, rope_parameters=rope(partial_rotary_factor=0.25)), {}),
    "starcoder2": ("starcoder2", dict(eps("norm_epsilon"), use_bias=True, sliding_window=16, tie_word_embeddings=True, rope_parameters=rope(100000.0)), {}),
    "starcoder2_nobias": ("starcoder2", dict(eps("norm_epsilon"), use_bias=False, sliding_window=None, tie_word_embeddings=False, rope_parameters=rope()), {}),
    "vaultgemma": ("vaultgemma", dict(RMS, head_dim=24, attention_bias=True, sliding_window=16, query_pre_attn_scalar=20, attn_logit_softcapping=8.0,
        final_logit_softcapping=10.0, tie_word_embeddings=True, rope_parameters=rope()), {}),
    "gemma2_nocaps": ("gemma2", dict(RMS, head_dim=20, sliding_window=16, query_pre_attn_scalar=20, attn_logit_softcapping=None, final_logit_softcapping=None,
        tie_word_embeddings=False, attention_bias=True, rope_parameters=rope()), {}),
    "llama_dynamic_old": ("llama", dict(RMS, max_position_embeddings=32, tie_word_embeddings=False, rope_parameters=rope(10000.0, "dynamic", factor=2.0)), dict(old=True, dynamic=32)),
    "llama_yarn": ("llama", dict(RMS, max_position_embeddings=64, tie_word_embeddings=True, rope_parameters=rope(500.0, "yarn", factor=4.0,
        original_max_position_embeddings=16, beta_fast=1.0, beta_slow=0.05)), {}),
    "llama_yarn_mscale": ("llama", dict(RMS, max_position_embeddings=64, tie_word_embeddings=True, head_dim=24, rope_parameters=rope(10000.0, "yarn", factor=4.0,
        original_max_position_embeddings=16, beta_fast=0.8, beta_slow=0.02, mscale=1.5, mscale_all_dim=0.5, truncate=False)), {}),
    "llama_longrope": ("llama", dict(RMS, max_position_embeddings=128, tie_word_embeddings=True, rope_parameters=rope(10000.0, "longrope",
        short_factor=SHORT, long_factor=LONG, original_max_position_embeddings=16)), dict(switch=16)),
    "phi3_partial": ("phi3", dict(RMS, max_position_embeddings=512, original_max_position_embeddings=33, tie_word_embeddings=True, rope_parameters=rope(10000.0, "longrope",
        partial_rotary_factor=0.75, short_factor=SHORT[:6], long_factor=LONG[:6])), dict(switch=33)),
    "granitemoe": ("granitemoe", dict(RMS, num_local_experts=5, num_experts_per_tok=2, intermediate_size=20, attention_multiplier=0.3, embedding_multiplier=2.0,
        residual_multiplier=0.6, logits_scaling=1.5, tie_word_embeddings=True, rope_parameters=rope()), {}),
    "granitemoeshared": ("granitemoeshared", dict(RMS, num_local_experts=4, num_experts_per_tok=3, intermediate_size=16, shared_intermediate_size=24, attention_multiplier=0.2,
        embedding_multiplier=2.0, residual_multiplier=0.6, logits_scaling=1.5, tie_word_embeddings=False, rope_parameters=rope()), {}),
    "qwen3_moe_sparse": ("qwen3_moe", dict(RMS, head_dim=16, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True, tie_word_embeddings=True,
        rope_parameters=rope(1000000.0)), {}),
    "qwen2_untied_f16": ("qwen2", dict(RMS, tie_word_embeddings=False, rope_parameters=rope(1000000.0)), dict(dtype=torch.float16)),
    "llama_f32": ("llama", dict(RMS, num_key_value_heads=1, intermediate_size=32, tie_word_embeddings=True, rope_parameters=rope()), dict(dtype=torch.float32)),
}
BASE = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2)

def generator(*key): return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))

def build(name, path):
    """Writes config.json and model.safetensors."""
    kind, config, opt = MODELS[name]; dtype = opt.get("dtype", torch.bfloat16)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **copy.deepcopy({**BASE, **config})), attn_implementation="eager").float()
    with torch.no_grad():
        for n, p in model.named_parameters():       # norms keep their 1 (or 0), biases their 0; matrices and embeddings (the padding row too) are noise only
            r = torch.randn(p.shape, generator=generator(name, n))
            stored = 0.0 if kind == "nemotron" else p.mean().round()       # nemotron's norms store w - 1
            p.copy_(r * 0.25 if p.ndim > 1 else stored + r * 0.3)
    model.to(dtype).save_pretrained(path)
    for f in os.listdir(path):
        if f not in ("config.json", "model.safetensors"): os.remove(os.path.join(path, f))
    if opt.get("old"):                              # rewrite in transformers 4 keys
        f = os.path.join(path, "config.json"); j = json.load(open(f))
        r = j.pop("rope_parameters"); r = r.get(F, r); theta = r.pop("rope_theta"); partial = r.pop("partial_rotary_factor", None)
        for k in opt.get("drop", []): j.pop(k, None)
        j.update(opt.get("add", {}), transformers_version="4.46.0", rope_theta=theta, torch_dtype=j.pop("dtype"))
        if partial is not None: j["partial_rotary_factor"] = partial
        k = r.pop("rope_type"); j["rope_scaling"] = None if k == "default" else dict(type=k, **r) if kind != "olmo3" else dict(rope_type=k, **r)
        with open(f, "w") as o: o.write(json.dumps(j, indent=2) + "\n")

class Reference:
    def __init__(s, path, attn="eager", double=False):
        experts = dict(experts_implementation="eager") if "num_local_experts" in open(os.path.join(path, "config.json")).read() else {}       # the others know no F64
        s.make = lambda: (lambda m: m.double() if double else m)(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=attn, **experts).eval())
        s.model = s.make()
    def fresh(s): s.model = s.make()                # dynamic rope keeps state in the model
    @torch.no_grad()
    def logits(s, ids): return s.model(input_ids=ids[None], use_cache=False).logits[0]
    @torch.no_grad()
    def greedy(s, ids, steps=STEPS):
        """ids, the logits which chose them, the smallest gap between the best two"""
        out, rows, cache, x = [], [], None, ids[None]
        for _ in range(steps):
            r = s.model(input_ids=x, past_key_values=cache, use_cache=True); cache = r.past_key_values
            rows.append(r.logits[0, -1]); x = rows[-1].argmax()[None, None]; out.append(x.item())
        rows = torch.stack(rows); top = rows.topk(2).values
        return torch.tensor(out), rows, (top[:, 0] - top[:, 1]).min().item()
    def hidden(s, ids):
        got, core = {}, s.model.model; norm = core.norm if hasattr(core, "norm") else core.final_layernorm
        first = lambda o: (o[0] if isinstance(o, tuple) else o)[0].detach().clone()
        hooks = [core.layers[0].register_forward_pre_hook(lambda m, a, k: got.__setitem__("embed", first(a[0] if a else k["hidden_states"])), with_kwargs=True),
                 norm.register_forward_hook(lambda m, a, o: got.__setitem__("norm", first(o)))]
        for i, l in enumerate(core.layers):
            hooks.append(l.register_forward_hook(lambda m, a, o, i=i: got.__setitem__(f"layer{i}", first(o))))
        s.logits(ids)
        for h in hooks: h.remove()
        return got

def golden(name, path):
    kind, config, opt = MODELS[name]; ref = Reference(path); rough = Reference(path, double=True)
    sdpa = None if "attn_logit_softcapping" in config else Reference(path, "sdpa")
    dynamic = "dynamic" in opt; limit = opt.get("dynamic") or opt.get("switch")
    def clean():
        if dynamic: [r.fresh() for r in (ref, rough, sdpa) if r]
    t, prompts, noise, every = {}, [], dict(f32_vs_f64=0.0, sdpa_vs_eager=None if sdpa is None else 0.0, cached_vs_uncached=0.0), []
    for i, n in enumerate(LENGTHS):
        for attempt in range(200):
            ids = torch.randint(0, VOCAB, (n,), generator=generator(name, "prompt", i, attempt))
            if n > 20: ids[n // 2] = 0              # the padding token as text
            clean(); ids_out, rows, margin = ref.greedy(ids)
            if margin >= MARGIN: break
        else: raise SystemExit(f"{name}: no prompt {i} with margin {MARGIN}")
        clean(); y = ref.logits(ids); every.append(y.flatten())
        t[f"prompt{i}.ids"], t[f"prompt{i}.logits"], t[f"prompt{i}.greedy"] = ids, y, ids_out
        p = dict(length=n, ids=ids.tolist(), greedy=ids_out.tolist(), smallest_margin_of_greedy=float(f"{margin:.4g}"))
        crosses = limit is not None and n + STEPS - 1 > limit and (dynamic or n <= limit)
        if crosses:                                 # keys in the cache keep the frequencies of the step that made them
            p["greedy_crosses_rope_switch"] = True; p["greedy_ids_before_switch"] = max(1, limit - n + 1)
            seq = ids                               # for comparison: decoding without a cache, all positions by the current length
            for _ in range(STEPS): clean(); seq = torch.cat([seq, ref.logits(seq)[-1].argmax()[None]])
            p["greedy_uncached"] = seq[n:].tolist()
        prompts.append(p)
        clean(); noise["f32_vs_f64"] = max(noise["f32_vs_f64"], (rough.logits(ids) - y).abs().max().item())
        if sdpa: noise["sdpa_vs_eager"] = max(noise["sdpa_vs_eager"], (sdpa.logits(ids) - y).abs().max().item())
        if not crosses:
            full = ref.logits(torch.cat([ids, ids_out[:-1]]))[n - 1:]
            noise["cached_vs_uncached"] = max(noise["cached_vs_uncached"], (full - rows).abs().max().item())
        clean()
        if i == 1: t.update({f"prompt1.hidden.{k}": v for k, v in ref.hidden(ids).items()})
        if i == 2: t["prompt2.greedy_logits_last8"] = rows[-8:]
        if i == 3: t.update({f"prompt3.last4_hidden.{k}": v[-4:] for k, v in ref.hidden(ids).items()})
    save_file({k: v.contiguous().clone() for k, v in t.items()}, os.path.join(path, "golden.safetensors"))
    every = torch.cat(every); short = lambda x: None if x is None else float(f"{x:.3g}")
    head = dict(model_type=kind, config_style="old (rope_theta, rope_scaling, torch_dtype)" if opt.get("old") else "new (rope_parameters, dtype)",
                stored_dtype=str(opt.get("dtype", torch.bfloat16)).split(".")[1], computed="float32, eager attention, torch CPU, batch of one")
    line = ",\n".join(f' "{k}": {json.dumps(v)}' for k, v in head.items())
    body = ",\n".join("  {\n" + ",\n".join(f'   "{k}": {json.dumps(v)}' for k, v in p.items()) + "\n  }" for p in prompts)
    tail = dict(logits=dict(std=round(every.std().item(), 3), absmax=round(every.abs().max().item(), 3)), noise_max_abs={k: short(v) for k, v in noise.items()})
    with open(os.path.join(path, "golden.json"), "w") as f:
        f.write("{\n" + line + ',\n "prompts": [\n' + body + "\n ],\n" + ",\n".join(f' "{k}": {json.dumps(v)}' for k, v in tail.items()) + "\n}\n")
    return dict(margin=min(p["smallest_margin_of_greedy"] for p in prompts), **tail["logits"], **tail["noise_max_abs"])

def main():
    a = argparse.ArgumentParser(); a.add_argument("names", nargs="*"); a.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "families")); a = a.parse_args()
    torch.set_num_threads(1)
    for name in a.names or MODELS:
        path = os.path.join(a.out, name); os.makedirs(path, exist_ok=True)
        build(name, path); got = golden(name, path)
        size = sum(os.path.getsize(os.path.join(path, f)) for f in os.listdir(path))
        print(f"{name:20s} {size/1000:6.0f} kB  " + "  ".join(f"{k} {v}" for k, v in got.items()), flush=True)

if __name__ == "__main__": main()
