/* Keeps a program that works for a container on the host (its network) for as long as the container is there.
 *
 * It is meant to be process 1 of a pid namespace: then, whatever ends it, SIGKILL included, the kernel ends the program
 * and all that it has started.
 */
#include "init.h"

enum { LIFE = 0, READY = 1, PROGRAM = 2 };

static const struct sigaction_k ignored = {.handler = (void (*)(int))1}; /* SIG_IGN */

static void become_program(char **argv, char **envp, const char *path) __attribute__((noreturn));
static void become_program(char **argv, char **envp, const char *path)
{
    if (prepare_exec() == 0)
        kcall(execve, path, argv, envp);
    die(127);
}

/* Its exit code; only an end with 0 is no reason to end. What it has left behind goes on, and nobody waits for that. */
static void program_ended(long pid)
{
    int status = 0;

    while (kcall(wait4, pid, &status, 0, NULL) == -EINTR)
        ;
    if (status != 0)
        die(status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff);
    kcall(rt_sigaction, SIGCHLD_, &ignored, NULL, sizeof ignored.mask);
    kcall(write, READY, "1", 1);
    kcall(close, READY);
    kcall(close, PROGRAM);
}

/* Never returns but with an error. */
long op_attend(const struct op *op)
{
    struct text path;
    const u8 *rest = next_string(op->first_string, &path);
    int pidfd = -1, life = slot_fd(op->numbers[0]), ready = slot_fd(op->numbers[1]), ends[3];
    char **argv, **envp;
    long got, pid, each;

    if (life < 0)
        return -EBADF;
    got = split_vectors(rest, op->string_count - 1, op->numbers[2], &argv, &envp);
    if (got < 0)
        return got;
    pid = fork_like(0, SIGCHLD_, -1, &pidfd);
    if (pid == 0)
        become_program(argv, envp, path.bytes);
    if (pid < 0)
        return pid;
    /* Above where they are to go, whatever number they have now. */
    ends[LIFE] = life;
    ends[READY] = ready;
    ends[PROGRAM] = pidfd;
    for (each = 0; each < 3; each++) {
        if (ends[each] < 0)
            continue;
        got = kcall(fcntl, ends[each], F_DUPFD_CLOEXEC, 3);
        if (got < 0)
            die(126);
        ends[each] = (int)got;
    }
    for (each = 0; each < 3; each++) {
        kcall(close, each);
        if (ends[each] >= 0)
            kcall(dup3, ends[each], each, O_CLOEXEC);
    }
    /* The control socket too: its creator sees that all is done. */
    kcall(close_range, 3, ~0u, 0);
    kcall(chdir, "/");
    for (;;) {
        struct pollfd_k polled[2] = {{LIFE, POLLIN_, 0}, {pid > 0 ? PROGRAM : -1, POLLIN_, 0}};

        if (kcall(ppoll, polled, 2, NULL, NULL, 0) < 0)
            continue;
        if (polled[0].revents != 0)
            die(0);
        if (polled[1].revents != 0) {
            program_ended(pid);
            pid = 0;
        }
    }
}
