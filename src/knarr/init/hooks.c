/* Hooks: programs of the host's administrator, run beside the container's set-up.
 *
 * A hook gets the state document on stdin, the environment it was given and nothing else: no descriptor, no signal
 * disposition, no directory of the container (CVE-2025-23266). It cannot hold up the container by what it writes,
 * by not reading, by children that live on, or, with a time-out, by not ending.
 */
#include "init.h"

enum { EXIT_STATUS = 1, SIGNALLED = 2, TIMED_OUT = 3, NOT_STARTED = 4, NO_DOCUMENT = 5 };
enum { KEPT = 1024 };

static u64 output_slots[2] = {NO_SLOT, NO_SLOT}; /* of stdout and stderr, where they go into files */

struct hook {
    long pid, pidfd;
    int output, errors, trouble; /* read ends of stdout, stderr and of the child's report that exec failed */
    char said[2 * KEPT];         /* the end of what it wrote to stderr */
    u32 said_length;
};

static i64 milliseconds(void)
{
    struct timespec_k now = {0, 0};

    kcall(clock_gettime, 1 /* CLOCK_MONOTONIC */, &now);
    return now.seconds * 1000 + now.nanoseconds / 1000000;
}

/* The state document as a file: the hook may read it or not, nobody waits for it. */
static long document_file(void)
{
    long got = 0, fd = kcall(memfd_create, "state", MFD_CLOEXEC_);
    u32 done = 0;

    while (fd >= 0 && done < document_length) {
        got = kcall(write, fd, document + done, document_length - done);
        if (got <= 0)
            return got < 0 ? got : -EIO;
        done += (u32)got;
    }
    if (fd >= 0)
        kcall(lseek, fd, 0, 0);
    return fd;
}

/* The child's half. Its group is its own, so that a time-out reaches its children too. */
static void become_hook(const char *path, char **argv, char **envp, const int ends[4]) __attribute__((noreturn));
static void become_hook(const char *path, char **argv, char **envp, const int ends[4])
{
    int trouble = ends[3], each;
    i32 error;
    long got;

    kcall(setsid);
    for (each = 0, got = 0; each < 3 && got >= 0; each++)
        got = kcall(dup3, ends[each], each, 0); /* the ends are above 2, see hold_stdio */
    if (got >= 0 && trouble != 3)
        got = kcall(dup3, trouble, 3, O_CLOEXEC);
    if (got >= 0) {
        trouble = 3;
        kcall(close_range, 4, ~0u, 0);
        kcall(umask, program_umask);
        got = kcall(chdir, "/");
    }
    if (got >= 0)
        got = kcall(execve, path, argv, envp);
    error = (i32)-got;
    kcall(write, trouble, &error, sizeof error);
    die(127);
}

/* Its stdout or stderr: the file it shall write to, else the pipe that we read. */
static int output_of(int which, int pipe)
{
    return output_slots[which] == NO_SLOT ? pipe : slot_fd(output_slots[which]);
}

long op_hook_output(const struct op *op)
{
    int each;

    for (each = 0; each < 2; each++) {
        output_slots[each] = op->numbers[each];
        if (output_of(each, 0) < 0)
            return -EBADF;
    }
    return 0;
}

static long start_hook(struct hook *hook, const char *path, char **argv, char **envp)
{
    int out[2], err[2], trouble[2], pidfd = -1;
    long got, stdin = document_file();

    if (stdin < 0)
        return stdin;
    got = kcall(pipe2, out, O_CLOEXEC);
    if (got == 0)
        got = kcall(pipe2, err, O_CLOEXEC);
    if (got == 0)
        got = kcall(pipe2, trouble, O_CLOEXEC);
    if (got < 0)
        return got;
    got = fork_like(0, SIGCHLD_, -1, &pidfd);
    if (got == 0)
        become_hook(path, argv, envp,
                    (const int[4]){(int)stdin, output_of(0, out[1]), output_of(1, err[1]), trouble[1]});
    if (got < 0)
        return got;
    close_fd(stdin);
    close_fd(out[1]);
    close_fd(err[1]);
    close_fd(trouble[1]);
    hook->pid = got;
    hook->pidfd = pidfd;
    hook->output = out[0];
    hook->errors = err[0];
    hook->trouble = trouble[0];
    kcall(fcntl, hook->output, F_SETFL, O_NONBLOCK);
    kcall(fcntl, hook->errors, F_SETFL, O_NONBLOCK);
    return 0;
}

