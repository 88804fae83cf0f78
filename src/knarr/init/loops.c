/* A file system whose devices are files, by loop devices: where the kernel does not mount it from the files themselves.
 *
 * They vanish by themselves (autoclear): while it is being mounted this process holds them, then the mount does. So
 * nothing is left attached, wherever this process or the container is killed. */
#include "init.h"

/* linux/loop.h; LOOP_CONFIGURE is of Linux 5.8. */
struct loop_config_v0 {
    u32 fd, block_size;
    u64 device, inode, rdevice, offset, size_limit;
    u32 number, encryption, key_size, flags;
    u8 names_and_key[160];
    u64 init[2], reserved[8];
};
enum { CONFIGURE = 0x4c0a, GET_FREE = 0x4c82 };                    /* ioctl */
enum { LOOP_READ_ONLY = 1, LOOP_AUTOCLEAR = 4, LOOP_DIRECT = 16 }; /* the kernel leaves direct I/O out where it cannot be */
enum { TRIES = 1000, MOST_DEVICES = 512, SECTOR = 512 };

/* Attaches the file at `path` to a free device, whose path goes to `device`; the device's descriptor. */
static long attach_loop(int loops, const char *path, char device[32])
{
    struct loop_config_v0 config = {.block_size = SECTOR, .flags = LOOP_READ_ONLY | LOOP_AUTOCLEAR | LOOP_DIRECT};
    long got = -EBUSY, number, fd = -EBUSY, file = kcall(openat, AT_FDCWD, path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    int each;

    if (file < 0)
        return file;
    config.fd = (u32)file;
    /* What is free now may be somebody else's when we take it: then it is busy, and another one is asked for. */
    for (each = 0; each < TRIES && got == -EBUSY; each++) {
        number = kcall(ioctl, loops, GET_FREE, 0);
        if (number < 0) {
            got = number;
            break;
        }
        memcpy(device, "/dev/loop", 9);
        decimal(device + 9, (u64)number);
        fd = kcall(openat, AT_FDCWD, device, O_RDONLY | O_CLOEXEC);
        got = fd < 0 ? fd : kcall(ioctl, fd, CONFIGURE, &config);
        if (got < 0)
            close_fd(fd);
    }
    close_fd(file);
    return got < 0 ? got : fd;
}

long op_loop_tree(const struct op *op)
{
    static int held[MOST_DEVICES];
    const u8 *at = op->first_string;
    long got = 0, mount, context, loops;
    char device[32];
    struct text file;
    u32 each, count = 0;

    if (op->string_count > MOST_DEVICES)
        return -E2BIG;
    context = kcall(fsopen, op->strings[0].bytes, 1 /* FSOPEN_CLOEXEC */);
    if (context < 0)
        return context;
    loops = kcall(openat, AT_FDCWD, "/dev/loop-control", O_RDWR | O_CLOEXEC);
    if (loops < 0)
        return loops;
    for (each = 0; got >= 0 && each < op->string_count; each++) {
        at = next_string(at, &file);
        if (each == 1 && file.length != 0)
            got = set_option((int)context, &file);
        if (each <= 1 || got < 0)
            continue;
        got = attach_loop((int)loops, file.bytes, device);
        if (got < 0)
            break;
        held[count++] = (int)got;
        got = kcall(fsconfig, context, SET_STRING, each == 2 ? "source" : "device", device, 0);
    }
    close_fd(loops);
    if (got >= 0) /* or the kernel wants to write to the device, which is refused */
        got = kcall(fsconfig, context, SET_FLAG, "ro", NULL, 0);
    if (got >= 0)
        got = kcall(fsconfig, context, CREATE, NULL, NULL, 0);
    if (got < 0)
        return with_log((int)context, got);
    mount = kcall(fsmount, context, 1 /* FSMOUNT_CLOEXEC */, op->numbers[1]);
    if (mount < 0)
        return with_log((int)context, mount);
    close_fd(context);
    while (count > 0)
        close_fd(held[--count]);
    return slot_set(op->numbers[0], mount);
}
