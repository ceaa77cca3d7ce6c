"""Makes tiny random rerankers, one directory each, with reference scores by sentence-transformers (written with 6.2 over transformers 5.24).

    python make_rerankers.py [--out DIR] [NAME ...]        (default: the folder `rerankers` beside this file, all names)

Each directory is one that CrossEncoder() loads, with golden.json: queries, documents, and for each pair its token ids, token types where the
network has some, `scores` as predict() gives them and `logits` without an activation. `mistakes_max_abs` says by how much logits change when
the thing that the directory is there for is done wrong. Directories with `computed: transformers` follow a model card instead, whose code
is below. Arithmetic: float32 on the stored weights, eager attention, one pair per batch, one thread. Every directory is made twice and must
have the same bytes. Tokenizers and random weights are those of make_encoders.py."""
import argparse, filecmp, os, shutil, tempfile
import make_encoders as e
from make_encoders import BERT, CASED, DECODER, HERE, LOCAL, LONG, ROBERTA, UNCASED, edit, files, given, randomise, read, roberta, write
import torch, transformers
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.modules import LogitScore, Transformer
from transformers import AutoConfig

QUERIES = ["How do I sort a list of numbers?", "", "où est la bibliothèque ? 今天", LONG[:150]]
DOCUMENTS = ["Sorts the numbers in place.", "", "hello", LONG[:90], LONG, "Die Brücke über den Fluss ist schön und groß.",
             "a<pad> b <pad> [PAD] [MASK] <mask> </s> [SEP] <|endoftext|>", "line one\nline two\ttabbed", (LONG * 2).upper()]
ONE = dict(num_labels=1)
SEQ = "ForSequenceClassification"
# What a reranker's template has to do: a message of each role.
TEMPLATE = ("{%- set system = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first | default('Find answers.') -%}"
            "<|im_start|>system\nAnswer \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n<Instruct>: {{ system }}\n"
            "<Query>: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n"
            "<Document>: {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\n")
# https://huggingface.co/Qwen/Qwen3-Reranker-0.6B
PREFIX = ('<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. '
          'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n')
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"

def qwen(template=None, **keys):
    """The tokenizer of a Qwen embedder with "yes" and "no" as tokens of their own."""
    def make():
        t, c = e.given("qwen2_last_right")()
        t["post_processor"] = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=False)
        last = max(a["id"] for a in t["added_tokens"])
        for i, w in enumerate(["yes", "no"], 1):
            t["added_tokens"].append(dict(id=last + i, content=w, single_word=True, lstrip=False, rstrip=False, normalized=False, special=False))
        return t, {**c, "model_max_length": 200, **({} if template is None else dict(chat_template=template)), **keys}
    return make
QWEN3 = {**DECODER, "vocab_size": 444, "head_dim": 16, "max_position_embeddings": 512}

