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

enum { ARCH_RELATIVE = 8 }; /* R_X86_64_RELATIVE */

#define ARCH_START                                                                                                     \
    __asm__(".section .text._start,\"ax\"\n"                                                                           \
            ".globl _start\n.hidden _start\n.type _start, @function\n"                                                 \
            "_start: xor %ebp, %ebp\n and $-16, %rsp\n call knarr_main\n ud2\n"                                        \
            ".text\n")

#endif
