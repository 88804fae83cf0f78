/* Guest mode: knarr-init as the first process of a kernel of its own, which carries out the Plans that come through a
 * channel from the host (docs/isolation.md).
 *
 * One loop, no allocation, no blocking call. What the host says is believed: it made this kernel. Nothing here needs
 * to hold against a container: whoever breaks out of one inside has this guest, and the wall is the guest's kernel.
 */
#include "guest.h"

enum { IN_SIZE = 2 * (sizeof(struct frame) + PACKET_LIMIT), OUT_SIZE = 512 * 1024 };
/* More than anything produces at one time: a reply, or what one descriptor gives. */
enum { MOST_AT_ONCE = sizeof(struct frame) + REPLY_LIMIT, TAKEN_AT_LEAST = 1024 };
static int channel = -1, child_signals = -1, restarts;
static int ring = -1;
static u64 ring_size, ring_at;
static u8 in[IN_SIZE] __attribute__((aligned(4096)));
static u8 out[OUT_SIZE] __attribute__((aligned(4096)));
static size_t in_end, out_start, out_end;
static u32 taken; /* bytes that came and of which the host has not been told */

/* -- outgoing ------------------------------------------------------------------------------------------------- */

static size_t room(void)
{
    return OUT_SIZE - (out_end - out_start);
}

u8 *frame_room(size_t length)
{
    if (sizeof(struct frame) + length > room())
        return NULL;
    if (out_end + sizeof(struct frame) + length > OUT_SIZE) {
        memmove(out, out + out_start, out_end - out_start);
        out_end -= out_start;
        out_start = 0;
    }
    return out + out_end + sizeof(struct frame);
}

void frame_done(u32 kind, u32 id, u32 value, u32 length)
{
    struct frame head = {length, kind, id, value};

    memcpy(out + out_end, &head, sizeof head);
    out_end += sizeof head + length;
}

static void flush(void)
{
    while (out_start < out_end) {
        long got = kcall(write, channel, out + out_start, out_end - out_start);

        if (got == -EAGAIN || got == -EINTR)
            return;
        if (got <= 0)
            guest_end("the host does not read any more");
        out_start += (size_t)got;
    }
    out_start = out_end = 0;
}

/* -- incoming ------------------------------------------------------------------------------------------------- */

static void handle(const struct frame *frame, u8 *bytes)
{
    if (frame->kind == FRAME_END) {
        kcall(sync);
        guest_end(NULL);
    }
    if (frame->kind < FRAME_PLAN)
        answer_request(frame, bytes);
    else
        workload_frame(frame, bytes);
}

/* Whole frames, as long as their answers find room. */
static void handle_all(void)
{
    size_t at = 0;
    struct frame frame;

    while (in_end - at >= sizeof frame && room() >= MOST_AT_ONCE) {
        memcpy(&frame, in + at, sizeof frame);
        if (frame.length > PACKET_LIMIT)
            guest_end("the host sent a frame that is too long");
        if (in_end - at < sizeof frame + frame.length)
            break;
        handle(&frame, in + at + sizeof frame);
        at += sizeof frame + frame.length;
    }
    memmove(in, in + at, in_end - at);
    in_end -= at;
}

/* Whether there is room for what may come at one time. */
static int may_receive(void)
{
    return ring >= 0 ? IN_SIZE - in_end >= RING_PIECE : in_end < IN_SIZE;
}

/* User-mode Linux reads its serial line byte by byte, each with a call of the host's. So what the host sends lies in
 * the ring, and of the line come only numbers: how many bytes more do. */
static void receive_from_ring(void)
{
    static u8 piece[RING_PIECE] __attribute__((aligned(4096)));
    static u32 count, have;

    while (may_receive()) {
        long got = kcall(read, channel, (u8 *)&count + have, sizeof count - have);
        u32 length;

        if (got == -EAGAIN || got == -EINTR)
            return;
        if (got <= 0)
            guest_end("the host is gone");
        have += (u32)got;
        if (have < sizeof count)
            continue;
        have = 0;
        length = (count + SECTOR - 1) / SECTOR * SECTOR;
        if (length > RING_PIECE || kcall(pread64, ring, piece, length, ring_at) != (long)length)
            guest_end("what the host sent cannot be read");
        memcpy(in + in_end, piece, count);
        in_end += count;
        ring_at = (ring_at + length) % ring_size;
        taken += length;
    }
}

static void receive(void)
{
    long got;

    if (ring >= 0) {
        receive_from_ring();
        return;
    }
    got = kcall(read, channel, in + in_end, IN_SIZE - in_end);
    if (got == -EAGAIN || got == -EINTR)
        return;
    if (got <= 0)
        guest_end("the host is gone");
    in_end += (size_t)got;
    taken += (u32)got;
}

