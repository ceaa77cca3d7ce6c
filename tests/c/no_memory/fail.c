// Loaded before a program (LD_PRELOAD): the n-th allocation of at least so many bytes fails once it is armed, that one or all from
// there on, as they do in a process that has reached its limit.
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static atomic_int is_armed, is_lasting;
static atomic_size_t least, first, seen, failed;

void fail_allocations(size_t number, size_t bytes, int lasting) {
    first = number;
    least = bytes;
    is_lasting = lasting;
    seen = failed = 0;
    is_armed = 1;
}

// How many have failed; none fails after this.
size_t failed_allocations(void) {
    is_armed = 0;
    return failed;
}

static int fails(size_t size) {
    if (!is_armed || size < least) return 0;
    size_t number = ++seen;
    if (number != first && !(is_lasting && number > first)) return 0;
    failed++;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size) { return fails(size) ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return fails(count * size) ? NULL : __libc_calloc(count, size); }
void *realloc(void *old, size_t size) { return size > 0 && fails(size) ? NULL : __libc_realloc(old, size); }
void *memalign(size_t alignment, size_t size) { return fails(size) ? NULL : __libc_memalign(alignment, size); }
void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
int posix_memalign(void **out, size_t alignment, size_t size) {
    void *pointer = memalign(alignment, size);
    if (pointer == NULL) return ENOMEM;
    *out = pointer;
    return 0;
}
