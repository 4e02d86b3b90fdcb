/* A library with the vendor's C functions, and with the manners that its
   defines give it. It knows one key and one signature: those of the sample that
   the vendor publishes, over SHA-256 of "hello world". Its serial number says how
   it was used. */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

#ifndef KEY_LENGTH
#define KEY_LENGTH 64
#endif
#ifndef SIGNATURE_LENGTH
#define SIGNATURE_LENGTH 64
#endif
/* what is allocated, when that isn't what is said */
#ifndef ALLOCATED
#define ALLOCATED(length) (length)
#endif
#ifndef SIGN_CODE
#define SIGN_CODE 0
#endif
#ifndef CONTEXT
#define CONTEXT (&context)
#endif
#ifndef TEXT
#define TEXT "a stub"
#endif
#ifndef UNLOCK_GOOD
#define UNLOCK_GOOD 1
#endif
#ifndef UNLOCK_CHANGED
#define UNLOCK_CHANGED 0
#endif
#ifndef SLOTS
#define SLOTS {0, 1, 16}
#endif
#ifndef SLOTS_LENGTH
#define SLOTS_LENGTH ((int)(sizeof slots / sizeof *slots))
#endif
#ifndef GENERATED
#define GENERATED 17
#endif
#ifndef CIRCUITS_LENGTH
#define CIRCUITS_LENGTH 2
#endif
#ifndef VOLTS
#define VOLTS 3.1f
#endif

static int context;
static int opened, closed, inside, together, wrong_context;

static const char PUBLIC[] =
    "6cd0b8b14963f6712877eb50a3f5afa9c0e39483e560f58eb795e634df53f399"
    "ba370dbceb71ea87cba5e2fca4f23ef73b8e683a9946758829f76521e7a19e5a";
static const char SIGNATURE[] =
    "28953e99dcc7f7ebf2771acae9e996e45997a212f7deba04a5974d1db6651fc8"
    "c50f11a5e5ad24ef25bdf0dafbdb736513f618184505f469f126c7dd4557cade";

/* Callers have to see to it that only one is in here. */
static void enter(void *ctx) {
    if (__atomic_add_fetch(&inside, 1, __ATOMIC_SEQ_CST) > 1) together++;
    if (ctx != CONTEXT) wrong_context++;
    for (volatile int i = 0; i < 20000; i++) {}
}

static int leave(int code) {
    __atomic_sub_fetch(&inside, 1, __ATOMIC_SEQ_CST);
    return code;
}

static void unhex(const char *hex, uint8_t *out, size_t n) {
    for (size_t i = 0; i < n && hex[2 * i]; i++) sscanf(hex + 2 * i, "%2hhx", &out[i]);
}

/* `length` bytes, as it says, of what may be fewer. */
static int put(const char *hex, int length, uint8_t **out, int *out_length) {
    size_t room = ALLOCATED(length < 0 ? 64 : (size_t)length);
    *out = calloc(room + 1, 1);
    unhex(hex, *out, room);
    *out_length = length;
    return 0;
}

#ifndef NO_OPEN
EXPORT int zkOpen(void **ctx) {
    enter(CONTEXT);
    opened++;
    *ctx = CONTEXT;
    return leave(0);
}
#endif

#ifndef NO_CLOSE
EXPORT int zkClose(void *ctx) {
    enter(ctx);
    closed++;
    return leave(0);
}
#endif

#ifndef NO_EXPORT
EXPORT int zkExportPubKey(void *ctx, uint8_t **key, int *length, int slot, bool foreign) {
    enter(ctx);
    if (foreign) return leave(-99);
    return leave(put(PUBLIC, slot == 16 ? 32 : KEY_LENGTH, key, length));
}
#endif

#ifdef OLD_EXPORT
EXPORT int zkGetECDSAPubKey(void *ctx, uint8_t **key, int *length, int slot) {
    enter(ctx);
    (void)slot;
    return leave(put(PUBLIC, KEY_LENGTH, key, length));
}
#endif

