/* version.h: which etref this is. */
#ifndef ETREF_VERSION_H
#define ETREF_VERSION_H

#define ETREF_VERSION "0.1.0"

#endif
