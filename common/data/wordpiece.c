// SPDX-License-Identifier: Apache-2.0
// Text to ids, word by word: distinct words are remembered, new words of plain ASCII letters and
// digits are cut into pieces here, and all others are handed back to be tokenised by the library
// that knows Unicode (tokenization.py). The result equals that library's on the whole text, since
// BERT's rules look at characters only and cut at every space and ASCII sign.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { WORD, SPACE, LINE_FEED, SIGN, MAX_WORD = 100, MAX_WORDS = 1 << 20 };

typedef struct {
    uint64_t hash;
    int64_t key, ids;  // offsets into the arenas
    int32_t length;    // of the key in bytes; 0 marks a free slot
    int32_t count;     // ids; -1 while the answer is awaited
} Entry;

typedef struct {
    Entry *slots;
    char *keys;
    int32_t *ids;
    int64_t num_slots, num_entries, keys_size, keys_room, ids_size, ids_room;
} Table;

typedef struct {
    Table vocab, words;
    int32_t unknown;
    int lowercase;
    uint8_t kind[256];
} Tokenizer;

static uint64_t hash_of(const char *key, int64_t length) {
    uint64_t h = 14695981039346656037u;  // FNV-1a
    for (int64_t i = 0; i < length; i++) h = (h ^ (uint8_t)key[i]) * 1099511628211u;
    return h ^ (h >> 32);
}

static Entry *find(const Table *t, const char *key, int64_t length, uint64_t hash) {
    for (uint64_t at = hash;; at++) {
        Entry *e = t->slots + (at & (uint64_t)(t->num_slots - 1));
        if (!e->length ||
            (e->hash == hash && e->length == length && !memcmp(t->keys + e->key, key, (size_t)length)))
            return e;
    }
}

static int reserve(void *array, int64_t *room, int64_t needed, size_t item) {
    if (needed <= *room) return 1;
    const int64_t larger = 2 * needed + 4096;
    void *moved = realloc(*(void **)array, (size_t)larger * item);
    if (!moved) return 0;
    *(void **)array = moved;
    *room = larger;
    return 1;
}

static int widen(Table *t) {
    const int64_t slots = t->num_slots ? 2 * t->num_slots : 1 << 12;
    Entry *old = t->slots, *wider = calloc((size_t)slots, sizeof *wider);
    if (!wider) return 0;
    const int64_t old_slots = t->num_slots;
    t->slots = wider;
    t->num_slots = slots;
    for (int64_t i = 0; i < old_slots; i++)
        if (old[i].length) *find(t, t->keys + old[i].key, old[i].length, old[i].hash) = old[i];
    free(old);
    return 1;
}

// Store a word that is not there yet, its ids to follow; NULL when memory runs out.
static Entry *insert(Table *t, const char *key, int32_t length, uint64_t hash) {
    if (4 * t->num_entries >= 3 * t->num_slots && !widen(t)) return NULL;
    if (!reserve(&t->keys, &t->keys_room, t->keys_size + length, 1)) return NULL;
    Entry *e = find(t, key, length, hash);
    *e = (Entry){hash, t->keys_size, 0, length, -1};
    memcpy(t->keys + t->keys_size, key, (size_t)length);
    t->keys_size += length;
    t->num_entries++;
    return e;
}

static int answer(Table *t, Entry *e, const int32_t *ids, int32_t count) {
    if (!reserve(&t->ids, &t->ids_room, t->ids_size + count, sizeof *ids)) return 0;
    e->ids = t->ids_size;
    e->count = count;
    if (count) memcpy(t->ids + t->ids_size, ids, (size_t)count * sizeof *ids);
    t->ids_size += count;
    return 1;
}

static void clear(Table *t) {
    free(t->slots);
    free(t->keys);
    free(t->ids);
    memset(t, 0, sizeof *t);
}

// Greedy longest match from the left; the ids go to the words table.
static int cut_word(Tokenizer *t, Entry *e, const char *word, int32_t length) {
    char text[2 + MAX_WORD] = "##";
    int32_t ids[MAX_WORD], count = 0;
    if (length > MAX_WORD) return answer(&t->words, e, &t->unknown, 1);
    for (int32_t i = 0; i < length; i++) {
        const char c = word[i];
        text[2 + i] = t->lowercase && c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
    }
    for (int32_t start = 0; start < length;) {
        // A continuation is looked up as "##" and its letters: put the signs before them.
        char piece[2 + MAX_WORD];
        const int32_t prefix = start ? 2 : 0;
        memcpy(piece, text, (size_t)prefix);
        memcpy(piece + prefix, text + 2 + start, (size_t)(length - start));
        int32_t end = length - start;
        const Entry *found = NULL;
        for (; end > 0; end--) {
            found = find(&t->vocab, piece, prefix + end, hash_of(piece, prefix + end));
            if (found->length) break;
        }
        if (!end) return answer(&t->words, e, &t->unknown, 1);
        ids[count++] = t->vocab.ids[found->ids];
        start += end;
    }
    return answer(&t->words, e, ids, count);
}