/* User-mode Linux never hears of its serial line again once the kernel had to hold it up, so the host sends no more
 * than finds room in the line's buffer before it is told that some of it was taken. */
static void tell_taken(void)
{
    if (taken >= (ring >= 0 ? ring_size / 4 : TAKEN_AT_LEAST) && frame_room(0) != NULL) {
        frame_done(FRAME_TOOK, 0, taken, 0);
        taken = 0;
    }
}

/* -- beginning and end ---------------------------------------------------------------------------------------- */

static void say(const char *words)
{
    static char line[256] = "<2>knarr-init: "; /* critical: one write is one record, and only its own level counts */
    size_t begin = text_length(line), length = text_length(words);
    long log = kcall(openat, AT_FDCWD, "/dev/kmsg", O_WRONLY | O_CLOEXEC);

    if (length > sizeof line - begin)
        length = sizeof line - begin;
    memcpy(line + begin, words, length);
    if (log >= 0)
        kcall(write, log, line, begin + length);
    close_fd(log);
}

void guest_end(const char *why)
{
    if (why != NULL)
        say(why);
    kcall(reboot, 0xfee1dead, 672274793, restarts ? 0x01234567 : 0x4321fedc, NULL); /* RESTART, POWER_OFF */
    die(1); /* not in a kernel of ours: a container with a tmpfs for its root executed /proc/self/exe */
}

static void must(long got, const char *what)
{
    if (got < 0 && got != -EEXIST)
        guest_end(what);
}

static long mount_new(const char *type, const char *target, const char *data)
{
    kcall(mkdirat, AT_FDCWD, target, 0755);
    return kcall(mount, type, target, type, 0, data);
}

/* The modules that the file /modules of the initramfs names, a path a line. */
static void load_modules(void)
{
    static char lines[16384];
    long list = kcall(openat, AT_FDCWD, "/modules", O_RDONLY | O_CLOEXEC), got = 0, each, begin = 0;

    if (list >= 0)
        got = kcall(read, list, lines, sizeof lines);
    close_fd(list);
    for (each = 0; each < got; each++)
        if (lines[each] == '\n') {
            long module;

            lines[each] = 0;
            module = kcall(openat, AT_FDCWD, lines + begin, O_RDONLY | O_CLOEXEC);
            must(module, "a module is missing");
            must(kcall(finit_module, module, "", 0), "a module does not load");
            close_fd(module);
            begin = each + 1;
        }
}

/* The value of a word `name=…` of the kernel's command line; empty without one. */
static void kernel_word(const char *name, char *value, size_t size)
{
    static char line[4096];
    size_t length = text_length(name), used = 0;
    long file = kcall(openat, AT_FDCWD, "/proc/cmdline", O_RDONLY | O_CLOEXEC), got = 0, each;

    if (file >= 0)
        got = kcall(read, file, line, sizeof line - 1);
    close_fd(file);
    for (each = 0; each + (long)length < got; each++)
        if ((each == 0 || line[each - 1] == ' ') && memcmp(line + each, name, length) == 0) {
            each += (long)length;
            while (each < got && line[each] > ' ' && used + 1 < size)
                value[used++] = line[each++];
            break;
        }
    value[used] = 0;
}

/* A serial line is made to carry bytes as they are. */
static void make_raw(long fd)
{
    struct {
        u32 input, output, control, local;
        u8 line, characters[19];
    } settings;

    if (kcall(ioctl, fd, TCGETS, &settings) < 0)
        return;
    settings.input = settings.output = settings.local = 0;
    settings.control = (settings.control & ~(u32)0x30) | 0x30 | 0x80 | 0x800; /* CS8, CREAD, CLOCAL */
    settings.characters[5] = 0;                                               /* VTIME */
    settings.characters[6] = 1;                                               /* VMIN */
    must(kcall(ioctl, fd, TCSETS, &settings), "the channel cannot be made raw");
}

