"""One build of this library of two that are compared, behind the interface of worker.py."""

import time

from worker import Peer

STEPS, CONTEXT, SESSIONS = 48, 640, 4  # tokens; answers at once


class Build(Peer):
    def __init__(self, library, host, directory, adapter, embedder):
        import c_abi

        self.abi, self.bytes_before, self.adapter = c_abi, 0, adapter
        self.library = c_abi.Library(library, host)
        self.version = self.library.version_string().decode()
        self.model, self.embedder = c_abi.Model(self.library, directory), c_abi.Model(self.library, embedder)
        self.session = c_abi.Session(self.model, CONTEXT)
        self.trainer = None

    def prefill(self, ids):
        self.session.truncate(0)
        start = time.perf_counter()
        self.session.append(ids)
        logits = self.session.logits()
        return time.perf_counter() - start, list(logits)

    def decode(self, prompt):
        record = self.abi.Record(STEPS + 1)
        self.session.truncate(0)
        self.session.append(prompt)
        ids = self.session.generate(STEPS + 1, "pull", record)
        return record.seconds(), ids

    def lora(self, prompt):
        self.session.set_lora(self.adapter)
        seconds, ids = self.decode(prompt)
        self.session.set_lora(None)
        return seconds, ids

    def sessions(self, prompt):
        """Answers to prompts of their own, one token of each at a time."""
        sessions = [self.abi.Session(self.model, CONTEXT) for _ in range(SESSIONS)]
        for i, session in enumerate(sessions):
            session.append(prompt[i:])
            session.begin(STEPS + 1)
        self.abi.next_of(sessions)
        start = time.perf_counter()
        for _ in range(STEPS):
            self.abi.next_of(sessions)
        seconds = time.perf_counter() - start
        ids = [session.end() for session in sessions]
        for session in sessions:
            session.free()
        return seconds, ids[0]

    def embed(self, texts):
        start = time.perf_counter()
        vectors = self.embedder.embed_batch(texts)
        return time.perf_counter() - start, list(vectors)

    def train(self, batch):
        trainer = self.abi.Trainer(self.model, self.adapter, 1e-3, 0.0, 1.0, True)
        start = time.perf_counter()
        loss = trainer.step(batch)
        seconds = time.perf_counter() - start
        trainer.free()
        return seconds, [loss]

    def close(self):
        self.session.free()
        self.model.free()
        self.embedder.free()
        self.library.expect_no_live_objects()
