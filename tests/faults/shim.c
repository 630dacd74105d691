// SPDX-License-Identifier: Apache-2.0
// Preloaded library: the k-th matching call fails, raises a signal, moves a path or sets the clock.
//
// The plan is in memory that the tester shares (shim_arm).
// Disarmed, each function only forwards. Calls count when their path is below `prefix`; those on the
// standard output and error count as CALL_STDIO.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum {
    CALL_WRITE, CALL_READ, CALL_OPEN, CALL_RENAME, CALL_FSYNC, CALL_MKDIR, CALL_UNLINK, CALL_CLOSE,
    CALL_MMAP, CALL_STDIO, CALL_CHMOD, CALL_LIST, CALL_CLOCK, CALLS
};
enum { ACT_NONE, ACT_ERRNO, ACT_SIGNAL, ACT_MOVE, ACT_CLOCK, ACT_BUDGET };

// Mirrored by Plan in shim.py.
struct plan {
    long armed, call, action, value, k, from_then_on, fired, done;
    long seen[16];
    char prefix[1024], fired_path[1024], from[1024], to[1024];
};

static struct plan own, *plan = &own;

void shim_arm(struct plan *shared) { plan = shared; }

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int real_rename(const char *from, const char *to) {
    REAL(rename);
    return real(from, to);
}

// Count a call; returns an errno if it has to fail.
static int hit(int call, const char *path, long bytes) {
    if (!plan->armed) return 0;
    if (call != CALL_STDIO && call != CALL_CLOCK) {
        size_t n = strlen(plan->prefix);
        if (!path || strncmp(path, plan->prefix, n)) return 0;
    }
    long seen = __atomic_add_fetch(&plan->seen[call], 1, __ATOMIC_SEQ_CST);
    if (call != plan->call || !plan->action) return 0;
    if (plan->action == ACT_BUDGET) {
        if (__atomic_add_fetch(&plan->done, bytes, __ATOMIC_SEQ_CST) <= plan->k) return 0;
    } else if (plan->from_then_on ? seen < plan->k : seen != plan->k) {
        return 0;
    }
    if (!__atomic_fetch_add(&plan->fired, 1, __ATOMIC_SEQ_CST) && path)
        strncpy(plan->fired_path, path, sizeof plan->fired_path - 1);
    switch (plan->action) {
    case ACT_ERRNO: return (int)plan->value;
    case ACT_BUDGET: return ENOSPC;
    case ACT_SIGNAL: kill(getpid(), (int)plan->value); return 0;
    case ACT_MOVE: real_rename(plan->from, plan->to); return 0;
    }
    return 0;
}

static int hit_fd(int call, int fd, long bytes) {
    if (!plan->armed) return 0;
    int kept = errno, error;
    char link[64], path[1024];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    path[n < 0 ? 0 : n] = 0;
    if (call == CALL_WRITE && (fd == 1 || fd == 2)) error = hit(CALL_STDIO, path, bytes);
    else error = n < 0 ? 0 : hit(call, path, bytes);
    errno = kept;
    return error;
}

static int hit_at(int call, int dir, const char *path) {
    if (!plan->armed || !path) return 0;
    char full[4096], link[64];
    ssize_t n = 0;
    if (path[0] == '/') return hit(call, path, 0);
    int kept = errno;
    if (dir == AT_FDCWD) n = getcwd(full, 2048) ? (ssize_t)strlen(full) : -1;
    else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        n = readlink(link, full, 2048);
    }
    errno = kept;
    if (n < 0) return 0;
    snprintf(full + n, sizeof full - n, "/%s", path);
    return hit(call, full, 0);
}

#define FAIL_IF(test, result) \
    do { int e_ = (test); if (e_) { errno = e_; return result; } } while (0)

