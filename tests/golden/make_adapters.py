"""Makes PEFT adapters of the tiny models beside this file, with reference values (written with peft 0.21.2, transformers 5.23).

    python make_adapters.py [--out DIR] [NAME ...]        (default: the folder `adapters` beside this file, all names)

Each directory holds adapter_config.json and adapter_model.safetensors as PEFT saves them, golden.json (the base model, what it is
for) and golden.safetensors: of a decoder prompt0.{ids,logits,merged_logits}, of an encoder `embeddings` of its golden texts, pooled
by the mean and normalised. Arithmetic: float32 on the stored weights, eager attention, one sequence at a time.
What they hold beyond `lora/`: fused projections, other families, biases, tied matrices, patterns of every kind, an encoder.

Those of classifiers lie in `reranker_adapters`, and hold `logits`: of the pairs of the base's golden.json, by their ids and types."""
import argparse, io, contextlib, json, logging, os, shutil, warnings, zlib
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore"); logging.disable(logging.WARNING)
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils.logging import disable_progress_bar
disable_progress_bar()

# Those that the gradients of a loss are held against.
WITH_GRADIENTS = ("gemma4_all_linear", "gemma4_unified", "gpt_oss_experts", "mixtral_experts", "granite_experts", "nemotron_h_experts",
                  "lfm3_all_linear", "falcon_h1", "qwen2_embed", "qwen2_tied_embed", "gemma3_embed", "gemma4_embed")

