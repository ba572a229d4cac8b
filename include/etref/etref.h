/* etref.h: everything. The reading order of the mathematics is in README.md. */
#ifndef ETREF_ETREF_H
#define ETREF_ETREF_H

#include "etref/status.h"
#include "etref/real.h"
#include "etref/elementary.h"
#include "etref/random.h"
#include "etref/matmul.h"
#include "etref/engine.h"
#include "etref/profile.h"
#include "etref/ffn.h"
#include "etref/gate.h"
#include "etref/assignment.h"
#include "etref/moe.h"
#include "etref/routing.h"
#include "etref/case.h"
#include "etref/step.h"
#include "etref/safetensors.h"
#include "etref/bundle.h"
#include "etref/candidate.h"
#include "etref/verify.h"
#include "etref/leakage.h"
#include "etref/version.h"

#endif
