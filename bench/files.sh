# Sourced by the benchmarks, with `here` set: the demo model, the same in Q8_0, and eight random adapters of rank 16, in the cache. What
# is missing is made.
. "$here/../tools/common.sh"
model=$("$here/../tools/get_model.sh")
adapters="$CACHE/bench-adapters-r16"
q8="$CACHE/bench-SmolLM2-135M-Instruct.Q8_0.gguf"
[ -f "$adapters/adapter-8/adapter_model.safetensors" ] ||
    python3 "$here/make_adapters.py" "$model" "$adapters" --count 8 --rank 16 >&2
[ -f "$q8" ] || "$here/../build/bench_quantize" "$model" "$q8" q8_0 2>/dev/null
