// Loaded before a program (LD_PRELOAD): once it is armed, the n-th call that changes files fails, that one or all from there on, as on a
// disk that is full or read-only, or ends the process, as whoever kills it or a phone without power does.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_int is_armed, is_lasting, how;
static atomic_size_t first, seen, failed;

// `error`: what errno says; 0 ends the process.
void fail_writes(size_t number, int error, int lasting) {
    first = number;
    how = error;
    is_lasting = lasting;
    seen = failed = 0;
    is_armed = 1;
}

// How many have failed; none fails after this.
size_t failed_writes(void) {
    is_armed = 0;
    return failed;
}

static int fails(void) {
    if (!is_armed) return 0;
    size_t number = ++seen;
    if (number != first && !(is_lasting && number > first)) return 0;
    if (how == 0) kill(getpid(), SIGKILL);
    failed++;
    errno = how;
    return 1;
}

#define FAILING(type, name, parameters, arguments)          \
    type name parameters {                                  \
        type(*real) parameters;                             \
        *(void **)&real = dlsym(RTLD_NEXT, #name);          \
        return fails() ? (type)-1 : real arguments;         \
    }

FAILING(ssize_t, write, (int file, const void *bytes, size_t len), (file, bytes, len))
FAILING(ssize_t, pwrite, (int file, const void *bytes, size_t len, off_t at), (file, bytes, len, at))
FAILING(ssize_t, pwrite64, (int file, const void *bytes, size_t len, off64_t at), (file, bytes, len, at))
FAILING(ssize_t, writev, (int file, const struct iovec *parts, int count), (file, parts, count))
FAILING(ssize_t, sendfile, (int to, int from, off_t *at, size_t len), (to, from, at, len))
FAILING(ssize_t, sendfile64, (int to, int from, off64_t *at, size_t len), (to, from, at, len))
FAILING(ssize_t, copy_file_range, (int from, off64_t *a, int to, off64_t *b, size_t len, unsigned flags), (from, a, to, b, len, flags))
FAILING(int, ftruncate, (int file, off_t len), (file, len))
FAILING(int, ftruncate64, (int file, off64_t len), (file, len))
FAILING(int, fsync, (int file), (file))
FAILING(int, fdatasync, (int file), (file))
FAILING(int, rename, (const char *from, const char *to), (from, to))
FAILING(int, mkdir, (const char *path, mode_t mode), (path, mode))

#define OPENING(name)                                               \
    int name(const char *path, int flags, ...) {                    \
        int (*real)(const char *, int, ...);                        \
        va_list rest;                                               \
        va_start(rest, flags);                                      \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;   \
        va_end(rest);                                               \
        if ((flags & (O_CREAT | O_WRONLY | O_RDWR)) && fails()) return -1; \
        *(void **)&real = dlsym(RTLD_NEXT, #name);                  \
        return real(path, flags, mode);                             \
    }

OPENING(open)
OPENING(open64)
