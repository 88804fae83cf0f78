/* Makes many system calls that user-mode Linux itself never makes, and tells what each answered.
 *
 * Without /dev/tty1 it writes to descriptor 3: it runs in the place of user-mode Linux, as somebody who broke out of a
 * guest would. With it, it is the guest's first program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <termios.h>
#include <dirent.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int out = 3;

static void say(const char *format, const char *name, long value)
{
    char line[400];
    int length = snprintf(line, sizeof line, format, name, value);

    if (write(out, line, (size_t)length) != length)
        _exit(9);
}

#define TRY(name, ...) say("call %s %ld\n", #name, syscall(SYS_##name, ##__VA_ARGS__) < 0 ? errno : 0)

static void calls(void)
{
    static char zeros[4096];

    TRY(mount, "none", "/tmp", "tmpfs", 0, 0);
    TRY(umount2, "/tmp", MNT_DETACH);
    TRY(pivot_root, "/", "/");
    TRY(chroot, "/tmp");
    TRY(unshare, CLONE_NEWNS);
    TRY(setns, -1, 0);
    TRY(fsopen, "tmpfs", 0);
    TRY(open_tree, AT_FDCWD, "/", 1);
    TRY(move_mount, -1, "", -1, "", 0);
    TRY(mount_setattr, AT_FDCWD, "/", 0, zeros, 32);
    TRY(name_to_handle_at, AT_FDCWD, "/", zeros, zeros, 0);
    TRY(open_by_handle_at, AT_FDCWD, zeros, 0);
    TRY(bpf, 0, zeros, 64);
    TRY(keyctl, 0, -3, 1);
    TRY(add_key, "user", "x", "y", 1, -3);
    TRY(request_key, "user", "x", "y", -3);
    TRY(io_uring_setup, 4, zeros);
    TRY(userfaultfd, 1);
    TRY(perf_event_open, zeros, 0, -1, -1, 0);
    TRY(memfd_create, "x", 0);
    TRY(inotify_init1, 0);
    TRY(fanotify_init, 0, 0);
    TRY(timerfd_create, 1, 0);
    TRY(eventfd2, 0, 0);
    TRY(signalfd4, -1, zeros, 8, 0);
    TRY(process_vm_readv, getpid(), zeros, 0, zeros, 0, 0);
    TRY(process_vm_writev, getpid(), zeros, 0, zeros, 0, 0);
    TRY(kcmp, getpid(), getpid(), 0, 0, 0);
    TRY(pidfd_open, getpid(), 0);
    TRY(acct, 0);
    TRY(swapon, "/nowhere", 0);
    TRY(init_module, zeros, 0, "");
    TRY(finit_module, -1, "", 0);
    TRY(delete_module, "nothing", 0);
    TRY(kexec_load, 0, 0, zeros, 0);
    TRY(sethostname, "x", 1);
    TRY(setdomainname, "x", 1);
    TRY(iopl, 3);
    TRY(ioperm, 0x80, 1, 1);
    TRY(syslog, 10, 0, 0);
    TRY(msgget, 0, 0600 | 01000);
    TRY(semget, 0, 1, 0600 | 01000);
    TRY(shmget, 0, 4096, 0600 | 01000);
    TRY(mq_open, "x", O_CREAT | O_RDWR, 0600, 0);
    TRY(prctl, 15, "x", 0, 0, 0);
    TRY(capget, zeros, 0);
    TRY(setuid, 0);
    TRY(setgroups, 0, 0);
    TRY(setpriority, 0, 0, 5);
    TRY(sched_setaffinity, 0, 8, "\1\0\0\0\0\0\0\0");
    TRY(ioprio_set, 1, 0, 0);
    TRY(vmsplice, -1, 0, 0, 0);
    TRY(splice, -1, 0, -1, 0, 1, 0);
    TRY(copy_file_range, -1, 0, -1, 0, 1, 0);
    TRY(landlock_create_ruleset, 0, 0, 1);
    TRY(seccomp, 2, 0, zeros);
    TRY(clone3, zeros, 0);
    TRY(execveat, -1, "", 0, 0, 0);
    TRY(quotactl, 0, 0, 0, 0);
    TRY(lookup_dcookie, 0, 0, 0);
    TRY(getcpu, zeros, 0, 0);
    TRY(sysinfo, zeros);
    TRY(times, zeros);
    TRY(getrusage, 0, zeros);
    TRY(listxattr, "/", zeros, 10);
    TRY(setxattr, "/tmp", "user.x", "y", 1, 0);
    TRY(openat2, AT_FDCWD, "/", zeros, 24);
    say("net %s %ld\n", "inet", socket(AF_INET, SOCK_STREAM, 0) < 0 ? errno : 0);
    say("net %s %ld\n", "packet", socket(AF_PACKET, SOCK_RAW, 0) < 0 ? errno : 0);
    say("net %s %ld\n", "netlink", socket(AF_NETLINK, SOCK_RAW, 0) < 0 ? errno : 0);
    say("net %s %ld\n", "vsock", socket(AF_VSOCK, SOCK_STREAM, 0) < 0 ? errno : 0);
    say("new %s %ld\n", "user namespace", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0) < 0 ? errno : 0);
    say("tty %s %ld\n", "TIOCSTI", ioctl(0, TIOCSTI, "x") < 0 ? errno : 0);
}

/* What there is to see: every file below a directory, and every process. */
static void list(const char *path, int depth)
{
    DIR *folder = opendir(path);
    struct dirent *entry;

    if (folder == NULL)
        return;
    while ((entry = readdir(folder)) != NULL) {
        char below[300];
        struct stat file;

        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        snprintf(below, sizeof below, "%s/%s", strcmp(path, "/") == 0 ? "" : path, entry->d_name);
        say("file %s %ld\n", below, 0);
        if (depth > 0 && lstat(below, &file) == 0 && S_ISDIR(file.st_mode))
            list(below, depth - 1);
    }
    closedir(folder);
}

