/* The last steps: working directory, looking for the program, and becoming it. */
#include "init.h"

static int cwd_done, prepared, keep_any, explained;
static char program[PATH_BYTES];  /* what find_program found */
static char home[5 + PATH_BYTES]; /* "HOME=…"; empty: not asked for */
static int keep_as[MAX_SLOTS];    /* per slot: the number it keeps over exec, +1; 0: none */

/* Opens a path in the process's own root, not through magic links. A container's seccomp filter that is in force
 * already may not know openat2 (ENOSYS, or EPERM): then the links are not refused here, but what they could reach is
 * by what follows, getcwd and the closing of descriptors before exec. */
long open_inside(const char *path, u64 flags)
{
    struct open_how_v0 how = {.flags = flags | O_CLOEXEC, .resolve = NO_MAGICLINKS};
    long fd = kcall(openat2, AT_FDCWD, path, &how, sizeof how);

    if (fd == -ENOSYS || fd == -EPERM)
        fd = kcall(openat, AT_FDCWD, path, how.flags);
    return fd;
}

long op_keep_fd(const struct op *op)
{
    u64 slot = op->numbers[0], number = op->numbers[1];

    if (slot_fd(slot) < 0)
        return -EBADF;
    if (number < 3 || number >= 1 << 20)
        return -EINVAL;
    keep_any = 1;
    keep_as[slot] = (int)number + 1;
    return 0;
}

long op_cwd(const struct op *op)
{
    char now[PATH_BYTES];
    long got, fd;

    if (cwd_done)
        return 0;
    /* Not through /proc/self/fd (CVE-2024-21626), */
    fd = open_inside(op->strings[0].bytes, O_PATH | O_DIRECTORY);
    got = fd < 0 ? fd : kcall(fchdir, fd);
    close_fd(fd);
    if (got == -EACCES && op->numbers[0] & CWD_LATER)
        return 0;
    if (got < 0)
        return got;
    /* and wherever it led: the kernel says "(unreachable)" of a directory outside the root. */
    got = kcall(getcwd, now, sizeof now);
    if (got < 0)
        return got;
    if (now[0] != '/') {
        detail_bytes(now, text_length(now));
        return -EXDEV;
    }
    cwd_done = 1;
    return 0;
}

/* -- the program ---------------------------------------------------------------------------------------------- */

/* A symbolic link that leads nowhere: its mode, its path, its text. */
static void explain_link(const char *path)
{
    struct statx file;
    char text[1024];
    long got;

    if (describe(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, &file) < 0 || (file.stx_mode & S_IFMT) != S_IFLNK)
        return;
    got = kcall(readlinkat, AT_FDCWD, path, text, sizeof text);
    detail_number(file.stx_mode);
    detail_number(0);
    detail_bytes(path, text_length(path) + 1);
    if (got > 0)
        detail_bytes(text, (size_t)got);
}

