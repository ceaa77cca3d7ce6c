"""Makes tiny random embedding models, one directory each, with reference values by sentence-transformers (written with 6.2 over transformers 5.23).

    python make_encoders.py [--out DIR] [NAME ...]        (default: the folder `embedders` beside this file, all names)

Each directory is one that SentenceTransformer() loads, with golden.json and golden.safetensors in the format of `encoders`: texts, token ids,
embeddings.none (no prompt) and embeddings.PROMPT [texts, dim], last_hidden_state of one text, not pooled. golden.json also has `note` and
`mistakes_max_abs`: by how much the vectors change when the thing that the directory is there for is done wrong.
Files marked "sentence-transformers 6" are as save() writes them, the others are in the style of versions 2 to 5 around save_pretrained().
Arithmetic: float32 on the stored weights, eager attention, one text per batch, one thread. Every directory is made twice and must have the
same bytes. Tokenizers are those of `encoders`; every parameter has noise, norms and biases too."""
import argparse, contextlib, filecmp, json, logging, os, shutil, tempfile, warnings, zlib
os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
warnings.filterwarnings("ignore"); logging.disable(logging.WARNING)
from unittest.mock import patch
import tokenizers, torch, transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st
from transformers import AutoConfig, AutoModel
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings
from transformers.utils.logging import disable_progress_bar
disable_progress_bar()

HERE = os.path.dirname(os.path.abspath(__file__))
S, F = "sliding_attention", "full_attention"
NO_LIMIT = int(1e30)                                # what tokenizers write when they know no limit
LONG = ("The quick brown fox jumps over the lazy dog while the old cat sleeps in the warm sun. The library loads a model from a directory, "
        "reads its configuration and checks every tensor. Water boils at one hundred degrees at sea level, and at a lower temperature on a "
        "high mountain. Die Größe des Modells bestimmt, wie viel Speicher es braucht. 中文句子：今天天气很好。 ")
TEXTS = ["", " \t\n ", "hello", "How do I sort a list of numbers?", "  leading, trailing and   inner   spaces  ",
         "Die Brücke über den Fluss ist schön und groß.", "où est la bibliothèque ? ÉCOLE, naïve, Ångström, ﬁne İstanbul ΣΑΣ",
         "今天天气很好，我们去公园散步吧。", "日本語とEnglishの混在 text 🦀👩‍👩‍👧 ❤️", "unsplittable" * 12, "line one\nline two\ttabbed\r\nline three",
         "a<pad> b <pad><pad>c [PAD] [MASK] <mask> </s> [SEP] <|endoftext|> <|im_end|> <eos>", LONG, (LONG * 2).upper()]
LOCAL = ["is_local", "local_files_only", "name_or_path"]   # of the run that wrote them
SPECIAL, LONGEST = 11, 12                           # of TEXTS: with special tokens, longer than every window

def generator(*key): return torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))
def read(*path): return json.load(open(os.path.join(*path), encoding="utf-8"))
def write(value, *path, indent=1):
    with open(os.path.join(*path), "w", encoding="utf-8") as f: f.write(json.dumps(value, indent=indent, ensure_ascii=False) + "\n")
def edit(*path, drop=(), **keys):
    """Changes keys of a JSON file."""
    j = {**read(*path), **keys}; write({k: v for k, v in j.items() if k not in drop}, *path, indent=2)
def randomise(model, name, matrices=0.25):
    with torch.no_grad():
        for n, p in model.named_parameters():       # norms keep their 1 (or 0), biases their 0
            r = torch.randn(p.shape, generator=generator(name, n))
            p.copy_(r * matrices if p.ndim > 1 else p.mean().round() + r * 0.3)
    return model

