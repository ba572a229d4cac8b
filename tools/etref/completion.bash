# completion.bash: etref's words in bash: commands, options, and what stands behind them.
#
# The tool is asked, so nothing here is to be kept up: its commands by `etref help`, options by
# `etref help COMMAND`, names by `etref list`. tests/test_terminal.c holds this against the option
# tables.

_etref_options() { # TOOL COMMAND
    "$1" help "$2" 2>/dev/null | sed -n '/^examples:/q; s/^usage://p; s/^       etref//p; s/^  --/--/p' |
        sed 's/   *.*//' |
        grep -o -e '--[a-z][a-z0-9-]*' | sort -u
}

_etref_choices() { # TOOL COMMAND OPTION
    case $3 in
    --profile | --emulate | --conclusive) "$1" list profiles 2>/dev/null | awk 'NF == 0 { exit } NR > 1 && !/^ / { print $1 }' ;;
    --suite) "$1" list suites 2>/dev/null | awk 'NR > 1 && !/^ / { print $1 }' ;;
    --case) "$1" list cases 2>/dev/null | awk 'NR > 1 && !/^ / { print $2 }' ;;
    --set) "$1" list fields 2>/dev/null | awk 'NR > 1 && !/^ / { print $1 "=" }' ;;
    --require) "$1" list tensors 2>/dev/null | awk '/^(fwd|bwd|route|loss|state)\./ { print $1 }' ;;
    --format)
        case $2 in
        verify | check) echo text json junit ;;
        leakage) echo text json csv ;;
        *) echo text json ;;
        esac
        ;;
    --engine) echo plain blas ;;
    --ties) echo rule any ;;
    --table) [ "$2" = leakage ] || echo layer tokens granularity width verify ;;
    esac
}

_etref() {
    local tool=${COMP_WORDS[0]} word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
    local command=${COMP_WORDS[1]} words
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="$("$tool" help 2>/dev/null | awk '/^  [a-z]/ && $1 != "etref" { print $1 }') help version"
    elif [ "$command" = help ]; then
        words=$("$tool" help 2>/dev/null | awk '/^  [a-z]/ && $1 != "etref" { print $1 }')
    else
        words=$(_etref_choices "$tool" "$command" "$before")
        if [ -z "$words" ]; then
            case $command:$word in
            *:-*) words=$(_etref_options "$tool" "$command") ;;
            list:*) words="suites cases fields tensors layers gates norms sources profiles hypotheses" ;;
            leakage:*) [ "$COMP_CWORD" -gt 2 ] || words="bound exact encode decode reach audit study" ;;
            esac
        fi
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
    [ ${#COMPREPLY[@]} -gt 0 ] || mapfile -t COMPREPLY < <(compgen -f -- "$word")
}
complete -o filenames -F _etref etref
