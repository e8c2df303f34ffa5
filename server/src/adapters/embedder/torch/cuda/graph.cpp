// Calls of libtorch's `at::cuda::CUDAGraph`, whose exceptions must not reach Rust. The functions are
// given as pointers: libtorch's CUDA half is loaded at run time, and only where there is a GPU.
//
// All give 0, or 1 with what went wrong in `message`.

#include <cstdint>
#include <cstring>
#include <exception>
#include <utility>

namespace {

using Pool = std::pair<unsigned long long, unsigned long long>;

template <typename Call>
int guarded(char *message, std::size_t size, Call call) {
    const char *what = "an unknown exception";
    try {
        call();
        return 0;
    } catch (const std::exception &error) {
        std::strncpy(message, error.what(), size - 1);
    } catch (...) {
        std::strncpy(message, what, size - 1);
    }
    message[size - 1] = '\0';
    return 1;
}

} // namespace

extern "C" {

// A method without arguments.
int sextant_graph_call(void (*method)(void *), void *graph, char *message, std::size_t size) {
    return guarded(message, size, [=] { method(graph); });
}

int sextant_graph_new(void (*constructor)(void *, bool), void *place, char *message, std::size_t size) {
    return guarded(message, size, [=] { constructor(place, false); });
}

int sextant_graph_pool(Pool (*make)(), std::uint64_t *pool, char *message, std::size_t size) {
    return guarded(message, size, [=] {
        const Pool made = make();
        pool[0] = made.first;
        pool[1] = made.second;
    });
}

int sextant_graph_begin(void (*begin)(void *, Pool, int), void *graph, const std::uint64_t *pool, int mode,
                        char *message, std::size_t size) {
    return guarded(message, size, [=] { begin(graph, Pool(pool[0], pool[1]), mode); });
}

} // extern "C"
