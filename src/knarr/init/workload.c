/* Guest mode: the processes the host asked for. Each carries out a Plan of its own; what it says to its control socket
 * and its streams goes to the host in frames, and what the host sends goes to it. */
#include "guest.h"

enum { INPUT = 0, OUTPUT = 1, ERRORS = 2, CONTROL_END = 3, CONSOLE_END = 4 };
enum { POLLOUT_ = 4, UNCLAIMED = 64 };

struct workload {
    u32 id;                 /* the host's number for it; 0: a free place */
    int plan;               /* the memfd its plan is gathered in; -1 once it was spawned */
    u64 plan_bytes;
    long stage, pid;        /* the first stage, and the process itself; 0: not there, or not known yet */
    int ended, terminal;
    int start;              /* the socket its init listens on until it is started */
    int fd[POLLED];         /* our ends; -1: closed. A terminal is INPUT and OUTPUT at once */
    u32 window[3];          /* what may be sent to the host of OUTPUT and ERRORS */
    u32 rows_columns;
    u8 waiting[WINDOW_BYTES]; /* input that has no room in the pipe yet: a ring */
    u32 first, count;
    int input_ends;
};

static struct workload workloads[PROCESSES];
/* Ended children whose number no first stage has told yet: a process may be quicker than the packet that names it. */
static struct {
    long pid;
    u32 status;
} unclaimed[UNCLAIMED];
static u32 next_unclaimed;

static struct workload *find(u32 id)
{
    u32 each;

    for (each = 0; each < PROCESSES; each++)
        if (workloads[each].id == id)
            return &workloads[each];
    return NULL;
}

static void tell(u32 kind, u32 id, u32 value)
{
    if (frame_room(0) != NULL) /* there is: see MOST_AT_ONCE */
        frame_done(kind, id, value, 0);
}

static void reply(u32 id, long error)
{
    tell(FRAME_REPLY, id, error < 0 ? (u32)-error : 0);
}

static void close_end(struct workload *load, int end)
{
    int fd = load->fd[end];

    load->fd[end] = -1;
    if (load->terminal && end <= OUTPUT && load->fd[OUTPUT - end] == fd)
        return; /* the other direction of a terminal */
    close_fd(fd);
}

static void forget(struct workload *load)
{
    int each;

    for (each = 0; each < POLLED; each++)
        close_end(load, each);
    close_fd(load->plan);
    close_fd(load->start);
    load->id = 0;
}

static void forget_if_over(struct workload *load)
{
    if (load->plan < 0 && load->fd[CONTROL_END] < 0 && load->fd[OUTPUT] < 0 && load->fd[ERRORS] < 0 &&
        (load->ended || load->pid == 0))
        forget(load);
}

/* -- beginning ------------------------------------------------------------------------------------------------ */

static void gather(u32 id, const u8 *bytes, u32 length)
{
    struct workload *load = find(id);
    int each;

    if (load == NULL) {
        load = find(0);
        if (load == NULL)
            return; /* the spawn says so */
        memset(load, 0, offsetof(struct workload, waiting));
        load->first = load->count = 0;
        load->input_ends = 0;
        for (each = 0; each < POLLED; each++)
            load->fd[each] = -1;
        load->id = id;
        load->start = -1;
        load->plan = (int)kcall(memfd_create, "knarr-plan", MFD_CLOEXEC_ | 2 /* MFD_ALLOW_SEALING */);
    }
    while (length > 0 && load->plan >= 0 && load->plan_bytes + length <= PLAN_LIMIT) {
        long got = kcall(write, load->plan, bytes, length);

        if (got <= 0)
            break;
        bytes += got;
        length -= (u32)got;
        load->plan_bytes += (u64)got;
    }
    if (length > 0 && load->plan >= 0) {
        close_fd(load->plan);
        load->plan = -1;
    }
}

struct slot {
    u32 kind, number, length;
};

