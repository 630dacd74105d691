// SPDX-License-Identifier: Apache-2.0
// The procedure of masking.py, create_samples_reference, draw by draw: same seed, same bytes out.
//
// The generator is the Mersenne Twister MT19937 of Matsumoto and Nishimura (1998), seeded with
// init_by_array, with doubles, bounded integers and shuffles drawn as CPython's random.Random does.
// A text is tokens end to end with sentence offsets, so a run of sentences is a run of tokens.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { N = 624, M = 397 };

typedef struct {
    uint32_t state[N], words[N];  // words: the state tempered, ready to be drawn
    int at;
} Random;

static void seed_word(Random *r, uint32_t s) {
    r->state[0] = s;
    for (uint32_t i = 1; i < N; i++)
        r->state[i] = 1812433253u * (r->state[i - 1] ^ (r->state[i - 1] >> 30)) + i;
    r->at = N;
}

static void seed(Random *r, uint64_t value) {
    const uint32_t key[2] = {(uint32_t)value, (uint32_t)(value >> 32)};
    const int length = key[1] ? 2 : 1;
    uint32_t *s = r->state;
    seed_word(r, 19650218u);
    int i = 1, j = 0;
    for (int k = N; k; k--) {
        s[i] = (s[i] ^ ((s[i - 1] ^ (s[i - 1] >> 30)) * 1664525u)) + key[j] + (uint32_t)j;
        if (++i >= N) s[0] = s[N - 1], i = 1;
        if (++j >= length) j = 0;
    }
    for (int k = N - 1; k; k--) {
        s[i] = (s[i] ^ ((s[i - 1] ^ (s[i - 1] >> 30)) * 1566083941u)) - (uint32_t)i;
        if (++i >= N) s[0] = s[N - 1], i = 1;
    }
    s[0] = 0x80000000u;
}

static uint32_t twist(uint32_t high, uint32_t low) {
    const uint32_t y = (high & 0x80000000u) | (low & 0x7fffffffu);
    return (y >> 1) ^ ((0u - (low & 1u)) & 0x9908b0dfu);
}

static void refill(Random *r) {
    uint32_t *s = r->state;
    int i = 0;
    for (; i < N - M; i++) s[i] = s[i + M] ^ twist(s[i], s[i + 1]);
    for (; i < N - 1; i++) s[i] = s[i + M - N] ^ twist(s[i], s[i + 1]);
    s[N - 1] = s[M - 1] ^ twist(s[N - 1], s[0]);
    for (i = 0; i < N; i++) {
        uint32_t y = s[i];
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c5680u;
        y ^= (y << 15) & 0xefc60000u;
        r->words[i] = y ^ (y >> 18);
    }
    r->at = 0;
}

static inline uint32_t next_word(Random *r) {
    if (r->at >= N) refill(r);
    return r->words[r->at++];
}

static double uniform(Random *r) {  // random.random(): 53 bits
    const uint32_t a = next_word(r) >> 5, b = next_word(r) >> 6;
    return (a * 67108864.0 + b) * (1.0 / 9007199254740992.0);
}

static uint32_t below(Random *r, uint32_t n) {  // random._randbelow(n), n >= 1: by rejection
    const int shift = __builtin_clz(n);  // n has 32 - shift bits
    uint32_t value = next_word(r) >> shift;
    while (value >= n) value = next_word(r) >> shift;
    return value;
}

// random.shuffle: from the end, each element with one at or below it. A rejected draw swaps the
// element with itself and does not move on, so that no branch has to be guessed.
static void shuffle(Random *r, uint32_t *x, uint32_t n) {
    for (uint32_t i = n ? n - 1 : 0; i >= 1;) {
        const uint32_t drawn = next_word(r) >> __builtin_clz(i + 1);
        const uint32_t good = drawn <= i;
        const uint32_t j = good ? drawn : i, kept = x[i];
        x[i] = x[j];
        x[j] = kept;
        i -= good;
    }
}

typedef struct {
    const int32_t *ids;
    const int64_t *sentences, *documents;
    int64_t num_documents;
} Text;

typedef struct {
    double masked_lm_prob, short_seq_prob;
    uint64_t seed;
    int32_t max_seq_length, max_predictions, dupe_factor, cls, sep, mask, vocab_size;
} Settings;

typedef struct {
    int64_t num_samples, num_tokens, num_masked;
} Sizes;

typedef struct {
    int64_t token, masked;  // where it starts in the flat arrays
    int32_t length, count;
    uint16_t split;
    int8_t random_next;
} Instance;

