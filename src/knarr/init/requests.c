/* Guest mode: what the host asks of the guest's files and mounts. Each request has one answer, an errno and bytes. */
#include "guest.h"

#include <linux/bpf.h>

/* The NUL-ended text at *at, which is moved past it; NULL when there is none before `end`. */
static const char *next_text(u8 **at, const u8 *end)
{
    u8 *begin = *at, *each;

    for (each = begin; each < end; each++)
        if (*each == 0) {
            *at = each + 1;
            return (const char *)begin;
        }
    return NULL;
}

static long do_mount(u8 *at, const u8 *end)
{
    const char *source, *target, *type, *data;
    u64 flags;

    if (end - at < (long)sizeof flags)
        return -EPROTO;
    memcpy(&flags, at, sizeof flags);
    at += sizeof flags;
    source = next_text(&at, end);
    target = next_text(&at, end);
    type = next_text(&at, end);
    data = next_text(&at, end);
    if (data == NULL)
        return -EPROTO;
    return kcall(mount, source, target, type, flags, data[0] ? data : NULL);
}

enum { WRITE_NEW = 1, WRITE_MORE = 2 };

static long do_write(u32 how, u8 *at, const u8 *end)
{
    const char *path = next_text(&at, end);
    u64 flags = O_WRONLY | O_CLOEXEC | (how & WRITE_NEW ? O_CREAT | O_TRUNC : 0) | (how & WRITE_MORE ? O_APPEND : 0);
    long file, got = 0;

    if (path == NULL)
        return -EPROTO;
    file = kcall(openat, AT_FDCWD, path, flags, 0755);
    if (file < 0)
        return file;
    do {
        got = kcall(write, file, at, end - at);
        at += got > 0 ? got : 0;
    } while (got > 0 && at < end);
    close_fd(file);
    return got < 0 ? got : 0;
}

/* At most `limit` bytes of a file into `to`. */
static long do_read(const char *path, u8 *to, u32 limit)
{
    long file = kcall(openat, AT_FDCWD, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC), got = 0;
    u32 used = 0;

    if (file < 0)
        return file;
    if (limit > REPLY_LIMIT)
        limit = REPLY_LIMIT;
    while (used < limit) {
        got = kcall(read, file, to + used, limit - used);
        if (got <= 0)
            break;
        used += (u32)got;
    }
    close_fd(file);
    return got < 0 ? got : (long)used;
}

/* The names of the directories in a directory, each with its NUL, as many as find room. */
static long do_list(const char *path, u8 *to)
{
    static u8 entries[32768] __attribute__((aligned(8)));
    long directory = kcall(openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), got;
    u32 used = 0;

    if (directory < 0)
        return directory;
    while ((got = kcall(getdents64, directory, entries, sizeof entries)) > 0) {
        long at = 0;

        while (at < got) {
            const struct directory_entry *entry = (const struct directory_entry *)(const void *)(entries + at);
            size_t length = text_length(entry->name) + 1;

            at += entry->size;
            if (entry->type != 4 /* DT_DIR */ || text_equal(entry->name, ".") || text_equal(entry->name, ".."))
                continue;
            if (used + length > REPLY_LIMIT)
                continue;
            memcpy(to + used, entry->name, length);
            used += (u32)length;
        }
    }
    close_fd(directory);
    return got < 0 ? got : (long)used;
}

static long do_module(u8 *at, const u8 *end)
{
    const char *path = next_text(&at, end), *words = next_text(&at, end);
    long file, got;

    if (words == NULL)
        return -EPROTO;
    file = kcall(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return file;
    got = kcall(finit_module, file, words, 0);
    close_fd(file);
    return got == -EEXIST ? 0 : got;
}

/* Attaches a device program to a cgroup. Its path, and the array of struct bpf_insn. */
static long do_devices(u8 *at, const u8 *end)
{
    static u64 code[PACKET_LIMIT / 8];
    static char licence[] = "Apache-2.0";
    union bpf_attr load = {.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE}, join = {.attach_type = BPF_CGROUP_DEVICE};
    const char *path = next_text(&at, end);
    long group, program, got;

    if (path == NULL || (end - at) % 8 != 0)
        return -EPROTO;
    memcpy(code, at, (size_t)(end - at));
    load.insn_cnt = (u32)(end - at) / 8;
    load.insns = (u64)(uintptr_t)code;
    load.license = (u64)(uintptr_t)licence;
    load.expected_attach_type = BPF_CGROUP_DEVICE;
    group = kcall(openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (group < 0)
        return group;
    program = kcall(bpf, BPF_PROG_LOAD, &load, sizeof load);
    got = program;
    if (program >= 0) {
        join.target_fd = (u32)group;
        join.attach_bpf_fd = (u32)program;
        join.attach_flags = BPF_F_ALLOW_MULTI;
        got = kcall(bpf, BPF_PROG_ATTACH, &join, sizeof join);
    }
    close_fd(program);
    close_fd(group);
    return got;
}

void answer_request(const struct frame *frame, u8 *bytes)
{
    u8 *at = bytes, *reply = frame_room(REPLY_LIMIT);
    const u8 *end = bytes + frame->length;
    const char *path, *name;
    long got = -EPROTO;
    u32 length = 0;
    u64 place;

    switch (frame->kind) {
    case FRAME_MOUNT: got = do_mount(bytes, end); break;
    case FRAME_WRITE: got = do_write(frame->value, bytes, end); break;
    case FRAME_MODULE: got = do_module(bytes, end); break;
    case FRAME_DEVICES: got = do_devices(bytes, end); break;
    default:
        path = next_text(&at, end);
        if (path == NULL)
            break;
        switch (frame->kind) {
        case FRAME_UNMOUNT: got = kcall(umount2, path, frame->value); break;
        case FRAME_MKDIR: got = kcall(mkdirat, AT_FDCWD, path, frame->value); break;
        case FRAME_RMDIR: got = kcall(unlinkat, AT_FDCWD, path, AT_REMOVEDIR); break;
        case FRAME_READ: got = do_read(path, reply, frame->value); break;
        case FRAME_LIST: got = do_list(path, reply); break;
        case FRAME_NETLINK: got = send_netlink(path, at, end, reply); break;
        case FRAME_LOOK: got = look_into(path, frame->value, reply); break;
        case FRAME_PIECE:
            if (end - at == (long)sizeof place) {
                memcpy(&place, at, sizeof place);
                got = read_piece(path, place, reply, frame->value);
            }
            break;
        case FRAME_ATTRIBUTE:
            name = next_text(&at, end);
            if (name != NULL)
                got = kcall(lgetxattr, path, name, reply, REPLY_LIMIT);
            break;
        default: break;
        }
        if (got > 0)
            length = (u32)got;
    }
    frame_done(FRAME_REPLY, frame->id, got < 0 ? (u32)-got : 0, length);
}
