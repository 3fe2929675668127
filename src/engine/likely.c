/* Probabilities from logits. Pure. */
#include "likely.h"

#include <math.h>

double gr_log_sum(const float *logits, int n) {
    float most = -INFINITY;
    for (int i = 0; i < n; i++) {
        most = logits[i] > most ? logits[i] : most;
    }
    double sum = 0;
    for (int i = 0; i < n; i++) {
        sum += exp((double)logits[i] - most);
    }
    return most + log(sum);
}

void gr_likeliest(const float *logits, int n, llama_token *out, int k) {
    int found = 0;
    for (int t = 0; t < n; t++) {
        int at = found;
        while (at > 0 && logits[t] > logits[out[at - 1]]) {
            at--;
        }
        if (at >= k) {
            continue;
        }
        found = found < k ? found + 1 : k;
        for (int i = found - 1; i > at; i--) {
            out[i] = out[i - 1];
        }
        out[at] = t;
    }
}
