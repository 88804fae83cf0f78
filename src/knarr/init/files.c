/* Guest mode: the host looks into the guest's files, to keep what a container wrote to its root (docs/isolation.md). */
#include "guest.h"

enum { DATA = 3 }; /* SEEK_DATA */

/* The path of a directory's entry, for calls that take no descriptor. */
static const char *joined(const char *directory, const char *name)
{
    static char path[PATH_BYTES];
    size_t first = text_length(directory), second = text_length(name);

    if (first + 1 + second >= sizeof path)
        return NULL;
    memcpy(path, directory, first);
    path[first] = '/';
    memcpy(path + first + 1, name, second + 1);
    return path;
}

/* What kind of directory or program it is beyond its mode. */
static u32 marks_of(const struct statx *file, const char *path)
{
    char value[4];

    if ((file->stx_mode & S_IFMT) == S_IFDIR &&
        kcall(lgetxattr, path, "trusted.overlay.opaque", value, sizeof value) == 1 && value[0] == 'y')
        return LOOK_OPAQUE;
    if ((file->stx_mode & S_IFMT) == S_IFREG && file->stx_mode & 0111 &&
        kcall(lgetxattr, path, "security.capability", NULL, 0) > 0)
        return LOOK_CAPABLE;
    return 0;
}

/* One entry of a directory: facts, name, the text of a link. Bytes used; 0 when there is no room. */
static long look_at(int directory, const char *path, const char *name, u8 *to, u32 room)
{
    static char target[PATH_BYTES];
    const char *whole = joined(path, name);
    struct looked facts = {.name_length = (u32)text_length(name)};
    struct statx file;
    long got = describe(directory, name, AT_SYMLINK_NOFOLLOW, &file);

    if (got < 0 || whole == NULL)
        return got < 0 ? got : -ENAMETOOLONG;
    if ((file.stx_mode & S_IFMT) == S_IFLNK) {
        got = kcall(readlinkat, directory, name, target, sizeof target);
        if (got < 0)
            return got;
        facts.link_length = (u32)got;
    }
    if (sizeof facts + facts.name_length + facts.link_length > room)
        return 0;
    facts.inode = file.stx_ino;
    facts.size = file.stx_size;
    facts.seconds = file.stx_mtime.tv_sec;
    facts.nanoseconds = file.stx_mtime.tv_nsec;
    facts.mode = file.stx_mode;
    facts.uid = file.stx_uid;
    facts.gid = file.stx_gid;
    facts.links = file.stx_nlink;
    facts.major = file.stx_rdev_major;
    facts.minor = file.stx_rdev_minor;
    facts.marks = marks_of(&file, whole);
    memcpy(to, &facts, sizeof facts);
    memcpy(to + sizeof facts, name, facts.name_length);
    memcpy(to + sizeof facts + facts.name_length, target, facts.link_length);
    return (long)(sizeof facts + facts.name_length + facts.link_length);
}

/* The entries of a directory after the first `skip`, as many as find room; none when there are no more. */
long look_into(const char *path, u32 skip, u8 *to)
{
    static u8 entries[32768] __attribute__((aligned(8)));
    long directory = kcall(openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), got;
    u32 used = 0, seen = 0;

    if (directory < 0)
        return directory;
    while ((got = kcall(getdents64, directory, entries, sizeof entries)) > 0) {
        long at = 0;

        while (at < got) {
            const struct directory_entry *entry = (const struct directory_entry *)(const void *)(entries + at);
            long length;

            at += entry->size;
            if (text_equal(entry->name, ".") || text_equal(entry->name, "..") || seen++ < skip)
                continue;
            length = look_at((int)directory, path, entry->name, to + used, REPLY_LIMIT - used);
            if (length <= 0) {
                close_fd(directory);
                return length < 0 ? length : (long)used;
            }
            used += (u32)length;
        }
    }
    close_fd(directory);
    return got < 0 ? got : (long)used;
}

/* The first data of a file at or after a place: where they begin, then up to `limit` bytes; nothing when only a hole or
 * nothing is left. */
long read_piece(const char *path, u64 at, u8 *to, u32 limit)
{
    long file = kcall(openat, AT_FDCWD, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC), got;
    u64 begin;

    if (file < 0)
        return file;
    got = kcall(lseek, file, at, DATA);
    if (got >= 0) {
        begin = (u64)got;
        memcpy(to, &begin, sizeof begin);
        if (limit > REPLY_LIMIT - sizeof begin)
            limit = REPLY_LIMIT - sizeof begin;
        got = kcall(pread64, file, to + sizeof begin, limit, begin);
    }
    close_fd(file);
    if (got == -ENXIO)
        return 0;
    return got > 0 ? got + (long)sizeof begin : got;
}
