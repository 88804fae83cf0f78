/* The decoder: checks every byte of a Plan before anything is done, and hands out one operation after another.
 *
 * This file makes no system call; the fuzzer compiles it alone.
 */
#include "init.h"

static u32 u32_at(const u8 *at)
{
    u32 value;

    memcpy(&value, at, sizeof value);
    return value;
}

static u64 u64_at(const u8 *at)
{
    u64 value;

    memcpy(&value, at, sizeof value);
    return value;
}

enum { HEADER = 24, OP_HEADER = 16, WORD = 8 };

static const u8 magic[8] = {'K', 'N', 'A', 'R', 'R', 'P', 'L', '1'};

static int counts_fit(u32 want, u32 have)
{
    return want & MORE ? have >= (want & ~(u32)MORE) : have == want;
}

static int shape_fits(u32 kind, u32 numbers, u32 strings)
{
    switch (kind) {
#define X(name, number, want_numbers, want_strings)                                                                    \
    case number: return counts_fit(want_numbers, numbers) && counts_fit(want_strings, strings);
        OPERATIONS(X)
#undef X
    default: return 0;
    }
}

/* Bytes the string at `at` takes with its length and padding, 0 if it is not a whole, NUL-ended string. */
static u64 string_bytes(const u8 *at, u64 room, int binary)
{
    u64 length, padded, position;

    if (room < 2 * WORD)
        return 0;
    length = u64_at(at);
    if (length >= room - WORD)
        return 0;
    padded = WORD - length % WORD;
    if (length + padded > room - WORD)
        return 0;
    for (position = 0; position < length && !binary; position++)
        if (at[WORD + position] == 0)
            return 0;
    for (position = length; position < length + padded; position++)
        if (at[WORD + position] != 0)
            return 0;
    return WORD + length + padded;
}

/* Checks one operation that has `room` bytes left; gives its size, 0 if it is malformed. */
static u64 op_bytes(const u8 *at, u64 room, u64 *vector_bytes)
{
    u32 kind, numbers, strings, size, each;
    u64 used, want;

    if (room < OP_HEADER)
        return 0;
    kind = u32_at(at);
    numbers = u32_at(at + 4);
    strings = u32_at(at + 8);
    size = u32_at(at + 12);
    if (size < OP_HEADER || size > room || size % WORD != 0)
        return 0;
    if (!shape_fits(kind, numbers, strings) || numbers > (size - OP_HEADER) / WORD)
        return 0;
    used = OP_HEADER + (u64)numbers * WORD;
    for (each = 0; each < strings; each++) {
        u64 taken = string_bytes(at + used, size - used, kind == OP_seccomp);

        if (taken == 0)
            return 0;
        used += taken;
    }
    if (used != size)
        return 0;
    want = ((u64)numbers + strings + 4) * sizeof(void *);
    if (want > *vector_bytes)
        *vector_bytes = want;
    return size;
}

long plan_check(struct plan *plan, const u8 *bytes, u64 size)
{
    u64 used = HEADER;
    u32 each;

    if (size < HEADER || memcmp(bytes, magic, sizeof magic) != 0)
        return -EPROTO;
    if (u32_at(bytes + 8) != size || u32_at(bytes + 20) != 0)
        return -EPROTO;
    plan->bytes = bytes;
    plan->size = size;
    plan->operations = u32_at(bytes + 12);
    plan->inherited_slots = u32_at(bytes + 16);
    plan->vector_bytes = 0;
    if (plan->inherited_slots > MAX_SLOTS)
        return -EPROTO;
    for (each = 0; each < plan->operations; each++) {
        u64 taken = op_bytes(bytes + used, size - used, &plan->vector_bytes);

        if (taken == 0)
            return -EPROTO;
        used += taken;
    }
    return used == size ? 0 : -EPROTO;
}

const u8 *plan_first(const struct plan *plan)
{
    return plan->bytes + HEADER;
}

const u8 *next_string(const u8 *at, struct text *text)
{
    text->length = u64_at(at);
    text->bytes = (const char *)at + WORD;
    return at + WORD + text->length + (WORD - text->length % WORD);
}

/* Fills `op` from a checked Plan; gives where the next one begins. op->index is the caller's. */
const u8 *plan_next(const struct plan *plan, const u8 *at, struct op *op)
{
    const u8 *end = at + u32_at(at + 12);
    const u8 *string;
    u32 each;

    op->kind = u32_at(at);
    op->number_count = u32_at(at + 4);
    op->string_count = u32_at(at + 8);
    op->numbers = (const u64 *)(const void *)(at + OP_HEADER);
    string = at + OP_HEADER + (u64)op->number_count * WORD;
    op->first_string = string;
    for (each = 0; each < 4 && each < op->string_count; each++)
        string = next_string(string, &op->strings[each]);
    op->after = end;
    op->end = plan->bytes + plan->size;
    return end;
}

/* Whether what follows is the program itself and steps to it that use no descriptor and no directory of ours. */
int only_exec_follows(const struct op *op)
{
    const u8 *at;

    for (at = op->after; at < op->end; at += u32_at(at + 12))
        switch (u32_at(at)) {
        case OP_exec: return 1;
        case OP_bounding:
        case OP_capabilities:
        case OP_no_new_privs: break;
        default: return 0;
        }
    return 0;
}
