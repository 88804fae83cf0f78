/* The control socket: what the child says to the runtime and what it hears (docs/init.md). */
#include "init.h"

int control = CONTROL;
u8 document[DOCUMENT_LIMIT] __attribute__((aligned(4096)));
u32 document_length;
u8 detail[DETAIL_LIMIT] __attribute__((aligned(4096)));
u32 detail_length;

void detail_bytes(const void *bytes, size_t length)
{
    if (length > sizeof detail - detail_length)
        length = sizeof detail - detail_length;
    memcpy(detail + detail_length, bytes, length);
    detail_length += (u32)length;
}

void detail_number(u32 value)
{
    detail_bytes(&value, sizeof value);
}

long report(u32 type, u32 index, i32 value, const void *bytes, u32 length)
{
    struct packet head = {type, index, value, length};
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)(uintptr_t)bytes, length}};
    struct msghdr_k message = {.iov = parts, .iovlen = 2};
    long sent = kcall(sendmsg, control, &message, MSG_NOSIGNAL_);

    /* A seccomp filter in force may know write(2) only; every profile that lets a program speak has it. */
    if (sent == -EPERM || sent == -ENOSYS || sent == -EACCES)
        sent = kcall(writev, control, parts, 2);
    return sent < 0 ? sent : 0;
}

/* Sends bytes with a descriptor. */
long send_descriptor(int socket, const void *bytes, size_t length, int fd)
{
    struct {
        u64 length;
        i32 level, type, fd, padding;
    } rights = {.length = 20, .level = SOL_SOCKET_, .type = SCM_RIGHTS_, .fd = fd};
    struct iovec part = {(void *)(uintptr_t)bytes, length};
    struct msghdr_k message = {.iov = &part, .iovlen = 1, .control = &rights, .controllen = sizeof rights};
    long sent = kcall(sendmsg, socket, &message, MSG_NOSIGNAL_);

    return sent < 0 ? sent : 0;
}

/* Receives one packet from the parent, and with it as many descriptors as there are slots to put them into. Gives GO or
 * ABORT, -ECONNRESET at the end of the connection, -EPROTO for a packet that is none. */
long receive_answer(int fd, const u64 *slots, u32 count)
{
    struct {
        u64 length;
        i32 level, type, fds[MAX_SENT];
    } rights = {.length = 0};
    struct {
        u32 type, length;
    } head = {0, 0};
    struct iovec parts[2] = {{&head, sizeof head}, {document, sizeof document}};
    struct msghdr_k message = {.iov = parts, .iovlen = 2};
    long got, kept = 0;
    u32 each;

    if (count > MAX_SENT)
        return -EINVAL;
    if (count != 0) {
        message.control = &rights;
        message.controllen = sizeof rights;
    }
    do
        got = kcall(recvmsg, fd, &message, MSG_CMSG_CLOEXEC_);
    while (got == -EINTR);
    if (got < 0)
        return got;
    if (got == 0)
        return -ECONNRESET;
    if (got < (long)sizeof head || message.flags & MSG_TRUNC_ || head.length != (u64)got - sizeof head)
        return -EPROTO;
    if (head.type != GO && head.type != ABORT)
        return -EPROTO;
    if (head.length != 0)
        document_length = head.length;
    if (count == 0 || head.type != GO)
        return (long)head.type;
    if (rights.length != 16 + 4 * (u64)count || rights.level != SOL_SOCKET_ || rights.type != SCM_RIGHTS_)
        return -EPROTO;
    for (each = 0; each < count && kept >= 0; each++)
        kept = slot_set(slots[each], rights.fds[each]);
    return kept < 0 ? kept : (long)head.type;
}

long op_sync(const struct op *op)
{
    long got = report(PACKET_SYNC, op->index, (i32)op->numbers[0], NULL, 0);

    if (got == 0)
        got = receive_answer(control, op->numbers + 1, op->number_count - 1);
    if (got == GO)
        return 0;
    if (got == ABORT || got == -ECONNRESET || got == -EPIPE)
        die(1); /* nobody is there to be told */
    return got;
}

static void end_by_signal(int signal)
{
    die(128 + signal);
}

static void never_returned_to(void)
{
    __builtin_trap();
}

/* Pid 1 of a namespace has no default action, so a created container would ignore SIGTERM without this. The
 * handlers stay until execve, which resets them: a signal between start and exec ends the process too. */
static void end_at_signals(void)
{
    static const u8 ends[] = {SIGHUP_, SIGINT_, SIGQUIT_, SIGTERM_};
    /* x86-64 delivers nothing to a handler without a restorer, though this one never returns */
    struct sigaction_k action = {.handler = end_by_signal, .flags = SA_RESTORER_, .restorer = never_returned_to};
    size_t each;

    for (each = 0; each < sizeof ends; each++)
        kcall(rt_sigaction, ends[each], &action, NULL, sizeof action.mask);
}

long op_wait_start(const struct op *op)
{
    int listener = slot_fd(op->numbers[0]);
    int listening = 0;
    u32 size = sizeof listening;
    long got = kcall(getsockopt, listener, SOL_SOCKET_, SO_ACCEPTCONN_, &listening, &size);

    if (got < 0 || !listening)
        return got < 0 ? got : -EINVAL;
    end_at_signals();
    /* The creator sees the end of the connection: from here on the process only waits. */
    close_fd(control);
    for (;;) {
        long connection = kcall(accept4, listener, NULL, NULL, SOCK_CLOEXEC_);

        if (connection == -EINTR || connection == -ECONNABORTED)
            continue;
        if (connection < 0)
            return connection;
        got = receive_answer((int)connection, NULL, 0);
        if (got == ABORT)
            die(1);
        if (got != GO) { /* a start that was killed half-way must not end the container: another may come */
            close_fd(connection);
            continue;
        }
        control = (int)connection;
        close_fd(listener);
        slot_forget(op->numbers[0]);
        return 0;
    }
}