/* A listening socket with a name that the kernel chooses. */
static long start_socket(void)
{
    unsigned short family = AF_UNIX_;
    long got, fd = kcall(socket, AF_UNIX_, SOCK_SEQPACKET_ | SOCK_CLOEXEC_, 0);

    if (fd < 0)
        return fd;
    got = kcall(bind, fd, &family, sizeof family);
    if (got == 0)
        got = kcall(listen, fd, 1);
    return got < 0 ? got : fd;
}

/* Starts what waits in wait_start: the connection becomes its control socket. */
static void connect_start(struct workload *load)
{
    u8 name[128];
    u32 length = sizeof name;
    long got = -EBADF, fd = kcall(socket, AF_UNIX_, SOCK_SEQPACKET_ | SOCK_CLOEXEC_, 0);

    if (fd >= 0 && load->start >= 0 && load->fd[CONTROL_END] < 0) {
        got = kcall(getsockname, load->start, name, &length);
        if (got == 0)
            got = kcall(connect, fd, name, length);
    }
    close_fd(load->start);
    load->start = -1;
    if (got == 0)
        load->fd[CONTROL_END] = (int)fd;
    else {
        close_fd(fd);
        tell(FRAME_CONTROL_END, load->id, 0);
    }
}

/* Opens what the host wants in the plan's slots. Gives their number; `console` gets our end of a console's socket. */
static long open_slots(struct workload *load, u8 *at, const u8 *end, int *slots, long most)
{
    const struct workload *of;
    struct slot slot;
    long count = 0, got = 0;
    int ends[2];

    while (at < end && got >= 0) {
        if (end - at < (long)sizeof slot || count == most)
            return -EPROTO;
        memcpy(&slot, at, sizeof slot);
        at += sizeof slot;
        if (slot.length == 0 || slot.length > (u64)(end - at) || at[slot.length - 1] != 0)
            return -EPROTO;
        switch (slot.kind) {
        case SLOT_CONSOLE:
            got = kcall(socketpair, AF_UNIX_, SOCK_DGRAM_ | SOCK_CLOEXEC_, 0, ends);
            if (got == 0) {
                load->fd[CONSOLE_END] = ends[0];
                got = ends[1];
            }
            break;
        case SLOT_DIRECTORY: got = kcall(openat, AT_FDCWD, at, O_RDONLY | O_DIRECTORY | O_CLOEXEC); break;
        case SLOT_PIDFD:
            of = slot.number == 0 ? NULL : find(slot.number);
            got = of == NULL || of->pid == 0 ? -ESRCH : kcall(pidfd_open, of->pid, 0);
            break;
        case SLOT_START:
            got = start_socket();
            if (got >= 0)
                load->start = (int)kcall(fcntl, got, F_DUPFD_CLOEXEC, 3);
            break;
        default: got = -EPROTO;
        }
        at += slot.length;
        if (got >= 0)
            slots[count++] = (int)got;
    }
    return got < 0 ? got : count;
}

enum { MOST_SLOTS = 64, OWN_FILES = 896 /* above all of ours, below the usual limit of 1024 */ };

/* The child: everything to its number, above all of them first, and then the ordinary way of a Plan. */
static void become(const int *given, long count)
{
    int high[5 + MOST_SLOTS];
    long each;

    for (each = 0; each < count; each++)
        high[each] = (int)kcall(fcntl, given[each], F_DUPFD_CLOEXEC, OWN_FILES);
    for (each = 0; each < count; each++)
        if (kcall(dup3, high[each], each, 0) < 0)
            die(1);
    kcall(close_range, count, ~0u, 0);
    carry_out();
}

/* One of the three streams: a pipe whose `ours` does not block, or the null device. */
static long make_stream(int ends[2], int ours)
{
    long got = kcall(pipe2, ends, O_CLOEXEC);

    if (got == 0)
        got = kcall(fcntl, ends[ours], F_SETFL, O_NONBLOCK);
    return got;
}