static void opened(const char *path, int flags)
{
    int fd = open(path, flags, 0600);

    say("open %s %ld\n", path, fd < 0 ? errno : 0);
    if (fd >= 0)
        close(fd);
}

int main(void)
{
    int tty, pid;

    mount("dev", "/dev", "devtmpfs", 0, NULL);
    tty = open("/dev/tty1", O_RDWR);
    if (tty >= 0) {
        struct termios raw;

        out = tty;
        tcgetattr(tty, &raw);
        cfmakeraw(&raw);
        tcsetattr(tty, TCSANOW, &raw);
    } else {
        if (read(3, &(char){0}, 1) != 1) /* go */
            return 8;
        list("/", 3);
        opened("/tmp/x", O_CREAT | O_RDWR);
        opened("/x", O_CREAT | O_RDWR);
        opened("/initramfs", O_WRONLY);
        opened("/shares/0/x", O_CREAT | O_RDWR);
        opened("/shares/1/x", O_CREAT | O_RDWR);
        opened("/shares/1/absolute", O_RDONLY);
        opened("/shares/1/upward", O_RDONLY);
        /* the host's own node: as it is, should it succeed */
        say("own %s %ld\n", "chown", chown("/dev/null", 0, 0) < 0 ? errno : 0);
        say("own %s %ld\n", "chmod", chmod("/dev/null", 0666) < 0 ? errno : 0);
        say("kill %s %ld\n", "others", kill(-1, 0) < 0 ? errno : 0);
    }
    calls();
    /* once more as another process: another address space, another stub */
    pid = fork();
    if (pid == 0) {
        syscall(SYS_mount, "none", "/tmp", "tmpfs", 0, 0);
        syscall(SYS_bpf, 0, 0, 0);
        _exit(7);
    }
    waitpid(pid, &pid, 0);
    say("end %s %ld\n", "child", WEXITSTATUS(pid));
    if (tty >= 0) {
        tcdrain(tty);
        reboot(RB_POWER_OFF);
    }
    return 0;
}