# Tokenizers: (tokenizer.json, tokenizer_config.json)
def given(name, **keys): return lambda: (read(HERE, "encoders", name, "tokenizer.json"), {**read(HERE, "encoders", name, "tokenizer_config.json"), **keys})
def roberta(**keys):
    """A byte-level BPE with RoBERTa's special tokens in RoBERTa's places."""
    def make():
        t, special = read(HERE, "encoders", "modernbert_mean_new", "tokenizer.json"), ["<s>", "<pad>", "</s>", "<unk>"]
        words = sorted(t["model"]["vocab"], key=t["model"]["vocab"].get)
        t["model"].update(vocab={w: i for i, w in enumerate(special + words + ["<mask>"])}, continuing_subword_prefix="", end_of_word_suffix="")
        t["added_tokens"] = [dict(id=t["model"]["vocab"][w], content=w, single_word=False, lstrip=w == "<mask>", rstrip=False, normalized=False, special=True) for w in special + ["<mask>"]]
        t.update(normalizer=None, post_processor=dict(type="RobertaProcessing", sep=["</s>", 2], cls=["<s>", 0], trim_offsets=True, add_prefix_space=False))
        t["pre_tokenizer"]["add_prefix_space"] = False
        return t, {**dict(tokenizer_class="RobertaTokenizer", bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", pad_token="<pad>",
                          unk_token="<unk>", mask_token="<mask>", add_prefix_space=False, model_max_length=512), **keys}
    return make

# Modules after the network: name of the folder, type, settings (weights are random)
def pooling(mode, include=True): return ("Pooling", dict(embedding_dimension=48, pooling_mode=mode, include_prompt=include))
def dense(i, o, activation="Tanh", **kw):
    place = "linear" if activation == "Identity" else "activation"
    if activation: activation = f"torch.nn.modules.{place}.{activation}"
    return ("Dense", dict(in_features=i, out_features=o, **({} if activation is None else dict(activation_function=activation)), **kw))
NORMALIZE, DROPOUT = ("Normalize", {}), ("Dropout", dict(dropout=0.5))

BERT = dict(vocab_size=440, hidden_size=48, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=80, layer_norm_eps=1e-3, pad_token_id=0)
ROBERTA = dict(BERT, max_position_embeddings=62, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1)
DECODER = dict(vocab_size=440, hidden_size=48, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
               rms_norm_eps=1e-3, pad_token_id=437, bos_token_id=None, eos_token_id=439, tie_word_embeddings=False)
UNCASED, CASED, QWEN = given("bert_mean_norm"), given("bert_cls"), given("qwen2_last_right")

# What goes wrong, as a change of the directory or of the reference's code
def keys(file="config.json", drop=(), **kw): return lambda d: edit(d, file, drop=drop, **kw)
def replaced(owner, name, value): return lambda d: patch.object(owner, name, value)
def without(file): return lambda d: os.remove(os.path.join(d, file))
def tensors(change, file="model.safetensors"):
    def run(d):
        t = change(load_file(os.path.join(d, file))); save_file({k: v.contiguous() for k, v in t.items()}, os.path.join(d, file), metadata=dict(format="pt"))
    return run
def swap(folder, a, b):
    """Two tensors of a module in each other's place."""
    return tensors(lambda t: {**t, a: t[b], b: t[a]}, os.path.join(folder, "model.safetensors"))
def counted(input_ids, padding_idx, past=0): return torch.arange(input_ids.shape[1])[None] + padding_idx + 1
def buckets(distance):
    whole = MPNetEncoder.relative_position_bucket
    return staticmethod(lambda relative_position, num_buckets=32, max_distance=128: whole(relative_position, num_buckets, distance))

def legacy_bert(t):
    """The names of the first PyTorch checkpoints."""
    t = {"bert." + k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in t.items()}
    return {**t, "bert.embeddings.position_ids": torch.arange(80)[None]}

