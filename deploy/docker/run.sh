#!/usr/bin/env bash
# Runs edge-tprune in its container, with everything mounted that it reads: sysfs, the device tree, the power mode, jtop's socket.
#
#   deploy/docker/run.sh doctor
#   deploy/docker/run.sh profile bundles/ref --out profiles       (paths below the current directory)
#   PRINT=1 deploy/docker/run.sh ...                              only prints the command
#
# The container sees the current directory as /work and may write nothing else. It is not privileged.
set -euo pipefail

image=${IMAGE:-edge-tprune}
options=(--rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" --volume /sys:/sys:ro)
# Docker hides /sys/firmware, where the device tree says which board this is.
options+=(--security-opt systempaths=unconfined)
for path in /etc/nv_tegra_release /etc/nvpmodel.conf /var/lib/nvpmodel; do
    [ ! -e "$path" ] || options+=(--volume "$path:$path:ro")
done
if [ -S /run/jtop.sock ]; then
    options+=(--volume /run/jtop.sock:/run/jtop.sock --group-add "$(stat -c %g /run/jtop.sock)")
fi
for group in video render; do
    entry=$(getent group "$group" || true)
    [ -z "$entry" ] || options+=(--group-add "$(cut -d: -f3 <<<"$entry")")
done
# JetPack 5 and 6 reach their GPU through the runtime of NVIDIA's container toolkit, JetPack 7 as every other machine does.
if [ -r /etc/nv_tegra_release ] && ! grep -q '^# R3[89] ' /etc/nv_tegra_release; then
    options+=(--runtime nvidia)
elif [ -e /dev/nvidiactl ]; then
    options+=(--gpus all)
fi
[ ! -t 1 ] || options+=(--tty --interactive)
command=(docker run "${options[@]}" "$image" "$@")
if [ -n "${PRINT:-}" ]; then
    printf '%q ' "${command[@]}"
    echo
else
    exec "${command[@]}"
fi
