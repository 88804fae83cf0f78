/* What launcher.c and verbs.c share. The kernel's interface comes from knarr-init's headers; no C library. */
#ifndef KNARR_SYSTEM_H
#define KNARR_SYSTEM_H

#include "../src/knarr/init/kernel.h"

#define ONLY_HERE static inline __attribute__((unused))

/* Does one of start, state, kill, delete and ends the process, or returns and has changed nothing that Python would
 * mind; then `*connection`, if it is not -1, is the socket of a container that was told to start and had something
 * to say. */
#pragma GCC visibility push(hidden)
void do_verb(char **argv, char **envp, long *connection);
#pragma GCC visibility pop

ONLY_HERE __attribute__((noreturn)) void leave(int status)
{
    for (;;)
        kcall(exit_group, status);
}

ONLY_HERE size_t length(const char *text)
{
    size_t n = 0;
    while (text[n])
        n++;
    return n;
}

ONLY_HERE int starts(const char *text, const char *with)
{
    while (*with)
        if (*text++ != *with++)
            return 0;
    return 1;
}

ONLY_HERE int same(const char *text, const char *other)
{
    return starts(text, other) && length(text) == length(other);
}

/* Appends at `at`, never past `end` - 1; returns the new end of the text. */
ONLY_HERE char *append(char *at, const char *end, const char *text)
{
    while (*text && at < end - 1)
        *at++ = *text++;
    *at = 0;
    return at;
}

ONLY_HERE char *last_slash(char *text)
{
    char *found = 0;
    for (; *text; text++)
        if (*text == '/')
            found = text;
    return found;
}

/* A number that is not negative in decimal, right-aligned in `room`. */
ONLY_HERE char *decimal(char room[24], long number)
{
    char *at = room + 23;
    *at = 0;
    do
        *--at = (char)('0' + number % 10);
    while (number /= 10);
    return at;
}

#endif
