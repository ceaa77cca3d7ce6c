"""Writes the LoRA adapter that training begins with, by PEFT: make_adapter.py MODEL ADAPTER

Rank 8, alpha 16, all seven projections. B is noise, not zero as in a fresh adapter, so that A has a gradient from the first step.
"""

import os
import sys

RANK, ALPHA, SEED = 8, 16, 20250214
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main(directory, adapter):
    import peft
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(SEED)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    partial = f"{adapter}.partial"
    model.save_pretrained(partial)
    os.rename(partial, adapter)


if __name__ == "__main__":
    main(*sys.argv[1:])
