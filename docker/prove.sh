#!/usr/bin/env bash
# Run the steps of a Dockerfile without a container engine's daemon, and a sweep in what comes out of it.
#
#     docker/prove.sh [docker/Dockerfile] [FOLDER]       # as root; needs buildah, debootstrap and some 6 GB in FOLDER
#
# The base image cannot be pulled where there is no registry: a Debian root made with debootstrap takes its place,
# and buildah runs each step in it by chroot. Packages come from where this machine gets its own.
set -euo pipefail

file=${1:-docker/Dockerfile}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${2:-$(mktemp -d /tmp/lora-lab-image.XXXXXX)}
base=$(awk '$1 == "FROM" { print $2; exit }' "$root/$file")
store=(--root "$folder/store" --runroot "$folder/run" --storage-driver vfs)
mkdir -p "$folder/base"

if [ ! -e "$folder/base/root.tar" ]; then
  debootstrap --variant=minbase bookworm "$folder/base/root" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >/dev/null
  for name in /etc/apt/sources.list /etc/apt/apt.conf.d; do
    [ ! -s "$name" ] && [ ! -d "$name" ] || cp -rT "$name" "$folder/base/root$name"
  done
  tar -C "$folder/base/root" -cf "$folder/base/root.tar" .
  rm -rf "$folder/base/root"
fi
printf 'FROM scratch\nADD root.tar /\n' >"$folder/base/Dockerfile"
buildah "${store[@]}" bud -q --isolation chroot -t "$base" -f "$folder/base/Dockerfile" "$folder/base"

# pip is told what it is told here, under names that the packages of the image do not touch
{ grep -v '^cert *=' /etc/pip.conf 2>/dev/null || echo '[global]'; } >"$folder/pip.conf"
own=(--volume "$folder/pip.conf:/etc/pip.conf:ro")
if [ -e /etc/ssl/certs/ca-certificates.crt ]; then
  echo 'cert = /certificates.crt' >>"$folder/pip.conf"
  own+=(--volume /etc/ssl/certs/ca-certificates.crt:/certificates.crt:ro)
fi
if [ -d "${PIP_FIND_LINKS:-}" ]; then
  echo 'find-links = /wheels' >>"$folder/pip.conf"
  own+=(--volume "$PIP_FIND_LINKS:/wheels:ro")
fi
[ -z "${TORCH_INDEX:-}" ] || own+=(--build-arg "TORCH_INDEX=$TORCH_INDEX")
buildah "${store[@]}" bud --isolation chroot --pull-never "${own[@]}" -t lora-lab:proof -f "$root/$file" "$root"

box=$(buildah "${store[@]}" from --pull-never lora-lab:proof)
run() { buildah "${store[@]}" run --isolation chroot "$box" -- "$@"; }
test "$(run id -u)" = 10001
run lora-lab sweep rank_alpha model=tiny budget.steps=3 evaluation.exact_match=false tracking=none \
  'sweep.space={method.r: {choices: [2, 4]}}'
run lora-lab --version
echo "$file: every step ran, and a sweep in it as user 10001"
