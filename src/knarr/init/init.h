/* What the files of knarr-init share. Functions give a value >= 0 or -errno unless they say otherwise. */
#ifndef KNARR_INIT_H
#define KNARR_INIT_H

#include "kernel.h"
#include "ops.h"

/* start.c, except under the fuzzer, which has a libc. The compiler calls them whatever its flags are. */
void *memcpy(void *to, const void *from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *to, int byte, size_t size);
int memcmp(const void *one, const void *two, size_t size);

/* Nothing is seen from outside: no table of addresses, no relocation, nothing to do before the first instruction. */
#pragma GCC visibility push(hidden)

/* Descriptors at start (docs/init.md). */
enum { CONTROL = 3, PLAN = 4, FIRST_SLOT = 5 };

#define NO_OP 0xFFFFFFFFu

struct text {
    const char *bytes; /* NUL-ended */
    u64 length;
};

struct op {
    u32 kind, number_count, string_count;
    const u64 *numbers;
    struct text strings[4]; /* the first four; next_string walks all of them */
    const u8 *first_string;
    u32 index;
    const u8 *after, *end; /* the operations that follow */
};

/* plan.c: the decoder. */
struct plan {
    const u8 *bytes;
    u64 size;
    u32 operations, inherited_slots;
    u64 vector_bytes; /* room for the longest list of pointers an operation needs */
};
long plan_check(struct plan *plan, const u8 *bytes, u64 size);
const u8 *plan_next(const struct plan *plan, const u8 *at, struct op *op);
const u8 *plan_first(const struct plan *plan);
const u8 *next_string(const u8 *at, struct text *text);
int only_exec_follows(const struct op *op);

/* start.c */
extern void **vectors; /* scratch for argv, envp and groups; touched only when used */
void die(int status) __attribute__((noreturn));
int slot_fd(u64 slot);
long slot_set(u64 slot, long fd);
void slot_forget(u64 slot);
size_t text_length(const char *text);
int text_equal(const char *one, const char *two);
void close_fd(long fd);
int is_null(const struct statx *file);
long describe(int fd, const char *path, int flags, struct statx *out);
long reopen_path(char *buffer, size_t size, int fd);
size_t decimal(char *out, u64 value);

/* control.c: the control socket. */
enum { DOCUMENT_LIMIT = 128 * 1024, DETAIL_LIMIT = 8 + PATH_BYTES + 1024 };
enum { PACKET_PID = 1, PACKET_SYNC = 2, PACKET_ERROR = 3 };
enum { GO = 1, ABORT = 2 };
struct packet {
    u32 type, index;
    i32 value;
    u32 length;
};
extern int control;                  /* its descriptor */
extern u8 document[DOCUMENT_LIMIT]; /* the state document */
extern u32 document_length;
extern u8 detail[DETAIL_LIMIT]; /* free bytes for the next ERROR */
extern u32 detail_length;
long report(u32 type, u32 index, i32 value, const void *bytes, u32 length);
long receive_answer(int fd, const u64 *slots, u32 count);
long send_descriptor(int socket, const void *bytes, size_t length, int fd);
void detail_number(u32 value);
void detail_bytes(const void *bytes, size_t length);

/* process.c */
extern u32 program_umask;
void raise_permitted(void);
void reap_helpers(void);
long fork_like(u64 flags, u64 exit_signal, int cgroup, int *pidfd);

/* paths.c: names below a root descriptor. */
int root_fd(u64 slot);
void root_done(u64 slot, int fd);
long open_in_root(int root, const char *path, u64 flags, u64 resolve);
long reach_in_root(int root, const char *path, u32 mode);
long reach_link_in_root(int root, const char *path, u32 mode);
long link_in_root(int root, const char *path, const char *text, int replace);
long parent_in_root(int root, const char *path, char leaf[NAME_BYTES + 1]);

/* process.c */
long lower_files(void);

/* mounts.c */
long attach(int tree, int target);
long clone_tree(int fd, const char *path, int recursive);
long mount_attributes(int fd, int recursive, u64 set, u64 clear, u64 propagation);
long set_option(int context, const struct text *option);
long with_log(int context, long error);

/* listener.c */
long load_with_listener(const struct op *op, long (*load)(const struct op *));

/* copyup.c */
long copy_up(int target, int mount, int owner);

/* exec.c */
long open_inside(const char *path, u64 flags);
long prepare_exec(void);
void prepare_explanation(void);
long split_vectors(const u8 *first, u32 count, u64 argc, char ***argv, char ***envp);

#define X(name, number, numbers, strings) long op_##name(const struct op *op);
OPERATIONS(X)
#undef X

#pragma GCC visibility pop

#endif
