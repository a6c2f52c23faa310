/* Preloaded into a node: notes what it does to the files of its directory, and spoils it where a test asks for it.
 *
 * DISK_DATA names the node's directory, DISK_CONTROL another one. What is noted goes to the file "trace" there, one line
 * a call that succeeded, written before the caller hears of it:
 *
 *   start \t end \t operation \t inode \t bytes \t path \t other path, or the marks that were written
 *
 * with times in nanoseconds of CLOCK_MONOTONIC. Everything in the directory is noted but what is below "state", which can
 * be rebuilt, and also the directories above it. A mark is a number in what is written: "~mark:17~".
 *
 * Faults are files in DISK_CONTROL and last as long as the file is there:
 *
 *   sync-fails       syncs of log files fail with EIO
 *   sync-fakes       ... succeed without being done; noted as "fake"
 *   sync-delay       ... take longer by as many milliseconds as the file says
 *   sync-holds       ... wait until the file is gone
 *   snapshots-full   writes to snapshot files fail with ENOSPC
 *   room             writes to any file fail with ENOSPC once the process has written as many bytes as the file says
 *   ends-behind      the process is killed behind as many calls that are noted as the file says
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MARKS_BYTES 8192

static char data[PATH_MAX], control[PATH_MAX];
static size_t data_length;
static int trace = -1;
/* What this process has done so far: calls that were noted, bytes that were asked to be written. */
static long calls, asked;

__attribute__((constructor)) static void begin(void) {
    char path[PATH_MAX + 8];
    const char *from = getenv("DISK_DATA"), *to = getenv("DISK_CONTROL");
    if (from == NULL || to == NULL) return;
    snprintf(data, sizeof data, "%s", from);
    snprintf(control, sizeof control, "%s", to);
    snprintf(path, sizeof path, "%s/trace", control);
    trace = (int)syscall(SYS_openat, AT_FDCWD, path, O_CREAT | O_APPEND | O_WRONLY | O_CLOEXEC, 0600);
    data_length = trace < 0 ? 0 : strlen(data);
}

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* Whether a path lies in a folder of the node's directory. */
static int in(const char *path, const char *folder) {
    size_t length = strlen(folder);
    return data_length > 0 && strncmp(path, data, data_length) == 0 &&
           strncmp(path + data_length, folder, length) == 0 && path[data_length + length] == '/';
}

static int noted(const char *path) {
    if (data_length == 0) return 0;
    if (in(path, "")) return !in(path, "/state") && strcmp(path + data_length, "/state") != 0;
    size_t length = strlen(path);
    return length <= data_length && strncmp(path, data, length) == 0 && (data[length] == '/' || data[length] == 0);
}

/* The path behind a descriptor; 0 if it is none of ours. */
static int path_of(int fd, char *path, unsigned long long *inode) {
    struct stat status;
    char link[64];
    int before = errno;
    *inode = 0;
    if (data_length == 0 || fstat(fd, &status) != 0 || !(S_ISREG(status.st_mode) || S_ISDIR(status.st_mode))) {
        errno = before;
        return 0;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    errno = before;
    if (length <= 0) return 0;
    path[length] = 0;
    *inode = status.st_ino;
    return noted(path);
}

static long fault(const char *name);

static void note(long long start, const char *what, unsigned long long inode, long long bytes, const char *path,
                 const char *other) {
    char line[2 * PATH_MAX + MARKS_BYTES];
    int before = errno;
    int length = snprintf(line, sizeof line, "%lld\t%lld\t%s\t%llu\t%lld\t%s\t%s\n", start, now(), what, inode, bytes,
                          path, other);
    /* One call, so that lines of several threads never mix. */
    if (length > 0 && (size_t)length < sizeof line) syscall(SYS_write, trace, line, (size_t)length);
    long last = fault("ends-behind");
    if (last > 0 && __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST) >= last) kill(getpid(), SIGKILL);
    errno = before;
}

/* The number in a fault's file, 0 if there is none in it; -1 if there is no such fault. */
static long fault(const char *name) {
    char path[PATH_MAX + 32], text[32] = "";
    int before = errno;
    snprintf(path, sizeof path, "%s/%s", control, name);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    errno = before;
    if (fd < 0) return -1;
    long length = syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    errno = before;
    return length > 0 ? atol(text) : 0;
}

