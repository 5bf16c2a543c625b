#!/bin/bash
# Build, once, what boots a whole emulated 64-bit ARM board, and print the folder it is in.
#
# Debian bookworm for arm64 with systemd, an SSH server, a login on the serial console and an ordinary user `pi` who may
# use sudo without a password, as on Raspberry Pi OS; Debian's own kernel, with the modules for swap on zram and network
# emulation. tests/board/whole.py boots it with qemu-system-aarch64. What scripts/arm64_root.sh makes is lighter and does
# for most; this one has a kernel, a boot and a swap of its own.
#
# Made of the same root with a few packages more.
#
# usage: scripts/arm64_board.sh     needs root, debootstrap, qemu-user-static, qemu-system-arm (system_packages.sh)
# stdout: the folder, and nothing else: vmlinuz, initrd.img, disk.img (sparse), identity, known_host_key.pub
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

PACKAGES='systemd-sysv libpam-systemd dbus cron udev kmod sudo zstd' # beyond those of arm64_root.sh
DISK_BYTES=6G
# In the order in which they need one another: the disk, its file system, the network.
EARLY_MODULES='crc16 mbcache jbd2 crc32c_generic ext4 virtio_mmio virtio_blk failover net_failover virtio_net'
KEPT_MODULES='lib mm crypto net/sched net/core fs/ext4 fs/jbd2 drivers/block/zram drivers/block/virtio_blk.ko
drivers/virtio drivers/net/virtio_net.ko drivers/net/net_failover.ko arch/arm64/crypto'

