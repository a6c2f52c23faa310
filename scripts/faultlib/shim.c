/* Preloaded into a node by scripts/faults: makes its disk fail, lie or dawdle, and its wall clock jump.
 *
 * FAULTS_DATA names the node's directory; only files in it are touched. FAULTS_CONTROL names a file of the numbers below,
 * 8 bytes each, which is mapped and may be changed while the node runs (scripts/faultlib/shim.py):
 *
 *   calls[6]        calls of each kind so far; counted here
 *   fail_at[6]      the call of this kind that fails, from 1; 0 for none
 *   fail_errno      what it fails with
 *   fail_forever    0: that call alone; 1: that one and all later ones of its kind
 *   failed          calls that failed; counted here
 *   syncs_off       syncs are said to be done, and are not
 *   sync_delay_us   a sync takes so much longer
 *   write_delay_us  a write, too
 *   clock_offset_s  what is added to the wall clock
 *   slowed          calls that took longer; counted here
 *   clock_reads     reads of the wall clock; counted here
 *
 * Kinds: 0 write, 1 sync, 2 create or truncate on opening, 3 rename or unlink or mkdir, 4 change of length, 5 read. The shim of
 * tests/cluster_process notes every call for a proof of durability; this one only counts, so that it can be told to fail at any.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { WRITE, SYNC, CREATE, NAME, LENGTH, READ, KINDS };

struct control {
    _Atomic long calls[KINDS];
    _Atomic long fail_at[KINDS];
    _Atomic long fail_errno, fail_forever, failed, syncs_off, sync_delay_us, write_delay_us, clock_offset_s, slowed, clock_reads;
};

static struct control none, *control = &none;
static char data[PATH_MAX];
static size_t data_length;

/* Looked up once: clocks are read all the time. */
#define REAL(name)                                                       \
    ({                                                                   \
        static __typeof__(&name) found;                                  \
        if (found == NULL) found = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
        found;                                                           \
    })

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("FAULTS_DATA"), *file = getenv("FAULTS_CONTROL");
    if (folder == NULL || file == NULL) return;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (mapped == MAP_FAILED) return;
    snprintf(data, sizeof data, "%s", folder);
    data_length = strlen(data);
    control = mapped;
}

static int ours(const char *path) {
    return data_length > 0 && strncmp(path, data, data_length) == 0 && (path[data_length] == '/' || path[data_length] == 0);
}

static int is_ours(int fd) {
    char link[64], path[PATH_MAX];
    int before = errno;
    if (data_length == 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length <= 0) return 0;
    path[length] = 0;
    return ours(path);
}

static const char *const kinds[KINDS] = {"write", "sync", "create", "name", "length", "read"};

/* Counts a call; whether it fails. The first one that does is told in the node's log, with the file if it is known. */
static int fails(enum kind kind, int fd, const char *path) {
    long number = atomic_fetch_add(&control->calls[kind], 1) + 1;
    long at = control->fail_at[kind];
    char link[64], found[PATH_MAX] = "", line[PATH_MAX + 64];
    if (at == 0 || number < at || (number > at && !control->fail_forever)) return 0;
    if (atomic_fetch_add(&control->failed, 1) == 0) {
        if (path == NULL) {
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            if (readlink(link, found, sizeof found - 1) > 0) path = found;
        }
        int length = snprintf(line, sizeof line, "shim: failed: %s: %s\n", kinds[kind], path == NULL ? "" : path);
        if (length > 0) syscall(SYS_write, STDERR_FILENO, line, (size_t)length);
    }
    errno = (int)control->fail_errno;
    return 1;
}

static void dawdle(long microseconds) {
    struct timespec time = {microseconds / 1000000, microseconds % 1000000 * 1000};
    if (microseconds <= 0) return;
    nanosleep(&time, NULL);
    atomic_fetch_add(&control->slowed, 1);
}

#define ON_FILE(kind, call)                          \
    if (is_ours(fd)) {                               \
        if (kind == WRITE) dawdle(control->write_delay_us); \
        if (fails(kind, fd, NULL)) return -1;                \
    }                                                \
    return call;

#define ON_SYNC(call)                    \
    if (is_ours(fd)) {                   \
        dawdle(control->sync_delay_us);  \
        if (fails(SYNC, fd, NULL)) return -1;\
        if (control->syncs_off) return 0; \
    }                                    \
    return call;

ssize_t write(int fd, const void *bytes, size_t length) { ON_FILE(WRITE, REAL(write)(fd, bytes, length)) }
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) { ON_FILE(WRITE, REAL(pwrite)(fd, bytes, length, at)) }
ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) {
    ON_FILE(WRITE, REAL(pwrite64)(fd, bytes, length, at))
}
ssize_t writev(int fd, const struct iovec *pieces, int count) { ON_FILE(WRITE, REAL(writev)(fd, pieces, count)) }
ssize_t read(int fd, void *bytes, size_t length) { ON_FILE(READ, REAL(read)(fd, bytes, length)) }
ssize_t pread(int fd, void *bytes, size_t length, off_t at) { ON_FILE(READ, REAL(pread)(fd, bytes, length, at)) }
ssize_t pread64(int fd, void *bytes, size_t length, off64_t at) { ON_FILE(READ, REAL(pread64)(fd, bytes, length, at)) }
int ftruncate(int fd, off_t length) { ON_FILE(LENGTH, REAL(ftruncate)(fd, length)) }
int ftruncate64(int fd, off64_t length) { ON_FILE(LENGTH, REAL(ftruncate64)(fd, length)) }
int fallocate(int fd, int mode, off_t at, off_t length) { ON_FILE(LENGTH, REAL(fallocate)(fd, mode, at, length)) }
int fsync(int fd) { ON_SYNC(REAL(fsync)(fd)) }
int fdatasync(int fd) { ON_SYNC(REAL(fdatasync)(fd)) }
int sync_file_range(int fd, off64_t at, off64_t length, unsigned flags) {
    ON_SYNC(REAL(sync_file_range)(fd, at, length, flags))
}

#define OPEN(name)                                                                \
    int name(const char *path, int flags, ...) {                                  \
        va_list rest;                                                             \
        va_start(rest, flags);                                                    \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;   \
        va_end(rest);                                                             \
        if (flags & (O_CREAT | O_TRUNC) && ours(path) && fails(CREATE, -1, path)) return -1; \
        return REAL(name)(path, flags, mode);                                     \
    }
OPEN(open)
OPEN(open64)

#define ON_NAME(path, call)                         \
    if (ours(path) && fails(NAME, -1, path)) return -1; \
    return call;

int rename(const char *from, const char *to) { ON_NAME(to, REAL(rename)(from, to)) }
int unlink(const char *path) { ON_NAME(path, REAL(unlink)(path)) }
int mkdir(const char *path, mode_t mode) { ON_NAME(path, REAL(mkdir)(path, mode)) }

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = REAL(clock_gettime)(clock, time);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        time->tv_sec += control->clock_offset_s;
        atomic_fetch_add(&control->clock_reads, 1);
    }
    return result;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out != NULL) *out = now.tv_sec;
    return now.tv_sec;
}
