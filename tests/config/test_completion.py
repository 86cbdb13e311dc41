"""Completion scripts: what bash completes, and which shells are known."""

import shlex
import subprocess

import pytest

from lungseg.config.completion import completion_script
from lungseg.config.options import options_of
from lungseg.config.recipes import RECIPES
from lungseg.errors import SettingsError


def _completed(*words: str) -> set[str]:
    """Return what bash completes after these words; the last one is incomplete."""
    line = f"COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1}; _lungseg; echo ${{COMPREPLY[*]}}"
    script = f"{completion_script('bash')}\n{line}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_bash_completes_commands_recipes_options_and_values() -> None:
    assert _completed("lungseg", "tr") == {"train"}
    assert _completed("lungseg", "train", "") == set(RECIPES["train"])
    assert _completed("lungseg", "infer", "archive", "--postprocess.h") == {"--postprocess.holes"}
    assert _completed("lungseg", "train", "small", "--device", "") == {"auto", "cpu", "gpu"}
    assert _completed("lungseg", "segment", "x.png", "--formats", "over") == {"overlays"}
    assert _completed("lungseg", "segment", "--str") == {"--strict"}
    assert _completed("lungseg", "export", "archive", "--predictions", "") == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_option_of_every_job_is_completed(shell: str) -> None:
    script = completion_script(shell)
    for job, recipes in RECIPES.items():
        assert job in script
        options = [option for group in options_of(recipes["demo"][1]).values() for option in group]
        names = [name.removeprefix("--") for option in options for name in option.names]
        assert [name for name in names if name not in script] == []


@pytest.mark.parametrize("shell", ["", "powershell"])
def test_an_unknown_shell_is_refused(shell: str) -> None:
    with pytest.raises(SettingsError, match=r"pass bash, zsh or fish .*lungseg completion bash"):
        completion_script(shell)
