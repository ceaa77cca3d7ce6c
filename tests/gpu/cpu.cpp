// Runs kernels on the CPU, see cpu.h. Compiled without sanitizers: they watch the kernels, not this.
#include <setjmp.h>
#include <ucontext.h>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <vector>
#include "cpu.h"
#ifdef CHECK_RACES
#include <sanitizer/tsan_interface.h>
#define TSAN(...) __VA_ARGS__
#else
#define TSAN(...)
#endif
#ifdef CHECK_MEMORY
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define ASAN(...) __VA_ARGS__
#else
#define ASAN(...)
#endif

// A stack, and where its fiber is to go on.
struct Course {
    std::unique_ptr<char[]> stack;
    ucontext_t context;
    jmp_buf point;
    bool begun = false;
};

struct Fiber {
    Course* course;
    const char* waits = nullptr;  // null: may run
    int line = 0;
    uint met[2] = {}, shared = 0;  // barriers and operations of the group and of the simdgroup so far; threadgroup arrays so far
    bool done = false;
    void* sanitizer = nullptr;
};
#ifdef CHECK_MEMORY
static constexpr size_t STACK = 256 << 10;  // AddressSanitizer surrounds each variable, and nothing is optimised there
#else
static constexpr size_t STACK = 64 << 10;
#endif

struct Group {
    std::vector<Fiber> fibers;
    std::vector<std::unique_ptr<char[]>> shared;
    size_t shared_bytes = 0;
    std::vector<uint> values;  // [parity][thread]
    std::vector<char> sync;    // addresses that stand for barriers, [unit][parity]
    uint3 at, groups;
    uint self = 0;
    Course home;
    const std::function<void()>* body;
    void* sanitizer = nullptr;
    const void* home_stack = nullptr;
    size_t home_size = 0;
};
static Group* now;

CpuPlace cpu_place() { return {now->at, now->groups, now->self, now->self / 32, now->self % 32, uint(now->fibers.size() / 32)}; }

void* cpu_shared(size_t bytes) {
    uint i = now->fibers[now->self].shared++;
    if (i == now->shared.size()) {  // the first to come makes it, for all
        if ((now->shared_bytes += bytes) > MOST_SHARED) { printf("%zu bytes of threadgroup memory\n", now->shared_bytes); exit(1); }
        now->shared.emplace_back(new char[bytes]);
        memset(now->shared[i].get(), 0xff, bytes);
        TSAN(__tsan_release(now->shared[i].get());)
    }
    TSAN(__tsan_acquire(now->shared[i].get());)
    return now->shared[i].get();
}

// Goes on elsewhere. With a call of the system each time, as sanitizers know it; without them that would take most of the time.
static void swap(Course& from, Course& to) {
#if defined(CHECK_MEMORY) || defined(CHECK_RACES)
    swapcontext(&from.context, &to.context);
#else
    if (_setjmp(from.point)) return;
    from.begun = true;
    if (to.begun) _longjmp(to.point, 1);
    setcontext(&to.context);
#endif
}

static void leave(bool last) {  // from a fiber to the scheduler
    Fiber& f = now->fibers[now->self];
    ASAN(__sanitizer_start_switch_fiber(last ? nullptr : &f.sanitizer, now->home_stack, now->home_size);)
    TSAN(__tsan_switch_to_fiber(now->sanitizer, __tsan_switch_to_fiber_no_sync);)
    swap(*f.course, now->home);
    ASAN(__sanitizer_finish_switch_fiber(f.sanitizer, nullptr, nullptr);)
}

// Waits until all threads of the unit, a simdgroup or the threadgroup, are at the same line.
static void meet(const char* what, bool simd, bool orders_memory, int line) {
    Group& g = *now;
    Fiber& f = g.fibers[g.self];
    char* sync = &g.sync[2 * (simd ? 1 + g.self / 32 : 0) + (f.met[simd]++ & 1)];
    if (orders_memory) { TSAN(__tsan_release(sync);) }
    f.waits = what, f.line = line;
    uint first = simd ? g.self / 32 * 32 : 0, last = simd ? first + 32 : g.fibers.size();
    uint i = g.self;  // they run one after another: the next one is likely to be missing
    do i = i + 1 == last ? first : i + 1;
    while (i != g.self && g.fibers[i].waits == what && g.fibers[i].line == line);
    if (i == g.self) for (uint i = first; i < last; i++) g.fibers[i].waits = nullptr;
    else leave(false);
    if (orders_memory) { TSAN(__tsan_acquire(sync);) }
    (void)sync;
}
static const char *const BARRIER = "a barrier", *const SIMD_VALUES = "a simdgroup's values";
void cpu_barrier(int line) { meet(BARRIER, false, true, line); }
void cpu_gather(uint value, uint* all, int line) {
    Group& g = *now;
    uint* values = &g.values[(g.fibers[g.self].met[1] & 1) * g.fibers.size() + g.self / 32 * 32];
    values[g.self % 32] = value;
    meet(SIMD_VALUES, true, false, line);
    for (uint i = 0; i < 32; i++) all[i] = values[i];
}

