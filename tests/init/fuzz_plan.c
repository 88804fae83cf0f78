/* Fuzzes the decoder of knarr-init (src/knarr/init/plan.c) on its own, under sanitizers; tools/fuzz_init builds it.
 *
 * With clang it is a libFuzzer target. With DRIVER it has a main of its own, which mutates the files it is given for
 * so many seconds, from a fixed seed: gcc has the sanitizers but no fuzzer.
 */
#include "init.h" /* first: the kernel's headers leave things out once they see a libc */

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);

/* What the program does with a Plan it accepted: touches every byte of every number and string. */
static u64 walk(const struct plan *plan)
{
    const u8 *at = plan_first(plan);
    struct op op = {.kind = 0};
    u64 sum = 0;

    for (op.index = 0; op.index < plan->operations; op.index++) {
        const u8 *string;
        struct text text;
        u32 each;

        at = plan_next(plan, at, &op);
        for (each = 0; each < op.number_count; each++)
            sum += op.numbers[each];
        string = op.first_string;
        for (each = 0; each < op.string_count; each++) {
            u64 byte;

            string = next_string(string, &text);
            for (byte = 0; byte <= text.length; byte++)
                sum += (u8)text.bytes[byte];
            if (text.bytes[text.length] != 0)
                abort(); /* a text without its end */
        }
        sum += (u64)only_exec_follows(&op);
        if ((u64)(op.number_count + op.string_count + 4) * sizeof(void *) > plan->vector_bytes)
            abort(); /* the pointer vector would be too short */
    }
    if (at != plan->bytes + plan->size)
        abort();
    return sum;
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    static volatile u64 sink;
    struct plan plan;
    u8 *exact = malloc(size ? size : 1); /* so that one byte beyond is noticed */

    if (exact == NULL)
        return 0;
    memcpy(exact, data, size);
    if (plan_check(&plan, exact, size) == 0)
        sink += walk(&plan);
    free(exact);
    return 0;
}

#ifdef DRIVER
static u64 state = 88172645463325252u;

static u64 chance(u64 below)
{
    state ^= state << 13; /* xorshift: the same sequence every time */
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static size_t mutate(u8 *data, size_t size, size_t room)
{
    u64 times = 1 + chance(4);

    while (times-- > 0 && size > 8)
        switch (chance(6)) {
        case 0: data[chance(size)] ^= (u8)(1u << chance(8)); break;
        case 1: data[chance(size)] = (u8)chance(256); break;
        case 2: data[chance(size / 4) * 4] = (u8)chance(16); break;
        case 3: { /* a length or count of four bytes */
            static const u32 odd[] = {0, 1, 7, 8, 0x7fffffff, 0x80000000, 0xfffffff8, 0xffffffff};
            memcpy(data + chance(size / 4 - 1) * 4, &odd[chance(8)], 4);
            break;
        }
        case 4: size -= chance(size > 64 ? 64 : size); break;
        case 5:
            if (size + 16 <= room) {
                memset(data + size, (int)chance(256), 8);
                size += 8;
            }
            break;
        }
    if (chance(2) && size >= 12) { /* let the header agree with the size, or nothing behind it is looked at */
        u32 whole = (u32)size;
        memcpy(data + 8, &whole, 4);
    }
    return size;
}

int main(int argc, char **argv)
{
    static u8 seeds[16][1 << 16], data[(1 << 16) + 64];
    size_t sizes[16];
    time_t end = time(NULL) + atoi(argc > 1 ? argv[1] : "1");
    unsigned long runs = 0;
    int count = 0;

    for (; count < 16 && count + 2 < argc; count++) {
        FILE *file = fopen(argv[count + 2], "rb");

        if (file == NULL)
            return 2;
        sizes[count] = fread(seeds[count], 1, sizeof seeds[count], file);
        fclose(file);
        LLVMFuzzerTestOneInput(seeds[count], sizes[count]);
    }
    while (count > 0 && time(NULL) < end) {
        int seed = (int)chance((u64)count);

        memcpy(data, seeds[seed], sizes[seed]);
        LLVMFuzzerTestOneInput(data, mutate(data, sizes[seed], sizeof data));
        runs++;
    }
    printf("%lu runs\n", runs);
    return 0;
}
#endif
