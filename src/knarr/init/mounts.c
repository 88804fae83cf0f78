/* Mounts: all by descriptor, so that what was checked is what is mounted, where it was checked. */
#include "init.h"

/* The first mount made to mask a directory, and to mask anything else; the next ones are copies. 0: none yet. */
static int mask_directory, mask_file;

long attach(int tree, int target)
{
    long got = kcall(move_mount, tree, "", target, "", FROM_EMPTY_PATH | TO_EMPTY_PATH);
    struct statx from, to;

    /* move_mount says EINVAL for many things; a directory over a file is the one people do. */
    if (got == -EINVAL && describe(tree, "", 0, &from) == 0 && describe(target, "", 0, &to) == 0 &&
        ((from.stx_mode & S_IFMT) == S_IFDIR) != ((to.stx_mode & S_IFMT) == S_IFDIR))
        return -ENOTDIR;
    return got;
}

/* A detached copy of the mount at a path (of the descriptor itself if the path is empty). */
long clone_tree(int fd, const char *path, int recursive)
{
    return kcall(open_tree, fd, path,
                 TREE_CLONE | O_CLOEXEC | (recursive ? TREE_RECURSIVE : 0) | (path[0] == 0 ? AT_EMPTY_PATH : 0));
}

long mount_attributes(int fd, int recursive, u64 set, u64 clear, u64 propagation)
{
    struct mount_attr_v0 attributes = {.set = set, .clear = clear, .propagation = propagation & ~(u64)MS_REC_};

    if (set == 0 && clear == 0 && propagation == 0)
        return 0;
    return kcall(mount_setattr, fd, "", AT_EMPTY_PATH | (recursive || propagation & MS_REC_ ? TREE_RECURSIVE : 0),
                 &attributes, sizeof attributes);
}

/* -- host paths, before the root is entered ------------------------------------------------------------------- */

long op_propagation(const struct op *op)
{
    return kcall(mount, NULL, op->strings[0].bytes, NULL, op->numbers[0], NULL);
}

long op_host_mount(const struct op *op)
{
    return kcall(mount, op->strings[0].bytes, op->strings[1].bytes, op->strings[2].bytes, op->numbers[0],
                 op->strings[3].bytes);
}

long op_host_mkdir(const struct op *op)
{
    long got = kcall(mkdirat, AT_FDCWD, op->strings[0].bytes, op->numbers[0] & 07777);

    if (got == 0 && (op->numbers[1] != 0 || op->numbers[2] != 0)) /* 0: who makes it is who owns it */
        got = kcall(fchownat, AT_FDCWD, op->strings[0].bytes, op->numbers[1], op->numbers[2], AT_SYMLINK_NOFOLLOW);
    return got == -EEXIST ? 0 : got;
}

long op_host_chdir(const struct op *op)
{
    return kcall(chdir, op->strings[0].bytes);
}

/* The source of a bind by its path on the host. */
static long clone_source(const char *path, u64 flags)
{
    return kcall(open_tree, AT_FDCWD, path,
                 TREE_CLONE | O_CLOEXEC | (flags & RECURSIVE ? TREE_RECURSIVE : 0) |
                     (flags & (SOURCE_NOFOLLOW | COPY_LINK) ? AT_SYMLINK_NOFOLLOW : 0));
}

long op_open_source(const struct op *op)
{
    return slot_set(op->numbers[0], clone_source(op->strings[0].bytes, op->numbers[1]));
}

/* The ids on the tree's file system are shown as that user namespace has them: its 0 is what is root's on the disk. */
long op_idmap(const struct op *op)
{
    struct mount_attr_v0 attributes = {.set = MNT_IDMAP, .userns = (u64)slot_fd(op->numbers[1])};

    if (slot_fd(op->numbers[1]) < 0)
        return -EBADF;
    return kcall(mount_setattr, slot_fd(op->numbers[0]), "",
                 AT_EMPTY_PATH | (op->numbers[2] & RECURSIVE ? TREE_RECURSIVE : 0), &attributes, sizeof attributes);
}

