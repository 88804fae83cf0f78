/* Operations on the process itself and its namespaces. */
#include "init.h"

u32 program_umask;

static int is_id(u64 value)
{
    return value < 0xFFFFFFFF; /* -1 means "leave as it is" to the kernel: setresuid(-1) succeeds and leaves 0 */
}

long op_dumpable(const struct op *op)
{
    return kcall(prctl, PR_SET_DUMPABLE, op->numbers[0]);
}

long op_pdeathsig(const struct op *op)
{
    long got = kcall(prctl, PR_SET_PDEATHSIG, op->numbers[0]);
    struct pollfd_k parent = {.fd = control};
    struct timespec_k at_once = {0, 0};

    if (got < 0 || op->numbers[0] == 0)
        return got;
    /* The parent may have died just before: then no signal will ever come, but its end of the socket is gone. */
    if (kcall(ppoll, &parent, 1, &at_once, NULL, 0) > 0 && parent.revents & (POLLHUP_ | POLLERR_))
        die(1);
    return 0;
}

long op_setsid(const struct op *op)
{
    long got = kcall(setsid);

    (void)op;
    /* EPERM: already the leader of a group; fine if it is the leader of its session too */
    if (got == -EPERM && kcall(getsid, 0) == kcall(getpid))
        return 0;
    return got < 0 ? got : 0;
}

long op_keyring(const struct op *op)
{
    const char *name = op->strings[0].length ? op->strings[0].bytes : NULL;
    long keyring = kcall(keyctl, KEYCTL_JOIN_SESSION_KEYRING, name);

    if (keyring == -ENOSYS) /* a kernel without keys */
        return 0;
    if (keyring < 0)
        return keyring;
    /* All for the possessor; view, read, search and link for the owner: without search a later process of the
     * container would get a keyring of its own instead of joining this one by name. On a joined keyring of another
     * owner this is refused, and not needed. */
    kcall(keyctl, KEYCTL_SETPERM, keyring, 0x3f1b0000);
    return 0;
}

long op_umask(const struct op *op)
{
    program_umask = (u32)op->numbers[0] & 0777; /* in force from exec on, see knarr_main */
    return 0;
}

enum { OWN_FILES = 64, NOFILE = 7 };
static u64 few_files[2]; /* soft and hard limit of open files, where they are too low for us to go on with */
static int has_few_files;

long op_rlimit(const struct op *op)
{
    u64 limit[2] = {op->numbers[1], op->numbers[2]};
    long got;

    if (op->numbers[0] != NOFILE || limit[0] >= OWN_FILES)
        return kcall(prlimit64, 0, op->numbers[0], limit, NULL);
    memcpy(few_files, limit, sizeof few_files);
    has_few_files = 1;
    limit[0] = OWN_FILES;
    limit[1] = limit[1] < OWN_FILES ? OWN_FILES : limit[1];
    got = kcall(prlimit64, 0, NOFILE, limit, NULL);
    return got == -EPERM ? 0 : got; /* there were fewer before, which may still be enough */
}

/* The low limit itself, which asks for no privilege any more, when nothing is opened but by execve. */
long lower_files(void)
{
    return has_few_files ? kcall(prlimit64, 0, NOFILE, few_files, NULL) : 0;
}

/* A new process like fork's: no new stack, memory copied on write. cgroup and pidfd may be absent (-1, NULL). */
long fork_like(u64 flags, u64 exit_signal, int cgroup, int *pidfd)
{
    struct clone_args_v2 args = {.flags = flags, .exit_signal = exit_signal};
    long pid;

    if (cgroup >= 0) {
        args.flags |= INTO_CGROUP;
        args.cgroup = (u64)cgroup;
    }
    if (pidfd != NULL) {
        args.flags |= WITH_PIDFD;
        args.pidfd = (u64)(uintptr_t)pidfd;
    }
    pid = kcall(clone3, &args, cgroup < 0 ? offsetof(struct clone_args_v2, set_tid) : sizeof args);
    /* Where a filter around us hides clone3 (its argument cannot be inspected), the old call does, but for what it
     * never knew: cgroups, and flags where the exit signal stands. */
    if (pid == -ENOSYS && cgroup < 0 && (flags & (CSIGNAL | ~(u64)UINT32_MAX)) == 0)
        pid = kcall(clone, args.flags | exit_signal, NULL, pidfd, NULL, NULL);
    return pid;
}

