/* Landlock: what the process gives up, for itself and all that descend from it, without any privilege. */
#include "init.h"

enum { PATH_BENEATH = 1, NET_PORT = 2 };
enum { FILE_RIGHTS = 0xc007 }; /* execute, write and read a file, truncate, ioctl of a device */

long op_landlock_create(const struct op *op)
{
    /* an older kernel takes it as long as what it does not know is zero */
    struct {
        u64 fs, net, scoped;
    } handled = {op->numbers[1], op->numbers[2], op->numbers[3]};

    return slot_set(op->numbers[0], kcall(landlock_create_ruleset, &handled, sizeof handled, 0));
}

long op_landlock_path(const struct op *op)
{
    struct {
        u64 access;
        i32 fd;
    } __attribute__((packed)) rule = {.access = op->numbers[1]};
    struct statx found;
    long got, fd = open_inside(op->strings[0].bytes, O_PATH);

    if (fd == -ENOENT && op->numbers[2] & OPTIONAL)
        return 0;
    if (fd < 0)
        return fd;
    got = describe((int)fd, "", 0, &found);
    if (got == 0 && (found.stx_mode & S_IFMT) != S_IFDIR)
        rule.access &= FILE_RIGHTS;
    rule.fd = (i32)fd;
    if (got == 0)
        got = kcall(landlock_add_rule, slot_fd(op->numbers[0]), PATH_BENEATH, &rule, 0);
    close_fd(fd);
    return got;
}

long op_landlock_port(const struct op *op)
{
    struct {
        u64 access, port;
    } rule = {op->numbers[1], op->numbers[2]};

    return kcall(landlock_add_rule, slot_fd(op->numbers[0]), NET_PORT, &rule, 0);
}

long op_landlock_restrict(const struct op *op)
{
    long got;

    prepare_explanation(); /* while the program can still be read */
    got = kcall(landlock_restrict_self, slot_fd(op->numbers[0]), 0);
    if (got == -EPERM) { /* without no_new_privs it takes CAP_SYS_ADMIN, as a filter does */
        raise_permitted();
        got = kcall(landlock_restrict_self, slot_fd(op->numbers[0]), 0);
    }
    close_fd(slot_fd(op->numbers[0]));
    slot_forget(op->numbers[0]);
    return got;
}
