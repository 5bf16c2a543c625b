#!/bin/sh
# Install what the tests need beyond Python: a real sshd, what an emulated arm64 board is made of, and a browser with a
# font for the HTML report.
#
# Needs root and apt. Without them it prints what is missing and succeeds: the tests concerned then skip with a reason,
# or fail if EDGE_LTS_REQUIRE names them. Installing starts no service: the tests start an sshd of their own.
set -eu

PACKAGES='
buildah
ca-certificates
chromium
cpio
debian-archive-keyring
debootstrap
e2fsprogs
fonts-dejavu-core
iproute2
kmod
openssh-client
openssh-server
openssl
qemu-system-arm
qemu-user-static
util-linux
'
POLICY=/usr/sbin/policy-rc.d
MARK='written by edge-lts scripts/system_packages.sh'

say() { printf 'system packages: %s\n' "$*" >&2; }

missing_packages() {
    for package in $PACKAGES; do
        status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$status" = installed ] || printf '%s ' "$package"
    done
}

missing_commands() {
    for command in ssh sshd qemu-aarch64-static qemu-system-aarch64 debootstrap cpio depmod ip flock unshare nsenter buildah chromium; do
        PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null 2>&1 || printf '%s ' "$command"
    done
}

remove_policy() {
    if grep -qsF "$MARK" "$POLICY"; then rm -f "$POLICY"; fi
}

if ! command -v apt-get >/dev/null 2>&1 || ! command -v dpkg-query >/dev/null 2>&1; then
    missing=$(missing_commands)
    [ -z "$missing" ] || say "no apt here, and these commands are missing: $missing(tests that need them are skipped)"
    exit 0
fi

remove_policy # an interrupted earlier call may have left it
missing=$(missing_packages)
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
    say "missing: $missing(tests that need them are skipped); to install them: sudo scripts/system_packages.sh"
    exit 0
fi

# Debian starts and enables a newly installed server. A policy-rc.d that forbids it is the documented way to refuse.
trap remove_policy EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
if [ ! -e "$POLICY" ]; then
    printf '#!/bin/sh\n# %s\nexit 101\n' "$MARK" >"$POLICY"
    chmod 755 "$POLICY"
fi
had_sshd=$(dpkg-query --show --showformat='${db:Status-Status}' openssh-server 2>/dev/null || true)

log=$(mktemp)
say "installing $missing"
export DEBIAN_FRONTEND=noninteractive
# Of names that this distribution does not know (Ubuntu has no package chromium), the others are installed all the same.
known() { for package in $missing; do ! apt-cache show "$package" >/dev/null 2>&1 || printf '%s ' "$package"; done; }
# shellcheck disable=SC2046  # a list of names, split on purpose
if ! { apt-get update -qq && apt-get install -qq --no-install-recommends -y $(known); } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    say "could not install $missing(see above); tests that need them are skipped"
    exit 0
fi
rm -f "$log"
if [ "$had_sshd" != installed ] && [ -d /run/systemd/system ]; then
    systemctl --quiet disable ssh.service ssh.socket 2>/dev/null || true # nor at the next boot
fi
