/* knarr-init: where the program begins, the loop over the operations, and what every file needs.
 *
 * No libc: nothing of the host is loaded or looked up after the start, whatever root the process is in by then
 * (CVE-2019-14271 and its kin), and a waiting container costs a few pages.
 */
#include "guest.h"

ARCH_START;
void knarr_main(void) __attribute__((noreturn, used));

void **vectors;
static int slots[MAX_SLOTS]; /* descriptor + 1; 0: empty */

extern const Elf64_Dyn _DYNAMIC[] __attribute__((visibility("hidden")));
extern const char __ehdr_start[] __attribute__((visibility("hidden")));

/* The program lies where the kernel put it. gcc leaves nothing to correct for that (and no page to copy); clang keeps
 * some addresses in tables. */
static void relocate(void)
{
    u64 base = (u64)(uintptr_t)__ehdr_start, size = 0, done;
    const Elf64_Rela *entry = NULL;
    const Elf64_Dyn *dynamic;

    for (dynamic = _DYNAMIC; dynamic->d_tag != DT_NULL; dynamic++) {
        if (dynamic->d_tag == DT_RELA)
            entry = (const Elf64_Rela *)(uintptr_t)(base + dynamic->d_un.d_ptr);
        if (dynamic->d_tag == DT_RELASZ)
            size = dynamic->d_un.d_val;
    }
    for (done = 0; done < size; done += sizeof *entry, entry++) {
        if (ELF64_R_TYPE(entry->r_info) != ARCH_RELATIVE)
            __builtin_trap();
        *(u64 *)(uintptr_t)(base + entry->r_offset) = base + (u64)entry->r_addend;
    }
}

/* The barrier keeps the compiler from making the loop in memcpy into a call of memcpy. */
void *memcpy(void *to, const void *from, size_t size)
{
    return memmove(to, from, size);
}

void *memmove(void *to, const void *from, size_t size)
{
    u8 *target = to;
    const u8 *source = from;
    size_t each;

    if (target <= source)
        for (each = 0; each < size; each++) {
            target[each] = source[each];
            __asm__ volatile("" ::: "memory");
        }
    else
        for (each = size; each-- > 0;) {
            target[each] = source[each];
            __asm__ volatile("" ::: "memory");
        }
    return to;
}

void *memset(void *to, int byte, size_t size)
{
    u8 *target = to;
    size_t each;

    for (each = 0; each < size; each++) {
        target[each] = (u8)byte;
        __asm__ volatile("" ::: "memory");
    }
    return to;
}

int memcmp(const void *one, const void *two, size_t size)
{
    const u8 *a = one, *b = two;
    size_t each;

    for (each = 0; each < size; each++)
        if (a[each] != b[each])
            return a[each] < b[each] ? -1 : 1;
    return 0;
}

size_t text_length(const char *text)
{
    size_t length = 0;

    while (text[length] != 0) {
        length++;
        __asm__ volatile("" ::: "memory"); /* or it becomes a call of strlen */
    }
    return length;
}

int text_equal(const char *one, const char *two)
{
    size_t length = text_length(one);

    return length == text_length(two) && memcmp(one, two, length) == 0;
}

size_t decimal(char *out, u64 value)
{
    char digits[20];
    size_t count = 0, each;

    do
        digits[count++] = (char)('0' + value % 10);
    while ((value /= 10) != 0);
    for (each = 0; each < count; each++)
        out[each] = digits[count - 1 - each];
    out[count] = 0;
    return count;
}

void die(int status)
{
    for (;;) {
        kcall(exit_group, status);
        __builtin_trap(); /* a seccomp filter may forbid even to end */
    }
}

void close_fd(long fd)
{
    if (fd >= 0)
        kcall(close, fd);
}

/* Type, mode, owner, device and mount of what a descriptor (or a name below it) is. */
long describe(int fd, const char *path, int flags, struct statx *out)
{
    return kcall(statx, fd, path, flags | (path[0] == 0 ? AT_EMPTY_PATH : 0), STATX_BASIC_STATS, out);
}

/* Whether this is the null device, whatever its name. */
int is_null(const struct statx *file)
{
    return (file->stx_mode & S_IFMT) == S_IFCHR && file->stx_rdev_major == 1 && file->stx_rdev_minor == 3;
}

/* The slot's descriptor; -1, which every call answers with EBADF, for an empty one. */
int slot_fd(u64 slot)
{
    return slot < MAX_SLOTS ? slots[slot] - 1 : -1;
}

/* Puts a descriptor into a slot (and closes what was in it); passes an error on. */
long slot_set(u64 slot, long fd)
{
    if (fd < 0)
        return fd;
    if (slot >= MAX_SLOTS)
        return -EINVAL;
    close_fd(slots[slot] - 1);
    slots[slot] = (int)fd + 1;
    return 0;
}

void slot_forget(u64 slot)
{
    if (slot < MAX_SLOTS)
        slots[slot] = 0;
}

long op_close(const struct op *op)
{
    close_fd(slot_fd(op->numbers[0]));
    slot_forget(op->numbers[0]);
    return 0;
}

