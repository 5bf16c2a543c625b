#!/bin/bash
# Build, once, the file system of an emulated 64-bit ARM board and print its path.
#
# Debian bookworm for arm64 with about what Raspberry Pi OS Lite offers a visitor: Python without pip, venv or numpy,
# an SSH server and an ordinary user `pi` who can log in by key. The kernel runs its programs through qemu-user-static
# (binfmt_misc). Nothing of this machine's configuration is copied in. tests/board/emulated.py makes boards of it.
#
# usage: scripts/arm64_root.sh           needs root, debootstrap and qemu-user-static (scripts/system_packages.sh)
# stdout: the path, and nothing else     cache: ${EDGE_LTS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edge-lts}
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

SUITE=bookworm
PACKAGES=python3,openssh-server,iproute2,procps
BINFMT=/proc/sys/fs/binfmt_misc

say() { printf 'arm64 root: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

register_emulator() {
    [ -e "$BINFMT/register" ] || mount -t binfmt_misc binfmt_misc "$BINFMT" || die "cannot mount binfmt_misc"
    [ -e "$BINFMT/qemu-aarch64" ] && return
    local rule
    rule=$(head -n 1 /usr/lib/binfmt.d/qemu-aarch64.conf) || die "qemu-user-static has no binfmt.d/qemu-aarch64.conf"
    # Flag F opens the interpreter now, so that it need not exist inside the chroot.
    case ${rule##*:} in *F*) ;; *) rule=${rule}F ;; esac
    printf '%s\n' "$rule" 2>/dev/null >"$BINFMT/register" || [ -e "$BINFMT/qemu-aarch64" ] ||
        die "cannot register qemu-aarch64 with binfmt_misc"
}

# The mirror that apt uses on this machine for the suite, or nothing: debootstrap then takes its own default.
configured_mirror() {
    apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        sed -n "s/^Debian $SUITE //p" | head -n 1 || true
}

use_apt_proxy() {
    local proxy=
    eval "$(apt-config shell proxy Acquire::http::Proxy 2>/dev/null || true)"
    [ -z "$proxy" ] || [ "$proxy" = DIRECT ] || export http_proxy="$proxy"
}

build() {
    local root=$1 log=$2
    # A mount namespace of its own: what debootstrap mounts is gone when it ends, however it ends.
    unshare --mount debootstrap --arch=arm64 --variant=minbase --include="$PACKAGES" "$SUITE" "$root" \
        ${mirror:+"$mirror"} >"$log" 2>&1
    chroot "$root" useradd --create-home --shell /bin/bash --password '*' pi
    install -d -m 700 -o 1000 -g 1000 "$root/home/pi/.ssh"
    # Every board makes host keys of its own, and has its own name.
    rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/hostname" "$root/etc/resolv.conf"
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    mkdir -p "$root/run/sshd"
}

[ "$(uname -s)" = Linux ] || die "needs Linux"
[ "$(id -u)" = 0 ] || die "needs root (chroot, mounts, binfmt_misc)"
for command in debootstrap qemu-aarch64-static flock unshare; do
    command -v "$command" >/dev/null || die "$command is missing; run scripts/system_packages.sh"
done

cache=${EDGE_LTS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edge-lts}
root=$cache/arm64-root-$(sha256sum <"${BASH_SOURCE[0]}" | cut -c 1-12)
mkdir -p "$cache"
register_emulator
if [ ! -d "$root" ]; then
    exec 9>"$cache/arm64-root.lock"
    flock --nonblock 9 || { say "another process is building it; waiting"; flock 9; }
    if [ ! -d "$root" ]; then
        part=$root.part
        rm -rf --one-file-system "$part"
        use_apt_proxy
        mirror=$(configured_mirror)
        say "building $root (about 3 minutes, 350 MB, once)"
        SECONDS=0
        set +e # not `if ! build`: that would switch off errexit inside
        (set -e && build "$part" "$cache/arm64-root.log")
        status=$?
        set -e
        if [ "$status" != 0 ]; then
            tail -n 20 "$cache/arm64-root.log" >&2
            die "the build failed; debootstrap's whole output is in $cache/arm64-root.log"
        fi
        mv "$part" "$root" # only a whole root ever has this name
        say "built in $SECONDS s"
    fi
fi
printf '%s\n' "$root"
