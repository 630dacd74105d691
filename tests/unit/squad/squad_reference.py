# SPDX-License-Identifier: Apache-2.0
"""The rules of the reference scripts, written out one token at a time, to compare with.

Slow, without a cleverness and without any of our code: strings and loops, one question at a time,
padded features, dictionaries from token to word. ``\\u`` escapes stand for what is not ASCII.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter

SPECIALS = ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"]


# --- text to wordpieces ---------------------------------------------------------------------------


def is_sign(char):
    return char in string.punctuation or unicodedata.category(char).startswith("P")


def is_cjk(char):
    blocks = ["4E00-9FFF", "3400-4DBF", "20000-2A6DF", "2A700-2B73F"]
    blocks += ["2B740-2B81F", "2B820-2CEAF", "F900-FAFF", "2F800-2FA1F"]
    ends = [[int(end, 16) for end in block.split("-")] for block in blocks]
    return any(first <= ord(char) <= last for first, last in ends)


def basic(text, lower):
    clean = ""
    for char in text:
        if char in ("\t", "\n", "\r"):
            clean += " "
        elif ord(char) in (0, 0xFFFD) or unicodedata.category(char).startswith("C"):
            pass
        elif unicodedata.category(char) == "Zs":
            clean += " "
        else:
            clean += char
    spaced = ""
    for char in clean:
        spaced += " " + char + " " if is_cjk(char) else char
    result = []
    for token in spaced.split():
        if token in SPECIALS:
            result.append(token)
            continue
        if lower:
            letters = unicodedata.normalize("NFD", token.lower())
            token = "".join([c for c in letters if unicodedata.category(c) != "Mn"])
        current = ""
        for char in token:
            if is_sign(char):
                result.append(current)
                result.append(char)
                current = ""
            else:
                current += char
        result.append(current)
    return " ".join(result).split()


REMEMBERED: dict = {}


def wordpieces(text, vocab, lower):
    """Remembered, since a paragraph is cut anew for each of its questions."""
    key = text, id(vocab), lower
    if key not in REMEMBERED:
        REMEMBERED[key] = (vocab, cut_into_pieces(text, vocab, lower))
    return REMEMBERED[key][1]


def cut_into_pieces(text, vocab, lower):
    pieces = []
    for token in basic(text, lower):
        if len(token) > 100:
            pieces.append("[UNK]")
            continue
        cut, rest = [], token
        while rest:
            prefix = "##" if cut else ""
            sizes = [n for n in range(len(rest), 0, -1) if prefix + rest[:n] in vocab]
            if not sizes:
                cut = ["[UNK]"]
                break
            cut.append(prefix + rest[: sizes[0]])
            rest = rest[sizes[0] :]
        pieces += cut
    return pieces


# --- file to examples -----------------------------------------------------------------------------


def examples(content, training, v2=False):
    found = []
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            words, word_of = [], []
            inside = False
            for char in paragraph["context"]:
                if char in " \t\r\n" or ord(char) == 0x202F:
                    inside = False
                elif inside:
                    words[-1] += char
                else:
                    words.append(char)
                    inside = True
                word_of.append(len(words) - 1)
            for qa in paragraph["qas"]:
                example = {"id": qa["id"], "question": qa["question"], "words": words}
                if training and v2 and qa["is_impossible"]:
                    example.update(impossible=True, start=-1, end=-1, answer="")
                elif training:
                    (answer,) = qa["answers"]
                    start = word_of[answer["answer_start"]]
                    end = word_of[answer["answer_start"] + len(answer["text"]) - 1]
                    covered = " ".join(words[start : end + 1])
                    if " ".join(answer["text"].split()) not in covered:
                        continue
                    example.update(impossible=False, start=start, end=end, answer=answer["text"])
                found.append(example)
    return found


# --- examples to features -------------------------------------------------------------------------


def features(example, vocab, lower, max_seq, stride, max_query, training):
    """The features of one example; ``vocab`` is a dictionary from token to id."""
    query = wordpieces(example["question"], vocab, lower)[:max_query]
    document, word_of_piece, first_piece = [], [], []
    for number, word in enumerate(example["words"]):
        first_piece.append(len(document))
        for piece in wordpieces(word, vocab, lower):
            document.append(piece)
            word_of_piece.append(number)

    if training and not example["impossible"]:
        low = first_piece[example["start"]]
        if example["end"] + 1 < len(example["words"]):
            high = first_piece[example["end"] + 1] - 1
        else:
            high = len(document) - 1
        low, high = tighter(document, low, high, wordpieces(example["answer"], vocab, lower))

    room = max_seq - len(query) - 3
    spans, at = [], 0
    while at < len(document):
        size = min(len(document) - at, room)
        spans.append((at, size))
        if at + size == len(document):
            break
        at += min(size, stride)

    made = []
    for number, (begin, size) in enumerate(spans):
        tokens, segments = ["[CLS]", *query, "[SEP]"], [0] * (len(query) + 2)
        word_map, is_max = {}, {}
        for position in range(begin, begin + size):
            word_map[len(tokens)] = word_of_piece[position]
            is_max[len(tokens)] = best_span(spans, position) == number
            tokens.append(document[position])
            segments.append(1)
        tokens.append("[SEP]")
        segments.append(1)
        ids = [vocab[token] for token in tokens]
        mask = [1] * len(ids)
        for row in (ids, mask, segments):
            row += [0] * (max_seq - len(row))
        start = end = None
        if training:
            start = end = 0
            if not example["impossible"] and low >= begin and high <= begin + size - 1:
                start = low - begin + len(query) + 2
                end = high - begin + len(query) + 2
        made.append(
            {"tokens": tokens, "ids": ids, "mask": mask, "segments": segments, "words": word_map,
             "is_max": is_max, "start": start, "end": end, "window": number}
        )  # fmt: skip
    return made


def tighter(document, low, high, answer):
    for new_low in range(low, high + 1):
        for new_high in range(high, new_low - 1, -1):
            if " ".join(document[new_low : new_high + 1]) == " ".join(answer):
                return new_low, new_high
    return low, high


def best_span(spans, position):
    best, best_score = None, None
    for number, (begin, size) in enumerate(spans):
        last = begin + size - 1
        if begin <= position <= last:
            value = min(position - begin, last - position) + 0.01 * size
            if best_score is None or value > best_score:
                best, best_score = number, value
    return best


# --- logits to answers ----------------------------------------------------------------------------


def answers(asked, n_best, longest, lower, v2=False, threshold=0.0):
    """``asked``: (example, [(feature, start logits, end logits)]) per question, logits as lists."""
    predictions, nbest = {}, {}
    for example, parts in asked:
        merged, null = [], (math.inf, 0.0, 0.0)
        for feature, starts, ends in parts:
            if starts[0] + ends[0] < null[0]:
                null = (starts[0] + ends[0], starts[0], ends[0])
            candidates = []
            for first in top(starts, n_best):
                for last in top(ends, n_best):
                    if first not in feature["words"] or last not in feature["words"]:
                        continue
                    if not feature["is_max"][first] or last < first:
                        continue
                    if last - first + 1 > longest:
                        continue
                    candidates.append((first, last, starts[first], ends[last]))
            candidates.sort(key=lambda c: c[2] + c[3], reverse=True)
            kept = []
            for first, last, start, end in candidates:
                if len(kept) == n_best:
                    break
                words = example["words"][feature["words"][first] : feature["words"][last] + 1]
                text = final_text(feature["tokens"][first : last + 1], " ".join(words), lower)
                if text not in [other[0] for other in kept]:
                    kept.append((text, start, end))
            merged += kept
        if v2 and parts:
            merged.append(("", null[1], null[2]))
        merged.sort(key=lambda c: c[1] + c[2], reverse=True)
        merged = merged[:n_best] or [("" if v2 else "empty", 0.0, 0.0)]
        odds = [math.exp(c[1] + c[2] - merged[0][1] - merged[0][2]) for c in merged]
        nbest[example["id"]] = [
            {"text": text, "probability": odd / sum(odds), "start_logit": start, "end_logit": end}
            for (text, start, end), odd in zip(merged, odds, strict=True)
        ]
        predictions[example["id"]] = merged[0][0]
        if v2:
            texts = [c for c in merged if c[0]]
            gap = null[0] - texts[0][1] - texts[0][2] if texts else math.inf
            predictions[example["id"]] = "" if gap > threshold else texts[0][0]
    return predictions, nbest


def top(logits, number):
    return sorted(range(len(logits)), key=lambda i: logits[i], reverse=True)[:number]


def final_text(pieces, original, lower):
    wanted = " ".join(" ".join(pieces).replace(" ##", "").replace("##", "").split())
    tokens = " ".join(basic(original, lower))
    if wanted not in tokens:
        return original
    first = tokens.index(wanted)
    last = first + len(wanted) - 1
    place, token_place = {}, {}
    for at, char in enumerate(original):
        if char != " ":
            place[len(place)] = at
    for at, char in enumerate(tokens):
        if char != " ":
            token_place[at] = len(token_place)
    if len(place) != len(token_place) or first not in token_place or last not in token_place:
        return original
    return original[place[token_place[first]] : place[token_place[last]] + 1]


# --- answers to scores ----------------------------------------------------------------------------


def plain(text):
    text = "".join([c for c in text.lower() if c not in set(string.punctuation)])
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split())


def f1_of(prediction, truth):
    ours, theirs = plain(prediction).split(), plain(truth).split()
    same = sum((Counter(ours) & Counter(theirs)).values())
    if same == 0:
        return 0
    precision = 1.0 * same / len(ours)
    recall = 1.0 * same / len(theirs)
    return (2 * precision * recall) / (precision + recall)


def scores(content, predictions):
    f1 = exact = total = 0
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                total += 1
                if qa["id"] in predictions:
                    given, truths = predictions[qa["id"]], [a["text"] for a in qa["answers"]]
                    exact += max([plain(given) == plain(truth) for truth in truths])
                    f1 += max([f1_of(given, truth) for truth in truths])
    return 100.0 * exact / total, 100.0 * f1 / total


def scores_v2(content, predictions):
    """As the official script prints them, every question being answered."""
    exact, f1, answerable = {}, {}, {}
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                truths = [a["text"] for a in qa["answers"] if plain(a["text"])] or [""]
                given = predictions[qa["id"]]
                answerable[qa["id"]] = bool(qa["answers"])
                exact[qa["id"]] = max([int(plain(given) == plain(truth)) for truth in truths])
                f1[qa["id"]] = max([f1_v2_of(given, truth) for truth in truths])
    result = {}
    for prefix, wanted in (("", (True, False)), ("HasAns_", (True,)), ("NoAns_", (False,))):
        ids = [i for i in exact if answerable[i] in wanted]
        if ids:
            result[prefix + "exact"] = 100.0 * sum(exact[i] for i in ids) / len(ids)
            result[prefix + "f1"] = 100.0 * sum(f1[i] for i in ids) / len(ids)
            result[prefix + "total"] = len(ids)
    return result


def f1_v2_of(prediction, truth):
    if not plain(prediction) or not plain(truth):
        return int(plain(prediction) == plain(truth))
    return f1_of(prediction, truth)