static long perform(const struct op *op)
{
    switch (op->kind) {
#define X(name, number, numbers, strings)                                                                              \
    case number: return op_##name(op);
        OPERATIONS(X)
#undef X
    default: return -EPROTO; /* the check has refused it before */
    }
}

static void fail(u32 index, long error)
{
    report(PACKET_ERROR, index, (i32)-error, detail, detail_length);
    die(1);
}

/* Maps and checks the Plan of descriptor PLAN. */
static long read_plan(struct plan *plan)
{
    long seals = kcall(fcntl, PLAN, F_GET_SEALS, 0);
    struct statx file;
    long got, address;

    /* Without the seals the bytes could change between the check and the use. */
    if (seals < 0 || (seals & SEALS_DEMANDED) != SEALS_DEMANDED)
        return -EPERM;
    got = describe(PLAN, "", 0, &file);
    if (got < 0)
        return got;
    if (file.stx_size == 0 || file.stx_size > UINT32_MAX)
        return -EPROTO;
    address = kcall(mmap, NULL, file.stx_size, 1 /* PROT_READ */, 2 /* MAP_PRIVATE */, PLAN, 0);
    if (address < 0 && address > -4096)
        return address;
    close_fd(PLAN);
    got = plan_check(plan, (const u8 *)address, file.stx_size);
    if (got < 0)
        return got;
    address = kcall(mmap, NULL, plan->vector_bytes + 1, 3 /* READ|WRITE */, 0x22 /* PRIVATE|ANONYMOUS */, -1, 0);
    if (address < 0 && address > -4096)
        return address;
    vectors = (void **)address;
    return 0;
}

static int has_control_socket(void)
{
    int type = 0;
    u32 size = sizeof type;

    return kcall(getsockopt, CONTROL, SOL_SOCKET_, SO_TYPE_, &type, &size) == 0 && type == SOCK_SEQPACKET_;
}

/* The first process of a kernel is started from its initramfs, which the kernel makes a tmpfs or a ramfs; the first
 * process of a container that executes /proc/self/exe is started from the container's root. */
static int begins_a_guest(void)
{
    struct statfs fs;

    return kcall(getpid) == 1 && kcall(statfs, "/", &fs) == 0 &&
           (fs.f_type == 0x01021994 /* TMPFS_MAGIC */ || fs.f_type == 0x858458f6 /* RAMFS_MAGIC */);
}

/* A stranger who starts the program by hand has no control socket: say what it is. */
static void explain_oneself(void)
{
    static const char words[] = "knarr-init is started by knarr, which hands it a plan\n";

    kcall(write, 2, words, sizeof words - 1);
    die(1);
}

/* Dispositions as a program expects them: Python, for one, ignores SIGPIPE, and that would be inherited. */
static void reset_signals(void)
{
    struct sigaction_k standard = {.handler = NULL};
    int each;

    for (each = 1; each <= SIGNALS; each++)
        kcall(rt_sigaction, each, &standard, NULL, sizeof standard.mask);
}

/* A descriptor 0, 1 or 2 that is closed would be given to the next file we open. */
static void hold_stdio(void)
{
    int each;

    for (each = 0; each < 3; each++)
        if (kcall(fcntl, each, F_GETFD, 0) == -EBADF)
            kcall(openat, AT_FDCWD, "/dev/null", O_RDWR); /* the lowest free number */
}

/* Closes what was not handed over on purpose and makes the rest close-on-exec (CVE-2024-21626). */
static void settle_descriptors(u32 inherited)
{
    u32 first_foreign = FIRST_SLOT + inherited, each;

    kcall(close_range, first_foreign, ~0u, 0);
    if (kcall(close_range, CONTROL, first_foreign - 1, RANGE_CLOEXEC) < 0) /* Linux 5.11 */
        for (each = CONTROL; each < first_foreign; each++)
            kcall(fcntl, each, F_SETFD, FD_CLOEXEC);
    for (each = 0; each < inherited; each++)
        slots[each] = (int)(FIRST_SLOT + each) + 1;
}

void carry_out(void)
{
    struct plan plan = {.bytes = NULL};
    struct op op = {.kind = 0};
    const u8 *at;
    u64 none = 0;
    long got;

    kcall(prctl, PR_SET_NAME, "knarr-init"); /* not the number of the descriptor it was executed from */
    hold_stdio();
    kcall(rt_sigprocmask, SIG_SETMASK_, &none, NULL, sizeof none);
    got = read_plan(&plan);
    if (got < 0)
        fail(NO_OP, got);
    settle_descriptors(plan.inherited_slots);
    /* Modes are exact while the container is built; the program gets the umask it was given, or the caller's. */
    program_umask = (u32)kcall(umask, 0);
    at = plan_first(&plan);
    for (op.index = 0; op.index < plan.operations; op.index++) {
        at = plan_next(&plan, at, &op);
        got = perform(&op);
        if (got < 0)
            fail(op.index, got);
    }
    reap_helpers();
    die(0);
}

void knarr_main(void)
{
    relocate();
    if (!has_control_socket()) {
        if (begins_a_guest())
            guest_main();
        explain_oneself();
    }
    reset_signals(); /* a guest's agent was begun by its kernel, and needs none of these calls, dear ones there */
    carry_out();
}