/* Reads what a pipe holds now, keeps the end of it if it is stderr. Gives 0 at its end, as read does. */
static long drain(struct hook *hook, int pipe)
{
    char away[1024];
    long got;

    if (pipe == hook->output)
        return kcall(read, pipe, away, sizeof away);
    got = kcall(read, pipe, hook->said + hook->said_length, sizeof hook->said - hook->said_length);
    if (got > 0)
        hook->said_length += (u32)got;
    if (hook->said_length > KEPT) {
        memmove(hook->said, hook->said + hook->said_length - KEPT, KEPT);
        hook->said_length = KEPT;
    }
    return got;
}

/* Waits for the hook to end, not for its pipes to close: a daemon it leaves behind may hold them for ever. */
static int wait_hook(struct hook *hook, u64 timeout)
{
    struct pollfd_k polled[3] = {
        {.fd = (int)hook->pidfd, .events = POLLIN_},
        {.fd = hook->output, .events = POLLIN_},
        {.fd = hook->errors, .events = POLLIN_},
    };
    i64 end = milliseconds() + (i64)timeout;
    int each;

    for (;;) {
        i64 left = end - milliseconds();
        struct timespec_k wait = {left / 1000, left % 1000 * 1000000};

        if (timeout != 0 && left <= 0)
            return 0;
        if (kcall(ppoll, polled, 3, timeout ? &wait : NULL, NULL, 0) <= 0)
            continue;
        for (each = 1; each < 3; each++)
            if (polled[each].revents != 0 && drain(hook, polled[each].fd) == 0)
                polled[each].fd = -1;
        if (polled[0].revents == 0)
            continue;
        for (each = 0; each < 64 && drain(hook, hook->errors) > 0; each++)
            ;
        return 1;
    }
}

static long refuse(u32 what, u32 number, const struct hook *hook, long error)
{
    detail_number(what);
    detail_number(number);
    if (hook != NULL)
        detail_bytes(hook->said, hook->said_length);
    return error;
}

long op_hook(const struct op *op)
{
    struct hook hook = {.said_length = 0};
    u64 timeout = op->numbers[0];
    struct text path;
    const u8 *rest = next_string(op->first_string, &path);
    char **argv, **envp;
    i32 error = 0;
    int status = 0, ended;
    long got;

    if (timeout > 1ull << 40) /* 34 years; above, the sum with the clock might not fit */
        return -EINVAL;
    if (document_length == 0)
        return refuse(NO_DOCUMENT, 0, NULL, -ENODATA);
    got = split_vectors(rest, op->string_count - 1, op->numbers[1], &argv, &envp);
    if (got < 0)
        return got;
    got = start_hook(&hook, path.bytes, argv, envp);
    if (got < 0)
        return refuse(NOT_STARTED, (u32)-got, NULL, got);
    ended = wait_hook(&hook, timeout);
    if (!ended) {
        kcall(kill, -hook.pid, SIGKILL_);
        kcall(kill, hook.pid, SIGKILL_); /* if it has not come to setsid yet */
    }
    while (kcall(wait4, hook.pid, &status, 0, NULL) == -EINTR)
        ;
    if (!ended)
        return refuse(TIMED_OUT, (u32)timeout, &hook, -ETIMEDOUT);
    if (kcall(read, hook.trouble, &error, sizeof error) == sizeof error)
        return refuse(NOT_STARTED, (u32)error, NULL, -error);
    close_fd(hook.pidfd);
    close_fd(hook.output);
    close_fd(hook.errors);
    close_fd(hook.trouble);
    if ((status & 0x7f) != 0)
        return refuse(SIGNALLED, (u32)status & 0x7f, &hook, -ECANCELED);
    if (status >> 8 != 0)
        return refuse(EXIT_STATUS, (u32)status >> 8 & 0xff, &hook, -ECANCELED);
    return 0;
}
