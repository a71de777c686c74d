"""`minillm demo`: from raw text to two trained models, with tables, pictures and samples."""

from dataclasses import dataclass, replace
from pathlib import Path

from minillm.config import config_to_json, setting
from minillm.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """Train a tokenizer and a small GPT on real text, then another on a made world whose true entropy is known.

    Two to four minutes on two cores. A finished demo is shown again without any work; --force makes it anew.
    """

    out: Path = setting(Path("runs/demo"), "folder of the demo: the text's run, and the world's run in world/ below it")
    quick: bool = setting(False, "a few steps only: shows that everything works, learns next to nothing")
    force: bool = setting(False, "make the demo again although it is finished")
    seed: int = setting(0, "for weights, batches and samples")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps; one that is missing is an error")
    precision: str = setting("auto", "number format of the products", choices=("auto", "fp32", "bf16", "fp16"))


def run(settings: Settings) -> int:
    """Make the demo, or show the finished one."""
    report = settings.out / "report.md"
    record = settings.out / "demo.json"
    if record.is_file() and report.is_file() and not settings.force:
        if record.read_text(encoding="utf-8") != config_to_json(replace(settings, force=False)):
            raise ConfigError(f"{settings.out} holds a demo made with other settings; give --force, or another --out")
        print(report.read_text(encoding="utf-8"))
        print(f"(made before; {settings.out} is untouched; make it again with: minillm demo --force)")
        return 0
    from minillm.verbs.demonstration import demonstrate

    code = demonstrate(settings)
    if code == 0:
        record.write_text(config_to_json(replace(settings, force=False)), encoding="utf-8")
    return code
