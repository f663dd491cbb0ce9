/* Ends the process at its next fsync of a -wal file, while the file named by KILL_SYNC exists:
   after the commit frame is written, before the commit is published in the index. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void maybe_die(int fd) {
    char link[64], name[512];
    const char *flag = getenv("KILL_SYNC");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, name, sizeof name - 1);
    if (size < 4 || flag == NULL) return;
    name[size] = 0;
    if (strcmp(name + size - 4, "-wal") == 0 && access(flag, F_OK) == 0) _exit(9);
}

int fdatasync(int fd) {
    maybe_die(fd);
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}

int fsync(int fd) {
    maybe_die(fd);
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
