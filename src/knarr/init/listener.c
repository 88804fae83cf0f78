/* A seccomp filter with a listener: its descriptor goes to the runtime, which sends it to who decides on the calls.
 *
 * Once the filter is in force, any call of ours might wait for that listener for ever, sendmsg among them. So a second
 * thread, made before and not filtered, hands the descriptor over, and the first makes no call at all meanwhile.
 */
#include "init.h"

enum { POLL_NANOSECONDS = 50000, STACK_BYTES = 4096 };

static u8 stack[STACK_BYTES] __attribute__((aligned(16)));
static int listener;    /* descriptor + 1; 0: not there yet; -1: it will not come */
static int handed_over; /* the second thread has nothing more to do */
static u32 operation;

static void hand_over(void)
{
    int fd;

    while ((fd = __atomic_load_n(&listener, __ATOMIC_ACQUIRE)) == 0) {
        struct timespec_k moment = {0, POLL_NANOSECONDS}; /* anew: the kernel leaves what remains in it, nothing */

        kcall(ppoll, NULL, 0, &moment, NULL, 0);
    }
    if (fd > 0) {
        struct packet head = {PACKET_SYNC, operation, SYNC_LISTENER, 0};

        /* Whoever waits for the program would wait for ever: the whole process ends. */
        if (send_descriptor(control, &head, sizeof head, fd - 1) < 0 || receive_answer(control, NULL, 0) != GO)
            die(1);
        close_fd(fd - 1);
    }
    __atomic_store_n(&handed_over, 1, __ATOMIC_RELEASE);
    for (;;)
        kcall(exit, 0); /* this thread alone */
}

/* Loads the filter by `load`, which gives the listener's descriptor, and returns when the runtime has it. */
long load_with_listener(const struct op *op, long (*load)(const struct op *))
{
    long got;

    operation = op->index;
    got = clone_thread(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM,
                       stack + sizeof stack, hand_over);
    if (got < 0)
        return got;
    got = load(op);
    __atomic_store_n(&listener, got < 0 ? -1 : (int)got + 1, __ATOMIC_RELEASE);
    while (!__atomic_load_n(&handed_over, __ATOMIC_ACQUIRE))
        pause_a_little();
    return got < 0 ? got : 0;
}
