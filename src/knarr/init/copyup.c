/* tmpcopyup: a tmpfs that begins with a copy of what it will hide.
 *
 * Both trees belong to the image, so names are never followed: an entry is looked at by an O_PATH descriptor, which
 * is opened in earnest only if it is a file or directory, and the copy is not mounted anywhere while it is made.
 */
#include "init.h"

enum { DEPTH = 200, DATA = 3, HOLE = 4 };

struct entry64 {
    u64 inode;
    i64 offset;
    unsigned short length;
    u8 type;
    char name[];
};

/* In one piece or not at all: attributes of a security module or of users. What tmpfs does not hold is left out
 * (user.* before Linux 6.6, all of a module that is not loaded), like what root of a user namespace may not set. */
static long copy_xattrs(int from, int to)
{
    static char names[4096], value[16384]; /* longer ones, which only an attack would have, are an error */
    long size = kcall(flistxattr, from, names, sizeof names), at;

    if (size < 0)
        return size == -EOPNOTSUPP ? 0 : size;
    for (at = 0; at < size; at += (long)text_length(names + at) + 1) {
        long got = kcall(fgetxattr, from, names + at, value, sizeof value);

        if (got >= 0)
            got = kcall(fsetxattr, to, names + at, value, got, 0);
        if (got < 0 && got != -EOPNOTSUPP && got != -EPERM && got != -ENODATA)
            return got;
    }
    return 0;
}

/* Only what is data: a hole stays one, or a small image could fill the memory. */
static long copy_data(int from, int to, u64 size)
{
    u64 at = 0;

    while (at < size) {
        long begin = kcall(lseek, from, at, DATA), end, got;

        if (begin == -ENXIO)
            break;
        if (begin < 0)
            return begin;
        end = kcall(lseek, from, begin, HOLE);
        if (end < 0)
            return end;
        got = kcall(lseek, from, begin, 0);
        if (got >= 0)
            got = kcall(lseek, to, begin, 0);
        while (got >= 0 && begin < end) {
            got = kcall(sendfile, to, from, NULL, end - begin);
            if (got <= 0) /* 0: it became shorter meanwhile */
                break;
            begin += got;
        }
        if (got < 0)
            return got;
        at = (u64)end;
    }
    return kcall(ftruncate, to, size);
}

/* Owner, mode and times of the entry `name` of `directory`; an owner that the user namespace lacks is its root. */
static long copy_attributes(int directory, const char *name, int link, const struct statx *file)
{
    struct timespec_k times[2] = {{file->stx_atime.tv_sec, file->stx_atime.tv_nsec},
                                  {file->stx_mtime.tv_sec, file->stx_mtime.tv_nsec}};
    long got = kcall(fchownat, directory, name, file->stx_uid, file->stx_gid, AT_SYMLINK_NOFOLLOW);

    if (got == -EINVAL)
        got = 0;
    if (got == 0 && !link)
        got = kcall(fchmodat, directory, name, file->stx_mode & 07777);
    if (got == 0)
        got = kcall(utimensat, directory, name, times, AT_SYMLINK_NOFOLLOW);
    return got;
}

static long copy_directory(int from, int to, int depth);

static long copy_contents(int handle, int directory, const char *name, const struct statx *file, int depth)
{
    int is_directory = (file->stx_mode & S_IFMT) == S_IFDIR;
    char again[64];
    long from, to, got;

    reopen_path(again, sizeof again, handle);
    from = kcall(openat, AT_FDCWD, again, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (from < 0)
        return from;
    to = is_directory ? kcall(mkdirat, directory, name, 0700) : 0;
    if (to == 0)
        to = kcall(openat, directory, name,
                   is_directory ? O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC
                                : O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                   0600);
    got = to;
    if (to >= 0)
        got = is_directory ? copy_directory((int)from, (int)to, depth + 1)
                           : copy_data((int)from, (int)to, file->stx_size);
    if (got >= 0)
        got = copy_attributes(directory, name, 0, file);
    if (got >= 0) /* after the owner, whose change takes file capabilities away */
        got = copy_xattrs((int)from, (int)to);
    close_fd(from);
    close_fd(to);
    return got;
}

static long copy_entry(int from, int to, const char *name, int depth)
{
    char target[PATH_BYTES];
    struct statx file;
    long got, handle = kcall(openat, from, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);

    if (handle < 0)
        return handle == -ENOENT ? 0 : handle; /* gone meanwhile */
    got = describe((int)handle, "", 0, &file);
    if (got < 0)
        return got;
    switch (file.stx_mode & S_IFMT) {
    case S_IFDIR:
    case S_IFREG: got = copy_contents((int)handle, to, name, &file, depth); break;
    case S_IFLNK:
        got = kcall(readlinkat, handle, "", target, sizeof target - 1);
        if (got >= 0) {
            target[got] = 0;
            got = kcall(symlinkat, target, to, name);
        }
        if (got >= 0)
            got = copy_attributes(to, name, 1, &file);
        break;
    default:
        got = kcall(mknodat, to, name, file.stx_mode,
                    (file.stx_rdev_minor & 0xff) | file.stx_rdev_major << 8 | (file.stx_rdev_minor & ~0xffu) << 12);
        if (got >= 0)
            got = copy_attributes(to, name, 0, &file);
    }
    close_fd(handle);
    return got;
}

static long copy_directory(int from, int to, int depth)
{
    u64 buffer[256];
    long got, at;

    if (depth > DEPTH) /* two descriptors and a piece of stack each */
        return -ELOOP;
    while ((got = kcall(getdents64, from, buffer, sizeof buffer)) > 0)
        for (at = 0; at < got;) {
            const struct entry64 *entry = (const void *)((const char *)buffer + at);
            long done;

            at += entry->length;
            if (text_equal(entry->name, ".") || text_equal(entry->name, ".."))
                continue;
            done = copy_entry(from, to, entry->name, depth);
            if (done < 0) { /* the path, from its end */
                detail_bytes(entry->name, text_length(entry->name) + 1);
                return done;
            }
        }
    return got;
}

/* Copies what is in `target`, a directory, into the mount that will hide it; `owner`: also whose it is. */
long copy_up(int target, int mount, int owner)
{
    long from = kcall(openat, target, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    long got, to = kcall(openat, mount, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct statx file;

    got = from < 0 ? from : to;
    if (got >= 0)
        got = describe((int)from, "", 0, &file);
    if (got == 0 && owner) {
        got = kcall(fchown, to, file.stx_uid, file.stx_gid);
        got = got == -EINVAL ? 0 : got;
    }
    detail_length = 0;
    detail_bytes("copy\0", 5);
    if (got == 0)
        got = copy_directory((int)from, (int)to, 1);
    if (got == 0)
        detail_length = 0;
    close_fd(from);
    close_fd(to);
    return got;
}
