"""The functions of the shells. Each asks ``mistralrs completions SHELL -- WORD...`` for a candidate a line.

A line is a word, a tab and its meaning; ``:files`` stands for the names of files, which the shell knows best.
"""

from __future__ import annotations

from collections.abc import Mapping

FILES = ":files"

BASH = """\
# mistralrs: to have it in each shell, add to ~/.bashrc: source <(mistralrs completions bash)
_mistralrs() {
    local line found place current=${COMP_WORDS[COMP_CWORD]}
    local -a words=()
    # bash breaks words at = and :, and completes the last piece alone
    for ((place = 1; place <= COMP_CWORD; place++)); do
        if ((place > 1)) && [[ ${COMP_WORDS[place]} == [=:]* || ${COMP_WORDS[place - 1]} == [=:]* ]]; then
            words[${#words[@]}-1]+=${COMP_WORDS[place]}
        else
            words+=("${COMP_WORDS[place]}")
        fi
    done
    [[ $current == [=:]* ]] && current=
    local kept=${words[${#words[@]}-1]}
    kept=${kept%"$current"}
    COMPREPLY=()
    while IFS= read -r line; do
        if [[ $line == :files ]]; then
            compopt -o filenames 2>/dev/null
            while IFS= read -r found; do COMPREPLY+=("$found"); done < <(compgen -f -- "$current")
        else
            line=${line%%$'\\t'*}
            found=${line#"$kept"}
            [[ $found == *[!A-Za-z0-9_./:,=@%+-]* ]] && printf -v found %q "$found"
            COMPREPLY+=("$found")
        fi
    done < <("${COMP_WORDS[0]}" completions bash -- "${words[@]}" 2>/dev/null)
}
complete -F _mistralrs mistralrs mistralrs-server
"""

ZSH = """\
#compdef mistralrs mistralrs-server
# mistralrs: to have it in each shell, add to ~/.zshrc after compinit: source <(mistralrs completions zsh)
_mistralrs() {
    local line word
    local -i files=0
    local -a found
    for line in "${(@f)$("${words[1]}" completions zsh -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)}"; do
        if [[ $line == :files ]]; then
            files=1
        elif [[ -n $line ]]; then
            word=${${line%%$'\\t'*}//:/\\\\:}
            [[ $line == *$'\\t'* ]] && word+=":${line#*$'\\t'}"
            found+=("$word")
        fi
    done
    (( $#found )) && _describe mistralrs found
    if (( files )); then
        compset -P '*='
        _files
    fi
}
compdef _mistralrs mistralrs mistralrs-server
"""

FISH = """\
# mistralrs: to have it in each shell, add to ~/.config/fish/config.fish: mistralrs completions fish | source
function __mistralrs_candidates
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l kept (string match -r '^[^/]*=' -- "$current")
    for line in ($words[1] completions fish -- $words[2..-1] "$current" 2>/dev/null)
        if test "$line" = :files
            for path in (__fish_complete_path (string replace -r '^[^/]*=' '' -- "$current"))
                echo "$kept$path"
            end
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