CASES = {
    "roberta_mean": dict(kind="roberta", config=ROBERTA, tokenizer=roberta(), limit=60, style=6, modules=[pooling("mean")], hidden=SPECIAL,
        mistakes={"<pad> in a text takes a position": replaced(RobertaEmbeddings, "create_position_ids_from_input_ids", staticmethod(counted))},
        note="<pad> written in a text has the position pad_token_id and moves no other one on; it is attended and pooled like every token"),
    "roberta_classifier": dict(kind="roberta", config=ROBERTA, head="RobertaForSequenceClassification", tokenizer=roberta(truncation_side="left", model_max_length=50), limit=24,
        settings="sentence_roberta_config.json", modules=[pooling("cls"), NORMALIZE],
        mistakes={"the end is cut off": keys("tokenizer_config.json", truncation_side="right"), "settings not read": without("sentence_roberta_config.json")},
        note="tensors below roberta. beside classifier.*; the settings are in sentence_roberta_config.json; truncation_side left keeps the end of a text, the special tokens stay around it"),
    "camembert_cls": dict(kind="camembert", config=dict(ROBERTA, layer_norm_eps=1e-5), head="CamembertForMaskedLM", tokenizer=given("xlmr_mean_e5", model_max_length=50), limit=40,
        settings="sentence_camembert_config.json", modules=[pooling("cls")], mistakes={"settings not read": without("sentence_camembert_config.json"),
        "<pad> in a text takes a position": replaced(transformers.models.camembert.modeling_camembert.CamembertEmbeddings, "create_position_ids_from_input_ids", staticmethod(counted))},
        note="tensors below roberta. (not camembert.) beside lm_head.*; the settings are in sentence_camembert_config.json"),
    "eurobert_mean": dict(kind="eurobert", config=dict(DECODER, max_position_embeddings=64, pad_token_id=438, bos_token_id=436, eos_token_id=437, head_dim=16, rope_parameters=dict(rope_type="default", rope_theta=250000.0)),
        tokenizer=given("modernbert_mean_new"), limit=90, modules=[pooling("mean"), NORMALIZE], hidden=LONGEST, missing=["2_Normalize"],
        mistakes={"limit max_position_embeddings": keys("sentence_bert_config.json", max_seq_length=64), "theta 10000": keys(rope_parameters=dict(rope_type="default", rope_theta=10000.0)), "eps 1e-5": keys(rms_norm_eps=1e-5)},
        note="head_dim 16 with 4 heads in 48 wide; max_seq_length 90 is above max_position_embeddings 64 and is what counts (only the tokenizer's model_max_length is capped by it); the Normalize folder is missing, which is no error"),
    "bert_no_modules": dict(kind="bert", config=BERT, head="BertForMaskedLM", tokenizer=given("bert_mean_norm", model_max_length=NO_LIMIT), modules=None, limit=20,
        prompts=dict(query="query: "), default="query", mistakes={"cls pooling": lambda d: pooled(d, "cls")},
        note="no modules.json: mean pooling, no Normalize; sentence_bert_config.json and config_sentence_transformers.json are then not read: the limit is max_position_embeddings and there is no default prompt"),
    "qwen2_causal_no_modules": dict(kind="qwen2", config=DECODER, head="Qwen2ForCausalLM", tokenizer=QWEN, modules=None, limit=None, bare=True,
        mistakes={"mean pooling": lambda d: pooled(d, "mean")},
        note="no modules.json, and architectures[0] ends in ForCausalLM: the last token is pooled (the mean if config.json has is_causal false)"),
    "mpnet_far": dict(kind="mpnet", config=dict(BERT, max_position_embeddings=202, pad_token_id=1), head="MPNetForMaskedLM", tokenizer=given("mpnet_mean_norm"), limit=200,
        modules=[pooling("mean"), DROPOUT], hidden=LONGEST, sdpa=False,
        mistakes={"farthest bucket from 64": replaced(MPNetEncoder, "relative_position_bucket", buckets(64)), "farthest bucket from 127": replaced(MPNetEncoder, "relative_position_bucket", buckets(127))},
        note=None),
    "distilbert_sinusoidal": dict(kind="distilbert", config=dict(vocab_size=440, dim=48, hidden_dim=40, n_layers=2, n_heads=4, max_position_embeddings=80, pad_token_id=0, sinusoidal_pos_embds=True),
        head="DistilBertForMaskedLM", tokenizer=UNCASED, limit=64, settings="sentence_distilbert_config.json", folder="0_Transformer", modules=[pooling("mean"), NORMALIZE],
        mistakes={"a table of sines": tensors(lambda t: {k: v for k, v in t.items() if "position_embeddings" not in k}, "0_Transformer/model.safetensors")},
        note="sinusoidal_pos_embds only says how the table is initialised: the stored table counts; a checkpoint without it would get sines; tensors below distilbert. beside vocab_*"),
    "bert_old_folder": dict(kind="bert", config=BERT, rename=legacy_bert, tokenizer=CASED, limit=48, lower=True, folder="0_Transformer", modules=[pooling("mean"), NORMALIZE],
        missing=["2_Normalize"], mistakes={"not lower-cased": keys("0_Transformer/sentence_bert_config.json", do_lower_case=False)},
        note="the network and its tokenizer in 0_Transformer; LayerNorm.gamma and .beta; the I64 buffer embeddings.position_ids; do_lower_case puts a Lowercase before the tokenizer's own normalizer, special tokens written in a text stay"),
    "bert_limit": dict(kind="bert", config=dict(BERT, max_position_embeddings=40), tokenizer=given("bert_mean_norm", model_max_length=NO_LIMIT), limit=None,
        modules=[pooling(["lasttoken", "max", "mean"])], style=6, tidy=dict(model_max_length=NO_LIMIT),
        mistakes={"order of the flags": keys("1_Pooling/config.json", pooling_mode=["max", "mean", "lasttoken"]), "limit 39": keys("tokenizer_config.json", model_max_length=39)},
        note="pooling_mode as a list: in its order; model_max_length 1e30 and no max_seq_length: the limit is max_position_embeddings"),
    "bert_chain": dict(kind="bert", config=BERT, tokenizer=UNCASED, limit=32, style=6, modules=[pooling("mean"), ("LayerNorm", dict(dimension=48)), dense(48, 48, "ReLU", use_residual=True),
        DROPOUT, NORMALIZE, dense(48, 40, "Sigmoid", bias=False), dense(40, 44, "GELU", use_residual=True)],
        mistakes={"no residual, in = out": keys("3_Dense/config.json", use_residual=False), "Normalize left out": lambda d: no_module(d, "Normalize"),
                  "weight and residual.weight swapped": swap("7_Dense", "linear.weight", "residual.weight"), "GELU by tanh": replaced(torch.nn.GELU, "forward", lambda m, x: torch.nn.functional.gelu(x, approximate="tanh")), "LayerNorm left out": lambda d: no_module(d, "LayerNorm")},
        note="use_residual adds the input after the activation, through residual.weight (no bias) where the widths differ; LayerNorm has torch's eps 1e-5; the Normalize in the middle stays, at the end there is none"),
    "bert_chain_old": dict(kind="bert", config=BERT, tokenizer=UNCASED, limit=32, modules=[pooling("cls"), dense(48, 48, "SiLU", bias=False), dense(48, 44, None), dense(44, 52, "Identity"),
        dense(52, 36), NORMALIZE], mistakes={"no activation by default": keys("3_Dense/config.json", activation_function="torch.nn.modules.linear.Identity"),
        "no activation for Tanh": keys("5_Dense/config.json", activation_function="torch.nn.modules.linear.Identity"), "SiLU is Tanh": keys("2_Dense/config.json", activation_function="torch.nn.modules.activation.Tanh")},
        note="3_Dense names no activation_function: Tanh"),
    "bert_prompts_excluded": dict(kind="bert", config=BERT, tokenizer=UNCASED, limit=40, modules=[pooling(["cls", "lasttoken", "max", "weightedmean"], False)], default="query",
        prompts=dict(query="query: ", passage="passage: ", long=LONG, empty=""), mistakes={"prompts pooled": keys("1_Pooling/config.json", include_prompt=True)},
        note="include_prompt false with four ways of pooling; tokens keep the weights of their positions; prompt `long` alone fills the limit: its last token [SEP] is special and not counted, so one token is left to pool; `none` is with the default prompt switched off"),
    "bert_truncate_dim": dict(kind="bert", config=dict(BERT, num_hidden_layers=1), tokenizer=UNCASED, limit=32, modules=[pooling("mean"), NORMALIZE], truncate=24,
        mistakes={}, note="truncate_dim 24 in config_sentence_transformers.json: the first 24 values, cut after Normalize and not normalised again"),
    "modernbert_biases": dict(kind="modernbert", head="ModernBertForMaskedLM", config=dict(vocab_size=440, hidden_size=48, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=256, norm_eps=1e-3,
        layer_types=[S, F, S], local_attention=9, attention_bias=True, mlp_bias=True, norm_bias=True, pad_token_id=438, cls_token_id=436, sep_token_id=437, bos_token_id=436, eos_token_id=437,
        rope_parameters={F: dict(rope_type="default", rope_theta=160000.0), S: dict(rope_type="default", rope_theta=5000.0)}), tokenizer=given("modernbert_mean_new"), limit=100, modules=[pooling("mean")], hidden=LONGEST,
        mistakes={"layers full, sliding, full": keys(layer_types=[F, S, F]), "local_attention 10": keys(local_attention=10), "biases zero": tensors(lambda t: {k: v * (0 if k.endswith(".bias") else 1) for k, v in t.items()})},
        note="layer_types given, not the pattern of global_attn_every_n_layers, layer 0 sliding (it has no attn_norm); local_attention 9: |i - j| <= 4; tensors below model. beside head.* and decoder.bias"),
    "qwen2_bidirectional": dict(kind="qwen2", config=dict(DECODER, num_hidden_layers=3, is_causal=False, use_sliding_window=True, sliding_window=6, max_window_layers=1), tokenizer=QWEN, limit=90, modules=[pooling("mean")],
        bare=True, hidden=LONGEST, mistakes={"causal": keys(is_causal=True), "|i - j| < 6": keys(sliding_window=5), "|i - j| <= 3": keys(sliding_window=3), "no window": keys(drop=["layer_types"], use_sliding_window=False)},
        note="is_causal false: every token sees every other; in sliding layers |i - j| <= sliding_window, one more than the causal window has on its side"),
    "llama_prompts_excluded": dict(kind="llama", config=DECODER, head="LlamaForCausalLM", tokenizer=QWEN, limit=40, modules=[pooling(["mean", "cls", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"], False)], bare=True,
        prompts=dict(query="Represent the text: ", special="query<|im_end|>", marker="query<|im_start|>", long=LONG), mistakes={"prompts pooled": keys("1_Pooling/config.json", include_prompt=True)}, note=None),
    "gemma3_bidirectional_odd": dict(kind="gemma3_text", config=dict(DECODER, num_hidden_layers=3, num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=20, layer_types=[S, F, S], sliding_window=13, use_bidirectional_attention=True, pad_token_id=436,
        bos_token_id=438, eos_token_id=437, tie_word_embeddings=True, rope_parameters={F: dict(rope_type="default", rope_theta=1000000.0), S: dict(rope_type="default", rope_theta=10000.0)}),
        tokenizer=given("gemma3_bidirectional_dense"), limit=90, tidy_config=dict(sliding_window=13), modules=[pooling("mean"), dense(48, 40, "Identity", bias=False), NORMALIZE], hidden=LONGEST,
        mistakes={"window 11": keys(sliding_window=11), "window 15": keys(sliding_window=15), "causal": keys(use_bidirectional_attention=False)},
        note="use_bidirectional_attention with sliding_window 13: |i - j| < 13 // 2 + 1 in sliding layers"),
    "mistral_last_eos": dict(kind="mistral", config=dict(DECODER, sliding_window=8, head_dim=16), tokenizer=given("qwen3_last_left", model_max_length=70), limit=None, style=6, modules=[pooling("lasttoken"), NORMALIZE], hidden=LONGEST,
        prompts=dict(query="Instruct: Given a question, retrieve passages that answer it\nQuery: "), mistakes={"window 7": keys(sliding_window=7), "mean pooling": keys("1_Pooling/config.json", pooling_mode="mean")},
        note="the tokenizer appends <|endoftext|> and pads at the left; a longer text keeps it: the text is cut, not the special token; causal window 8"),
}

def network(d, c): return os.path.join(d, c.get("folder", ""))
def save_network(name, c, path):
    """config.json, model.safetensors and the tokenizer's files."""
    os.makedirs(path, exist_ok=True)
    config = AutoConfig.for_model(c["kind"], **json.loads(json.dumps(c["config"])))
    if "is_causal" in c["config"]: config.is_causal = c["config"]["is_causal"]
    head = getattr(transformers, c["head"]) if "head" in c else None
    config._attn_implementation = "eager"
    model = head(config) if head else AutoModel.from_config(config, attn_implementation="eager")
    randomise(model.float(), name).to(torch.bfloat16).save_pretrained(path)
    for f in os.listdir(path):
        if f not in ("config.json", "model.safetensors"): os.remove(os.path.join(path, f))
    if c.get("tidy_config"): edit(path, "config.json", **c["tidy_config"])
    if c.get("rename"): tensors(c["rename"])(path)
    tokenizer, settings = c["tokenizer"](); [settings.pop(k, None) for k in LOCAL]
    write(tokenizer, path, "tokenizer.json", indent=None); write(settings, path, "tokenizer_config.json")

def save_prompts(d, c):
    write({"__version__": dict(sentence_transformers="3.0.0", transformers="4.46.0", pytorch="2.5.1"), "prompts": c.get("prompts", {}), "default_prompt_name": c.get("default"),
           "similarity_fn_name": "cosine", **(dict(truncate_dim=c["truncate"]) if "truncate" in c else {})}, d, "config_sentence_transformers.json")

def save_modules(d, c, name):
    """In the style of versions 2 to 5."""
    listed = [dict(idx=0, name="0", path=c.get("folder", ""), type="sentence_transformers.models.Transformer")]
    for i, (kind, settings) in enumerate(c["modules"], 1):
        folder = f"{i}_{kind}"; listed.append(dict(idx=i, name=str(i), path=folder, type=f"sentence_transformers.models.{kind}"))
        if folder in c.get("missing", []): continue
        os.makedirs(os.path.join(d, folder), exist_ok=True); settings = dict(settings)
        if kind == "Dense":
            module = randomise(st.Dense(settings["in_features"], settings["out_features"], bias=settings.get("bias", True), use_residual=settings.get("use_residual", False)), (name, folder), 0.5)
            save_file(module.state_dict(), os.path.join(d, folder, "model.safetensors")); settings.setdefault("bias", True)
        if kind == "Pooling" and isinstance(settings["pooling_mode"], str):
            mode = settings.pop("pooling_mode"); settings["word_embedding_dimension"] = settings.pop("embedding_dimension")
            for flag in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"): settings["pooling_mode_" + flag] = flag.removesuffix("_tokens").removesuffix("_token") == mode
            assert sum(v is True for k, v in settings.items() if k.startswith("pooling")) == 1
        if settings or kind == "Normalize": write(settings, d, folder, "config.json")
    write(listed, d, "modules.json")

def build(name, d):
    c = CASES[name]; os.makedirs(d, exist_ok=True)
    if c.get("style") == 6:
        with tempfile.TemporaryDirectory() as raw:
            save_network(name, c, raw); extra = {} if c["limit"] is None else dict(processor_kwargs=dict(model_max_length=c["limit"]))
            first = st.Transformer(raw, model_kwargs=dict(dtype=torch.bfloat16, attn_implementation="eager"), **extra)
            made = [first]
            for i, (kind, settings) in enumerate(c["modules"], 1):
                settings = dict(settings); act = settings.get("activation_function")
                if act: settings["activation_function"] = (torch.nn.Identity if act.endswith("Identity") else getattr(torch.nn, act.rsplit(".")[-1]))()
                made.append(randomise(getattr(st, kind)(**settings), (name, i, kind), 0.5).float())
            model = SentenceTransformer(modules=made, prompts=c.get("prompts"), default_prompt_name=c.get("default"), device="cpu", local_files_only=True)
            for m in made[1:]: m.float()
            model.save(d, create_model_card=False)
        for f in c.get("missing", []): shutil.rmtree(os.path.join(d, f))
        f = os.path.join(d, "tokenizer_config.json"); edit(f, drop=LOCAL, **c.get("tidy", {}))
        v = read(d, "config_sentence_transformers.json"); v["__version__"]["pytorch"] = torch.__version__.split("+")[0]; write(v, d, "config_sentence_transformers.json", indent=2)
        return
    save_network(name, c, network(d, c))
    settings = dict(max_seq_length=c["limit"], do_lower_case=c.get("lower", False))
    if c["modules"] is not None: save_modules(d, c, name)
    if c["modules"] is not None or c["limit"] is not None: write(settings, network(d, c), c.get("settings", "sentence_bert_config.json"), indent=None); save_prompts(d, c)

def pooled(d, mode):
    """A directory without modules.json, pooled in this way."""
    c = dict(modules=[pooling(mode)]); save_modules(d, c, "")
    for f in ("sentence_bert_config.json", "config_sentence_transformers.json"):
        if os.path.exists(os.path.join(d, f)): os.remove(os.path.join(d, f))
def no_module(d, kind):
    write([m for m in read(d, "modules.json") if not m["type"].endswith("." + kind)], d, "modules.json")

class Reference:
    def __init__(s, d, attn="eager", double=False):
        s.model = SentenceTransformer(d, device="cpu", local_files_only=True, model_kwargs=dict(dtype=torch.float32, attn_implementation=attn))
        if double: s.model.double()
    def encode(s, texts, prompt, batch=1): return s.model.encode(texts, prompt=prompt, batch_size=batch, convert_to_tensor=True, show_progress_bar=False).double()
    def ids(s, text, prompt): return s.model.preprocess([text], prompt=prompt)["input_ids"][0].tolist()
    @torch.no_grad()
    def hidden(s, text): f = s.model.preprocess([text]); return s.model[0](f)["token_embeddings"][0].float().clone()

def raw_ids(d, c, limit):
    """The same ids by tokenizer.json alone: what a reader without transformers has."""
    t = tokenizers.Tokenizer.from_file(os.path.join(network(d, c), "tokenizer.json")); t.no_truncation(); t.no_padding()
    side = read(network(d, c), "tokenizer_config.json").get("truncation_side", "right"); t.enable_truncation(limit, direction=side)
    if c.get("lower"): t.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Lowercase()] + ([t.normalizer] if t.normalizer else []))
    return lambda text: t.encode(text).ids

def golden(name, d):
    c = CASES[name]; ref = Reference(d); texts = TEXTS[1:] if c.get("bare") else TEXTS; hidden = c.get("hidden", 3) - bool(c.get("bare"))
    no_files = c["modules"] is None; prompts = {} if no_files else c.get("prompts", {}); limit = ref.model.max_seq_length
    wanted = {"none": "", **prompts}; embeddings, ids, t = {}, {}, {}
    raw = raw_ids(d, c, limit)
    for label, prompt in wanted.items():
        e = ref.encode(texts, prompt); assert torch.isfinite(e).all(), (name, label)
        embeddings[label] = e; t[f"embeddings.{label}"] = e.float(); ids[label] = [ref.ids(x, prompt) for x in texts]
        for x, i in zip(texts, ids[label]): assert raw(prompt + x) == i, (name, label, x, raw(prompt + x), i)
    assert c.get("default") is None or no_files or torch.equal(ref.encode(texts[3:4], None), embeddings[c["default"]][3:4])
    assert max(map(len, ids["none"])) == limit or limit > 200, (name, "no text reaches the limit")
    t["last_hidden_state"] = ref.hidden(texts[hidden])
    worst = lambda other, batch=1: max((other.encode(texts, p, batch) - embeddings[k]).abs().max().item() for k, p in wanted.items())
    noise = dict(f32_vs_f64=worst(Reference(d, double=True)), sdpa_vs_eager=worst(Reference(d, "sdpa")) if c.get("sdpa", True) else 0.0, batch_vs_single=worst(ref, len(texts)))
    wrong = {}
    for label, change in c["mistakes"].items():
        with tempfile.TemporaryDirectory() as copy:
            copy = shutil.copytree(d, os.path.join(copy, "wrong"))
            with change(copy) or contextlib.nullcontext(): wrong[label] = worst(Reference(copy))
        assert wrong[label] > 4e-4, (name, label, wrong[label])
    save_file({k: v.contiguous() for k, v in t.items()}, os.path.join(d, "golden.safetensors"))
    short = lambda x: float(f"{x:.3g}"); e = torch.nn.functional.normalize(embeddings["none"], dim=-1); n = len(texts)
    module = next((s for k, s in c["modules"] or [] if k == "Pooling"), None)
    mode = module["pooling_mode"] if module else ref.model[1].pooling_mode
    head = dict(model_type=c["kind"], stored_dtype="bfloat16", pooling=mode, include_prompt=module["include_prompt"] if module else True, normalize=bool(c["modules"]) and c["modules"][-1] == NORMALIZE, max_seq_length=limit,
                files_style="sentence-transformers 6" if c.get("style") == 6 else "transformers" if no_files else "sentence-transformers 2 to 5", default_prompt_name=None if no_files else c.get("default"), prompts=prompts, embeddings=list(wanted),
                texts=texts, computed="sentence-transformers encode(), float32, eager attention, one text per batch (no padding)")
    tail = dict(note=c["note"] or NOTES[name](ref), last_hidden_state_of_text=hidden, scale=dict(absmax=short(embeddings["none"].abs().max().item()), mean_cosine_between_texts=round(((e @ e.T).sum().item() - n) / (n * n - n), 3)),
                noise_max_abs={k: short(v) for k, v in noise.items()}, mistakes_max_abs={k: short(v) for k, v in wrong.items()})
    line = lambda j: ",\n".join(f' "{k}": {json.dumps(v, ensure_ascii=False)}' for k, v in j.items())
    body = ",\n".join(f'  "{k}": [\n' + ",\n".join(f"   {i}" for i in v) + "\n  ]" for k, v in ids.items())
    with open(os.path.join(d, "golden.json"), "w", encoding="utf-8") as f: f.write("{\n" + line(head) + ',\n "token_ids": {\n' + body + "\n },\n" + line(tail) + "\n}\n")
    return dict(absmax=tail["scale"]["absmax"], **tail["noise_max_abs"], smallest_mistake=min(tail["mistakes_max_abs"].values(), default=None))

def note_mpnet(ref):
    far = [MPNetEncoder.relative_position_bucket(torch.tensor([-n])).item() for n in (7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 199)]
    return f"buckets of keys 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 199 tokens back: {far}; keys ahead have 16 more; no sdpa in the reference (it is 0 below); Dropout does nothing; tensors below mpnet. beside lm_head.*"
def note_llama(ref):
    lengths = {p: ref.model[0]._get_prompt_length(t) for p, t in CASES["llama_prompts_excluded"]["prompts"].items()}
    return (f"lm_head and the prefix model. are not used; tokens left out of the pooling per prompt: {lengths}: the length of the prompt tokenised alone (its last space is a token there, and joins the word in the whole text), "
            "less one if its last token is one that tokenizer_config.json names (bos, eos, pad ...): `special` ends in the eos token, `marker` in one that is special in tokenizer.json only, which counts; `long` fills the limit and leaves nothing: zeros for mean, mean_sqrt_len_tokens, weightedmean and lasttoken, the first token for cls (max would be -inf)")
NOTES = dict(mpnet_far=note_mpnet, llama_prompts_excluded=note_llama)

def files(d): return sorted(os.path.relpath(os.path.join(p, f), d) for p, _, fs in os.walk(d) for f in fs)
def main():
    a = argparse.ArgumentParser(); a.add_argument("names", nargs="*"); a.add_argument("--out", default=os.path.join(HERE, "embedders")); a = a.parse_args()
    torch.set_num_threads(1); total = 0
    for name in a.names or CASES:
        with tempfile.TemporaryDirectory() as twice:
            made = [os.path.join(twice, x, name) for x in "ab"]
            for seed, d in enumerate(made): torch.manual_seed(seed); build(name, d); got = golden(name, d)     # nothing may come from torch's own numbers
            same, *different = filecmp.cmpfiles(*made, files(made[0]), shallow=False)
            if files(made[0]) != files(made[1]) or different != [[], []]: raise SystemExit(f"{name}: two runs differ: {different}")
            d = os.path.join(a.out, name); shutil.rmtree(d, ignore_errors=True); shutil.copytree(made[0], d)
        size = sum(os.path.getsize(os.path.join(d, f)) for f in files(d)); total += size
        print(f"{name:26s} {size/1000:6.0f} kB  " + "  ".join(f"{k} {v}" for k, v in got.items()), flush=True)
    print(f"{total/1e6:.2f} MB")

if __name__ == "__main__": main()
