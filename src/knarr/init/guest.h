/* What the files of the guest mode share (docs/isolation.md has the frames). */
#ifndef KNARR_GUEST_H
#define KNARR_GUEST_H

#include "init.h"

#pragma GCC visibility push(hidden)

/* A frame is this head, little-endian, and `length` bytes. */
struct frame {
    u32 length, kind, id, value;
};

enum {
    PROTOCOL = 1,
    PACKET_LIMIT = 8 + DOCUMENT_LIMIT, /* of a control packet from the host: the longest payload there is */
    DATA_LIMIT = 16 * 1024,            /* of one frame of a stream from the guest */
    REPLY_LIMIT = 64 * 1024,
    PLAN_LIMIT = 16 * 1024 * 1024,
    WINDOW_BYTES = 64 * 1024, /* what either side may send of a stream before the other says that it took some */
    PROCESSES = 128,
    /* The ring, a block device that the host fills: each piece of what it sends begins at a whole sector. */
    SECTOR = 512,
    RING_PIECE = 32 * 1024,
};

/* host to guest */
enum {
    FRAME_MOUNT = 1,
    FRAME_UNMOUNT = 2,
    FRAME_MKDIR = 3,
    FRAME_RMDIR = 4,
    FRAME_WRITE = 5,
    FRAME_READ = 6,
    FRAME_MODULE = 7,
    FRAME_DEVICES = 8,
    FRAME_LIST = 9,
    FRAME_NETLINK = 10,
    FRAME_LOOK = 11,
    FRAME_PIECE = 12,
    FRAME_ATTRIBUTE = 13,
    FRAME_PLAN = 16,
    FRAME_SPAWN = 17,
    FRAME_SIGNAL = 18,
    FRAME_RESIZE = 19,
    FRAME_CONNECT = 20,
    FRAME_END = 21,
};
/* both ways */
enum { FRAME_CONTROL = 32, FRAME_DATA = 33, FRAME_CLOSE = 34, FRAME_WINDOW = 35 };
/* guest to host */
enum { FRAME_HELLO = 64, FRAME_REPLY = 65, FRAME_CONTROL_END = 66, FRAME_EXIT = 67, FRAME_TOOK = 68 };

/* how a slot of a plan is filled */
enum { SLOT_CONSOLE = 1, SLOT_DIRECTORY = 2, SLOT_PIDFD = 3, SLOT_START = 4 };
enum { SPAWN_TERMINAL = 1, SPAWN_STDIN = 2 };

/* One entry of a directory in the answer to a FRAME_LOOK; its name and the text of a link follow. */
struct looked {
    u64 inode, size;
    i64 seconds;
    u32 nanoseconds, mode, uid, gid, links, major, minor, marks, name_length, link_length;
};
enum { LOOK_OPAQUE = 1, LOOK_CAPABLE = 2 };

/* as getdents64 gives it */
struct directory_entry {
    u64 inode, offset;
    unsigned short size;
    u8 type;
    char name[];
};

/* guest.c: the channel's outgoing side. `frame_room` gives where `length` bytes of payload go, NULL when there is no
 * room; `frame_done` sends them. */
u8 *frame_room(size_t length);
void frame_done(u32 kind, u32 id, u32 value, u32 length);
void guest_end(const char *why) __attribute__((noreturn));
void guest_main(void) __attribute__((noreturn));

/* requests.c */
void answer_request(const struct frame *frame, u8 *bytes);

/* guest_net.c */
long send_netlink(const char *namespace, const u8 *messages, const u8 *end, u8 *reply);
/* files.c */
long look_into(const char *path, u32 skip, u8 *to);
long read_piece(const char *path, u64 at, u8 *to, u32 limit);

/* workload.c */
enum { POLLED = 5 }; /* most descriptors of one process that are waited for */
void workload_frame(const struct frame *frame, u8 *bytes);
int workload_poll(struct pollfd_k *polled, int may_send);
void workload_ready(const struct pollfd_k *polled);
void workload_reap(void);

/* start.c */
void carry_out(void) __attribute__((noreturn));

#pragma GCC visibility pop

#endif