typedef struct {
    int32_t *tokens, *labels;
    uint16_t *positions;
    Instance *instances;
    uint32_t *order;
    Sizes size, room;
} Result;

typedef struct {
    const Text *text;
    const Settings *set;
    Random random;
    uint32_t *documents;   // shuffled order
    uint32_t *candidates;  // scratch of one sample
    int32_t *original;     // scratch of one sample: the id masked at a position, or -1
    Result *out;
} Work;

static int grow(void *array, int64_t *room, int64_t needed, size_t item) {
    if (needed <= *room) return 1;
    const int64_t larger = needed + needed / 2 + 4096;
    void *moved = realloc(*(void **)array, (size_t)larger * item);
    if (!moved) return 0;
    *(void **)array = moved;
    *room = larger;
    return 1;
}

static int make_room(Result *out, int32_t length, int32_t masked) {
    int64_t masked_room = out->room.num_masked;
    return grow(&out->tokens, &out->room.num_tokens, out->size.num_tokens + length, 4) &&
           grow(&out->labels, &masked_room, out->size.num_masked + masked, 4) &&
           grow(&out->positions, &out->room.num_masked, out->size.num_masked + masked, 2) &&
           grow(&out->instances, &out->room.num_samples, out->size.num_samples + 1,
                sizeof(Instance));
}

static int32_t mask(Work *w, int32_t *tokens, int32_t length, int32_t second_sep) {
    const Settings *set = w->set;
    Result *out = w->out;
    uint32_t n = 0;
    for (int32_t i = 1; i < length - 1; i++)
        if (i != second_sep) w->candidates[n++] = (uint32_t)i;
    shuffle(&w->random, w->candidates, n);
    long wanted = lrint(length * set->masked_lm_prob);  // half to even, as Python's round
    if (wanted < 1) wanted = 1;
    if (wanted > set->max_predictions) wanted = set->max_predictions;
    if (wanted > (long)n) wanted = (long)n;
    for (int32_t i = 0; i < length; i++) w->original[i] = -1;
    for (long i = 0; i < wanted; i++) {
        const uint32_t at = w->candidates[i];
        w->original[at] = tokens[at];
        if (uniform(&w->random) < 0.8)
            tokens[at] = set->mask;
        else if (uniform(&w->random) >= 0.5)
            tokens[at] = (int32_t)below(&w->random, (uint32_t)set->vocab_size);
    }
    int64_t to = out->size.num_masked;
    for (int32_t i = 0; i < length; i++)
        if (w->original[i] >= 0) {
            out->positions[to] = (uint16_t)i;
            out->labels[to++] = w->original[i];
        }
    return (int32_t)wanted;
}

// One sample from tokens [a, a_end) and [b, b_end) of the text.
static int add(Work *w, int64_t a, int64_t a_end, int64_t b, int64_t b_end, int random_next) {
    const Settings *set = w->set;
    Result *out = w->out;
    while ((a_end - a) + (b_end - b) > set->max_seq_length - 3) {
        const int longer_is_a = a_end - a > b_end - b;
        if (uniform(&w->random) < 0.5)
            *(longer_is_a ? &a : &b) += 1;
        else
            *(longer_is_a ? &a_end : &b_end) -= 1;
    }
    const int32_t num_a = (int32_t)(a_end - a), num_b = (int32_t)(b_end - b);
    const int32_t length = num_a + num_b + 3;
    if (!make_room(out, length, length)) return 0;
    int32_t *tokens = out->tokens + out->size.num_tokens;
    tokens[0] = set->cls;
    memcpy(tokens + 1, w->text->ids + a, (size_t)num_a * 4);
    tokens[num_a + 1] = set->sep;
    memcpy(tokens + num_a + 2, w->text->ids + b, (size_t)num_b * 4);
    tokens[length - 1] = set->sep;
    const int32_t count = mask(w, tokens, length, num_a + 1);
    out->instances[out->size.num_samples++] = (Instance){
        out->size.num_tokens, out->size.num_masked, length, count, (uint16_t)(num_a + 2),
        (int8_t)random_next};
    out->size.num_tokens += length;
    out->size.num_masked += count;
    return 1;
}

