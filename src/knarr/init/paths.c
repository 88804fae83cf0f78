/* Names below a root descriptor, and what is made there: directories, nodes, links.
 *
 * A path of a container is resolved by the kernel with the root as its ceiling; from then on only the descriptor
 * counts (CVE-2021-30465, CVE-2024-45310, CVE-2026-41579). Magic links are refused: /proc/self/fd leads out.
 */
#include "init.h"

enum { TRIES = 1024, LINKS = 40, STEPS = 16384 };

/* The root an operation names; NO_SLOT: the process's own root, to be given back with root_done. */
int root_fd(u64 slot)
{
    if (slot != NO_SLOT)
        return slot_fd(slot);
    return (int)kcall(openat, AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
}

void root_done(u64 slot, int fd)
{
    if (slot == NO_SLOT)
        close_fd(fd);
}

long open_in_root(int root, const char *path, u64 flags, u64 resolve)
{
    struct open_how_v0 how = {.flags = flags | O_CLOEXEC, .resolve = IN_ROOT | NO_MAGICLINKS | resolve};
    int tries;

    /* EAGAIN: a rename or a mount somewhere on the machine crossed a ".." of ours; not for ever. */
    for (tries = 0; tries < TRIES; tries++) {
        long fd = kcall(openat2, root, path, &how, sizeof how);

        if (fd != -EAGAIN)
            return fd;
    }
    return -EAGAIN;
}

/* Copies a path without its trailing slashes; refuses what no file system can hold, before anything is made. */
static long copy_path(char out[PATH_BYTES], const char *path)
{
    size_t length = text_length(path), each, name = 0;

    while (length > 1 && path[length - 1] == '/')
        length--;
    if (length == 0)
        return -ENOENT;
    if (length >= PATH_BYTES)
        return -ENAMETOOLONG;
    for (each = 0; each < length; each++) {
        name = path[each] == '/' ? 0 : name + 1;
        if (name > NAME_BYTES)
            return -ENAMETOOLONG;
    }
    memcpy(out, path, length);
    out[length] = 0;
    return (long)length;
}

static long make_node(int parent, const char *name, u32 mode)
{
    long fd;

    if ((mode & S_IFMT) == S_IFDIR)
        return kcall(mkdirat, parent, name, mode & 07777);
    fd = kcall(openat, parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode & 07777);
    close_fd(fd);
    return fd < 0 ? fd : 0;
}

/* Replaces the component [start, end) of `walk`, a symbolic link below `parent`, by what the link says. */
static long splice_link(char walk[PATH_BYTES], size_t start, size_t end, int parent, const char *name)
{
    char link[PATH_BYTES], whole[2 * PATH_BYTES];
    long length = kcall(readlinkat, parent, name, link, sizeof link);
    size_t head, rest = text_length(walk + end);

    if (length < 0)
        return length;
    if (length >= PATH_BYTES)
        return -ENAMETOOLONG;
    head = link[0] == '/' ? 0 : start;
    if (head + (size_t)length + rest >= sizeof whole)
        return -ENAMETOOLONG;
    memcpy(whole, walk, head);
    memcpy(whole + head, link, (size_t)length);
    memcpy(whole + head + (size_t)length, walk + end, rest + 1);
    return copy_path(walk, whole);
}

/* Makes what is missing of a path. Every prefix is resolved anew from the root by the kernel, so that nothing that
 * moves meanwhile can lead out; only the missing name itself is made, below the descriptor of its parent, and a
 * dangling symbolic link in its place is replaced by its text and followed in root. */
static long make_in_root(int root, const char *path, u32 mode)
{
    char walk[PATH_BYTES];
    long got = copy_path(walk, path);
    int links = 0, steps = 0, parent;
    size_t start, end;

    if (got < 0)
        return got;
again:
    parent = -1;
    end = 0;
    for (;;) {
        char after;
        long here;

        if (++steps > STEPS)
            return -EAGAIN;
        for (start = end; walk[start] == '/'; start++)
            ;
        if (walk[start] == 0)
            return parent >= 0 ? parent : open_in_root(root, "/", O_PATH, 0);
        for (end = start; walk[end] != '/' && walk[end] != 0; end++)
            ;
        after = walk[end];
        walk[end] = 0;
        here = open_in_root(root, walk, O_PATH, 0);
        if (here == -ENOENT) {
            int below = parent >= 0 ? parent : root;

            got = make_node(below, walk + start, after == 0 ? mode : (u32)S_IFDIR | 0755);
            if (got == -EEXIST) {
                char name[NAME_BYTES + 1];

                memcpy(name, walk + start, end - start + 1);
                walk[end] = after;
                got = splice_link(walk, start, end, below, name);
                if (got >= 0) {
                    close_fd(parent);
                    if (++links > LINKS)
                        return -ELOOP;
                    goto again;
                }
                if (got == -EINVAL || got == -ENOENT) /* no link: it came, or went, just now */
                    got = 0;
            }
            walk[end] = after;
            if (got < 0)
                return got;
            end = start; /* look again at what is there now */
            continue;
        }
        walk[end] = after;
        if (here < 0)
            return here;
        close_fd(parent);
        parent = (int)here;
    }
}

/* A descriptor (O_PATH) of `path`, which is made if it is missing and mode (S_IFDIR or S_IFREG and permissions)
 * is not 0. */
long reach_in_root(int root, const char *path, u32 mode)
{
    long fd = open_in_root(root, path, O_PATH, 0);

    if (fd != -ENOENT || mode == 0)
        return fd;
    return make_in_root(root, path, mode);
}

/* Like reach_in_root, but a symbolic link at the end of the path is the thing itself. */
long reach_link_in_root(int root, const char *path, u32 mode)
{
    char leaf[NAME_BYTES + 1];
    long fd, parent = parent_in_root(root, path, leaf);

    if (parent < 0)
        return parent;
    fd = kcall(openat, parent, leaf, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd == -ENOENT && mode != 0) {
        fd = make_node((int)parent, leaf, mode);
        if (fd >= 0)
            fd = kcall(openat, parent, leaf, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    }
    close_fd(parent);
    return fd;
}

/* A descriptor of the directory `path` lies in (made if missing), and the last name by itself. */
long parent_in_root(int root, const char *path, char leaf[NAME_BYTES + 1])
{
    char whole[PATH_BYTES];
    long length = copy_path(whole, path);
    size_t start;

    if (length < 0)
        return length;
    for (start = (size_t)length; start > 0 && whole[start - 1] != '/'; start--)
        ;
    memcpy(leaf, whole + start, (size_t)length - start + 1);
    if (leaf[0] == 0 || text_equal(leaf, ".") || text_equal(leaf, ".."))
        return -EINVAL;
    whole[start] = 0;
    return reach_in_root(root, start == 0 ? "/" : whole, (u32)S_IFDIR | 0755);
}

long op_mkdir(const struct op *op)
{
    int root = root_fd(op->numbers[0]);
    struct statx found;
    long fd = reach_in_root(root, op->strings[0].bytes, (u32)S_IFDIR | ((u32)op->numbers[1] & 07777));
    long got;

    if (fd < 0)
        return fd;
    got = describe((int)fd, "", 0, &found);
    if (got == 0 && (found.stx_mode & S_IFMT) != S_IFDIR)
        got = -ENOTDIR;
    close_fd(fd);
    root_done(op->numbers[0], root);
    return got;
}

/* Writes the name under which procfs knows one of our own descriptors. */
long reopen_path(char *buffer, size_t size, int fd)
{
    static const char prefix[] = "/proc/self/fd/";

    if (size < sizeof prefix + 20)
        return -ENAMETOOLONG;
    memcpy(buffer, prefix, sizeof prefix - 1);
    decimal(buffer + sizeof prefix - 1, (u64)fd);
    return 0;
}

long op_mknod(const struct op *op)
{
    const u64 *n = op->numbers;
    u32 mode = (u32)n[1], major = (u32)n[2], minor = (u32)n[3];
    u64 device = (minor & 0xff) | (u64)major << 8 | (u64)(minor & ~0xffu) << 12; /* the kernel's new_encode_dev */
    char leaf[NAME_BYTES + 1];
    struct statx node;
    int root = root_fd(n[0]);
    long got, fd, parent, made;

    if (n[2] > 0xfff || n[3] > 0xfffff)
        return -EINVAL;
    parent = parent_in_root(root, op->strings[0].bytes, leaf);
    if (parent < 0)
        return parent;
    made = kcall(mknodat, parent, leaf, mode, device);
    if (made < 0 && made != -EEXIST)
        return made;
    fd = kcall(openat, parent, leaf, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    close_fd(parent);
    if (fd < 0)
        return fd;
    got = describe((int)fd, "", 0, &node);
    if (got < 0)
        return got;
    /* config-linux.md, Devices: a file of another kind in its place is an error */
    if ((node.stx_mode & S_IFMT) != (mode & S_IFMT))
        return -EEXIST;
    if ((mode & S_IFMT) != S_IFIFO && (node.stx_rdev_major != major || node.stx_rdev_minor != minor))
        return -EEXIST;
    /* Only what was made here is given away: a node that was there may be the host's, through a bind of its /dev. */
    if (made == 0 && (node.stx_uid != n[4] || node.stx_gid != n[5]))
        got = kcall(fchownat, fd, "", n[4], n[5], AT_EMPTY_PATH);
    close_fd(fd);
    root_done(n[0], root);
    return got;
}

/* A symbolic link `path` with this text, its parent made; the same one existing is fine. */
long link_in_root(int root, const char *path, const char *text, int replace)
{
    char leaf[NAME_BYTES + 1], found[PATH_BYTES];
    size_t size = text_length(text);
    long got, length, parent = parent_in_root(root, path, leaf);

    if (parent < 0)
        return parent;
    got = kcall(symlinkat, text, parent, leaf);
    if (got == -EEXIST) {
        length = kcall(readlinkat, parent, leaf, found, sizeof found);
        if (length >= 0 && (size_t)length == size && memcmp(found, text, size) == 0)
            got = 0;
        else if (replace) {
            got = kcall(unlinkat, parent, leaf, 0);
            if (got == 0)
                got = kcall(symlinkat, text, parent, leaf);
        }
    }
    close_fd(parent);
    return got;
}

long op_symlink(const struct op *op)
{
    int root = root_fd(op->numbers[0]);
    long got =
        link_in_root(root, op->strings[0].bytes, op->strings[1].bytes, (op->numbers[1] & REPLACE) != 0);

    root_done(op->numbers[0], root);
    return got;
}