/* Joins a cgroup by its file for that. Of a single thread that joins by itself the kernel (5.10) knows that it does not
 * exit or execute meanwhile: it takes no lock of all processes, for which whoever brings in another one waits 10 ms. */
static long join(int file)
{
    long got = kcall(write, file, "0", 1);

    return got < 0 ? got : 0;
}

long op_join_cgroup(const struct op *op)
{
    long got = join(slot_fd(op->numbers[0]));

    close_fd(slot_fd(op->numbers[0]));
    slot_forget(op->numbers[0]);
    return got;
}

/* Where clone3 is hidden, whoever is to be born in a cgroup comes of one that is in it. */
static long enter(int cgroup)
{
    long got, file = kcall(openat, cgroup, "cgroup.procs", O_WRONLY | O_CLOEXEC);

    if (file < 0)
        return file;
    got = join((int)file);
    close_fd(file);
    return got;
}

/* A child is born with all descriptors of its parent's, and can close them only then: whoever may look into it would be
 * led from a directory to those above. A mount of its own has none, and lets nothing be written. */
long op_fence(const struct op *op)
{
    enum { READ_ONLY = 1 };
    long got, tree = clone_tree(slot_fd(op->numbers[0]), "", 0);

    if (tree == -EPERM || tree == -EINVAL) /* no power over mounts, or the directory is another mount namespace's */
        return 0;
    if (tree < 0)
        return tree;
    got = mount_attributes((int)tree, 0, READ_ONLY, 0, 0);
    if (got == 0)
        return slot_set(op->numbers[0], tree);
    close_fd(tree);
    return got;
}

static u32 helpers; /* processes that user namespaces were made by, and that are ours to reap */

void reap_helpers(void)
{
    long got = 0;

    while (helpers > 0 && (got >= 0 || got == -EINTR)) {
        got = kcall(wait4, -1, NULL, 0, NULL);
        helpers -= got > 0;
    }
}

long op_clone(const struct op *op)
{
    u64 slot = op->numbers[1], flags = op->numbers[0] | CLONE_PARENT;
    long pid;

    if (slot != NO_SLOT && slot_fd(slot) < 0)
        return -EBADF;
    pid = fork_like(flags, 0, slot == NO_SLOT ? -1 : slot_fd(slot), NULL);
    if (pid == -ENOSYS && slot != NO_SLOT) {
        pid = enter(slot_fd(slot));
        if (pid == 0)
            pid = fork_like(flags, 0, -1, NULL);
    }
    if (pid < 0)
        return pid;
    if (pid == 0) {
        /* No directory of the host's cgroups in a process that others in its namespaces may look into. */
        close_fd(slot_fd(slot));
        slot_forget(slot);
        return 0;
    }
    /* First stage. Before the pid is known nothing foreign runs: whoever shares our pid namespace could look into a
     * helper, which is in the user namespace where he has all power. A child whose pid nobody learned must not stay. */
    reap_helpers();
    if (report(PACKET_PID, op->index, (i32)pid, NULL, 0) < 0) {
        kcall(kill, pid, SIGKILL_);
        die(1);
    }
    die(0);
}

long op_unshare(const struct op *op)
{
    return kcall(unshare, op->numbers[0]);
}

