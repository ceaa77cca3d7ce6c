"""Makes directories with a vocabulary and no tokenizer.json, with the ids that transformers gives texts (written with 5.24, sentencepiece 0.2).

    python make_vocabularies.py        (writes the folder `vocabularies` beside this file)

Each directory has vocab.txt, vocab.json and merges.txt, or tokenizer.model, with the settings beside; golden.json has the texts, for each
directory the ids of `AutoTokenizer`, with and without what stands around texts, and those of some pairs of texts. Needs transformers, sentencepiece and protobuf."""
import json, os, shutil, tempfile, warnings
os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
warnings.filterwarnings("ignore")
import sentencepiece
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

HERE = os.path.dirname(os.path.abspath(__file__)); OUT = os.path.join(HERE, "vocabularies")
LONG = ("The quick brown fox jumps over the lazy dog while the old cat sleeps in the warm sun. The library loads a model from a directory, "
        "reads its configuration and checks every tensor. Water boils at one hundred degrees at sea level, and at a lower temperature on a "
        "high mountain. Die Größe des Modells bestimmt, wie viel Speicher es braucht. 中文句子：今天天气很好。 Numbers: 3.14, 1234567 and 42. ")
TEXTS = ["", " ", "  ", " \t\n ", "hello", " hello", "How do I sort a list of numbers?", "  leading, trailing and   inner   spaces  ",
         "Die Brücke über den Fluss ist schön und groß.", "où est la bibliothèque ? ÉCOLE, naïve, Ångström, ﬁne İstanbul ΣΑΣ",
         "e\u0301e\u0301 A\u030a vs é Å", "今天天气很好，我们去公园散步吧。", "日本語とEnglishの混在 text 🦀👩‍👩‍👧 ❤️", "unsplittable" * 12,
         "line one\nline two\ttabbed\r\nline three\n\n\n", "don't isn't we'll I'm WE'RE 1234567 3.14 a_b-c/d", "## a ## ##### # #",
         "a<pad> b <pad><pad>c [PAD] [MASK] <mask> x</s> y <s>z [SEP] <|endoftext|> <|im_end|>q <x> <unk> <user> b", "▁a ▁▁ b▁",
         "\u0000a\u0001b\u007fc\u0085d\u00ad\ufffd\u00a0x\u3000y\u200b", "हिन्दी ไทยไทย العَرَبِيَّة 한국어", "a" * 300, LONG, (LONG * 2).upper()]
PAIRS = [["hello", "How do I sort a list?"], ["", "a"], [" b ", LONG]]
CORPUS = [LONG, LONG.lower(), LONG.upper()] * 9 + TEXTS * 3 + ["## a ## b ##### c # #"] * 9

def write(name, file, value):
    os.makedirs(os.path.join(OUT, name), exist_ok=True)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    with open(os.path.join(OUT, name, file), "w", encoding="utf-8", newline="") as f: f.write(text)

def settings(name, family, config):
    write(name, "config.json", {"model_type": family})
    if config is not None: write(name, "tokenizer_config.json", config)

def words(name, family, config, lower):
    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer, t.pre_tokenizer = normalizers.BertNormalizer(lowercase=lower), pre_tokenizers.BertPreTokenizer()
    t.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=600, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False))
    ids = sorted(t.get_vocab().items(), key=lambda item: item[1])
    write(name, "vocab.txt", "".join(token + "\n" for token, _ in ids)); settings(name, family, config)

def pairs(name, family, config, special, cuts):
    t = Tokenizer(models.BPE()); t.pre_tokenizer = cuts
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    model = json.loads(t.to_str())["model"]
    write(name, "vocab.json", json.dumps(model["vocab"], ensure_ascii=False))
    write(name, "merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"])); settings(name, family, config)
    return len(model["vocab"])

def pieces(name, config, **keys):
    with tempfile.TemporaryDirectory() as d:
        with open(os.path.join(d, "c"), "w") as f: f.write("\n".join(x.replace("\n", " ").replace("\0", "") for x in CORPUS))
        sentencepiece.SentencePieceTrainer.train(input=os.path.join(d, "c"), model_prefix=os.path.join(d, "m"), model_type="bpe", byte_fallback=True, vocab_size=620,
            hard_vocab_limit=False, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True,
            minloglevel=2, num_threads=1, **keys)
        os.makedirs(os.path.join(OUT, name)); shutil.copy(os.path.join(d, "m.model"), os.path.join(OUT, name, "tokenizer.model"))
    settings(name, "llama", config)

def token(content, **keys): return dict(content=content, lstrip=False, rstrip=False, normalized=False, single_word=False, special=True) | keys

shutil.rmtree(OUT, ignore_errors=True)
words("bert", "bert", None, True)
words("bert_cased", "bert", dict(do_lower_case=False, tokenize_chinese_chars=False, tokenizer_class="BertTokenizer", additional_special_tokens=["<x>"]), False)
words("distilbert", "distilbert", dict(do_lower_case=True, strip_accents=False), True)
level = pre_tokenizers.ByteLevel(add_prefix_space=False)
pairs("roberta", "roberta", dict(mask_token={"__type": "AddedToken", **token("<mask>", lstrip=True)}), ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], level)
pairs("gpt2", "starcoder2", dict(tokenizer_class="GPT2Tokenizer"), ["<|endoftext|>"], level)
pairs("gpt2_bos", "phi", dict(tokenizer_class="GPT2Tokenizer", add_bos_token=True, add_prefix_space=True), ["<|endoftext|>"], level)
split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
qwen = dict(tokenizer_class="Qwen2Tokenizer", add_prefix_space=False, bos_token=None, unk_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>")
count = pairs("qwen3", "qwen3", None, [], split)
qwen["added_tokens_decoder"] = {str(count + i): token(content) for i, content in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])}
settings("qwen3", "qwen3", qwen)
shutil.copytree(os.path.join(OUT, "qwen3"), os.path.join(OUT, "qwen2")); settings("qwen2", "qwen2", qwen)
llama = dict(tokenizer_class="LlamaTokenizer", add_bos_token=True, add_eos_token=False)
pieces("llama", llama | dict(legacy=False))
pieces("llama_legacy", llama | dict(legacy=True, add_eos_token=True, bos_token={"__type": "AddedToken", **token("<s>")}, eos_token="</s>", unk_token="<unk>"), user_defined_symbols=["<user>"])
found = {}
for name in sorted(os.listdir(OUT)):
    t = AutoTokenizer.from_pretrained(os.path.join(OUT, name)); pair = [t(*p) for p in PAIRS]
    found[name] = dict(ids=[t(x)["input_ids"] for x in TEXTS], plain=[t(x, add_special_tokens=False)["input_ids"] for x in TEXTS], pairs=[p["input_ids"] for p in pair])
    print(name, type(t).__name__, found[name]["ids"][5], sum(os.path.getsize(os.path.join(OUT, name, f)) for f in os.listdir(os.path.join(OUT, name))))
line = lambda value: json.dumps(value, ensure_ascii=False)
with open(os.path.join(OUT, "golden.json"), "w", encoding="utf-8") as f:
    f.write("{\n" + f' "texts": {line(TEXTS)},\n "pairs": {line(PAIRS)},\n "found": {{\n' + ",\n".join(f'  "{k}": {line(v)}' for k, v in found.items()) + "\n }\n}\n")
