/* x86-64: the system call instruction and the first instructions of the program. */
#ifndef KNARR_ARCH_H
#define KNARR_ARCH_H

static inline long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* A thread that begins in `run`, which must not return, on the stack that ends at `top`; its id, or -errno. */
static inline long clone_thread(u64 flags, void *top, void (*run)(void))
{
    register long r10 __asm__("r10") = 0;
    register long r8 __asm__("r8") = 0;
    register void (*r9)(void) __asm__("r9") = run;
    long result;

    __asm__ volatile("syscall\n test %%rax, %%rax\n jnz 1f\n xor %%ebp, %%ebp\n call *%%r9\n ud2\n1:"
                     : "=a"(result)
                     : "a"(__NR_clone), "D"(flags), "S"(top), "d"(0), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static inline void pause_a_little(void)
{
    __asm__ volatile("pause" ::: "memory");
}

enum { ARCH_RELATIVE = 8 }; /* R_X86_64_RELATIVE */

#define ARCH_START                                                                                                     \
    __asm__(".section .text._start,\"ax\"\n"                                                                           \
            ".globl _start\n.hidden _start\n.type _start, @function\n"                                                 \
            "_start: xor %ebp, %ebp\n and $-16, %rsp\n call knarr_main\n ud2\n"                                        \
            ".text\n")

#endif
