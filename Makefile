# etref: build, test, install. `make help` lists the targets. To be set on the command line:
#   PRECISION=f32   CC=clang   CFLAGS='-O2 -g'   BUILD=folder   PREFIX=/usr/local   DESTDIR=
# The bits of a golden rest on -ffp-contract=off and -fno-fast-math, and on nothing that may be set
# here: `make determinism` shows it. When the flags change, everything is compiled again.

ifeq ($(origin CC),default)
CC := gcc
endif
GCC       ?= gcc
CFLAGS    ?= -O3 -g
PREFIX    ?= /usr/local
PRECISION ?= f64
BUILD     ?= build$(if $(filter f32,$(PRECISION)),-f32)
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += --no-print-directory -j$(shell nproc)
endif

# OpenBLAS comes in several builds. Debian's OpenMP build is the one that is used where it is
# installed, whatever else is: the library's loops and its products then share their threads. The
# run path makes the loader choose the same.
OPENMP_BLAS := $(patsubst %/pkgconfig,%,$(firstword $(wildcard /usr/lib/*/openblas-openmp/pkgconfig)))
PKG         := PKG_CONFIG_PATH="$$PKG_CONFIG_PATH:$(OPENMP_BLAS)/pkgconfig" pkg-config
PKG_CFLAGS  := $(shell $(PKG) --cflags openblas jansson check 2>/dev/null)
PKG_LIBS    := $(shell $(PKG) --libs openblas jansson 2>/dev/null)
CHECK_LIBS  := $(shell $(PKG) --libs check 2>/dev/null)

# What a distribution asks of every program: canaries, checked library calls (they need an optimiser,
# and the sanitizers check the same calls better), relocations that are read-only once the program
# runs, a position-independent program. None of it touches arithmetic. Of the library only the names
# that include/etref declares are visible.
optimised = $(filter-out -O0,$(filter -O%,$(CFLAGS)))
sanitized = $(findstring -fsanitize,$(CFLAGS))
HARDEN    = -fvisibility=hidden -fstack-protector-strong \
            $(if $(sanitized),,$(if $(optimised),-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2))
HARDEN_LINK = -Wl,-z,relro,-z,now

# -fno-trapping-math: nothing asks for exception flags, and no value depends on it; without it gcc
# makes no vectors of a loop that compares. clang at -O1 makes none of any, and would say so of each (pass-failed).
DEFINES := -D_GNU_SOURCE $(if $(filter f32,$(PRECISION)),-DETREF_F32)
COMPILE  = $(CC) -std=c11 $(CFLAGS) -ffp-contract=off -fno-fast-math -fno-trapping-math -fopenmp \
           -fPIC -fno-semantic-interposition $(HARDEN) -Wall -Wextra -Wpedantic -Wshadow \
           $(if $(findstring clang,$(CC)),-Wno-pass-failed) $(DEFINES) -I. -Iinclude $(PKG_CFLAGS) $(CPPFLAGS)
# The witness needs __float128, which clang's headers lack.
WITNESS  = $(GCC) -std=gnu11 -O2 -g -fPIE -ffp-contract=off -fno-fast-math -Wall -Wextra -Wshadow -I.
LINK     = $(CC) $(CFLAGS) -fopenmp $(HARDEN_LINK) $(LDFLAGS)
PROGRAM  = $(LINK) -pie
LIBS     = $(PKG_LIBS) $(OPENMP_BLAS:%=-Wl,-rpath,%) -lm
LDFLAGS_test_alloc := -Wl,--wrap=calloc
LDFLAGS_test_gpt := -Wl,--wrap=calloc
WATCHED  := -Wl,--wrap=et_matmul,--wrap=cblas_sgemm # three plain loops: tests/fuzz/verdicts.h
LDFLAGS_test_random_verdicts := $(WATCHED)
LDFLAGS_fuzz_verify := $(WATCHED)
LDFLAGS_test_whole := -Wl,--wrap=openat,--wrap=linkat
LDFLAGS_early_tsan.so := -Wl,-z,initfirst

VERSION := $(shell sed -n 's/^.define ETREF_VERSION *"\(.*\)"/\1/p' include/etref/version.h)
SONAME  := libetref.so.$(firstword $(subst ., ,$(VERSION)))
objects  = $(patsubst %,$(BUILD)/%.o,$(1:.c=))
LIB     := $(call objects,$(wildcard ref/*/*.c ref/*/*.S))
STUDY   := $(call objects,$(wildcard tools/leakage-study/*.c tools/leakage-study/*.S))
TOOL    := $(call objects,$(wildcard tools/etref/*.c tools/etref/*.S)) $(STUDY)
QUAD    := $(call objects,$(wildcard tests/witness/*.c))
EXPLAIN := $(call objects,$(wildcard ref/diagnose/*.c)) $(BUILD)/ref/verdict/choose_profile.o
KERNELS := $(call objects,$(wildcard tests/candidates/*.c))
CAMPAIGN := $(call objects,$(wildcard tests/campaign/*.c))
# Libraries as kernels: a program for each that is installed; asked for where they are wanted alone.
CXX_COMPILE = $(CXX) -std=c++17 $(CFLAGS) -ffp-contract=off -Wall -Wextra -Wshadow -I. -Iinclude $(PKG_CFLAGS)
ifneq ($(filter libraries,$(MAKECMDGOALS)),)
EIGEN    := $(shell $(PKG) --cflags eigen3 2>/dev/null)
included  = $(shell echo '\#include <$(1)>' | $(CXX) $(2) -std=c++17 -E -x c++ - >/dev/null 2>&1 && echo yes)
LIBRARIES := $(addprefix $(BUILD)/tests/libraries/,habits \
    $(if $(call included,cblas.h,$(PKG_CFLAGS)),kernel-openblas) \
    $(if $(call included,Eigen/Core,$(EIGEN)),kernel-eigen) \
    $(if $(call included,oneapi/dnnl/dnnl.hpp),kernel-onednn))
endif
# A sanitizer has an allocator and address space of its own, so nothing can be withheld from it;
# clang's OpenMP crashes, or waits for ever, where it finds no memory.
SPARED  := $(if $(findstring -fsanitize=,$(CFLAGS))$(findstring clang,$(CC)),tests/test_failures.c)
CHECKS  := $(patsubst %.c,$(BUILD)/%,$(filter-out $(SPARED),$(wildcard tests/test_*.c)))
PRELOADS := $(patsubst %.c,$(BUILD)/%.so,$(wildcard tests/preload/*.c))
FUZZERS := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/fuzz/fuzz_*.c))
# Those that take longest come first, so that no processor waits for the last of them.
NAMES   := $(CHECKS:$(BUILD)/tests/%=%)
LONGEST := $(filter $(NAMES),test_campaign test_explain test_random_verdicts test_choice test_alloc test_same_verdict \
             test_candidates test_environment test_judgement test_faults)
TESTS   ?= $(filter-out $(EXCEPT),$(LONGEST) $(filter-out $(LONGEST),$(NAMES)))

# What the tool sets for itself (main.c) other programs are told; but no kernels under Valgrind, which knows few processors.
export GOMP_SPINCOUNT ?= 10000
BEST_BLAS = OPENBLAS_CORETYPE="$${OPENBLAS_CORETYPE-$$($(BUILD)/etref --version | sed -n 's/^kernels //p')}"

## all: library (static and shared) and tool, in build/; with PRECISION=f32 in build-f32/
all: $(BUILD)/libetref.a $(BUILD)/libetref.so $(BUILD)/etref $(BUILD)/etref.pc
## check: install what is missing, build, run every test (some: TESTS='test_base test_moe'; all but some: EXCEPT=)
check: deps
	@$(MAKE) run-tests
	@$(if $(filter command,$(origin TESTS))$(EXCEPT)$(sanitized)$(WRAP),,tools/check-python $(BUILD))
run-tests: all $(TESTS:%=$(BUILD)/tests/%) $(PRELOADS)
	@$(if $(WRAP),,$(BEST_BLAS)) ETREF_TOOL=$(BUILD)/etref ETREF_DATA=data CK_DEFAULT_TIMEOUT=900 \
	    tools/run-tests $(BUILD)/$(or $(LOG),check).log $(TESTS:%=$(BUILD)/tests/%)
deps:
	@tools/install-deps build xml $(if $(findstring clang,$(CC)),clang) $(GROUP)
## asan: the tests under AddressSanitizer and UndefinedBehaviorSanitizer together
SANE = -O1 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all -fsanitize=
asan ubsan:
	@LSAN_OPTIONS=suppressions=$(CURDIR)/tools/leaks-of-others:print_suppressions=0 \
	    $(MAKE) check BUILD=$(BUILD)-asan CFLAGS='$(SANE)address,undefined'
## tsan: the tests under ThreadSanitizer, by clang, whose OpenMP tells it what waits for what
tsan:
	@TSAN_OPTIONS=ignore_noninstrumented_modules=1 \
	    $(MAKE) check CC=clang BUILD=$(BUILD)-tsan CFLAGS='$(SANE)thread'
## threads: threads of a Python judge by one golden under ThreadSanitizer
threads:
	@tools/install-deps build clang
	@$(MAKE) -s preloaded CC=clang BUILD=$(BUILD)-tsan CFLAGS='$(SANE)thread'
	@tools/check-threads $(BUILD)-tsan
preloaded: $(BUILD)/libetref.so $(PRELOADS)
## valgrind: the tests under Memcheck (slow; TESTS= chooses)
valgrind:
	@WRAP='valgrind -q --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite' \
	    $(MAKE) check GROUP=valgrind LOG=valgrind
## fuzz: libFuzzer on every reader and on verdicts, FUZZ_SECONDS=60 in all
fuzz:
	@tools/install-deps build clang
	@$(MAKE) fuzzers CC=clang BUILD=$(BUILD)-fuzz CFLAGS='$(SANE)fuzzer-no-link,address,undefined'
	@tools/run-fuzz $(BUILD)-fuzz $(or $(FUZZ_SECONDS),60)
fuzzers: $(FUZZERS)
## goldens: make every golden again and compare with data/ (UPDATE=1: replace those in data/)
goldens: all
	@tools/regenerate-goldens $(BUILD) $(if $(UPDATE),update)
	@tools/leakage-values $(BUILD) $(if $(UPDATE),update)
## determinism: threads x compilers x optimisation against data/SHA256SUMS (SAMPLE=1: two)
determinism:
	+@tools/check-determinism $(BUILD) $(if $(SAMPLE),sample)
## bench: time the layer at the paper's d12 size
bench: all
	$(BUILD)/etref bench
## demo: from a bare machine to four verified layers and two judged kernels in demo/
demo: deps
	@echo "building ..."; $(MAKE) -s all $(BUILD)/forget
	@$(MAKE) -s all PRECISION=f32 BUILD=$(BUILD)-f32
	@tools/demo $(BUILD) demo
## campaign: the verifier verified, up to two hours (less: PART=honest SEEDS=3); goes on where it stopped
campaign: $(BUILD)/tests/campaign/campaign $(BUILD)/etref
	@mkdir -p $(if $(SEEDS)$(ONLY),$(BUILD),data)/campaign
	@$(BEST_BLAS) OMP_NUM_THREADS=1 $< --journal $(BUILD)/campaign $(PART:%=--part %) $(SEEDS:%=--seeds %) \
	    $(ONLY:%=--only '%') --out $(if $(SEEDS)$(ONLY),$(BUILD),data)/campaign \
	    --explaining "$$(cat $(EXPLAIN) | sha256sum | cut -c1-16)" --of "$$(cat \
	    $(filter-out $(EXPLAIN),$(LIB)) $(KERNELS) data/cases/* \
	    $(filter-out %/campaign.o $(BUILD)/tests/campaign/report%,$(CAMPAIGN)) | sha256sum | cut -c1-16)"
## reproduce: the paper in miniature, up to 8 hours on 2 cores (less: SET=hour, QUICK=1, PILOT=1, ONLY=et-0); goes on
MINIATURE = $(or $(SET),$(if $(PILOT),pilot,$(if $(QUICK),quick,full)))
reproduce:
	@tools/install-deps build miniature
	+@$(MAKE) -s all PRECISION=f32 BUILD=$(BUILD)-f32
	@tools/miniature/reproduce --build $(BUILD)-f32 --set $(MINIATURE) $(ONLY:%=--only '%') \
	    $(if $(UPDATE),--out data/miniature)
## redraw: figures and page of data/miniature from its CSV files
redraw:
	@tools/miniature/reproduce --page data/miniature
## libraries: PyTorch, oneDNN, OpenBLAS and Eigen, those that are installed, as honest kernels (more: HABITS=1)
libraries: $(BUILD)/etref $(LIBRARIES)
	@tests/libraries/run --build $(BUILD) --self-test >$(BUILD)/libraries.log || { cat $(BUILD)/libraries.log; exit 1; }
	@tests/libraries/run --build $(BUILD) $(if $(HABITS),--habits) $(if $(CSV),--csv $(CSV))
## lint: order of rooms; clang-tidy, cppcheck and shellcheck, those that are installed
lint:
	@tools/lint $(DEFINES) -I. -Iinclude $(PKG_CFLAGS)
## format: clang-format over every source
format:
	clang-format -i $(shell git ls-files '*.[ch]')
## install: to PREFIX (and DESTDIR): library, headers, etref.pc, CMake package, tool, man page, completion, etref.py
to = $(DESTDIR)$(PREFIX)
# Where the python3 of PATH looks for modules below PREFIX, if it does. There the types of a single file count only as
# stubs beside it (PEP 561).
SITE = $(shell tools/python/site '$(PREFIX)')
FILLED = sed 's|@VERSION@|$(VERSION)|; s|@DEFINES@|$(filter -DETREF%,$(DEFINES))|'
install: all
	install -d $(to)/lib/pkgconfig $(to)/bin $(to)/include/etref $(to)/share/man/man1
	install -m 644 $(BUILD)/libetref.a $(to)/lib
	install -m 755 $(BUILD)/libetref.so.$(VERSION) $(to)/lib
	ln -sf libetref.so.$(VERSION) $(to)/lib/$(SONAME)
	ln -sf $(SONAME) $(to)/lib/libetref.so
	install -m 644 include/etref/*.h $(to)/include/etref
	sed 's|^prefix=.*|prefix=$(PREFIX)|' $(BUILD)/etref.pc > $(to)/lib/pkgconfig/etref.pc
	install -m 755 $(BUILD)/etref $(to)/bin
	install -m 644 tools/etref/etref.1 $(to)/share/man/man1
	install -d $(to)/share/bash-completion/completions
	install -m 644 tools/etref/completion.bash $(to)/share/bash-completion/completions/etref
	install -d $(to)/lib/cmake/etref $(if $(SITE),$(DESTDIR)$(SITE)/etref-$(VERSION).dist-info)
	$(FILLED) tools/cmake/etrefConfig.cmake.in > $(to)/lib/cmake/etref/etrefConfig.cmake
	$(FILLED) tools/cmake/etrefConfigVersion.cmake.in > $(to)/lib/cmake/etref/etrefConfigVersion.cmake
	$(if $(SITE),install -m 644 tools/python/etref.py tools/python/etref_pytest.py $(DESTDIR)$(SITE))
	$(if $(SITE),install -D -m 644 tools/python/etref.py $(DESTDIR)$(SITE)/etref-stubs/__init__.pyi)
	$(if $(SITE),$(FILLED) tools/python/METADATA.in > $(DESTDIR)$(SITE)/etref-$(VERSION).dist-info/METADATA)
	$(if $(SITE),install -m 644 tools/python/entry_points.txt $(DESTDIR)$(SITE)/etref-$(VERSION).dist-info)
## uninstall: take it away again
uninstall:
	rm -rf $(to)/include/etref $(to)/lib/libetref.* $(to)/lib/pkgconfig/etref.pc $(to)/bin/etref \
	    $(to)/share/man/man1/etref.1 $(to)/lib/cmake/etref $(to)/share/bash-completion/completions/etref
	$(if $(SITE),cd $(DESTDIR)$(SITE) && rm -rf etref.py etref_pytest.py etref-stubs etref-$(VERSION).dist-info __pycache__/etref*.pyc)
## clean: remove everything that was made
clean:
	rm -rf build build-* demo
## help: this list
help:
	@sed -n 's/^## \([a-z]*\): /  \1\t/p' Makefile | expand -t 16

$(BUILD)/libetref.a: $(LIB)
$(BUILD)/libwitness.a: $(QUAD)
$(BUILD)/libcandidates.a: $(KERNELS)
$(BUILD)/libcampaign.a: $(filter-out %/campaign.o,$(CAMPAIGN))
%.a:
	@rm -f $@
	ar rcs $@ $^
$(BUILD)/libetref.so: $(LIB)
	$(LINK) -shared -Wl,-soname,$(SONAME) -o $@.$(VERSION) $^ $(LIBS)
	ln -sf libetref.so.$(VERSION) $(BUILD)/$(SONAME)
	ln -sf $(SONAME) $@
$(BUILD)/etref: $(TOOL) $(BUILD)/libetref.a
	$(PROGRAM) -o $@ $^ $(LIBS)
$(BUILD)/tests/campaign/campaign: $(CAMPAIGN) $(BUILD)/libcandidates.a $(BUILD)/libetref.a
	$(PROGRAM) -o $@ $^ $(LIBS)
$(BUILD)/tests/libraries/habits: $(BUILD)/tests/libraries/habits.o $(BUILD)/libcampaign.a $(BUILD)/libcandidates.a \
        $(BUILD)/libetref.a
	$(PROGRAM) -o $@ $^ $(LIBS)
LIBS_kernel-onednn := -ldnnl
$(BUILD)/tests/libraries/kernel-%: tests/libraries/%.cpp $(BUILD)/libetref.a $(BUILD)/flags
	@mkdir -p $(@D)
	$(CXX_COMPILE) $(EIGEN:-I%=-isystem %) -MMD -MP -MF $@.d -o $@ $< $(BUILD)/libetref.a -fopenmp $(LIBS) $(LIBS_$(@F))
$(BUILD)/forget: $(call objects,tools/examples/forget.c) $(BUILD)/libetref.a
	$(PROGRAM) -o $@ $^ $(LIBS)
# What computes is in the libraries; the tests themselves compile in a third of the time.
$(CHECKS:=.o): private CFLAGS += -O1
$(CHECKS): %: %.o $(BUILD)/tools/leakage-study/audit.o $(BUILD)/libcampaign.a $(BUILD)/libcandidates.a $(BUILD)/libwitness.a $(BUILD)/libetref.a
	$(PROGRAM) $(LDFLAGS_$(@F)) -o $@ $^ $(CHECK_LIBS) $(LIBS) -lquadmath
# Of a process of its own: not the sanitizers' business.
$(PRELOADS): $(BUILD)/%.so: %.c $(wildcard tests/preload/*.h) $(BUILD)/flags
	@mkdir -p $(@D)
	$(CC) -std=c11 -O1 -g -fPIC -Wall -Wextra $(DEFINES) -I. -shared $(LDFLAGS_$(@F)) -o $@ $< -ldl
$(FUZZERS): %: %.o $(BUILD)/libetref.a
	$(PROGRAM) -fsanitize=fuzzer $(LDFLAGS_$(@F)) -o $@ $^ $(LIBS)
$(BUILD)/etref.pc: tools/etref.pc.in $(BUILD)/flags
	$(FILLED) $< > $@
$(BUILD)/tests/witness/%.o: tests/witness/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(WITNESS) -MMD -MP -c -o $@ $<
$(BUILD)/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(COMPILE) -MMD -MP -c -o $@ $<
$(BUILD)/%.S.o: %.S $(BUILD)/flags $(wildcard data/cases/*.json tools/leakage-study/figures/*.gp tools/etref/help/*.txt)
	@mkdir -p $(@D)
	$(CC) -c -o $@ $<
# The flags in force; written only when they are not those of the last build.
$(BUILD)/flags: force
	@tools/install-deps --check build && mkdir -p $(@D)
	@echo '$(COMPILE)' | cmp -s - $@ || echo '$(COMPILE)' > $@
force:

-include $(LIB:.o=.d) $(TOOL:.o=.d) $(QUAD:.o=.d) $(KERNELS:.o=.d) $(CAMPAIGN:.o=.d) $(CHECKS:=.d) $(FUZZERS:=.d) \
    $(LIBRARIES:=.d)
.SECONDARY:
.PHONY: all check run-tests deps asan ubsan tsan threads preloaded valgrind fuzz fuzzers goldens determinism bench demo \
        campaign reproduce redraw libraries lint format install uninstall clean help force
