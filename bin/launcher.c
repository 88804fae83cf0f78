/*
 * knarr-runtime, the file in bin/: starts `python -I -S` on the package installed beside it.
 *
 * Docker and containerd call knarr-runtime five times per container. An entry point made by pip runs the
 * `site` module (3 ms and more), a shell wrapper costs half a millisecond and obeys the caller's LD_PRELOAD;
 * this file needs no C library, no loader and no environment (docs/decisions.md has the figures).
 *
 *   0. ordinary start, state, kill, delete are done at once (verbs.c)
 *   1. where am I        /proc/self/exe, so a symbolic link to it works
 *   2. which python      the first line of `knarr`, the script pip wrote beside it, else `python3` beside it
 *   3. a clean start     what makes a C library or Python load the caller's code leaves the environment
 *   4. exec              python -I -S -X utf8 -c FIND_AND_LAUNCH PREFIX SOCKET arguments...
 *
 * Which lib/pythonX.Y is the right one only the interpreter knows, so that search is the few lines of Python
 * below; what they import is cached as bytecode, which a script run as __main__ never is.
 *
 * Nobody relocates this program: no table of pointers here, the compiler would need addresses in it.
 */

#include "system.h"

typedef unsigned long word;

enum { LINE = 4096 };

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall launch\n\thlt\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x0, sp\n\tbl launch\n\tbrk #0\n");
#endif

/* argv[1] is the prefix (the directory above bin/), argv[2] 1 + a socket or 0 (verbs.c), argv[3] the name it was called by; the first candidate that has the package is appended, not
 * prepended, to sys.path: what sits beside knarr must not stand in for the standard library. */
static const char FIND_AND_LAUNCH[] =
    "import sys,posix\n"
    "b=sys.argv.pop(1)\n"
    "s=int(sys.argv.pop(1))-1\n"
    "sys.argv[0]=sys.argv.pop(1)\n"
    "v='/python%d.%d/'%sys.version_info[:2]\n"
    "for p in(b+'/lib'+v+'site-packages',b+'/lib64'+v+'site-packages',b+'/lib'+v+'dist-packages',"
    "b+'/lib/python3/dist-packages',b):\n"
    " try:posix.stat(p+'/knarr/cli/runtime_launch.py');break\n"
    " except OSError:pass\n"
    "else:sys.exit('knarr-runtime: no knarr package for '+sys.executable+' below '+b"
    "+'; install it again with: '+sys.executable+' -m pip install --force-reinstall knarr')\n"
    "sys.path.append(p)\n"
    "from knarr.cli.runtime_launch import launch\n"
    "launch(s)\n";

static char here[LINE + 16];
static char prefix[LINE + 16];
static char line[LINE + 1];
static char beside[LINE + 16];

static void say(const char *text)
{
    kcall(write, 2, text, length(text));
}

static __attribute__((noreturn)) void fail(const char *why, const char *what)
{
    say("knarr-runtime: ");
    say(why);
    say(what);
    say("\n");
    leave(1);
}

/*
 * The interpreter named by the script that pip, uv or installer wrote: `#!/path/python`, or, where the path has
 * spaces or is long, `#!/bin/sh` and a second line `'''exec' "/path with space/python" "$0" "$@"`.
 * Returns 0 when there is none to be read.
 */
static char *interpreter_of(const char *script)
{
    long fd = kcall(openat, AT_FDCWD, script, O_CLOEXEC);
    if (fd < 0)
        return 0;
    long got = kcall(read, fd, line, LINE);
    if (got < 4 || line[0] != '#' || line[1] != '!')
        return 0;
    line[got] = 0;
    char *path = line + 2;
    char *end = path;
    while (*end && *end != '\n' && *end != ' ')
        end++;
    if (starts(path, "/bin/sh\n'''exec' ")) {
        path = end + sizeof("\n'''exec' ") - 1;
        for (end = path; *end && !starts(end, " \"$0\""); end++)
            ;
        if ((*path == '"' || *path == '\'') && end - path > 2 && end[-1] == *path) {
            path++;
            end--;
        }
    }
    if (!*end || *path != '/')
        return 0;
    *end = 0;
    char *name = last_slash(path) + 1;
    return starts(name, "python") ? path : 0;
}

/* ld.so(8): what the dynamic loader and C library themselves ignore in a set-user-ID program, as far as it loads code. */
static int unwanted(const char *variable)
{
    return starts(variable, "LD_") || starts(variable, "PYTHON") || starts(variable, "GLIBC_TUNABLES=") ||
           starts(variable, "GCONV_PATH=") || starts(variable, "LOCPATH=");
}

__attribute__((used)) void launch(word *stack);

void launch(word *stack)
{
    word argc = stack[0];
    char **argv = (char **)(stack + 1);
    char **envp = argv + argc + 1;
    long connection = -1;
    char number[24];

    do_verb(argv + (argc > 0), envp, &connection);

    long got = kcall(readlinkat, AT_FDCWD, "/proc/self/exe", here, LINE);
    if (got <= 0 || got >= LINE)
        fail("cannot read /proc/self/exe: ", got > 0 ? "its path is too long" : "is /proc mounted?");
    here[got] = 0;
    char *slash = last_slash(here);
    if (!slash)
        fail("cannot tell where it is: ", here);
    *slash = 0;
    append(prefix, prefix + sizeof prefix, here);
    slash = last_slash(prefix);
    *(slash ? slash : prefix) = 0;

    append(append(beside, beside + sizeof beside, here), beside + sizeof beside, "/knarr");
    char *python = interpreter_of(beside);

    /* There is room: the kernel holds all arguments to a quarter of the stack's limit. */
    char **arguments = __builtin_alloca((argc + 12) * sizeof *arguments);
    word n = 0;
    arguments[n++] = 0; /* argv[0], set below */
    arguments[n++] = "-I";
    arguments[n++] = "-S";
    arguments[n++] = "-X"; /* arguments and output are bytes in UTF-8 whatever the caller's locale */
    arguments[n++] = "utf8";
    arguments[n++] = "-c";
    arguments[n++] = (char *)FIND_AND_LAUNCH;
    arguments[n++] = prefix;
    arguments[n++] = decimal(number, connection + 1);
    arguments[n++] = argc > 0 ? argv[0] : ""; /* knarr-runtime-kernel asks for that kind of isolation */
    for (word i = 1; i < argc; i++)
        arguments[n++] = argv[i];
    arguments[n] = 0;

    n = 0;
    for (word i = 0; envp[i]; i++)
        if (!unwanted(envp[i]))
            envp[n++] = envp[i];
    envp[n] = 0;

    /* Ctrl-C while Python starts would end in its traceback: held back until runtime_main has decided what it means. */
    const word interrupt = 1UL << (2 - 1);
    kcall(rt_sigprocmask, 0, &interrupt, 0, sizeof interrupt);

    if (python) {
        arguments[0] = python;
        kcall(execve, python, arguments, envp);
    }
    append(append(beside, beside + sizeof beside, here), beside + sizeof beside, "/python3");
    arguments[0] = beside;
    kcall(execve, beside, arguments, envp);
    fail("cannot start the Python it was installed for: ", python ? python : beside);
}
