#include "parallel.h"

#include <stddef.h>

// OpenMP's functions, out of the library that PyTorch has loaded: a second one beside it would
// start threads of its own, which wait for each other's cores.
static void (*run_team)(void (*)(void *), void *, unsigned threads, unsigned flags);
static int (*this_thread)(void);
static int (*num_threads)(void);

void luthier_use_openmp(void *gomp_parallel, void *omp_get_thread_num, void *omp_get_num_threads) {
    run_team = (void (*)(void (*)(void *), void *, unsigned, unsigned))gomp_parallel;
    this_thread = (int (*)(void))omp_get_thread_num;
    num_threads = (int (*)(void))omp_get_num_threads;
}

struct share {
    long count;
    part_of_work part;
    const void *work;
};

static void run_share(void *argument) {
    const struct share *share = argument;
    long thread = this_thread(), threads = num_threads();
    long first = share->count * thread / threads, last = share->count * (thread + 1) / threads;
    if (first < last) share->part(first, last, share->work);
}

void parallel_for(long count, int threads, part_of_work part, const void *work) {
    if (threads > count) threads = (int)count;
    if (threads <= 1 || run_team == NULL) {
        if (count > 0) part(0, count, work);
        return;
    }
    struct share share = {count, part, work};
    run_team(run_share, &share, (unsigned)threads, 0);
}
