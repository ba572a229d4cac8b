/* etref.h: everything. The reading order of the mathematics is in ref/README.md.
 *
 * What a header declares between its two visibility pragmas is what libetref.so exports: it is
 * compiled with all other names hidden.
 *
 * Results do not depend on the caller's floating-point environment (rounding direction, flush to
 * zero, traps): a function that computes sets the default one for its own thread and OpenMP's
 * workers, and gives each its own back when it returns. The exceptions are functions of single
 * numbers, which stand in inner loops: elementary.h, dtype.h, and et_place_... of profile.h.
 *
 * Processes and threads. The library computes with OpenMP, whose threads do not live on in a child
 * process: after a function has used threads, a child made by fork must not call the library before
 * it calls exec, or it may wait for ever. Make children first, or let them exec.
 *
 * What the library itself cannot have is an et_status. OpenMP and OpenBLAS know no such thing: where
 * threads cannot be started OpenMP ends the process (GNU's with exit status 1), and where a buffer
 * of 128 MiB for each thread cannot be mapped OpenBLAS tries for ever, already while it is loaded. A
 * program that runs under narrow limits (ulimit -u, -v; OMP_STACKSIZE) sets OMP_NUM_THREADS to what
 * they allow. A thread that calls the library has at least 256 KiB of stack.
 */
#ifndef ETREF_ETREF_H
#define ETREF_ETREF_H

#include "etref/status.h"
#include "etref/real.h"
#include "etref/elementary.h"
#include "etref/random.h"
#include "etref/matmul.h"
#include "etref/profile.h"
#include "etref/rounding.h"
#include "etref/ffn.h"
#include "etref/gate.h"
#include "etref/assignment.h"
#include "etref/parallel.h"
#include "etref/moe.h"
#include "etref/routing.h"
#include "etref/rmsnorm.h"
#include "etref/rope.h"
#include "etref/attention.h"
#include "etref/embedding.h"
#include "etref/cross_entropy.h"
#include "etref/optimizer.h"
#include "etref/gpt.h"
#include "etref/corpus.h"
#include "etref/array.h"
#include "etref/case.h"
#include "etref/suite.h"
#include "etref/step.h"
#include "etref/bars.h"
#include "etref/safetensors.h"
#include "etref/checkpoint.h"
#include "etref/capture.h"
#include "etref/bundle.h"
#include "etref/candidate.h"
#include "etref/verify.h"
#include "etref/report.h"
#include "etref/golden.h"
#include "etref/leakage.h"
#include "etref/version.h"

#endif
