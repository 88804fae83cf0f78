/* Stands for a process that runs elsewhere, in a guest: signals go to whoever has it, its exit code comes back. */
#include "init.h"

enum { STAND_SIGNAL = 1, STAND_EXIT = 2, LOST = 137 };
enum { CONNECTION = 0, SIGNALLED = 1, SIGPIPE_ = 13, MSG_DONTWAIT_ = 0x40 };

struct word {
    u32 type, value;
};

static void tell_signals(void)
{
    /* as signalfd(2) has it: the number, and what does not matter here */
    static struct {
        u32 number;
        u8 rest[124];
    } infos[16];
    long got = kcall(read, SIGNALLED, infos, sizeof infos), each;

    for (each = 0; each < got / (long)sizeof infos[0]; each++) {
        struct word word = {STAND_SIGNAL, infos[each].number};

        kcall(sendto, CONNECTION, &word, sizeof word, MSG_NOSIGNAL_ | MSG_DONTWAIT_, NULL, 0);
    }
}

/* Never returns but with an error. The end of the connection is the end of the process: as if it had been killed. */
long op_stand(const struct op *op)
{
    u64 all = ~0ull, told = ~(1ull << (SIGCHLD_ - 1) | 1ull << (SIGPIPE_ - 1));
    struct word word;
    long got, signals;

    if (op->numbers[1] != NO_SLOT) {
        got = kcall(ioctl, slot_fd(op->numbers[1]), TIOCSCTTY, 0);
        if (got < 0)
            return got;
    }
    kcall(rt_sigprocmask, SIG_SETMASK_, &all, NULL, sizeof all);
    signals = kcall(signalfd4, -1, &told, sizeof told, O_CLOEXEC | O_NONBLOCK);
    if (signals < 0)
        return signals;
    got = kcall(chdir, "/");
    if (got == 0)
        got = kcall(dup3, slot_fd(op->numbers[0]), CONNECTION, O_CLOEXEC);
    if (got >= 0)
        got = kcall(dup3, signals, SIGNALLED, O_CLOEXEC);
    if (got < 0)
        return got;
    /* The control socket too: its creator sees that all is done. */
    kcall(close_range, SIGNALLED + 1, ~0u, 0);
    for (;;) {
        struct pollfd_k polled[2] = {{CONNECTION, POLLIN_, 0}, {SIGNALLED, POLLIN_, 0}};

        if (kcall(ppoll, polled, 2, NULL, NULL, 0) < 0)
            continue;
        if (polled[1].revents != 0)
            tell_signals();
        if (polled[0].revents != 0) {
            got = kcall(recvfrom, CONNECTION, &word, sizeof word, 0, NULL, NULL);
            die(got == sizeof word && word.type == STAND_EXIT ? (int)(word.value & 0xff) : LOST);
        }
    }
}
