"""Load, chat, stop, search by meaning, train an adapter: python examples/python/tour.py, at the top of the repository.

The first token in five lines:
"""

import metal_candle as mc

conversation = mc.Conversation(mc.Model.load("models/tiny-coder"))
for token in conversation.ask("What does `Vec::push` do?"):
    print(token, end="", flush=True)
print()

# All the rest, with what a program shows to people.
import sys


def bar(name: str, done: float, total: float) -> None:
    print(f"\r{name} {done / total:4.0%}", end="" if done < total else "\n", file=sys.stderr)


coder = mc.Model.load("models/tiny-coder", progress=lambda event: bar("loading", event.done, event.total or event.done))

# An answer is stopped by any thread; leaving the loop, Ctrl-C and the cancellation of a task stop it too.
with mc.Conversation(coder) as conversation:
    answer = conversation.ask("What is a `HashMap`?")
    for token in answer:
        print(token, end="", flush=True)
        if token.index == 3:
            answer.cancel()
    print(" … stopped; the conversation goes on:", conversation.ask("What does `Vec::push` do?").read())

# Three texts, the nearest in meaning to a question first.
texts = ["Appends an element to the end of a vector.", "Opens a file for reading.", "Puts the thread to sleep."]
with mc.Model.load("models/tiny-embed") as embedder:
    found = embedder.nearest(embedder.embed("How do I push something onto a Vec?"), embedder.embed(texts), k=3)
for index, score in zip(found.indices, found.scores):
    print(f"{score:6.3f}  {texts[index]}")

# Twenty steps teach an adapter thirty facts that the model does not know.
trainer = mc.Trainer(
    coder,
    {"rank": 16, "alpha": 32},
    learning_rate=1e-2,
    schedule=mc.Schedule.COSINE,
    warmup_steps=2,
    total_steps=20,
    batch_size=16,
    epochs=20,
)
trainer.train(
    mc.Dataset.load_jsonl("examples/data/facts.jsonl"), on_step=lambda event: bar(f"loss {event.loss:6.3f}", event.step, event.total_steps)
)
for lora in (None, trainer.adapter()):
    reply = mc.Conversation(coder, lora=lora).ask("What is the bird of Velmora?", max_tokens=40).read()
    print("with the adapter:   " if lora else "without the adapter:", reply)
