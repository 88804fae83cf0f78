/* The operations of a Plan: the same table as KINDS in plan/ops.py (a test compares them), and the flags.
 *
 * X(name, number, numbers it takes, strings it takes); MORE: at least so many. Every name has a function
 * op_<name> somewhere in this folder.
 */
#ifndef KNARR_OPS_H
#define KNARR_OPS_H

#define MORE 0x100

#define OPERATIONS(X)                                                                                                  \
    X(dumpable, 1, 1, 0)                                                                                               \
    X(pdeathsig, 2, 1, 0)                                                                                              \
    X(setsid, 3, 0, 0)                                                                                                 \
    X(keyring, 4, 0, 1)                                                                                                \
    X(umask, 5, 1, 0)                                                                                                  \
    X(rlimit, 6, 3, 0)                                                                                                 \
    X(close, 7, 1, 0)                                                                                                  \
    X(keep_fd, 8, 2, 0)                                                                                                \
    X(sync, 10, 1 | MORE, 0)                                                                                           \
    X(wait_start, 11, 1, 0)                                                                                            \
    X(clone, 12, 2, 0)                                                                                                 \
    X(unshare, 13, 1, 0)                                                                                               \
    X(open_ns, 14, 2, 1)                                                                                               \
    X(setns, 15, 2, 0)                                                                                                 \
    X(become_root, 16, 1, 0)                                                                                           \
    X(open_proc, 20, 1, 0)                                                                                             \
    X(proc_write, 21, 2, 2)                                                                                            \
    X(propagation, 30, 1, 1)                                                                                           \
    X(host_mount, 31, 1, 4)                                                                                            \
    X(host_mkdir, 32, 3, 1)                                                                                            \
    X(host_chdir, 33, 0, 1)                                                                                            \
    X(open_source, 34, 2, 1)                                                                                           \
    X(bind_root, 35, 1, 1)                                                                                             \
    X(open_root, 36, 1, 1)                                                                                             \
    X(shared_root, 37, 1, 1)                                                                                           \
    X(mount, 40, 4, 3 | MORE)                                                                                          \
    X(bind, 41, 8, 2)                                                                                                  \
    X(remount, 42, 4, 1)                                                                                               \
    X(mkdir, 43, 2, 1)                                                                                                 \
    X(mknod, 44, 6, 1)                                                                                                 \
    X(symlink, 45, 2, 2)                                                                                               \
    X(mask, 46, 1, 1 | MORE)                                                                                           \
    X(readonly, 47, 1, 1)                                                                                              \
    X(console, 48, 6, 0)                                                                                               \
    X(pivot, 49, 2, 0)                                                                                                 \
    X(hostname, 60, 0, 1)                                                                                              \
    X(domainname, 61, 0, 1)                                                                                            \
    X(loopback, 62, 0, 0)                                                                                              \
    X(reopen_null, 63, 0, 0)                                                                                           \
    X(own_stdio, 64, 1, 0)                                                                                             \
    X(cwd, 65, 1, 1)                                                                                                   \
    X(bounding, 66, 1, 0)                                                                                              \
    X(user, 67, 3 | MORE, 0)                                                                                           \
    X(capabilities, 68, 4, 0)                                                                                          \
    X(no_new_privs, 69, 0, 0)                                                                                          \
    X(seccomp, 70, 1, 1)                                                                                               \
    X(hook, 71, 2, 1 | MORE)                                                                                           \
    X(find_program, 72, 0, 2)                                                                                          \
    X(exec, 73, 1, 0 | MORE)                                                                                           \
    X(home, 74, 1, 0)                                                                                                  \
    X(host_program, 75, 0, 1)                                                                                          \
    X(user_ns, 76, 3 | MORE, 0)                                                                                        \
    X(idmap, 77, 3, 0)                                                                                                 \
    X(cover, 78, 1, 1)                                                                                                 \
    X(root_tree, 79, 1, 0)                                                                                             \
    X(scheduler, 80, 7, 0)                                                                                             \
    X(io_priority, 81, 1, 0)                                                                                           \
    X(cpu_affinity, 82, 0 | MORE, 0)                                                                                   \
    X(personality, 83, 1, 0)                                                                                           \
    X(memory_policy, 84, 1 | MORE, 0)                                                                                  \
    X(landlock_create, 85, 4, 0)                                                                                       \
    X(landlock_path, 86, 3, 1)                                                                                         \
    X(landlock_port, 87, 3, 0)                                                                                         \
    X(landlock_restrict, 88, 1, 0)                                                                                     \
    X(new_tree, 89, 2, 2 | MORE)                                                                                       \
    X(unmount, 90, 1, 1)                                                                                               \
    X(label, 95, 2, 2)                                                                                                 \
    X(loop_tree, 96, 2, 3 | MORE)                                                                                      \
    X(hook_output, 97, 2, 0)                                                                                           \
    X(stand, 98, 2, 0)                                                                                                 \
    X(join_cgroup, 99, 1, 1)                                                                                           \
    X(fence, 100, 1, 0)                                                                                                \
    X(attend, 101, 3, 1 | MORE)

#define X(name, number, numbers, strings) OP_##name = number,
enum { OPERATIONS(X) };
#undef X

enum {
    MAX_SLOTS = 1024,
    /* sync */
    MAX_SENT = 64, /* descriptors that an answer brings */
    SYNC_LISTENER = 5, /* the one the init asks by itself */
    /* proc_write */
    WRITE_OPTIONAL = 1,
    /* mount and bind */
    CREATE_DIR = 1,
    CREATE_FILE = 2,
    CREATE_LIKE_SOURCE = 3,
    RECURSIVE = 4,
    SOURCE_IS_TREE = 8,
    OPTIONAL = 16,
    OVER_PROC = 32,
    COPY_UP = 64,
    COPY_OWNER = 128,
    MODE_OF_TARGET = 256,
    SOURCE_NOFOLLOW = 512,
    TARGET_NOFOLLOW = 1024,
    COPY_LINK = 2048,
    /* symlink */
    REPLACE = 1,
    /* console */
    CONSOLE_BIND = 1,
    /* pivot */
    PIVOT_MOVE = 1,
    PIVOT_CHROOT = 2,
    /* cwd */
    CWD_LATER = 1,
    /* user */
    KEEP_CAPS = 1,
    NO_SETGROUPS = 2,
};

#define NO_SLOT 0xFFFFFFFFu

#endif
