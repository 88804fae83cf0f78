/*
 * start, state, kill and delete of an ordinary container, without Python, whose start costs more than they do.
 *
 * Python decides here, too: `create` leaves a file `brief` beside the container's state (runtime/brief.py) with the
 * verbs that may be done from it and all that they must know. What is not plain (another option, a hook, a paused
 * container, a group with processes in it, whatever fails) is Python's: do_verb returns, and the verb is done from its
 * beginning, with every check and every message. So nothing here says what went wrong, and each step can be repeated.
 *
 * What is checked is what runtime/record.py, start.py, kill.py and delete.py check, in their order; docs/runtime.md.
 */
#include "system.h"

#undef __NR_pidfd_send_signal
#define __NR_pidfd_send_signal 424
#undef __NR_pidfd_open
#define __NR_pidfd_open 434

enum { NAME = 128, PATH = 4096, BRIEF = 64 * 1024, LOCK_EX_NB = 2 | 4, REMOVE_DIRECTORY = AT_REMOVEDIR };
enum { UNIX = 1, SEQPACKET = 5, PEEK = 2, NOSIGNAL = 0x4000, GO_ = 1 };
enum { GONE, CREATED, RUNNING, UNCLEAR };

/* The brief's fields; GROUPS are the rest of it, to END: mount point, path, number of parents, and so on. */
enum { FORMAT, BOOT, PID, START_TIME, VERBS, FREEZER, HEAD, TAIL, GROUPS, END };
static const char *brief[END + 1];
static char contents[BRIEF];
static char path[PATH];
static char small[4096];
static char out[BRIEF + 256];

/* Reads a file whole; its size, or less than 0 when that cannot be. The text ends with a NUL. */
static long read_file(long folder, const char *name, char *into, size_t room)
{
    long fd = kcall(openat, folder, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0);
    long got, size = 0;

    if (fd < 0)
        return fd;
    while ((got = kcall(read, fd, into + size, room - 1 - (size_t)size)) > 0)
        size += got;
    kcall(close, fd);
    into[size] = 0;
    return got < 0 ? got : (size_t)size == room - 1 ? -EFBIG : size;
}

static int describe(long fd, const char *name, int flags, struct statx *facts)
{
    return kcall(statx, fd, name, flags, STATX_BASIC_STATS, facts) == 0;
}

static int is_same(const struct statx *one, const struct statx *other)
{
    return one->stx_ino == other->stx_ino && one->stx_dev_major == other->stx_dev_major &&
           one->stx_dev_minor == other->stx_dev_minor;
}

/* The file behind `fd` is what is there under that name. */
static int still_there(long fd, long folder, const char *name)
{
    struct statx here, there;

    return describe(fd, "", AT_EMPTY_PATH, &here) && describe(folder, name, AT_SYMLINK_NOFOLLOW, &there) &&
           is_same(&here, &there);
}

/* As base/ids.py: letters, digits and _ . + -, a letter or a digit first. */
static int is_id(const char *text)
{
    const char *at = text;

    for (; *at; at++) {
        int plain = (*at >= 'a' && *at <= 'z') || (*at >= 'A' && *at <= 'Z') || (*at >= '0' && *at <= '9');
        if (!plain && (at == text || (*at != '_' && *at != '.' && *at != '+' && *at != '-')))
            return 0;
    }
    return at != text && at - text <= NAME;
}

/* A number that the whole text is; -1 for none. */
static long number_of(const char *text)
{
    long value = 0;
    const char *at = text;

    for (; *at >= '0' && *at <= '9' && at - text < 9; at++)
        value = value * 10 + (*at - '0');
    return *at || at == text ? -1 : value;
}

/* The signals that engines send; -1 for others. */
static long signal_of(const char *text)
{
    long value = number_of(text);

    if (value >= 0)
        return value <= 64 ? value : -1;
    if (starts(text, "SIG"))
        text += 3;
    return same(text, "TERM") ? 15 : same(text, "KILL") ? 9 : same(text, "INT") ? 2 : same(text, "HUP") ? 1 : -1;
}

/* Takes the brief apart; 0 for one that is not as it should be. */
static int read_brief(long folder)
{
    long size = read_file(folder, "brief", contents, sizeof contents);
    const char *at = contents;

    if (size <= 0 || contents[size - 1] || !same(contents, "knarr 1"))
        return 0;
    brief[END] = contents + size;
    for (size_t field = FORMAT; field < GROUPS; field++) {
        if (at == brief[END])
            return 0;
        brief[field] = at;
        at += length(at) + 1;
    }
    brief[GROUPS] = at; /* maybe none: the end */
    return 1;
}

static int may(const char *verb)
{
    for (const char *at = brief[VERBS]; *at; at++)
        if (starts(at, verb))
            return 1;
    return 0;
}