ssize_t write(int fd, const void *b, size_t n) {
    REAL(write);
    FAIL_IF(hit_fd(CALL_WRITE, fd, (long)n), -1);
    return real(fd, b, n);
}
ssize_t pwrite(int fd, const void *b, size_t n, off_t at) {
    REAL(pwrite);
    FAIL_IF(hit_fd(CALL_WRITE, fd, (long)n), -1);
    return real(fd, b, n, at);
}
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t at) {
    REAL(pwrite64);
    FAIL_IF(hit_fd(CALL_WRITE, fd, (long)n), -1);
    return real(fd, b, n, at);
}
ssize_t read(int fd, void *b, size_t n) {
    REAL(read);
    FAIL_IF(hit_fd(CALL_READ, fd, 0), -1);
    return real(fd, b, n);
}
ssize_t pread(int fd, void *b, size_t n, off_t at) {
    REAL(pread);
    FAIL_IF(hit_fd(CALL_READ, fd, 0), -1);
    return real(fd, b, n, at);
}
ssize_t pread64(int fd, void *b, size_t n, off64_t at) {
    REAL(pread64);
    FAIL_IF(hit_fd(CALL_READ, fd, 0), -1);
    return real(fd, b, n, at);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        FAIL_IF(hit_at(CALL_OPEN, AT_FDCWD, path), -1); \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
    int name(int dir, const char *path, int flags, ...) { \
        REAL(name); \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        FAIL_IF(hit_at(CALL_OPEN, dir, path), -1); \
        return real(dir, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

FILE *fopen(const char *path, const char *mode) {
    REAL(fopen);
    FAIL_IF(hit_at(CALL_OPEN, AT_FDCWD, path), NULL);
    return real(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    REAL(fopen64);
    FAIL_IF(hit_at(CALL_OPEN, AT_FDCWD, path), NULL);
    return real(path, mode);
}
int rename(const char *from, const char *to) {
    FAIL_IF(hit_at(CALL_RENAME, AT_FDCWD, to), -1);
    return real_rename(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(renameat);
    FAIL_IF(hit_at(CALL_RENAME, b, to), -1);
    return real(a, from, b, to);
}
int fsync(int fd) {
    REAL(fsync);
    FAIL_IF(hit_fd(CALL_FSYNC, fd, 0), -1);
    return real(fd);
}
int fdatasync(int fd) {
    REAL(fdatasync);
    FAIL_IF(hit_fd(CALL_FSYNC, fd, 0), -1);
    return real(fd);
}
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    FAIL_IF(hit_at(CALL_MKDIR, AT_FDCWD, path), -1);
    return real(path, mode);
}
int unlink(const char *path) {
    REAL(unlink);
    FAIL_IF(hit_at(CALL_UNLINK, AT_FDCWD, path), -1);
    return real(path);
}
int unlinkat(int dir, const char *path, int flags) {
    REAL(unlinkat);
    FAIL_IF(hit_at(CALL_UNLINK, dir, path), -1);
    return real(dir, path, flags);
}
int rmdir(const char *path) {
    REAL(rmdir);
    FAIL_IF(hit_at(CALL_UNLINK, AT_FDCWD, path), -1);
    return real(path);
}
int chmod(const char *path, mode_t mode) {
    REAL(chmod);
    FAIL_IF(hit_at(CALL_CHMOD, AT_FDCWD, path), -1);
    return real(path, mode);
}
int close(int fd) {
    REAL(close);
    int writes = plan->armed && (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY;
    int error = writes ? hit_fd(CALL_CLOSE, fd, 0) : 0;
    int result = real(fd);  // as Linux: closed, even on error
    FAIL_IF(error, -1);
    return result;
}
void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset) {
    REAL(mmap);
    if (fd >= 0) FAIL_IF(hit_fd(CALL_MMAP, fd, 0), MAP_FAILED);
    return real(at, n, prot, flags, fd, offset);
}
void *mmap64(void *at, size_t n, int prot, int flags, int fd, off64_t offset) {
    REAL(mmap64);
    if (fd >= 0) FAIL_IF(hit_fd(CALL_MMAP, fd, 0), MAP_FAILED);
    return real(at, n, prot, flags, fd, offset);
}

typedef struct __dirstream DIR;
DIR *opendir(const char *path) {
    REAL(opendir);
    FAIL_IF(hit_at(CALL_LIST, AT_FDCWD, path), NULL);
    return real(path);
}

// The wall clock is `value` seconds off from the k-th reading on.
static long shift(void) {
    if (!plan->armed) return 0;
    hit(CALL_CLOCK, NULL, 0);
    return plan->action == ACT_CLOCK && plan->fired ? plan->value : 0;
}
int clock_gettime(clockid_t id, struct timespec *t) {
    REAL(clock_gettime);
    int result = real(id, t);
    if (!result && id == CLOCK_REALTIME) t->tv_sec += shift();
    return result;
}
int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    REAL(gettimeofday);
    int result = real(t, zone);
    if (!result) t->tv_sec += shift();
    return result;
}
time_t time(time_t *t) {
    REAL(time);
    time_t now = real(NULL) + shift();
    if (t) *t = now;
    return now;
}