struct Kernel { uint threads; std::function<void(void**)> call; };
static std::map<std::string, Kernel>& kernels() { static std::map<std::string, Kernel> all; return all; }
void cpu_register(const std::string& name, uint threads, std::function<void(void**)> call) { kernels()[name] = {threads, call}; }
std::vector<std::string> cpu_libraries() {
    std::vector<std::string> libraries;
    for (auto& kernel : kernels()) {
        const std::string library = kernel.first.substr(0, kernel.first.find('/'));
        if (libraries.empty() || libraries.back() != library) libraries.push_back(library);
    }
    return libraries;
}

static void fiber_main() {
    ASAN(__sanitizer_finish_switch_fiber(nullptr, &now->home_stack, &now->home_size);)
    for (;;) {  // a thread of a later group goes on behind an earlier one's
        (*now->body)();
        now->fibers[now->self].done = true;
        TSAN(__tsan_release(&now->groups);)
        leave(true);
    }
}

static void run_group(Group& g, const std::string& name, uint& seed) {
    std::vector<uint> ready;
    for (;;) {
        ready.clear();
        bool done = true;
        for (uint i = 0; i < g.fibers.size(); i++) {
            done = done && g.fibers[i].done;
            if (!g.fibers[i].done && !g.fibers[i].waits) ready.push_back(i);
        }
        if (done) return;
        if (ready.empty()) {
            printf("%s: threads wait in vain:", name.c_str());
            for (uint i = 0; i < g.fibers.size(); i++) {
                const Fiber& f = g.fibers[i];
                if (i == 0 || f.line != g.fibers[i - 1].line || f.done != g.fibers[i - 1].done)
                    printf(" from %u %s, line %d;", i, f.done ? "ended" : f.waits, f.line);
            }
            puts(""), exit(1);
        }
        seed = seed * 1664525 + 1013904223;
        for (uint k = 0, from = seed >> 8; k < ready.size(); k++) {
            Fiber& f = g.fibers[g.self = ready[(from + k) % ready.size()]];
            ASAN(__sanitizer_start_switch_fiber(&g.sanitizer, f.course->stack.get(), STACK);)
            TSAN(__tsan_switch_to_fiber(f.sanitizer, __tsan_switch_to_fiber_no_sync);)
            swap(g.home, *f.course);
            ASAN(__sanitizer_finish_switch_fiber(g.sanitizer, nullptr, nullptr);)
        }
    }
}

void cpu_launch(const std::string& name, uint3 grid, uint threads, void** args, uint seed) {
    auto it = kernels().find(name);
    if (it == kernels().end() || threads > it->second.threads || threads % 32) { printf("no %s of %u threads\n", name.c_str(), threads); exit(1); }
    std::function<void()> body = [&] { it->second.call(args); };
    // Of races between groups nothing may hide: with a look at them no memory is used again, nor a stack.
#ifdef CHECK_RACES
    std::deque<Course> courses;
    const bool again = false;
#else
    static std::deque<Course> courses;
    const bool again = true;
#endif
    std::vector<std::unique_ptr<Group>> ran;
    size_t used = 0;
    for (uint z = 0; z < grid.z; z++) for (uint y = 0; y < grid.y; y++) for (uint x = 0; x < grid.x; x++) {
        if (again) ran.clear(), used = 0;
        ran.emplace_back(now = new Group);
        Group& g = *now;
        g.at = {x, y, z}, g.groups = grid, g.body = &body;
        g.fibers.resize(threads), g.values.resize(2 * threads), g.sync.resize(2 + threads / 16);
        TSAN(g.sanitizer = __tsan_get_current_fiber();)
        for (Fiber& f : g.fibers) {
            if (used == courses.size()) courses.emplace_back();
            Course& course = *(f.course = &courses[used++]);
            TSAN(f.sanitizer = __tsan_create_fiber(0);)
            if (course.stack) {
                ASAN(__asan_unpoison_memory_region(course.stack.get(), STACK);)
            } else {
                course.stack.reset(new char[STACK]);
            }
            if (course.begun) continue;
            getcontext(&course.context);
            course.context.uc_stack.ss_sp = course.stack.get(), course.context.uc_stack.ss_size = STACK;
            makecontext(&course.context, fiber_main, 0);
        }
        run_group(g, name, seed);
    }
    TSAN(for (auto& g : ran) { __tsan_acquire(&g->groups); for (Fiber& f : g->fibers) __tsan_destroy_fiber(f.sanitizer); })
}

// For the Rust tests: dimensions of the grid, and the rest as cpu_launch has it.
extern "C" int gpu_launch(const char* name, const uint* grid, uint threads, void** args, uint seed) {
    cpu_launch(name, {grid[0], grid[1], grid[2]}, threads, args, seed);
    return 0;
}
