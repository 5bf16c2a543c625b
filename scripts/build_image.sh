#!/bin/bash
# Build Dockerfile.arm64 without a container engine (buildah, in a chroot) and run its torch as on a Cortex-A72.
#
# The base image is made from the cached root of scripts/arm64_root.sh, so no image registry is asked. pip's settings of
# this machine (index, certificates) are bind-mounted while building and are not in the image; only their empty mount
# points are. Built again only when the Dockerfile, this script or the root has changed.
#
# usage: scripts/build_image.sh [WITH_SSHD=1 ...]      needs root, buildah and network access to Debian and PyPI
# stdout: "torch VERSION on MACHINE", as the image says it     cache: as arm64_root.sh; it holds one image
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

BASE=docker.io/library/debian:bookworm-slim
PROOF='import os, torch; x = torch.ones(64, 64); x @ x; print("torch", torch.__version__, "on", os.uname().machine)'

say() { printf 'arm64 image: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

command -v buildah >/dev/null || die "buildah is missing; run scripts/system_packages.sh"
root=$(scripts/arm64_root.sh)
cache=$(dirname "$root")
key=$({ cat Dockerfile.arm64 scripts/build_image.sh; printf '%s\n' "$root" "$@"; } | sha256sum | cut -c 1-12)
image=localhost/edge-lts-board:$key
settings=$(mktemp -d)
trap 'rm -rf "$settings"' EXIT

buildah() { command buildah --root "$cache/images" --runroot /run/edge-lts-images --storage-driver vfs "$@"; }

# What a pip inside the image needs to reach the index that this machine's pip uses. It becomes pip's global file there,
# because naming it in the environment would stay in the image.
write_pip_settings() {
    local name value cert
    printf '[global]\n' >"$settings/pip.conf"
    for name in index-url trusted-host proxy; do
        value=$(python3 -m pip config get "global.$name" 2>/dev/null) || continue
        printf '%s = %s\n' "$name" "$value" >>"$settings/pip.conf"
    done
    cert=$(python3 -m pip config get global.cert 2>/dev/null) || cert=${PIP_CERT:-}
    if [ -n "$cert" ]; then
        cp "$cert" "$settings/cert.pem"
        printf 'cert = /run/pip-settings/cert.pem\n' >>"$settings/pip.conf"
    fi
}

build() {
    local container
    buildah rm --all >/dev/null
    buildah rmi --all --force >/dev/null
    container=$(buildah from --arch arm64 scratch)
    buildah add --quiet "$container" "$root" / >/dev/null
    buildah commit --quiet --rm "$container" "$BASE" >/dev/null
    write_pip_settings
    buildah bud --isolation chroot --platform linux/arm64 --pull=never --network host \
        --volume "$settings:/run/pip-settings:ro" --volume "$settings/pip.conf:/etc/pip.conf:ro" \
        "${@/#/--build-arg=}" --tag "$image" -f Dockerfile.arm64 .
}

exec 9>"$cache/images.lock"
flock --nonblock 9 || { say "another process is building; waiting"; flock 9; }
if ! buildah inspect --type image "$image" >/dev/null 2>&1; then
    say "building (about 5 minutes, 1 GB, once); log: $cache/images.log"
    SECONDS=0
    set +e # not `if ! build`: that would switch off errexit inside
    (set -e && build "$@") >"$cache/images.log" 2>&1 </dev/null
    status=$?
    set -e
    if [ "$status" != 0 ]; then
        tail -n 20 "$cache/images.log" >&2
        die "the build failed; all of its output is in $cache/images.log"
    fi
    say "built in $SECONDS s"
fi
container=edge-lts-board-$key
buildah inspect --type container "$container" >/dev/null 2>&1 ||
    buildah from --arch arm64 --pull=never --name "$container" "$image" >/dev/null
buildah run --isolation chroot --env QEMU_CPU=cortex-a72 "$container" -- python3 -c "$PROOF"