CASES = {
    "bert": dict(kind="bert", head="Bert", config={**BERT, **ONE}, tokenizer=given("bert_mean_norm", model_max_length=48), mistakes={"types": 1},
        note="no modules.json: pooler with tanh, classifier, sigmoid; the document's tokens have type 1; cut to model_max_length, the longer text first"),
    "bert_identity": dict(kind="bert", head="Bert", config={**BERT, **ONE, "sentence_transformers": dict(activation_fn="torch.nn.modules.linear.Identity", version="4.0.0")}, tokenizer=CASED,
        note="config.json of version 4: scores are the logits; cut to max_position_embeddings"),
    "bert_old": dict(kind="bert", head="Bert", config={**BERT, **ONE, "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, tokenizer=given("bert_mean_norm", model_max_length=47),
        note="the same in a config.json of before version 4; an odd limit"),
    "bert_new": dict(kind="bert", head="Bert", config={**BERT, **ONE}, tokenizer=given("bert_mean_norm", model_max_length=60), style=6, prompts=dict(query="query: "), default="query", activation=torch.nn.Identity(),
        note="as save() of version 6 writes it: activation_fn and a default prompt, which stands in front of the query, in config_sentence_transformers.json"),
    "bert_left": dict(kind="bert", head="Bert", config={**BERT, **ONE}, tokenizer=given("bert_cls", model_max_length=48, truncation_side="left"), note="the beginnings are cut off"),
    "roberta": dict(kind="roberta", head="Roberta", config={**ROBERTA, **ONE}, tokenizer=roberta(model_max_length=40), note="classifier.dense with tanh, classifier.out_proj; no token types"),
    "xlmr": dict(kind="xlm-roberta", head="XLMRoberta", config={**ROBERTA, **ONE}, tokenizer=given("xlmr_mean_e5", model_max_length=50), note="two separators between the texts"),
    "camembert": dict(kind="camembert", head="Camembert", config={**ROBERTA, **ONE}, tokenizer=given("xlmr_mean_e5", model_max_length=50), note="tensors below roberta."),
    "distilbert": dict(kind="distilbert", head="DistilBert", config=dict(vocab_size=440, dim=48, hidden_dim=40, n_layers=2, n_heads=4, max_position_embeddings=80, pad_token_id=0, **ONE),
        tokenizer=given("distilbert_mean", model_max_length=64), note="pre_classifier with ReLU, classifier"),
    "mpnet": dict(kind="mpnet", head="MPNet", config={**BERT, **ONE, "max_position_embeddings": 82, "pad_token_id": 1}, tokenizer=given("mpnet_mean_norm", model_max_length=64), note="RoBERTa's head"),
    "nomic_bert": dict(kind="nomic_bert", head="NomicBert", config={**BERT, **ONE, "max_position_embeddings": 128}, tokenizer=given("nomic_mean", model_max_length=64), mistakes={"types": 1}, note="BERT's head and token types, rotary positions"),
    "modernbert_cls": dict(kind="modernbert", head="ModernBert", config=dict(vocab_size=440, hidden_size=48, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=128, local_attention=8,
        pad_token_id=438, bos_token_id=436, eos_token_id=437, cls_token_id=436, sep_token_id=437, **ONE), tokenizer=given("modernbert_mean_new", model_max_length=64), note="head.dense with GELU, head.norm, classifier, of the first token"),
    "modernbert_mean": dict(kind="modernbert", head="ModernBert", config=dict(vocab_size=440, hidden_size=48, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=128, local_attention=8,
        pad_token_id=438, bos_token_id=436, eos_token_id=437, cls_token_id=436, sep_token_id=437, classifier_pooling="mean", classifier_bias=True, norm_bias=True, norm_eps=1e-3, classifier_activation="silu", **ONE),
        tokenizer=given("modernbert_mean_new", model_max_length=64), note="of the mean; biases, another activation and eps"),
    "eurobert": dict(kind="eurobert", head="EuroBert", config={**DECODER, **ONE, "max_position_embeddings": 96, "pad_token_id": 438, "bos_token_id": 436, "eos_token_id": 437, "classifier_pooling": "mean"},
        tokenizer=given("modernbert_mean_new", model_max_length=64), note="dense with GELU, classifier, of the mean"),
    "eurobert_late": dict(kind="eurobert", head="EuroBert", config={**DECODER, **ONE, "max_position_embeddings": 96, "pad_token_id": 438, "bos_token_id": 436, "eos_token_id": 437}, tokenizer=given("modernbert_mean_new", model_max_length=64),
        note="what the class does where nothing is said: a score of each token, and the mean of the scores"),
    "qwen3_scored": dict(kind="qwen3", head="Qwen3", config={**QWEN3, **ONE, "tie_word_embeddings": True}, tokenizer=qwen(), bare=True, note="score, of the last token that is not the padding; no template, so both texts follow each other as they are"),
    "qwen3_scored_template": dict(kind="qwen3", head="Qwen3", config={**QWEN3, **ONE}, tokenizer=qwen(TEMPLATE), style=6, prompts=dict(web=INSTRUCTION), default="web", note="the same through a chat template; the prompt is its system message; of what is too long the end is cut, but not what the template puts there"),
    "qwen3_new": dict(kind="qwen3", head="Qwen3ForCausalLM", config={**QWEN3, "tie_word_embeddings": True}, tokenizer=qwen(TEMPLATE), style=6, note="LogitScore: the logit of yes less that of no, for what follows the template"),
    "qwen3_plain": dict(kind="qwen3", head="Qwen3ForCausalLM", config=QWEN3, tokenizer=qwen(TEMPLATE), note="no modules.json: the tokens yes and no"),
    "qwen3_card": dict(kind="qwen3", head="Qwen3ForCausalLM", config=QWEN3, tokenizer=qwen(model_max_length=280), card=True, note="no template for pairs: the model card's prompt, with an instruction that the caller names"),
}

def save(name, d):
    c = CASES[name]; os.makedirs(d, exist_ok=True)
    with tempfile.TemporaryDirectory() as raw:
        config = AutoConfig.for_model(c["kind"], **c["config"]); config._attn_implementation = "eager"
        head = c["head"] if c["head"].endswith("LM") else c["head"] + SEQ
        model = randomise(getattr(transformers, head)(config).float(), name)
        with torch.no_grad():
            for n, p in model.named_parameters():       # scores of some units, not of hundreds
                if n.split(".")[0] in ("score", "classifier") and n.endswith("weight") and p.shape[0] == 1: p.mul_(0.5)
        model.to(torch.bfloat16).save_pretrained(raw)
        for f in os.listdir(raw):
            if f not in ("config.json", "model.safetensors"): os.remove(os.path.join(raw, f))
        tokenizer, settings = c["tokenizer"](); [settings.pop(k, None) for k in LOCAL]
        template = settings.pop("chat_template", None)
        write(tokenizer, raw, "tokenizer.json", indent=None); write(settings, raw, "tokenizer_config.json")
        if template: open(os.path.join(raw, "chat_template.jinja"), "w").write(template)
        if c.get("style") == 6:
            args = dict(model_kwargs=dict(dtype=torch.bfloat16, attn_implementation="eager"))
            modules = None
            if c["head"].endswith("LM"): modules = [Transformer(raw, transformer_task="text-generation", **args), LogitScore(true_token_id=441, false_token_id=442)]
            model = CrossEncoder(modules=modules, device="cpu") if modules else CrossEncoder(raw, device="cpu", local_files_only=True, prompts=c.get("prompts"), default_prompt_name=c.get("default"), activation_fn=c.get("activation"), **args)
            model.save_pretrained(d, create_model_card=False)
            edit(os.path.join(d, "tokenizer_config.json"), drop=LOCAL)
            v = read(d, "config_sentence_transformers.json"); v["__version__"]["pytorch"] = torch.__version__.split("+")[0]; write(v, d, "config_sentence_transformers.json", indent=2)
        else:
            for f in os.listdir(raw): shutil.copy(os.path.join(raw, f), d)

class Reference:
    def __init__(s, d, double=False):
        s.model = CrossEncoder(d, device="cpu", local_files_only=True, model_kwargs=dict(dtype=torch.float32, attn_implementation="eager"))
        if double: s.model.double()
    def features(s, pair): return s.model.preprocess([list(pair)], prompt=s.model._resolve_prompt(None, None))
    def scores(s, pairs, activation=None): return s.model.predict([list(p) for p in pairs], batch_size=1, activation_fn=activation, convert_to_tensor=True, show_progress_bar=False).double()

class Card:
    """The code of https://huggingface.co/Qwen/Qwen3-Reranker-0.6B with transformers."""
    def __init__(s, d, double=False):
        s.t = transformers.AutoTokenizer.from_pretrained(d); s.m = transformers.AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32, attn_implementation="eager").eval()
        if double: s.m.double()
        s.prefix, s.suffix = (s.t.encode(x, add_special_tokens=False) for x in (PREFIX, SUFFIX))
    def features(s, pair):
        text = "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {doc}".format(instruction=INSTRUCTION, query=pair[0], doc=pair[1])
        ids = s.t([text], padding=False, truncation="longest_first", return_attention_mask=False, max_length=s.t.model_max_length - len(s.prefix) - len(s.suffix))["input_ids"][0]
        return dict(input_ids=torch.tensor([s.prefix + ids + s.suffix]))
    @torch.no_grad()
    def scores(s, pairs, activation=None):
        out = []
        for p in pairs:
            row = s.m(**s.features(p)).logits[0, -1].double(); yes, no = row[s.t.convert_tokens_to_ids("yes")], row[s.t.convert_tokens_to_ids("no")]
            out.append(yes - no if activation else torch.log_softmax(torch.stack([no, yes]), 0)[1].exp())
        return torch.stack(out)

