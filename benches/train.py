"""Training of a LoRA adapter beside PEFT with torch, in one run: `python3 benches/train.py --help`.

    python3 benches/train.py --device cuda --dtype BF16     # what is trained is F32 in both, the model is kept in BF16
"""

import importlib.util
import random
import subprocess
import sys

from contextlib import nullcontext

from bench import Bench, Times, Workers, arguments, first, print_rates, print_ratios
from c_abi import DEVICES
from device_memory import DeviceMemory
from make_adapter import ALPHA, RANK, TARGETS
from make_model import CACHE, ROOT, SHAPES, make_model
from trainers import GRAD_CLIP, LEARNING_RATE, TRAINERS, WEIGHT_DECAY

BATCH, LENGTH = 4, 256  # sequences, tokens of each
WARM_UP = 2  # steps, compared and not timed
# Losses are near 12; other orders of summation move them by about 1e-6, or by what the type of activations rounds.
LOSS_BOUNDS = {"F32": 1e-4, "F16": 5e-3, "BF16": 3e-2}
MODES = {"train": False, "train checkpointing": True}
MEMORY_BOUNDS = {"train": 1 / 2, "train checkpointing": 1 / 3}  # of what PEFT takes without checkpointing
PARTS = ("speed", "memory")


def main():
    bench = Training(arguments(__doc__, PARTS, TRAINERS, shape=("qwen2.5-0.5b", SHAPES), device=("cpu", DEVICES), dtype=("F32", LOSS_BOUNDS)))
    if "speed" in bench.args.only:
        before = bench.machine()
        with Workers(bench, TRAINERS, *bench.model) as workers:
            bench.versions(workers)
            bench.speed(workers)
        bench.limits(before, bench.machine())
        bench.print_speed()
    if "memory" in bench.args.only:
        bench.memory()
    bench.finish("train.json")


class Training(Bench):
    def __init__(self, args):
        self.shape, self.settings = SHAPES[args.shape], {}
        directory, adapter = make_model(args.shape), CACHE / f"{args.shape}-adapter"
        if not adapter.exists() and importlib.util.find_spec("peft"):
            # In a process of its own: torch's threads and memory end with it.
            subprocess.run([sys.executable, ROOT / "benches" / "make_adapter.py", directory, adapter], check=True)
        self.model = (directory, args.threads, adapter if adapter.exists() else None, args.device, args.dtype)
        facts = {
            "model": f"{args.shape}: {self.shape}",
            "dtype": args.dtype,
            "adapter": f"rank {RANK}, alpha {ALPHA}: {', '.join(TARGETS)}",
            "batch": f"{BATCH} of {LENGTH} tokens, no padding",
            "optimiser": f"AdamW, learning rate {LEARNING_RATE}, weight decay {WEIGHT_DECAY}, gradient cut to {GRAD_CLIP}",
        }
        super().__init__(args, TRAINERS, facts)

    def batch(self, step):
        """Two in turn, so that the loss falls; the same for each library."""
        generator = random.Random(step % 2)
        return [generator.choices(range(self.shape.vocab_size), k=LENGTH) for _ in range(BATCH)]

    def speed(self, workers):
        self.settings = {peer: worker("warm_up", "trial", self.batch(0)) for peer, worker in workers.items()}
        for part, checkpointing in MODES.items():
            seconds, losses = ({peer: [] for peer in workers} for _ in range(2))
            for worker in workers.values():
                worker("begin", checkpointing)
            peers = list(workers)
            for step in range(WARM_UP + self.args.rounds):
                for peer in peers:
                    time, loss = workers[peer]("step", self.batch(step))
                    losses[peer].append(loss)
                    if step >= WARM_UP:
                        seconds[peer].append(time)
                peers = peers[1:] + peers[:1]  # nobody always follows the same one
            self.result[part] = {peer: Times(seconds[peer], self.settings[peer]).rate(BATCH * LENGTH) for peer in workers}
            self.check(part, losses)

    def check(self, part, losses):
        """Of every step: a wrong gradient shows in the losses of the steps after it."""
        reference, _ = first(losses, "peft")
        for peer, found in losses.items():
            difference = max(abs(a - b) for a, b in zip(found, losses[reference]))
            note = f"loss {found[0]:.4f} to {found[-1]:.4f}, each within {difference:.1e}"
            self.result[part][peer] |= {"losses": found, "max_difference": difference, "note": note}
            if not difference <= LOSS_BOUNDS[self.args.dtype]:
                self.fail(f"{part}: losses of {peer} differ from {reference}'s by {difference:.2g}")

    def print_speed(self):
        scale = self.shape.train_flops(LENGTH, RANK) / LENGTH / 1e9
        for part in MODES:
            print_rates(part, self.result[part], "tok/s", "GFLOP/s", scale, self.fma_gflops, "FMA peak")

    def memory(self):
        """Each peer alone in a new process: load, two steps. Of a GPU's memory all that is used, the driver's part with it."""
        self.result["memory"] = {}
        for part, checkpointing in MODES.items():
            rows = self.result["memory"][part] = {}
            print(f"\npeak memory, {part:22}  bytes   of it before loading")
            for peer in TRAINERS:
                if not (worker := self.worker(peer, *self.model)):
                    continue
                with worker:
                    if setting := self.settings.get(peer):
                        worker("use", setting)
                    worker("begin", checkpointing)
                    with DeviceMemory() if self.args.device == "cuda" else nullcontext() as memory:
                        for step in range(2):
                            worker("step", self.batch(step))
                    peak = memory.peak_bytes if memory else worker("peak_bytes")
                    rows[peer] = {"peak_bytes": peak, "bytes_before_load": 0 if memory else worker.bytes_before}
                print(f"  {peer:26}{rows[peer]['peak_bytes']:15,}{rows[peer]['bytes_before_load']:23,}", flush=True)
            print_ratios("memory", {peer: row["peak_bytes"] for peer, row in rows.items()})
            self.check_memory(part, rows)

    def check_memory(self, part, rows):
        reference = self.result["memory"]["train"].get("peft")
        # The tiny shapes are smaller than the interpreter; they test the benchmarks only.
        if self.args.shape == "tiny" or self.args.device != "cpu" or not reference or "metal-candle" not in rows:
            return
        ratio, bound = rows["metal-candle"]["peak_bytes"] / reference["peak_bytes"], MEMORY_BOUNDS[part]
        print(f"  memory: metal-candle / peft without checkpointing = {ratio:.2f}")
        if ratio > bound:
            self.fail(f"memory, {part}: metal-candle takes {ratio:.2f} of PEFT's without checkpointing, expected at most {bound:.2f}")


if __name__ == "__main__":
    main()