/* Attaches a tree over a path of the host's, in a mount namespace of our own. */
long op_cover(const struct op *op)
{
    int tree = slot_fd(op->numbers[0]);
    long got = kcall(move_mount, tree, "", AT_FDCWD, op->strings[0].bytes, FROM_EMPTY_PATH | TO_SYMLINKS);

    close_fd(tree);
    slot_forget(op->numbers[0]);
    return got;
}

/* A tree that was opened in another mount namespace becomes the root: over "/", the one directory that everybody may
 * enter. Paths of the host go on to mean what they meant, they begin below it. */
long op_root_tree(const struct op *op)
{
    return kcall(move_mount, slot_fd(op->numbers[0]), "", AT_FDCWD, "/", FROM_EMPTY_PATH);
}

long op_open_root(const struct op *op)
{
    return slot_set(op->numbers[0],
                    kcall(openat, AT_FDCWD, op->strings[0].bytes, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
}

/* pivot_root refuses a root whose mount below is shared, and what is mounted in the root would be seen outside. A
 * mount's propagation is changed at its top only: walk up to it. */
static void make_private_below(int directory)
{
    int fd = directory, depth;

    for (depth = 0; depth < PATH_BYTES / 2; depth++) {
        long up, got = mount_attributes(fd, 0, 0, 0, MS_PRIVATE_);

        if (got != -EINVAL) {
            if (fd != directory)
                close_fd(fd);
            return;
        }
        up = kcall(openat, fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (fd != directory)
            close_fd(fd);
        if (up < 0)
            return;
        fd = (int)up;
    }
    close_fd(fd);
}

static long bind_on_itself(const struct op *op, int shared)
{
    /* a root that is a symbolic link could be turned elsewhere between check and use */
    long fd = kcall(openat, AT_FDCWD, op->strings[0].bytes, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    long got, tree;

    if (fd < 0)
        return fd;
    if (!shared)
        make_private_below((int)fd);
    tree = clone_tree((int)fd, "", 1);
    if (tree < 0)
        return tree;
    got = attach((int)tree, (int)fd);
    close_fd(fd);
    if (got == 0 && shared)
        got = mount_attributes((int)tree, 1, 0, 0, MS_PRIVATE_);
    if (got < 0)
        return got;
    return slot_set(op->numbers[0], tree);
}

long op_bind_root(const struct op *op)
{
    return bind_on_itself(op, 0);
}

/* In a mount namespace that is not the container's nothing of others is changed: what the container mounts lies on one
 * mount of its own, so that taking that away takes all away (runtime/shared_mounts.py). */
long op_shared_root(const struct op *op)
{
    return bind_on_itself(op, 1);
}

/* -- container paths, below the root descriptor --------------------------------------------------------------- */

static u32 mode_to_make(u64 flags)
{
    switch (flags & 3) {
    case CREATE_DIR: return (u32)S_IFDIR | 0755;
    case CREATE_FILE: return (u32)S_IFREG | 0644;
    default: return 0;
    }
}

/* Nothing may lie over a part of /proc, whichever symbolic link led there, unless the Plan says that this may: what a
 * process believes of /proc/self or writes to /proc/sys would go elsewhere (CVE-2019-19921, CVE-2025-52881). */
static long not_over_proc(int target, u64 flags)
{
    struct statfs fs;
    long got = flags & OVER_PROC ? 0 : kcall(fstatfs, target, &fs);

    if (got == 0 && !(flags & OVER_PROC) && fs.f_type == PROC_SUPER_MAGIC)
        return -EPERM;
    return got;
}

/* The target of a mount. A proc or sysfs behind a symbolic link could make later writes to /proc go elsewhere
 * (CVE-2019-16884, CVE-2019-19921): for these every part of the path must be a real directory. */
static long mount_target(int root, const char *path, u64 flags, const char *fstype)
{
    long fd;

    if (!text_equal(fstype, "proc") && !text_equal(fstype, "sysfs"))
        return reach_in_root(root, path, mode_to_make(flags));
    fd = open_in_root(root, path, O_PATH | O_DIRECTORY, NO_SYMLINKS);
    if (fd == -ENOENT && (flags & 3) != 0) {
        fd = reach_in_root(root, path, mode_to_make(flags));
        if (fd < 0)
            return fd;
        close_fd(fd);
        fd = open_in_root(root, path, O_PATH | O_DIRECTORY, NO_SYMLINKS);
    }
    return fd == -ELOOP ? -ENOTDIR : fd;
}

/* The kernel's own words about a refused option, into the ERROR's detail. */
long with_log(int context, long error)
{
    u8 line[1024];
    long got;

    while ((got = kcall(read, context, line, sizeof line)) > 0) {
        detail_bytes(line, (size_t)got);
        if (line[got - 1] != '\n')
            detail_bytes("\n", 1);
    }
    return error;
}

long set_option(int context, const struct text *option)
{
    char key[NAME_BYTES + 1];
    u64 equals = 0;

    while (equals < option->length && option->bytes[equals] != '=')
        equals++;
    if (equals == option->length)
        return kcall(fsconfig, context, SET_FLAG, option->bytes, NULL, 0);
    if (equals > NAME_BYTES)
        return -EINVAL;
    memcpy(key, option->bytes, equals);
    key[equals] = 0;
    return kcall(fsconfig, context, SET_STRING, key, option->bytes + equals + 1, 0);
}

/* The mode of what is mounted over, as tmpfs wants it; none by itself (a kernel's default is 1777). */
static long set_mode(int context, int target)
{
    struct statx found;
    char octal[5] = {0};
    long got = describe(target, "", 0, &found);
    int each;

    for (each = 0; each < 4; each++)
        octal[each] = (char)('0' + (found.stx_mode >> (9 - 3 * each) & 7));
    return got < 0 ? got : kcall(fsconfig, context, SET_STRING, "mode", octal, 0);
}

/* A file system of the type and source that an operation begins with, its options being the strings from `first` on;
 * as a detached mount. `target`: a directory whose mode it gets, or -1. */
static long new_file_system(const struct op *op, u32 first, int target, u64 attributes)
{
    const u8 *at = op->first_string;
    struct text option;
    long got, mount, context = kcall(fsopen, op->strings[0].bytes, 1 /* FSOPEN_CLOEXEC */);
    u32 each;

    if (context < 0)
        return context;
    got = 0;
    if (op->strings[1].length != 0)
        got = kcall(fsconfig, context, SET_STRING, "source", op->strings[1].bytes, 0);
    for (each = 0; got == 0 && each < op->string_count; each++) {
        at = next_string(at, &option);
        if (each >= first)
            got = set_option((int)context, &option);
    }
    if (got == 0 && target >= 0)
        got = set_mode((int)context, target);
    if (got == 0)
        got = kcall(fsconfig, context, CREATE, NULL, NULL, 0);
    if (got < 0)
        return with_log((int)context, got);
    mount = kcall(fsmount, context, 1 /* FSMOUNT_CLOEXEC */, attributes);
    if (mount < 0)
        return with_log((int)context, mount);
    close_fd(context);
    return mount;
}

long op_new_tree(const struct op *op)
{
    return slot_set(op->numbers[0], new_file_system(op, 2, -1, op->numbers[1]));
}

static long new_mount(const struct op *op, int target, u64 flags)
{
    u64 late = flags & COPY_UP ? op->numbers[1] & MNT_RDONLY : 0; /* nothing can be copied into what is read-only */
    long got = 0, mount = new_file_system(op, 3, flags & MODE_OF_TARGET ? target : -1, op->numbers[1] & ~late);

    if (mount < 0)
        return mount;
    if (flags & COPY_UP)
        got = copy_up(target, (int)mount, (flags & COPY_OWNER) != 0);
    if (got == 0)
        got = mount_attributes((int)mount, 0, late, 0, 0);
    if (got < 0)
        return got;
    got = attach((int)mount, target);
    if (got == 0)
        got = mount_attributes((int)mount, 0, 0, 0, op->numbers[2]);
    close_fd(mount);
    return got;
}

static int has_long_option(const struct op *op)
{
    const u8 *at = op->first_string;
    struct text option;
    u32 each;

    for (each = 0; each < op->string_count; each++) {
        at = next_string(at, &option);
        if (each >= 3 && option.length > NAME_BYTES)
            return 1;
    }
    return 0;
}

/* Where the value of a security module's option begins, 0 for another option: context=, fscontext= and so on. In a page of
 * options their values, whose categories have commas between them, stand in quotes; fsconfig knows of no quotes. */
static u64 label_begins(const struct text *option)
{
    static const char names[][16] = {"context=", "fscontext=", "defcontext=", "rootcontext="};
    u32 each;

    for (each = 0; each < sizeof names / sizeof names[0]; each++) {
        u64 at = 0;

        while (names[each][at] != 0 && names[each][at] == option->bytes[at])
            at++;
        if (names[each][at] == 0)
            return at;
    }
    return 0;
}

/* fsconfig takes no text above 255 bytes (an overlay's lowerdir is often longer); mount(2) takes a page of options.
 * Its target is ".", the target's descriptor as working directory: no path to resolve, no procfs to trust. */
static long old_mount(const struct op *op, int root, int target)
{
    static char data[PATH_BYTES];
    u64 attr = op->numbers[1], flags = attr & (MNT_RDONLY | MNT_NOSUID | MNT_NODEV | MNT_NOEXEC);
    const u8 *at = op->first_string;
    struct text option;
    size_t used = 0;
    u64 value;
    u32 each;
    long got, before = kcall(openat, AT_FDCWD, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);

    for (each = 0; each < op->string_count; each++) {
        at = next_string(at, &option);
        if (each < 3)
            continue;
        if (used + option.length + 4 > sizeof data)
            return -E2BIG;
        if (used != 0)
            data[used++] = ',';
        value = label_begins(&option);
        memcpy(data + used, option.bytes, value);
        used += value;
        if (value != 0)
            data[used++] = '"';
        memcpy(data + used, option.bytes + value, option.length - value);
        used += option.length - value;
        if (value != 0)
            data[used++] = '"';
    }
    data[used] = 0;
    flags |= (attr & MNT_ATIME) == MNT_NOATIME ? MS_NOATIME_ : 0;
    flags |= (attr & MNT_ATIME) == MNT_STRICTATIME ? MS_STRICTATIME_ : 0;
    flags |= attr & MNT_NODIRATIME ? MS_NODIRATIME_ : 0;
    flags |= attr & MNT_NOSYMFOLLOW ? MS_NOSYMFOLLOW_ : 0;
    if (before < 0)
        return before;
    got = kcall(fchdir, target);
    if (got == 0)
        got = kcall(mount, op->strings[1].bytes, ".", op->strings[0].bytes, flags, data);
    if (got == 0)
        got = kcall(fchdir, before);
    close_fd(before);
    if (got == 0 && op->numbers[2] != 0) {
        long top = open_in_root(root, op->strings[2].bytes, O_PATH, 0);

        got = top < 0 ? top : mount_attributes((int)top, 0, 0, 0, op->numbers[2]);
        close_fd(top);
    }
    return got;
}

long op_mount(const struct op *op)
{
    int root = root_fd(op->numbers[0]);
    u64 flags = op->numbers[3];
    long got, target = -ENOENT;

    if (flags & MODE_OF_TARGET) {
        target = open_in_root(root, op->strings[2].bytes, O_PATH, 0);
        if (target < 0)
            flags &= ~(u64)MODE_OF_TARGET;
    }
    if (target < 0)
        target = mount_target(root, op->strings[2].bytes, flags, op->strings[0].bytes);
    if (target < 0)
        return target;
    got = not_over_proc((int)target, flags);
    if (got == 0 && has_long_option(op))
        got = flags & (COPY_UP | MODE_OF_TARGET) ? -E2BIG : old_mount(op, root, (int)target);
    else if (got == 0)
        got = new_mount(op, (int)target, flags);
    close_fd(target);
    root_done(op->numbers[0], root);
    return got;
}

/* The detached tree a bind mounts; its path is the host's, or in root below the slot. */
static long bind_source(const struct op *op)
{
    u64 slot = op->numbers[1], flags = op->numbers[2];
    int recursive = (flags & RECURSIVE) != 0;
    long fd, tree;

    if (flags & SOURCE_IS_TREE)
        return slot_fd(slot);
    if (slot == NO_SLOT)
        return clone_source(op->strings[0].bytes, flags);
    if (op->strings[0].length == 0)
        return clone_tree(slot_fd(slot), "", recursive);
    fd = open_in_root(slot_fd(slot), op->strings[0].bytes, O_PATH, 0);
    if (fd < 0)
        return fd;
    tree = clone_tree((int)fd, "", recursive);
    close_fd(fd);
    return tree;
}

/* The link that `tree` is, made anew. */
static long copy_link(int root, const char *path, int tree)
{
    char text[PATH_BYTES];
    long got = kcall(readlinkat, tree, "", text, sizeof text - 1);

    if (got < 0)
        return got;
    text[got] = 0;
    return link_in_root(root, path, text, 0);
}

/* mountinfo lists mounts as they were made (Linux 6.8), and a tree opened before the clone is older than mounts that
 * come before it in config.json. A copy in its place is not; where that cannot be (a user namespace locks it) it stays. */
static long made_now(long tree, int target)
{
    long got, copy = clone_tree((int)tree, "", 1), before = kcall(openat, AT_FDCWD, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);

    got = copy < 0 || before < 0 ? -EINVAL : kcall(fchdir, tree);
    /* private, or what is mounted below would be unmounted on the host too, whose mounts are its peers */
    if (got == 0)
        got = mount_attributes((int)tree, 1, 0, 0, MS_PRIVATE_);
    if (got == 0) {
        got = kcall(umount2, ".", UMOUNT_DETACH);
        kcall(fchdir, before);
    }
    close_fd(before);
    if (got == 0) {
        got = attach((int)copy, target);
        close_fd(tree);
        return got == 0 ? copy : got;
    }
    close_fd(copy);
    return tree;
}

long op_bind(const struct op *op)
{
    const u64 *n = op->numbers;
    u32 mode = mode_to_make(n[2]);
    int root = root_fd(n[0]);
    long got, target, tree = bind_source(op);
    struct statx source;

    if (tree == -ENOENT && n[2] & OPTIONAL) {
        root_done(n[0], root);
        return 0;
    }
    if (tree < 0)
        return n[2] & SOURCE_IS_TREE ? -EBADF : tree;
    got = describe((int)tree, "", 0, &source);
    if (got < 0)
        return got;
    if (n[2] & COPY_LINK && (source.stx_mode & S_IFMT) == S_IFLNK) {
        got = copy_link(root, op->strings[1].bytes, (int)tree);
        close_fd(tree);
        if (n[2] & SOURCE_IS_TREE)
            slot_forget(n[1]);
        root_done(n[0], root);
        return got;
    }
    if ((n[2] & 3) == CREATE_LIKE_SOURCE) {
        mode = (source.stx_mode & S_IFMT) == S_IFDIR ? (u32)S_IFDIR | 0755 : (u32)S_IFREG | 0644;
    }
    /* before it is attached: at no moment is it there with more rights than asked */
    got = mount_attributes((int)tree, 0, n[3], n[4], 0);
    if (got == 0)
        got = mount_attributes((int)tree, 1, n[5], n[6], 0);
    if (got < 0)
        return got;
    target = n[2] & TARGET_NOFOLLOW ? reach_link_in_root(root, op->strings[1].bytes, mode)
                                    : reach_in_root(root, op->strings[1].bytes, mode);
    if (target < 0)
        return target;
    got = not_over_proc((int)target, n[2]);
    if (got == 0)
        got = attach((int)tree, (int)target);
    if (got == 0 && n[2] & SOURCE_IS_TREE) {
        tree = made_now(tree, (int)target);
        if (tree < 0)
            return tree;
    }
    if (got == 0)
        got = mount_attributes((int)tree, 0, 0, 0, n[7]);
    close_fd(target);
    close_fd(tree);
    if (n[2] & SOURCE_IS_TREE)
        slot_forget(n[1]);
    root_done(n[0], root);
    return got;
}

long op_remount(const struct op *op)
{
    const u64 *n = op->numbers;
    int root = root_fd(n[0]);
    long got, target = open_in_root(root, op->strings[0].bytes, O_PATH, 0);

    root_done(n[0], root);
    if (target == -ENOENT && n[1] & OPTIONAL)
        return 0;
    if (target < 0)
        return target;
    got = mount_attributes((int)target, (n[1] & RECURSIVE) != 0, n[2], n[3], 0);
    close_fd(target);
    return got;
}

/* Takes the uppermost mount off the target, by its name in the directory it lies in: what may have become a link
 * meanwhile is not followed. */
long op_unmount(const struct op *op)
{
    char leaf[NAME_BYTES + 1];
    int root = root_fd(op->numbers[0]);
    long got, parent, target = open_in_root(root, op->strings[0].bytes, O_PATH | O_NOFOLLOW, 0);

    if (target < 0)
        return target;
    /* private, or what is mounted below would be unmounted for its peers, too */
    got = mount_attributes((int)target, 1, 0, 0, MS_PRIVATE_);
    close_fd(target);
    if (got < 0)
        return got;
    parent = parent_in_root(root, op->strings[0].bytes, leaf);
    root_done(op->numbers[0], root);
    if (parent < 0)
        return parent;
    got = kcall(fchdir, parent);
    if (got == 0)
        got = kcall(umount2, leaf, UMOUNT_DETACH | UMOUNT_BY_NAME);
    close_fd(parent);
    return got;
}

/* A detached copy of the host's null device, which must be the null device (CVE-2025-31133). Read-only, or root in
 * the container could chmod the host's node through it; reading and writing a device is not hindered by that. */
static long null_mask(void)
{
    struct statx null;
    long got, tree, fd;

    if (mask_file != 0)
        return clone_tree(mask_file, "", 0);
    fd = kcall(openat, AT_FDCWD, "/dev/null", O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return fd;
    got = describe((int)fd, "", 0, &null);
    if (got < 0)
        return got;
    if (!is_null(&null))
        return -ENODEV;
    tree = clone_tree((int)fd, "", 0);
    close_fd(fd);
    if (tree < 0)
        return tree;
    got = mount_attributes((int)tree, 0, MNT_RDONLY | MNT_NOSUID | MNT_NOEXEC, 0, 0);
    if (got < 0)
        return got;
    mask_file = (int)tree;
    return tree;
}

/* An empty read-only tmpfs, with the options that the operation has after its path. */
static long directory_mask(const struct op *op)
{
    const u8 *at = op->first_string;
    struct text option;
    long got, mount, context;
    u32 each;

    if (mask_directory != 0)
        return clone_tree(mask_directory, "", 0);
    context = kcall(fsopen, "tmpfs", 1 /* FSOPEN_CLOEXEC */);
    if (context < 0)
        return context;
    got = kcall(fsconfig, context, SET_STRING, "source", "tmpfs", 0);
    for (each = 0; got == 0 && each < op->string_count; each++) {
        at = next_string(at, &option);
        if (each >= 1)
            got = set_option((int)context, &option);
    }
    if (got == 0)
        got = kcall(fsconfig, context, SET_FLAG, "ro", NULL, 0);
    if (got == 0)
        got = kcall(fsconfig, context, CREATE, NULL, NULL, 0);
    if (got < 0)
        return with_log((int)context, got);
    mount = kcall(fsmount, context, 1 /* FSMOUNT_CLOEXEC */, MNT_RDONLY);
    close_fd(context);
    if (mount >= 0)
        mask_directory = (int)mount;
    return mount;
}

long op_mask(const struct op *op)
{
    int root = root_fd(op->numbers[0]);
    struct statx found;
    long got, tree, target = open_in_root(root, op->strings[0].bytes, O_PATH, 0);

    root_done(op->numbers[0], root);
    if (target == -ENOENT || target == -ENOTDIR)
        return 0;
    if (target < 0)
        return target;
    got = describe((int)target, "", 0, &found);
    if (got < 0)
        return got;
    tree = (found.stx_mode & S_IFMT) == S_IFDIR ? directory_mask(op) : null_mask();
    if (tree < 0)
        return tree;
    got = attach((int)tree, (int)target);
    close_fd(target);
    if (tree != mask_directory && tree != mask_file) /* the first one stays open, to be copied */
        close_fd(tree);
    return got;
}

static void forget_masks(void)
{
    if (mask_directory != 0)
        close_fd(mask_directory);
    if (mask_file != 0)
        close_fd(mask_file);
    mask_directory = mask_file = 0;
}

long op_readonly(const struct op *op)
{
    int root = root_fd(op->numbers[0]);
    long got, tree, target = open_in_root(root, op->strings[0].bytes, O_PATH, 0);

    root_done(op->numbers[0], root);
    if (target == -ENOENT || target == -ENOTDIR)
        return 0;
    if (target < 0)
        return target;
    tree = clone_tree((int)target, "", 1);
    if (tree < 0)
        return tree;
    got = mount_attributes((int)tree, 1, MNT_RDONLY, 0, 0);
    if (got == 0)
        got = attach((int)tree, (int)target);
    close_fd(tree);
    close_fd(target);
    return got;
}

/* -- the new root --------------------------------------------------------------------------------------------- */

long op_pivot(const struct op *op)
{
    int root = slot_fd(op->numbers[0]);
    long got, old;

    forget_masks();
    if (op->numbers[1] & PIVOT_CHROOT) {
        got = kcall(fchdir, root);
        if (got == 0)
            got = kcall(chroot, ".");
        return got == 0 ? kcall(chdir, "/") : got;
    }
    if (op->numbers[1] & PIVOT_MOVE) { /* a root on the initial ramfs cannot be pivoted away from */
        got = kcall(fchdir, root);
        if (got == 0)
            got = kcall(move_mount, root, "", AT_FDCWD, "/", FROM_EMPTY_PATH);
        if (got == 0)
            got = kcall(chroot, ".");
        return got == 0 ? kcall(chdir, "/") : got;
    }
    old = kcall(openat, AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (old < 0)
        return old;
    got = kcall(fchdir, root);
    /* With both names the same the old root ends up mounted over the new one, and no directory is needed for it. */
    if (got == 0)
        got = kcall(pivot_root, ".", ".");
    if (got == 0)
        got = kcall(fchdir, old);
    /* slave, or the detaching would propagate to the host */
    if (got == 0)
        got = kcall(mount, NULL, ".", NULL, MS_SLAVE_ | MS_REC_, NULL);
    if (got == 0)
        got = kcall(umount2, ".", UMOUNT_DETACH);
    close_fd(old);
    return got == 0 ? kcall(chdir, "/") : got;
}

/* The SELinux label of a file system that takes it from its root only (mqueue). */
long op_label(const struct op *op)
{
    int root = root_fd(op->numbers[0]);
    char again[64];
    long got, fd = open_in_root(root, op->strings[0].bytes, O_PATH, 0);

    root_done(op->numbers[0], root);
    if (fd < 0)
        return fd;
    reopen_path(again, sizeof again, (int)fd);
    got = kcall(setxattr, again, "security.selinux", op->strings[1].bytes, op->strings[1].length, 0);
    close_fd(fd);
    return got == -EPERM && op->numbers[1] & OPTIONAL ? 0 : got;
}
