// Work shared out among the threads that PyTorch itself computes with.
#ifndef LUTHIER_PARALLEL_H
#define LUTHIER_PARALLEL_H

// Does the parts `first` to `last` (exclusive) of some work.
typedef void (*part_of_work)(long first, long last, const void *work);

// Calls `part` with all of 0 to `count`: on this thread alone if `threads` is 1 or nothing else is
// there to compute with, else in as many consecutive ranges.
void parallel_for(long count, int threads, part_of_work part, const void *work);

#endif