say() { printf 'arm64 board: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

use_apt_proxy() {
    local proxy=
    eval "$(apt-config shell proxy Acquire::http::Proxy 2>/dev/null || true)"
    [ -z "$proxy" ] || [ "$proxy" = DIRECT ] || export http_proxy="$proxy"
}

build_root() {
    local root=$1 kernel
    cp -a --reflink=auto "$arm64_root" "$root"
    cp -L /etc/resolv.conf "$root/etc/resolv.conf" 2>/dev/null || true
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # nothing starts in a chroot
    chmod 755 "$root/usr/sbin/policy-rc.d"
    chroot "$root" apt-get -q update
    # shellcheck disable=SC2086  # a list of names, split on purpose
    DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get -q -y install --no-install-recommends $PACKAGES
    # Without installing the kernel: generating its initramfs under emulation takes half an hour.
    kernel=$(chroot "$root" apt-cache depends linux-image-arm64 | sed -n 's/^ *Depends: *\(linux-image-[^ ]*\).*/\1/p' |
        head -n 1)
    chroot "$root" sh -c "cd /tmp && apt-get -q -o APT::Sandbox::User=root download $kernel busybox-static"
}

configure_root() {
    local root=$1 part=$2
    chroot "$root" usermod --password "$(openssl passwd -6 raspberry)" pi
    printf 'pi ALL=(ALL) NOPASSWD: ALL\n' >"$root/etc/sudoers.d/pi"
    chmod 440 "$root/etc/sudoers.d/pi"
    printf 'board\n' >"$root/etc/hostname"
    printf '127.0.0.1 localhost\n127.0.1.1 board\n' >"$root/etc/hosts"
    printf '/dev/vda / ext4 defaults,noatime 0 1\n' >"$root/etc/fstab"
    # qemu's user network: the board is .15, this machine .2
    cat >"$root/etc/systemd/network/wired.network" <<'NETWORK'
[Match]
Type=ether
[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
NETWORK
    printf 'PasswordAuthentication no\nUseDNS no\n' >"$root/etc/ssh/sshd_config.d/board.conf"
    ssh-keygen -q -t ed25519 -N '' -C edge-lts-board -f "$part/identity"
    rm -f "$root"/etc/ssh/ssh_host_*
    ssh-keygen -q -t ed25519 -N '' -C board -f "$root/etc/ssh/ssh_host_ed25519_key"
    cp "$root/etc/ssh/ssh_host_ed25519_key.pub" "$part/known_host_key.pub"
    install -d -m 700 -o 1000 -g 1000 "$root/home/pi/.ssh"
    install -m 600 -o 1000 -g 1000 "$part/identity.pub" "$root/home/pi/.ssh/authorized_keys"
    local unit=$root/etc/systemd/system
    mkdir -p "$unit/multi-user.target.wants" "$unit/getty.target.wants"
    ln -sf /lib/systemd/system/systemd-networkd.service "$unit/multi-user.target.wants/"
    ln -sf /lib/systemd/system/ssh.service "$unit/multi-user.target.wants/"
    ln -sf /lib/systemd/system/serial-getty@.service "$unit/getty.target.wants/serial-getty@ttyAMA0.service"
    ln -sf /lib/systemd/system/multi-user.target "$unit/default.target"
    for name in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer systemd-networkd-wait-online.service; do
        ln -sf /dev/null "$unit/$name"
    done
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/tmp/*.deb
    rm -f "$root/etc/resolv.conf" "$root/usr/sbin/policy-rc.d"
}

unpack_kernel() {
    local root=$1 part=$2 from=$3 version modules path name
    dpkg-deb -x "$from"/linux-image-*.deb "$from/kernel"
    dpkg-deb -x "$from"/busybox-static_*.deb "$from/busybox"
    cp "$from"/kernel/boot/vmlinuz-* "$part/vmlinuz"
    version=$(basename "$from"/kernel/lib/modules/*)
    modules=$from/kernel/lib/modules/$version
    mkdir -p "$root/lib/modules/$version/kernel"
    cp "$modules"/modules.builtin* "$modules"/modules.order "$root/lib/modules/$version/"
    for path in $KEPT_MODULES; do
        [ -e "$modules/kernel/$path" ] || continue
        mkdir -p "$root/lib/modules/$version/kernel/$(dirname "$path")"
        cp -r "$modules/kernel/$path" "$root/lib/modules/$version/kernel/$path"
    done
    depmod --basedir "$root" "$version"

    local initrd=$from/initrd
    mkdir -p "$initrd"/{bin,lib,proc,sys,dev,new}
    cp "$from/busybox/bin/busybox" "$initrd/bin/busybox"
    for name in $EARLY_MODULES; do
        path=$(find "$modules" -name "$name.ko" | head -n 1)
        [ -n "$path" ] && cp "$path" "$initrd/lib/"
    done
    cat >"$initrd/init" <<INIT
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for name in $(echo $EARLY_MODULES); do
    [ ! -e /lib/\$name.ko ] || /bin/busybox insmod /lib/\$name.ko
done
tries=0
until /bin/busybox mount -t ext4 /dev/vda /new || [ \$tries = 50 ]; do
    tries=\$((tries + 1)); /bin/busybox sleep 0.1
done
/bin/busybox umount /proc /sys
/bin/busybox mount --move /dev /new/dev
exec /bin/busybox switch_root /new /sbin/init
INIT
    chmod 755 "$initrd/init"
    (cd "$initrd" && find . | cpio --quiet -o -H newc | gzip -9) >"$part/initrd.img"
}

build() {
    local part=$1
    mkdir -p "$part/packages"
    build_root "$part/root"
    mv "$part"/root/tmp/*.deb "$part/packages/"
    configure_root "$part/root" "$part"
    unpack_kernel "$part/root" "$part" "$part/packages"
    truncate -s "$DISK_BYTES" "$part/disk.img"
    mkfs.ext4 -q -F -L board -E lazy_itable_init=1,nodiscard -d "$part/root" "$part/disk.img"
    rm -rf "$part/root" "$part/packages"
}

[ "$(uname -s)" = Linux ] || die "needs Linux"
[ "$(id -u)" = 0 ] || die "needs root (debootstrap, mounts, binfmt_misc)"
here=$(dirname "${BASH_SOURCE[0]}")
for command in debootstrap qemu-aarch64-static qemu-system-aarch64 cpio mkfs.ext4 openssl ssh-keygen depmod flock; do
    command -v "$command" >/dev/null || die "$command is missing; run scripts/system_packages.sh"
done
arm64_root=$("$here/arm64_root.sh") # registers the emulator too

cache=${EDGE_LTS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edge-lts}
board=$cache/arm64-board-$(cat "${BASH_SOURCE[0]}" "$here/arm64_root.sh" | sha256sum | cut -c 1-12)
if [ ! -d "$board" ]; then
    exec 9>"$cache/arm64-board.lock"
    flock --nonblock 9 || { say "another process is building it; waiting"; flock 9; }
    if [ ! -d "$board" ]; then
        part=$board.part
        rm -rf --one-file-system "$part"
        use_apt_proxy
        say "building $board (about 3 minutes, 600 MB, once)"
        SECONDS=0
        set +e # not `if ! build`: that would switch off errexit inside
        (set -e && build "$part" >"$cache/arm64-board.log" 2>&1)
        status=$?
        set -e
        if [ "$status" != 0 ]; then
            tail -n 20 "$cache/arm64-board.log" >&2
            die "the build failed; its whole output is in $cache/arm64-board.log"
        fi
        mv "$part" "$board" # only a whole one ever has this name
        say "built in $SECONDS s"
    fi
fi
printf '%s\n' "$board"
