#!/usr/bin/env bash
# Prepares a Jetson for edge-tprune. JetPack 5, 6 and 7; other arm64 and x86 Linux too.
#
#   deploy/install.sh                    the user's part: a virtual environment in ~/.edge-tprune with the agent in it
#   sudo deploy/install.sh --system      the system's part: packages that JetPack lacks, and the groups that may use the GPU
#
# It prints what it will do, then asks. If it is run again, it does only what is missing. Nothing runs as root without sudo.
# From a host, `edge-tprune deploy` does the user's part; then this script is not needed.
set -euo pipefail

usage() {
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    cat <<'TEXT'
Options:
  --dry-run          print what would be done, and exit
  --yes              do not ask
  --system           the system's part (with sudo)
  --jtop             with --system: jetson-stats too, whose service jtop needs
  --campaign BUNDLE  also install the service that profiles ~/.edge-tprune/bundles/BUNDLE and continues after a reboot
  --wheel FILE       install this wheel instead of the checkout that this script is in
  --extras LIST      optional parts: ort, jetson, cuda (default: ort where the board has no TensorRT)
  --root DIR         look for the system's etc below DIR (for --dry-run)
TEXT
}

dry_run='' yes='' system='' jtop='' campaign='' wheel='' extras='' root=''
while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) dry_run=1 ;;
        --yes) yes=1 ;;
        --system) system=1 ;;
        --jtop) jtop=1 ;;
        --campaign | --wheel | --extras | --root)
            [ $# -ge 2 ] || { echo "install.sh: $1 needs a value" >&2; exit 2; }
            case $1 in
                --campaign) campaign=$2 ;;
                --wheel) wheel=$2 ;;
                --extras) extras=$2 ;;
                --root) root=${2%/} ;;
            esac
            shift ;;
        -h | --help) usage; exit 0 ;;
        *) echo "install.sh: unknown option $1. See: install.sh --help" >&2; exit 2 ;;
    esac
    shift
done

fail() { echo "install.sh: $*" >&2; exit "${code:-2}"; }

here=$(cd "$(dirname "$0")" && pwd)
home="$HOME/.edge-tprune"
steps=()     # what will be done, in words ...
commands=()  # ... and the function that does it
plan() { steps+=("$1"); commands+=("$2"); }

# --- what is here

l4t=''
if [ -r "$root/etc/nv_tegra_release" ]; then
    l4t=$(sed -n '1s/^# R\([0-9]*\) (release), REVISION: \([0-9.]*\).*/\1.\2/p' "$root/etc/nv_tegra_release")
fi
case ${l4t%%.*} in
    '') jetpack='' ;;
    35) jetpack=5 ;;
    36) jetpack=6 ;;
    38 | 39) jetpack=7 ;;
    *) jetpack=unknown ;;
esac
if [ -n "$l4t" ]; then
    echo "This is Jetson Linux $l4t (JetPack $jetpack)."
else
    echo "This is no Jetson Linux: $(uname -s) on $(uname -m)."
fi
[ "$jetpack" != unknown ] || echo "This JetPack is not known here; going on as for the newest that is."

# The system's own Python first: JetPack's TensorRT is there and nowhere else.
python=''
for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        python=$(command -v "$name")
        break
    fi
done

explain_old_python() {
    cat <<'TEXT'

There is no Python 3.10 or newer here, and the agent needs one. JetPack 5 has Python 3.8, and its TensorRT is for that alone. Either
  - update the board to JetPack 6 or 7 (Orin; Xavier ends at JetPack 5), which is the way to TensorRT; or
  - install a newer Python beside the system's, and measure with ONNX Runtime on the CPU:
        sudo apt-get install python3.10 python3.10-venv       # where your Ubuntu's sources have it
        uv python install 3.10                                # or with uv, as your user
    and run this script again; or
  - run the container of deploy/docker, built on an image that has both a newer Python and TensorRT for it.
TEXT
}

# --- the system's part

missing_packages() {
    local package packages=(openssh-server)
    [ -z "$python" ] || packages+=("python3-venv")
    if [ -n "$l4t" ] && [ "$jetpack" != 5 ]; then packages+=("python3-libnvinfer"); fi
    for package in "${packages[@]}"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || echo "$package"
    done
}

install_packages() { apt-get update && apt-get install -y "${packages[@]}"; }

missing_groups() {
    local group
    for group in video render jtop; do
        if getent group "$group" >/dev/null && ! id -nG "$1" | tr ' ' '\n' | grep -qx "$group"; then echo "$group"; fi
    done
}

join_groups() { usermod -aG "$(IFS=,; echo "${groups[*]}")" "$user"; }

