# What a person types. CMake (CMakePresets.json) does the building; this file fetches what it needs first.
.DEFAULT_GOAL := help
.PHONY: help demo build dev deps test test-dev test-asan test-tsan test-clang check coverage schedules model planted bench bench-loader test-server clients browser bench-server soak contamination oracle cachesim fuzz differential install clean

JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
export CTEST_OUTPUT_ON_FAILURE = 1

help:  ## this list
	@echo 'graft: many LoRA adapters over one base model'; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo; echo 'after a build, the command is build/graft'

demo: build  ## the main job on a small model: three projects and the base answer in one batch
	@tools/demo.sh

build: deps  ## the command and the library (build/graft)
	@tools/build.sh release

dev: deps  ## the same with assertions, warnings as errors, and the tests (build/dev)
	@tools/build.sh dev

deps:
	@tools/install_deps.sh

test: deps check  ## every test: plain, then with ASan and UBSan, then the threaded ones with TSan
	@tools/test.sh dev
	@tools/test.sh asan
	@tools/test.sh tsan

test-dev: deps  ## the tests once, without sanitizers
	@tools/test.sh dev

test-asan: deps  ## the tests with AddressSanitizer and UBSan
	@tools/test.sh asan

test-tsan: deps  ## the threaded tests with ThreadSanitizer
	@tools/test.sh tsan

test-clang: deps  ## everything compiles without a warning with Clang too, and the tests pass
	@tools/test.sh clang

check:  ## layers (no include points up), public header as C and C++, scripts
	@tools/check.sh

coverage: deps  ## branches of the readers of files (src/format) and of verification that the tests take: at least 95 % (gcc)
	@tools/coverage.sh

schedules: dev  ## the loader under 1,000,000 seeded schedules for each scene (about 25 minutes)
	@GRAFT_SCHEDULES=$${GRAFT_SCHEDULES:-1000000} build/dev/tests/test_schedules

model:  ## the loader's model in Spin: every interleaving (two or three minutes, under 2 GB)
	@tools/model.sh

planted: dev  ## bugs planted in the loader, one at a time: each must make a test fail
	@python3 tests/planted/run.py

bench: build  ## speed: rows against grouped, base and libllama's own path; figures into bench/
	@bench/run.sh

bench-loader: build  ## the dynamic loader: leases, loading beside libllama's, eviction, 10,000 names, policies
	@bench/loader.sh

bench-server: build  ## speed through HTTP, beside llama-server's; builds that first (a quarter of an hour, once)
	@bench/server.sh

soak: dev  ## 64 streams over 8 adapters for five minutes, with 1,000 idle and many badly behaved connections beside them
	@GRAFT_BIN=build/dev/graft GRAFT_CONFIG=/dev/null GRAFT_TEST_MODEL=$$(tools/get_model.sh) python3 tests/soak/soak.py --projects

contamination: dev  ## 10,000 answers over shared prompts, replaced and evicted adapters: none may differ from its solo one
	@GRAFT_BIN=build/dev/graft GRAFT_CONFIG=/dev/null python3 tests/soak/contamination.py

test-server: dev  ## graft serve over real sockets
	@GRAFT_BIN=build/dev/graft GRAFT_CONFIG=/dev/null GRAFT_TEST_MODEL=$$(tools/get_model.sh) python3 tests/server/test_server.py

clients: dev  ## graft serve under the real clients (openai, ollama, litellm, langchain, llm, curl) and schemathesis; fetches them
	@tests/clients/run.sh

browser: dev  ## the dashboard in the system's Chromium; installs what it needs, or says what is missing
	@tests/browser/run.sh

oracle: dev  ## against PEFT itself: makes the golden logits anew with PyTorch and compares
	@tests/oracle/run.sh

cachesim: dev  ## the eviction policies against libCacheSim, eviction by eviction
	@tests/loader/run.sh

fuzz:  ## libFuzzer with ASan and UBSan: each target for FUZZ_SECONDS (60), FUZZ_TARGETS="gguf …" or all
	@tools/install_deps.sh
	@tools/install_deps.sh fuzz
	@tools/fuzz.sh $(FUZZ_TARGETS)

differential: dev  ## 1,000,000 mutated files through graft, the safetensors package and gguf-py (FILES=20000: the short form)
	@tests/differential/run.sh

install: build  ## cmake --install build (set DESTDIR or PREFIX)
	@cmake --install build $(if $(PREFIX),--prefix $(PREFIX))

clean:  ## remove build/ (downloads and libllama stay in the cache)
	rm -rf build
