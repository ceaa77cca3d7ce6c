// The checks on the CPU: all libraries that are linked in, and steps. `few` as the first argument: fewer cases, no steps. Other
// arguments: the libraries whose names begin so, without steps.
#include "cpu.h"
#undef device
#undef threadgroup
#undef thread
#undef constant
#undef INLINE
#include "step.h"

struct Cpu : Gpu {
    uint launches = 0;
    void* make(size_t bytes) override { return memset(malloc(bytes), 0xff, bytes); }
    void drop(void* buffer) override { free(buffer); }
    void copy(void* to, const void* from, size_t bytes, bool) override { memcpy(to, from, bytes); }
    void launch(const std::string& library, const std::string& kernel, Grid grid, uint threads, void** args) override {
        cpu_launch(library + "/" + kernel, {grid.x, grid.y, grid.z}, threads, args, ++launches);
    }
};

int main(int count, char** names) {
    Cpu gpu;
    few = count > 1 && !strcmp(names[1], "few");
    if (few) count--, names++;
    for (const std::string& library : cpu_libraries()) {
        bool wanted = count == 1;
        for (int i = 1; i < count; i++) wanted = wanted || library.compare(0, strlen(names[i]), names[i]) == 0;
        if (!wanted) continue;
        check_library(gpu, library);
        printf("%s: %d wrong\n", library.c_str(), failures), fflush(stdout);
    }
    if (count == 1 && !few) check_steps(gpu);  // launches of a step are ordered: no race is to be found between them
    printf("all: %d wrong\n", failures);
    return failures > 0;
}