#ifndef NO_SIGN
EXPORT int zkGenECDSASigFromDigest(void *ctx, const uint8_t *digest, int slot,
                                   uint8_t **signature, int *length) {
    enter(ctx);
    (void)digest, (void)slot;
    put(SIGNATURE, SIGNATURE_LENGTH, signature, length);
    return leave(SIGN_CODE);
}
#endif

#ifdef RECOVERABLE
EXPORT int zkGenECDSASigFromDigestWithRecID(void *ctx, const uint8_t *digest, int slot,
                                            uint8_t **signature, int *length, uint8_t *parity) {
    enter(ctx);
    (void)digest, (void)slot;
    *parity = 1;
    return leave(put(SIGNATURE, SIGNATURE_LENGTH, signature, length));
}
#endif

#ifndef ONLY_REQUIRED
EXPORT int zkGetRandBytes(void *ctx, uint8_t **bytes, int n) {
    enter(ctx);
    *bytes = calloc(ALLOCATED((size_t)n), 1);
    return leave(0);
}

/* x ^ 0x55, then a byte that is their sum */
EXPORT int zkLockDataB2B(void *ctx, const uint8_t *plain, int n, uint8_t **locked, int *length,
                         bool shared) {
    enter(ctx);
    if (shared) return leave(-99);
    uint8_t sum = 0;
    *locked = malloc(n + 1);
    for (int i = 0; i < n; i++) sum += (*locked)[i] = plain[i] ^ 0x55;
    (*locked)[n] = sum;
#ifdef LOCKED_LENGTH
    *length = LOCKED_LENGTH;
#else
    *length = n + 1;
#endif
    return leave(0);
}

/* There is always an output, as a library might have it. */
EXPORT int zkUnlockDataB2B(void *ctx, const uint8_t *locked, int n, uint8_t **plain, int *length,
                           bool shared) {
    enter(ctx);
    if (shared || n < 1) return leave(-99);
    uint8_t sum = 0;
    *plain = malloc(n);
    for (int i = 0; i < n - 1; i++) {
        sum += locked[i];
        (*plain)[i] = locked[i] ^ 0x55;
    }
    *length = n - 1;
    return leave(sum == locked[n - 1] ? UNLOCK_GOOD : UNLOCK_CHANGED);
}

EXPORT int zkGenKeyPair(void *ctx, int type) {
    enter(ctx);
    return leave(type == 0 ? GENERATED : -99);
}

EXPORT int zkGetAllocSlotsList(void *ctx, bool foreign, int *most, int **list, int *length) {
    enter(ctx);
    if (foreign) return leave(-99);
    static const int slots[] = SLOTS;
    *most = 512;
    *list = malloc(sizeof slots);
    memcpy(*list, slots, sizeof slots);
    *length = SLOTS_LENGTH;
    return leave(0);
}

static int text(void *ctx, char **out, const char *content, size_t n) {
    enter(ctx);
    *out = malloc(n);
    memcpy(*out, content, n);
    return leave(0);
}

EXPORT int zkGetModelNumberString(void *ctx, char **out) {
#ifdef ENDLESS
    static const char endless[4000] = {[0 ... 3999] = 'x'};
    return text(ctx, out, endless, sizeof endless);
#else
    return text(ctx, out, TEXT, sizeof TEXT);
#endif
}

EXPORT int zkGetSerialNumberString(void *ctx, char **out) {
    char content[100];
    int n = snprintf(content, sizeof content, "opened %d, closed %d, together %d, wrong %d",
                     opened, closed, together, wrong_context);
    return text(ctx, out, content, n + 1);
}

EXPORT int zkGetCurrentBindingInfo(void *ctx, uint8_t *locked, uint8_t *bound) {
    enter(ctx);
    *locked = 0;
    *bound = 200; /* true, if it weren't C */
    return leave(0);
}

EXPORT int zkGetBatteryVoltage(void *ctx, float *volts) {
    enter(ctx);
    *volts = VOLTS;
    return leave(0);
}

EXPORT int zkGetPerimeterDetectInfo(void *ctx, uint32_t **times, int *length) {
    enter(ctx);
    *times = calloc(2, sizeof **times);
    (*times)[1] = 1700000000;
    *length = CIRCUITS_LENGTH;
    return leave(0);
}
#endif
