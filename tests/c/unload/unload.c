/* A host of plugins: loads the library by its path, uses it, unloads it, and does so again. Its threads outlive that, and so must its code. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <metal_candle.h>

/* ISO C has no conversion from an object's address to a function's. */
static void find(void *library, const char *name, void *function) {
    void *address = dlsym(library, name);
    memcpy(function, &address, sizeof address);
    if (address == NULL) fprintf(stderr, "%s is missing\n", name);
}

static int answers(const char *path, size_t (**live_objects)(void)) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 0;
    }
    mc_status (*load)(const char *, const mc_model_options *, mc_model **, mc_error **);
    mc_status (*embed)(const mc_model *, const char *, size_t, const mc_embed_options *, float *, size_t, mc_error **);
    size_t (*dimension)(const mc_model *, const mc_embed_options *);
    void (*free_model)(mc_model *);
    find(library, "mc_model_load", &load);
    find(library, "mc_embed", &embed);
    find(library, "mc_model_embed_dim", &dimension);
    find(library, "mc_model_free", &free_model);
    find(library, "mc_live_objects", live_objects);
    if (load == NULL || embed == NULL || dimension == NULL || free_model == NULL || *live_objects == NULL) return 0;

    mc_model *model = NULL;
    float vector[4096];
    int ok = load("models/tiny-embed", NULL, &model, NULL) == MC_OK && dimension(model, NULL) <= 4096 &&
             embed(model, "a text", 6, NULL, vector, dimension(model, NULL), NULL) == MC_OK;
    free_model(model);
    return dlclose(library) == 0 && ok;
}

int main(int argc, char **argv) {
    size_t (*first)(void) = NULL, (*again)(void) = NULL;
    if (argc != 2 || !answers(argv[1], &first)) return 1;
    usleep(100000); /* for threads that now wait, or would run into nothing */
    if (first() != 0 || !answers(argv[1], &again)) return 1;
    if (first != again) fprintf(stderr, "the library was loaded to another place\n");
    return first == again ? 0 : 1;
}