def golden(name, d):
    c = CASES[name]; kind = Card if c.get("card") else Reference; ref = kind(d); identity = torch.nn.Identity()
    documents = [x for x in DOCUMENTS if x or not c.get("bare")]           # no token at all is nothing that the reference computes
    pairs = [(q, x) for q in QUERIES for x in documents]
    logits, scores = ref.scores(pairs, identity), ref.scores(pairs)
    assert torch.isfinite(logits).all(), name
    f = [ref.features(p) for p in pairs]; ids = [x["input_ids"][0].tolist() for x in f]
    types = [x["token_type_ids"][0].tolist() for x in f] if "token_type_ids" in f[0] else None
    limit = ref.t.model_max_length if c.get("card") else ref.model.max_seq_length
    assert max(map(len, ids)) == limit, (name, limit, max(map(len, ids)))
    noise = (kind(d, True).scores(pairs, identity) - logits).abs().max().item()
    wrong = {}
    if "types" in c.get("mistakes", {}):
        table = {k: v for k, v in ref.model.model.named_parameters() if "token_type" in k}; (table,) = table.values()
        with torch.no_grad(): kept = table[1].clone(); table[1] = table[0]; wrong["type 0 for both"] = (ref.scores(pairs, identity) - logits).abs().max().item(); table[1] = kept
        assert wrong["type 0 for both"] > 1e-3, (name, wrong)
    short = lambda x: float(f"{x:.3g}")
    out = dict(note=c["note"], computed="transformers" if c.get("card") else "sentence-transformers predict(), float32, eager attention, one pair per batch", max_length=limit,
        instruction=INSTRUCTION if c.get("card") else None, queries=QUERIES, documents=documents, logits=[round(x, 7) for x in logits.tolist()], scores=[round(x, 9) for x in scores.tolist()],
        noise_max_abs=short(noise), mistakes_max_abs={k: short(v) for k, v in wrong.items()}, spread=short((logits.max() - logits.min()).item()), token_ids=ids, token_types=types)
    line = lambda v: __import__("json").dumps(v, ensure_ascii=False)
    with open(os.path.join(d, "golden.json"), "w", encoding="utf-8") as f: f.write("{\n" + ",\n".join(f' "{k}": {line(v)}' for k, v in out.items()) + "\n}\n")
    return dict(spread=out["spread"], noise=out["noise_max_abs"], **wrong)

def main():
    a = argparse.ArgumentParser(); a.add_argument("names", nargs="*"); a.add_argument("--out", default=os.path.join(HERE, "rerankers")); a = a.parse_args()
    torch.set_num_threads(1)
    for name in a.names or CASES:
        with tempfile.TemporaryDirectory() as twice:
            made = [os.path.join(twice, x, name) for x in "ab"]
            for seed, d in enumerate(made): torch.manual_seed(seed); save(name, d); got = golden(name, d)
            same, *different = filecmp.cmpfiles(*made, files(made[0]), shallow=False)
            if files(made[0]) != files(made[1]) or different != [[], []]: raise SystemExit(f"{name}: two runs differ: {different}")
            d = os.path.join(a.out, name); shutil.rmtree(d, ignore_errors=True); shutil.copytree(made[0], d)
        print(f"{name:24s} {sum(os.path.getsize(os.path.join(d, f)) for f in files(d))/1000:6.0f} kB  {got}", flush=True)

if __name__ == "__main__": main()