static long spawn(struct workload *load, u32 flags, u8 *bytes, u32 length)
{
    int given[5 + MOST_SLOTS] = {-1, -1, -1, -1, -1}, ends[2], each;
    long got, count = 0;

    if (load->plan < 0)
        return -E2BIG;
    load->terminal = (flags & SPAWN_TERMINAL) != 0;
    got = kcall(fcntl, load->plan, F_ADD_SEALS, SEALS_DEMANDED);
    for (each = 0; each < 3 && got >= 0; each++) {
        if (load->terminal || (each == INPUT && !(flags & SPAWN_STDIN))) {
            got = given[each] = (int)kcall(openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC);
            continue;
        }
        got = make_stream(ends, each == INPUT);
        if (got < 0)
            break;
        load->fd[each] = ends[each == INPUT];
        given[each] = ends[each != INPUT];
        load->window[each] = WINDOW_BYTES;
    }
    load->window[OUTPUT] = WINDOW_BYTES;
    if (got >= 0)
        got = kcall(socketpair, AF_UNIX_, SOCK_SEQPACKET_ | SOCK_CLOEXEC_, 0, ends);
    if (got >= 0) {
        load->fd[CONTROL_END] = ends[0];
        given[3] = ends[1];
        given[4] = load->plan;
        load->plan = -1;
        count = got = open_slots(load, bytes, bytes + length, given + 5, MOST_SLOTS);
    }
    if (got >= 0)
        got = fork_like(0, SIGCHLD_, -1, NULL);
    if (got == 0)
        become(given, 5 + count);
    load->stage = got;
    for (each = 0; each < 5 + (count > 0 ? count : 0); each++)
        close_fd(given[each]);
    return got;
}

/* -- input ---------------------------------------------------------------------------------------------------- */

static void write_input(struct workload *load)
{
    u32 taken = 0;

    while (load->count > 0 && load->fd[INPUT] >= 0) {
        u32 run = WINDOW_BYTES - load->first;
        long got;

        if (run > load->count)
            run = load->count;
        got = kcall(write, load->fd[INPUT], load->waiting + load->first, run);
        if (got == -EAGAIN || got == -EINTR)
            break;
        if (got <= 0) { /* nobody reads any more: the host may stop, and what is on its way is dropped */
            close_end(load, INPUT);
            load->count = 0;
            tell(FRAME_CLOSE, load->id, INPUT);
            return;
        }
        load->first = (load->first + (u32)got) % WINDOW_BYTES;
        load->count -= (u32)got;
        taken += (u32)got;
    }
    if (taken > 0)
        tell(FRAME_WINDOW, load->id, taken << 2 | INPUT);
    if (load->input_ends && load->count == 0 && load->fd[INPUT] >= 0 && !load->terminal)
        close_end(load, INPUT);
}

static void take_input(struct workload *load, const u8 *bytes, u32 length)
{
    if (load->fd[INPUT] < 0 && !load->terminal)
        return;
    if (length > WINDOW_BYTES - load->count)
        guest_end("the host sent more input than it was allowed");
    while (length > 0) {
        u32 at = (load->first + load->count) % WINDOW_BYTES, run = WINDOW_BYTES - at;

        if (run > length)
            run = length;
        memcpy(load->waiting + at, bytes, run);
        load->count += run;
        bytes += run;
        length -= run;
    }
    write_input(load);
}

static void set_size(const struct workload *load)
{
    struct {
        unsigned short rows, columns, x, y;
    } size = {(unsigned short)(load->rows_columns >> 16), (unsigned short)load->rows_columns, 0, 0};

    if (load->terminal && load->fd[OUTPUT] >= 0 && load->rows_columns != 0)
        kcall(ioctl, load->fd[OUTPUT], TIOCSWINSZ, &size);
}

