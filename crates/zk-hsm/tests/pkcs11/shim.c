/* A PKCS#11 library that passes all calls on to LIBRARY, and fails on command.
 *
 * Below DIRECTORY
 *   calls      gets a line for each call of a function that is wrapped here;
 *   C_Sign     with the text "0x30 2" makes the next two calls of C_Sign return
 *              0x30 without being passed on, and is removed then. "0x0 2" lets
 *              them be passed on, and return CKR_OK whatever comes back;
 *   C_Sign.hold holds calls of C_Sign up for as long as it exists;
 *   flags      with "0x1 0x2" sets flag 1 and clears flag 2 of all tokens;
 *   zeros      has their texts padded with zero bytes, not with blanks;
 *   public     has all sessions say that nobody is logged in;
 *   mechanism  with "0x1" takes that mechanism out of their lists.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long ul;
typedef ul (*function)(ul, ul, ul, ul, ul, ul);

/* CK_FUNCTION_LIST of PKCS#11 2.40 */
struct list {
    unsigned char version[2];
    function functions[68];
};

static struct list *real, mine;

static ul call(const char *name, int index, ul a, ul b, ul c, ul d, ul e, ul f)
{
    char path[4096];
    ul code = 0, set = 0, clear = 0, result;
    int times = 0;
    FILE *file = fopen(DIRECTORY "/calls", "a");
    if (file) {
        fprintf(file, "%s\n", name);
        fclose(file);
    }
    snprintf(path, sizeof path, DIRECTORY "/%s.hold", name);
    while (access(path, F_OK) == 0)
        usleep(1000);
    snprintf(path, sizeof path, DIRECTORY "/%s", name);
    file = fopen(path, "r+");
    if (file && fscanf(file, "%lx %d", &code, &times) == 2) {
        if (times > 1) {
            rewind(file);
            fprintf(file, "0x%lx %d ", code, times - 1);
        } else {
            unlink(path);
        }
    }
    if (file)
        fclose(file);
    if (times && code) {
        if (index == 30 || index == 34 || index == 43) {
            /* an error ends the operation */
            static char output[1 << 18];
            ul length = sizeof output;
            real->functions[index](a, b, c, (ul)output, (ul)&length, 0);
        }
        return code;
    }
    result = real->functions[index](a, b, c, d, e, f);
    if (index == 6 && result == 0 && (file = fopen(DIRECTORY "/flags", "r"))) {
        /* CK_TOKEN_INFO: after four texts of 32, 32, 16 and 16 bytes */
        ul *flags = (ul *)((char *)b + 96);
        if (fscanf(file, "%lx %lx", &set, &clear) == 2)
            *flags = (*flags | set) & ~clear;
        fclose(file);
    }
    if (index == 6 && result == 0 && access(DIRECTORY "/zeros", F_OK) == 0) {
        static const int ends[] = {32, 64, 80, 96};
        for (int text = 0; text < 4; text++)
            for (char *end = (char *)b + ends[text]; end[-1] == ' '; end--)
                end[-1] = 0;
    }
    /* CK_SESSION_INFO: the state is its second member, CKS_RO_PUBLIC_SESSION is 0 */
    if (index == 15 && result == 0 && access(DIRECTORY "/public", F_OK) == 0)
        ((ul *)b)[1] = 0;
    if (index == 7 && result == 0 && b && (file = fopen(DIRECTORY "/mechanism", "r"))) {
        ul *mechanisms = (ul *)b, *count = (ul *)c, kept = 0;
        if (fscanf(file, "%lx", &set) == 1) {
            for (ul i = 0; i < *count; i++)
                if (mechanisms[i] != set)
                    mechanisms[kept++] = mechanisms[i];
            *count = kept;
        }
        fclose(file);
    }
    return times ? 0 : result;
}

#define WRAPPED(WRAP) \
    WRAP(C_Initialize, 0) WRAP(C_Finalize, 1) WRAP(C_GetSlotList, 4) \
    WRAP(C_GetTokenInfo, 6) WRAP(C_GetMechanismList, 7) \
    WRAP(C_OpenSession, 12) WRAP(C_CloseSession, 13) \
    WRAP(C_GetSessionInfo, 15) WRAP(C_Login, 18) WRAP(C_GetAttributeValue, 24) \
    WRAP(C_FindObjectsInit, 26) WRAP(C_FindObjects, 27) WRAP(C_EncryptInit, 29) \
    WRAP(C_Encrypt, 30) WRAP(C_DecryptInit, 33) WRAP(C_Decrypt, 34) \
    WRAP(C_SignInit, 42) WRAP(C_Sign, 43) WRAP(C_GenerateKey, 58) \
    WRAP(C_GenerateRandom, 64)

#define DEFINE(name, index) \
    static ul name(ul a, ul b, ul c, ul d, ul e, ul f) \
    { \
        return call(#name, index, a, b, c, d, e, f); \
    }
WRAPPED(DEFINE)

ul C_GetFunctionList(struct list **list)
{
    if (!real) {
        void *library = dlopen(LIBRARY, RTLD_NOW);
        ul (*get)(struct list **) = dlsym(library, "C_GetFunctionList");
        if (get(&real))
            abort();
        mine = *real;
#define PATCH(name, index) mine.functions[index] = name;
        WRAPPED(PATCH)
    }
    *list = &mine;
    return 0;
}