static void pause_for(long milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static int sync_with(int (*real)(int), int fd) {
    char path[PATH_MAX];
    unsigned long long inode;
    if (!path_of(fd, path, &inode)) return real(fd);
    long long start = now();
    if (in(path, "/log")) {
        if (fault("sync-fails") >= 0) {
            errno = EIO;
            return -1;
        }
        if (fault("sync-fakes") >= 0) {
            note(start, "fake", inode, 0, path, "");
            return 0;
        }
        long delay = fault("sync-delay");
        if (delay > 0) pause_for(delay);
        while (fault("sync-holds") >= 0) pause_for(1);
    }
    int result = real(fd);
    if (result == 0) note(start, "sync", inode, 0, path, "");
    return result;
}

int fdatasync(int fd) { return sync_with(REAL(fdatasync), fd); }
int fsync(int fd) { return sync_with(REAL(fsync), fd); }

/* Adds the marks in some bytes to a list. */
static void find_marks(const char *bytes, size_t length, char *marks) {
    static const char sign[] = "~mark:";
    const char *end = bytes + length, *at = bytes;
    size_t used = strlen(marks);
    while ((at = memmem(at, (size_t)(end - at), sign, sizeof sign - 1)) != NULL) {
        at += sizeof sign - 1;
        size_t digits = 0;
        while (at + digits < end && digits < 20 && at[digits] >= '0' && at[digits] <= '9') digits++;
        /* Cut off at its end: it is in the next piece. */
        if (at + digits >= end || at[digits] != '~' || used + digits + 2 > MARKS_BYTES) continue;
        if (used > 0) marks[used++] = ',';
        memcpy(marks + used, at, digits);
        used += digits;
        marks[used] = 0;
    }
}

struct target {
    char path[PATH_MAX];
    unsigned long long inode;
    long long start;
    int noted;
};

/* Before a write; whether it may be done. */
static int may_write(struct target *target, int fd, const struct iovec *pieces, int count) {
    target->noted = path_of(fd, target->path, &target->inode);
    if (!target->noted) return 1;
    target->start = now();
    int full = in(target->path, "/snapshots") && fault("snapshots-full") >= 0;
    long room = fault("room"), length = 0;
    for (int at = 0; room >= 0 && at < count; at++) length += (long)pieces[at].iov_len;
    full |= room >= 0 && __atomic_add_fetch(&asked, length, __ATOMIC_SEQ_CST) > room;
    if (!full) return 1;
    errno = ENOSPC;
    return 0;
}

static void note_write(const struct target *target, const struct iovec *pieces, int count, ssize_t written) {
    char marks[MARKS_BYTES] = "";
    if (!target->noted || written < 0) return;
    size_t left = (size_t)written;
    for (int at = 0; at < count && left > 0 && in(target->path, "/log"); at++) {
        size_t length = pieces[at].iov_len < left ? pieces[at].iov_len : left;
        find_marks(pieces[at].iov_base, length, marks);
        left -= length;
    }
    note(target->start, "write", target->inode, written, target->path, marks);
}

#define WRITE(call, pieces, count)                    \
    struct target target;                             \
    if (!may_write(&target, fd, pieces, count)) return -1; \
    ssize_t written = call;                           \
    note_write(&target, pieces, count, written);      \
    return written;

ssize_t write(int fd, const void *bytes, size_t length) {
    struct iovec piece = {(void *)bytes, length};
    WRITE(REAL(write)(fd, bytes, length), &piece, 1)
}
ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    struct iovec piece = {(void *)bytes, length};
    WRITE(REAL(pwrite64)(fd, bytes, length, offset), &piece, 1)
}
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    struct iovec piece = {(void *)bytes, length};
    WRITE(REAL(pwrite)(fd, bytes, length, offset), &piece, 1)
}
ssize_t writev(int fd, const struct iovec *pieces, int count) { WRITE(REAL(writev)(fd, pieces, count), pieces, count) }

static int exists(const char *path) {
    int before = errno, found = access(path, F_OK) == 0;
    errno = before;
    return found;
}

#define OPEN(name)                                                         \
    int name(const char *path, int flags, ...) {                           \
        va_list rest;                                                      \
        va_start(rest, flags);                                             \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                      \
        int creates = (flags & O_CREAT) && noted(path) && !exists(path);   \
        long long start = now();                                           \
        int fd = REAL(name)(path, flags, mode);                            \
        if (fd >= 0 && creates) note(start, "create", 0, 0, path, "");     \
        return fd;                                                         \
    }
OPEN(open)
OPEN(open64)

int mkdir(const char *path, mode_t mode) {
    long long start = now();
    int result = REAL(mkdir)(path, mode);
    if (result == 0 && noted(path)) note(start, "create", 0, 0, path, "");
    return result;
}

int unlink(const char *path) {
    long long start = now();
    int result = REAL(unlink)(path);
    if (result == 0 && noted(path)) note(start, "unlink", 0, 0, path, "");
    return result;
}

int rename(const char *from, const char *to) {
    long long start = now();
    int result = REAL(rename)(from, to);
    if (result == 0 && (noted(from) || noted(to))) note(start, "rename", 0, 0, from, to);
    return result;
}
