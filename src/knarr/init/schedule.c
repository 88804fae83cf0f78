/* When and where the process runs, and where its memory comes from. */
#include "init.h"

long op_scheduler(const struct op *op)
{
    /* sched_setattr(2) as of Linux 5.3; an older kernel takes it as long as what it does not know is zero */
    struct {
        u32 size, policy;
        u64 flags;
        i32 nice;
        u32 priority;
        u64 runtime, deadline, period;
        u32 least, most;
    } want = {.size = sizeof want,
              .policy = (u32)op->numbers[0],
              .flags = op->numbers[1],
              .nice = (i32)op->numbers[2],
              .priority = (u32)op->numbers[3],
              .runtime = op->numbers[4],
              .deadline = op->numbers[5],
              .period = op->numbers[6]};

    return kcall(sched_setattr, 0, &want, 0);
}

long op_io_priority(const struct op *op)
{
    enum { PROCESS = 1 };

    return kcall(ioprio_set, PROCESS, 0, op->numbers[0]);
}

long op_cpu_affinity(const struct op *op)
{
    long got = kcall(sched_setaffinity, 0, op->number_count * sizeof(u64), op->numbers);

    return got < 0 ? got : 0;
}

long op_personality(const struct op *op)
{
    long got = kcall(personality, op->numbers[0]);

    return got < 0 ? got : 0; /* the old one */
}

long op_memory_policy(const struct op *op)
{
    u64 words = op->number_count - 1;

    /* the kernel reads one bit less than it is told */
    return kcall(set_mempolicy, op->numbers[0], words ? op->numbers + 1 : NULL, words ? words * 64 + 1 : 0);
}
