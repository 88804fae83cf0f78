/* aarch64: the system call instruction and the first instructions of the program. */
#ifndef KNARR_ARCH_H
#define KNARR_ARCH_H

static inline long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;

    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}

/* A thread that begins in `run`, which must not return, on the stack that ends at `top`; its id, or -errno. */
static inline long clone_thread(u64 flags, void *top, void (*run)(void))
{
    register long x8 __asm__("x8") = __NR_clone;
    register long x0 __asm__("x0") = (long)flags;
    register void *x1 __asm__("x1") = top;
    register long x2 __asm__("x2") = 0;
    register long x3 __asm__("x3") = 0;
    register long x4 __asm__("x4") = 0;
    register void (*x5)(void) __asm__("x5") = run;

    __asm__ volatile("svc 0\n cbnz x0, 1f\n mov x29, #0\n blr x5\n brk #1\n1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory", "x30");
    return x0;
}

static inline void pause_a_little(void)
{
    __asm__ volatile("yield" ::: "memory");
}

enum { ARCH_RELATIVE = 1027 }; /* R_AARCH64_RELATIVE */

#define ARCH_START                                                                                                     \
    __asm__(".section .text._start,\"ax\"\n"                                                                           \
            ".globl _start\n.hidden _start\n.type _start, %function\n"                                                 \
            "_start: mov x29, #0\n mov x30, #0\n bl knarr_main\n brk #1\n"                                             \
            ".text\n")

#endif
