# Boots one emulated device; runs as process 1 of namespaces of its own, so that with it everything is gone:
# mounts, programs, host name. Arguments: device folder, root tree, host name, qemu CPU, TCP port.
set -eu
DEVICE=$1 ROOT=$2 NAME=$3 CPU=$4 PORT=$5
M=$DEVICE/mount

mount -t overlay overlay -o "lowerdir=$ROOT,upperdir=$DEVICE/upper,workdir=$DEVICE/work" "$M"
mount -t proc proc "$M/proc"
mount --bind "$DEVICE/cpuinfo" "$M/proc/cpuinfo"
mount --bind "$DEVICE/meminfo" "$M/proc/meminfo"

mount -t tmpfs -o mode=755 tmpfs "$M/dev"
for name in null zero full random urandom tty; do
  touch "$M/dev/$name"
  mount --bind "/dev/$name" "$M/dev/$name"
done
mkdir "$M/dev/pts" "$M/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$M/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$M/dev/shm"
ln -s pts/ptmx "$M/dev/ptmx"
ln -s /proc/self/fd "$M/dev/fd"
ln -s /proc/self/fd/0 "$M/dev/stdin"
ln -s /proc/self/fd/1 "$M/dev/stdout"
ln -s /proc/self/fd/2 "$M/dev/stderr"

mount -t tmpfs -o mode=755 tmpfs "$M/run"
mkdir -p "$M/run/sshd"
mount -t tmpfs -o mode=755 tmpfs "$M/sys"
mkdir -p "$M/sys/firmware/devicetree/base"
cp "$DEVICE/model" "$M/sys/firmware/devicetree/base/model"

install -m 600 "$DEVICE/keys/host" "$M/etc/ssh/ssh_host_ed25519_key"
install -m 644 "$DEVICE/keys/host.pub" "$M/etc/ssh/ssh_host_ed25519_key.pub"
install -d -m 700 -o 1000 -g 1000 "$M/home/pi/.ssh"
install -d -m 700 "$M/root/.ssh"
# Not written over what a person has added.
if ! grep -qsxF "$(cat "$DEVICE/keys/client.pub")" "$M/home/pi/.ssh/authorized_keys"; then
  cat "$DEVICE/keys/client.pub" >> "$M/home/pi/.ssh/authorized_keys"
fi
chown 1000:1000 "$M/home/pi/.ssh/authorized_keys"
chmod 600 "$M/home/pi/.ssh/authorized_keys"
install -m 600 "$DEVICE/keys/client.pub" "$M/root/.ssh/authorized_keys"

hostname "$NAME"
# sshd starts each session with an empty environment; without QEMU_CPU qemu would offer every instruction it knows.
exec env -i QEMU_CPU="$CPU" PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin chroot "$M" /usr/sbin/sshd -D -e \
  -o ListenAddress=127.0.0.1 -o Port="$PORT" -o SetEnv="QEMU_CPU=$CPU LANG=C.UTF-8"
