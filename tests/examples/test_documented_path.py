"""From a folder to a trained model by the commands of docs/data.md, as a new user types them."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from transformers import AutoModel

from mimi_bridge import MimiBridgeModel
from mimi_bridge.audio.espeak import SENTENCES, VOICES, synthesize
from mimi_bridge.cli.main import main as cli
from mimi_bridge.data.teachers.statistics import stored_statistics
from tiny_teachers import write_tiny_qwen, write_tiny_wavlm

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text()
TINY = {  # what the documentation's commands get besides, so that they need no network and little time
    "conversion/convert_kyutai.py": "--source small --qwen-dim 16 --wavlm-dim 16",
    "prepare": "--text-teacher teachers/qwen --speech-teacher teachers/wavlm --min-score none",
    "examples/finetune.py": "--max_steps 2 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 "
    "--use_cpu --report_to none --save_strategy no --mel_weight 0",
}


def documented_commands() -> list[str]:
    """The commands under the first heading."""
    section = PAGE.split("## From a folder to a trained model")[1]
    return re.findall(r"^    (?!pip)(\S.*)$", section.split("```")[0], re.MULTILINE)


def type_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    program = next(word for word in words if word in TINY)
    arguments = words[words.index(program) + 1 :] + shlex.split(TINY[program])
    if words[0] == "mimi-bridge":
        assert cli([program, *arguments]) == 0
        return
    assert words[0] == "python"
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    try:
        runpy.run_path(str(ROOT / program), run_name="__main__")
    except SystemExit as end:
        assert not end.code


def test_documented_commands_lead_from_a_folder_to_a_model_that_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, text in enumerate(SENTENCES[:6]):
        recording = Path("recordings") / f"speaker{number % 2}" / f"{number}.flac"
        recording.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(recording, synthesize(text, VOICES[number])[0].numpy(), 24_000)
        recording.with_suffix(".txt").write_text(text)
    write_tiny_qwen(Path("teachers/qwen"))
    write_tiny_wavlm(Path("teachers/wavlm"))
    commands = documented_commands()
    assert len(commands) == 3
    for command in commands:
        type_command(command, monkeypatch)
    assert "data: 6 recordings, 6 of them with tokens" in capsys.readouterr().out
    before, after = AutoModel.from_pretrained("mimi-bridge"), AutoModel.from_pretrained("run")
    assert isinstance(after, MimiBridgeModel) and after.config.residual_weight == 1.0
    assert not torch.equal(before.quantizer.proj_qwen.weight, after.quantizer.proj_qwen.weight)
    statistics = stored_statistics("data")
    for name, bridge in (("qwen", after.quantizer.proj_qwen), ("wavlm", after.quantizer.proj_wavlm)):
        torch.testing.assert_close(bridge.mean.double(), statistics[name].mean, atol=1e-6, rtol=1e-6)
    codes = after.encode(synthesize(SENTENCES[7])[None]).audio_codes
    assert codes.shape[:2] == (1, 9)
