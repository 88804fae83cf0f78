/* The container's terminal and standard streams. */
#include "init.h"

/* Opens the multiplexer of the devpts below root. What the image put there is not believed (CVE-2025-52565):
 * inside a devpts, and without leaving it, only the kernel makes nodes. */
static long open_ptmx(int root)
{
    struct open_how_v0 how = {.flags = O_RDWR | O_NOCTTY | O_CLOEXEC,
                              .resolve = BENEATH | NO_XDEV | NO_SYMLINKS | NO_MAGICLINKS};
    struct statfs fs;
    long got, master, directory = open_in_root(root, "dev/pts", O_PATH | O_DIRECTORY, 0);

    if (directory < 0)
        return directory;
    got = kcall(fstatfs, directory, &fs);
    if (got < 0)
        return got;
    if (fs.f_type != DEVPTS_MAGIC)
        return -ENODEV;
    master = kcall(openat2, directory, "ptmx", &how, sizeof how);
    close_fd(directory);
    return master;
}

/* Mounts the terminal on /dev/console, which is made if missing and must not be a symbolic link: it would put the
 * terminal over a file of the image's choice. */
static long bind_console(int root, int terminal)
{
    char leaf[NAME_BYTES + 1];
    struct statx found;
    long got, fd, target, tree, parent = parent_in_root(root, "dev/console", leaf);

    if (parent < 0)
        return parent;
    fd = kcall(openat, parent, leaf, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    close_fd(fd);
    if (fd < 0 && fd != -EEXIST)
        return fd;
    target = kcall(openat, parent, leaf, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    close_fd(parent);
    if (target < 0)
        return target;
    got = describe((int)target, "", 0, &found);
    if (got < 0)
        return got;
    if ((found.stx_mode & S_IFMT) == S_IFLNK)
        return -ELOOP;
    tree = clone_tree(terminal, "", 0);
    if (tree < 0)
        return tree;
    got = attach((int)tree, (int)target);
    close_fd(tree);
    close_fd(target);
    return got;
}

long op_console(const struct op *op)
{
    const u64 *n = op->numbers;
    struct {
        unsigned short rows, columns, x, y;
    } size = {(unsigned short)n[3], (unsigned short)n[4], 0, 0};
    int root = root_fd(n[0]), unlocked = 0, each;
    long got, terminal, master = open_ptmx(root);
    struct statx found;

    if (master < 0)
        return master;
    got = kcall(ioctl, master, TIOCSPTLCK, &unlocked);
    if (got < 0)
        return got;
    /* the other end from the kernel's own hands, not by a name below dev/pts */
    terminal = kcall(ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (terminal < 0)
        return terminal;
    if (n[3] != 0 || n[4] != 0)
        got = kcall(ioctl, master, TIOCSWINSZ, &size);
    if (got == 0)
        got = describe((int)terminal, "", 0, &found);
    if (got == 0 && n[5] < 0xFFFFFFFF && found.stx_uid != n[5])
        got = kcall(fchown, terminal, n[5], -1);
    if (got == 0 && n[2] & CONSOLE_BIND)
        got = bind_console(root, (int)terminal);
    if (got == 0)
        got = send_descriptor(slot_fd(n[1]), "/dev/ptmx", 9, (int)master);
    if (got < 0)
        return got;
    close_fd(master);
    close_fd(slot_fd(n[1])); /* a way to the host that nobody needs any more */
    slot_forget(n[1]);
    for (each = 0; each < 3; each++) {
        got = kcall(dup3, terminal, each, 0);
        if (got < 0)
            return got;
    }
    close_fd(terminal);
    root_done(n[0], root);
    return kcall(ioctl, 0, TIOCSCTTY, 0);
}

long op_reopen_null(const struct op *op)
{
    struct open_how_v0 how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC, .resolve = NO_MAGICLINKS};
    struct statx file;
    long got, null = -1;
    int each;

    (void)op;
    for (each = 0; each < 3; each++) {
        if (describe(each, "", 0, &file) < 0 || !is_null(&file))
            continue;
        if (null < 0) {
            null = kcall(openat2, AT_FDCWD, "/dev/null", &how, sizeof how);
            if (null == -ENOENT) /* a container without one keeps what it was given */
                return 0;
            if (null < 0)
                return null;
            got = describe((int)null, "", 0, &file);
            close_fd(null);
            if (got < 0)
                return got;
            if (!is_null(&file)) /* would make a file of the image's choice the program's stdio */
                return -ENODEV;
            how.flags = O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
            null = kcall(openat2, AT_FDCWD, "/dev/null", &how, sizeof how);
            if (null < 0)
                return null;
            got = describe((int)null, "", 0, &file);
            if (got < 0)
                return got;
            if (!is_null(&file))
                return -ENODEV;
            kcall(fcntl, null, F_SETFL, O_RDWR);
        }
        got = kcall(dup3, null, each, 0);
        if (got < 0)
            return got;
    }
    close_fd(null);
    return 0;
}

long op_own_stdio(const struct op *op)
{
    struct statx file;
    u8 termios[256];
    int each;

    for (each = 0; each < 3; each++) {
        long got;
        u32 type;

        if (describe(each, "", 0, &file) < 0 || file.stx_uid == op->numbers[0])
            continue;
        type = file.stx_mode & S_IFMT;
        /* only what was made for this program: never a regular file, a socket or another device */
        if (type != S_IFIFO && (type != S_IFCHR || kcall(ioctl, each, TCGETS, termios) < 0))
            continue;
        got = kcall(fchown, each, op->numbers[0], -1);
        /* an owner the user namespace does not know, or a file system that refuses: the program has it anyway */
        if (got < 0 && got != -EINVAL && got != -EPERM && got != -EROFS)
            return got;
    }
    return 0;
}