void wordpiece_free(Tokenizer *t) {
    clear(&t->vocab);
    clear(&t->words);
    free(t);
}

// A vocabulary of n tokens laid end to end: token i is bytes [offsets[i], offsets[i + 1]).
Tokenizer *wordpiece_new(const char *tokens, const int64_t *offsets, int64_t n, int32_t unknown,
                         int32_t lowercase) {
    Tokenizer *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    t->unknown = unknown;
    t->lowercase = lowercase;
    for (int c = '!'; c <= '~'; c++) {
        const int letter = c | 32;
        t->kind[c] = (c >= '0' && c <= '9') || (letter >= 'a' && letter <= 'z') ? WORD : SIGN;
    }
    t->kind[' '] = t->kind['\t'] = t->kind['\r'] = SPACE;
    t->kind['\n'] = LINE_FEED;
    int good = widen(&t->words) && widen(&t->vocab);
    for (int32_t i = 0; good && i < n; i++) {
        const char *key = tokens + offsets[i];
        const int32_t length = (int32_t)(offsets[i + 1] - offsets[i]);
        Entry *e = insert(&t->vocab, key, length, hash_of(key, length));
        good = e && answer(&t->vocab, e, &i, 1);
    }
    if (good) return t;
    wordpiece_free(t);
    return NULL;
}

// Tell the ids of words that wordpiece_encode asked about; 0 when memory runs out.
int32_t wordpiece_learn(Tokenizer *t, const char *text, const int64_t *spans, int64_t n,
                        const int32_t *ids, const int64_t *offsets) {
    for (int64_t i = 0; i < n; i++) {
        const char *key = text + spans[2 * i];
        const int64_t length = spans[2 * i + 1] - spans[2 * i];
        Entry *e = find(&t->words, key, length, hash_of(key, length));
        if (!answer(&t->words, e, ids + offsets[i], (int32_t)(offsets[i + 1] - offsets[i])))
            return 0;
    }
    return 1;
}

// The ids of a text whose every line ends in a line feed, and how many each line gave. Words that
// have to be asked about are listed once in spans, as pairs of first byte and end, and the answer
// is not complete until they are learned and the text encoded again. Returns the number of ids,
// or -1 when memory or room runs out.
int64_t wordpiece_encode(Tokenizer *t, const char *text, int64_t size, int32_t *ids, int64_t room,
                         int64_t *counts, int64_t *spans, int64_t *num_spans) {
    int64_t made = 0, line = 0, line_start = 0;
    if (t->words.num_entries > MAX_WORDS && *num_spans == 0) {
        clear(&t->words);
        if (!widen(&t->words)) return -1;
    }
    *num_spans = 0;
    for (int64_t at = 0; at < size;) {
        const uint8_t kind = t->kind[(uint8_t)text[at]];
        if (kind == SPACE) {
            at++;
            continue;
        }
        if (kind == LINE_FEED) {
            counts[line++] = made - line_start;
            line_start = made;
            at++;
            continue;
        }
        const int64_t start = at++;
        int plain = (uint8_t)text[start] > ' ' && (uint8_t)text[start] < 127;
        if (kind == WORD)
            for (; at < size && t->kind[(uint8_t)text[at]] == WORD; at++)
                plain &= (uint8_t)text[at] > ' ' && (uint8_t)text[at] < 127;
        const int64_t length = at - start;
        if (length > INT32_MAX) return -1;
        const uint64_t hash = hash_of(text + start, length);
        Entry *e = find(&t->words, text + start, length, hash);
        if (!e->length) {
            e = insert(&t->words, text + start, (int32_t)length, hash);
            if (!e) return -1;
            if (plain) {
                if (!cut_word(t, e, text + start, (int32_t)length)) return -1;
            } else {
                spans[2 * *num_spans] = start;
                spans[2 * *num_spans + 1] = at;
                *num_spans += 1;
            }
        }
        if (e->count < 0) continue;
        if (made + e->count > room) return -1;
        for (int32_t i = 0; i < e->count; i++) ids[made + i] = t->words.ids[e->ids + i];
        made += e->count;
    }
    return made;
}
