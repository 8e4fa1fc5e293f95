#!/bin/sh
# Runs a command where /dev/shm is a mount of SIZE (64m, as containers have), or where there is none at all:
#
#     tests/in_small_shm.sh 64m .venv/bin/pytest -q
#     tests/in_small_shm.sh none .venv/bin/pytest -q
#
# In a mount namespace of its own, so that nothing outside of it changes; as root, or in a user namespace where the kernel
# allows them. Ends with 77, as a skipped test does, where neither is to be had, or where there is no /dev/shm to cover.
set -eu

if [ "${1:-}" = --inside ]; then
    size=$2
    shift 2
    if [ "$size" = none ]; then
        # /dev itself is covered: the folder below it belongs to the kernel's one devtmpfs and must stay.
        devices=$(mktemp -d)
        mount -t tmpfs -o mode=755 tmpfs "$devices"
        for device in null zero full random urandom tty; do
            : >"$devices/$device"
            mount --bind "/dev/$device" "$devices/$device"
        done
        ln -s /proc/self/fd "$devices/fd"
        mount --move "$devices" /dev
        rmdir "$devices"
    else
        mount -t tmpfs -o "size=$size,mode=1777" tmpfs /dev/shm
    fi
    exec "$@"
fi

[ "$#" -ge 2 ] || { echo "usage: $0 SIZE|none COMMAND [ARGUMENT ...]" >&2; exit 2; }
if [ "$1" != none ] && [ ! -d /dev/shm ]; then
    echo "$0: this machine has no /dev/shm to make small" >&2
    exit 77
fi
for namespace in "--mount" "--mount --map-root-user"; do
    # shellcheck disable=SC2086 # two words are meant
    if unshare $namespace mount -t tmpfs tmpfs /mnt 2>/dev/null; then
        exec unshare $namespace "$0" --inside "$@"
    fi
done
echo "$0: this kernel lets us have no mount namespace" >&2
exit 77
