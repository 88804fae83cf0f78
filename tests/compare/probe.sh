#!/bin/sh
# Print what a process in a container sees, in sections "## name"; run by busybox sh.
section() { echo "## $1"; }

section status
grep -E '^(Uid|Gid|Groups|Umask|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Seccomp_filters|Cpus_allowed_list|Mems_allowed_list):' /proc/self/status
section limits
sed 1d /proc/self/limits
section namespaces
for kind in cgroup ipc mnt net pid pid_for_children time time_for_children user uts; do
    echo "$kind $(readlink /proc/self/ns/$kind)"
done
section idmap
cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups
section mounts
cut -d' ' -f4- /proc/self/mountinfo
section devices
find /dev -path /dev/pts/[0-9]* -prune -o -path /dev/mqueue/* -prune -o -print | sort | while read -r name; do
    if [ -L "$name" ]; then echo "$name -> $(readlink "$name")"; else stat -c '%n %F %a %u:%g %t:%T' "$name"; fi
done
section cgroup
cat /proc/self/cgroup
section cgroup-files
find /sys/fs/cgroup -maxdepth 2 \( -name memory.limit_in_bytes -o -name memory.max -o -name memory.soft_limit_in_bytes -o -name cpu.shares \
    -o -name cpu.cfs_quota_us -o -name cpu.max -o -name cpu.weight -o -name pids.max -o -name cpuset.cpus -o -name devices.list \
    -o -name memory.oom_control -o -name io.weight -o -name blkio.weight \) 2>/dev/null | sort | while read -r file; do
    sed "s|^|$file |" "$file" 2>/dev/null
done
section kernel
echo "hostname $(cat /proc/sys/kernel/hostname)"
echo "domainname $(cat /proc/sys/kernel/domainname)"
echo "oom_score_adj $(cat /proc/self/oom_score_adj)"
echo "port_start $(cat /proc/sys/net/ipv4/ip_unprivileged_port_start)"
echo "ping_group $(cat /proc/sys/net/ipv4/ping_group_range)"
echo "pid $$"
echo "session $(cut -d' ' -f6 /proc/$$/stat)"
echo "loopback $(cat /sys/class/net/lo/flags 2>/dev/null)"
section environment
env | sort
pwd
section descriptors
ls /proc/$$/fd
section hidden
for path in /proc/acpi /proc/asound /proc/bus /proc/fs /proc/interrupts /proc/irq /proc/kcore /proc/keys /proc/latency_stats \
    /proc/scsi /proc/sched_debug /proc/sys /proc/sysrq-trigger /proc/timer_list /proc/timer_stats /sys/firmware \
    /sys/devices/virtual/powercap /sys/fs/selinux; do
    [ -e "$path" ] || continue
    if [ -d "$path" ]; then seen="$(ls -A "$path" 2>&1 | wc -l) entries"; else seen="$(stat -c '%F %t:%T' "$path")"; fi
    echo "$path $seen"
done
section writable
for path in /proc/sys/kernel/domainname /proc/sysrq-trigger /proc/bus/x /proc/irq/x /sys/x /etc/x /tmp/x /dev/x /dev/shm/x /sys/fs/cgroup/x; do
    if (: >>"$path") 2>/dev/null; then echo "$path yes"; else echo "$path no"; fi
done
section processes
set -- /proc/[0-9]*
echo "$#"