static int from_document(Work *w, uint32_t index) {
    const int64_t *sentences = w->text->sentences;
    const int64_t document = w->documents[index];
    const int64_t end = w->text->documents[document + 1];
    const uint32_t room = (uint32_t)w->set->max_seq_length - 3;
    int64_t target = room;
    if (uniform(&w->random) < w->set->short_seq_prob) target = 2 + below(&w->random, room - 1);
    int64_t first = w->text->documents[document];  // of the sentences gathered: [first, at]
    for (int64_t at = first; at < end; at++) {
        if (at != end - 1 && sentences[at + 1] - sentences[first] < target) continue;
        const int64_t gathered = at + 1 - first;
        const int64_t num_a =
            gathered >= 2 ? 1 + (int64_t)below(&w->random, (uint32_t)gathered - 1) : 1;
        const int64_t a = sentences[first], a_end = sentences[first + num_a];
        const int random_next = gathered == 1 || uniform(&w->random) < 0.5;
        int64_t b = a_end, b_end = sentences[at + 1];
        if (random_next) {
            uint32_t other = 0;
            for (int i = 0; i < 10; i++) {
                other = below(&w->random, (uint32_t)w->text->num_documents);
                if (other != index) break;
            }
            const int64_t from = w->text->documents[w->documents[other]];
            const int64_t to = w->text->documents[w->documents[other] + 1];
            int64_t s = from + below(&w->random, (uint32_t)(to - from));
            b = sentences[s];
            while (sentences[s + 1] - b < target - (a_end - a) && s + 1 < to) s++;
            b_end = sentences[s + 1];
            at = first + num_a - 1;  // the sentences not used are used again
        }
        if (!add(w, a, a_end, b, b_end, random_next)) return 0;
        first = at + 1;
    }
    return 1;
}

static void release(Result *out) {
    free(out->tokens);
    free(out->labels);
    free(out->positions);
    free(out->instances);
    free(out->order);
    free(out);
}

// All samples of a text in shuffled order, for collect_samples; NULL when memory runs out.
void *create_samples(const Text *text, const Settings *set, Sizes *sizes) {
    const size_t length = (size_t)set->max_seq_length;
    Result *out = calloc(1, sizeof *out);
    Work w = {.text = text, .set = set, .out = out};
    w.documents = malloc((size_t)text->num_documents * sizeof *w.documents);
    w.candidates = malloc(length * sizeof *w.candidates);
    w.original = malloc(length * sizeof *w.original);
    int good = out && w.documents && w.candidates && w.original;
    if (good) {
        seed(&w.random, set->seed);
        for (int64_t i = 0; i < text->num_documents; i++) w.documents[i] = (uint32_t)i;
        shuffle(&w.random, w.documents, (uint32_t)text->num_documents);
        for (int32_t pass = 0; good && pass < set->dupe_factor; pass++)
            for (int64_t i = 0; good && i < text->num_documents; i++)
                good = from_document(&w, (uint32_t)i);
    }
    if (good) {
        const int64_t n = out->size.num_samples;
        good = (out->order = malloc((size_t)n * sizeof *out->order)) != NULL;
        if (good) {
            for (int64_t i = 0; i < n; i++) out->order[i] = (uint32_t)i;
            shuffle(&w.random, out->order, (uint32_t)n);
            *sizes = out->size;
        }
    }
    free(w.documents);
    free(w.candidates);
    free(w.original);
    if (good) return out;
    if (out) release(out);
    return NULL;
}

static void *put(void *to, const int32_t *from, int32_t count, int narrow) {
    if (!narrow) return (char *)memcpy(to, from, (size_t)count * 4) + (size_t)count * 4;
    uint16_t *out = to;
    for (int32_t i = 0; i < count; i++) out[i] = (uint16_t)from[i];
    return out + count;
}

// Copy what create_samples made into arrays of the sizes it gave, and free it. Tokens and labels
// are int32, or uint16 where narrow.
void collect_samples(void *handle, int32_t narrow, void *tokens, int32_t *lengths, uint16_t *split,
                     uint16_t *positions, void *labels, int32_t *counts, int8_t *random_next) {
    Result *out = handle;
    for (int64_t i = 0; i < out->size.num_samples; i++) {
        const Instance *one = out->instances + out->order[i];
        tokens = put(tokens, out->tokens + one->token, one->length, narrow);
        labels = put(labels, out->labels + one->masked, one->count, narrow);
        memcpy(positions, out->positions + one->masked, (size_t)one->count * 2);
        positions += one->count;
        lengths[i] = one->length;
        counts[i] = one->count;
        split[i] = one->split;
        random_next[i] = one->random_next;
    }
    release(out);
}