/* What record.status says, with the process looked at now. */
static int status(long folder)
{
    struct statx facts;
    char *at, *close = 0;
    long got;

    if (read_file(AT_FDCWD, "/proc/sys/kernel/random/boot_id", small, sizeof small) <= 0)
        return UNCLEAR;
    if (!starts(small, brief[BOOT]))
        return GONE;
    at = append(append(path, path + sizeof path, "/proc/"), path + sizeof path, brief[PID]);
    append(at, path + sizeof path, "/stat");
    got = read_file(AT_FDCWD, path, small, sizeof small);
    if (got == -ENOENT || got == -ESRCH)
        return GONE;
    if (got <= 0)
        return UNCLEAR;
    for (at = small; *at; at++) /* pid (comm) state …: the name may hold blanks and parentheses */
        if (*at == ')')
            close = at;
    if (!close || close[1] != ' ' || !close[2])
        return UNCLEAR;
    at = close + 2;
    if (*at == 'Z' || *at == 'X')
        return GONE;
    for (int field = 0; field < 19; field++) {
        while (*at && *at != ' ')
            at++;
        if (!*at++)
            return UNCLEAR;
    }
    if (!starts(at, brief[START_TIME]) || at[length(brief[START_TIME])] != ' ')
        return GONE;
    if (*brief[FREEZER]) {
        if (read_file(AT_FDCWD, brief[FREEZER], small, sizeof small) <= 0)
            return UNCLEAR;
        for (at = small; *at && !starts(at, "frozen 0\n") && !starts(at, "THAWED\n"); at++)
            ;
        if (!*at)
            return UNCLEAR;
    }
    return describe(folder, "start", AT_SYMLINK_NOFOLLOW, &facts) ? CREATED : RUNNING;
}

static void state(long folder)
{
    const char *end = out + sizeof out;
    int now = status(folder);
    char *at;

    if (now == UNCLEAR)
        return;
    at = append(append(out, end, brief[HEAD]), end, "\"pid\": ");
    at = append(append(at, end, now == GONE ? "0" : brief[PID]), end, ",\n  \"status\": \"");
    at = append(append(at, end, now == GONE ? "stopped" : now == CREATED ? "created" : "running"), end, "\"");
    at = append(append(at, end, brief[TAIL]), end, "\n");
    if (kcall(write, 1, out, at - out) == at - out)
        leave(0);
}

static void start(long folder, long *connection)
{
    static struct {
        unsigned short family;
        char path[108];
    } address = {.family = UNIX};
    u32 go[2] = {GO_, 0};
    struct pollfd_k ending = {.events = POLLIN_};
    struct timespec_k second = {1, 0};
    char room[24];
    char byte;
    char *at;
    long fd, got, heard;

    if (status(folder) != CREATED || kcall(renameat2, folder, "start", folder, "started", 0) < 0)
        return;
    fd = kcall(socket, UNIX, SEQPACKET | O_CLOEXEC, 0);
    at = append(address.path, address.path + sizeof address.path, "/proc/self/fd/");
    at = append(at, address.path + sizeof address.path, decimal(room, folder));
    append(at, address.path + sizeof address.path, "/started");
    got = fd < 0 ? fd : kcall(connect, fd, &address, sizeof address);
    if (got == 0)
        got = kcall(sendto, fd, go, sizeof go, NOSIGNAL, 0, 0);
    if (got < 0 && got != -EPIPE && got != -ECONNRESET) { /* these show as the end of the connection */
        kcall(renameat2, folder, "started", folder, "start", 0);
        return;
    }
    heard = got >= 0;
    while ((got = kcall(recvfrom, fd, &byte, 1, PEEK, 0, 0)) == -EINTR || (got == -ECONNRESET && heard))
        heard &= got == -EINTR; /* else it was closed without GO having been read, maybe after some word */
    if (got == 0 && heard)
        leave(0); /* the program runs, or has run */
    if (got <= 0) { /* the process ends: the words for that are Python's, once it has */
        kcall(close, fd);
        ending.fd = (int)kcall(pidfd_open, number_of(brief[PID]), 0);
        kcall(ppoll, &ending, 1, &second, 0, 0);
        return;
    }
    kcall(fcntl, fd, F_SETFD, 0);
    *connection = fd;
}

static void kill(long folder, long signal)
{
    /* Looked up after the pidfd was opened: if the start time fits then, the descriptor is that process. */
    long fd = kcall(pidfd_open, number_of(brief[PID]), 0);
    int now = fd < 0 ? UNCLEAR : status(folder);

    if ((now == CREATED || now == RUNNING) && kcall(pidfd_send_signal, fd, signal, 0, 0) == 0)
        leave(0);
}

static int marked(const char *group)
{
    return kcall(getxattr, group, "trusted.knarr", small, sizeof small) >= 0 ||
           kcall(getxattr, group, "user.knarr", small, sizeof small) >= 0;
}