long op_open_ns(const struct op *op)
{
    char again[64];
    struct statfs fs;
    long got, handle = kcall(openat, AT_FDCWD, op->strings[0].bytes, O_PATH | O_CLOEXEC);

    if (handle < 0)
        return handle;
    /* Looked at before it is opened in earnest: a FIFO would block, a device might act. */
    got = kcall(fstatfs, handle, &fs);
    if (got < 0)
        return got;
    if (fs.f_type != NSFS_MAGIC_)
        return -EINVAL;
    reopen_path(again, sizeof again, (int)handle);
    got = kcall(openat, AT_FDCWD, again, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    close_fd(handle);
    if (got < 0)
        return got;
    if (kcall(ioctl, got, NS_GET_NSTYPE_, 0) != (long)op->numbers[1])
        return -EINVAL; /* also what a /proc that is none led to: nothing but a namespace answers this */
    return slot_set(op->numbers[0], got);
}

long op_setns(const struct op *op)
{
    return kcall(setns, slot_fd(op->numbers[0]), op->numbers[1]);
}

long op_become_root(const struct op *op)
{
    long got = op->numbers[0] & NO_SETGROUPS ? 0 : kcall(setgroups, 0, NULL);

    /* Denied in a namespace an ordinary user mapped: the caller's groups stay, and are of no use inside. */
    if (got < 0 && got != -EPERM)
        return got;
    got = kcall(setresgid, 0, 0, 0);
    if (got == 0)
        got = kcall(setresuid, 0, 0, 0);
    return got;
}

/* -- procfs by a private handle ------------------------------------------------------------------------------- */

long op_open_proc(const struct op *op)
{
    struct statfs fs;
    struct statx root;
    long got, handle = clone_tree(AT_FDCWD, "/proc", 0);

    /* A private copy of the mount has nothing mounted over its files. Where it cannot be made (EPERM; EINVAL in a
     * user namespace when something is mounted below), the mount itself serves: openat2 with NO_XDEV refuses what
     * lies over its files (CVE-2025-52881). */
    if (handle < 0)
        handle = kcall(openat, AT_FDCWD, "/proc", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (handle < 0)
        return handle;
    got = kcall(fstatfs, handle, &fs);
    if (got == 0)
        got = describe((int)handle, "", 0, &root);
    if (got < 0)
        return got;
    if (fs.f_type != PROC_SUPER_MAGIC || root.stx_ino != PROC_ROOT_INODE)
        return -EINVAL;
    return slot_set(op->numbers[0], handle);
}

/* Writes to a file of procfs below that handle, past nothing that lies over a part of it. */
static long write_below(int handle, const char *path, const char *value, u64 length, int optional)
{
    struct open_how_v0 how = {.flags = O_WRONLY | O_CLOEXEC,
                              .resolve = BENEATH | NO_XDEV | NO_SYMLINKS | NO_MAGICLINKS};
    struct statfs fs;
    long got, file = kcall(openat2, handle, path, &how, sizeof how);

    if (file == -ENOENT && optional)
        return 0;
    if (file < 0)
        return file;
    got = kcall(fstatfs, file, &fs);
    if (got == 0 && fs.f_type != PROC_SUPER_MAGIC)
        got = -EXDEV;
    if (got == 0)
        got = kcall(write, file, value, length);
    close_fd(file);
    if (got < 0)
        return got;
    return (u64)got == length ? 0 : -EIO;
}

long op_proc_write(const struct op *op)
{
    int handle = slot_fd(op->numbers[0]);
    const char *path = op->strings[0].bytes;
    char own[PATH_BYTES];
    long got;

    if (op->strings[0].length >= 5 && memcmp(path, "self/", 5) == 0) {
        /* "self" is a link, and links are refused below: its text is the pid as this procfs counts. */
        got = kcall(readlinkat, handle, "self", own, 32);
        if (got < 0)
            return got;
        if ((u64)got + op->strings[0].length >= sizeof own)
            return -ENAMETOOLONG;
        memcpy(own + got, path + 4, op->strings[0].length - 4 + 1);
        path = own;
    }
    return write_below(handle, path, op->strings[1].bytes, op->strings[1].length, op->numbers[1] & WRITE_OPTIONAL);
}

/* -- a user namespace that is there before the container's process ---------------------------------------------- */

enum { MAP_BYTES = 4096 }; /* the kernel takes a map in one write of less than a page */

/* Ranges (inside, outside, count) as lines into `out`; gives their length. */
static long map_lines(char *out, const u64 *ranges, u64 count)
{
    size_t used = 0;
    u64 each;

    for (each = 0; each < 3 * count; each++) {
        if (used + 22 > MAP_BYTES)
            return -E2BIG;
        used += decimal(out + used, ranges[each]);
        out[used++] = each % 3 == 2 ? '\n' : ' ';
    }
    return (long)used;
}

/* "PID/name" for the procfs handle. */
static const char *of_process(char out[48], long pid, const char *name)
{
    size_t used = decimal(out, (u64)pid);

    out[used++] = '/';
    memcpy(out + used, name, text_length(name) + 1);
    return out;
}

static long map_ids(int proc, long pid, const char *name, const u64 *ranges, u64 count)
{
    char lines[MAP_BYTES], path[48];
    long length = map_lines(lines, ranges, count);

    return length < 0 ? length : write_below(proc, of_process(path, pid, name), lines, (u64)length, 0);
}

static long open_user_ns(int proc, long pid)
{
    char path[48];
    struct statfs fs;
    long got, space = kcall(openat, proc, of_process(path, pid, "ns/user"), O_RDONLY | O_CLOEXEC);

    if (space < 0)
        return space;
    got = kcall(fstatfs, space, &fs);
    if (got == 0 && (fs.f_type != NSFS_MAGIC_ || kcall(ioctl, space, NS_GET_NSTYPE_, 0) != CLONE_NEWUSER))
        got = -EINVAL;
    if (got == 0)
        return space;
    close_fd(space);
    return got;
}

/* A namespace lives as long as somebody is in it or holds it: a process is made in it, its maps are written, it is
 * opened, the process ends. Should this one die meanwhile, the other sees the end of the pipe and ends too. */
long op_user_ns(const struct op *op)
{
    const u64 *n = op->numbers;
    int ends[2], proc = slot_fd(n[1]);
    u64 ranges = (op->number_count - 3) / 3;
    long got, pid;
    char end;

    if ((op->number_count - 3) % 3 != 0 || n[2] > ranges)
        return -EINVAL;
    got = kcall(pipe2, ends, O_CLOEXEC);
    if (got < 0)
        return got;
    pid = fork_like(CLONE_NEWUSER, SIGCHLD_, -1, NULL);
    if (pid == 0) {
        close_fd(ends[1]);
        kcall(read, ends[0], &end, 1);
        die(0);
    }
    close_fd(ends[0]);
    if (pid < 0) {
        close_fd(ends[1]);
        return pid;
    }
    helpers++;
    got = map_ids(proc, pid, "gid_map", n + 3 + 3 * n[2], ranges - n[2]);
    if (got == 0)
        got = map_ids(proc, pid, "uid_map", n + 3, n[2]);
    if (got == 0)
        got = slot_set(n[0], open_user_ns(proc, pid));
    close_fd(ends[1]); /* it ends, which nobody needs to wait for now; see op_clone */
    return got;
}

/* -- identity ------------------------------------------------------------------------------------------------- */

long op_hostname(const struct op *op)
{
    return kcall(sethostname, op->strings[0].bytes, op->strings[0].length);
}

long op_domainname(const struct op *op)
{
    return kcall(setdomainname, op->strings[0].bytes, op->strings[0].length);
}

long op_loopback(const struct op *op)
{
    enum { GET_FLAGS = 0x8913, SET_FLAGS = 0x8914, UP = 1 };
    struct {
        char name[16];
        short flags;
        char rest[22];
    } request = {.name = "lo"};
    /* any socket carries the request, and a kernel without IPv4 still has AF_UNIX */
    long got, handle = kcall(socket, AF_UNIX_, SOCK_DGRAM_ | SOCK_CLOEXEC_, 0);

    (void)op;
    if (handle < 0)
        return handle;
    got = kcall(ioctl, handle, GET_FLAGS, &request);
    if (got == 0) {
        request.flags |= UP;
        got = kcall(ioctl, handle, SET_FLAGS, &request);
    }
    close_fd(handle);
    return got;
}

long op_bounding(const struct op *op)
{
    u64 each;

    for (each = 0; each < 64; each++) {
        long got;

        if (op->numbers[0] >> each & 1)
            continue;
        got = kcall(prctl, PR_CAPBSET_DROP, each);
        if (got == -EINVAL) /* one past the last this kernel has */
            return 0;
        if (got == -EPERM) { /* without CAP_SETPCAP: no error where there is nothing to drop */
            long held = kcall(prctl, PR_CAPBSET_READ, each);

            if (held != 1)
                got = 0;
        }
        if (got < 0)
            return got;
    }
    return 0;
}

long op_user(const struct op *op)
{
    u32 *groups = (u32 *)(void *)vectors;
    u32 count = op->number_count - 3, each;
    u64 uid = op->numbers[0], gid = op->numbers[1], flags = op->numbers[2];
    long got;

    if (!is_id(uid) || !is_id(gid))
        return -EINVAL;
    if (flags & KEEP_CAPS) {
        got = kcall(prctl, PR_SET_KEEPCAPS, 1);
        if (got < 0)
            return got;
    }
    if (!(flags & NO_SETGROUPS)) {
        for (each = 0; each < count; each++) {
            if (!is_id(op->numbers[3 + each]))
                return -EINVAL;
            groups[each] = (u32)op->numbers[3 + each];
        }
        got = kcall(setgroups, count, groups);
        if (got < 0)
            return got;
    }
    got = kcall(setresgid, gid, gid, gid);
    if (got == 0)
        got = kcall(setresuid, uid, uid, uid);
    return got;
}

long op_capabilities(const struct op *op)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct want[2], have[2];
    const u64 *sets = op->numbers;
    u32 half;
    u64 each;
    long got;

    for (half = 0; half < 2; half++) {
        want[half].effective = (u32)(sets[0] >> 32 * half);
        want[half].permitted = (u32)(sets[1] >> 32 * half);
        want[half].inheritable = (u32)(sets[2] >> 32 * half);
    }
    got = kcall(capset, &head, want);
    if (got == 0)
        got = kcall(capget, &head, have);
    if (got < 0)
        return got;
    if (memcmp(want, have, sizeof want) != 0) /* the kernel drops silently what it does not know */
        return -EPERM;
    got = kcall(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (each = 0; got == 0 && each < 64; each++) {
        if (!(sets[3] >> each & 1))
            continue;
        got = kcall(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, each, 0, 0);
        if (got == 0 && kcall(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, each, 0, 0) != 1)
            got = -EPERM;
    }
    return got;
}

long op_no_new_privs(const struct op *op)
{
    (void)op;
    return kcall(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

void raise_permitted(void)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[2];
    u32 half;

    if (kcall(capget, &head, sets) < 0)
        return;
    for (half = 0; half < 2; half++)
        sets[half].effective = sets[half].permitted;
    kcall(capset, &head, sets);
}

/* Gives the listener's descriptor if the flags ask for one. */
static long load_filter(const struct op *op)
{
    u64 instructions = op->strings[0].length / sizeof(struct sock_filter);
    struct sock_fprog filter = {.len = (unsigned short)instructions,
                                .filter = (struct sock_filter *)(uintptr_t)op->strings[0].bytes};
    long got;

    if (instructions * sizeof(struct sock_filter) != op->strings[0].length || instructions > BPF_MAXINSNS)
        return -EINVAL;
    got = kcall(seccomp, SECCOMP_SET_MODE_FILTER, op->numbers[0], &filter);
    if (got == -EACCES) {
        /* Without no_new_privs it takes CAP_SYS_ADMIN, which a change of user leaves permitted, with KEEP_CAPS, but
         * not effective. The capabilities operation sets what the program gets. */
        raise_permitted();
        got = kcall(seccomp, SECCOMP_SET_MODE_FILTER, op->numbers[0], &filter);
    }
    return got;
}

long op_seccomp(const struct op *op)
{
    int late = only_exec_follows(op), listens = (op->numbers[0] & FILTER_NEW_LISTENER) != 0;
    long got;

    if (listens && !late) /* our own calls would wait for the listener */
        return -EINVAL;
    /* The filter may forbid what exec has to do first, or kill for it: done now if nothing else needs descriptors. */
    if (late) {
        prepare_explanation();
        got = prepare_exec();
        if (got < 0)
            return got;
    }
    return listens ? load_with_listener(op, load_filter) : load_filter(op);
}