/* What the word knarr.ring= of the kernel's command line names, if it does. */
static void open_ring(void)
{
    char path[64] = "/dev/";
    long got;

    kernel_word("knarr.ring=", path + 5, sizeof path - 5);
    if (path[5] == 0)
        return;
    ring = (int)kcall(openat, AT_FDCWD, path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    must(ring, "the ring of knarr.ring= cannot be opened");
    got = kcall(lseek, ring, 0, 2 /* SEEK_END */);
    if (got <= 0)
        guest_end("the ring of knarr.ring= is empty");
    ring_size = (u64)got;
}

static void open_channel(void)
{
    char path[64] = "/dev/";
    int tries;

    kernel_word("knarr.channel=", path + 5, sizeof path - 5);
    if (path[5] == 0)
        guest_end("the kernel's command line has no knarr.channel=");
    /* a device that a module brings may take a moment, and be no device yet when it has its name (ENXIO) */
    for (tries = 0; tries < 5000 && channel < 0; tries++) {
        struct timespec_k moment = {0, 1000000}; /* anew: the kernel leaves what remains in it, nothing */

        channel = (int)kcall(openat, AT_FDCWD, path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
        if (channel < 0)
            kcall(ppoll, NULL, 0, &moment, NULL, 0);
    }
    must(channel, "the channel of knarr.channel= cannot be opened");
    make_raw(channel);
}

/* A kernel does not let pivot_root leave the initramfs: a file system of our own goes over it. */
static void make_root(void)
{
    must(mount_new("tmpfs", "/new", "mode=755"), "no tmpfs");
    must(mount_new("proc", "/new/proc", NULL), "no procfs");
    must(mount_new("sysfs", "/new/sys", NULL), "no sysfs");
    must(mount_new("devtmpfs", "/new/dev", "mode=755"), "no devtmpfs");
    mount_new("cgroup2", "/new/sys/fs/cgroup", NULL); /* the host sees what it lacks */
    must(kcall(mkdirat, AT_FDCWD, "/new/run", 0755), "no /run");
    must(kcall(chdir, "/new"), "no /new");
    must(kcall(mount, ".", "/", NULL, 1 << 13 /* MS_MOVE */, NULL), "the root cannot be moved");
    must(kcall(chroot, "."), "no root");
    must(kcall(chdir, "/"), "no root");
}

/* What the host must know before it compiles a plan: kernel release, machine, the controllers of cgroup v2. */
static void say_hello(void)
{
    struct {
        char system[65], node[65], release[65], version[65], machine[65], domain[65];
    } name;
    u8 *at = frame_room(REPLY_LIMIT), *begin = at;
    long file = kcall(openat, AT_FDCWD, "/sys/fs/cgroup/cgroup.controllers", O_RDONLY | O_CLOEXEC), got = 0;

    kcall(uname, &name);
    memcpy(at, name.release, text_length(name.release) + 1);
    at += text_length(name.release) + 1;
    memcpy(at, name.machine, text_length(name.machine) + 1);
    at += text_length(name.machine) + 1;
    if (file >= 0)
        got = kcall(read, file, at, 1024);
    close_fd(file);
    at += got > 0 ? got : 0;
    *at++ = 0;
    frame_done(FRAME_HELLO, 0, PROTOCOL, (u32)(at - begin));
}

/* No programs of the guest's own, which is to say none: for each device that appears (a mount brings one) and each module
 * that might be, the kernel would make a process to find that out. Where it has no such file, it starts none. */
static void start_no_helpers(void)
{
    static const char *const files[] = {"/proc/sys/kernel/hotplug", "/proc/sys/kernel/modprobe"};
    u32 each;

    for (each = 0; each < sizeof files / sizeof files[0]; each++) {
        long file = kcall(openat, AT_FDCWD, files[each], O_WRONLY | O_CLOEXEC);

        if (file >= 0)
            kcall(write, file, "\n", 1);
        close_fd(file);
    }
}

static void watch_children(void)
{
    u64 mask = 1ull << (SIGCHLD_ - 1);

    kcall(rt_sigprocmask, SIG_SETMASK_, &mask, NULL, sizeof mask);
    child_signals = (int)kcall(signalfd4, -1, &mask, sizeof mask, O_CLOEXEC | O_NONBLOCK);
    must(child_signals, "no signalfd");
}

void guest_main(void)
{
    static struct pollfd_k polled[2 + POLLED * PROCESSES];
    static u8 signals[128 * 8];
    char ends[16];

    u64 files[2] = {1024, 524288}; /* what systems are run with; the kernel begins with 1024 and 4096 */

    load_modules();
    make_root();
    start_no_helpers();
    kcall(prlimit64, 0, 7 /* RLIMIT_NOFILE */, files, NULL);
    kernel_word("knarr.end=", ends, sizeof ends);
    restarts = text_equal(ends, "restart");
    open_ring();
    open_channel();
    watch_children();
    say_hello();
    for (;;) {
        int may_send, count;

        tell_taken();
        flush();
        may_send = room() >= MOST_AT_ONCE;
        polled[0].fd = channel;
        polled[0].events = (short)((may_receive() ? POLLIN_ : 0) | (out_start < out_end ? 4 /* POLLOUT */ : 0));
        polled[1].fd = child_signals;
        polled[1].events = may_send ? POLLIN_ : 0;
        count = workload_poll(polled + 2, may_send);
        if (kcall(ppoll, polled, 2 + count, NULL, NULL, 0) < 0)
            continue;
        if (polled[0].revents & (POLLIN_ | POLLHUP_ | POLLERR_) && may_receive())
            receive();
        handle_all();
        if (may_send)
            workload_ready(polled + 2);
        if (polled[1].revents != 0 && kcall(read, child_signals, signals, sizeof signals) > 0)
            workload_reap();
    }
}