void workload_frame(const struct frame *frame, u8 *bytes)
{
    struct workload *load = frame->id == 0 ? NULL : find(frame->id);
    u32 end = frame->value & 3;
    i32 pid;
    long got;

    if (frame->kind == FRAME_PLAN && frame->id != 0) {
        gather(frame->id, bytes, frame->length);
        return;
    }
    if (frame->kind == FRAME_SIGNAL && frame->id == 0 && frame->length == sizeof pid) { /* one that is nobody's by id */
        memcpy(&pid, bytes, sizeof pid);
        if (pid > 1)
            kcall(kill, pid, frame->value);
        return;
    }
    if (load == NULL) { /* it may have ended while the frame was on its way */
        if (frame->kind == FRAME_SPAWN)
            reply(frame->id, -EAGAIN);
        return;
    }
    switch (frame->kind) {
    case FRAME_SPAWN:
        got = spawn(load, frame->value, bytes, frame->length);
        reply(frame->id, got);
        if (got < 0)
            forget(load);
        break;
    case FRAME_CONTROL:
        if (load->fd[CONTROL_END] >= 0)
            kcall(sendto, load->fd[CONTROL_END], bytes, frame->length, MSG_NOSIGNAL_, NULL, 0);
        break;
    case FRAME_DATA: take_input(load, bytes, frame->length); break;
    case FRAME_CLOSE:
        if (end == INPUT) {
            load->input_ends = 1;
            write_input(load);
        } else if (end <= ERRORS && load->fd[end] >= 0) { /* whoever writes there gets SIGPIPE, or SIGHUP */
            close_end(load, (int)end);
            if (load->terminal)
                close_end(load, INPUT);
            tell(FRAME_CLOSE, load->id, end);
            forget_if_over(load);
        }
        break;
    case FRAME_WINDOW:
        if (end == OUTPUT || end == ERRORS)
            load->window[end] += frame->value >> 2;
        break;
    case FRAME_SIGNAL:
        if (load->pid > 0 && !load->ended)
            kcall(kill, load->pid, frame->value);
        break;
    case FRAME_CONNECT: connect_start(load); break;
    case FRAME_RESIZE:
        load->rows_columns = frame->value;
        set_size(load);
        break;
    default: break;
    }
}

/* -- output --------------------------------------------------------------------------------------------------- */

static void pump_output(struct workload *load, int end)
{
    u32 most = load->window[end] < DATA_LIMIT ? load->window[end] : DATA_LIMIT;
    u8 *to = frame_room(most);
    long got;

    if (to == NULL || most == 0)
        return;
    got = kcall(read, load->fd[end], to, most);
    if (got == -EAGAIN || got == -EINTR)
        return;
    if (got <= 0) { /* EIO: nobody has the other end of the terminal open */
        close_end(load, end);
        tell(FRAME_CLOSE, load->id, (u32)end);
        return;
    }
    load->window[end] -= (u32)got;
    frame_done(FRAME_DATA, load->id, (u32)end, (u32)got);
}

static void claim(struct workload *load, long pid)
{
    u32 each;

    load->pid = pid;
    for (each = 0; each < UNCLAIMED; each++)
        if (unclaimed[each].pid == pid) {
            unclaimed[each].pid = 0;
            load->ended = 1;
            tell(FRAME_EXIT, load->id, unclaimed[each].status);
        }
}

static void pump_control(struct workload *load)
{
    while (load->fd[CONTROL_END] >= 0) {
        u8 *to = frame_room(sizeof(struct packet) + DETAIL_LIMIT);
        struct packet head;
        long got;

        if (to == NULL)
            return;
        got = kcall(recvfrom, load->fd[CONTROL_END], to, sizeof(struct packet) + DETAIL_LIMIT, 0x40 /* MSG_DONTWAIT */,
                    NULL, NULL);
        if (got == -EAGAIN || got == -EINTR)
            return;
        if (got < (long)sizeof head) {
            close_end(load, CONTROL_END);
            tell(FRAME_CONTROL_END, load->id, 0);
            return;
        }
        memcpy(&head, to, sizeof head);
        frame_done(FRAME_CONTROL, load->id, 0, (u32)got);
        if (head.type == PACKET_PID)
            claim(load, head.value);
    }
}

