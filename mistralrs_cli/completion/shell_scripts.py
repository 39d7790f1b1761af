"""The functions of the shells. Each asks ``mistralrs completions SHELL -- WORD...`` for a candidate a line.

A line is a word, a tab and its meaning; ``:files`` stands for the names of files, which the shell knows best.
"""

from __future__ import annotations

from collections.abc import Mapping

FILES = ":files"

BASH = """\
# mistralrs: to have it in each shell, add to ~/.bashrc: source <(mistralrs completions bash)
_mistralrs() {
    local line found current=${COMP_WORDS[COMP_CWORD]}
    COMPREPLY=()
    while IFS= read -r line; do
        if [[ $line == :files ]]; then
            compopt -o filenames 2>/dev/null
            while IFS= read -r found; do COMPREPLY+=("$found"); done < <(compgen -f -- "$current")
        else
            printf -v found %q "${line%%$'\\t'*}"
            COMPREPLY+=("$found")
        fi
    done < <("${COMP_WORDS[0]}" completions bash -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -F _mistralrs mistralrs mistralrs-server
"""

ZSH = """\
#compdef mistralrs mistralrs-server
# mistralrs: to have it in each shell, add to ~/.zshrc after compinit: source <(mistralrs completions zsh)
_mistralrs() {
    local line
    local -a found
    for line in "${(@f)$("${words[1]}" completions zsh -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)}"; do
        if [[ $line == :files ]]; then
            _files
        elif [[ -n $line ]]; then
            found+=("${${line%%$'\\t'*}//:/\\\\:}:${line#*$'\\t'}")
        fi
    done
    (( $#found )) && _describe mistralrs found
}
compdef _mistralrs mistralrs mistralrs-server
"""

FISH = """\
# mistralrs: to have it in each shell: mistralrs completions fish >~/.config/fish/completions/mistralrs.fish
function __mistralrs_candidates
    set -l words (commandline -opc)
    set -a words (commandline -ct | string collect --allow-empty)
    for line in ($words[1] completions fish -- $words[2..-1] 2>/dev/null)
        if test "$line" = :files
            __fish_complete_path (commandline -ct)
        else
            echo $line
        end
    end
end
complete -c mistralrs -f -a '(__mistralrs_candidates)'
complete -c mistralrs-server -f -a '(__mistralrs_candidates)'
"""

SCRIPTS: Mapping[str, str] = {"bash": BASH, "zsh": ZSH, "fish": FISH}
"""The script of each shell."""
