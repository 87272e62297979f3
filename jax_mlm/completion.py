"""Completion of these commands in bash and zsh: `python -m jax_mlm completion`.

tyro writes a script for a program of one word; after `python -m` it would answer to every use of python.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from jax_mlm.help import options_of
from jax_mlm.presets import PRESETS

CONFIGS = {
    "train": ("jax_mlm.config", "TrainConfig"),
    "evaluate": ("jax_mlm.evaluate", "EvaluateConfig"),
    "compare": ("jax_mlm.compare", "CompareConfig"),
    "hf import": ("jax_mlm.hf.__main__", "ImportConfig"),
    "hf export": ("jax_mlm.hf.__main__", "ExportConfig"),
}
"""Command → where the class is whose fields are its options."""

SCRIPT = """# completion of jax_mlm's commands for bash; for zsh: autoload -U bashcompinit && bashcompinit, then this
_jax_mlm() {{
  local words=("${{COMP_WORDS[@]:1:$((COMP_CWORD - 1))}}") current="${{COMP_WORDS[COMP_CWORD]}}" command choices=""
  [[ "${{words[0]}}" == -m ]] || return
  case "${{words[1]}}" in
    jax_mlm) command="${{words[2]}}"; words=("${{words[@]:3}}") ;;
    jax_mlm.*) command="${{words[1]#jax_mlm.}}"; words=("${{words[@]:2}}") ;;
    "") COMPREPLY=($(compgen -W "jax_mlm {modules}" -- "$current")); return ;;
    *) return ;;
  esac
  if [[ "$command" == hf && -n "${{words[0]}}" ]]; then command="hf ${{words[0]}}"; fi
  case "$command ${{words[@]: -1}}" in
{values}
  esac
  if [[ -z "$choices" ]]; then
    case "$command" in
      "") choices="{commands}" ;;
      hf) choices="import export" ;;
{options}
    esac
    [[ -z "$command" || "$command" == hf || "$current" == -* ]] || choices=""
  fi
  COMPREPLY=($(compgen -W "$choices" -- "$current"))
}}
complete -o default -o bashdefault -F _jax_mlm python python3
"""


def script(commands: Mapping[str, str]) -> str:
    """The script, from the commands' own options and choices."""
    values, options = [], []
    for command, (module, name) in CONFIGS.items():
        found = [o for o in options_of(getattr(importlib.import_module(module), name)) if not o.positional]
        listed = ["--help", "--version", *(["--help-all"] if command == "train" else []), *(o.name for o in found)]
        options.append(f'      "{command}") choices="{" ".join(listed)}" ;;')
        for option in found:
            choices = tuple(PRESETS) if option.field == "preset" else tuple(filter(None, option.choices))
            if choices:
                values.append(f'    "{command} {option.name}") choices="{" ".join(choices)}" ;;')
    modules = " ".join(f"jax_mlm.{name}" for name in commands)
    return SCRIPT.format(
        modules=modules, commands=" ".join(commands), values="\n".join(values), options="\n".join(options)
    )
