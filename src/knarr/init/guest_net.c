/* Guest mode: what the host says of this kernel's network devices, as messages of rtnetlink(7). */
#include "guest.h"

enum { AF_NETLINK_ = 16, SOCK_RAW_ = 3, NLMSG_ERROR_ = 2, NEW_NETWORK = 0x40000000 };

struct message {
    u32 length;
    unsigned short type, flags;
    u32 sequence, port;
};

static long netlink_socket(const char *namespace)
{
    long own, there, handle;

    if (namespace[0] == 0)
        return kcall(socket, AF_NETLINK_, SOCK_RAW_ | SOCK_CLOEXEC_, 0);
    own = kcall(openat, AT_FDCWD, "/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (own < 0)
        return own;
    there = kcall(openat, AT_FDCWD, namespace, O_RDONLY | O_CLOEXEC);
    handle = there < 0 ? there : kcall(setns, there, NEW_NETWORK);
    if (handle == 0) {
        handle = kcall(socket, AF_NETLINK_, SOCK_RAW_ | SOCK_CLOEXEC_, 0);
        if (kcall(setns, own, NEW_NETWORK) < 0)
            guest_end("the way back from a network namespace is closed");
    }
    close_fd(there);
    close_fd(own);
    return handle;
}

/* The answers to one message, up to its acknowledgement; the body of the first goes to `reply`, its length to *got. */
static long hear(long handle, u8 *reply, long *got)
{
    static u8 answer[32768] __attribute__((aligned(8)));

    for (;;) {
        long length = kcall(recvfrom, handle, answer, sizeof answer, 0, NULL, NULL), at = 0;

        if (length < 0)
            return length;
        while (length - at >= (long)sizeof(struct message)) {
            struct message head;
            i32 error;

            memcpy(&head, answer + at, sizeof head);
            if (head.length < sizeof head || head.length > length - at)
                return -EPROTO;
            if (head.type == NLMSG_ERROR_) {
                memcpy(&error, answer + at + sizeof head, sizeof error);
                return error;
            }
            if (*got == 0) {
                *got = (long)(head.length - sizeof head);
                memcpy(reply, answer + at + sizeof head, (size_t)*got);
            }
            at += (head.length + 3) & ~3u;
        }
    }
}

/* Sends them one by one, each of which asks for an acknowledgement, in the network namespace of that path ("": our own)
 * and ends with the first that fails. Gives the length of what is in `reply` (REPLY_LIMIT bytes): the first answer. */
long send_netlink(const char *namespace, const u8 *messages, const u8 *end, u8 *reply)
{
    long handle = netlink_socket(namespace), got = 0, error = 0;

    if (handle < 0)
        return handle;
    while (error == 0 && end - messages >= (long)sizeof(struct message)) {
        u32 length;

        memcpy(&length, messages, sizeof length);
        if (length < sizeof(struct message) || length > end - messages) {
            error = -EPROTO;
            break;
        }
        error = kcall(sendto, handle, messages, length, 0, NULL, 0);
        if (error >= 0)
            error = hear(handle, reply, &got);
        messages += (length + 3) & ~3u;
    }
    close_fd(handle);
    return error < 0 ? error : got;
}