install_jtop() {
    local options=()
    # Ubuntu 24.04 marks its Python as managed by apt; jetson-stats has no package there.
    [ ! -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')/EXTERNALLY-MANAGED" ] || options+=(--break-system-packages)
    "$python" -m pip install --upgrade "${options[@]}" jetson-stats && systemctl restart jtop.service
}

plan_system() {
    user=${SUDO_USER:-$(id -un)}
    mapfile -t packages < <(missing_packages)
    mapfile -t groups < <(missing_groups "$user")
    [ ${#packages[@]} -eq 0 ] || plan "apt-get install ${packages[*]}" install_packages
    [ ${#groups[@]} -eq 0 ] || plan "add $user to the groups ${groups[*]} (log in again afterwards)" join_groups
    if [ -n "$jtop" ]; then
        [ -n "$python" ] || { explain_old_python >&2; exit 1; }
        "$python" -m pip show jetson-stats >/dev/null 2>&1 || plan "pip install jetson-stats for the whole system, with its service jtop" install_jtop
    fi
}

# --- the user's part

# Two measurements, or one and an installation, would disturb each other: `edge-tprune deploy` and campaigns hold the same lock.
locked=''
take_lock() {
    [ -z "$locked" ] || return 0
    mkdir -p "$home" && chmod 700 "$home" && exec 9>"$home/running.lock" && {
        ! command -v flock >/dev/null || flock -n 9 || { echo "install.sh: something is being measured here: wait for it to finish, or stop it" >&2; return 1; }
    } && locked=1
}

# The agent that is there is set aside until the new one is complete; a virtual environment works at its own place alone.
set_aside() {
    if [ -d "$home/venv.old" ] && [ ! -f "$home/venv/edge-tprune.json" ] && [ ! -f "$home/venv/install.sh.stamp" ]; then rm -rf "$home/venv"; fi # an installation was cut off half-way
    [ ! -d "$home/venv" ] || { rm -rf "$home/venv.old" && mv "$home/venv" "$home/venv.old"; }
}

put_back() { [ ! -d "$home/venv.old" ] || { rm -rf "$home/venv" && mv "$home/venv.old" "$home/venv"; }; }

make_venv() { take_lock && trap put_back EXIT && set_aside && "$python" -m venv --system-site-packages "$home/venv"; }

install_agent() {
    take_lock \
        && PIP_USER=0 PIP_DRY_RUN=0 "$home/venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade --force-reinstall "$source${extras:+[$extras]}" \
        && echo "$stamp" >"$home/venv/install.sh.stamp" && rm -rf "$home/venv.old" && trap - EXIT && exec 9>&-
}

link_command() { mkdir -p "$HOME/.local/bin" && ln -sfn "$home/venv/bin/edge-tprune" "$HOME/.local/bin/edge-tprune"; }

install_campaign() {
    local units="$HOME/.config/systemd/user"
    mkdir -p "$units" "$home/campaigns"
    install -m 755 "$here/systemd/campaign" "$home/campaign"
    install -m 644 "$here/systemd/edge-tprune-campaign@.service" "$units/"
    systemctl --user daemon-reload && systemctl --user enable --now "edge-tprune-campaign@$campaign.service"
}

plan_user() {
    [ -n "$dry_run" ] || [ "$(id -u)" != 0 ] || fail "this part is the user's: run it without sudo"
    [ -n "$python" ] || { explain_old_python >&2; exit 1; }
    if [ -z "$wheel" ] && [ ! -f "$here/../pyproject.toml" ]; then
        fail "this script lies in no checkout of edge-tprune: give --wheel FILE"
    fi
    [ -z "$wheel" ] || [ -f "$wheel" ] || fail "--wheel $wheel: no such file"
    source=${wheel:-$(cd "$here/.." && pwd)}
    if [ -z "$extras" ] && ! "$python" -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("tensorrt") or u.find_spec("onnxruntime")))'; then
        extras=ort
    fi
    if [ -n "$wheel" ]; then stamp="$extras $(sha256sum <"$wheel")"; else stamp="$extras $(cd "$source" && find edge_tprune pyproject.toml -type f -not -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum | sha256sum)"; fi
    # An update of the system's Python leaves an environment that cannot start.
    if [ "$(cat "$home/venv/install.sh.stamp" 2>/dev/null)" != "$stamp" ] || ! "$home/venv/bin/edge-tprune" --version >/dev/null 2>&1; then
        plan "make a virtual environment in $home/venv with $python, which sees the system's packages" make_venv
        plan "install the agent from $source${extras:+ with $extras}" install_agent
    fi
    local link="$HOME/.local/bin/edge-tprune"
    if [ "$(readlink "$link")" = "$home/venv/bin/edge-tprune" ]; then
        :
    elif [ -e "$link" ]; then
        echo "$link is a $([ -L "$link" ] && echo link || echo file) of yours and stays: run $home/venv/bin/edge-tprune, or move it away and run this script again"
    else
        plan "link the command into $HOME/.local/bin" link_command
    fi
    if [ -n "$campaign" ]; then
        [[ $campaign =~ ^[A-Za-z0-9][A-Za-z0-9._+-]*$ ]] || fail "--campaign $campaign: give the name of a directory in ~/.edge-tprune/bundles"
        plan "install and start the service edge-tprune-campaign@$campaign (yours, not root's)" install_campaign
    fi
}

# --- doing it

if [ -n "$system" ]; then
    plan_system
    [ -n "$dry_run" ] || [ "$(id -u)" = 0 ] || fail "--system needs root. Run: sudo $0 --system"
else
    plan_user
fi

if [ ${#steps[@]} -eq 0 ]; then
    echo "Everything is here already: nothing to do."
else
    echo "This will:"
    printf '  - %s\n' "${steps[@]}"
    [ -z "$dry_run" ] || exit 0
    if [ -z "$yes" ]; then
        read -r -p "Go on? [y/N] " answer || answer=''
        case $answer in [yY]*) ;; *) echo "Nothing was done."; exit 1 ;; esac
    fi
    for index in "${!steps[@]}"; do
        echo "… ${steps[index]}"
        "${commands[index]}" || code=1 fail "this failed: ${steps[index]}. Run the script again to go on"
    done
fi
if [ -z "$system" ]; then
    if [ "$(readlink "$HOME/.local/bin/edge-tprune")" = "$home/venv/bin/edge-tprune" ]; then echo "Next: $HOME/.local/bin/edge-tprune doctor"; else echo "Next: $home/venv/bin/edge-tprune doctor"; fi
fi