/* Mode, mount flags, path and the first bytes of a file, from which the runtime tells why it cannot be executed. */
static void explain(const char *path)
{
    struct statx file = {.stx_mode = 0};
    struct statfs fs = {.f_flags = 0};
    u8 head[1024];
    long fd, got = 0;

    if (explained)
        return;
    detail_length = 0;
    if (describe(AT_FDCWD, path, 0, &file) < 0) {
        explain_link(path);
        return;
    }
    kcall(statfs, path, &fs);
    detail_number(file.stx_mode);
    detail_number((u32)fs.f_flags);
    detail_bytes(path, text_length(path) + 1);
    if ((file.stx_mode & S_IFMT) != S_IFREG)
        return;
    fd = open_inside(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
    if (fd >= 0)
        got = kcall(read, fd, head, sizeof head);
    close_fd(fd);
    if (got > 0)
        detail_bytes(head, (size_t)got);
}

/* Before a seccomp filter: what exec would say of the program, while the calls to learn it are allowed. */
void prepare_explanation(void)
{
    if (program[0] != 0)
        explain(program);
    explained = 1;
}

/* 0 if `program` can be executed; -ENOENT, -EACCES, or what the lookup said. */
static long try_program(void)
{
    struct statx file;
    long got, fd = open_inside(program, O_PATH);

    if (fd < 0)
        return fd == -ENOTDIR ? -ENOENT : fd;
    got = describe((int)fd, "", 0, &file);
    close_fd(fd);
    if (got < 0)
        return got;
    if ((file.stx_mode & S_IFMT) != S_IFREG)
        return -EACCES;
    got = kcall(faccessat2, AT_FDCWD, program, 1 /* X_OK */, AT_EACCESS);
    if (got == -ENOSYS || got == -EPERM) /* a filter in force, as in open_inside */
        got = kcall(faccessat, AT_FDCWD, program, 1 /* X_OK */);
    return got;
}

long op_find_program(const struct op *op)
{
    const struct text *name = &op->strings[0];
    const char *path = op->strings[1].bytes;
    static char refused[PATH_BYTES];
    long got;
    u64 each;

    refused[0] = 0;
    if (name->length == 0)
        return -ENOENT;
    if (name->length >= sizeof program)
        return -ENAMETOOLONG;
    for (each = 0; each < name->length && name->bytes[each] != '/'; each++)
        ;
    if (each < name->length) {
        memcpy(program, name->bytes, name->length + 1);
        got = try_program();
        if (got < 0)
            explain(program);
        return got;
    }
    while (*path != 0) { /* as execvp does, except that an empty PATH names no directory at all */
        size_t length = 0;

        while (path[length] != 0 && path[length] != ':')
            length++;
        if (length + name->length + 2 <= sizeof program) {
            size_t used = 0;

            memcpy(program, path, length);
            used = length;
            if (length == 0)
                program[used++] = '.'; /* POSIX: an empty entry is the working directory */
            program[used++] = '/';
            memcpy(program + used, name->bytes, name->length + 1);
            got = try_program();
            if (got == 0) {
                detail_length = 0;
                return 0;
            }
            if (got == -ENOENT && detail_length == 0) /* a link that leads nowhere is told, should nothing be found */
                explain_link(program);
            if (got == -EACCES && refused[0] == 0)
                memcpy(refused, program, text_length(program) + 1);
        }
        path += length;
        if (*path == ':')
            path++;
    }
    program[0] = 0;
    if (refused[0] == 0)
        return -ENOENT;
    explain(refused);
    return -EACCES;
}

/* A program of the host's, for a hook the runtime runs: the operator named it, so magic links are followed (Docker's
 * hook is /proc/PID/exe) and it need not be looked at before exec does. */
long op_host_program(const struct op *op)
{
    const struct text *path = &op->strings[0];

    if (path->length == 0)
        return -ENOENT;
    if (path->length >= sizeof program)
        return -ENAMETOOLONG;
    memcpy(program, path->bytes, path->length + 1);
    return 0;
}

/* Fills the pointer vectors from `count` strings that begin at `first`: `argc` arguments, then the environment. */
long split_vectors(const u8 *first, u32 count, u64 argc, char ***argv, char ***envp)
{
    char **slot = (char **)(void *)vectors;
    struct text text;
    u32 each;

    if (argc > count)
        return -EINVAL;
    *argv = slot;
    *envp = slot + argc + 1; /* one on, for the NULL between the two */
    for (each = 0; each < count; each++) {
        if (each == argc)
            *slot++ = NULL;
        first = next_string(first, &text);
        *slot++ = (char *)(uintptr_t)text.bytes;
    }
    if (argc == count)
        *slot++ = NULL;
    *slot = NULL;
    return 0;
}

/* The smallest number from `from` on that stays open: a kept descriptor's, or the control socket's. */
static int next_kept(int from)
{
    int found = control >= from ? control : INT32_MAX, slot;

    for (slot = 0; slot < MAX_SLOTS && keep_any; slot++)
        if (keep_as[slot] > from && keep_as[slot] - 1 < found)
            found = keep_as[slot] - 1;
    return found;
}

/* Puts the kept descriptors at their numbers. Any of them, or the control socket, may stand where another is to go:
 * first all above the highest number, then each to its place. */
static long place_kept(void)
{
    int highest = 2, slot;
    long got = 0;

    for (slot = 0; slot < MAX_SLOTS; slot++)
        if (keep_as[slot] - 1 > highest)
            highest = keep_as[slot] - 1;
    if (control <= highest) {
        got = kcall(fcntl, control, F_DUPFD_CLOEXEC, highest + 1);
        if (got < 0)
            return got;
        control = (int)got;
    }
    for (slot = 0; slot < MAX_SLOTS; slot++)
        if (keep_as[slot] != 0 && slot_fd((u64)slot) <= highest) {
            got = slot_set((u64)slot, kcall(fcntl, slot_fd((u64)slot), F_DUPFD_CLOEXEC, highest + 1));
            if (got < 0)
                return got;
        }
    for (slot = 0; slot < MAX_SLOTS; slot++)
        if (keep_as[slot] != 0) {
            got = kcall(dup3, slot_fd((u64)slot), keep_as[slot] - 1, 0);
            if (got < 0)
                return got;
        }
    return 0;
}

/* What must be right when the program begins. Everything but the kept descriptors and the control socket is closed
 * here although it is close-on-exec too: while execve looks the program up, /proc/self/fd must lead nowhere
 * (CVE-2024-21626). */
long prepare_exec(void)
{
    int from = 3;
    long got = 0;

    if (prepared)
        return 0;
    if (keep_any)
        got = place_kept();
    if (got < 0)
        return got;
    while (from < INT32_MAX) {
        int kept = next_kept(from);

        if (kept > from)
            kcall(close_range, from, kept == INT32_MAX ? ~0u : (u32)kept - 1, 0);
        from = kept == INT32_MAX ? kept : kept + 1;
    }
    got = lower_files();
    if (got < 0)
        return got;
    kcall(umask, program_umask);
    prepared = 1;
    return 0;
}

/* -- HOME ----------------------------------------------------------------------------------------------------- */

/* Reads a passwd file by and by and copies the sixth field of the first line whose third is `uid` to `out`; "/" if
 * there is none. */
static void find_home(int file, u64 uid, char *out, size_t size)
{
    char bytes[1024];
    u64 total = 0, number = 0;
    size_t used = 0;
    int field = 0, digits = 0, matches = 0;
    long got, each;

    do {
        got = total < 10 << 20 ? kcall(read, file, bytes, sizeof bytes) : 0;
        if (got <= 0) {
            bytes[0] = '\n'; /* the last line may lack its end */
            got = 0;
        }
        total += (u64)got;
        for (each = 0; each < got || (got == 0 && each == 0); each++) {
            char byte = bytes[each];

            if (byte != '\n' && byte != ':') {
                if (field == 2) {
                    digits = byte >= '0' && byte <= '9' && digits < 10 ? digits + 1 : 11; /* 11: no number */
                    number = number * 10 + (u64)(byte - '0');
                } else if (field == 5 && matches && used < size)
                    out[used++] = byte;
                continue;
            }
            if (field == 2)
                matches = digits > 0 && digits < 11 && number == uid;
            if (field == 5 && matches && used > 0 && used < size && out[0] == '/') {
                out[used] = 0;
                return;
            }
            field = byte == '\n' ? 0 : field + 1;
            matches = byte == '\n' ? 0 : matches;
            number = 0;
            used = 0;
            digits = 0;
        }
    } while (got > 0);
    out[0] = '/';
    out[1] = 0;
}

long op_home(const struct op *op)
{
    static const char path[] = "/etc/passwd";
    struct statx found;
    long fd = open_inside(path, O_PATH);

    memcpy(home, "HOME=/", 7);
    /* the image's file, if it is one: no FIFO to wait for, no device to wake */
    if (fd < 0 || describe((int)fd, "", 0, &found) < 0 || (found.stx_mode & S_IFMT) != S_IFREG) {
        close_fd(fd);
        return 0;
    }
    close_fd(fd);
    fd = open_inside(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
    if (fd >= 0)
        find_home((int)fd, op->numbers[0], home + 5, sizeof home - 5);
    close_fd(fd);
    return 0;
}

static void add_home(char **envp)
{
    for (; *envp != NULL; envp++)
        if (memcmp(*envp, "HOME=", 5) == 0)
            return;
    envp[0] = home;
    envp[1] = NULL; /* there is room: see vector_bytes */
}

long op_exec(const struct op *op)
{
    char **argv, **envp;
    long got;

    if (program[0] == 0)
        return -EINVAL;
    got = split_vectors(op->first_string, op->string_count, op->numbers[0], &argv, &envp);
    if (got < 0)
        return got;
    got = prepare_exec();
    if (got < 0)
        return got;
    if (home[0] != 0)
        add_home(envp);
    got = kcall(execve, program, argv, envp);
    explain(program);
    return got;
}
