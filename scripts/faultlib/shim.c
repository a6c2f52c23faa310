/* Preloaded into a node by scripts/faults: makes its disk fail, lie or dawdle, its wall clock jump, and itself stop at a point.
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
 *   stop_at         the call of this kind in this place at which the process stops, from 1; 0 for none
 *   stop_kind       of which kind
 *   stop_place      in which place
 *   stop_behind     0: before it is done; 1: behind
 *   stop_us         0: the process is killed there; otherwise the thread stands still for so long
 *   stop_calls      calls of that kind in that place so far; counted here
 *   stopped         calls at which it stopped; counted here
 *
 * Kinds: 0 write, 1 sync, 2 create or truncate on opening, 3 rename or unlink or mkdir, 4 change of length, 5 read. Places: 0 the
 * log, 1 the state, 2 the snapshots, 3 all else in the directory, and the directory. The shim of
 * tests/cluster_process notes every call for a proof of durability; this one only counts, so that it can be told to fail at any.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
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
enum place { NOT_OURS = -1, LOG, STATE, SNAPSHOTS, ELSE };
enum side { BEFORE, BEHIND };

struct control {
    _Atomic long calls[KINDS];
    _Atomic long fail_at[KINDS];
    _Atomic long fail_errno, fail_forever, failed, syncs_off, sync_delay_us, write_delay_us, clock_offset_s, slowed, clock_reads;
    _Atomic long stop_at, stop_kind, stop_place, stop_behind, stop_us, stop_calls, stopped;
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

/* Which of our places a path lies in. */
static enum place place_of(const char *path) {
    static const char *const folders[] = {"/log", "/state", "/snapshots"};
    if (data_length == 0 || strncmp(path, data, data_length) != 0) return NOT_OURS;
    const char *below = path + data_length;
    if (*below != '/' && *below != 0) return NOT_OURS;
    for (int place = LOG; place <= SNAPSHOTS; place++) {
        size_t length = strlen(folders[place]);
        if (strncmp(below, folders[place], length) == 0 && (below[length] == '/' || below[length] == 0)) return place;
    }
    return ELSE;
}

static enum place place_of_file(int fd) {
    char link[64], path[PATH_MAX];
    int before = errno;
    if (data_length == 0) return NOT_OURS;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length <= 0) return NOT_OURS;
    path[length] = 0;
    return place_of(path);
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

/* Counts a call at which to stop; whether it is the one. */
static int is_the_point(enum kind kind, enum place place) {
    long at = control->stop_at;
    if (at == 0 || control->stop_kind != kind || control->stop_place != place) return 0;
    return atomic_fetch_add(&control->stop_calls, 1) + 1 == at;
}

static void stop(enum kind kind, enum side side) {
    static const char *const sides[] = {"before", "behind"};
    char line[64];
    int before = errno;
    if (control->stop_behind != side) return;
    int length = snprintf(line, sizeof line, "shim: stopped %s a %s\n", sides[side], kinds[kind]);
    if (length > 0) syscall(SYS_write, STDERR_FILENO, line, (size_t)length);
    atomic_fetch_add(&control->stopped, 1);
    long microseconds = control->stop_us;
    struct timespec time = {microseconds / 1000000, microseconds % 1000000 * 1000};
    if (microseconds == 0) syscall(SYS_kill, (int)syscall(SYS_getpid), SIGKILL);
    nanosleep(&time, NULL);
    errno = before;
}

/* A call that is ours, with what may stop before and behind it. */
#define DONE(kind, place, call)                          \
    int is_point = is_the_point(kind, place);            \
    if (is_point) stop(kind, BEFORE);                    \
    __typeof__(call) result = call;                      \
    if (is_point) stop(kind, BEHIND);                    \
    return result;

#define ON_FILE(kind, call)                                 \
    enum place place = place_of_file(fd);                   \
    if (place == NOT_OURS) return call;                     \
    if (kind == WRITE) dawdle(control->write_delay_us);     \
    if (fails(kind, fd, NULL)) return -1;                   \
    DONE(kind, place, call)

#define ON_SYNC(call)                       \
    enum place place = place_of_file(fd);   \
    if (place == NOT_OURS) return call;     \
    dawdle(control->sync_delay_us);         \
    if (fails(SYNC, fd, NULL)) return -1;   \
    if (control->syncs_off) return 0;       \
    DONE(SYNC, place, call)

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
        enum place place = flags & (O_CREAT | O_TRUNC) ? place_of(path) : NOT_OURS; \
        if (place == NOT_OURS) return REAL(name)(path, flags, mode);              \
        if (fails(CREATE, -1, path)) return -1;                                   \
        DONE(CREATE, place, REAL(name)(path, flags, mode))                        \
    }
OPEN(open)
OPEN(open64)

#define ON_NAME(path, call)                     \
    enum place place = place_of(path);          \
    if (place == NOT_OURS) return call;         \
    if (fails(NAME, -1, path)) return -1;       \
    DONE(NAME, place, call)

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
