"""Scripts that complete the commands, recipes and options of `lungseg` in a shell."""

from collections.abc import Callable, Iterator, Mapping

from lungseg.config.options import Option, options_of
from lungseg.config.overview import DAILY_COMMANDS, JOB_COMMANDS, OTHER_COMMANDS
from lungseg.config.recipes import DATA_RECIPES, RECIPES, Job
from lungseg.config.segment import SEGMENT_FORMATS, segment_options
from lungseg.errors import SettingsError

_GENERAL = {"--help": "explain the command", "--config": "YAML file of settings"}

_BASH = """_lungseg() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands} --help --version"
    else
        case "${{COMP_WORDS[1]}} $previous" in
{values}
        esac
        if [ -z "$words" ]; then
            case "${{COMP_WORDS[1]}} $word" in
{options}
            esac
        fi
        if [ -z "$words" ] && [ "$COMP_CWORD" -eq 2 ]; then
            case "${{COMP_WORDS[1]}}" in
{recipes}
            esac
        fi
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _lungseg lungseg
"""


def completion_script(shell: str) -> str:
    """Return the script of a shell, to be sourced by it.

    Raises:
        SettingsError: the shell is not bash, zsh or fish.

    """
    if shell not in _SCRIPTS:
        known = "; ".join(f"{name}: {usage}" for name, (_, usage) in _SCRIPTS.items())
        raise SettingsError(f"completion {shell or 'without a shell'}: pass bash, zsh or fish ({known})")
    return _SCRIPTS[shell][0]()


def _bash() -> str:
    values = [_case('"segment --formats"', SEGMENT_FORMATS)]
    options, recipes = [_case('"segment "-*', segment_options())], []
    for job in RECIPES:
        options.append(_case(f'"{job} "-*', [*_GENERAL, *(name for option in _options(job) for name in option.names)]))
        recipes.append(_case(job, RECIPES[job]))
        for option in _options(job):
            if option.choices:
                values.append(_case(f'"{job} {option.name}"', option.choices))
    recipes.append(_case("completion", _SCRIPTS))
    lines = {"values": values, "options": options, "recipes": recipes}
    return _BASH.format(
        commands=" ".join([*DAILY_COMMANDS, *JOB_COMMANDS, *OTHER_COMMANDS]),
        **{name: "\n".join(f"{' ' * 12}{line}" for line in cases) for name, cases in lines.items()},
    )


def _zsh() -> str:
    load = "autoload -Uz compinit bashcompinit\n(( $+functions[compdef] )) || compinit\nbashcompinit\n"
    return load + _bash()


def _fish() -> str:
    return "\n".join(["complete -c lungseg -e", *_fish_commands(), *_fish_options()]) + "\n"


def _fish_commands() -> Iterator[str]:
    for name, summary in {**DAILY_COMMANDS, **JOB_COMMANDS, **OTHER_COMMANDS}.items():
        yield f"complete -c lungseg -n __fish_use_subcommand -f -a {name} -d {_quote(summary)}"
    for name in ("help", "version"):
        yield f"complete -c lungseg -n __fish_use_subcommand -l {name}"
    yield f"complete -c lungseg -n '__fish_seen_subcommand_from completion' -f -a {_quote(' '.join(_SCRIPTS))}"


def _fish_options() -> Iterator[str]:
    for name in segment_options():
        values = f" -x -a {_quote(' '.join(SEGMENT_FORMATS))}" if name == "--formats" else ""
        yield f"complete -c lungseg -n '__fish_seen_subcommand_from segment' -l {name[2:]}{values}"
    for job in RECIPES:
        start = f"complete -c lungseg -n '__fish_seen_subcommand_from {job}'"
        for name, (promise, _) in RECIPES[job].items():
            yield f"{start} -n 'test (count (commandline -opc)) -eq 2' -f -a {name} -d {_quote(promise)}"
        for name, text in _GENERAL.items():
            yield f"{start} -l {name[2:]} -d {_quote(text)}"
        for option in _options(job):
            values = f" -x -a {_quote(' '.join(option.choices))}" if option.choices else ""
            needs_value = "" if option.is_flag or values else " -r"
            for name in option.names:
                yield f"{start} -l {name[2:]}{needs_value}{values} -d {_quote(option.help)}"


def _options(job: Job) -> list[Option]:
    return [option for group in options_of(RECIPES[job][DATA_RECIPES[job]][1]).values() for option in group]


def _case(pattern: str, words: Mapping[str, object] | list[str] | tuple[str, ...]) -> str:
    return f'{pattern}) words="{" ".join(words)}" ;;'


def _quote(text: str) -> str:
    """Quote a text for fish, which knows no other escapes inside single quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SCRIPTS: Mapping[str, tuple[Callable[[], str], str]] = {
    "bash": (_bash, 'eval "$(lungseg completion bash)" in ~/.bashrc'),
    "zsh": (_zsh, 'eval "$(lungseg completion zsh)" in ~/.zshrc'),
    "fish": (_fish, "lungseg completion fish | source in ~/.config/fish/config.fish"),
}