/* The master of a terminal comes over the console's socket. */
static void take_terminal(struct workload *load)
{
    struct {
        u64 length;
        i32 level, type, fd, padding;
    } rights = {.length = 0, .fd = -1};
    u8 name[16];
    struct iovec part = {name, sizeof name};
    struct msghdr_k message = {.iov = &part, .iovlen = 1, .control = &rights, .controllen = sizeof rights};
    long got = kcall(recvmsg, load->fd[CONSOLE_END], &message, 0x40000040 /* MSG_CMSG_CLOEXEC, MSG_DONTWAIT */);

    if (got == -EAGAIN || got == -EINTR)
        return;
    close_end(load, CONSOLE_END);
    if (got <= 0 || rights.length != 20 || rights.type != SCM_RIGHTS_)
        return;
    kcall(fcntl, rights.fd, F_SETFL, O_RDWR | O_NONBLOCK);
    load->fd[INPUT] = load->fd[OUTPUT] = rights.fd;
    set_size(load);
    write_input(load);
}

int workload_poll(struct pollfd_k *polled, int may_send)
{
    u32 each, end;

    for (each = 0; each < PROCESSES; each++)
        for (end = 0; end < POLLED; end++) {
            const struct workload *load = &workloads[each];
            int want = load->id != 0 && load->plan < 0 && load->fd[end] >= 0 && may_send;

            /* What is not asked for is not polled at all: the end of the other side shows whether asked for or not.
             * Only that of an input pipe is of interest. */
            if (end == OUTPUT || end == ERRORS)
                want = want && load->window[end] > 0;
            if (end == INPUT)
                want = want && (load->count > 0 || !load->terminal);
            polled[each * POLLED + end].fd = want ? load->fd[end] : -1;
            polled[each * POLLED + end].events = end != INPUT ? POLLIN_ : load->count > 0 ? POLLOUT_ : 0;
            polled[each * POLLED + end].revents = 0;
        }
    return PROCESSES * POLLED;
}

void workload_ready(const struct pollfd_k *polled)
{
    u32 each;

    for (each = 0; each < PROCESSES; each++) {
        struct workload *load = &workloads[each];
        const struct pollfd_k *of = polled + each * POLLED;
        int end;

        if (load->id == 0 || load->plan >= 0)
            continue;
        if (of[CONTROL_END].revents)
            pump_control(load);
        if (of[CONSOLE_END].revents && load->fd[CONSOLE_END] >= 0)
            take_terminal(load);
        if (of[INPUT].revents && load->fd[INPUT] >= 0) {
            if (load->count == 0 && of[INPUT].revents & POLLERR_) {
                close_end(load, INPUT);
                tell(FRAME_CLOSE, load->id, INPUT);
            } else
                write_input(load);
        }
        for (end = OUTPUT; end <= ERRORS; end++)
            if (of[end].revents && load->fd[end] >= 0)
                pump_output(load, end);
        forget_if_over(load);
    }
}

/* -- the end -------------------------------------------------------------------------------------------------- */

static void claimed_by(long pid, u32 status)
{
    u32 each;

    for (each = 0; each < PROCESSES; each++) {
        struct workload *load = &workloads[each];

        if (load->id == 0 || load->plan >= 0)
            continue;
        if (load->stage == pid) {
            load->stage = 0;
            return;
        }
        if (load->pid == pid && !load->ended) {
            load->ended = 1;
            tell(FRAME_EXIT, load->id, status);
            forget_if_over(load);
            return;
        }
    }
    unclaimed[next_unclaimed % UNCLAIMED].pid = pid;
    unclaimed[next_unclaimed++ % UNCLAIMED].status = status;
}

void workload_reap(void)
{
    u32 each;

    /* What a process said before its end goes to the host before its end does. */
    for (each = 0; each < PROCESSES; each++)
        if (workloads[each].id != 0 && workloads[each].plan < 0)
            pump_control(&workloads[each]);
    for (;;) {
        int status = 0;
        long pid = kcall(wait4, -1, &status, 1 /* WNOHANG */, NULL);

        if (pid <= 0)
            return;
        claimed_by(pid, (u32)status);
    }
}