HERE = os.path.dirname(os.path.abspath(__file__))
QWEN = "decoders/qwen2_untied_old"
# name: (base, LoraConfig, what it is for)
ADAPTERS = {
    "phi3_fused": ("decoders/phi3", dict(target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]), "q, k, v and gate, up stored as one tensor"),
    "phi3_fused_dora": ("decoders/phi3", dict(target_modules=["qkv_proj", "gate_up_proj"], use_dora=True), "magnitudes of a fused tensor"),
    "glm4_all_linear": ("families/glm4", dict(target_modules="all-linear"), "all-linear: every projection, not the output matrix"),
    "starcoder2": ("families/starcoder2", dict(target_modules=["c_fc", "c_proj", "k_proj"]), "biases, no gate, keys alone of q, k, v"),
    "phi_bias_lora_only": ("families/phi", dict(target_modules=["q_proj", "dense", "fc2"], bias="lora_only"), "trained biases of the targets"),
    "qwen2_bias_all": (QWEN, dict(target_modules=["q_proj", "down_proj"], bias="all"), "trained biases of all modules"),
    "qwen2_lora_bias": (QWEN, dict(target_modules=["k_proj", "v_proj"], lora_bias=True), "a bias behind B"),
    "qwen2_dora_bias": (QWEN, dict(target_modules=["q_proj", "v_proj", "up_proj"], use_dora=True, bias="lora_only"), "magnitudes do not scale a bias"),
    "gemma2_tied_saved": ("decoders/gemma2", dict(target_modules=["v_proj"], modules_to_save=["embed_tokens", "lm_head"]), "both sides of a tied matrix, each with values of its own"),
    "qwen2_tied_embed_saved": ("decoders/qwen2_tied", dict(target_modules=["o_proj"], modules_to_save=["embed_tokens"]), "the embedding alone of a tied matrix: the output matrix stays"),
    "qwen2_tied_lm_head": ("decoders/qwen2_tied", dict(target_modules=["lm_head", "q_proj"]), "LoRA on a tied output matrix: the embedding stays"),
    "llama_excluded": ("decoders/llama_plain", dict(target_modules=["q_proj", "k_proj", "v_proj"], exclude_modules=["layers.0.self_attn.k_proj"]), "exclude_modules"),
    "llama_layers_pattern": ("decoders/llama_plain", dict(target_modules=["o_proj", "up_proj"], layers_to_transform=[1], layers_pattern="layers"), "layers_pattern"),
    "gemma4_all_linear": ("decoders/gemma4_text", dict(target_modules="all-linear"), "keys that later layers read, what layers take in besides the stream"),
    "gemma4_unified": ("decoders/gemma4_unified", dict(target_modules=["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"]), "keys that are values as well"),
    "qwen3_5_moe_experts": ("decoders/qwen3_5_moe_text", dict(target_modules=["q_proj", "in_proj_qkv"], target_parameters=["experts.gate_up_proj"], rank_pattern={"experts.gate_up_proj": 2}, alpha_pattern={"experts.gate_up_proj": 5}), "one parameter of a module, which is then wrapped once; a rank of its own"),
    "gpt_oss_experts": ("decoders/gpt_oss", dict(target_modules=["v_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "router.weight"], use_rslora=True), "by inputs, gate and up alternate; a matrix by the name of its weight"),
    "mixtral_experts": ("decoders/mixtral", dict(target_modules=["k_proj"], target_parameters=["mlp.experts.down_proj", "mlp.gate.weight"]), "stored by other names"),
    "granite_experts": ("decoders/granitemoehybrid_old", dict(target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj", "router.weight"]), "stored by other names"),
    "olmoe_experts": ("decoders/olmoe", dict(target_modules=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"]), "no module"),
    "lfm2_moe_experts": ("decoders/lfm2_moe", dict(target_modules=["out_proj"], target_parameters=["gate_up_proj", "layers.2.feed_forward.experts.down_proj"]), "of two parameters of a module both in one layer, one in another"),
    "gemma4_moe_experts": ("decoders/gemma4_moe", dict(target_modules=["o_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"]), "experts beside an MLP"),
    "nemotron_h_experts": ("decoders/nemotron_h", dict(target_modules=["q_proj", "in_proj"], target_parameters=["experts.up_proj", "experts.down_proj"]), "no gate; names of transformers 5, which are not those of the checkpoint"),
    "lfm3_all_linear": ("decoders/lfm3", dict(target_modules="all-linear"), "gated short convolutions, and a gate for each head"),
    "falcon_h1": ("decoders/falcon_h1", dict(target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "gate_proj", "up_proj", "down_proj"]), "a multiplier at every projection, Mamba 2 beside attention"),
    "llama_weights": ("decoders/llama_plain", dict(target_modules=["v_proj"], target_parameters=["q_proj.weight", "layers.1.mlp.up_proj.weight"], rank_pattern={"up_proj.weight": 6}), "plain matrices by the names of their weights"),
    "qwen2_embed": (QWEN, dict(target_modules=["embed_tokens", "q_proj"], rank_pattern={"embed_tokens": 3}), "LoRA on the embedding"),
    "qwen2_tied_embed": ("decoders/qwen2_tied", dict(target_modules=["embed_tokens", "v_proj"]), "LoRA on the embedding alone of a tied matrix"),
    "gemma3_embed": ("decoders/gemma3_text", dict(target_modules=["embed_tokens", "o_proj"], use_rslora=True), "a factor behind the embedding"),
    "gemma4_embed": ("decoders/gemma4_text", dict(target_modules=["embed_tokens", "per_layer_model_projection"]), "what layers take in besides the stream is made of the embedding"),
    "qwen2_tokens": (QWEN, dict(target_modules=["o_proj"], trainable_token_indices=[9, 60, 61]), "rows of some tokens"),
    "qwen2_tokens_dict": (QWEN, dict(target_modules=["k_proj"], trainable_token_indices={"embed_tokens": [4], "lm_head": [7, 8, 100]}), "rows of the embedding, and others of the output matrix"),
    "qwen2_tied_tokens": ("decoders/qwen2_tied", dict(target_modules=["o_proj"], trainable_token_indices=[9, 60, 61]), "rows of a tied matrix, on both sides"),
    "gemma3_tokens": ("decoders/gemma3_text", dict(target_modules=["q_proj"], trainable_token_indices=[5, 44]), "a factor behind the embedding"),
    "nomic_modules": ("encoders/nomic_mean", dict(target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"], task_type="FEATURE_EXTRACTION", use_dora=True), "modules of transformers 5 that the checkpoint has other names for; q and v are parts of one of its matrices"),
    "qwen2_tied_ensured_saved": ("decoders/qwen2_tied", dict(target_modules=["o_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True), "both sides of a tied matrix, which stay one"),
    "qwen2_tied_ensured_embed": ("decoders/qwen2_tied", dict(target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True), "LoRA on a tied matrix, of both sides"),
    "qwen2_tied_ensured_pattern": ("decoders/qwen2_tied", dict(target_modules=r".*(lm_head|v_proj)", ensure_weight_tying=True), "the same by a pattern that names the output matrix"),
    "qwen2_untied_ensured": (QWEN, dict(target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True), "two matrices are not made one"),
    "qwen2_tied_tokens_both": ("decoders/qwen2_tied", dict(target_modules=["o_proj"], trainable_token_indices={"embed_tokens": [9, 60], "lm_head": [9, 60]}), "rows of a tied matrix by both names, stored once"),
    "qwen2_tied_tokens_apart": ("decoders/qwen2_tied", dict(target_modules=["o_proj"], trainable_token_indices={"embed_tokens": [9, 60], "lm_head": [60, 7]}), "other rows of each side of a tied matrix"),
    "qwen2_tied_tokens_lm_head": ("decoders/qwen2_tied", dict(target_modules=["o_proj", "lm_head"], trainable_token_indices={"embed_tokens": [9, 60]}), "rows of a tied matrix, and LoRA on it as the output matrix"),
    "phi_lm_head": ("families/phi", dict(target_modules=["fc1", "lm_head"]), "an output matrix with a bias, which is written along"),
    "bert_pooler": ("encoders/bert_mean_norm", dict(target_modules=["query", "value", "dense"], task_type="FEATURE_EXTRACTION"), "an encoder; `dense` also means the pooler, which no vector sees"),
}

# Of classifiers, of which PEFT saves the last layer without being asked to.
CLASSIFIERS = {
    "bert": ("rerankers/bert", dict(target_modules="all-linear"), "LoRA on the pooler, a classifier that is saved"),
    "bert_pooler": ("rerankers/bert", dict(target_modules=["query", "pooler.dense"], task_type=None), "LoRA on the pooler alone"),
    "roberta": ("rerankers/roberta", dict(target_modules=["query", "value", "dense"]), "both layers of a head that is saved, which a target names, too"),
    "distilbert": ("rerankers/distilbert", dict(target_modules=["q_lin", "v_lin"], use_rslora=True), "what is called classifier at its end is saved, pre_classifier, too"),
    "modernbert": ("rerankers/modernbert_mean", dict(target_modules=["Wqkv"], modules_to_save=["head"]), "a head with a norm and biases"),
    "eurobert": ("rerankers/eurobert_late", dict(target_modules=["v_proj", "dense"], use_dora=True), "magnitudes of a layer of the head"),
    "qwen3": ("rerankers/qwen3_scored", dict(target_modules="all-linear", bias="all"), "a decoder, whose score has no bias"),
}

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=os.path.join(HERE, "adapters")); parser.add_argument("names", nargs="*")
    args = parser.parse_args(); torch.set_num_threads(1)
    for name in args.names or ADAPTERS: make(name, args.out)
    for name in [] if args.names else CLASSIFIERS: make_classifier(name, os.path.join(HERE, "reranker_adapters", name))

def seeded(name): torch.manual_seed(zlib.crc32(name.encode()))

@torch.no_grad()
def make(name, out):
    base, config, note = ADAPTERS[name]
    encoder, folder = base.startswith("encoders"), os.path.join(out, name)
    def load():
        kind = AutoModel if encoder else AutoModelForCausalLM
        # Experts in F64, too, one after another.
        experts = dict(experts_implementation="eager") if "target_parameters" in config else {}
        return kind.from_pretrained(os.path.join(HERE, base), attn_implementation="eager", dtype=torch.float32, **experts).eval()
    dropout = 0 if "target_parameters" in config else 0.05
    lora = LoraConfig(**{**dict(r=4, lora_alpha=8, lora_dropout=dropout, task_type="CAUSAL_LM"), **config})
    seeded(name)
    plain, model = load(), get_peft_model(load(), lora).eval()
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    for key, p in model.named_parameters():
        if id(p) not in trained: continue
        if "magnitude" in key: p.mul_(1 + 0.3 * torch.randn_like(p))
        else: p.add_(torch.randn_like(p) * (0.3 if "lora_" in key else 0.1))
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()): model.save_pretrained(folder)
    os.remove(os.path.join(folder, "README.md"))
    path = os.path.join(folder, "adapter_config.json"); text = json.load(open(path))
    text["base_model_name_or_path"] = f"../../{base}"
    for key in ("target_modules", "target_parameters", "exclude_modules", "modules_to_save"):
        if isinstance(text.get(key), list): text[key].sort()
    json.dump(text, open(path, "w"), indent=1)
    # What is compared is what the files hold.
    model = PeftModel.from_pretrained(load(), folder).eval()
    values, mistakes = {}, {}
    if encoder:
        golden = json.load(open(os.path.join(HERE, base, "golden.json")))
        def embed(model):
            rows = []
            for ids in golden["token_ids"]["none"]:
                mean = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).last_hidden_state[0].mean(0)
                rows.append(mean / mean.norm())
            return torch.stack(rows)
        values["embeddings"], without = embed(model), embed(plain)
        changed = (values["embeddings"] - without).abs().max().item()
    else:
        vocabulary = min(211, model.config.get_text_config().vocab_size)
        ids = torch.randint(3, vocabulary, (1, 12))
        # Those whose rows are trained are read.
        if indices := lora.trainable_token_indices:
            read = indices if isinstance(indices, list) else indices["embed_tokens"]
            ids[0, 2:2 + len(read)] = torch.tensor(read)
        values["prompt0.ids"] = ids[0]
        values["prompt0.logits"] = model(ids).logits[0]
        changed = (values["prompt0.logits"] - plain(ids).logits[0]).abs().max().item()
        double = PeftModel.from_pretrained(load(), folder).double().eval()
        mistakes["f32_vs_f64"] = (double(ids).logits[0] - values["prompt0.logits"]).abs().max().item()
        if name in WITH_GRADIENTS: values |= gradients(load, folder, vocabulary, mistakes, loss := {})
        if name in ("qwen2_tied_lm_head", "qwen2_tied_embed", "gemma3_embed", "gemma4_embed", "qwen2_tied_tokens_lm_head", "qwen2_tied_tokens_apart", "qwen2_tied_ensured_embed", "qwen2_tied_ensured_pattern"): pass  # merging changes the embedding as well, so that merged and attached differ
        else: values["prompt0.merged_logits"] = model.merge_and_unload()(ids).logits[0]
        if "prompt0.merged_logits" in values: mistakes["merged_vs_unmerged"] = (values["prompt0.merged_logits"] - values["prompt0.logits"]).abs().max().item()
    save_file({k: v.contiguous() for k, v in values.items()}, os.path.join(folder, "golden.safetensors"))
    notes = dict(base=base, note=note, adapter_changes_by=round(changed, 4), noise_max_abs={k: float(f"{v:.3g}") for k, v in mistakes.items()})
    if name in WITH_GRADIENTS: notes["loss"] = loss
    json.dump(notes, open(os.path.join(folder, "golden.json"), "w"), indent=1)
    print(name, notes["adapter_changes_by"], notes["noise_max_abs"], sorted(load_file(os.path.join(folder, "adapter_model.safetensors")))[:3])

@torch.no_grad()
def make_classifier(name, folder):
    base, config, note = CLASSIFIERS[name]
    notes = json.load(open(os.path.join(HERE, base, "golden.json")))
    def load(): return AutoModelForSequenceClassification.from_pretrained(os.path.join(HERE, base), attn_implementation="eager", dtype=torch.float32).eval()
    def logits(model):
        found = []
        for i, ids in enumerate(notes["token_ids"]):
            types = dict(token_type_ids=torch.tensor([notes["token_types"][i]])) if notes["token_types"] else {}
            found.append(model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), **types).logits[0, 0])
        return torch.stack(found)
    seeded(name)
    model = get_peft_model(load(), LoraConfig(**{**dict(r=4, lora_alpha=8, task_type="SEQ_CLS"), **config})).eval()
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    for key, p in model.named_parameters():
        if id(p) not in trained: continue
        if "magnitude" in key: p.mul_(1 + 0.3 * torch.randn_like(p))
        else: p.add_(torch.randn_like(p) * (0.3 if "lora_" in key else 0.1))
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()): model.save_pretrained(folder)
    os.remove(os.path.join(folder, "README.md"))
    path = os.path.join(folder, "adapter_config.json"); text = json.load(open(path))
    text["base_model_name_or_path"] = f"../../{base}"
    for key in ("target_modules", "modules_to_save"):
        if isinstance(text.get(key), list): text[key].sort()
    json.dump(text, open(path, "w"), indent=1)
    model = PeftModel.from_pretrained(load(), folder).eval()
    values, plain = logits(model), logits(load())
    double = logits(PeftModel.from_pretrained(load(), folder).double().eval())
    noise = dict(f32_vs_f64=(double - values).abs().max().item(), merged_vs_unmerged=(logits(model.merge_and_unload()) - values).abs().max().item())
    save_file(dict(logits=values), os.path.join(folder, "golden.safetensors"))
    changed = round((values - plain).abs().max().item(), 4)
    json.dump(dict(base=base, note=note, adapter_changes_by=changed, noise_max_abs={k: float(f"{v:.3g}") for k, v in noise.items()}), open(os.path.join(folder, "golden.json"), "w"), indent=1)
    print(name, changed, noise, sorted(load_file(os.path.join(folder, "adapter_model.safetensors")))[-3:])

@torch.enable_grad()
def gradients(load, folder, vocabulary, mistakes, loss):
    """Of the mean over all tokens but the first of one sequence that is longer than any window, with dropout 0."""
    ids = torch.randint(3, vocabulary, (1, 70)); found = {}
    for kind in (torch.float64, torch.float32):
        model = PeftModel.from_pretrained(load(), folder, is_trainable=True).to(kind).eval()
        mean = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:]); mean.backward()
        found[kind] = {"grad." + key.replace(".default", ""): p.grad for key, p in model.named_parameters() if p.grad is not None}
        loss.update(ids=ids[0].tolist(), mean_cross_entropy=round(mean.item(), 6))
    largest = max(g.abs().max().item() for g in found[torch.float64].values())
    mistakes["gradients_relative_to_largest"] = max((found[torch.float64][k] - g).abs().max().item() for k, g in found[torch.float32].items()) / largest
    return found[torch.float32]

if __name__ == "__main__": main()
