/* SPDX-License-Identifier: Apache-2.0 */
/* A libnvidia-ml.so.1 of three cards, the last one with a MIG instance.

   FAKE_NVML_FAIL="nvmlDeviceGetPowerUsage=3 ..." makes functions return an error of NVML's.
   FAKE_NVML_LINKS is the number of NVLinks of each card that are up; they join all cards, unless
   FAKE_NVML_BRIDGE is set: then the first two only.
   FAKE_NVML_REASONS is the mask of clocks' event reasons. Each look at the energy counter finds
   1,500 mJ more on it. Built with -DOLD_NAMES the library has the older names only. */

#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6 };

typedef struct {
    const char *uuid;
    int mig; /* 0: none, 1: the mode is on, 2: this is an instance */
    unsigned long long energy;
    unsigned power, temperature, sm, memory_clock, used_percent;
    unsigned long long used;
} Card;

static Card cards[] = {
    {"GPU-aaaa1111-0000-0000-0000-000000000000", 0, 157072, 301250, 41, 1755, 2619, 97, 123456789},
    {"GPU-aabb2222-0000-0000-0000-000000000000", 0, 900, 68007, 30, 345, 2618, 0, 4194304},
    {"GPU-cccc3333-0000-0000-0000-000000000000", 1, 5, 99999, 55, 1410, 1593, 88, 77},
    {"MIG-dddd4444-0000-0000-0000-000000000000", 2, 0, 0, 0, 0, 0, 0, 1048576},
};
enum { COUNT = 3, PART = 3 };

static int fails(const char *name) {
    const char *told = getenv("FAKE_NVML_FAIL");
    const char *found = told ? strstr(told, name) : NULL;
    if (found == NULL || found[strlen(name)] != '=')
        return SUCCESS;
    return atoi(found + strlen(name) + 1);
}

#define FAIL_IF_TOLD               \
    do {                           \
        int code = fails(__func__); \
        if (code != SUCCESS)       \
            return code;           \
    } while (0)
#define WHOLE_CARD(card)       \
    do {                       \
        FAIL_IF_TOLD;          \
        if ((card)->mig == 2)  \
            return NOT_SUPPORTED; \
    } while (0)

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    FAIL_IF_TOLD;
    return SUCCESS;
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    switch (code) {
    case NOT_SUPPORTED:
        return "Not Supported";
    case 15:
        return "GPU is lost";
    default:
        return "Some Error";
    }
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    FAIL_IF_TOLD;
    strncpy(version, "580.65.06", length);
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = COUNT;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Card **card) {
    if (index >= COUNT)
        return INVALID_ARGUMENT;
    *card = &cards[index];
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Card **card) {
    for (int i = 0; i <= COUNT; i++)
        if (strcmp(cards[i].uuid, uuid) == 0) {
            *card = &cards[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(Card *card, char *uuid, unsigned length) {
    strncpy(uuid, card->uuid, length);
    return SUCCESS;
}

int nvmlDeviceGetMigMode(Card *card, unsigned *current, unsigned *pending) {
    FAIL_IF_TOLD;
    *current = *pending = card->mig == 1;
    return SUCCESS;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Card *part, Card **card) {
    if (part != &cards[PART])
        return INVALID_ARGUMENT;
    *card = &cards[COUNT - 1];
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(Card *card, unsigned long long *millijoules) {
    WHOLE_CARD(card);
    *millijoules = card->energy;
    card->energy += 1500;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(Card *card, unsigned *milliwatts) {
    WHOLE_CARD(card);
    *milliwatts = card->power;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(Card *card, unsigned long long *total_free_used) {
    FAIL_IF_TOLD;
    total_free_used[0] = 85899345920ULL;
    total_free_used[1] = 85899345920ULL - card->used;
    total_free_used[2] = card->used;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(Card *card, int sensor, unsigned *celsius) {
    WHOLE_CARD(card);
    if (sensor != 0)
        return INVALID_ARGUMENT;
    *celsius = card->temperature;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(Card *card, unsigned *gpu_memory) {
    WHOLE_CARD(card);
    gpu_memory[0] = card->used_percent;
    gpu_memory[1] = 13;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(Card *card, int which, unsigned *mhz) {
    WHOLE_CARD(card);
    *mhz = which == 1 ? card->sm : which == 2 ? card->memory_clock : 0;
    return SUCCESS;
}

static int links(void) {
    const char *told = getenv("FAKE_NVML_LINKS");
    return told ? atoi(told) : 0;
}

int nvmlDeviceGetNvLinkState(Card *card, unsigned link, unsigned *active) {
    WHOLE_CARD(card);
    if (link >= 18)
        return INVALID_ARGUMENT;
    *active = (int)link < links();
    return SUCCESS;
}

int nvmlDeviceGetP2PStatus(Card *one, Card *other, int what, int *status) {
    FAIL_IF_TOLD;
    int bridged = getenv("FAKE_NVML_BRIDGE") == NULL || (one < &cards[2] && other < &cards[2]);
    if (what != 2 || one == other)
        return INVALID_ARGUMENT;
    *status = links() && bridged ? 0 : 5; /* 5: not supported */
    return SUCCESS;
}

int nvmlDeviceGetTopologyCommonAncestor(Card *one, Card *other, int *level) {
    FAIL_IF_TOLD;
    *level = one < &cards[2] && other < &cards[2] ? 30 : 50;
    return SUCCESS;
}

static int reasons(unsigned long long *mask) {
    const char *told = getenv("FAKE_NVML_REASONS");
    *mask = told ? strtoull(told, NULL, 0) : 0;
    return SUCCESS;
}

#ifndef OLD_NAMES
int nvmlDeviceGetCurrentClocksEventReasons(Card *card, unsigned long long *mask) {
    WHOLE_CARD(card);
    return reasons(mask);
}
#endif

int nvmlDeviceGetCurrentClocksThrottleReasons(Card *card, unsigned long long *mask) {
    WHOLE_CARD(card);
#ifndef OLD_NAMES
    return 999; /* the newer name must be asked first */
#endif
    return reasons(mask);
}
