/* Records what a process does to the files under a directory, in order: preloaded by test_power_cut.
   RECORD_DIR is the directory, RECORD_TO the record.
   One entry: operation (1 byte), length of the path (u16), offset (i64), length of the data (u32),
   path, data. Operations: C created, T truncated to the offset, W written, S synced, U unlinked,
   R renamed (the data is the new path). A sync is recorded before it is done, everything else
   after: what the record takes for unsynced may have been, never the other way round. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FDS 65536
#define NEXT(result, name, ...)                                                                    \
  static result (*next)(__VA_ARGS__);                                                              \
  if (!next)                                                                                       \
    next = dlsym(RTLD_NEXT, name)

static int out = -1;
static const char *root;
static char *paths[FDS];

__attribute__((constructor)) static void begin(void) {
  root = getenv("RECORD_DIR");
  const char *to = getenv("RECORD_TO");
  int fd = to ? open(to, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
  out = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 900);
}

static int mine(const char *path) { return root && path && !strncmp(path, root, strlen(root)); }

static const char *path_of(int fd) { return fd >= 0 && fd < FDS ? paths[fd] : NULL; }

static void record(char operation, const char *path, int64_t offset, const void *data, uint32_t size) {
  NEXT(ssize_t, "write", int, const void *, size_t);
  uint16_t length = strlen(path);
  char *entry = malloc(15 + length + size);
  if (out < 0 || !entry)
    return;
  entry[0] = operation;
  memcpy(entry + 1, &length, 2);
  memcpy(entry + 3, &offset, 8);
  memcpy(entry + 11, &size, 4);
  memcpy(entry + 15, path, length);
  if (size)
    memcpy(entry + 15 + length, data, size);
  if (next(out, entry, 15 + length + size) < 0)
    abort(); /* a gap in the record would prove nothing */
  free(entry);
}

static int opened(int fd, const char *path, int flags, int there) {
  if (fd < 0 || fd >= FDS)
    return fd;
  free(paths[fd]);
  paths[fd] = mine(path) ? strdup(path) : NULL;
  if (paths[fd] && !there)
    record('C', path, 0, NULL, 0);
  if (paths[fd] && (flags & O_TRUNC))
    record('T', path, 0, NULL, 0);
  return fd;
}

static int exists(const char *path) { return !mine(path) || !access(path, F_OK); }

#define OPEN(name)                                                                                 \
  int name(const char *path, int flags, ...) {                                                     \
    NEXT(int, #name, const char *, int, ...);                                                      \
    va_list arguments;                                                                             \
    va_start(arguments, flags);                                                                    \
    int mode = va_arg(arguments, int), there = exists(path);                                       \
    va_end(arguments);                                                                             \
    return opened(next(path, flags, mode), path, flags, there);                                    \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                               \
  int name(int dir, const char *path, int flags, ...) {                                            \
    NEXT(int, #name, int, const char *, int, ...);                                                 \
    va_list arguments;                                                                             \
    va_start(arguments, flags);                                                                    \
    int mode = va_arg(arguments, int), there = exists(path);                                       \
    va_end(arguments);                                                                             \
    return opened(next(dir, path, flags, mode), path, flags, there);                               \
  }
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
  NEXT(int, "close", int);
  if (fd == out && fd >= 0)
    return 0;
  if (fd >= 0 && fd < FDS) {
    free(paths[fd]);
    paths[fd] = NULL;
  }
  return next(fd);
}

ssize_t write(int fd, const void *data, size_t size) {
  NEXT(ssize_t, "write", int, const void *, size_t);
  off_t offset = 0;
  if (path_of(fd)) {
    struct stat status;
    offset = lseek(fd, 0, SEEK_CUR);
    if ((fcntl(fd, F_GETFL) & O_APPEND) && !fstat(fd, &status))
      offset = status.st_size;
  }
  ssize_t done = next(fd, data, size);
  if (path_of(fd) && done > 0)
    record('W', path_of(fd), offset, data, done);
  return done;
}

#define PWRITE(name, type)                                                                         \
  ssize_t name(int fd, const void *data, size_t size, type offset) {                               \
    NEXT(ssize_t, #name, int, const void *, size_t, type);                                         \
    ssize_t done = next(fd, data, size, offset);                                                   \
    if (path_of(fd) && done > 0)                                                                   \
      record('W', path_of(fd), offset, data, done);                                                \
    return done;                                                                                   \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define SYNC(name)                                                                                 \
  int name(int fd) {                                                                               \
    NEXT(int, #name, int);                                                                         \
    if (path_of(fd))                                                                               \
      record('S', path_of(fd), 0, NULL, 0);                                                        \
    return next(fd);                                                                               \
  }
SYNC(fsync)
SYNC(fdatasync)

#define TRUNCATE(name, type)                                                                       \
  int name(int fd, type size) {                                                                    \
    NEXT(int, #name, int, type);                                                                   \
    int failed = next(fd, size);                                                                   \
    if (!failed && path_of(fd))                                                                    \
      record('T', path_of(fd), size, NULL, 0);                                                     \
    return failed;                                                                                 \
  }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

int unlink(const char *path) {
  NEXT(int, "unlink", const char *);
  int failed = next(path);
  if (!failed && mine(path))
    record('U', path, 0, NULL, 0);
  return failed;
}

int rename(const char *from, const char *to) {
  NEXT(int, "rename", const char *, const char *);
  int failed = next(from, to);
  if (!failed && mine(from))
    record('R', from, 0, to, strlen(to));
  return failed;
}
