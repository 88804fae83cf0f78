/* What the kernel understands: numbers and structures of its user interface.
 *
 * Old ones come from the system's linux/ and asm/ headers; what is younger than Linux 4.18 is written here,
 * so that the program can be built where those headers are older than the kernel it will run on.
 */
#ifndef KNARR_KERNEL_H
#define KNARR_KERNEL_H

#include <asm/ioctls.h>
#include <asm/statfs.h>
#include <asm/unistd.h>
#include <linux/capability.h>
#include <linux/elf.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/magic.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/stat.h>
#include <linux/uio.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t i32;
typedef int64_t i64;

#if defined(__x86_64__) && !defined(__ILP32__)
#include "arch_x86_64.h"
#elif defined(__aarch64__) && defined(__AARCH64EL__)
#include "arch_aarch64.h"
#else
#error "knarr-init knows x86-64 and little-endian aarch64 only"
#endif

/* kcall(openat, AT_FDCWD, path, flags): the system call of that name; a failure is -errno. */
#define kcall(name, ...) kcall_(__NR_##name, ##__VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define kcall_(number, a, b, c, d, e, f, ...)                                                                          \
    syscall6((number), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

/* System calls born after Linux 5.1 have one number on every architecture. */
#undef __NR_open_tree
#define __NR_open_tree 428
#undef __NR_move_mount
#define __NR_move_mount 429
#undef __NR_fsopen
#define __NR_fsopen 430
#undef __NR_fsconfig
#define __NR_fsconfig 431
#undef __NR_fsmount
#define __NR_fsmount 432
#undef __NR_clone3
#define __NR_clone3 435
#undef __NR_close_range
#define __NR_close_range 436
#undef __NR_openat2
#define __NR_openat2 437
#undef __NR_faccessat2
#define __NR_faccessat2 439
#undef __NR_mount_setattr
#define __NR_mount_setattr 442
#undef __NR_landlock_create_ruleset
#define __NR_landlock_create_ruleset 444
#undef __NR_landlock_add_rule
#define __NR_landlock_add_rule 445
#undef __NR_landlock_restrict_self
#define __NR_landlock_restrict_self 446

/* openat2 */
struct open_how_v0 {
    u64 flags, mode, resolve;
};
enum {
    IN_ROOT = 0x10,
    BENEATH = 0x08,
    NO_SYMLINKS = 0x04,
    NO_MAGICLINKS = 0x02,
    NO_XDEV = 0x01,
};

/* clone3 up to Linux 5.7, where cgroup came */
struct clone_args_v2 {
    u64 flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};
#define INTO_CGROUP 0x200000000ull
#define WITH_PIDFD 0x00001000ull

/* mounts */
struct mount_attr_v0 {
    u64 set, clear, propagation, userns;
};
#define TREE_CLONE 1
#define TREE_RECURSIVE 0x8000 /* AT_RECURSIVE */
enum { FROM_EMPTY_PATH = 0x04, TO_SYMLINKS = 0x10, TO_EMPTY_PATH = 0x40 }; /* move_mount */
enum { SET_FLAG = 0, SET_STRING = 1, CREATE = 6 };     /* fsconfig */
enum { MNT_RDONLY = 1, MNT_NOSUID = 2, MNT_NODEV = 4, MNT_NOEXEC = 8 };
enum { MNT_ATIME = 0x70, MNT_NOATIME = 0x10, MNT_STRICTATIME = 0x20, MNT_NODIRATIME = 0x80, MNT_NOSYMFOLLOW = 0x200000 };
#define MNT_IDMAP 0x100000ull
enum {
    MS_NOSYMFOLLOW_ = 1 << 8,
    MS_NOATIME_ = 1 << 10,
    MS_NODIRATIME_ = 1 << 11,
    MS_REC_ = 1 << 14,
    MS_PRIVATE_ = 1 << 18,
    MS_SLAVE_ = 1 << 19,
    MS_STRICTATIME_ = 1 << 24,
};
enum { UMOUNT_DETACH = 2, UMOUNT_BY_NAME = 8 };
#define DEVPTS_MAGIC 0x1cd1
#define NSFS_MAGIC_ 0x6e736673
#define PROC_ROOT_INODE 1
#define NS_GET_NSTYPE_ 0xb703 /* _IO(0xb7, 3) */

/* close_range, memfd, seccomp, wait */
#define RANGE_CLOEXEC 4
#define MFD_CLOEXEC_ 1
#define SEALS_DEMANDED 0x0e /* F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE */
#define SECCOMP_SET_MODE_FILTER 1
#define FILTER_NEW_LISTENER 8

/* files and terminals */
#ifndef AT_EACCESS
#define AT_EACCESS 0x200
#endif
#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif
#ifndef S_IFMT
#error "linux/stat.h without S_IFMT"
#endif
struct pollfd_k {
    int fd;
    short events, revents;
};
enum { POLLIN_ = 1, POLLERR_ = 8, POLLHUP_ = 16 };
struct timespec_k {
    i64 seconds, nanoseconds;
};

/* sockets */
struct msghdr_k {
    void *name;
    int namelen;
    struct iovec *iov;
    size_t iovlen;
    void *control;
    size_t controllen;
    u32 flags;
};
enum { AF_UNIX_ = 1, SOCK_DGRAM_ = 2, SOCK_CLOEXEC_ = O_CLOEXEC };
enum { SOL_SOCKET_ = 1, SO_ACCEPTCONN_ = 30, SO_TYPE_ = 3, SOCK_SEQPACKET_ = 5, SCM_RIGHTS_ = 1 };
enum { MSG_TRUNC_ = 0x20, MSG_NOSIGNAL_ = 0x4000, MSG_CMSG_CLOEXEC_ = 0x40000000 };

/* signals: the kernel's own layout, the same on both architectures */
struct sigaction_k {
    void (*handler)(int);
    u64 flags;
    void (*restorer)(void);
    u64 mask;
};
#define SA_RESTORER_ 0x04000000
enum { SIGHUP_ = 1, SIGINT_ = 2, SIGQUIT_ = 3, SIGKILL_ = 9, SIGTERM_ = 15, SIGCHLD_ = 17, SIGNALS = 64, SIG_SETMASK_ = 2 };

#define PATH_BYTES 4096 /* PATH_MAX */
#define NAME_BYTES 255  /* NAME_MAX */

#endif