/* Removes the empty group, and those of its parents that we made and that are empty (runtime/cgroup_members.py, remove). */
static int remove_group(const char *mountpoint, const char *group, long parents)
{
    char *top = append(path, path + sizeof path, mountpoint);
    char *end = append(top, path + sizeof path, group);
    long done;

    if (end == path + sizeof path - 1)
        return 0;
    done = kcall(unlinkat, AT_FDCWD, path, REMOVE_DIRECTORY);
    if (done < 0 && done != -ENOENT)
        return 0;
    for (;; parents--) {
        end = last_slash(path);
        if (!end || end <= top)
            return 1;
        *end = 0;
        if (parents <= 0 && !marked(path))
            return 1;
        done = kcall(unlinkat, AT_FDCWD, path, REMOVE_DIRECTORY);
        if (done < 0 && done != -ENOENT)
            return 1; /* another container is in it */
    }
}

static void delete(long root, long folder, const char *id)
{
    const char *end = path + sizeof path;
    long lock;

    if (status(folder) != GONE)
        return;
    append(append(path, end, ".locks/"), end, id);
    lock = kcall(openat, root, path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0600);
    if (lock < 0 || kcall(flock, lock, LOCK_EX_NB) < 0 || !still_there(lock, root, path) ||
        !still_there(folder, root, id))
        return;
    for (const char *at = brief[GROUPS]; at != brief[END];) {
        const char *group = at + length(at) + 1;
        const char *parents = group == brief[END] ? group : group + length(group) + 1;

        if (parents >= brief[END] || !remove_group(at, group, number_of(parents)))
            return;
        at = parents + length(parents) + 1;
    }
    kcall(unlinkat, folder, "brief", 0);
    kcall(unlinkat, folder, "start", 0);
    kcall(unlinkat, folder, "started", 0);
    kcall(unlinkat, folder, "config.json", 0);
    kcall(unlinkat, folder, "state.json", 0);
    if (kcall(unlinkat, root, id, REMOVE_DIRECTORY) < 0)
        return;
    append(append(path, end, ".locks/"), end, id);
    kcall(unlinkat, root, path, 0);
    leave(0);
}

/* An option's value, from this word or the next one; 0 when this word is another option. */
static const char *value_of(const char *option, char ***at)
{
    const char *word = **at;

    if (!starts(word, option))
        return 0;
    word += length(option);
    if (*word == '=')
        return word + 1;
    if (*word || !(*at)[1])
        return 0;
    return *++*at;
}

/* Without --root: what record.default_root says for root, who has no other root in a namespace of a user's. */
static const char *default_root(char **envp)
{
    for (; *envp; envp++)
        if (starts(*envp, "XDG_RUNTIME_DIR=")) {
            const char *at = small;
            if (read_file(AT_FDCWD, "/proc/self/uid_map", small, sizeof small) <= 0)
                return 0;
            for (const char *want = "0 0 4294967295"; *want; want++) {
                while (*at == ' ')
                    at++;
                if (*want != ' ' && *at++ != *want)
                    return 0;
            }
        }
    return "/run/knarr";
}

void do_verb(char **argv, char **envp, long *connection)
{
    const char *root = 0, *log = 0, *value, *verb, *id = 0, *signal = 0;
    struct statx facts;
    long root_fd, folder, number;

    if (kcall(geteuid) != 0)
        return;
    for (; *argv && **argv == '-'; argv++) {
        if ((value = value_of("--root", &argv)))
            root = value;
        else if ((value = value_of("--log", &argv)))
            log = value;
        else if ((value = value_of("--log-format", &argv))) {
            if (!same(value, "json") && !same(value, "text"))
                return;
        } else if (!same(*argv, "--systemd-cgroup"))
            return;
    }
    verb = *argv;
    if (!verb || !(same(verb, "start") || same(verb, "state") || same(verb, "kill") || same(verb, "delete")))
        return;
    for (argv++; *argv; argv++) {
        if (*verb == 'd' && (same(*argv, "--force") || same(*argv, "-f")))
            continue; /* for a container that has stopped it makes no difference */
        if (!id)
            id = *argv;
        else if (*verb == 'k' && !signal)
            signal = *argv;
        else
            return;
    }
    number = signal_of(signal ? signal : "TERM");
    if (!id || !is_id(id) || number < 0 || (root && !*root))
        return;
    for (char **each = envp; *each; each++)
        if (starts(*each, "NOTIFY_SOCKET=") && (*each)[14])
            return;
    if (!root && !(root = default_root(envp)))
        return;
    root_fd = kcall(openat, AT_FDCWD, root, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (root_fd < 0 || !describe(root_fd, "", AT_EMPTY_PATH, &facts) || facts.stx_uid || facts.stx_mode & 022)
        return;
    folder = kcall(openat, root_fd, id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
    if (folder < 0 || !read_brief(folder) || !may(verb))
        return;
    if (log && *log) { /* it is there afterwards, as with Python, which says so when it cannot be */
        for (const char *at = log; *at; at++)
            if (*at == ':')
                return; /* journald:, syslog:, file: */
        if (kcall(openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0644) < 0)
            return;
    }
    if (*verb == 'k')
        kill(folder, number);
    else if (*verb == 'd')
        delete(root_fd, folder, id);
    else if (verb[3] == 'r')
        start(folder, connection);
    else
        state(folder);
}
