"""The libraries whose training of an adapter is compared, behind one interface: see worker.py.

`begin(checkpointing)` starts from the initial adapter with a new optimiser; `step(batch)` takes a list of sequences of ids and
gives the mean loss before the step: forward, backward, clipping and AdamW are inside the timer.
"""

import time
import warnings

from worker import Peer, peak_bytes

TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Exact in 32 bits, as one of the libraries takes them.
LEARNING_RATE, WEIGHT_DECAY, GRAD_CLIP = 2.0**-10, 2.0**-7, 1.0


class Trainer(Peer):
    """What it adds: `learn(batch)`, which gives the loss."""

    def step(self, batch):
        start = time.perf_counter()
        loss = self.learn(batch)
        return time.perf_counter() - start, loss

    def trial(self, batch):
        """For the warm-up: one step that leaves nothing behind."""
        self.begin(False)
        return self.step(batch)


class MetalCandle(Trainer):
    def __init__(self, library, host, directory, threads, adapter, device, dtype):
        import c_abi

        self.abi, self.bytes_before, self.adapter, self.trainer = c_abi, peak_bytes(), adapter, None
        self.library = c_abi.Library(library, host)
        self.version = self.library.version_string().decode()
        self.model = c_abi.Model(self.library, directory, dtype, device)

    def begin(self, checkpointing):
        self.end()
        self.trainer = self.abi.Trainer(self.model, self.adapter, LEARNING_RATE, WEIGHT_DECAY, GRAD_CLIP, checkpointing)

    def learn(self, batch):
        return self.trainer.step(batch)

    def end(self):
        if self.trainer:
            self.trainer.free()
        self.trainer = None

    def close(self):
        self.end()
        self.model.free()
        self.library.expect_no_live_objects()


class Peft(Trainer):
    def __init__(self, directory, threads, adapter, device, dtype):
        import peft
        import torch
        import transformers

        self.torch, self.bytes_before = torch, peak_bytes()
        self.version = f"{peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
        torch.set_num_threads(threads)
        warnings.simplefilter("ignore", FutureWarning)  # of new names that older versions do not know
        transformers.utils.logging.disable_progress_bar()
        self.device = {"metal": "mps"}.get(device, device)
        self.base = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, TORCH_NAMES[dtype])).to(self.device)
        self.model = peft.PeftModel.from_pretrained(self.base, adapter, is_trainable=True).train()
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.initial = [parameter.detach().clone() for parameter in self.trained]

    def settings(self, method):
        return ("sdpa", "eager")

    def use(self, setting):
        self.base.set_attn_implementation(setting)

    def begin(self, checkpointing):
        with self.torch.no_grad():
            for parameter, initial in zip(self.trained, self.initial):
                parameter.copy_(initial)
        self.optimizer = self.torch.optim.AdamW(self.trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        if checkpointing:
            self.base.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.base.gradient_checkpointing_disable()

    def learn(self, batch):
        ids = self.torch.tensor(batch, device=self.device)
        self.optimizer.zero_grad()
        loss = self.model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.trained, GRAD_CLIP)
        self.optimizer.step()
        if self.device != "cpu":
            getattr(self.torch, self.device).synchronize()
        return float(loss.detach())


TRAINERS = {"metal-candle": MetalCandle, "peft": Peft}
